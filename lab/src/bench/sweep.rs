//! The further grids: deep contexts, sequences side by side, and placements that the planner is told to take.

use clap::ValueEnum;

use super::estimate::{pass_seconds, Facts};
use super::job::{Form, Job, Step};
use super::types::{Approach, Test};
use super::way::{Way, UBATCH};

/// Placements that the planner can be told to take ([`Candidate`](pipeshard_plan::plan::Candidate)), and that differ on most models.
pub const CANDIDATES: &[&str] = &[
    "usual",
    "ffn-first",
    "layers-first",
    "stock-like",
    "decode-on-cpu",
    "decode-streamed",
    "small-ring",
];

/// Cells of a context that its generation has room in; the rest is the prompt.
const ROOM: u32 = 128;
const LEAST_TOKENS: u32 = 4;
/// How many times as long a generation right after its prompt may take as one in a restored context: its first tokens are
/// slower, and with few others they would decide.
const BEHIND_A_PROMPT: f64 = 4.0;

/// Which of the further grids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GridKind {
    /// Prompts that fill a context and generation after them, against -ngl, -ot or -ncmoe, and -nkvo
    Contexts,
    /// Generation of 1 to 64 sequences side by side, against the same
    Batches,
    /// The placement that the planner chose against others that it is told to take
    Placements,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Which.
    pub kind: GridKind,
    /// Budgets in bytes, the most telling first.
    pub budgets: Vec<u64>,
    /// Contexts in tokens, of each sequence, the most telling first.
    pub contexts: Vec<u32>,
    /// Sequences side by side.
    pub batches: Vec<u32>,
    /// Tokens to generate; fewer where that would take too long.
    pub tokens: u32,
    /// Seconds that one generation may take, by estimate.
    pub seconds: f64,
    /// Placements that the planner is told to take.
    pub candidates: Vec<String>,
}

/// Sorts by distance from a value in between, where the differences are.
pub fn middle_first(list: &mut [u64], middle: u64) {
    let distance = |value: u64| ((value.max(1) as f64).log2() - (middle as f64).log2()).abs();
    list.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
}

impl Sweep {
    /// All steps, the most telling first.
    pub fn steps(&self, models: usize, facts: &[Facts]) -> Vec<Step> {
        let mut steps = Vec::new();
        // points in the middle of the grid for all models, then its edges
        for budgets in self.budgets.chunks(2) {
            for contexts in self.contexts.chunks(2) {
                for &context in contexts {
                    for model in 0..models {
                        let facts = facts.get(model).copied().unwrap_or_default();
                        self.point(&mut steps, model, facts, context, budgets);
                    }
                }
            }
        }
        steps
    }

    /// A prompt that fills a context, and as much generation after it as there is time for.
    fn answer(&self, seconds: f64, model: usize, facts: Facts, context: u32, budget: u64) -> Job {
        let test = self.test(seconds, facts, context, 1, budget);
        Job::answer(model, budget, test.depth, test.tokens)
    }

    /// Tokens that there is time for, and the prompt that leaves room for them.
    fn test(&self, seconds: f64, facts: Facts, context: u32, sequences: u32, budget: u64) -> Test {
        let depth = context.saturating_sub(ROOM.min(context / 4)).max(1);
        let tokens = self.tokens.min(context - depth).max(1);
        let test = Test::decode(tokens, depth).side_by_side(sequences);
        let affordable = (seconds / pass_seconds(facts, Some(budget), test)) as u32;
        Test {
            tokens: affordable.clamp(LEAST_TOKENS.min(tokens), tokens),
            ..test
        }
    }

    fn point(
        &self,
        steps: &mut Vec<Step>,
        model: usize,
        facts: Facts,
        context: u32,
        budgets: &[u64],
    ) {
        let smallest = budgets.iter().min().copied().unwrap_or(0);
        match self.kind {
            GridKind::Contexts => {
                let test = self.test(self.seconds, facts, context, 1, smallest);
                for &budget in budgets {
                    let seconds = self.seconds * BEHIND_A_PROMPT;
                    let job = self.answer(seconds, model, facts, context, budget);
                    steps.push(Step::Run(job));
                }
                self.ways(steps, model, budgets, test, Form::Separate);
            }
            GridKind::Batches => {
                for &sequences in &self.batches {
                    let test = self.test(self.seconds, facts, context, sequences, smallest);
                    for &budget in budgets {
                        let job = Job {
                            form: Form::Batched,
                            ..Job::new(model, Some(budget), Approach::Pipeshard, vec![test])
                        };
                        steps.push(Step::Run(job.ubatch(UBATCH)));
                    }
                    self.ways(steps, model, budgets, test, Form::Batched);
                }
            }
            GridKind::Placements => {
                for &budget in budgets {
                    let default = self.answer(self.seconds, model, facts, context, budget);
                    steps.push(Step::Run(default.clone()));
                    for name in &self.candidates {
                        steps.push(Step::Run(Job {
                            setting: name.clone(),
                            ..default.clone()
                        }));
                    }
                }
            }
        }
    }

