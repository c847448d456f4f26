//! What is known of encoders before they compute: how much memory they will take, which budgets and limits work, and what `pipeshard plan`
//! says of an image.

use super::common::media::{bitmap, wave};
use super::common::{finish, named_budget, scratch, synthetic, tool, LAB, MIB};
use super::{file, Given, Run, Tower, TOWERS, UNFUSED};
use pipeshard::vision::header::{EncoderFile, Kind};
use serde_json::Value;
use std::path::Path;

/// Compute buffers that are too small to matter.
const TINY: u64 = MIB / 2;
/// Pictures of one run.
const PICTURES: [(u32, u32); 7] = [
    (112, 112),
    (320, 240),
    (448, 336),
    (392, 672),
    (1008, 672),
    (896, 896),
    (1792, 1092),
];

/// Rows and compute buffers of each encode, by the trace.
fn encodes(trace: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(trace).expect("a trace");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events").iter();
    let encodes = events.filter(|event| event["cat"] == "encode");
    let number = |value: &Value| value.as_u64().expect("a number");
    encodes
        .map(|event| {
            let args = &event["args"];
            assert!(event["dur"].as_f64().expect("a length") > 0.0, "{event}");
            assert!(number(&args["weights_bytes"]) < 1 << 30);
            (number(&args["rows"]), number(&args["scratch_bytes"]))
        })
        .collect()
}

impl Tower {
    fn hears(&self) -> bool {
        matches!(self.given, Given::Sound(_))
    }

    /// Encodes of many pictures, or of 30 seconds, on a large device that computes nothing.
    fn measured(&self) -> Vec<(u64, u64)> {
        let trace = scratch("towers").join(format!("{}.trace.json", self.name()));
        let _ = std::fs::remove_file(&trace);
        let mut command = tool("llama-mtmd-cli");
        command.arg("-m").arg(synthetic(self.language, &[]));
        command.arg("--mmproj").arg(self.encoder());
        if self.hears() {
            command.arg("--audio").arg(file("30s.wav", || wave(30)));
        } else {
            for (width, height) in PICTURES {
                let picture = file(&format!("{width}x{height}.bmp"), || bitmap(width, height));
                command.arg("--image").arg(picture);
            }
        }
        command.args([
            "-p",
            "what is this",
            "-n",
            "1",
            "-t",
            "1",
            "-c",
            "60000",
            "-ub",
            "4096",
        ]);
        command.args(["-b", "4096", "--temp", "0", "--chat-template", "chatml"]);
        command.args(["--pipeshard-sim", "vram=16G,compute=off,poison=off"]);
        command.args(["--pipeshard-vram", "12G"]);
        command.arg("--pipeshard-trace").arg(&trace);
        let finished = finish(&mut command);
        assert!(finished.succeeded(), "{}: {}", self.name(), finished.told());
        encodes(&trace)
    }

    /// What is wrong with what was foreseen for these.
    fn misjudged(&self) -> Vec<String> {
        let header = EncoderFile::read(&self.encoder()).expect("a projector file");
        let kind = if self.hears() {
            Kind::Sound
        } else {
            Kind::Images
        };
        let shape = header.encoder(kind).expect("an encoder");
        let measured = self.measured();
        assert!(!measured.is_empty(), "{}: nothing was encoded", self.name());
        let largest = measured.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
        let judged: Vec<(u64, u64, u64)> = match shape.follows_image() {
            true => {
                let each = measured.iter();
                each.map(|&(rows, bytes)| (rows, bytes, shape.scratch_of(rows)))
                    .collect()
            }
            // for an image in parts what counts is the largest graph
            false if kind == Kind::Images => {
                let rows = measured.iter().map(|&(rows, _)| rows).max().unwrap_or(0);
                assert!(rows <= shape.rows(0), "{}: {rows} rows", self.name());
                vec![(rows, largest, shape.scratch_of(rows))]
            }
            false => vec![(0, largest, shape.scratch(shape.rows(0)))],
        };
        let mut others = Vec::new();
        if measured.len() == PICTURES.len() && !self.hears() {
            for (picture, &(rows, _)) in PICTURES.iter().zip(&measured) {
                let (width, height) = (u64::from(picture.0), u64::from(picture.1));
                let scaled = shape.scaled((width, height), 0).map(|scaled| scaled.rows);
                if scaled.is_some_and(|foreseen| foreseen != rows) || rows > shape.rows(0) {
                    let name = self.name();
                    others.push(format!(
                        "{name}: {picture:?} has {rows} rows, foreseen were {scaled:?}, at most {}",
                        shape.rows(0)
                    ));
                }
            }
        }
        let wrong = judged.into_iter().filter(|&(_, bytes, estimate)| {
            bytes > TINY && !(bytes..=bytes + bytes * 3 / 10).contains(&estimate)
        });
        wrong
            .map(|(rows, bytes, estimate)| {
                let ratio = estimate as f64 / bytes as f64;
                format!(
                    "{}: {rows} rows, {bytes} bytes, {ratio:.3} times that foreseen",
                    self.name()
                )
            })
            .chain(others)
            .collect()
    }

