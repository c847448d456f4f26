//! What the integration tests share: evaluations in processes of their own, small models, and what is always checked.
//!
//! The scheduler hook and a simulated GPU belong to a process, so every evaluation is one: `pipeshard eval` with a clean
//! environment and a time limit, without which a missing event would hang a test instead of failing it.

// each test binary uses a part of this
#![allow(dead_code)]

pub mod media;
pub mod server;

use pipeshard::report::Report;
use pipeshard_cli::eval::EvalResult;
use pipeshard_lab::process;
pub use pipeshard_lab::process::Finished;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

pub const MIB: u64 = 1 << 20;

/// Prompt lengths around the sizes that matter: single tokens, just below, at and above the number of rows from which weights
/// are streamed, and more than one ubatch.
pub const PROMPTS: &[u32] = &[1, 7, 31, 32, 33, 600];

/// Options with which the test model of experts has 128 of them, of which batches of 32 to 72 rows leave some alone.
pub const MANY_EXPERTS: &[&str] = &["--experts=128", "--expert-feed-forward=32"];

/// How long a process may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(180);

/// The tool that evaluates, makes models, and has all of `pipeshard`'s commands.
pub const LAB: &str = "pipeshard-lab";

/// The repository.
pub fn repository() -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent()
        .map(Path::to_path_buf)
        .unwrap_or_else(|| panic!("{} lies in no folder", lab.display()))
}

/// The folder of the executables under test.
pub fn tools() -> PathBuf {
    let tool = Path::new(env!("CARGO_BIN_EXE_pipeshard-lab"));
    tool.parent()
        .map(Path::to_path_buf)
        .unwrap_or_else(|| panic!("{} lies in no folder", tool.display()))
}

/// The library under test: of this source, with the switches for tests. Only the first call takes long.
///
/// It is built apart, under a profile of its own. In this build's folder it would take the place of the library without the
/// switches, which is what is released: cargo gives both the same name.
pub fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(build_library).clone()
}

fn build_library() -> PathBuf {
    let profile = match cfg!(debug_assertions) {
        true => "test-hooks-dev",
        false => "test-hooks",
    };
    built("pipeshard", profile, &["test-hooks"]).join("libpipeshard.so")
}

