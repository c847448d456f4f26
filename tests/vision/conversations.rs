//! Conversations about images with llama-server: the same answers as stock's in every budget, also where it changes in between.

use super::*;
use serde_json::{json, Value};

/// A language model and an encoder.
struct Pair {
    language: (&'static str, &'static [&'static str]),
    encoder: (&'static str, &'static [&'static str]),
    flags: &'static [&'static str],
}

/// One that attends within windows, one whose images are cut into tiles, and one without fused attention.
const PAIRS: [Pair; 3] = [
    Pair {
        language: ("tiny-qwen2vl", &["--layers=12", "--type=f16"]),
        encoder: ("tiny-qwen2vl-mmproj", &[]),
        flags: &["--image-max-tokens", "192"],
    },
    Pair {
        language: ("tiny-qwen2-images", &["--layers=12", "--type=f16"]),
        encoder: ("tiny-mmproj-idefics3", &["--layers=12"]),
        flags: &[],
    },
    Pair {
        language: ("tiny-qwen2vl", &["--layers=12", "--type=f16"]),
        encoder: ("tiny-qwen2vl-mmproj", &[]),
        flags: &["--image-max-tokens", "192", "-fa", "off"],
    },
];

impl Pair {
    fn server(&self, flags: &[&str]) -> Server {
        let encoder = synthetic(self.encoder.0, self.encoder.1);
        let encoder = encoder.display().to_string();
        let usual = [
            "--mmproj",
            &encoder,
            "-c",
            "4096",
            "-np",
            "2",
            "-t",
            "1",
            "-ub",
            "128",
            "--chat-template",
            "chatml",
        ];
        let language = synthetic(self.language.0, self.language.1);
        Server::start(&language, &[&usual[..], self.flags, flags].concat())
    }
}

fn image(width: u32, height: u32) -> Value {
    let url = format!("data:image/bmp;base64,{}", base64(&bitmap(width, height)));
    json!({ "type": "image_url", "image_url": { "url": url } })
}

/// An image, two, and an image after an answer about another.
fn conversations() -> [Value; 3] {
    let text = |text: &str| json!({ "type": "text", "text": text });
    let user = |parts: Vec<Value>| json!({ "role": "user", "content": parts });
    let (wide, high) = (image(336, 224), image(112, 336));
    [
        json!([user(vec![wide.clone(), text("what is this")])]),
        json!([user(vec![high.clone(), wide.clone(), text("compare them")])]),
        json!([
            user(vec![wide, text("what is this")]),
            { "role": "assistant", "content": "a house" },
            user(vec![high, text("and this")]),
        ]),
    ]
}

fn answer(server: &Server, messages: &Value) -> String {
    let body =
        json!({ "messages": messages, "max_tokens": 4, "temperature": 0, "cache_prompt": false });
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert!(status.contains("200"), "{status}: {answer}");
    let text = answer["choices"][0]["message"]["content"].as_str();
    text.expect("a text").to_owned()
}

/// Answers to all conversations, and to the first once more.
fn answers(server: &Server) -> Vec<String> {
    let all = conversations();
    let asked = all.iter().chain([&all[0]]);
    asked.map(|messages| answer(server, messages)).collect()
}

fn size(value: &Value) -> u64 {
    value.as_u64().expect("a size")
}

#[test]
fn answers_about_images_are_those_of_stock_in_every_budget() {
    // without PIPESHARD_TEST_FULL=1 two pairs, each in a budget in which residents make way
    let full = std::env::var_os("PIPESHARD_TEST_FULL").is_some();
    for pair in &PAIRS[..if full { 3 } else { 2 }] {
        let expected = answers(&pair.server(&["--no-repack"]));
        assert!(expected[0] == expected[3] && expected[0] != expected[1]);
        let within = |budget: u64| {
            let (budget, device) = (budget.to_string(), format!("vram={budget}"));
            let flags = ["--pipeshard-vram", &budget, "--pipeshard-sim", &device];
            pair.server(&[&flags[..], &["--pipeshard-control"]].concat())
        };
        let roomy = within(400 * MIB);
        assert_eq!(answer(&roomy, &conversations()[0]), expected[0]);
        let (_, limits) = roomy.get("/pipeshard");
        let all = size(&limits["held_total"]);
        drop(roomy);
        let budgets = [all / 2, all * 3 / 4];
        for budget in budgets.into_iter().take(if full { 2 } else { 1 }) {
            let ours = within(budget);
            assert_eq!(answers(&ours), expected, "{budget} of {all}");
            let (_, limits) = ours.get("/pipeshard");
            let least = size(&limits["minimum"]);
            assert!(least < budget, "{limits}");
            // the language model has to make way from one image to the next, or the encoder has
            let changes = [(least + budget) / 2, budget];
            for changed in changes.into_iter().take(if full { 2 } else { 1 }) {
                let (status, now) = ours.post("/pipeshard/budget", &json!({ "size": changed }));
                assert!(status.contains("200"), "{status}: {now}");
                assert!(size(&now["held_total"]) <= changed, "{now}");
                let asked = conversations();
                assert_eq!(answer(&ours, &asked[1]), expected[1], "{changed} of {all}");
            }
            // both slots at once
            let asked = conversations();
            let found = std::thread::scope(|scope| {
                let both = [0, 2].map(|at| {
                    let (ours, asked) = (&ours, &asked);
                    scope.spawn(move || answer(ours, &asked[at]))
                });
                both.map(|one| one.join().expect("an answer"))
            });
            assert_eq!(found, [expected[0].clone(), expected[2].clone()]);
        }
    }
}
