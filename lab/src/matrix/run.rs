//! Many groups at once, and the outcome.

use super::cases::Group;
use super::verdict::{CaseResult, Verdict};
use super::work::Workbench;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};

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

    /// The cases of `groups` that passed, or that llama.cpp cannot do, and the groups that are left.
    pub fn take_over(self, groups: &[Group]) -> (Vec<CaseResult>, Vec<Group>) {
        let settled =
            |c: &CaseResult| matches!(c.verdict, Verdict::Passed | Verdict::NotInLlama(_));
        let listed: HashSet<String> = groups.iter().flat_map(Group::cases).collect();
        let mut taken = self.cases;
        taken.retain(|c| settled(c) && listed.contains(&c.name));
        let names: HashSet<&str> = taken.iter().map(|c| c.name.as_str()).collect();
        let mut left = groups.to_vec();
        for group in &mut left {
            let mut budgets = std::mem::take(&mut group.budgets);
            budgets.retain(|&b| !names.contains(group.case(b).as_str()));
            group.budgets = budgets;
        }
        left.retain(|g| !g.budgets.is_empty());
        (taken, left)
    }

    /// Sorts the cases as in the list.
    pub fn in_order_of(&mut self, groups: &[Group]) {
        let names = groups.iter().flat_map(Group::cases);
        let places: HashMap<String, usize> = names.enumerate().map(|(i, n)| (n, i)).collect();
        self.cases.sort_by_key(|c| places.get(&c.name).copied());
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

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    #[test]
    fn what_passed_is_taken_over_and_nothing_else() {
        let groups = cases::groups(false);
        let names: Vec<String> = groups.iter().flat_map(Group::cases).collect();
        let case = |name: &str, verdict: Verdict| CaseResult {
            name: name.to_string(),
            verdict,
            budget: None,
            streamed: 0,
            passes: 0,
            growths: 0,
            seconds: 0.0,
        };
        let earlier = Outcome {
            cases: vec![
                case(&names[3], Verdict::Passed),
                case(&names[1], Verdict::Passed),
                case(&names[2], Verdict::Failed("other bits".to_string())),
                case("nothing/of/the/list", Verdict::Passed),
            ],
        };
        let (taken, left) = earlier.take_over(&groups);
        assert_eq!(taken.len(), 2);
        let left: Vec<String> = left.iter().flat_map(Group::cases).collect();
        assert_eq!(left.len(), names.len() - 2);
        assert!(left.contains(&names[2]) && !left.contains(&names[1]));
        let mut outcome = Outcome { cases: taken };
        outcome.in_order_of(&groups);
        assert_eq!(outcome.cases[0].name, names[1]);
    }
}
