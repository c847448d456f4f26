//! Encoders of images inside the budget: the same embeddings as stock's, in less memory, or a refusal that says what would work.

mod common;
#[path = "vision/conversations.rs"]
mod conversations;
#[path = "vision/turns.rs"]
mod turns;

use common::server::Server;
use common::{assert_accounted, finish, scratch, synthetic, tool, Finished, MIB};
use pipeshard::report::{Report, VisionReport};
use std::path::{Path, PathBuf};

/// The test encoder attends within windows in two of its four layers.
const WINDOWED_LAYERS: u64 = 2;

/// A picture of noise, as a bitmap.
fn bitmap(width: u32, height: u32) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    let size = row * height;
    for number in [
        54 + size,
        0,
        54,
        40,
        width,
        height,
        24 << 16 | 1,
        0,
        size,
        0,
        0,
        0,
        0,
    ] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    let mut state = 1_u32;
    file.extend((0..size).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    file
}

fn picture(width: u32, height: u32) -> PathBuf {
    let path = scratch("vision").join(format!("{width}x{height}-{}.bmp", std::process::id()));
    std::fs::write(&path, bitmap(width, height)).expect("a file");
    path
}

/// A run of llama-mtmd-cli with the small model and its encoder.
struct Encoded {
    finished: Finished,
    /// The embeddings of the last image: count, width, and floats.
    embeddings: Vec<u8>,
    report: Option<Report>,
}

impl Encoded {
    /// `name`: of its files.
    fn run(name: &str, pictures: &[&Path], flags: &[&str]) -> Self {
        Self::run_in(name, pictures, flags, &[])
    }

    /// The same with variables of the environment.
    fn run_in(name: &str, pictures: &[&Path], flags: &[&str], env: &[(&str, &str)]) -> Self {
        let language = synthetic("tiny-qwen2vl", &[]);
        Self::run_with(&language, name, pictures, flags, env)
    }

    /// The same with another language model, as wide as the small one.
    fn run_with(
        language: &Path,
        name: &str,
        pictures: &[&Path],
        flags: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let file = |ending: &str| scratch("vision").join(format!("{name}.{ending}"));
        let (dump, report) = (file("embeddings"), file("json"));
        for old in [&dump, &report] {
            let _ = std::fs::remove_file(old);
        }
        let mut command = tool("llama-mtmd-cli");
        command.arg("-m").arg(language);
        command
            .arg("--mmproj")
            .arg(synthetic("tiny-qwen2vl-mmproj", &[]));
        for picture in pictures {
            command.arg("--image").arg(picture);
        }
        command.args([
            "-p",
            "what is this",
            "-n",
            "8",
            "-t",
            "1",
            "-c",
            "2048",
            "--temp",
            "0",
        ]);
        command.args(flags).envs(env.iter().copied());
        command.env("MTMD_DEBUG_EMBEDDINGS", &dump);
        if flags.contains(&"--pipeshard-vram") {
            command.arg("--pipeshard-report").arg(&report);
        }
        let mut finished = finish(&mut command);
        // llama.cpp's tools end before all of their text is written, now and then: see `finish_text`
        for _ in 0..20 {
            if finished.stdout.ends_with("\n\n") || !finished.succeeded() {
                break;
            }
            finished = finish(&mut command);
        }
        let report = std::fs::read_to_string(report).ok();
        let report: Option<Report> =
            report.map(|text| serde_json::from_str(&text).expect("a report of this build"));
        if let Some(report) = &report {
            assert_accounted(report);
        }
        Encoded {
            finished,
            embeddings: std::fs::read(dump).unwrap_or_default(),
            report,
        }
    }

    fn worked(self) -> Self {
        assert!(self.finished.succeeded(), "{}", self.finished.stderr);
        self
    }

    fn report(&self) -> &Report {
        self.report.as_ref().expect("pipeshard was asked for")
    }

    fn vision(&self) -> &VisionReport {
        self.report().vision.as_ref().expect("an encoder")
    }