/// The folder of a profile of its own, in which the library of a package was built, with what these tests are built with.
pub fn built(package: &str, profile: &str, features: &[&str]) -> PathBuf {
    let folder = tools();
    let target = folder.parent().unwrap_or(&folder);
    let mut features = features.to_vec();
    features.extend(cfg!(feature = "cuda").then_some("cuda"));
    features.extend((cfg!(feature = "vulkan") && package == "pipeshard").then_some("vulkan"));
    features.extend(cfg!(feature = "avx512").then_some("avx512"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(repository())
        .args(["build", "--quiet", "--package", package, "--lib"])
        .args(["--profile", profile, "--features", &features.join(",")])
        .arg("--target-dir")
        .arg(target);
    done(&mut cargo);
    target.join(profile)
}

/// Runs a command that has to succeed, however long it takes. What it printed.
pub fn done(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The library as it is released. `cargo test` alone leaves a fresh one in `deps` and an old one beside the executables.
pub fn released_library() -> PathBuf {
    let (installed, fresh) = (
        tools().join("libpipeshard.so"),
        tools().join("deps/libpipeshard.so"),
    );
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    match age(&fresh) > age(&installed) {
        true => fresh,
        false => installed,
    }
}

/// A folder for files of one test.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    folder
}

/// One of the executables, in an environment that says nothing about pipeshard, llama.cpp or ggml.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(tools().join(name));
    for (variable, _) in std::env::vars() {
        if ["LLAMA_", "PIPESHARD_", "GGML_"]
            .iter()
            .any(|p| variable.starts_with(p))
        {
            command.env_remove(variable);
        }
    }
    command.env("PIPESHARD_LIBRARY", library());
    // the user's plans are not for tests
    command.env("PIPESHARD_PLAN_CACHE", "off");
    // an abort shall not wait for a debugger
    command.env("GGML_NO_BACKTRACE", "1");
    command
}

/// Runs a tool of llama.cpp's that generates text, until all of it was written: the tools, stock ones too, leave that to a thread which
/// is not always done when the process ends. What was generated ends with an empty line.
pub fn finish_text(command: impl Fn() -> Command) -> Finished {
    let mut finished = finish(&mut command());
    for _ in 0..20 {
        if finished.stdout.ends_with("\n\n") || !finished.succeeded() {
            break;
        }
        finished = finish(&mut command());
    }
    finished
}

/// Runs a process to its end, or ends it after a while.
pub fn finish(command: &mut Command) -> Finished {
    process::run(command, PATIENCE).unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// An evaluation to be made.
#[derive(Clone)]
pub struct Eval {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Eval {
    /// Of `model`, on one thread: tests run beside each other.
    /// With the usual decisions: what a test is about is in the plan whatever a search would find best for so small a model.
    pub fn of(model: &Path) -> Self {
        Self::searched(model).env("PIPESHARD_DEBUG_CANDIDATE", "usual")
    }

    /// With the plan that a search finds.
    pub fn searched(model: &Path) -> Self {
        let model = model.display().to_string();
        Eval {
            args: vec![model, "--threads=1".to_string()],
            env: Vec::new(),
        }
    }

    /// Whatever is allocated again after it was reserved makes llama.cpp abort.
    pub fn reserved_once(self) -> Self {
        self.env("GGML_SCHED_DEBUG_REALLOC", "1")
    }

    /// Sets an argument, in place of an earlier one of that name.
    pub fn arg(mut self, name: &str, value: impl ToString) -> Self {
        self.args.retain(|a| !a.starts_with(&format!("--{name}=")));
        self.args.push(format!("--{name}={}", value.to_string()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    pub fn prompts(self, prompts: &[u32]) -> Self {
        let list: Vec<String> = prompts.iter().map(u32::to_string).collect();
        self.arg("prompt-tokens", list.join(","))
    }

    pub fn generate(self, tokens: u32) -> Self {
        self.arg("generate", tokens)
    }

    /// Inside `budget` bytes on a simulated GPU that has exactly as many, and further properties.
    pub fn within(self, budget: u64, properties: &str) -> Self {
        let comma = if properties.is_empty() { "" } else { "," };
        self.arg("vram", budget)
            .arg("sim", format!("vram={budget}{comma}{properties}"))
    }

    pub fn run(&self) -> Finished {
        let mut command = tool(LAB);
        command.arg("eval").args(&self.args);
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        finish(&mut command)
    }

    /// Runs, and expects answers.
    pub fn answers(&self) -> Answers {
        let finished = self.run();
        assert!(
            finished.succeeded(),
            "{}: {:?}\n{}",
            self.args.join(" "),
            finished.status,
            finished.stderr
        );
        Answers::from(&finished)
    }

    /// The message with which a budget of `bytes` is refused, and the smallest budget that it names.
    pub fn refused(&self, bytes: u64) -> Option<(String, u64)> {
        let device = bytes.max(1 << 30);
        let asked = self
            .clone()
            .arg("vram", bytes)
            .arg("sim", format!("vram={device}"));
        let finished = asked.run();
        if finished.succeeded() {
            return None;
        }
        assert!(finished.failed_cleanly(), "{}", finished.stderr);
        let said = finished.said();
        let named = said.split(" bytes)").next().and_then(|before| {
            let digits = before.rsplit('(').next()?;
            digits.parse().ok()
        });
        match named {
            Some(named) => Some((said, named)),
            None => panic!("the refusal names no smallest budget: {said}"),
        }
    }

    /// The smallest budget that works.
    pub fn smallest_budget(&self) -> u64 {
        let mut budget = 1;
        while let Some((said, named)) = self.refused(budget) {
            assert!(named > budget, "{budget} bytes: {said}");
            budget = named;
        }
        budget
    }

    /// What all that can be on the device takes there, in bytes.
    pub fn largest_budget(&self) -> u64 {
        let roomy = self.clone().within(2 << 30, "").answers();
        roomy.report().peak.total
    }
}

/// Context, prompt, tokens and a hash of all logits.
pub type Outcome = (usize, u32, Vec<i32>, String);

fn outcome(eval: &EvalResult) -> Vec<Outcome> {
    let results = eval.results.iter();
    results
        .map(|r| (r.context, r.prompt, r.tokens.clone(), r.logits_hash.clone()))
        .collect()
}

/// What an evaluation gave.
pub struct Answers {
    pub eval: EvalResult,
    report: Option<Report>,
    pub said: String,
}

impl Answers {
    fn from(finished: &Finished) -> Self {
        let parse = |text: &str| serde_json::from_str::<EvalResult>(text);
        let eval = parse(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.stdout));
        let report = eval.report.clone();
        let report: Option<Report> =
            report.map(|r| serde_json::from_value(r).expect("a report of this build"));
        if let Some(report) = &report {
            assert_accounted(report);
        }
        Answers {
            eval,
            report,
            said: finished.said(),
        }
    }

    /// Whether a process printed them.
    pub fn given_by(&self, finished: &Finished) -> bool {
        serde_json::from_str::<EvalResult>(&finished.stdout)
            .is_ok_and(|eval| outcome(&eval) == self.outcome())
    }

    pub fn report(&self) -> &Report {
        self.report.as_ref().expect("pipeshard was asked for")
    }

    /// A counter of the simulated GPU at the end, since the start of the last prompt.
    pub fn device(&self, counter: &str) -> u64 {
        let counters = self.report().simulated_device.as_ref();
        count(counters.expect("a simulated GPU"), counter)
    }

    /// A counter of the simulated GPU in the prompt phase of one result.
    pub fn device_in(&self, result: usize, counter: &str) -> u64 {
        let counters = self.eval.results[result].device.as_ref();
        count(counters.expect("a simulated GPU"), counter)
    }

    /// What must not depend on where things are computed: tokens and the bits of all logits.
    pub fn outcome(&self) -> Vec<Outcome> {
        outcome(&self.eval)
    }

    /// Units of a class.
    pub fn units_of_class(&self, class: &str) -> u64 {
        let units = self.eval.units.as_ref().and_then(Value::as_array);
        let of_class = units.expect("units").iter().filter(|u| u["class"] == class);
        of_class.count() as u64
    }

    /// Pipeshard did the work, inside its budget, and nothing went wrong on the way.
    pub fn assert_healthy(&self, budget: u64) {
        self.assert_healthy_through(budget, budget);
    }

    /// The same, where the budget was changed to `budget` in the end and was `most` at most.
    pub fn assert_healthy_through(&self, budget: u64, most: u64) {
        let report = self.report();
        assert!(report.engaged, "{:?}", report.reason);
        assert_eq!(report.reason, None);
        assert_eq!(report.errors, Vec::<String>::new());
        assert_eq!(report.budget, budget);
        // copies of a growing number of cells are packed in other ways than those of all, for which the reserve was made
        let growths = match report.attentions_over_host_kv {
            0 => 0,
            _ => 3,
        };
        assert!(report.reallocations_after_reserve <= growths, "{report:?}");
        assert!(report.peak.total <= most, "{:?}", report.peak);
        assert!(self.device("current_bytes") <= budget);
        // counted by the runtime where it allocates, and by the device on its own side
        // (whose own memory of it begins with the last prompt)
        match budget == most {
            true => assert_eq!(report.peak.total, self.device("peak_bytes")),
            false => assert!(report.peak.total >= self.device("peak_bytes")),
        }
        assert_eq!(self.device("failed_allocations"), 0);
        assert_eq!(self.device("events_never_recorded"), 0);
        // they go in the compute lane's order
        assert_eq!(report.host_waits.user_inputs, 0);
        assert_eq!(report.host_waits.staging, 0);
    }
}

/// Nothing was ever on the simulated device that is not in the ledger, and in the end the two are equal.
pub fn assert_accounted(report: &Report) {
    let Some(device) = &report.simulated_device else {
        return;
    };
    assert_eq!(device["unaccounted_bytes"], 0, "{:?}", report.held);
    assert_eq!(device["beyond_ledger_bytes"], 0, "{:?}", report.held);
}

/// The budget that a refusal names, in bytes.
pub fn named_budget(said: &str) -> Option<u64> {
    let (before, _) = said.rsplit_once(" bytes)")?;
    before.rsplit('(').next()?.parse().ok()
}

fn count(counters: &Value, counter: &str) -> u64 {
    counters[counter]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {counter} in {counters}"))
}

/// A model of random weights, made once.
pub fn synthetic(shape: &str, options: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let name = format!("{shape}{}.gguf", options.concat());
    let path = scratch("models").join(name);
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    if age(&path) > age(&tools().join(LAB)) {
        return path;
    }
    // another test binary may be making it too: whoever is last puts the same bytes in place
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let mut command = tool(LAB);
    command.args(["synth", "--force", "--shape", shape]);
    command.args(options).arg(&unfinished);
    let made = finish(&mut command);
    assert!(made.succeeded(), "{}", made.stderr);
    std::fs::rename(&unfinished, &path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// The demo model.
pub fn smollm2() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let mut fetch = Command::new("python3");
        fetch
            .current_dir(repository())
            .args(["scripts/fetch.py", "demo-model"]);
        let fetched = finish(&mut fetch);
        assert!(fetched.succeeded(), "{}", fetched.stderr);
        PathBuf::from(fetched.stdout.trim())
    });
    path.clone()
}
