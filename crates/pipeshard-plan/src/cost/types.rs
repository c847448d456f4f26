//! What is asked, and what is predicted.

use pipeshard_model::inventory::Inventory;
use serde::{Deserialize, Serialize};

/// What a plan does not say about its model.
#[derive(Debug, Clone, Copy)]
pub struct ModelShape<'a> {
    /// The model; its tensors are the plan's units, in the same order.
    pub inventory: &'a Inventory,
    /// ggml's name of the type of the keys in the KV cache.
    pub type_k: &'a str,
    /// ggml's name of the type of the values in the KV cache.
    pub type_v: &'a str,
}

/// One pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassShape {
    /// Tokens that are computed.
    pub rows: u32,
    /// Sequences that they belong to, evenly.
    pub sequences: u32,
    /// Tokens of each sequence that are in the KV cache already.
    pub kv_tokens: u64,
    /// Tokens whose logits are wanted.
    pub outputs: u32,
}

/// What a pass is limited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The link to the device.
    Link,
    /// The host's memory, read by the CPU and the copy lane at once.
    Dram,
    /// The device.
    Gpu,
    /// The CPU.
    Cpu,
}

/// What a pass costs. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PassCost {
    /// From its first to its last operation.
    pub seconds: f64,
    /// Of these the device computes.
    pub gpu: f64,
    /// Of these the CPU computes.
    pub cpu: f64,
    /// Of these the link moves weights.
    pub link: f64,
    /// Changes from one processor to the other.
    pub hand_overs: u32,
    /// What they cost.
    pub hand_over_seconds: f64,
    /// Bytes of weights that are streamed.
    pub bytes_streamed: u64,
    /// What no order of the same work could be faster than.
    pub bound: f64,
    /// Which lane sets the bound.
    pub limit: Limit,
}

/// A conversation: a prompt and an answer, in each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens that are generated.
    pub generated: u32,
    /// Sequences that are generated side by side.
    pub sequences: u32,
    /// Tokens that a pass of the prompt computes at most.
    pub ubatch: u32,
}

/// What a conversation costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds to the first token.
    pub ttft: f64,
    /// Generated tokens per second, all sequences together.
    pub tps: f64,
    /// Seconds to the last token.
    pub e2el: f64,
    /// The prompt, all its passes together.
    pub prompt: PassCost,
    /// One pass of generation, half way through the answer.
    pub decode: PassCost,
}
