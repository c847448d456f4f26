//! All of it in turn.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use super::clock::{job_seconds, step_seconds, Clock, Facts};
use super::command::{Side, Tools};
use super::grid::{Form, Grid, Job, ModelSpec, Step};
use super::measure::{
    answer_of, batched_of, counted, parse_slack, predicted_of, read_json, result_of, slack_setting,
    told,
};
use super::memory::{Sampler, Source};
use super::process;
use super::search::Strategy;
use super::setup::{facts_of, log_command, log_said, make_model, open_device};
use super::store::Store;
use super::sweep::Sweep;
use super::types::{budget_text, Approach, Counted, Machine, Measurement, Outcome, Test, Work};
use super::MIB;
use crate::inventory::Inventory;
use crate::report::Report;
use crate::size::ByteSize;

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to measure.
    pub grid: Grid,
    /// Where results go.
    pub folder: PathBuf,
    /// The folder with `llama-bench`.
    pub tools: PathBuf,
    /// This program, for making models and opening the device in processes of their own.
    pub program: PathBuf,
    /// A simulated GPU.
    pub simulated: Option<String>,
    /// Threads of the CPU.
    pub threads: u32,
    /// Which GPU the driver's figures are of.
    pub gpu: u32,
    /// A further grid in place of the usual one.
    pub sweep: Option<Sweep>,
    /// When to stop.
    pub limit: Option<Duration>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Results {
    /// The machine.
    pub machine: Machine,
    /// Everything that was measured, in earlier runs too.
    pub measurements: Vec<Measurement>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Names of the models that are mixtures of experts.
    pub mixtures: Vec<String>,
}

/// Who hears how far it is.
pub trait Progress {
    /// So many seconds are estimated, for so many steps.
    fn plan(&self, steps: usize, seconds: f64);
    /// A step begins.
    fn step(&self, number: usize, what: &str);
    /// Something was found out.
    fn say(&self, what: &str);
}

/// A run on its way.
pub(super) struct Run<'a> {
    pub(super) settings: &'a Settings,
    progress: &'a dyn Progress,
    pub(super) machine: Machine,
    pub(super) tools: Tools,
    facts: Vec<Facts>,
    pub(super) inventories: Vec<Inventory>,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) log: File,
    pub(super) source: Source,
    /// Bytes by which `--fit` overruns its target, by model.
    slack: HashMap<usize, u64>,
    /// Bytes of compute buffers and pools, as measured.
    pub(super) beside: HashMap<(usize, Strategy, u32), u64>,
    pub(super) notes: Vec<String>,
}

/// Measures everything that there is time for.
///
/// # Errors
/// Where there is nothing to measure with: no model, no device, no place for results. What fails later is a row of its own.
pub fn run(settings: &Settings, progress: &dyn Progress) -> Result<Results, String> {
    let clock = Clock::start(settings.limit);
    std::fs::create_dir_all(&settings.folder)
        .map_err(|e| format!("{}: {e}", settings.folder.display()))?;
    let in_folder = |name: &str| settings.folder.join(name);
    let store = Store::open(&in_folder("results.jsonl")).map_err(|e| e.to_string())?;
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(in_folder("log.txt"))
        .map_err(|e| format!("{}: {e}", in_folder("log.txt").display()))?;
    let source = match settings.simulated {
        Some(_) => Source::None,
        None => Source::find(settings.gpu),
    };
    if settings.simulated.is_none() && matches!(source, Source::None) {
        return Err(
            "neither NVIDIA's management library nor nvidia-smi tells how much device memory is in use here, so nothing could \
             be compared at equal memory; --sim vram=1G tries the machinery without a GPU"
                .to_owned(),
        );
    }
    let mut inventories = Vec::new();
    for model in &settings.grid.models {
        make_model(settings, model, progress, &mut log)?;
        inventories.push(Inventory::from_gguf(&model.path).map_err(|e| e.to_string())?);
    }
    progress.say("opening the device and measuring the link");
    let machine = open_device(settings, &source, &mut log)?;
    let facts: Vec<Facts> = inventories.iter().map(facts_of).collect();
    let mut run = Run {
        tools: Tools {
            folder: settings.tools.clone(),
            threads: settings.threads,
            simulated: settings.simulated.clone(),
            free: machine.free,
            repetitions: settings.grid.repetitions,
        },
        settings,
        progress,
        machine,
        slack: known_slack(&settings.grid.models, &store.measurements),
        facts,
        inventories,
        store,
        clock,
        log,
        source,
        beside: HashMap::new(),
        notes: Vec::new(),
    };
    run.all_steps()?;
    let mixtures = settings.grid.models.iter().zip(&run.inventories);
    let mixtures = mixtures.filter(|(_, inventory)| inventory.expert_count > 0);
    Ok(Results {
        mixtures: mixtures.map(|(model, _)| model.name.clone()).collect(),
        machine: run.machine,
        measurements: run.store.measurements,
        notes: run.notes,
    })
}

