//! What is asked, and what is found.

use crate::cost::{ModelShape, Prediction, Workload};
use crate::plan::{Decisions, KvLayer, Plan, PlanInput};
use crate::profile::Profile;
use serde::Serialize;

/// A size of the ubatch with the memory that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UbatchOption {
    /// Tokens.
    pub ubatch: u32,
    /// Bytes of compute buffers.
    pub scratch: u64,
    /// Bytes that the device's backend is expected to take on its own account for it, beyond what the input reserves.
    pub pools: u64,
    /// The KV cache with this ubatch, where it differs from the input's: a sliding window's cache holds the window and an
    /// ubatch.
    pub kv: Option<Vec<KvLayer>>,
    /// The CPU computes the output head, whose logits then take no compute buffers; it does so too where the input says it.
    pub output_on_host: bool,
}

/// What is searched for.
#[derive(Debug, Clone, Copy)]
pub struct SearchInput<'a> {
    /// What is given; its scratch is replaced by that of the ubatch, and its reserve grows with it.
    pub input: &'a PlanInput,
    /// The model whose tensors the input's units are.
    pub model: ModelShape<'a>,
    /// The machine.
    pub profile: &'a Profile,
    /// The conversation that counts; its ubatch is replaced by the one that is chosen.
    pub workload: Workload,
    /// Sizes of the ubatch to choose from, the one that llama.cpp would use first.
    pub ubatches: &'a [UbatchOption],
    /// Take this one, and search for nothing but the ubatch.
    pub forced: Option<Candidate>,
}

/// The best plan for one size of the ubatch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct UbatchScore {
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The CPU computes the output head.
    pub output_on_host: bool,
    /// The score of its best plan, in seconds: less is better.
    pub score: f64,
    /// Seconds to the first token.
    pub ttft: f64,
    /// Tokens per second.
    pub tps: f64,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The decisions.
    pub decisions: Decisions,
    /// The plan that they make.
    pub plan: Plan,
    /// What it is predicted to cost.
    pub prediction: Prediction,
    /// Its score, in seconds: less is better. See [`Prediction::score`].
    pub score: f64,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The CPU computes the output head.
    pub output_on_host: bool,
    /// How many plans were priced.
    pub priced: u32,
    /// The best of each size of the ubatch for which there is a plan, in the order in which they were given.
    pub ubatches: Vec<UbatchScore>,
    /// What was tried, in order.
    pub tried: Vec<Tried>,
}

/// A move and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tried {
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The CPU computes the output head.
    pub output_on_host: bool,
    /// What was varied.
    pub what: &'static str,
    /// Plans that were priced.
    pub priced: u32,
    /// How many of them were better than all before.
    pub accepted: u32,
    /// The best score before it, in seconds.
    pub before: f64,
    /// The best score after it, in seconds.
    pub after: f64,
}

/// A plan by name (`PIPESHARD_DEBUG_CANDIDATE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    /// The decisions of an input without a search.
    Usual,
    /// The feed-forward network before attention.
    FeedForwardFirst,
    /// The output head before the layers.
    HeadFirst,
    /// Experts before everything else.
    ExpertsFirst,
    /// Whole layers, from the last one down.
    LayersFirst,
    /// The same with the other layers' KV on the host.
    StockLike,
    /// What a search finds, but generation streams nothing.
    DecodeOnCpu,
    /// The usual decisions, and generation streams through most of the ring.
    DecodeStreamed,
    /// The usual decisions with a small ring.
    SmallRing,
    /// The usual decisions with a large ring.
    LargeRing,
}

impl Candidate {
    /// All of them with their names.
    pub const ALL: [(&'static str, Candidate); 10] = [
        ("usual", Candidate::Usual),
        ("ffn-first", Candidate::FeedForwardFirst),
        ("head-first", Candidate::HeadFirst),
        ("experts-first", Candidate::ExpertsFirst),
        ("layers-first", Candidate::LayersFirst),
        ("stock-like", Candidate::StockLike),
        ("decode-on-cpu", Candidate::DecodeOnCpu),
        ("decode-streamed", Candidate::DecodeStreamed),
        ("small-ring", Candidate::SmallRing),
        ("large-ring", Candidate::LargeRing),
    ];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Candidate> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, candidate)| *candidate)
    }
}
