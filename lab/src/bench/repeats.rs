//! How often a process repeats its tests: what is over in a moment is measured more often, for its spread counts most.

use super::estimate::{test_seconds, Facts};
use super::job::{Form, Job};
use super::types::{Approach, Work};

/// Seconds that repetitions beyond those that are asked for may take, by estimate.
const MORE_SECONDS: f64 = 2.0;
/// No test is repeated more often than this many times what is asked for.
const AT_MOST: u32 = 4;
/// Tests that take longer than this are timed once; estimated seconds.
const LONG: f64 = 10.0;
/// And longer than this, not warmed up.
const VERY_LONG: f64 = 60.0;

/// Repetitions of the tests of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeats {
    /// How often each test is timed.
    pub times: u32,
    /// Whether it is run once before.
    pub warm_up: bool,
}

impl Repeats {
    /// Those of a job where `wanted` is the rule.
    pub fn of(job: &Job, facts: Facts, wanted: u32) -> Self {
        let seconds = || job.tests.iter().map(|&t| test_seconds(job, facts, t));
        let cold = job.tests.iter().any(|t| t.work == Work::FirstToken);
        let longest = seconds().fold(0.0, f64::max);
        if cold || longest > LONG {
            return Repeats {
                times: 1,
                warm_up: !cold && longest <= VERY_LONG,
            };
        }
        let affordable = (MORE_SECONDS / seconds().sum::<f64>().max(1e-9)) as u32;
        let times = match (job.form, job.approach) {
            (Form::Batched, _) => wanted,
            // the mapped file is slow by far, and varies least
            (_, Approach::FitMapped) => affordable.clamp(1, wanted),
            _ => affordable.clamp(wanted, wanted * AT_MOST),
        };
        Repeats {
            times,
            warm_up: true,
        }
    }

    /// How often a test runs in all.
    pub fn runs(self) -> u32 {
        self.times + u32::from(self.warm_up)
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::Test;
    use super::*;

    #[test]
    fn short_tests_are_repeated_more_and_long_ones_not_at_all() {
        let facts = Facts {
            bytes: 16 << 30,
            active: 1.0,
        };
        let of = |approach, test| {
            let job = Job::new(0, Some(8 << 30), approach, vec![test]);
            let repeats = Repeats::of(&job, facts, 2);
            (repeats.times, repeats.warm_up, repeats.runs())
        };
        assert_eq!(of(Approach::Pipeshard, Test::prompt(32)), (8, true, 9));
        let longer = of(Approach::Pipeshard, Test::prompt(4096));
        assert!((2..8).contains(&longer.0), "{longer:?}");
        assert_eq!(of(Approach::FitMapped, Test::prompt(4096)).0, 1);
        assert_eq!(
            of(Approach::Pipeshard, Test::prompt(200_000)),
            (1, false, 1)
        );
        assert_eq!(
            of(Approach::Pipeshard, Test::first_token(32)),
            (1, false, 1)
        );
        let batched = Job {
            form: Form::Batched,
            ..Job::new(0, None, Approach::Pipeshard, vec![Test::decode(4, 64)])
        };
        assert_eq!(Repeats::of(&batched, facts, 2).times, 2);
    }
}
