//! What a search may decide, as opposed to what is given.

use super::types::{BatchFetch, PlanInput, StreamShare, UnitId};
use serde::{Deserialize, Serialize};

/// The decisions that make one plan out of an input. The defaults are those of an input without a search.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decisions {
    /// [`PlanInput::order`].
    pub order: Vec<UnitId>,
    /// [`PlanInput::kv_on_host`].
    pub kv_on_host: Vec<u32>,
    /// [`PlanInput::ring_target`].
    pub ring_target: Option<u64>,
    /// [`PlanInput::short_streams`].
    pub short_streams: Vec<StreamShare>,
    /// [`PlanInput::stream_min_rows`]; none leaves it.
    pub stream_min_rows: Option<u32>,
    /// [`PlanInput::expert_min_rows`]; none leaves it.
    pub expert_min_rows: Option<u32>,
    /// [`PlanInput::fetched_experts`].
    #[serde(default)]
    pub fetched_experts: u32,
    /// [`PlanInput::fetched_by_batches`].
    #[serde(default)]
    pub fetched_by_batches: Vec<BatchFetch>,
    /// [`PlanInput::host_kv_min_rows`]; none leaves it.
    #[serde(default)]
    pub host_kv_min_rows: Option<u32>,
}

impl PlanInput {
    /// The input with these decisions.
    pub fn with(&self, decisions: &Decisions) -> PlanInput {
        let mut input = self.clone();
        input.decide(decisions);
        input
    }

    /// Takes over these decisions.
    pub fn decide(&mut self, decisions: &Decisions) {
        self.order.clone_from(&decisions.order);
        self.kv_on_host.clone_from(&decisions.kv_on_host);
        self.ring_target = decisions.ring_target;
        self.short_streams.clone_from(&decisions.short_streams);
        if let Some(rows) = decisions.stream_min_rows {
            self.stream_min_rows = rows;
        }
        self.fetched_experts = decisions.fetched_experts;
        self.fetched_by_batches
            .clone_from(&decisions.fetched_by_batches);
        if let Some(rows) = decisions.host_kv_min_rows {
            self.host_kv_min_rows = rows;
        }
        self.expert_min_rows = decisions.expert_min_rows.or(self.expert_min_rows);
    }
}
