//! A pass: the splits of one graph, submitted in order.
//!
//! What runs here runs for every split of every token. It allocates nothing and waits for nothing but another scheduler's
//! pass being submitted on another thread, and for the choice of experts where only those are fetched.

use super::log;
use super::runtime::{Runtime, Sched};
use crate::arena::unit::LoadedUnit;
use crate::lanes::copy::DroppedWait;
use crate::lanes::device::Event;
use crate::lanes::hand_over::{Ends, HostWait};
use crate::lanes::mapped_file::Shrunk;
use crate::lanes::ring::RingError;
use pipeshard_plan::plan::{plan, Placement, UnitClass};
use pipeshard_sys as ffi;
use std::collections::HashMap;

/// Why a pass cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The graph refers to device memory that has moved.
    #[error("the graph was split before the arena changed its shape; it has to be split again")]
    Stale,
    /// The ring cannot hold what a split needs.
    #[error("the ring cannot serve a split: {0:?}")]
    Ring(RingError),
    /// The device does nothing any more.
    #[error("{0}")]
    DeviceFailed(String),
    /// Weights that the graph reads are lost.
    #[error(transparent)]
    FileShrunk(Shrunk),
    /// A callback panicked before.
    #[error("nothing is computed after an internal error")]
    Broken,
    /// The router's choice is not where it should be.
    #[error("which experts were chosen cannot be read back: the router's result has no memory")]
    NoChoice,
    /// The router's choice makes no sense.
    #[error(
        "the router chose expert {expert} of {experts}; the device's results cannot be trusted"
    )]
    NoSuchExpert {
        /// What was read back.
        expert: i32,
        /// How many there are.
        experts: u32,
    },
}

/// A scheduler and its compute lane, if it computes on the device.
fn lanes_of(
    scheds: &mut HashMap<usize, Sched>,
    sched: usize,
) -> Option<(&mut Sched, ffi::ggml_backend_t)> {
    let entry = scheds.get_mut(&sched)?;
    let compute = *entry.device_backends.first()?;
    Some((entry, compute))
}

impl Runtime {
    /// The first split of `sched`'s graph is about to be submitted. No other pass is being submitted.
    pub fn pass_begin(&mut self, sched: usize) -> Result<(), PassError> {
        let Some(entry) = self.scheds.get_mut(&sched) else {
            return Ok(());
        };
        if entry.graph.carving.is_some_and(|c| c != self.carving) {
            return Err(PassError::Stale);
        }
        self.check_sources(sched)?;
        let Some(entry) = self.scheds.get_mut(&sched) else {
            return Ok(());
        };
        if !std::mem::replace(&mut entry.graph.fresh, false) {
            self.outcome.graph_reuses += 1;
        }
        self.active_pass = Some(sched);
        let Some(entry) = self.scheds.get(&sched) else {
            return Ok(());
        };
        if entry.graph.uses.is_empty() {
            return Ok(());
        }
        let (Some(arena), Some(copier), Some(&compute)) = (
            &mut self.arena,
            &mut self.copier,
            entry.device_backends.first(),
        ) else {
            return Ok(());
        };
        let other_reader = self.ring_reader.replace(sched) != Some(sched);
        if let Some((ring, mut lanes)) = arena.pipeline(copier, compute) {
            if other_reader {
                ring.change_reader(&mut lanes);
            }
            ring.begin_pass(&entry.graph.uses);
            entry.graph.routings.announce(ring);
            ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
        }
        Ok(())
    }

    /// A tensor is about to be copied between two backends of `sched`: whether that was submitted, or else what the host has to
    /// wait for before it copies.
    ///
    /// # Safety
    /// The tensors have memory and the same layout, and belong to the graph that `sched` is submitting.
    pub unsafe fn input_copy(
        &mut self,
        sched: usize,
        between: (ffi::ggml_backend_t, ffi::ggml_backend_t),
        input: *const ffi::ggml_tensor,
        copy: *mut ffi::ggml_tensor,
    ) -> (bool, HostWait) {
        let no = (false, HostWait::Nothing);
        if self.config.debug.stock_hand_over {
            return no;
        }
        let lanes = lanes_of(&mut self.scheds, sched);
        let (Some(device), Some((entry, compute))) = (self.device, lanes) else {
            return no;
        };
        let ends = Ends {
            device,
            compute,
            cpu: entry.cpu_backend,
        };
        self.trace.inputs_begin(sched, compute);
        match entry.hand_over.copy(ends, between, input, copy) {
            true => (true, HostWait::Nothing),
            false => (false, entry.hand_over.sources_free(compute)),
        }
    }

