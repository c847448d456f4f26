//! All of it in turn.

use std::collections::HashMap;
use std::fs::File;

use super::clock::{step_seconds, Clock};
use super::command::Tools;
use super::estimate::Facts;
use super::job::Step;
use super::measure::parse_slack;
use super::models::ModelSpec;
use super::search::Strategy;
use super::settings::{Progress, Settings};
use super::setup::{facts_of, make_model, note_read_rates, open_device};
use super::store::Store;
use super::types::{budget_text, Machine, Measurement, Test};
use pipeshard_cli::bench::memory::Source;
use pipeshard_gguf::inventory_of;
use pipeshard_model::inventory::Inventory;
use pipeshard_model::size::ByteSize;

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

/// A run on its way.
pub(super) struct Run<'a> {
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a dyn Progress,
    pub(super) machine: Machine,
    pub(super) tools: Tools,
    facts: Vec<Facts>,
    pub(super) inventories: Vec<Inventory>,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) log: File,
    pub(super) source: Source,
    /// Bytes by which `--fit` overruns its target, by model.
    pub(super) slack: HashMap<usize, u64>,
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
        inventories.push(inventory_of(&model.path).map_err(|e| e.to_string())?);
    }
    progress.say("opening the device and measuring the link");
    let mut machine = open_device(settings, &source, progress, &mut log)?;
    note_read_rates(settings, &mut machine, progress, &mut log);
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
}