    /// In the budget that refusals lead to: the number of refusals, and what that budget is.
    fn refused_until_it_works(&self) -> Result<(u32, u64), String> {
        let mut budget = MIB;
        for refusals in 0..5 {
            let run = self.within(budget);
            if run.finished.succeeded() {
                return Ok((refusals, budget));
            }
            let named = named_budget(&run.finished.said()).filter(|&named| named > budget);
            budget = named.ok_or_else(|| format!("in {budget} bytes: {}", run.finished.told()))?;
        }
        Err(format!("refused again, in {budget} bytes"))
    }

    fn limited(&self, budget: u64, tokens: &str) -> Run {
        let (sim, vram) = (format!("vram={budget}"), budget.to_string());
        let flags = [
            "--pipeshard-sim",
            &sim,
            "--pipeshard",
            "--pipeshard-vram",
            &vram,
        ];
        self.run(
            "limited",
            &[&flags[..], &["--image-max-tokens", tokens]].concat(),
        )
    }

    /// Refusals name budgets and limits that work; or what does not.
    fn check_refusals(&self) -> Result<bool, String> {
        let (refusals, budget) = self.refused_until_it_works()?;
        // of the context, then of the image; of the overview, which needs more than the parts that come first
        let overview = u32::from(self.projector == "deepseekocr");
        if refusals > 2 + overview {
            return Err(format!("{refusals} refusals until {budget} bytes"));
        }
        let less = budget - MIB.max(budget / 50);
        let refused = self.within(less);
        if refused.finished.succeeded() {
            return Err(format!("{budget} bytes were named, and {less} are enough"));
        }
        let said = refused.finished.said();
        let limit = said.split("--image-max-tokens ").nth(1);
        // a limit on images is no help for sound
        let limit = limit.filter(|_| !matches!(self.given, Given::Both(..)));
        let Some(limit) = limit else {
            return Ok(false);
        };
        let limit: String = limit.chars().take_while(char::is_ascii_digit).collect();
        let run = self.limited(less, &limit);
        match run.finished.succeeded() {
            true => Ok(true),
            false => Err(format!(
                "{limit} tokens in {less} bytes: {}",
                run.finished.told()
            )),
        }
    }
}

/// Towers whose attention is fused; of sound no more than the 30 seconds that are planned for.
fn fused() -> impl Iterator<Item = Tower> {
    let fused = TOWERS.iter().filter(|tower| tower.flags != UNFUSED);
    fused.map(|tower| match tower.given {
        Given::Sound(31..) => tower.given(Given::Sound(30)),
        _ => *tower,
    })
}

/// As wide as real ones: what decides in small ones is the pixels of a patch, which are more than its features.
const WIDE: &[&str] = &[
    "--embedding=1024",
    "--heads=16",
    "--feed-forward=2816",
    "--header-only",
];

fn wide() -> impl Iterator<Item = Tower> {
    const TRIED: [&str; 14] = [
        "qwen2vl_merger",
        "qwen3vl_merger",
        "gemma3",
        "idefics3",
        "internvl",
        "mlp",
        "youtuvl",
        "muse-glimmer",
        "kimivl",
        "glm4v",
        "lightonocr",
        "dots_ocr",
        "phi4",
        "resampler",
    ];
    let plain = fused().filter(|tower| tower.made.is_empty() && TRIED.contains(&tower.projector));
    plain.map(|tower| tower.made(WIDE))
}