    /// The inputs of a split are copied or being copied; it is about to be computed on `backend`. What the host has to wait
    /// for first.
    ///
    /// # Safety
    /// `sched` is submitting a pass.
    pub unsafe fn inputs_copied(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> HostWait {
        let Some((entry, compute)) = lanes_of(&mut self.scheds, sched) else {
            return HostWait::Nothing;
        };
        let divided = &entry.graph.divided;
        if let (Some(layer), Some(fetcher)) = (divided.share(split).fetches, &self.fetcher) {
            let layer = &divided.layers[layer];
            let raw = sched as ffi::ggml_backend_sched_t;
            let made_by = ffi::ggml_backend_sched_get_tensor_backend(raw, layer.chosen);
            if fetcher.ask(compute, made_by, layer.chosen, layer.choice) {
                entry.hand_over.expect_results();
            }
        }
        self.trace.inputs_end(compute);
        let wait = entry.hand_over.before_split(compute, backend == compute);
        if wait != HostWait::Nothing {
            self.host_wait(ffi::GGML_SCHED_WAIT_HAND_OVER);
        }
        wait
    }

    /// The last split of a pass was submitted, or it failed: what the host has to wait for before it writes what the next pass
    /// reads.
    ///
    /// # Safety
    /// As for [`Self::inputs_copied`].
    pub unsafe fn inputs_read(&mut self, sched: usize) -> HostWait {
        let Some((entry, compute)) = lanes_of(&mut self.scheds, sched) else {
            return HostWait::Nothing;
        };
        entry.hand_over.before_host_goes_on(compute)
    }

    /// A split is about to be submitted to `backend`.
    pub fn split_before(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> Result<(), PassError> {
        self.share_experts(sched, split, backend)?;
        let splits = self.scheds.get(&sched).map(|entry| &entry.graph.splits);
        if splits.and_then(|s| s.get(split)).is_none_or(Vec::is_empty) {
            return Ok(());
        }
        self.check_sources(sched)?;
        let Some(entry) = self.scheds.get_mut(&sched) else {
            return Ok(());
        };
        let groups = &entry.graph.splits[split];
        let (Some(arena), Some(copier)) = (&mut self.arena, &mut self.copier) else {
            return Ok(());
        };
        let wait = copier.dropped != Some(DroppedWait::Choice);
        if let Some((ring, mut lanes)) = arena.pipeline(copier, backend) {
            let (raw, routings) = (
                sched as ffi::ggml_backend_sched_t,
                &mut entry.graph.routings,
            );
            // SAFETY: the scheduler is submitting the graph that the routings were made from, split by split.
            let waits = unsafe { self.choices.choose(raw, routings, groups, ring, wait)? };
            if let Some(waits) = waits {
                self.outcome.count_choices(waits);
                // the other groups that the same choice is about are copied while this one is used
                ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
            }
            ring.before_split(groups, &mut lanes)
                .map_err(PassError::Ring)?;
        }
        Ok(())
    }

    /// A split was submitted to `backend`.
    ///
    /// # Safety
    /// `backend` is a live backend, to which `sched` submits.
    pub unsafe fn split_after(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> Result<(), PassError> {
        let Some(entry) = self.scheds.get(&sched) else {
            return Ok(());
        };
        let divided = &entry.graph.divided;
        if let (Some(layer), Some(fetcher)) = (divided.share(split).reads, &mut self.fetcher) {
            fetcher.was_read(divided.layers[layer].kit, backend);
        }
        let Some(groups) = entry.graph.splits.get(split).filter(|g| !g.is_empty()) else {
            return Ok(());
        };
        self.check_sources(sched)?;
        let (Some(arena), Some(copier)) = (&mut self.arena, &mut self.copier) else {
            return Ok(());
        };
        if let Some((ring, mut lanes)) = arena.pipeline(copier, backend) {
            ring.after_split(groups, &mut lanes);
            ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
        }
        Ok(())
    }

    /// Looks whether what the graph reads from host memory is still there.
    pub(super) fn check_sources(&self, sched: usize) -> Result<(), PassError> {
        let (Some(shrunk), Some(entry)) = (self.shrunk_file(), self.scheds.get(&sched)) else {
            return Ok(());
        };
        let lost = |unit: &LoadedUnit| shrunk.affects(unit.host(), unit.bytes());
        let bound = entry.graph.bound.iter().any(|&(id, placement)| {
            placement != Placement::Resident && lost(&self.units[id.index()])
        });
        // rows of embeddings are looked up without being asked for here
        let looked_up = self
            .units
            .iter()
            .zip(&self.plan_units)
            .any(|(unit, info)| info.class == UnitClass::HostOnly && lost(unit));
        match entry.graph.carving.is_some() && (bound || looked_up) {
            true => Err(PassError::FileShrunk(shrunk)),
            false => Ok(()),
        }
    }

    /// Whether the latest graph of `sched` refers to the arena.
    pub fn refers_to_arena(&self, sched: usize) -> bool {
        let entry = self.scheds.get(&sched);
        entry.is_some_and(|entry| entry.graph.carving.is_some())
    }

    /// No pass of `sched` is being submitted any more.
    pub fn pass_over(&mut self, sched: usize) {
        if self.active_pass == Some(sched) {
            self.active_pass = None;
        }
        self.turns.pass_ended();
    }

    /// Waits for what `sched` submitted, in place of an event at the end of its pass.
    pub fn settle(&mut self, sched: usize) {
        let entry = self.scheds.get(&sched);
        for &backend in entry.iter().flat_map(|entry| &entry.device_backends) {
            // SAFETY: the scheduler is in a pass, so its backends are alive.
            unsafe { ffi::ggml_backend_synchronize(backend) }
        }
    }

    /// The last split was submitted, or the pass failed.
    pub fn pass_end(&mut self, sched: usize, result: ffi::ggml_status) {
        let ok = result == ffi::GGML_STATUS_SUCCESS;
        let device = self.device;
        let Some((entry, compute)) = lanes_of(&mut self.scheds, sched) else {
            return;
        };
        if entry.pass_done.is_none() {
            self.outcome.contexts += 1;
            entry.pass_done = device.and_then(Event::new);
        }
        if let Some(done) = &entry.pass_done {
            // SAFETY: the scheduler passed this backend of the event's device and is alive.
            unsafe { done.record(compute) }
        }
        let streams = !entry.graph.uses.is_empty();
        let (counted, rows) = (entry.graph.carving.is_some(), entry.graph.rows);
        let over_host_cells = entry.graph.over_host_cells.len() as u64;
        if let (false, Some(failure)) = (ok, self.device_failure()) {
            self.outcome.note_error(failure);
        }
        if !ok || !counted {
            return;
        }
        self.outcome.count_pass(rows);
        self.outcome.over_host_cells += over_host_cells;
        self.retry.succeeded();
        // the next pass most likely streams the same groups: fetch what fits already
        if streams && self.shrunk_file().is_none() {
            let entry = self.scheds.get(&sched);
            if let (Some(entry), Some(arena), Some(copier)) =
                (entry, &mut self.arena, &mut self.copier)
            {
                if let Some((ring, mut lanes)) = arena.pipeline(copier, compute) {
                    ring.begin_pass(&entry.graph.uses);
                    entry.graph.routings.announce(ring);
                    // a refused copy shows again, and fails the pass, when a split needs it
                    let _ = ring.fill_ahead(&mut lanes);
                }
            }
        }
        self.measure_pools();
    }

    /// Notices what the backend of a real device took on its own account: seldom, for it is a call to the driver. Where it is
    /// more than was kept for it, residents make room before the next batch.
    fn measure_pools(&mut self) {
        if !self.pools.pass_ended() {
            return;
        }
        let Some(device) = self.device else { return };
        let held = self.free_at_start.saturating_sub(device.memory().0) + self.pools.acted();
        let beside = self.ledger.now().total().saturating_sub(self.pools.held());
        let too_much = self.pools.measure(held.saturating_sub(beside));
        self.note_arena();
        if !too_much {
            return;
        }
        let before = self.pools;
        self.pools = before.with_measured();
        match plan(&self.plan_input(0)) {
            Ok(made) => {
                self.plan = Some(made);
                self.outdate();
                self.void_graphs();
            }
            Err(error) => {
                self.pools = before;
                log::warn(&format!(
                    "the backend of {} holds {} MiB on its own account, more than the budget leaves it: {error}",
                    device.name(),
                    self.pools.held() >> 20
                ));
            }
        }
    }
}
