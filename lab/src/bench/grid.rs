//! Which models, budgets, prompts and ubatches, and in what order.

use super::job::{Job, Step};
use super::models::ModelSpec;
use super::search::Strategy;
use super::types::{Approach, Test, Work};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Grid {
    /// The models.
    pub models: Vec<ModelSpec>,
    /// Budgets in bytes, without the bare context.
    pub budgets: Vec<u64>,
    /// Prompt lengths in tokens, ascending.
    pub prompts: Vec<u32>,
    /// Ubatches of the search and of the ceiling, ascending.
    pub ubatches: Vec<u32>,
    /// Ubatches of `--fit`, ascending.
    pub fit_ubatches: Vec<u32>,
    /// Ubatches that pipeshard is given in addition to its own choice, ascending.
    pub our_ubatches: Vec<u32>,
    /// Tokens of single passes that pipeshard alone is measured with, ascending: one is never slower than two.
    pub rows: Vec<u32>,
    /// Tokens to generate; fewer where that would take too long.
    pub decode: u32,
    /// Seconds that one generation may take, by estimate.
    pub decode_seconds: f64,
    /// Contexts that generation starts from.
    pub depths: Vec<u32>,
    /// Repetitions in each process.
    pub repetitions: u32,
    /// How often everything that matters is measured, in turn.
    pub rounds: u32,
    /// Tokens of the prompt whose cold start is measured; 0 leaves it out.
    pub first_token: u32,
    /// How many ways to place weights stock llama.cpp is tried with, the most promising first.
    pub kinds: usize,
    /// All tests, of what loads slowly too.
    pub full_search: bool,
    /// Whether stock llama.cpp is measured with pipeshard's placement.
    pub same_placement: bool,
    /// Whether everything in VRAM is measured.
    pub ceiling: bool,
}

/// The prompts for which `ubatch` differs from smaller ones: longer ones, and those that no smaller one holds whole.
/// llama.cpp cuts a ubatch down to the context, so a larger one is the same thing.
pub fn prompts_for(prompts: &[u32], ubatches: &[u32], ubatch: u32) -> Vec<u32> {
    let holds_whole =
        |prompt: u32| ubatches.iter().filter(|&&u| u >= prompt).min() == Some(&ubatch);
    let differs = |&prompt: &u32| ubatch < prompt || holds_whole(prompt);
    prompts.iter().copied().filter(differs).collect()
}

impl Grid {
    /// What is timed with a ubatch: its prompts, and with the smallest ubatch generation too.
    fn tests(&self, ubatches: &[u32], ubatch: u32, decode: &[Test]) -> Vec<Test> {
        let prompts = prompts_for(&self.prompts, ubatches, ubatch);
        let mut tests: Vec<Test> = prompts.into_iter().map(Test::prompt).collect();
        if ubatches.iter().min() == Some(&ubatch) {
            tests.extend(decode);
        }
        tests
    }

    /// All steps in order. `decode` gives the tokens that a generation has time for, by model and budget; `strategies` the
    /// kinds of placement that a model allows, the most promising first.
    pub fn steps(
        &self,
        decode: impl Fn(usize, Option<u64>) -> u32,
        strategies: impl Fn(usize) -> Vec<Strategy>,
    ) -> Vec<Step> {
        let decodes = |model, budget| -> Vec<Test> {
            let tokens = decode(model, budget);
            let at = |&depth: &u32| Test::decode(tokens, depth);
            self.depths.iter().filter(|_| tokens > 0).map(at).collect()
        };
        let models = 0..self.models.len();
        let budgets = self.budgets.iter();
        let cells: Vec<(usize, u64)> = budgets
            .flat_map(|&budget| models.clone().map(move |model| (model, budget)))
            .collect();
        let mut steps = Vec::new();
        for model in models.clone() {
            self.ceiling_steps(&mut steps, model, &decodes(model, None), 1);
        }
        for of_budget in cells.chunks(self.models.len().max(1)) {
            for &(model, budget) in of_budget {
                let decode = decodes(model, Some(budget));
                self.our_steps(&mut steps, model, budget, &decode);
                self.fit_steps(&mut steps, model, budget, &decode, Approach::FitMapped);
                let kinds = strategies(model);
                for strategy in kinds.into_iter().take(self.kinds) {
                    for &ubatch in &self.ubatches {
                        steps.push(Step::Search {
                            model,
                            budget,
                            strategy,
                            ubatch,
                            tests: self.tests(&self.ubatches, ubatch, &decode),
                        });
                    }
                }
            }
            let is_smallest = of_budget
                .iter()
                .all(|c| Some(&c.1) == self.budgets.iter().min());
            // the quick grid has them for the smallest budget, before it goes on to the next, and for the others at last
            if self.full_search || is_smallest {
                self.cold_steps(&mut steps, of_budget, 1);
            }
            if !self.full_search && is_smallest {
                let dense =
                    |model| !matches!(strategies(model).first(), Some(Strategy::Experts { .. }));
                let dense: Vec<_> = of_budget.iter().copied().filter(|c| dense(c.0)).collect();
                self.same_steps(&mut steps, &dense);
            }
        }
        for &(model, budget) in &cells {
            let decode = decodes(model, Some(budget));
            self.fit_steps(&mut steps, model, budget, &decode, Approach::FitLocked);
        }
        if self.full_search {
            self.same_steps(&mut steps, &cells);
        } else {
            let smallest = self.budgets.iter().min();
            let others = cells.iter().copied().filter(|c| Some(&c.1) != smallest);
            self.cold_steps(&mut steps, &others.collect::<Vec<_>>(), 1);
        }
        for round in 2..=self.rounds {
            self.cold_steps(&mut steps, &cells, round);
            for model in models.clone() {
                self.ceiling_steps(&mut steps, model, &decodes(model, None), round);
            }
            for &(model, budget) in &cells {
                steps.push(Step::Duel {
                    model,
                    budget,
                    round,
                });
            }
        }
        steps
    }