/// What earlier runs found out about overruns: it is in the settings of `--fit`.
fn known_slack(models: &[ModelSpec], measurements: &[Measurement]) -> HashMap<usize, u64> {
    let mut known = HashMap::new();
    for (index, model) in models.iter().enumerate() {
        let settings = measurements.iter().filter(|m| m.model == model.name);
        let slack = settings.filter_map(|m| parse_slack(&m.setting)).max();
        known.extend(slack.map(|slack| (index, slack)));
    }
    known
}

impl Run<'_> {
    fn all_steps(&mut self) -> Result<(), String> {
        let grid = &self.settings.grid;
        let decode = |model: usize, budget: Option<u64>| -> u32 {
            let seconds = self.facts.get(model).map_or(0.003, |f| f.token(budget));
            let affordable = (grid.decode_seconds / seconds) as u32;
            affordable.clamp(grid.decode.min(8), grid.decode)
        };
        let kinds = |model: usize| {
            let inventory = self.inventories.get(model);
            inventory.map(Strategy::of).unwrap_or_default()
        };
        let steps = match &self.settings.sweep {
            Some(sweep) => sweep.steps(grid.models.len(), &self.facts),
            None => grid.steps(decode, kinds),
        };
        let estimates: Vec<f64> = steps
            .iter()
            .map(|step| step_seconds(step, &self.facts, grid))
            .collect();
        let total: f64 = estimates.iter().sum();
        self.progress
            .plan(steps.len(), total + self.clock.elapsed().as_secs_f64());
        for (index, (step, estimate)) in steps.iter().zip(estimates).enumerate() {
            let what = self.describe(step);
            if !self.clock.has_time_for(estimate) {
                self.notes.push(format!("{what}: time was up"));
                continue;
            }
            self.progress.step(index + 1, &what);
            self.step(step, &what)?;
        }
        Ok(())
    }

    pub(super) fn describe(&self, step: &Step) -> String {
        let of = |model: usize, budget: Option<u64>, what: &str| {
            let name = self.settings.grid.models.get(model);
            let name = name.map_or("?", |m| m.name.as_str());
            format!("{name}, {}, {what}", budget_text(budget))
        };
        match step {
            Step::Run(job) => {
                let tests: Vec<_> = job.tests.iter().map(Test::to_string).collect();
                let ubatch = job.ubatch.map_or_else(String::new, |u| format!(" ub {u}"));
                let what = format!("{}{ubatch}: {}", job.approach.title(), tests.join(" "));
                of(job.model, job.budget, &what)
            }
            Step::Search {
                model,
                budget,
                strategy,
                ubatch,
                ..
            } => of(
                *model,
                Some(*budget),
                &format!("stock, search of {} ub {ubatch}", strategy.name()),
            ),
            Step::Place {
                model,
                budgets,
                way,
                test,
                ..
            } => {
                let sizes: Vec<_> = budgets.iter().map(|b| ByteSize(*b).to_string()).collect();
                let name = self.settings.grid.models.get(*model);
                format!(
                    "{}, {}, {}: {test}",
                    name.map_or("?", |m| m.name.as_str()),
                    sizes.join(" and "),
                    way.approach().title()
                )
            }
            Step::SamePlacement {
                model,
                budget,
                ubatch,
                test,
            } => of(
                *model,
                Some(*budget),
                &format!("stock, our placement ub {ubatch}: {test}"),
            ),
            Step::Duel {
                model,
                budget,
                round,
            } => of(
                *model,
                Some(*budget),
                &format!("the best of each, round {round}"),
            ),
        }
    }

    fn step(&mut self, step: &Step, what: &str) -> Result<(), String> {
        match step {
            Step::Run(job) => self.job(job.clone()),
            Step::Search {
                model,
                budget,
                strategy,
                ubatch,
                tests,
            } => self.search(*model, *budget, *strategy, *ubatch, tests, what),
            Step::Place {
                model,
                budgets,
                way,
                test,
                form,
            } => self.place(*model, budgets, *way, *test, *form, what),
            Step::SamePlacement {
                model,
                budget,
                ubatch,
                test,
            } => self.same_placement(*model, *budget, *ubatch, *test, what),
            Step::Duel {
                model,
                budget,
                round,
            } => self.duel(*model, *budget, *round),
        }
    }

    pub(super) fn fact(&self, model: usize) -> Facts {
        self.facts.get(model).copied().unwrap_or_default()
    }

    pub(super) fn name(&self, model: usize) -> String {
        let model = self.settings.grid.models.get(model);
        model.map_or_else(String::new, |m| m.name.clone())
    }

    /// A job, and for `--fit` once or twice more with a lower target where it went over its budget.
    pub(super) fn job(&mut self, job: Job) -> Result<(), String> {
        let fits = matches!(job.approach, Approach::FitMapped | Approach::FitLocked);
        for _ in 0..3 {
            let slack = self.slack.get(&job.model).copied().unwrap_or(0);
            let mut job = job.clone();
            if fits {
                job.setting = slack_setting(slack);
                let done = |t: &Test| self.kept_to_its_budget(&job, *t);
                job.tests = job.tests.iter().copied().filter(|t| !done(t)).collect();
            }
            let measured = self.run_job(&job)?;
            let over = measured.iter().filter_map(|m| match m.outcome {
                Outcome::OverBudget { bytes } => Some(bytes),
                _ => None,
            });
            let Some(over) = over.max().filter(|_| fits) else {
                return Ok(());
            };
            let slack = (slack + over + 8 * MIB).next_multiple_of(16 * MIB);
            self.slack.insert(job.model, slack);
        }
        Ok(())
    }

    /// Whether a test of `--fit` was measured within the budget, with whatever target.
    fn kept_to_its_budget(&self, job: &Job, test: Test) -> bool {
        let name = self.name(job.model);
        self.store.measurements.iter().any(|m| {
            m.model == name
                && m.is_valid()
                && (m.budget, m.approach, m.ubatch, m.test, m.round)
                    == (job.budget, job.approach, job.ubatch, test, job.round)
        })
    }

    /// Runs what of a job was not measured yet, and keeps the results.
    pub(super) fn run_job(&mut self, job: &Job) -> Result<Vec<Measurement>, String> {
        let name = self.name(job.model);
        let blank = |test: Test| Measurement {
            model: name.clone(),
            budget: job.budget,
            approach: job.approach,
            setting: job.setting.clone(),
            ubatch: job.ubatch,
            test,
            round: job.round,
            seconds: Vec::new(),
            peak: None,
            counted: None,
            outcome: Outcome::Valid,
        };
        if job.form == Form::Answer {
            if job.tests.iter().all(|&t| self.store.has(&blank(t).key())) {
                return Ok(Vec::new());
            }
            let measured = self.run_process(job, &blank);
            for measurement in &measured {
                self.keep(measurement.clone())?;
            }
            return Ok(measured);
        }
        let mut depths: Vec<u32> = job.tests.iter().map(|t| t.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        let mut all = Vec::new();
        for depth in depths {
            let tests = job.tests.iter().copied().filter(|t| t.depth == depth);
            let tests: Vec<Test> = tests
                .filter(|&t| !self.store.has(&blank(t).key()))
                .collect();
            if tests.is_empty() {
                continue;
            }
            let part = Job {
                tests,
                ..job.clone()
            };
            for measurement in self.run_process(&part, &blank) {
                self.keep(measurement.clone())?;
                all.push(measurement);
            }
        }
        Ok(all)
    }

    /// Shows a measurement and keeps it.
    pub(super) fn keep(&mut self, measurement: Measurement) -> Result<(), String> {
        self.progress.say(&told(&measurement));
        self.store.add(measurement).map_err(|e| e.to_string())
    }

    /// Bytes of `used` that are neither those of other processes nor of the bare context.
    pub(super) fn beyond(&self, used: u64, idle: Option<u64>) -> u64 {
        used.saturating_sub(idle.unwrap_or(0))
            .saturating_sub(self.machine.context)
    }

    fn run_process(&mut self, job: &Job, blank: &dyn Fn(Test) -> Measurement) -> Vec<Measurement> {
        let failed = |reason: String| {
            let outcome = Outcome::Failed { reason };
            let tests = job.tests.iter();
            tests
                .map(|&test| Measurement {
                    outcome: outcome.clone(),
                    ..blank(test)
                })
                .collect::<Vec<_>>()
        };
        let Some(model) = self.settings.grid.models.get(job.model) else {
            return Vec::new();
        };
        let side = Side::in_folder(&self.settings.folder);
        side.clear();
        let slack = parse_slack(&job.setting).unwrap_or(0);
        let mut command = self.tools.command(job, &model.path, slack, &side);
        log_command(&mut self.log, &command);
        let estimate = job_seconds(job, self.fact(job.model), self.tools.repetitions);
        let limit = self.clock.limit_for(estimate);
        let idle = self.source.settled();
        let sampler = Sampler::start(&self.source);
        let finished = match process::run(&mut command, limit) {
            Ok(finished) => finished,
            Err(why) => return failed(why),
        };
        let spent = finished.start.elapsed().as_secs_f64();
        self.clock.note(estimate, spent);
        log_said(&mut self.log, &finished);
        let report = read_json::<Report>(&side.report);
        if job.approach.is_ours() {
            let off = match &report {
                Some(report) if report.engaged => None,
                Some(report) => report
                    .reason
                    .clone()
                    .or(Some("nothing was computed".to_owned())),
                None => Some(finished.complaint()),
            };
            if let Some(why) = off {
                return failed(format!("pipeshard was not engaged: {why}"));
            }
        }
        let told = read_json::<serde_json::Value>(&side.report).unwrap_or_default();
        if job.approach == Approach::Pipeshard && !job.setting.is_empty() {
            // a name that is not known is an error of its own
            if told["predicted"].is_null() {
                return failed("nothing was searched for, so no placement was forced".to_owned());
            }
        }
        let counted_peak = side.counted_peak();
        let beyond = |used: u64| self.beyond(used, idle);
        let mut answer = match (job.form, &job.tests[..]) {
            (Form::Answer, [prompt, decode]) => {
                answer_of(&finished, *prompt, *decode).map(Vec::from)
            }
            _ => None,
        }
        .unwrap_or_default()
        .into_iter();
        let mut measured = Vec::new();
        for &test in &job.tests {
            let result = match job.form {
                Form::Answer => answer.next(),
                Form::Batched => batched_of(&finished, test),
                Form::Separate => result_of(&finished, test),
            };
            let Some(result) = result else {
                measured.extend(
                    failed(finished.complaint())
                        .into_iter()
                        .filter(|m| m.test == test),
                );
                continue;
            };
            let sampled = sampler.peak(result.from, result.to).map(beyond);
            let peak = counted_peak.or(sampled);
            if peak.is_none() && job.budget.is_some() {
                let why = "its device memory could not be measured, so it compares with nothing";
                let failed = failed(why.to_owned()).into_iter();
                measured.extend(failed.filter(|m| m.test == test));
                continue;
            }
            let over = match (peak, job.budget) {
                (Some(peak), Some(budget)) if job.approach != Approach::SamePlacement => {
                    peak.saturating_sub(budget)
                }
                _ => 0,
            };
            measured.push(Measurement {
                seconds: match test.work {
                    Work::FirstToken => vec![(result.to - finished.start).as_secs_f64()],
                    _ => result.seconds,
                },
                peak,
                counted: report.as_ref().map(|report| Counted {
                    predicted: predicted_of(report, self.tools.repetitions, &job.tests),
                    ..counted(report, test, self.tools.repetitions, &job.tests)
                }),
                outcome: match over {
                    0 => Outcome::Valid,
                    bytes => Outcome::OverBudget { bytes },
                },
                ..blank(test)
            });
        }
        measured
    }
}