    fn ways(&self, steps: &mut Vec<Step>, model: usize, budgets: &[u64], test: Test, form: Form) {
        for way in Way::ALL {
            steps.push(Step::Place {
                model,
                budgets: budgets.to_vec(),
                way,
                test,
                form,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: [Facts; 2] = [
        Facts {
            bytes: 16 << 30,
            active: 1.0,
        },
        Facts {
            bytes: 17 << 30,
            active: 8.0 / 128.0,
        },
    ];

    fn sweep(kind: GridKind) -> Sweep {
        let mut budgets = [2u64, 4, 8, 16].map(|g| g << 30);
        middle_first(&mut budgets, 5600 << 20);
        let mut contexts = [1024u64, 4096, 16384, 65536];
        middle_first(&mut contexts, 8192);
        Sweep {
            kind,
            budgets: budgets.to_vec(),
            contexts: contexts.map(|c| c as u32).to_vec(),
            batches: vec![1, 4, 16, 64],
            tokens: 32,
            seconds: 2.0,
            candidates: vec!["kv-first".to_owned()],
        }
    }

    #[test]
    fn the_middle_of_the_grid_comes_first() {
        let sweep = sweep(GridKind::Contexts);
        assert_eq!(sweep.budgets, [4u64, 8, 2, 16].map(|g| g << 30));
        assert_eq!(sweep.contexts, [4096, 16384, 1024, 65536]);
        let steps = sweep.steps(2, &FACTS);
        // for each point our two budgets, and a process for each way
        assert_eq!(steps.len(), 4 * 2 * 2 * 5);
        let Step::Run(first) = &steps[0] else {
            panic!("{:?}", steps[0]);
        };
        assert_eq!(first.tests[0], Test::prompt(3968));
        assert_eq!(first.tests[1].depth, 3968);
        let Step::Place { budgets, test, .. } = &steps[2] else {
            panic!("{:?}", steps[2]);
        };
        assert_eq!(budgets[..], sweep.budgets[..2]);
        // the same work on both sides, but for how many tokens there are
        assert_eq!(test.comparable(), first.tests[1].comparable());
        assert!(first.tests[1].tokens >= test.tokens);
    }

    #[test]
    fn slow_points_generate_less() {
        let sweep = sweep(GridKind::Contexts);
        let few = sweep.test(2.0, FACTS[0], 16384, 1, 2 << 30).tokens;
        let answer = sweep.answer(2.0 * BEHIND_A_PROMPT, 0, FACTS[0], 16384, 2 << 30);
        let longer = answer.tests[1].tokens;
        assert!((2 * few..6 * few).contains(&longer), "{few} {longer}");
        let more = sweep.test(2.0, FACTS[0], 16384, 1, 16 << 30).tokens;
        assert!((4..more).contains(&few), "{few} {more}");
        assert!(sweep.test(2.0, FACTS[0], 64, 1, 2 << 30).context() <= 64);
    }

    #[test]
    fn a_batch_is_one_process_per_size() {
        let mut sweep = sweep(GridKind::Batches);
        (sweep.budgets, sweep.contexts) = (vec![8 << 30], vec![1024]);
        let steps = sweep.steps(1, &FACTS);
        assert_eq!(steps.len(), 4 * 4);
        let sizes = steps.iter().filter_map(|step| match step {
            Step::Run(job) => Some(job.tests[0].sequences),
            _ => None,
        });
        assert_eq!(sizes.collect::<Vec<_>>(), [1, 4, 16, 64]);
        for step in &steps {
            if let Step::Run(job) = step {
                assert!(job.tests[0].context() <= 1024 * job.tests[0].sequences);
            }
        }
    }

    #[test]
    fn every_candidate_is_forced_beside_the_default() {
        let steps = sweep(GridKind::Placements).steps(1, &FACTS);
        let names = steps.iter().filter_map(|step| match step {
            Step::Run(job) => Some(job.setting.as_str()),
            _ => None,
        });
        let names: Vec<_> = names.take(3).collect();
        assert_eq!(names, ["", "kv-first", ""]);
        assert_eq!(steps.len(), 4 * 4 * 2);
    }
}
