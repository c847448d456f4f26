//! One process of a tool after the other: what it is to time, and what it took.

use super::clock::job_seconds;
use super::command::Side;
use super::estimate::read_per_token;
use super::job::{Form, Job};
use super::measure::{
    answer_of, batched_of, counted, parse_slack, predicted_of, read_json, result_of, slack_setting,
    told,
};
use super::repeats::Repeats;
use super::runner::Run;
use super::setup::{log_command, log_said};
use super::types::{Approach, Counted, Measurement, Outcome, Test, Work};
use super::MIB;
use crate::process;
use pipeshard::report::Report;
use pipeshard_cli::bench::memory::Sampler;

impl Run<'_> {
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

    /// Reports whether a test of `--fit` was measured within the budget, with whatever target.
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
        let facts = self.fact(job.model);
        let repeats = Repeats::of(job, facts, self.tools.repetitions);
        let mut command = self.tools.command(job, &model.path, repeats, slack, &side);
        log_command(&mut self.log, &command);
        let estimate = job_seconds(job, facts, self.tools.repetitions);
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
                counted: report.as_ref().map(|report| {
                    let counted = counted(report, test, repeats, &job.tests);
                    let inventory = self.inventories.get(job.model);
                    let read = |among: Option<&[String]>| {
                        inventory.map_or(0, |inventory| read_per_token(inventory, among))
                    };
                    Counted {
                        predicted: predicted_of(report, repeats, &job.tests),
                        read_from_host: read(Some(&counted.not_resident)),
                        read: read(None),
                        ..counted
                    }
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
