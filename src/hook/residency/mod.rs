//! What of a tenant is on the device, and what brings it there.
//!
//! Owns the arena, the copy lane, the memory and lane of fetched experts, the placeholder for measuring, and the [`Generation`] of
//! their addresses. Changes of shape are asked for by [`super::answers::shape`] alone, with the proof that nothing refers to
//! the arena meanwhile; passes use the lanes. Does not know why a plan is as it is.

mod generation;

use crate::arena::ledger::Holdings;
use crate::arena::unit::LoadedUnit;
use crate::arena::{Arena, ArenaError, Lanes};
use crate::hook::config::Config;
use crate::hook::gate::NewShape;
use crate::lanes::copy::{Copier, CopyCounters, DroppedWait};
use crate::lanes::device::{Buffer, Device, Event};
use crate::lanes::fetch::{ExpertFetcher, FetchCounters};
use crate::lanes::purpose::{during, Purpose};
use crate::lanes::ring::Ring;
use crate::trace::record::HostWork;
use crate::trace::Recorder;
pub use generation::Generation;
use pipeshard_plan::plan::{FetchLayout, FetchShape, Location, Plan, Unit};
use pipeshard_sys as ffi;
use std::collections::HashMap;
use std::sync::Arc;

/// What of a tenant is on the device.
pub struct Residency {
    config: Arc<Config>,
    trace: Recorder,
    /// It is an encoder's.
    of_encoder: bool,
    device: Option<Device>,
    arena: Option<Arena>,
    copier: Option<Copier>,
    fetcher: Option<ExpertFetcher>,
    /// Experts that the device refused memory for: it is not asked again for the same.
    refused: Option<FetchShape>,
    /// By fetchers that are gone.
    fetched: FetchCounters,
    /// Where device tensors point while graphs are only measured.
    placeholder: Option<Buffer>,
    /// The plan that the arena has the shape of.
    carved: Option<Plan>,
    /// The scheduler whose splits read the ring last.
    ring_reader: Option<usize>,
    /// By scheduler, the end of its latest pass: its backends may be gone by then; the event is owned here.
    passes: HashMap<usize, Event>,
    generation: Generation,
    /// Times the arena took another shape while it was in use.
    recarvings: u64,
}

impl Residency {
    /// Nothing is on the device yet.
    pub fn new(config: Arc<Config>, trace: Recorder) -> Self {
        Residency {
            config,
            trace,
            of_encoder: false,
            device: None,
            arena: None,
            copier: None,
            fetcher: None,
            refused: None,
            fetched: FetchCounters::default(),
            placeholder: None,
            carved: None,
            ring_reader: None,
            passes: HashMap::new(),
            generation: Generation::default(),
            recarvings: 0,
        }
    }

    /// The same for an encoder of images or sound.
    pub fn of_encoder(config: Arc<Config>) -> Self {
        Residency {
            of_encoder: true,
            ..Self::new(config, Recorder::default())
        }
    }

    /// The device that computes.
    pub fn attach(&mut self, device: Device) {
        self.device = Some(device);
    }

    /// Opens the copy lane and what goes with it, once.
    pub fn open(&mut self, device: Device) -> Result<(), String> {
        if self.copier.is_none() {
            let debug = &self.config.debug;
            let mut copier = Copier::open(device, debug.dropped_wait, debug.noise)?;
            if let Some(bytes) = debug.copy_bytes {
                copier.copy_bytes = bytes.max(1) as usize;
            }
            self.copier = Some(copier);
        }
        if self.placeholder.is_none() {
            let refused = || format!("{} refused the smallest allocation", device.name());
            let purpose = match self.of_encoder {
                true => Purpose::Vision,
                false => Purpose::Other,
            };
            let (memory, bytes) = (device.memory_type(), device.alignment());
            let buffer = during(purpose, || Buffer::allocate(memory, bytes)).ok_or_else(refused)?;
            self.placeholder = Some(buffer.holds_weights());
        }
        if self.arena.is_none() {
            let mut arena = Arena::new(device, self.config.debug.fill);
            arena.trace = self.trace.clone();
            arena.of_encoder = self.of_encoder;
            self.arena = Some(arena);
        }
        Ok(())
    }

