//! How long things should take, and what is skipped when time runs out.
//!
//! Estimates are for a machine with a link of 50 GB/s; what was measured so far scales what is still to come.

use std::time::{Duration, Instant};

use super::estimate::{place_seconds, test_seconds, Facts, LOCKING, MAPPED_LINK, START};
use super::grid::Grid;
use super::job::{Form, Job, Step};
use super::repeats::Repeats;
use super::types::{Approach, Work};

/// Seconds that a job should take.
pub fn job_seconds(job: &Job, facts: Facts, repetitions: u32) -> f64 {
    let repeats = Repeats::of(job, facts, repetitions);
    let host = facts.on_host(job.budget);
    let all = facts.bytes as f64;
    let load = match job.approach {
        Approach::FitMapped => 1.0 + (all - host) / MAPPED_LINK,
        Approach::Layers | Approach::Part | Approach::HostKv => (all - host) / MAPPED_LINK,
        Approach::AllInVram => all / MAPPED_LINK,
        Approach::FitLocked => 1.0 + host / LOCKING + (all - host) / MAPPED_LINK,
        Approach::Search | Approach::SamePlacement => host / LOCKING + (all - host) / MAPPED_LINK,
        Approach::Pipeshard | Approach::PipeshardAll => all / 25e9,
    };
    let fits_anew = matches!(job.approach, Approach::FitMapped | Approach::FitLocked);
    let loads = if fits_anew {
        job.tests.len() as f64
    } else {
        1.0
    };
    let tests = job.tests.iter().map(|&test| {
        let runs = match test.work {
            // a generation is warmed up with a token
            Work::Decode => repeats.times,
            _ => repeats.runs(),
        };
        f64::from(runs) * test_seconds(job, facts, test)
    });
    START + loads * load + tests.sum::<f64>()
}

/// Seconds that a step should take.
pub fn step_seconds(step: &Step, facts: &[Facts], grid: &Grid) -> f64 {
    let repetitions = grid.repetitions;
    let of = |model: usize| facts.get(model).copied().unwrap_or_default();
    match step {
        Step::Run(job) => job_seconds(job, of(job.model), repetitions),
        Step::Search {
            model,
            budget,
            ubatch,
            tests,
            ..
        } => {
            let job = Job::new(*model, Some(*budget), Approach::Search, tests.clone());
            job_seconds(&job.ubatch(*ubatch), of(*model), repetitions)
        }
        Step::Place {
            model,
            budgets,
            test,
            form,
            ..
        } => match form {
            Form::Batched => budgets
                .iter()
                .map(|budget| place_seconds(of(*model), &[*budget], *test, repetitions))
                .sum(),
            _ => place_seconds(of(*model), budgets, *test, repetitions),
        },
        Step::SamePlacement {
            model,
            budget,
            ubatch,
            test,
        } => {
            let job = Job::new(*model, Some(*budget), Approach::SamePlacement, vec![*test]);
            job_seconds(&job.ubatch(*ubatch), of(*model), repetitions)
        }
        Step::Duel { model, budget, .. } => {
            let tests: Vec<_> = grid
                .prompts
                .iter()
                .map(|&p| super::types::Test::prompt(p))
                .collect();
            let theirs = Job::new(*model, Some(*budget), Approach::Search, tests.clone());
            let ours = Job::new(*model, Some(*budget), Approach::Pipeshard, tests);
            let starts = START * grid.prompts.len() as f64;
            2.0 * job_seconds(&theirs, of(*model), repetitions)
                + job_seconds(&ours, of(*model), repetitions)
                + starts
        }
    }
}

/// Time that was spent, and that is left.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    limit: Option<Duration>,
    estimated: f64,
    spent: f64,
}

impl Clock {
    /// Starts; without a limit there is always time.
    pub fn start(limit: Option<Duration>) -> Self {
        Clock {
            start: Instant::now(),
            limit,
            estimated: 0.0,
            spent: 0.0,
        }
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes how long something took that was estimated.
    pub fn note(&mut self, estimated: f64, spent: f64) {
        self.estimated += estimated;
        self.spent += spent;
    }

    /// By how much estimates are off so far. Careful with few samples.
    pub fn factor(&self) -> f64 {
        const WEIGHT: f64 = 20.0;
        ((self.spent + WEIGHT) / (self.estimated + WEIGHT)).clamp(0.1, 10.0)
    }

    /// Time that is left.
    pub fn left(&self) -> Duration {
        self.limit
            .map_or(Duration::MAX, |limit| limit.saturating_sub(self.elapsed()))
    }

    /// Reports whether something that should take so many seconds can still be finished.
    pub fn has_time_for(&self, estimated: f64) -> bool {
        self.left().as_secs_f64() > estimated * self.factor() + 1.0
    }

    /// How long a process may run whose work should take so many seconds: much longer, for a row that is slow is a result,
    /// but not beyond the end.
    pub fn limit_for(&self, estimated: f64) -> Duration {
        let patience = (estimated * self.factor() * 4.0).clamp(45.0, 400.0);
        Duration::from_secs_f64(patience).min(self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::Test;
    use super::*;

    const DENSE: Facts = Facts {
        bytes: 16 << 30,
        active: 1.0,
    };

    #[test]
    fn page_locking_takes_longer_to_load_and_less_to_run() {
        let job = |approach, tests: Vec<Test>| Job::new(0, Some(4 << 30), approach, tests);
        let load = vec![Test::first_token(32)];
        let locked = job_seconds(&job(Approach::FitLocked, load.clone()), DENSE, 1);
        let mapped = job_seconds(&job(Approach::FitMapped, load), DENSE, 1);
        assert!(locked > mapped);
        let prompt = Test::prompt(4096);
        let per_run = |approach| test_seconds(&job(approach, vec![prompt]), DENSE, prompt);
        assert!(per_run(Approach::FitMapped) > 3.0 * per_run(Approach::FitLocked));
        assert!(per_run(Approach::FitLocked) > per_run(Approach::Pipeshard));
    }

    #[test]
    fn fitting_loads_the_model_for_each_test() {
        let job = |count| {
            let tests = vec![Test::prompt(8); count];
            job_seconds(
                &Job::new(0, Some(4 << 30), Approach::FitLocked, tests),
                DENSE,
                1,
            )
        };
        assert!(job(2) - job(1) > 7.0);
    }

    #[test]
    fn time_runs_out() {
        let mut clock = Clock::start(Some(Duration::from_secs(100)));
        assert!(clock.has_time_for(80.0));
        clock.note(10.0, 40.0);
        assert!(clock.factor() > 1.5);
        assert!(!clock.has_time_for(80.0));
        assert!(clock.limit_for(1000.0) <= Duration::from_secs(100));
        assert!(Clock::start(None).has_time_for(1e9));
        assert!(Clock::start(None).limit_for(1e9) <= Duration::from_secs(400));
    }
}
