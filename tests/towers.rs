//! Encoders of every kind: with pipeshard, images and sound become the same embeddings and the same text as with stock llama.cpp, in
//! the smallest budget that works, and all that an encoder holds is counted.

mod common;
#[path = "towers/foreseen.rs"]
mod foreseen;

use common::media::{bitmap, wave};
use common::{
    assert_accounted, finish_text, named_budget, scratch, synthetic, tool, Finished, MIB,
};
use pipeshard::report::{Report, VisionReport};
use pipeshard_lab::synth::PROJECTORS;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// What an encoder is given.
#[derive(Debug, Clone, Copy)]
enum Given {
    /// A picture of so many pixels.
    Picture(u32, u32),
    /// Seconds of sound.
    Sound(u32),
    /// Both.
    Both(u32, u32, u32),
}

/// A small encoder, and how it is tried.
#[derive(Debug, Clone, Copy)]
struct Tower {
    /// One of the laboratory's.
    projector: &'static str,
    /// How it is made.
    made: &'static [&'static str],
    /// A language model of its width.
    language: &'static str,
    given: Given,
    /// Flags of both runs.
    flags: &'static [&'static str],
    /// Graphs of encoders that run.
    graphs: u64,
    /// Graphs of which pipeshard takes the mask away.
    unmasked: u64,
}

impl Tower {
    const fn beside(self, language: &'static str) -> Self {
        Tower { language, ..self }
    }

    const fn given(self, given: Given) -> Self {
        Tower { given, ..self }
    }

    const fn flags(self, flags: &'static [&'static str]) -> Self {
        Tower { flags, ..self }
    }

    const fn made(self, made: &'static [&'static str]) -> Self {
        Tower { made, ..self }
    }

    const fn graphs(self, graphs: u64) -> Self {
        Tower { graphs, ..self }
    }

    const fn unmasked(self, unmasked: u64) -> Self {
        Tower { unmasked, ..self }
    }
}

/// Sees a picture of 672 by 448 pixels.
const fn sees(projector: &'static str) -> Tower {
    Tower {
        projector,
        made: &[],
        language: "tiny-qwen2-images",
        given: Given::Picture(672, 448),
        flags: &[],
        graphs: 1,
        unmasked: 0,
    }
}

/// Sees a picture of 1008 by 672 pixels, in tiles.
const fn tiles(projector: &'static str) -> Tower {
    sees(projector).given(Given::Picture(1008, 672))
}

/// Hears two seconds.
const fn hears(projector: &'static str) -> Tower {
    sees(projector).given(Given::Sound(2))
}

/// Positions of several dimensions.
const PLANAR: &str = "tiny-qwen2vl";

const UNFUSED: &[&str] = &["-fa", "off"];