    /// Stock with pipeshard's placement, one ubatch for each prompt: the largest of those given that it fills.
    fn same_steps(&self, steps: &mut Vec<Step>, cells: &[(usize, u64)]) {
        if !self.same_placement {
            return;
        }
        for &(model, budget) in cells {
            for &prompt in &self.prompts {
                let filled = self.our_ubatches.iter().copied();
                let filled = filled.filter(|&u| self.is_given(u, prompt));
                if let Some(ubatch) = filled.max() {
                    let test = Test::prompt(prompt);
                    steps.push(Step::SamePlacement {
                        model,
                        budget,
                        ubatch,
                        test,
                    });
                }
            }
        }
    }

    /// Reports whether pipeshard gets that ubatch for a prompt: one that is larger changes nothing, and the quick grid has it
    /// where stock gets the same.
    fn is_given(&self, ubatch: u32, prompt: u32) -> bool {
        match self.full_search {
            true => ubatch <= prompt,
            false => ubatch == prompt,
        }
    }

    /// Cold starts.
    fn cold_steps(&self, steps: &mut Vec<Step>, cells: &[(usize, u64)], round: u32) {
        if self.first_token == 0 {
            return;
        }
        for &(model, budget) in cells {
            let tests = vec![Test::first_token(self.first_token)];
            let job = |approach| Job::new(model, Some(budget), approach, tests.clone());
            let stock = job(Approach::FitMapped);
            let stock = match self.fit_ubatches.iter().min() {
                Some(&ubatch) => stock.ubatch(ubatch),
                None => stock,
            };
            for job in [stock, job(Approach::Pipeshard)] {
                steps.push(Step::Run(job.in_round(round)));
            }
        }
    }

    /// Generation in a process of its own, on both sides: CUDA's graphs were seen to run slower from a process's sixth context on
    /// with stock llama.cpp, and from its fourth with pipeshard, and each test has a context.
    fn ceiling_steps(&self, steps: &mut Vec<Step>, model: usize, decode: &[Test], round: u32) {
        if !self.ceiling {
            return;
        }
        for &ubatch in &self.ubatches {
            let all = self.tests(&self.ubatches, ubatch, decode);
            let (decodes, prompts): (Vec<Test>, Vec<Test>) =
                all.into_iter().partition(|test| test.work == Work::Decode);
            for tests in [prompts, decodes] {
                if tests.is_empty() {
                    continue;
                }
                for approach in [Approach::AllInVram, Approach::PipeshardAll] {
                    let job = Job::new(model, None, approach, tests.clone()).ubatch(ubatch);
                    steps.push(Step::Run(job.in_round(round)));
                }
            }
        }
    }

    /// One process for each test, so that bytes and peaks belong to one.
    fn our_steps(&self, steps: &mut Vec<Step>, model: usize, budget: u64, decode: &[Test]) {
        let run = |test| Job::new(model, Some(budget), Approach::Pipeshard, vec![test]);
        for &prompt in &self.prompts {
            let test = Test::prompt(prompt);
            steps.push(Step::Run(run(test)));
            for &ubatch in &self.our_ubatches {
                if self.is_given(ubatch, prompt) {
                    steps.push(Step::Run(run(test).ubatch(ubatch)));
                }
            }
        }
        for &test in decode {
            steps.push(Step::Run(run(test)));
        }
        for &rows in self
            .rows
            .iter()
            .filter(|&rows| !self.prompts.contains(rows))
        {
            steps.push(Step::Run(run(Test::prompt(rows))));
        }
    }

