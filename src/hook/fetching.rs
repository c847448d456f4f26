//! Experts that the device fetches for a few tokens: their memory, and what a pass has to do for them.

use super::log;
use super::pass::PassError;
use super::runtime::{Runtime, Sched};
use crate::lanes::fetch::{ExpertFetcher, NoSuchExpert};
use pipeshard_plan::plan::{FetchLayout, Plan};
use pipeshard_sys as ffi;

impl From<NoSuchExpert> for PassError {
    fn from(wrong: NoSuchExpert) -> Self {
        PassError::NoSuchExpert {
            expert: wrong.expert,
            experts: wrong.experts,
        }
    }
}

impl Runtime {
    /// Device memory that fetched experts have now.
    pub(super) fn fetcher_bytes(&self) -> u64 {
        let memory = self.fetcher.as_ref().map_or(0, |f| f.memory().size());
        memory.next_multiple_of(self.granularity())
    }

    /// Whether the plan fetches other experts than there is memory for.
    pub(super) fn fetches_otherwise(&self) -> bool {
        let have = self.fetcher.as_ref().map(ExpertFetcher::shape);
        match &self.plan {
            Some(plan) => !plan.fetches(have),
            None => have.is_some(),
        }
    }

    /// Makes memory for the experts that the plan fetches, or gives it back.
    pub(super) fn prepare_fetching(&mut self) {
        if self.current_plan().is_err() || !self.fetches_otherwise() {
            return;
        }
        self.drain();
        self.outcome.note_fetched(self.fetcher.take());
        self.void_graphs();
        let wanted = self.plan.as_ref().map(Plan::fetch_shape);
        let wanted = wanted.filter(|wanted| wanted.most() > 0);
        if let (Some(device), Some(wanted)) = (self.device, wanted) {
            let layout = FetchLayout::new(&self.plan_units, wanted.most(), device.alignment());
            let stacked = self.plan_units.iter().map(|unit| unit.expert_count);
            let stacked = stacked.max().unwrap_or(0);
            let dropped = self.config.debug.dropped_wait;
            match ExpertFetcher::open(device, layout, wanted, stacked, dropped) {
                Ok(fetcher) => self.fetcher = Some(fetcher),
                Err(why) => {
                    log::warn(&format!(
                        "{why}; the CPU computes all experts that are not on the device"
                    ));
                    self.outcome.note_error(why);
                    self.decisions.fetched_experts = 0;
                    self.decisions.fetched_by_batches.clear();
                    self.replan();
                }
            }
        }
        self.note_arena();
    }

    /// What a split has to do for a layer whose experts both processors compute: begin to fetch the device's, or wait for them.
    pub(super) fn share_experts(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> Result<(), PassError> {
        let share = |entry: &Sched| entry.graph.divided.share(split);
        let share = self.scheds.get(&sched).map(share).unwrap_or_default();
        if share.fetches.is_some() {
            self.check_sources(sched)?;
        }
        let (Some(entry), Some(fetcher)) = (self.scheds.get(&sched), &mut self.fetcher) else {
            return Ok(());
        };
        let (layers, trace) = (&entry.graph.divided.layers, &self.trace);
        if let Some(layer) = share.fetches.map(|layer| &layers[layer]) {
            // SAFETY: the choice was asked for and waited for; weights stay until the model says that they go, and the targets lie
            // in the fetcher's memory.
            unsafe {
                let (begin, before) =
                    (trace.fetch_begins(fetcher.stream()), fetcher.counters.bytes);
                fetcher.fetch(layer.kit, &layer.stacks, layer.choice)?;
                trace.fetched(begin, fetcher.stream(), fetcher.counters.bytes - before);
            }
        }
        if let Some(layer) = share.reads.map(|layer| &layers[layer]) {
            // SAFETY: the scheduler is submitting to this backend, and the layer's copies were submitted in an earlier split.
            unsafe { fetcher.wait_until_filled(layer.kit, backend) };
        }
        Ok(())
    }
}