    /// What it holds, without what the user put on the device. Allocations are rounded up to `granularity`.
    pub fn holdings(&self, granularity: u64) -> Holdings {
        let placeholder = self.placeholder.as_ref().map_or(0, Buffer::size);
        let lane = self.copier.as_ref().map_or(0, Copier::device_bytes);
        let fetched = self.fetcher.as_ref().map_or(0, |f| f.memory().size());
        let arena = self.arena.as_ref();
        Holdings {
            arena: arena.map(|arena| (arena.resident_bytes(), arena.slot_bytes())),
            own: placeholder.next_multiple_of(granularity) + lane,
            fetched: fetched.next_multiple_of(granularity),
        }
    }

    /// Bytes that were copied through the ring, ever.
    pub fn bytes_streamed(&self) -> u64 {
        self.arena.as_ref().map_or(0, Arena::streamed_bytes)
    }

    /// How large the ring is.
    pub fn ring_bytes(&self) -> u64 {
        self.arena.as_ref().map_or(0, Arena::slot_bytes)
    }

    /// Old graphs and new ones.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Graphs that were split before must not be reused.
    pub fn void_graphs(&mut self) {
        self.generation.void_graphs();
    }

    /// Where device tensors point while graphs are only measured.
    pub fn placeholder(&self) -> Option<&Buffer> {
        self.placeholder.as_ref()
    }

    /// The plan that the arena has the shape of.
    pub fn carved(&self) -> Option<&Plan> {
        self.carved.as_ref()
    }

    /// Reports whether everything lies as `plan` has it.
    pub fn has_shape(&self, plan: &Plan) -> bool {
        self.is_carved_as(plan) && !self.fetches_otherwise(plan)
    }

    /// Reports whether the arena has the shape of `plan`.
    pub fn is_carved_as(&self, plan: &Plan) -> bool {
        self.carved.as_ref().is_some_and(|have| {
            have.chunks == plan.chunks && have.ring == plan.ring && have.tiers == plan.tiers
        })
    }

    /// Reports whether the plan fetches other experts than there is memory for, and than the device refused memory for.
    fn fetches_otherwise(&self, plan: &Plan) -> bool {
        let have = self.fetcher.as_ref().map(ExpertFetcher::shape);
        let refused = self.refused.as_ref();
        !plan.fetches(have) && !refused.is_some_and(|refused| plan.fetches(Some(refused)))
    }

    /// Graphs that are split from here on refer to what there is.
    pub fn begin_generation(&mut self) {
        self.generation.begin();
    }

    /// Waits until nothing on the device uses the arena.
    pub fn drain(&self) {
        if self.config.debug.dropped_wait == Some(DroppedWait::Drain) {
            return;
        }
        let since = self.trace.since();
        self.passes.values().for_each(Event::synchronize);
        if let Some(copier) = &self.copier {
            copier.stream().synchronize();
        }
        if let Some(fetcher) = &self.fetcher {
            fetcher.synchronize();
        }
        self.trace.worked(since, HostWork::Drain);
    }

    /// Gives all of the arena's memory back, if it has some. Graphs that were split before are void.
    pub fn release(&mut self, units: &mut [LoadedUnit], proof: NewShape<'_>) {
        if self.carved.is_some() || self.holds_memory() {
            self.release_anyway(units, proof);
        }
    }

    /// Reports whether the arena has memory. It may have some without a plan's shape, see [`Self::lend`].
    pub fn holds_memory(&self) -> bool {
        let arena = self.arena.as_ref();
        arena.is_some_and(|arena| arena.resident_bytes() + arena.slot_bytes() > 0)
    }