    fn floats(&self) -> impl Iterator<Item = f32> + '_ {
        let floats = self.embeddings[8..].chunks_exact(4);
        floats.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// The largest difference, of embeddings of the same shape.
    fn differs_from(&self, other: &Encoded) -> f32 {
        assert_eq!(self.embeddings[..8], other.embeddings[..8]);
        assert_eq!(self.embeddings.len(), other.embeddings.len());
        let pairs = self.floats().zip(other.floats());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// Pipeshard did the work inside the budget, by its own books and by the device's.
    fn assert_healthy(&self, budget: u64) {
        let report = self.report();
        assert!(report.engaged, "{:?}", report.reason);
        assert_eq!(report.errors, Vec::<String>::new());
        assert!(report.peak.total <= budget, "{:?}", report.peak);
        let device = report.simulated_device.as_ref().expect("a simulated GPU");
        assert_eq!(device["peak_bytes"], report.peak.total);
        assert_eq!(device["failed_allocations"], 0);
        let of_files: u64 = self.vision().encoders.iter().map(|e| e.weights).sum();
        assert!(of_files > 8 * MIB && report.peak.vision > 0);
    }
}

/// Flags for a simulated GPU that has no more than the budget.
fn within(budget: u64) -> [String; 4] {
    let sim = format!("vram={budget}");
    let vram = budget.to_string();
    [
        "--pipeshard-sim".to_owned(),
        sim,
        "--pipeshard-vram".to_owned(),
        vram,
    ]
}

fn run_within(name: &str, picture: &Path, budget: u64, more: &[&str]) -> Encoded {
    let flags = within(budget);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(more);
    Encoded::run(name, &[picture], &flags)
}

#[test]
fn whole_windows_are_encoded_to_the_same_bits() {
    // windows of 112 pixels: 4 by 3, and one
    for (width, height, windows) in [(448, 336, 12), (112, 112, 1)] {
        let picture = picture(width, height);
        let stock = Encoded::run("whole-stock", &[&picture], &["--no-repack"]).worked();
        let ours = run_within("whole-ours", &picture, 300 * MIB, &[]).worked();
        assert!(stock.floats().all(f32::is_finite) && stock.floats().count() > 1000);
        assert!(stock.embeddings == ours.embeddings, "{width}x{height}");
        assert_eq!(stock.finished.stdout, ours.finished.stdout);
        ours.assert_healthy(300 * MIB);
        let vision = ours.vision();
        assert_eq!(
            (vision.encodes, vision.masks_skipped, vision.masks_kept),
            (1, 1, 0)
        );
        assert_eq!(vision.windows_batched, WINDOWED_LAYERS * windows);
        assert_eq!(vision.rows, u64::from(width / 14 * height / 14));
    }
}

#[test]
fn narrower_windows_at_the_edge_are_encoded_as_closely_as_stock_does() {
    for (width, height, windows) in [(504, 392, 5 * 4), (28, 560, 5)] {
        let picture = picture(width, height);
        let stock = Encoded::run("edge-stock", &[&picture], &["--no-repack"]).worked();
        let unfused = ["--no-repack", "-fa", "off"];
        let unfused = Encoded::run("edge-unfused", &[&picture], &unfused).worked();
        let ours = run_within("edge-ours", &picture, 300 * MIB, &[]).worked();
        let own = unfused.differs_from(&stock);
        let found = ours.differs_from(&stock);
        assert!(
            own > 0.0 && found <= 2.0 * own,
            "{found}, stock itself {own}"
        );
        ours.assert_healthy(300 * MIB);
        assert_eq!(ours.vision().masks_skipped, 1);
        assert_eq!(ours.vision().windows_batched, WINDOWED_LAYERS * windows);
    }
}

#[test]
fn networks_are_computed_in_pieces_to_the_same_bits() {
    // 64 by 56 patches, all windows full
    let picture = picture(896, 784);
    let stock = Encoded::run("pieces-stock", &[&picture], &["--no-repack"]).worked();
    let ours = run_within("pieces-ours", &picture, 300 * MIB, &[]).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(stock.finished.stdout, ours.finished.stdout);
    ours.assert_healthy(300 * MIB);
    // four in each of four layers
    assert_eq!(ours.vision().pieces, 16);
    assert_eq!(ours.vision().rows, 64 * 56);
}

#[test]
fn several_images_are_encoded_one_after_the_other() {
    let (large, small) = (picture(672, 448), picture(224, 112));
    let both = [&large as &Path, &small];
    let stock = Encoded::run("two-stock", &both, &["--no-repack"]).worked();
    let flags = within(300 * MIB);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ours = Encoded::run("two-ours", &both, &flags).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(stock.finished.stdout, ours.finished.stdout);
    ours.assert_healthy(300 * MIB);
    assert_eq!((ours.vision().encodes, ours.vision().masks_skipped), (2, 2));
}

#[test]
fn attention_that_is_not_fused_keeps_its_mask() {
    let picture = picture(224, 224);
    let stock = ["--no-repack", "-fa", "off"];
    let stock = Encoded::run("unfused-stock", &[&picture], &stock).worked();
    let ours = run_within("unfused-ours", &picture, 2000 * MIB, &["-fa", "off"]).worked();
    assert!(stock.embeddings == ours.embeddings);
    let vision = ours.vision();
    assert_eq!((vision.masks_skipped, vision.masks_kept), (0, 1));
    let why = vision.declined.keys().next().expect("a reason");
    assert!(why.contains("not fused"), "{why}");
    assert_eq!(vision.blocks, 0);
}

#[test]
fn attention_that_is_not_fused_is_computed_in_blocks() {
    let picture = picture(448, 448);
    let unfused = ["--no-repack", "-fa", "off"];
    let stock = Encoded::run("blocks-stock", &[&picture], &unfused).worked();
    let ours = run_within("blocks-ours", &picture, 300 * MIB, &["-fa", "off"]).worked();
    assert!(stock.embeddings == ours.embeddings);
    assert_eq!(stock.finished.stdout, ours.finished.stdout);
    ours.assert_healthy(300 * MIB);
    let vision = ours.vision();
    assert!(vision.blocks > 0 && vision.masks_kept == 1, "{vision:?}");
}

#[test]
fn the_cpu_encodes_where_it_is_asked_to() {
    let picture = picture(224, 224);
    let ours = run_within("cpu-ours", &picture, 40 * MIB, &["--no-mmproj-offload"]).worked();
    assert!(ours.report().engaged && ours.report().vision.is_none());
    assert_eq!(ours.report().peak.vision, 0);
}

/// The budget that a refusal names, in bytes.
fn named(said: &str) -> Option<u64> {
    let (before, _) = said.rsplit_once(" bytes)")?;
    before.rsplit('(').next()?.parse().ok()
}

#[test]
fn what_has_no_room_is_refused_with_a_budget_that_works() {
    let picture = picture(448, 336);
    let mut budget = 2 * MIB;
    let mut refusals = Vec::new();
    let worked = loop {
        let tried = run_within("smallest", &picture, budget, &[]);
        if tried.finished.succeeded() {
            break tried;
        }
        assert!(tried.finished.failed_cleanly(), "{}", tried.finished.told());
        let said = tried.finished.said();
        let enough = named(&said).unwrap_or_else(|| panic!("no budget is named: {said}"));
        assert!(enough > budget, "{budget}: {said}");
        refusals.push(said);
        assert!(refusals.len() < 12, "{refusals:?}");
        budget = enough;
    };
    worked.assert_healthy(budget);
    assert_eq!(worked.vision().masks_skipped, 1);
    // the language model alone, then the image
    assert!(
        refusals[0].contains("encoder of images or sound"),
        "{}",
        refusals[0]
    );
    let last = refusals.last().expect("2 MiB are too little");
    assert!(
        last.contains("compute buffers of an image of 192 tokens"),
        "{last}"
    );
    assert!(last.contains("--no-mmproj-offload"), "{last}");
    // a smaller image is enough for less
    let less = budget - MIB;
    let refused = run_within("limit-refused", &picture, less, &[]);
    let said = refused.finished.said();
    let limit = said.split("--image-max-tokens ").nth(1).expect("a limit");
    let limit = limit.split(',').next().expect("a number");
    let smaller = run_within("limit", &picture, less, &["--image-max-tokens", limit]);
    smaller.worked().assert_healthy(less);
}

#[test]
fn a_device_that_refuses_memory_fails_the_load_and_nothing_else() {
    let picture = picture(448, 336);
    // without pipeshard: weights fit, compute buffers do not; stock llama.cpp crashes when it encodes
    for vram in ["28M", "8M"] {
        let flags = ["--pipeshard-sim", &format!("vram={vram}"), "-ngl", "0"];
        let stock = Encoded::run("refused-stock", &[&picture], &flags);
        assert!(
            stock.finished.failed_cleanly(),
            "{vram}: {}",
            stock.finished.told()
        );
    }
    let mut failed = 0;
    for number in 1..40 {
        let sim = format!("vram=1G,failalloc={number}");
        let flags = ["--pipeshard-sim", &sim, "--pipeshard-vram", "300M"];
        let ours = Encoded::run("refused-ours", &[&picture], &flags);
        let finished = &ours.finished;
        assert!(
            finished.succeeded() || finished.failed_cleanly(),
            "{number}: {}",
            finished.told()
        );
        let device = ours
            .report
            .as_ref()
            .and_then(|r| r.simulated_device.as_ref());
        if device.is_some_and(|device| device["failed_allocations"] == 0) {
            break;
        }
        failed += 1;
    }
    assert!(failed > 3, "{failed}");
}

#[test]
fn a_panic_about_an_encoder_ends_cleanly() {
    let picture = picture(112, 112);
    for callback in [
        "encoder_expected",
        "encoder_wanted",
        "encode_done",
        "encoder_gone",
    ] {
        let flags = within(300 * MIB);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let env = [("PIPESHARD_DEBUG_PANIC", callback)];
        let ours = Encoded::run_in("panic", &[&picture], &flags, &env);
        // what was expected in vain is forgotten when the model is loaded
        let ended = match callback {
            "encoder_expected" => ours.finished.succeeded(),
            _ => ours.finished.failed_cleanly(),
        };
        assert!(ended, "{callback}: {}", ours.finished.told());
        let errors = ours
            .finished
            .stderr
            .matches("pipeshard: internal error (")
            .count();
        assert_eq!(errors, 1, "{callback}: {}", ours.finished.stderr);
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk
            .iter()
            .fold(0_u32, |n, &byte| n << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        let letter = |at: usize| LETTERS[(number >> (18 - 6 * at)) as usize & 63] as char;
        text.extend((0..=chunk.len()).map(letter));
        text.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    text
}

#[test]
fn a_server_goes_on_after_an_image_that_has_no_room() {
    let tower = synthetic("tiny-qwen2vl-mmproj", &[]);
    let (tower, budget) = (tower.display().to_string(), (70 * MIB).to_string());
    let sim = format!("vram={budget}");
    let mut flags = vec![
        "--mmproj",
        &tower,
        "-c",
        "4096",
        "-t",
        "1",
        "-np",
        "2",
        "--no-warmup",
    ];
    flags.extend(["--pipeshard-sim", &sim, "--pipeshard-vram", &budget]);
    let server = Server::start(&synthetic("tiny-qwen2vl", &[]), &flags);
    let ask = |width, height| {
        let image = format!("data:image/bmp;base64,{}", base64(&bitmap(width, height)));
        let content = serde_json::json!([
            { "type": "image_url", "image_url": { "url": image } },
            { "type": "text", "text": "what is this" },
        ]);
        let messages = serde_json::json!([{ "role": "user", "content": content }]);
        let body = serde_json::json!({ "messages": messages, "max_tokens": 4, "temperature": 0 });
        server.post("/v1/chat/completions", &body)
    };
    let (status, first) = ask(224, 224);
    assert!(status.contains("200"), "{status}: {first}");
    let (status, refused) = ask(1680, 1344);
    assert!(!status.contains("200"), "{status}: {refused}");
    let (status, again) = ask(224, 224);
    assert!(status.contains("200"), "{status}: {again}");
    let text = |answer: &serde_json::Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&first), text(&again));
    let metrics = server.complete(&serde_json::json!({"prompt": "a", "n_predict": 2}));
    assert!(metrics["content"].is_string());
}