/// All that are tried.
const TOWERS: &[Tower] = &[
    sees("qwen2vl_merger").beside(PLANAR),
    sees("qwen3vl_merger").beside("tiny-llama"),
    sees("gemma3").beside("tiny-gemma3"),
    tiles("idefics3").graphs(5),
    tiles("internvl"),
    tiles("internvl").made(&["--type=q8_0"]),
    // one row of patches: llama.cpp makes the token between rows of 0 times what memory held
    sees("pixtral").given(Given::Picture(512, 32)),
    sees("mlp"),
    tiles("mlp-tiles").graphs(5),
    sees("mlp-norms"),
    tiles("resampler").graphs(7),
    tiles("minicpmv4_6").graphs(5),
    tiles("llama4").graphs(7),
    tiles("llama4").flags(UNFUSED).graphs(7),
    sees("exaone4_5").beside(PLANAR).unmasked(1),
    sees("youtuvl").unmasked(1),
    sees("muse-glimmer").unmasked(1),
    sees("mimovl").beside(PLANAR),
    sees("mimovl").beside(PLANAR).flags(UNFUSED),
    sees("lfm2"),
    sees("lfm2").given(Given::Picture(1536, 1024)).graphs(7),
    sees("kimivl"),
    sees("glm4v").beside(PLANAR),
    hears("ultravox"),
    hears("ultravox").given(Given::Sound(35)).graphs(2),
    hears("qwen2a"),
    hears("voxtral"),
    sees("qwen2.5o")
        .beside(PLANAR)
        .given(Given::Both(224, 112, 2))
        .graphs(2)
        .unmasked(1),
    sees("deepseekocr").graphs(2),
    sees("deepseekocr2"),
    sees("ling3vl").made(&["--type=bf16"]).beside(PLANAR),
    sees("ldp"),
    sees("ldpv2"),
    sees("adapter"),
    sees("janus_pro"),
    sees("cogvlm"),
    sees("nemotron_v2_vl"),
    sees("yasa2"),
    tiles("cohere2v").graphs(5),
    sees("d1omni_v"),
    sees("step3vl"),
    tiles("granite4_vision"),
    sees("lightonocr"),
    sees("kimik25"),
    sees("paddleocr").beside(PLANAR),
    sees("glm5v"),
    sees("dots_ocr"),
    sees("dots3note_v"),
    sees("minimax_m3"),
    sees("hunyuanvl").beside(PLANAR),
    sees("deepseek4v"),
    sees("gemma4v"),
    sees("gemma4uv"),
    sees("phi4"),
    hears("musicflamingo"),
    hears("meralion"),
    hears("glma"),
    hears("qwen3a"),
    hears("dots3note_a").given(Given::Sound(45)),
    hears("gemma4ua"),
    hears("mimo_audio").given(Given::Sound(45)),
    hears("lfm2a"),
    hears("d1omni_a"),
    hears("gemma4a"),
    hears("parakeet").given(Given::Sound(45)),
    hears("granite_speech").given(Given::Sound(45)),
];

/// llama.cpp's other projector types, and why they are not tried.
const LEFT_OUT: &[(&str, &str)] = &[
    ("qwen2.5vl_merger", "has tests of its own, with images"),
    (
        "gemma3nv",
        "the laboratory cannot write its convolutions yet",
    ),
    ("gemma3na", "llama.cpp does not build a graph for it"),
    (
        "qwen3tts_spkenc",
        "llama-mtmd-cli refuses models that speak",
    ),
    ("qwen3tts_gen", "llama-mtmd-cli refuses models that speak"),
    (
        "pockettts_spkenc",
        "llama-mtmd-cli refuses models that speak",
    ),
    ("pockettts_gen", "llama-mtmd-cli refuses models that speak"),
];

/// What a run of llama-mtmd-cli gave.
struct Run {
    finished: Finished,
    /// Embeddings of the last graph: count, width, floats.
    embeddings: Vec<u8>,
    report: Option<Report>,
}

impl Run {
    fn floats(&self) -> impl Iterator<Item = f32> + '_ {
        let floats = self.embeddings.get(8..).unwrap_or_default().chunks_exact(4);
        floats.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// The largest difference, of embeddings of the same shape.
    fn differs_from(&self, other: &Run) -> f32 {
        assert_eq!(self.embeddings.len(), other.embeddings.len());
        let pairs = self.floats().zip(other.floats());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn vision(&self) -> Option<&VisionReport> {
        self.report.as_ref()?.vision.as_ref()
    }
}

fn file(name: &str, contents: impl FnOnce() -> Vec<u8>) -> PathBuf {
    let path = scratch("towers").join(name);
    if !path.exists() {
        // another thread may be writing it, too
        let own = path.with_extension(format!("{:?}", std::thread::current().id()));
        std::fs::write(&own, contents()).expect("a file");
        std::fs::rename(own, &path).expect("a file");
    }
    path
}

impl Tower {
    fn name(&self) -> String {
        let how = [self.made, self.flags].concat().concat();
        format!("{}{how}-{:?}", self.projector, self.given)
            .replace(|c: char| !c.is_alphanumeric(), "-")
    }

