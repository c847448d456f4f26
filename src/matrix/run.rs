//! Many groups at once, and the outcome.

use super::cases::Group;
use super::group::Workbench;
use super::verdict::{CaseResult, Verdict};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What became of all cases.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Of each, in the order of the list.
    pub cases: Vec<CaseResult>,
}

impl Outcome {
    fn count(&self, of: impl Fn(&Verdict) -> bool) -> usize {
        self.cases.iter().filter(|c| of(&c.verdict)).count()
    }

    /// Cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &CaseResult> {
        self.cases
            .iter()
            .filter(|c| matches!(c.verdict, Verdict::Failed(_)))
    }

    /// How many cases ran, and what became of them.
    pub fn told(&self) -> String {
        format!(
            "{} cases: {} passed, {} refused at start, {} not in llama.cpp, {} known faults, {} failed",
            self.cases.len(),
            self.count(|v| *v == Verdict::Passed),
            self.count(|v| matches!(v, Verdict::Refused(_))),
            self.count(|v| matches!(v, Verdict::NotInLlama(_))),
            self.count(|v| matches!(v, Verdict::KnownFault(_))),
            self.failed().count()
        )
    }
}

/// One line about a case.
pub fn line(case: &CaseResult) -> String {
    let (word, why) = match &case.verdict {
        Verdict::Passed => ("ok", String::new()),
        Verdict::Refused(why) => ("refused", format!(": {why}")),
        Verdict::NotInLlama(why) => ("not in llama.cpp", format!(": {why}")),
        Verdict::KnownFault(why) => ("known fault", format!(": {why}")),
        Verdict::Failed(why) => ("FAILED", format!(": {why}")),
    };
    let budget = case
        .budget
        .map(|b| format!(", {:.1} MiB", b as f64 / f64::from(1 << 20)))
        .unwrap_or_default();
    format!("{:<40} {word}{budget}{why}", case.name)
}

/// Runs all groups, `jobs` at a time. `tell` hears of each case.
pub fn run(
    groups: &[Group],
    bench: &Workbench,
    jobs: usize,
    tell: &(dyn Fn(&CaseResult) + Sync),
) -> Outcome {
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..groups.len()).collect());
    let results: Mutex<Vec<(usize, Vec<CaseResult>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| loop {
                let Some(at) = queue.lock().pop_front() else {
                    break;
                };
                let cases = groups[at].run(bench, tell);
                results.lock().push((at, cases));
            });
        }
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(at, _)| *at);
    Outcome {
        cases: results.into_iter().flat_map(|(_, cases)| cases).collect(),
    }
}
