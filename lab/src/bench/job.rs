//! What is done step by step: processes of `llama-bench`, and what is found out first.

use super::search::Strategy;
use super::types::{Approach, Test};
use super::way::Way;

/// One thing to do. What a step needs from earlier ones is found out when its turn comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Run this.
    Run(Job),
    /// Find a placement of this kind that fits, and run it.
    Search {
        /// Index of the model.
        model: usize,
        /// The budget in bytes.
        budget: u64,
        /// The kind.
        strategy: Strategy,
        /// Tokens per ubatch.
        ubatch: u32,
        /// What to time.
        tests: Vec<Test>,
    },
    /// Run stock llama.cpp with the placement that pipeshard had in these tests.
    SamePlacement {
        /// Index of the model.
        model: usize,
        /// The budget in bytes.
        budget: u64,
        /// Tokens per ubatch.
        ubatch: u32,
        /// What to time.
        test: Test,
    },
    /// Find stock placements of a kind that fit into each of these budgets, and time a generation with them.
    Place {
        /// Index of the model.
        model: usize,
        /// The budgets in bytes.
        budgets: Vec<u64>,
        /// The kind.
        way: Way,
        /// What to time.
        test: Test,
        /// By which tool.
        form: Form,
    },
    /// Run the best of each side again.
    Duel {
        /// Index of the model.
        model: usize,
        /// The budget in bytes.
        budget: u64,
        /// Which round.
        round: u32,
    },
}

/// One process of `llama-bench`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Index of the model.
    pub model: usize,
    /// The budget in bytes; none where there is room for everything.
    pub budget: Option<u64>,
    /// How.
    pub approach: Approach,
    /// The placement's short name; empty where llama.cpp chooses.
    pub setting: String,
    /// The placement's flags.
    pub flags: Vec<String>,
    /// Tokens per ubatch; none leaves it to the plan.
    pub ubatch: Option<u32>,
    /// What to time.
    pub tests: Vec<Test>,
    /// In which round.
    pub round: u32,
    /// How its tests are timed.
    pub form: Form,
}

/// How the tests of a job are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Each by itself, by `llama-bench`.
    #[default]
    Separate,
    /// A prompt and the generation after it together, by `llama-bench`, and told apart by its progress output.
    Answer,
    /// Sequences side by side, by `llama-batched-bench`.
    Batched,
}

impl Job {
    /// A job without a placement of its own, in the first round.
    pub fn new(model: usize, budget: Option<u64>, approach: Approach, tests: Vec<Test>) -> Self {
        Job {
            model,
            budget,
            approach,
            setting: String::new(),
            flags: Vec::new(),
            ubatch: None,
            tests,
            round: 1,
            form: Form::Separate,
        }
    }

    /// A prompt, and this many tokens generated after it.
    pub fn answer(model: usize, budget: u64, prompt: u32, tokens: u32) -> Self {
        let tests = vec![Test::prompt(prompt), Test::decode(tokens, prompt)];
        Job {
            form: Form::Answer,
            ..Job::new(model, Some(budget), Approach::Pipeshard, tests)
        }
    }

    /// The same with that ubatch.
    pub fn ubatch(self, ubatch: u32) -> Self {
        Job {
            ubatch: Some(ubatch),
            ..self
        }
    }

    /// The same in that round.
    pub fn in_round(self, round: u32) -> Self {
        Job { round, ..self }
    }
}