    fn encoder(&self) -> PathBuf {
        synthetic(&format!("tiny-mmproj-{}", self.projector), self.made)
    }

    fn run(&self, whose: &str, flags: &[&str]) -> Run {
        // several tests try the same encoder at the same time
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let of_run = |ending: &str| {
            let name = format!("{}.{whose}.{number}.{ending}", self.name());
            scratch("towers").join(name)
        };
        let (dump, report) = (of_run("embeddings"), of_run("json"));
        for old in [&dump, &report] {
            let _ = std::fs::remove_file(old);
        }
        let (picture, sound) = match self.given {
            Given::Picture(width, height) => (Some((width, height)), None),
            Given::Sound(seconds) => (None, Some(seconds)),
            Given::Both(width, height, seconds) => (Some((width, height)), Some(seconds)),
        };
        let command = || {
            let mut command = tool("llama-mtmd-cli");
            command.arg("-m").arg(synthetic(self.language, &[]));
            command.arg("--mmproj").arg(self.encoder());
            if let Some((width, height)) = picture {
                let picture = file(&format!("{width}x{height}.bmp"), || bitmap(width, height));
                command.arg("--image").arg(picture);
            }
            if let Some(seconds) = sound {
                let sound = file(&format!("{seconds}s.wav"), || wave(seconds));
                command.arg("--audio").arg(sound);
            }
            command.args(["-p", "what is this", "-n", "8", "-t", "1", "-c", "4096"]);
            command.args(["--temp", "0", "--chat-template", "chatml"]);
            command.args(self.flags).args(flags);
            command.env("MTMD_DEBUG_EMBEDDINGS", &dump);
            if flags.contains(&"--pipeshard") {
                command.arg("--pipeshard-report").arg(&report);
            }
            command
        };
        let finished = finish_text(command);
        let text = std::fs::read_to_string(&report).ok();
        let embeddings = std::fs::read(&dump).unwrap_or_default();
        for read in [&dump, &report] {
            let _ = std::fs::remove_file(read);
        }
        Run {
            finished,
            embeddings,
            report: text.map(|text| serde_json::from_str(&text).expect("a report of this build")),
        }
    }

    fn stock(&self, flags: &[&str]) -> Run {
        let all = ["--pipeshard-sim", "vram=2G"];
        self.run("stock", &[&all, flags].concat())
    }

    /// In a budget, on a device that has no more.
    fn within(&self, budget: u64) -> Run {
        let (sim, budget) = (format!("vram={budget}"), budget.to_string());
        self.run(
            "ours",
            &[
                "--pipeshard-sim",
                &sim,
                "--pipeshard",
                "--pipeshard-vram",
                &budget,
            ],
        )
    }

    /// In the budget that refusals lead to, and that.
    fn in_the_smallest_budget(&self) -> Result<(Run, u64), String> {
        let mut budget = MIB;
        for _ in 0..16 {
            let run = self.within(budget);
            if run.finished.succeeded() {
                return Ok((run, budget));
            }
            let said = run.finished.said();
            match named_budget(&said).filter(|&named| named > budget) {
                Some(named) if run.finished.failed_cleanly() => budget = named,
                _ => return Err(format!("in {budget} bytes: {}", run.finished.told())),
            }
        }
        Err(format!("refused in {budget} bytes, too"))
    }