#[test]
fn compute_buffers_are_foreseen() {
    let all = fused().chain(wide());
    let wrong: Vec<String> = all.flat_map(|tower| tower.misjudged()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn budgets_and_limits_that_refusals_name_work() {
    let (mut faults, mut limits) = (Vec::new(), 0);
    for tower in fused() {
        match tower.check_refusals() {
            Ok(limited) => limits += u32::from(limited),
            Err(why) => faults.push(format!("{}: {why}", tower.name())),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
    assert!(limits >= 4, "{limits}");
}

/// What `pipeshard plan --json` says of a tower's picture; the whole answer, or the refusal.
fn planned(tower: &Tower, budget: u64, more: &[&str]) -> Result<Value, String> {
    let Given::Picture(width, height) = tower.given else {
        panic!("{} sees no picture", tower.name());
    };
    let mut command = tool(LAB);
    command
        .args([
            "plan",
            "--json",
            "--ctx",
            "4096",
            "--outputs",
            "0",
            "--threads",
            "1",
        ])
        .args(["--sim", &format!("vram={budget}")])
        .args(["--image", &format!("{width}x{height}")])
        .arg("--mmproj")
        .arg(tower.encoder())
        .args(more)
        .arg(synthetic(tower.language, &[]))
        .env("PIPESHARD_PLAN_CACHE", "off");
    let finished = finish(&mut command);
    match finished.succeeded() {
        true => Ok(serde_json::from_str(&finished.stdout).expect("JSON")),
        false => Err(finished.stderr),
    }
}

#[test]
fn a_plan_says_what_a_run_does_with_an_image() {
    const COMPARED: [&str; 7] = [
        "qwen2vl_merger",
        "glm4v",
        "kimivl",
        "minimax_m3",
        "gemma4v",
        "pixtral",
        "gemma3",
    ];
    let mut compared = 0;
    for tower in fused().filter(|tower| COMPARED.contains(&tower.projector)) {
        let large = planned(&tower, 256 * MIB, &[]).expect("room for everything");
        let least = large["image"]["minimum_budget"].as_u64().expect("bytes");
        for budget in [least, least + least / 4, 4 * least] {
            let name = format!("{} in {budget}", tower.name());
            let answer = planned(&tower, budget, &[]).unwrap_or_else(|why| panic!("{name}: {why}"));
            let image = &answer["image"];
            let run = tower.within(budget);
            let report = run.report.as_ref().expect("a report");
            let vision = run.vision().expect("an encoder");
            let encoder = &vision.encoders[0];
            let number = |value: &Value| value.as_u64().expect("a number");
            assert_eq!(image["placed"]["resident"], encoder.resident, "{name}");
            assert_eq!(image["placed"]["streamed"], encoder.streamed, "{name}");
            assert_eq!(image["rows"], vision.rows, "{name}");
            let tokens = i32::from_le_bytes(run.embeddings[..4].try_into().expect("four bytes"));
            assert_eq!(image["tokens"], tokens, "{name}");
            let scratch = number(&image["scratch"]);
            let most = encoder.scratch_peak + encoder.scratch_peak * 3 / 20 + MIB / 32;
            assert!(
                (encoder.scratch_peak..=most).contains(&scratch),
                "{name}: {scratch} {encoder:?}"
            );
            let peak = number(&image["peak"]);
            assert!(peak <= budget && report.peak.total <= budget, "{name}");
            assert!(number(&image["minimum_budget"]) <= budget, "{name}");
            let seconds = |field: &str| image["encode"][field].as_f64().expect("seconds");
            assert!(
                seconds("seconds") > 0.0 && seconds("on_cpu") > 0.0,
                "{name}"
            );
            let ttft = image["ttft"].as_f64().expect("seconds");
            assert_eq!(image["prompts"], serde_json::json!([16, tokens, 16]));
            assert!(ttft > seconds("seconds") + seconds("restoring"), "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 18, "{compared}");
}

#[test]
fn a_plan_refuses_an_image_that_has_no_room_and_names_what_has() {
    let tower = TOWERS.iter().find(|tower| tower.projector == "glm4v");
    let tower = tower.expect("a tower");
    let said = planned(tower, 10 * MIB, &[]).expect_err("it does not fit");
    let enough = named_budget(&said).unwrap_or_else(|| panic!("no budget is named: {said}"));
    let fits = planned(tower, enough, &[]).unwrap_or_else(|why| panic!("{enough}: {why}"));
    assert_eq!(fits["image"]["tokens"], 384);
    assert!(planned(tower, enough - MIB, &[]).is_err());
    let on_cpu = planned(tower, 16 * MIB, &["--no-mmproj-offload"]).expect("the CPU needs no room");
    assert_eq!(on_cpu["image"]["on_cpu"], true);
    assert_eq!(on_cpu["image"]["scratch"], 0);
    let mut command = tool(LAB);
    command
        .args(["plan", "--image", "10x10", "--vram", "1G"])
        .arg(synthetic(tower.language, &[]));
    let said = finish(&mut command).stderr;
    assert!(said.contains("name its file with --mmproj FILE"), "{said}");
}
