//! A group at work: its processes, what they gave, and whether that is what stock gave.

use super::cases::{known_fault, Budget, Group};
use super::feature::Side;
use super::scenario::StepResult;
use super::verdict::{difference, healthy, report_of, CaseResult, Verdict};
use crate::process::{run, Finished};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where cases run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// The simulated GPU; the reference is stock llama.cpp on the CPU.
    Sim,
    /// The first real one; the reference is stock llama.cpp with the same placement.
    Gpu,
}

/// What all groups run with.
#[derive(Debug, Clone)]
pub struct Workbench {
    /// The `pipeshard` executable.
    pub program: PathBuf,
    /// Where models and what scenarios save are kept.
    pub folder: PathBuf,
    /// Where cases run.
    pub device: Device,
    /// Longest random pause of the simulated GPU, in microseconds.
    pub delay: u32,
    /// How long a process may take.
    pub patience: Duration,
    /// Simulates what [`Device::Gpu`] runs on, to try that without one.
    pub in_place_of_gpu: Option<String>,
}

/// Room for everything, in bytes.
pub(super) const ROOMY: u64 = 2 << 30;
/// Tries to find a budget with a certain property.
pub(super) const TRIES: u32 = 9;

/// Who runs a process, and with what.
#[derive(Clone, Copy)]
enum Runner<'a> {
    Cpu,
    StockOnGpu { on_cpu: Option<&'a str> },
    Ours { budget: u64, roomy_device: bool },
}

/// Why a run has no results.
pub(super) enum Stopped {
    /// The budget is too small; the smallest that works is named.
    TooSmall(u64),
    /// Another clean refusal.
    Refused(String),
    /// llama.cpp says that it cannot.
    Unsupported(String),
    /// Anything else.
    Failed(String),
}

impl From<String> for Stopped {
    fn from(why: String) -> Self {
        Stopped::Failed(why)
    }
}

impl Stopped {
    pub(super) fn why(self) -> String {
        match self {
            Stopped::TooSmall(bytes) => format!("refused: {bytes} bytes are the smallest budget"),
            Stopped::Refused(why) | Stopped::Unsupported(why) | Stopped::Failed(why) => why,
        }
    }
}

type Steps = Result<Vec<StepResult>, Stopped>;

/// A group at work.
pub(super) struct Work<'a> {
    bench: &'a Workbench,
    pub(super) group: &'a Group,
    model: PathBuf,
    pub(super) folder: PathBuf,
    seed: u64,
}

/// What a run at a budget gave in addition to answers.
pub(super) struct Measured {
    pub(super) steps: Vec<StepResult>,
    /// The most that was held, in bytes.
    pub(super) peak: u64,
    /// The most KV that was held on the device, in bytes.
    pub(super) kv: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(bench: &'a Workbench, group: &'a Group) -> Result<Self, String> {
        let (model, feature) = (group.model, group.feature);
        let name = format!("{}-{}-{}", model.name, feature.name, group.threads);
        let folder = bench.folder.join(&name);
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let seed = name.bytes().fold(7, |s: u64, b| {
            s.wrapping_mul(131).wrapping_add(u64::from(b))
        });
        Ok(Work {
            bench,
            group,
            model: model.prepare(&bench.folder, feature.needs)?,
            folder,
            seed: seed % 1_000_000,
        })
    }