    /// That it works as with stock llama.cpp, or what is wrong.
    fn check(&self) -> Result<(), String> {
        let stock = self.stock(&[]);
        if !stock.finished.succeeded() {
            return Err(format!("stock: {}", stock.finished.told()));
        }
        let (least, most) = stock
            .floats()
            .fold((f32::MAX, f32::MIN), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        if !stock.floats().all(f32::is_finite) || most - least < 0.1 {
            return Err(format!("stock gives embeddings from {least} to {most}"));
        }
        let (ours, budget) = self.in_the_smallest_budget()?;
        if ours.embeddings != stock.embeddings {
            return Err("other embeddings than stock's".to_owned());
        }
        let (said, stock) = (&ours.finished.stdout, &stock.finished.stdout);
        if said != stock {
            return Err(format!("{said:?}, stock {stock:?}"));
        }
        self.check_books(&ours, budget)
    }

    fn check_books(&self, run: &Run, budget: u64) -> Result<(), String> {
        let report = run.report.as_ref().ok_or("no report")?;
        let vision = run.vision().ok_or("no encoder in the report")?;
        assert_accounted(report);
        let device = report.simulated_device.as_ref().ok_or("no device")?;
        let weights: u64 = vision.encoders.iter().map(|encoder| encoder.weights).sum();
        let of_file = std::fs::metadata(self.encoder()).map_or(0, |file| file.len());
        let encoders = match self.given {
            Given::Both(..) => 2,
            _ => 1,
        };
        let checks = [
            (report.engaged, "pipeshard is off"),
            (report.errors.is_empty(), "there were errors"),
            (report.peak.total <= budget, "beyond the budget"),
            (
                device["peak_bytes"] == report.peak.total,
                "another peak than the device's",
            ),
            (
                device["failed_allocations"] == 0,
                "the device refused memory",
            ),
            (
                vision.encoders.len() == encoders,
                "another number of encoders",
            ),
            // tables that are not loaded, and the header
            (
                weights + weights / 4 + MIB / 8 > of_file,
                "weights are missing",
            ),
            (
                vision.encoders.iter().all(|of| of.scratch_peak > 0),
                "no compute buffers",
            ),
            (vision.encodes == self.graphs, "another number of graphs"),
            (
                vision.bytes_streamed + vision.bytes_uploaded <= self.graphs * weights,
                "weights were copied more than once for a graph",
            ),
            (
                vision.masks_skipped == self.unmasked,
                "another number without masks",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(format!(
                "{what}: {:?} {vision:?} {:?}",
                report.peak, report.errors
            )),
        }
    }
}

/// Tries all that are wanted, and then says which of them failed.
fn check_all(wanted: impl Fn(&Tower) -> bool) {
    let mut faults = Vec::new();
    for tower in TOWERS.iter().filter(|tower| wanted(tower)) {
        if let Err(fault) = tower.check() {
            faults.push(format!("{}: {fault}", tower.name()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn images_are_encoded_to_the_same_bits_inside_the_budget() {
    check_all(|tower| matches!(tower.given, Given::Picture(..)));
}

#[test]
fn sound_is_encoded_to_the_same_bits_inside_the_budget() {
    check_all(|tower| !matches!(tower.given, Given::Picture(..)));
}

#[test]
fn narrower_windows_at_the_edge_are_encoded_as_closely_as_stock_does() {
    for tower in TOWERS.iter().filter(|tower| tower.unmasked > 0) {
        let tower = tower.given(Given::Picture(392, 280));
        let (stock, unfused) = (tower.stock(&[]), tower.stock(UNFUSED));
        let ours = tower.within(100 * MIB);
        assert!(ours.finished.succeeded(), "{}", ours.finished.told());
        let (own, found) = (unfused.differs_from(&stock), ours.differs_from(&stock));
        let name = tower.name();
        assert!(
            own > 0.0 && found <= 2.0 * own,
            "{name}: {found}, stock itself {own}"
        );
        let vision = ours.vision().expect("an encoder");
        assert_eq!(vision.masks_skipped, 1, "{name}: {vision:?}");
    }
}

#[test]
fn no_encoder_is_forgotten() {
    for projector in PROJECTORS {
        let tried = TOWERS.iter().any(|tower| tower.projector == projector.name);
        assert!(tried, "{}", projector.name);
    }
    for (name, why) in LEFT_OUT {
        assert!(!why.is_empty() && TOWERS.iter().all(|tower| tower.projector != *name));
    }
}
