//! What is asked for a context, and what was decided for it.

use crate::plan_cache::PlanCache;
use pipeshard_model::inventory::{DType, Inventory};
use pipeshard_plan::cost::{ModelShape, Prediction, Workload};
use pipeshard_plan::plan::{Decisions, Plan};
use pipeshard_plan::request::{Adapted, ContextRequest, PlanKey};

/// The context that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct ContextSize {
    /// Tokens in all.
    pub context: u32,
    /// The user gave none: these are what the model was trained for.
    pub context_is_free: bool,
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
    /// Rows of a batch that may get logits; 0: all of them.
    pub outputs: u32,
    /// The sequences share one KV cache.
    pub shared_cache: bool,
    /// Layers with a sliding window cache the whole context.
    pub full_windows: bool,
}

impl ContextSize {
    /// The context as plans are asked for it; none for a type of the KV cache that is not known. `may_choose`: another ubatch may
    /// be chosen.
    pub fn request(&self, may_choose: bool) -> Option<ContextRequest> {
        Some(ContextRequest {
            context: self.context,
            batch: self.batch,
            ubatch: self.ubatch,
            ubatch_is_free: self.ubatch_is_free && may_choose,
            sequences: self.sequences.max(1),
            shared_cache: self.shared_cache,
            full_windows: self.full_windows,
            outputs: self.outputs,
            type_k: DType::from_id(self.type_k)?,
            type_v: DType::from_id(self.type_v)?,
        })
    }
}

/// Where decisions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanSource {
    /// This run has searched for them.
    Searched,
    /// An earlier run has.
    Kept,
    /// `pipeshard tune` has.
    Tuned,
}

impl PlanSource {
    /// As the report has it.
    pub fn name(self) -> &'static str {
        match self {
            PlanSource::Searched => "searched",
            PlanSource::Kept => "kept",
            PlanSource::Tuned => "tuned",
        }
    }
}

/// What is kept of the decisions for a context.
#[derive(Debug, Clone)]
pub struct KeptFor {
    /// Where.
    pub cache: PlanCache,
    /// For which command.
    pub key: PlanKey,
    /// What became of them in an earlier run, when compute buffers were known.
    pub adapted: Option<Adapted>,
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
    /// The plan that was decided for, by estimated compute buffers.
    pub planned: Plan,
    /// Its KV placement is followed. Not where a test forces a plan, which is about other things.
    pub kv_as_planned: bool,
    /// Where the decisions come from.
    pub source: PlanSource,
    /// What is kept of them.
    pub kept: Option<KeptFor>,
}

impl ContextPlan {
    /// Reports whether the plan has the KV of this layer, of so many bytes, on the host.
    pub fn has_on_host(&self, layer: u32, bytes: u64) -> bool {
        let of_layer = self.planned.kv.iter().find(|kv| kv.layer == layer);
        self.decisions.kv_on_host.contains(&layer)
            || self.kv_as_planned && of_layer.is_some_and(|kv| kv.bytes == bytes && !kv.device)
    }
}