    fn command(&self, step: usize, runner: Runner<'_>, repeats: u32) -> Command {
        let mut command = clean(&self.bench.program);
        command
            .arg("scenario")
            .arg(self.group.feature.name)
            .arg(format!("--step={step}"))
            .arg("--model")
            .arg(&self.model)
            .arg("--folder")
            .arg(&self.folder)
            .arg(format!("--threads={}", self.group.threads))
            .arg(format!("--repeats={repeats}"));
        match runner {
            Runner::Cpu => {}
            Runner::StockOnGpu { on_cpu } => {
                command.arg("--ngl=999");
                command.args(on_cpu.map(|pattern| format!("--on-cpu={pattern}")));
            }
            Runner::Ours {
                budget,
                roomy_device,
            } => {
                command.arg(format!("--vram={budget}"));
                if self.bench.device == Device::Sim {
                    let vram = if roomy_device { ROOMY } else { budget };
                    let (delay, seed) = (self.bench.delay, self.seed);
                    command.arg(format!("--sim=vram={vram},delay={delay},seed={seed}"));
                }
            }
        }
        if self.bench.device == Device::Gpu {
            // small models are planned to the byte; the backend's own part is not what is tested
            command.env("PIPESHARD_RESERVE", "0");
            // where an operation runs decides about its last bit, so it runs where stock has a flag for it
            command.env("PIPESHARD_LIKE_STOCK", "1");
            let simulated = &self.bench.in_place_of_gpu;
            command.args(simulated.iter().map(|sim| format!("--sim={sim}")));
        }
        command
    }

    fn step(&self, step: usize, runner: Runner<'_>, repeats: u32) -> Result<StepResult, Stopped> {
        let mut command = self.command(step, runner, repeats);
        let finished = run(&mut command, self.bench.patience)?;
        if !finished.succeeded() {
            return Err(stopped(&finished));
        }
        let result: StepResult = serde_json::from_str(&finished.stdout)
            .map_err(|e| format!("no result was printed: {e}"))?;
        match result.unsupported {
            Some(why) => Err(Stopped::Unsupported(why)),
            None => Ok(result),
        }
    }

    /// Stock llama.cpp's answers on the CPU.
    pub(super) fn stock(&self) -> Steps {
        let steps = 0..self.group.feature.steps.len();
        let repeats = self.group.feature.repeats;
        steps
            .map(|step| self.step(step, Runner::Cpu, repeats))
            .collect()
    }

    /// All steps, the case's at `budget`; not compared with anything yet.
    pub(super) fn ours(
        &self,
        budget: u64,
        roomy_device: bool,
        repeats: u32,
    ) -> Result<Measured, Stopped> {
        let mut measured = Measured {
            steps: Vec::new(),
            peak: 0,
            kv: 0,
        };
        for (at, step) in self.group.feature.steps.iter().enumerate() {
            let runner = match step.side {
                Side::Stock => Runner::Cpu,
                Side::Roomy => Runner::Ours {
                    budget: ROOMY,
                    roomy_device: true,
                },
                Side::Case => Runner::Ours {
                    budget,
                    roomy_device,
                },
            };
            let result = self.step(at, runner, repeats)?;
            if step.side == Side::Case {
                let peak = report_of(&result)?.peak;
                measured.peak = measured.peak.max(peak.total);
                measured.kv = measured.kv.max(peak.kv);
            }
            measured.steps.push(result);
        }
        Ok(measured)
    }

    /// Reports whether the answers are stock's and pipeshard gave them.
    pub(super) fn judge(
        &self,
        stock: &[StepResult],
        ours: &[StepResult],
        budget: Option<Budget>,
        bytes: u64,
    ) -> Result<(), String> {
        let feature = self.group.feature;
        if let Some(what) = difference(stock, ours) {
            return Err(what);
        }
        for (step, result) in feature.steps.iter().zip(ours) {
            let (budget, bytes) = match step.side {
                Side::Stock => continue,
                Side::Roomy => (None, ROOMY),
                Side::Case => (budget, bytes),
            };
            healthy(result, feature, budget, bytes)?;
            if let Some(check) = feature.check {
                let evidence = serde_json::json!({"units": result.units, "report": result.report});
                check(&evidence)?;
            }
        }
        Ok(())
    }

