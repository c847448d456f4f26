//! What happened, counted where it happens.

use crate::hook::graph::split_graph::SplitGraph;
use crate::report::{HostWaits, PassCounts, UnitCounts, PROMPT_ROWS};
use crate::trace::record::WaitReason;
use pipeshard_plan::plan::{Placement, Unit, UnitClass};
use std::time::Duration;

/// Counters of one process.
#[derive(Debug, Default)]
pub struct Counters {
    /// The device's name and description.
    pub device: Option<String>,
    /// Why pipeshard is off.
    reason_off: Option<String>,
    passes: PassCounts,
    host_waits: HostWaits,
    /// Splits submitted.
    pub splits: u64,
    /// Passes that ran a graph that had run before.
    pub graph_reuses: u64,
    /// Spent on searches for plans.
    pub planning: Duration,
    /// Spent on the machine's profile.
    pub profiling: Duration,
    /// Changes of the budget.
    pub budget_changes: u64,
    /// Times compute buffers on the device grew after the context was made.
    pub reallocations: u64,
    /// Contexts that asked for KV.
    pub contexts: u64,
    /// Models loaded.
    pub models: u64,
    /// Nodes that rewrites put into graphs, or changed.
    pub rewritten_nodes: u64,
    /// Why memory is not page-locked.
    pub page_lock_refused: Option<String>,
    /// What went wrong, each once.
    errors: Vec<String>,
    minimum_budget: u64,
    /// Where each unit was read in the latest graph of each tier: decode, prompt.
    seen: [Vec<Option<Placement>>; 2],
    declined: u64,
    /// Attentions of the device over KV cache in host memory, in all passes.
    pub over_host_kv: u64,
}

impl Counters {
    /// Pipeshard is off, and why.
    pub fn off(&mut self, why: &str) {
        self.reason_off = Some(why.to_string());
    }

    /// What switched it off is over.
    pub fn on_again(&mut self) {
        self.reason_off = None;
    }

    /// Notes what went wrong, once. True if it is new.
    pub fn note_error(&mut self, why: String) -> bool {
        let new = !self.errors.contains(&why);
        if new {
            self.errors.push(why);
        }
        new
    }

    /// What went wrong.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Why pipeshard is off.
    pub fn reason_off(&self) -> Option<&str> {
        self.reason_off.as_deref()
    }

    /// The smallest budget that the latest plan could have been made for.
    pub fn set_minimum(&mut self, bytes: u64) {
        self.minimum_budget = bytes;
    }

    /// Notes where a graph that will run reads its weights.
    pub fn note_graph(&mut self, graph: &SplitGraph, units: &[Unit]) {
        let tier = usize::from(graph.rows >= PROMPT_ROWS);
        let seen = &mut self.seen[tier];
        seen.clear();
        seen.resize(units.len(), None);
        for &(id, placement) in &graph.bound {
            let small = units[id.index()].class == UnitClass::Small;
            if !small || seen[id.index()].is_none() {
                seen[id.index()] = Some(placement);
            }
        }
        self.declined += u64::from(graph.declined);
    }

    /// A pass was submitted whose operations saw so many rows.
    pub fn count_pass(&mut self, rows: u32) {
        match rows >= PROMPT_ROWS {
            true => self.passes.prompt += 1,
            false => self.passes.decode += 1,
        }
    }

    /// Passes of all tiers.
    pub fn total_passes(&self) -> u64 {
        self.passes.prompt + self.passes.decode
    }

    /// The host waits for the device.
    pub fn count_host_wait(&mut self, why: WaitReason) {
        match why {
            WaitReason::UserInput => self.host_waits.user_inputs += 1,
            WaitReason::HandOver => self.host_waits.hand_overs += 1,
        }
    }

    /// The host waited so many times for the router's choice.
    pub fn count_choices(&mut self, waits: u64) {
        self.host_waits.expert_choices += waits;
    }

    /// Passes by tier.
    pub fn passes(&self) -> PassCounts {
        self.passes
    }

    /// Waits of the host.
    pub fn host_waits(&self) -> HostWaits {
        self.host_waits
    }

    /// The smallest budget that the latest plan could have been made for.
    pub fn minimum_budget(&self) -> u64 {
        self.minimum_budget
    }

    /// Nodes with weights that were left to the scheduler, in all graphs.
    pub fn declined(&self) -> u64 {
        self.declined
    }

    /// Where the units were read in the latest graph of a tier: 0 for decode, 1 for prompts.
    pub fn unit_counts(&self, tier: usize) -> UnitCounts {
        let count = |p: Placement| self.seen[tier].iter().filter(|&&s| s == Some(p)).count() as u64;
        UnitCounts {
            resident: count(Placement::Resident),
            kept: count(Placement::Kept),
            streamed: count(Placement::Streamed),
            host: count(Placement::Host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_again_and_again_is_noted_once() {
        let mut counters = Counters::default();
        for _ in 0..3 {
            counters.note_error("no room for an adapter".to_string());
        }
        assert_eq!(counters.errors().len(), 1);
    }
}