    fn fit_steps(
        &self,
        steps: &mut Vec<Step>,
        model: usize,
        budget: u64,
        decode: &[Test],
        approach: Approach,
    ) {
        for &ubatch in &self.fit_ubatches {
            let mut tests = self.tests(&self.fit_ubatches, ubatch, decode);
            if !self.full_search {
                // --fit loads the model anew for each test: the quick grid keeps the longest prompt of the mapped file, and
                // of the page-locked one generation, which the search's large ubatch does not do justice to
                let longest = self.prompts.iter().max().copied().unwrap_or(0);
                let mapped = approach == Approach::FitMapped;
                tests.retain(|t| match t.work {
                    super::types::Work::Prompt => mapped && t.tokens == longest,
                    _ => true,
                });
            }
            if !tests.is_empty() {
                let job = Job::new(model, Some(budget), approach, tests);
                steps.push(Step::Run(job.ubatch(ubatch)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_larger_ubatch_than_the_prompt_is_measured_once() {
        let prompts = [8, 512, 2048, 4096];
        let ubatches = [512, 2048, 4096];
        assert_eq!(prompts_for(&prompts, &ubatches, 512), prompts);
        assert_eq!(prompts_for(&prompts, &ubatches, 2048), [2048, 4096]);
        assert_eq!(prompts_for(&prompts, &ubatches, 4096), [4096]);
        assert_eq!(prompts_for(&prompts, &[4096], 4096), prompts);
    }

    fn grid() -> Grid {
        Grid {
            models: vec![ModelSpec::parse("m.gguf", Path::new("/")).unwrap()],
            budgets: vec![1, 2],
            prompts: vec![32, 2048],
            ubatches: vec![512, 2048],
            fit_ubatches: vec![2048],
            our_ubatches: vec![2048],
            rows: vec![1, 2],
            decode: 16,
            decode_seconds: 1.0,
            depths: vec![0],
            repetitions: 1,
            rounds: 2,
            first_token: 32,
            kinds: usize::MAX,
            full_search: true,
            same_placement: true,
            ceiling: true,
        }
    }

    #[test]
    fn both_sides_of_every_cell_are_measured_in_turn() {
        let steps = grid().steps(|_, _| 16, |_| vec![Strategy::Layers]);
        for budget in [1, 2] {
            for approach in [
                Approach::Pipeshard,
                Approach::FitMapped,
                Approach::FitLocked,
            ] {
                let decodes = |job: &Job| job.tests.contains(&Test::decode(16, 0));
                let count = steps.iter().filter(|step| match step {
                    Step::Run(job) => {
                        job.budget == Some(budget) && job.approach == approach && decodes(job)
                    }
                    _ => false,
                });
                assert_eq!(count.count(), 1, "{budget} {approach:?}");
            }
        }
        let passes = |step: &&Step| match step {
            Step::Run(job) => job.tests == [Test::prompt(1)] || job.tests == [Test::prompt(2)],
            _ => false,
        };
        assert_eq!(steps.iter().filter(passes).count(), 4, "for each budget");
        let duels = |step: &&Step| matches!(step, Step::Duel { round: 2, .. });
        assert_eq!(steps.iter().filter(duels).count(), 2);
        let searches = |step: &&Step| matches!(step, Step::Search { .. });
        assert_eq!(steps.iter().filter(searches).count(), 4);
        let same = |step: &&Step| matches!(step, Step::SamePlacement { ubatch: 2048, .. });
        assert_eq!(steps.iter().filter(same).count(), 2);
    }

    #[test]
    fn with_everything_in_vram_generations_have_processes_of_their_own() {
        let steps = grid().steps(|_, _| 16, |_| vec![Strategy::Layers]);
        let decodes = |test: &Test| test.work == Work::Decode;
        for approach in [Approach::AllInVram, Approach::PipeshardAll] {
            let jobs = steps.iter().filter_map(|step| match step {
                Step::Run(job) if job.approach == approach => Some(job),
                _ => None,
            });
            let jobs: Vec<&Job> = jobs.collect();
            let generating = jobs.iter().filter(|job| job.tests.iter().any(decodes));
            assert!(generating.clone().count() > 0);
            assert!(generating
                .into_iter()
                .all(|job| job.tests.iter().all(decodes)));
            assert!(jobs.iter().any(|job| !job.tests.iter().any(decodes)));
        }
    }

    #[test]
    fn without_time_to_generate_nothing_is_generated() {
        let steps = grid().steps(|_, _| 0, |_| Vec::new());
        let generates = steps.iter().any(|step| match step {
            Step::Run(job) => job.tests.iter().any(|t| t.work == Work::Decode),
            _ => false,
        });
        assert!(!generates);
    }
}
