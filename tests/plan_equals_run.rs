//! The plan that `pipeshard plan` prints is the plan that a run makes, byte for byte.

mod common;

use common::{finish, scratch, smollm2, synthetic, tool, Answers, Eval, LAB, MANY_EXPERTS, MIB};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A command in the words of both tools.
struct Setting {
    shape: &'static str,
    options: &'static [&'static str],
    /// Of the budget and of the simulated GPU, in MiB.
    vram: u64,
    machine: &'static str,
    context: u32,
    /// 0: the plan's.
    ubatch: u32,
    outputs: u32,
    workload: &'static str,
}

const USUAL: Setting = Setting {
    shape: "tiny-llama",
    options: &[],
    vram: 36,
    machine: "pcie=4G,cpu=20G",
    context: 1024,
    ubatch: 512,
    outputs: 1,
    workload: "",
};

/// A slow link and a long prompt: a larger ubatch suits it.
const LARGE: Setting = Setting {
    options: &["--layers", "20"],
    machine: "pcie=500M,cpu=4G,flops=200T",
    context: 2048,
    workload: "prompt=2000,generate=2",
    ..USUAL
};

/// A link that is faster than the CPU, so that tokens stream.
const FAST_LINK: &str = "pcie=40G,cpu=10G,membw=900G,flops=200T";
/// A device that hardly computes.
const SLOW_GPU: &str = "pcie=20G,cpu=40G,membw=50G,flops=1T";

#[rustfmt::skip]
const SETTINGS: [Setting; 20] = [
    Setting { ..USUAL },
    Setting { vram: 32, ..USUAL },
    Setting { vram: 44, ..USUAL },
    Setting { machine: FAST_LINK, ..USUAL },
    Setting { machine: FAST_LINK, vram: 44, ..USUAL },
    Setting { machine: SLOW_GPU, ..USUAL },
    Setting { context: 4000, vram: 48, ..USUAL },
    Setting { context: 8192, vram: 48, ubatch: 64, ..USUAL },
    Setting { ubatch: 32, vram: 24, ..USUAL },
    Setting { ubatch: 0, vram: 70, ..LARGE },
    Setting { ubatch: 0, vram: 90, ..LARGE },
    Setting { outputs: 0, vram: 48, ubatch: 128, ..USUAL },
    Setting { workload: "prompt=100,generate=500", ..USUAL },
    Setting { workload: "generate=4", machine: FAST_LINK, ..USUAL },
    Setting { shape: "tiny-gemma3", vram: 42, ..USUAL },
    Setting { shape: "tiny-gemma3", vram: 36, context: 4096, machine: FAST_LINK, ..USUAL },
    Setting { shape: "tiny-gemma3", vram: 40, ubatch: 256, options: &["--untied"], ..USUAL },
    Setting { shape: "tiny-qwen3moe", vram: 30, options: MANY_EXPERTS, ..USUAL },
    Setting { shape: "tiny-qwen3moe", vram: 40, options: MANY_EXPERTS, machine: FAST_LINK, ..USUAL },
    Setting { shape: "tiny-qwen3moe", vram: 26, options: MANY_EXPERTS, ubatch: 128, ..USUAL },
];

impl Setting {
    fn sim(&self) -> String {
        format!("vram={}M,{}", self.vram, self.machine)
    }

    /// llama.cpp's ubatch, where the plan may choose another.
    fn given(&self) -> u32 {
        match self.ubatch {
            0 => 512,
            given => given,
        }
    }

    fn said(&self) -> &'static str {
        match self.ubatch {
            0 => "auto",
            _ => "given",
        }
    }

    fn run(&self, model: &Path, plans: &Path) -> Answers {
        let eval = Eval::searched(model)
            .prompts(&[40])
            .generate(2)
            .arg("ctx", self.context)
            .arg("ubatch", self.given())
            .arg("batch", 2048)
            .arg("outputs", self.outputs)
            .env("PIPESHARD_PLAN_CACHE", &plans.display().to_string())
            .env("LLAMA_ARG_PIPESHARD_WORKLOAD", self.workload)
            .env("LLAMA_ARG_PIPESHARD_UBATCH", self.said());
        eval.within(self.vram * MIB, self.machine).answers()
    }

    /// What `pipeshard plan --json` prints.
    fn plan(&self, model: &Path, plans: &str) -> Value {
        let mut command = tool(LAB);
        command
            .args(["plan", "--json", "--sim", &self.sim()])
            .args(["--ctx", &self.context.to_string()])
            .args(["--outputs", &self.outputs.to_string()])
            // llama.cpp's library caches the whole context unless told otherwise, its tools do not
            .args(["--threads", "1", "--swa-full"])
            .arg(model)
            .env("PIPESHARD_PLAN_CACHE", plans);
        if !self.workload.is_empty() {
            command.args(["--workload", self.workload]);
        }
        if self.ubatch != 0 {
            command.args(["--ubatch", &self.ubatch.to_string()]);
        }
        let finished = finish(&mut command);
        assert!(finished.succeeded(), "{}", finished.stderr);
        serde_json::from_str(&finished.stdout).expect("JSON")
    }
}