    /// Gives the ring's memory back, and that of residents from the end of their list, until the others take no more than `keep`
    /// bytes. Graphs that were split before are void; those residents stay where they are when the arena takes the same plan's shape
    /// again. Bytes of residents that are gone.
    pub fn lend(&mut self, units: &mut [LoadedUnit], keep: u64, _: NewShape<'_>) -> u64 {
        self.drain();
        let gone = self.arena.as_mut().map_or(0, |arena| arena.shrink(keep));
        units.iter_mut().for_each(LoadedUnit::unplace);
        self.carved = None;
        self.generation.change_addresses();
        gone
    }

    /// The same for good: the plan's shape is given up, which counts as another one.
    pub fn give_up(&mut self, units: &mut [LoadedUnit], keep: u64, proof: NewShape<'_>) -> u64 {
        self.recarvings += u64::from(self.carved.is_some());
        self.lend(units, keep, proof)
    }

    /// The same where nothing that is known can be relied on.
    pub fn release_anyway(&mut self, units: &mut [LoadedUnit], _: NewShape<'_>) {
        self.drain();
        if let Some(arena) = &mut self.arena {
            arena.release();
        }
        units.iter_mut().for_each(LoadedUnit::unplace);
        self.carved = None;
        // there may be room by now for what was refused
        self.refused = None;
        self.generation.change_addresses();
    }

    /// Gives the memory of fetched experts back.
    pub fn release_fetcher(&mut self, _: NewShape<'_>) {
        self.refused = None;
        if self.fetcher.is_some() {
            self.drain();
            self.fetched = self.fetched.and(self.fetcher.take().as_ref());
            self.generation.change_addresses();
        }
    }

    /// Gives it back if the plan fetches others.
    pub fn release_other_fetcher(&mut self, plan: &Plan, proof: NewShape<'_>) {
        if self.fetches_otherwise(plan) {
            self.release_fetcher(proof);
        }
    }

    /// Gives the arena the shape of `plan`. On error it has none, nor has any unit a place.
    pub fn carve(
        &mut self,
        plan: &Plan,
        units: &mut [LoadedUnit],
        _: NewShape<'_>,
    ) -> Result<(), CarveError> {
        self.drain();
        if self.carved.take().is_some() {
            self.recarvings += 1;
        }
        self.generation.change_addresses();
        let (Some(arena), Some(copier)) = (&mut self.arena, &mut self.copier) else {
            return Err(CarveError::Other("the copy lane is not open".to_string()));
        };
        let locations = plan.locations();
        let mut placed = units.iter().zip(&locations);
        let staged = |(unit, at): (&LoadedUnit, &Location)| *at != Location::Host && !unit.pinned();
        if placed.any(staged) {
            copier.prepare_staging().map_err(CarveError::Other)?;
        }
        let since = self.trace.since();
        let result = arena.carve(plan, units, copier);
        self.trace.worked(since, HostWork::Carve);
        match result {
            Ok(()) => {
                self.carved = Some(plan.clone());
                Ok(())
            }
            Err(refused) => {
                units.iter_mut().for_each(LoadedUnit::unplace);
                Err(CarveError::Refused(refused))
            }
        }
    }

    /// Reports whether [`Self::carve`] has waited for what it uploaded, as it must; not so in a test of that wait.
    pub fn waits_for_uploads(&self) -> bool {
        self.config.debug.dropped_wait != Some(DroppedWait::Upload)
    }

    /// Makes memory for the experts that the plan fetches, where there is none: when everything else has given way. `units`: those
    /// that the plan is about. An error is that the device refuses it; it is not asked again for the same.
    pub fn open_fetcher(
        &mut self,
        plan: &Plan,
        units: &[Unit],
        _: NewShape<'_>,
    ) -> Result<(), String> {
        let wanted = plan.fetch_shape();
        let (Some(device), true) = (self.device, self.fetches_otherwise(plan)) else {
            return Ok(());
        };
        if wanted.most() == 0 {
            return Ok(());
        }
        self.generation.change_addresses();
        let layout = FetchLayout::new(units, wanted.most(), device.alignment());
        let stacked = units.iter().map(|unit| unit.expert_count).max();
        let dropped = self.config.debug.dropped_wait;
        let opened = ExpertFetcher::open(
            device,
            layout,
            wanted.clone(),
            stacked.unwrap_or(0),
            dropped,
        );
        match opened {
            Ok(fetcher) => {
                self.fetcher = Some(fetcher);
                Ok(())
            }
            Err(why) => {
                self.refused = Some(wanted);
                Err(why)
            }
        }
    }