    /// The smallest budget, about, at which all KV is on the device, and what a run there gave.
    pub(super) fn lowest_with_kv(&self, everything: &Measured) -> Result<(u64, Measured), Stopped> {
        let smallest = match self.ours(1, true, 1) {
            Err(Stopped::TooSmall(named)) => named,
            Err(why) => return Err(why),
            Ok(_) => return Err(Stopped::Failed("one byte was enough".to_string())),
        };
        let mut budget = smallest + everything.kv;
        for _ in 0..TRIES {
            match self.ours(budget, true, 1) {
                Ok(found) if found.kv >= everything.kv => return Ok((budget, found)),
                Ok(_) => budget += (everything.peak.saturating_sub(budget) / 4).max(2 << 20),
                Err(Stopped::TooSmall(named)) if named > budget => budget = named,
                Err(why) => return Err(why),
            }
        }
        Err(Stopped::Failed(
            "no budget was found at which all KV is on the device".to_string(),
        ))
    }

    /// Compares with stock llama.cpp on the GPU that keeps the same tensors on the host.
    pub(super) fn same_as_stock_there(
        &self,
        ours: Measured,
        bytes: u64,
    ) -> Result<Measured, Stopped> {
        let names = ours.steps.last().map(|s| s.not_resident.as_slice());
        let pattern = pattern_of(names.unwrap_or_default());
        let on_cpu = pattern.as_deref();
        let stock = self.step(0, Runner::StockOnGpu { on_cpu }, 1)?;
        self.judge(&[stock], &ours.steps, None, bytes)?;
        Ok(ours)
    }

    pub(super) fn result(
        &self,
        budget: Budget,
        bytes: Option<u64>,
        ran: Result<Measured, Stopped>,
        start: Instant,
    ) -> CaseResult {
        let (mut streamed, mut passes, mut growths) = (0, 0, 0);
        let verdict = match ran {
            Err(why) => known(self.group, Verdict::Failed(why.why())),
            Ok(measured) => {
                for report in measured.steps.iter().filter_map(|s| report_of(s).ok()) {
                    streamed += report.bytes_streamed;
                    growths += report.reallocations_after_reserve;
                    passes += report.passes.prompt + report.passes.decode;
                }
                Verdict::Passed
            }
        };
        CaseResult {
            name: self.group.case(budget),
            verdict,
            budget: bytes,
            streamed,
            growths,
            passes,
            seconds: start.elapsed().as_secs_f64(),
        }
    }
}

/// A failure that is known is called so.
pub(super) fn known(group: &Group, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Failed(seen) => match known_fault(group.model, group.feature, &seen) {
            Some(why) => Verdict::KnownFault(why.to_string()),
            None => Verdict::Failed(seen),
        },
        other => other,
    }
}

/// What is to stay on the host, as a pattern for stock llama.cpp's tensor overrides.
fn pattern_of(names: &[String]) -> Option<String> {
    let escaped: Vec<String> = names.iter().map(|n| regex::escape(n)).collect();
    (!escaped.is_empty()).then(|| format!("^({})$", escaped.join("|")))
}

/// The program in an environment that says nothing about pipeshard, llama.cpp or ggml, but where the library is.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        let ours = ["LLAMA_", "PIPESHARD_", "GGML_"];
        if ours.iter().any(|p| name.starts_with(p)) && name != "PIPESHARD_LIBRARY" {
            command.env_remove(&variable);
        }
    }
    // the user's plans are not for tests
    command.env(pipeshard::plan_cache::PLAN_CACHE, "off");
    // an abort shall not wait for a debugger
    command.env("GGML_NO_BACKTRACE", "1");
    command
}

/// What a process that failed means.
fn stopped(finished: &Finished) -> Stopped {
    if !finished.failed_cleanly() {
        return Stopped::Failed(finished.told());
    }
    let said = finished.said();
    let named = said
        .split_once("the smallest that works is")
        .and_then(|(_, rest)| {
            let (before, _) = rest.split_once(" bytes)")?;
            before.rsplit('(').next()?.parse().ok()
        });
    match named {
        Some(bytes) => Stopped::TooSmall(bytes),
        None => Stopped::Refused(finished.told()),
    }
}