fn empty(name: &str) -> PathBuf {
    let folder = scratch("plan_equals_run").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

/// Byte for byte as JSON; what differs is told by name.
fn assert_same(ran: &Value, printed: &Value, number: usize, when: &str) {
    let text = |value: &Value| serde_json::to_string(value).expect("JSON");
    if text(ran) == text(printed) {
        return;
    }
    let fields = ran.as_object().expect("a plan").iter();
    let other = fields.filter(|(name, value)| text(value) != text(&printed[name.as_str()]));
    let other: Vec<String> = other
        .map(|(name, value)| {
            format!(
                "{name}: {value} in the run, {} printed",
                printed[name.as_str()]
            )
        })
        .map(|line| line.chars().take(400).collect())
        .collect();
    panic!("setting {number}, {when}: {}", other.join("\n"));
}

#[test]
fn twenty_settings() {
    let (mut streamed, mut on_host, mut larger) = (0, 0, 0);
    for (number, setting) in SETTINGS.iter().enumerate() {
        let model = synthetic(setting.shape, setting.options);
        let plans = empty(&number.to_string());
        let printed = setting.plan(&model, "off");
        assert_eq!(printed["plan_source"], "searched");
        let ran = setting.run(&model, &plans);
        let of_run = ran.eval.plans.as_ref().expect("a plan was decided for");
        assert_eq!(of_run["source"], "searched", "{number}");
        assert_same(
            &of_run["planned"],
            &printed["plan"],
            number,
            "before the run",
        );
        assert_eq!(of_run["workload"], printed["workload"], "{number}");
        let ubatch = &of_run["workload"]["ubatch"];
        match setting.ubatch {
            0 => larger += u32::from(ubatch != 512),
            given => assert_eq!(ubatch, given, "{number}"),
        }
        // KV is placed as planned; compute buffers were an estimate, and what they leave over is used
        let (planned, running) = (&of_run["planned"], &of_run["running"]);
        // (llama.cpp makes the caches of windows last)
        let layers = |plan: &Value| {
            let mut layers = plan["kv"].as_array().expect("a KV cache").clone();
            layers.sort_by_key(|layer| layer["layer"].as_u64());
            layers
        };
        assert_eq!(layers(planned), layers(running), "{number}");
        // from now on it is known what they take
        let printed = setting.plan(&model, &plans.display().to_string());
        assert_eq!(printed["plan_source"], "kept", "{number}");
        assert_same(running, &printed["plan"], number, "after the run");
        streamed += u64::from(running["ring"]["bytes"] != 0);
        let kv = running["kv"].as_array().expect("a KV cache").iter();
        on_host += kv.filter(|layer| layer["device"] == false).count();
    }
    assert!(
        streamed >= 10 && on_host > 0 && larger > 0,
        "{streamed} {on_host} {larger}"
    );
}

#[test]
fn a_tool_of_llama_cpp_asks_the_same_question() {
    let plans = empty("tool").display().to_string();
    let machine = "vram=60M,pcie=1G,cpu=4G";
    let printed = |plans: &str| {
        let mut command = tool(LAB);
        command
            .args(["plan", "--json", "--sim", machine, "--ctx", "4096"])
            // this tool reserves logits for each row of a batch
            .args(["--threads", "1", "--outputs", "0"])
            .arg(smollm2())
            .env("PIPESHARD_PLAN_CACHE", plans);
        let finished = finish(&mut command);
        assert!(finished.succeeded(), "{}", finished.stderr);
        serde_json::from_str::<Value>(&finished.stdout).expect("JSON")
    };
    let before = printed("off");
    let report = scratch("plan_equals_run").join("report.json");
    let mut run = tool("llama-completion");
    run.args(["-m", &smollm2().display().to_string()])
        .args(["--pipeshard-vram", "60M", "--pipeshard-sim", machine])
        .args(["--pipeshard-report", &report.display().to_string()])
        .args([
            "-c", "4096", "-t", "1", "-n", "2", "-p", "a", "--temp", "0", "-no-cnv",
        ])
        .env("PIPESHARD_PLAN_CACHE", &plans);
    let finished = finish(&mut run);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let report = std::fs::read_to_string(&report).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["plan"]["source"], "searched");
    assert_eq!(report["plan"]["ubatch"], before["ubatch"]);
    // what the run has kept is found, so it was asked for with the same key
    let after = printed(&plans);
    assert_eq!(after["plan_source"], "kept", "{}", finished.stderr);
    assert_eq!(after["ubatch"], before["ubatch"]);
}