    /// What fetches experts, where there is such.
    pub fn fetcher(&self) -> Option<&ExpertFetcher> {
        self.fetcher.as_ref()
    }

    /// The same, to fetch with.
    pub fn fetcher_mut(&mut self) -> Option<&mut ExpertFetcher> {
        self.fetcher.as_mut()
    }

    /// The ring and the lanes around it, for the splits that `compute` runs; none where nothing is streamed.
    pub fn pipeline(&mut self, compute: ffi::ggml_backend_t) -> Option<(&mut Ring, Lanes<'_>)> {
        let (arena, copier) = (self.arena.as_mut()?, self.copier.as_mut()?);
        arena.pipeline(copier, compute)
    }

    /// The same at the beginning of a pass of `sched`, which may not be the one that read the ring last.
    pub fn pipeline_of_pass(
        &mut self,
        sched: usize,
        compute: ffi::ggml_backend_t,
    ) -> Option<(&mut Ring, Lanes<'_>)> {
        let other_reader = self.ring_reader.replace(sched) != Some(sched);
        let (ring, mut lanes) = self.pipeline(compute)?;
        if other_reader {
            ring.change_reader(&mut lanes);
        }
        Some((ring, lanes))
    }

    /// A pass of `sched` was submitted to `compute`. True if it was the first.
    ///
    /// # Safety
    /// `compute` is a live backend of the device.
    pub unsafe fn pass_ended(&mut self, sched: usize, compute: ffi::ggml_backend_t) -> bool {
        let known = self.passes.get(&sched);
        let first = known.is_none();
        let made = match first {
            true => self.device.and_then(Event::new),
            false => None,
        };
        match known.or(made.as_ref()) {
            Some(done) => done.record(compute),
            // nothing could wait for the pass later on
            None => ffi::ggml_backend_synchronize(compute),
        }
        if let Some(made) = made {
            self.passes.insert(sched, made);
        }
        first
    }

    /// A scheduler is gone. Its owner has waited for its work.
    pub fn forget_sched(&mut self, sched: usize) {
        self.passes.remove(&sched);
        if self.ring_reader == Some(sched) {
            self.ring_reader = None;
        }
    }

    /// All schedulers are gone.
    pub fn forget_scheds(&mut self) {
        self.passes.clear();
        self.ring_reader = None;
    }

    /// Reports whether the host waits for the router's choice, as it must; not so in a test of that wait.
    pub fn waits_for_choice(&self) -> bool {
        self.config.debug.dropped_wait != Some(DroppedWait::Choice)
    }

    /// What is counted of the arena.
    pub fn arena(&self) -> Option<&Arena> {
        self.arena.as_ref()
    }

    /// Bytes that were uploaded to residents.
    pub fn uploaded_bytes(&self) -> u64 {
        self.arena().map_or(0, Arena::uploaded_bytes)
    }

    /// What is counted of the copy lane.
    pub fn copies(&self) -> CopyCounters {
        let copier = self.copier.as_ref();
        copier.map(|copier| copier.counters).unwrap_or_default()
    }

    /// What was fetched of experts.
    pub fn fetched(&self) -> FetchCounters {
        self.fetched.and(self.fetcher.as_ref())
    }

    /// Times the arena took another shape while it was in use.
    pub fn recarvings(&self) -> u64 {
        self.recarvings
    }
}

/// Why the arena could not take a plan's shape.
#[derive(Debug)]
pub enum CarveError {
    /// The device refused memory, or an event.
    Refused(ArenaError),
    /// Something else is missing.
    Other(String),
}
