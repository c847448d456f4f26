//! What is asked for a context, and what was decided for it.

use pipeshard_model::inventory::Inventory;
use pipeshard_plan::cost::{ModelShape, Prediction, Workload};
use pipeshard_plan::plan::Decisions;

/// The context that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct ContextSize {
    /// Tokens in all.
    pub context: u32,
    /// Tokens that are handed over at a time.
    pub batch: u32,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The user gave no ubatch: the plan's is used.
    pub ubatch_is_free: bool,
    /// Experts that a token uses; 0 for a dense model.
    pub experts_used: u32,
    /// Sequences that share it.
    pub sequences: u32,
    /// Threads of the CPU.
    pub threads: u32,
    /// ggml's number of the type of the keys.
    pub type_k: u32,
    /// ggml's number of the type of the values.
    pub type_v: u32,
}

/// What a prediction was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// The conversation.
    pub workload: Workload,
    /// Tokens that each sequence has room for.
    pub context: u64,
    /// Experts that a token uses; 0 for a dense model.
    pub experts_used: u32,
    /// ggml's name of the type of the keys.
    pub type_k: &'static str,
    /// ggml's name of the type of the values.
    pub type_v: &'static str,
}

impl Asked {
    /// The model that was asked for: an inventory with [`Asked::experts_used`], and the cache's types.
    pub fn model<'a>(&self, inventory: &'a Inventory) -> ModelShape<'a> {
        ModelShape {
            inventory,
            type_k: self.type_k,
            type_v: self.type_v,
        }
    }
}

/// Whether decisions were made for the memory that is there. A context is decided about before its compute buffers and what the
/// device's backend takes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// They were.
    Fresh,
    /// They were made by estimate.
    Estimated,
    /// There is more or less memory than they were made for.
    Outdated,
}

/// What was decided for a context. It goes with the model that the context is of, or when another context is decided about.
#[derive(Debug)]
pub struct ContextPlan {
    /// llama.cpp's address of the model.
    pub model: usize,
    /// What the plan left open.
    pub decisions: Decisions,
    /// Whether that holds for the memory that is there.
    pub freshness: Freshness,
    /// What it is predicted to cost.
    pub prediction: Option<Prediction>,
    /// What for.
    pub asked: Asked,
}
