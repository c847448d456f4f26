//! The synthetic models in llama.cpp: each loads and says something, in every type, and routes as broadly as a real one.

mod common;

use common::{finish, scratch, synthetic, tool, LAB};
use pipeshard_cli::eval::EvalResult;
use pipeshard_lab::cli::routing::Touched;
use pipeshard_lab::synth::{SHAPES, WRITABLE};
use std::collections::HashSet;
use std::path::Path;

/// Evaluates with stock llama.cpp; NaN among the logits is a failure there.
fn evaluated(model: &Path) -> EvalResult {
    let mut command = tool(LAB);
    command.arg("eval").arg(model);
    command.args(["--prompt-tokens", "1,33", "--generate", "6", "--ctx", "128"]);
    command.args(["--threads", "1"]);
    let finished = finish(&mut command);
    assert!(
        finished.succeeded(),
        "{}: {}",
        model.display(),
        finished.stderr
    );
    serde_json::from_str(&finished.stdout).expect("a result")
}

/// A model that is alive gives other tokens for other prompts, and not one all the time.
fn is_varied(result: &EvalResult) -> bool {
    let [one, many] = &result.results[..] else {
        return false;
    };
    let all = one.tokens.iter().chain(&many.tokens);
    all.collect::<HashSet<_>>().len() >= 6 && one.tokens != many.tokens
}

#[test]
fn every_small_model_that_writes_text_is_alive() {
    let mut architectures = HashSet::new();
    for shape in SHAPES.iter().filter(|s| s.name.starts_with("tiny-")) {
        let spec = shape.spec();
        if !spec.architecture.writes_text() {
            continue;
        }
        architectures.insert(spec.architecture);
        let result = evaluated(&synthetic(shape.name, &[]));
        assert!(is_varied(&result), "{}: {:?}", shape.name, result.results);
    }
    assert!(architectures.len() >= 12, "{architectures:?}");
}

#[test]
fn every_type_is_alive() {
    for name in WRITABLE {
        let model = scratch("shapes").join(format!("{name}.gguf"));
        let mut command = tool(LAB);
        command.args(["synth", "--force", "--shape", "tiny-qwen2"]);
        command.args(["--layers", "2", "--type", name]).arg(&model);
        let made = finish(&mut command);
        assert!(made.succeeded(), "{}", made.stderr);
        // all rows of the small models fill the blocks of every type
        assert!(!made.stdout.contains("another type"), "{}", made.stdout);
        let result = evaluated(&model);
        assert!(is_varied(&result), "{name}: {:?}", result.results);
    }
}

fn touched(model: &Path, prompts: &str, options: &[&str]) -> Vec<Touched> {
    let mut command = tool(LAB);
    command.arg("routing").arg(model).args(options);
    command.args(["--prompt-tokens", prompts, "--threads", "1", "--json"]);
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("counts")
}

#[test]
fn routing_is_as_broad_as_a_real_model_s() {
    // as many experts as the real one, a token uses as many; only narrower
    let options = [
        "--experts=128",
        "--experts-used=8",
        "--expert-feed-forward=64",
        "--embedding=256",
        "--layers=5",
    ];
    let model = synthetic("tiny-qwen3moe", &options);
    let counts = touched(&model, "8,32,512", &[]);
    for (one, least) in counts.iter().zip([30, 75, 109]) {
        // all layers but the last, of which only one token is wanted
        assert_eq!(one.distinct.len(), 4, "{one:?}");
        assert!(one.distinct.values().all(|&n| n >= least), "{one:?}");
    }
    assert!(counts[2].busiest.values().all(|&share| share < 0.05));
    // text uses few of the tokens, and the layers see what comes before each
    let text = scratch("shapes").join("text.txt");
    std::fs::write(&text, include_str!("../docs/architecture.md")).expect("a file");
    let text = text.display().to_string();
    let [one] = &touched(&model, "512", &["--text", &text])[..] else {
        panic!("one prompt, one result");
    };
    assert!(one.distinct.values().all(|&n| n >= 100), "{one:?}");
}

#[test]
fn a_model_without_experts_is_refused() {
    let mut command = tool(LAB);
    command.arg("routing").arg(synthetic("tiny-qwen2", &[]));
    let finished = finish(&mut command);
    assert!(finished.failed_cleanly());
    assert!(
        finished.said().contains("has no experts"),
        "{}",
        finished.said()
    );
}

/// A picture of one colour, 112 pixels wide and high, as a bitmap.
fn picture(blue: u8) -> Vec<u8> {
    const SIDE: u32 = 112;
    let pixels = SIDE * SIDE * 3;
    let mut file = b"BM".to_vec();
    for number in [
        54 + pixels,
        0,
        54,
        40,
        SIDE,
        SIDE,
        24 << 16 | 1,
        0,
        pixels,
        0,
        0,
        0,
        0,
    ] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend((0..SIDE * SIDE).flat_map(|_| [blue, 90, 10]));
    file
}

#[test]
fn the_vision_tower_tells_the_model_what_it_sees() {
    let model = synthetic("tiny-qwen2vl", &[]);
    let tower = synthetic("tiny-qwen2vl-mmproj", &[]);
    let mut said = HashSet::new();
    for blue in [0, 250] {
        let file = scratch("shapes").join(format!("{blue}.bmp"));
        std::fs::write(&file, picture(blue)).expect("a file");
        let mut command = tool("llama-mtmd-cli");
        command.arg("-m").arg(&model).arg("--mmproj").arg(&tower);
        command.arg("--image").arg(&file);
        command.args(["-p", "what is this", "-n", "12", "-t", "1", "-c", "1024"]);
        command.args(["--temp", "0", "--no-warmup"]);
        let finished = finish(&mut command);
        assert!(finished.succeeded(), "{}", finished.stderr);
        said.insert(finished.stdout.trim().to_owned());
    }
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|text| text.len() > 12), "{said:?}");
}
