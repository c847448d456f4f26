//! What is compared.

use super::process::{Measured, Memory, Tool};
use serde::Serialize;

/// A way to run the model.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// For people.
    pub name: String,
    /// Whether it is pipeshard's.
    pub ours: bool,
    /// Its own flags of `llama-bench`.
    #[serde(skip)]
    pub flags: Vec<String>,
    /// What each round gave; a round that failed gave nothing.
    pub rounds: Vec<Measured>,
    /// Why a round failed.
    pub failure: Option<String>,
}

/// All rows, and what they were asked for.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Bytes of the budget.
    pub budget: u64,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens that were generated.
    pub generate: u32,
    /// Tokens before both.
    pub depth: u32,
    /// Device memory that stock was held to, in bytes, the driver's context included.
    pub stock_held_to: u64,
    /// Whether that is what pipeshard was measured to take, and not the budget alone.
    pub measured_memory: bool,
    /// Whether the GPU is simulated, so that times say nothing about one.
    pub simulated: bool,
    /// One for each way, pipeshard's first.
    pub rows: Vec<Row>,
}

impl Row {
    /// Nothing is measured yet.
    pub fn new(name: String, ours: bool, flags: Vec<String>) -> Self {
        Row {
            name,
            ours,
            flags,
            rounds: Vec::new(),
            failure: None,
        }
    }

    /// One more round.
    pub fn measure(&mut self, tool: &Tool, memory: &Memory) {
        match tool.run(&self.flags, memory) {
            Ok(measured) => self.rounds.push(measured),
            Err(why) => self.failure = Some(why),
        }
    }
}
