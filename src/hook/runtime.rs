//! What the hook knows between calls.

use super::calibrating::Calibrating;
use super::choosing::Settling;
use super::config::Config;
use super::divide::NodeContext;
use super::log;
use super::outcome::Outcome;
use super::placement::SplitGraph;
use super::pools::Pools;
use super::routing::ChoiceReader;
use super::saved::FollowedPlan;
use super::turns::Turns;
use crate::arena::ledger::Ledger;
use crate::arena::unit::LoadedUnit;
use crate::arena::Arena;
use crate::lanes::copy::{Copier, DroppedWait};
use crate::lanes::device::{Buffer, Device, Event};
use crate::lanes::fetch::ExpertFetcher;
use crate::lanes::hand_over::HandOver;
use crate::lanes::host_memory::LockedMemory;
use crate::lanes::mapped_file::{MappedFiles, Shrunk};
use crate::lanes::matrix_library;
use crate::trace::record::HostWork;
use crate::trace::Recorder;
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::cost::Prediction;
use pipeshard_plan::plan::{Decisions, Plan, Unit, UnitId};
use pipeshard_plan::profile::Profile;
use pipeshard_sys as ffi;
use std::collections::HashMap;
use std::ops::Range;

/// The driver's allocation granularity on real devices (cudaMalloc hands out 2 MiB pages).
const DRIVER_GRANULARITY: u64 = 2 << 20;
/// Left free on a real device when no budget is given: a sixteenth of what is free, within these bounds.
const MARGIN: Range<u64> = 256 << 20..1 << 30;

/// A model whose weights are loaded.
pub struct Model {
    /// llama.cpp's address of it.
    pub key: usize,
    /// Its tensors.
    pub inventory: Inventory,
    /// Its units, as a range of all units.
    pub units: Range<usize>,
    /// Its page-locked memory.
    pub locked: LockedMemory,
    /// The files that its weights are mapped from.
    pub files: MappedFiles,
    /// Device memory that holds weights which the user put there, in bytes.
    pub placed_by_user: u64,
}

/// A scheduler.
pub struct Sched {
    /// Its backends on our device.
    pub device_backends: Vec<ffi::ggml_backend_t>,
    /// Its CPU backend, the last in its list.
    pub cpu_backend: ffi::ggml_backend_t,
    /// The graph that was split last.
    pub graph: SplitGraph,
    /// Tensors that were put into the graph.
    pub nodes: Option<NodeContext>,
    /// What goes between the two.
    pub hand_over: HandOver,
    /// Recorded on the device backend at the end of each pass.
    pub pass_done: Option<Event>,
}

/// Everything, under one lock.
pub struct Runtime {
    /// What was asked for.
    pub config: Config,
    /// The device, once it was asked for.
    pub device: Option<Device>,
    /// The budget in bytes.
    pub budget: u64,
    /// Free device memory when the device was first asked for, in bytes.
    pub free_at_start: u64,
    /// Models with loaded weights.
    pub models: Vec<Model>,
    /// All units of all models, as the planner sees them.
    pub plan_units: Vec<Unit>,
    /// The same units, loaded.
    pub units: Vec<LoadedUnit>,
    /// Which unit a loaded tensor is.
    pub index: HashMap<usize, UnitId>,
    /// Schedulers by address.
    pub scheds: HashMap<usize, Sched>,
    /// The books.
    pub ledger: Ledger,
    /// Device memory.
    pub arena: Option<Arena>,
    /// The copy lane.
    pub copier: Option<Copier>,
    /// What fetches experts for single tokens, where the plan has such.
    pub fetcher: Option<ExpertFetcher>,
    /// The plan for what the ledger says now; `None` when it has to be made again.
    pub plan: Option<Plan>,
    /// The plan that the arena has the shape of.
    pub carved: Option<Plan>,
    /// Where device tensors point while graphs are only measured.
    pub placeholder: Option<Buffer>,
    /// Grows when graphs that were split before must not be reused.
    pub epoch: u64,
    /// All graphs that were split since the arena took its shape are void already.
    pub graphs_void: bool,
    /// Grows when device addresses change.
    pub carving: u64,
    /// The scheduler whose pass is being submitted.
    pub active_pass: Option<usize>,
    /// The scheduler whose splits read the ring last.
    pub ring_reader: Option<usize>,
    /// What the device's backend takes on its own account.
    pub pools: Pools,
    /// Threads that have a graph which refers to the arena, and those that wait for them.
    pub turns: Turns,
    /// A callback panicked: nothing that is known can be relied on, and nothing is computed.
    pub broken: bool,
    /// What was decided for the context that was made last.
    pub decisions: Decisions,
    /// Whether that was decided for the memory that is there.
    pub settling: Settling,
    /// What the machine does per second, once it was asked for.
    pub measured: Option<Profile>,
    /// What the decisions are predicted to cost.
    pub prediction: Option<Prediction>,
    /// How near the run is to that.
    pub calibrating: Calibrating,
    /// How contexts are retried.
    pub retry: super::admission::Retry,
    /// How the choice of experts comes back from the device.
    pub choices: ChoiceReader,
    /// The saved plan that is followed.
    pub followed: FollowedPlan,
    /// What happened.
    pub outcome: Outcome,
    /// When it happened, if a trace was asked for.
    pub trace: Recorder,
}

// SAFETY: backend pointers in `scheds` are used under the lock, while their scheduler lives.
unsafe impl Send for Runtime {}

impl Runtime {
    /// A runtime that has seen nothing yet.
    pub fn new(config: Config) -> Self {
        let trace = match &config.trace {
            Some(_) => Recorder::on(config.trace_passes, config.debug.trace_events),
            None => Recorder::default(),
        };
        let pools = Pools::new(
            config.reserve,
            config.sim.is_none(),
            config.debug.pools_mib.map(|mib| u64::from(mib) << 20),
        );
        Runtime {
            config,
            pools,
            device: None,
            budget: 0,
            free_at_start: 0,
            models: Vec::new(),
            plan_units: Vec::new(),
            units: Vec::new(),
            index: HashMap::new(),
            scheds: HashMap::new(),
            ledger: Ledger::default(),
            arena: None,
            copier: None,
            fetcher: None,
            plan: None,
            carved: None,
            placeholder: None,
            epoch: 1,
            graphs_void: true,
            carving: 0,
            active_pass: None,
            ring_reader: None,
            turns: Turns::default(),
            broken: false,
            decisions: Decisions::default(),
            settling: Settling::default(),
            measured: None,
            prediction: None,
            calibrating: Calibrating::default(),
            retry: Default::default(),
            choices: ChoiceReader::default(),
            followed: FollowedPlan::default(),
            outcome: Outcome::default(),
            trace,
        }
    }

    /// The device that computes, found on the first call. Logs why there is none.
    pub fn find_device(&mut self) -> Option<Device> {
        if self.device.is_some() {
            return self.device;
        }
        let found = match &self.config.sim {
            Some(_) => Device::first_gpu(Some("SIM0")),
            None => Device::first_gpu(None),
        };
        let Some(device) = found else {
            return self.refuse(
                "no GPU was found: install a driver and a ggml backend for it, simulate one with --pipeshard-sim vram=8G, \
                 or leave out --pipeshard",
            );
        };
        if !device.can_pipeline() {
            return self.refuse(&format!(
                "{} ({}) has no asynchronous copies or events, without which weights cannot be streamed; leave out --pipeshard",
                device.name(),
                device.description()
            ));
        }
        // what every process holds that computes on a real device is no part of the budget
        let opened = match self.config.sim {
            Some(_) => None,
            None => match matrix_library::opened(device) {
                Ok(opened) => Some(opened),
                Err(why) => {
                    return self.refuse(&format!("{why}; free some VRAM, or leave out --pipeshard"))
                }
            },
        };
        let (free, total) = device.memory();
        drop(opened);
        self.free_at_start = free;
        let margin = match self.config.sim {
            Some(_) => 0,
            None => (free / 16).clamp(MARGIN.start, MARGIN.end),
        };
        self.budget = self
            .config
            .budget
            .unwrap_or_else(|| free.saturating_sub(margin));
        if self.budget > free {
            log::warn(&format!(
                "the budget of {} MiB is more than the {} MiB that {} has free; allocations may be refused",
                self.budget >> 20,
                free >> 20,
                device.name()
            ));
        }
        log::info(&format!(
            "{} ({}): budget {} MiB of {} MiB, {} MiB free",
            device.name(),
            device.description(),
            self.budget >> 20,
            total >> 20,
            free >> 20
        ));
        self.outcome.device = Some(format!("{} ({})", device.name(), device.description()));
        self.device = Some(device);
        self.trace.attach(device);
        self.device
    }

    fn refuse<T>(&mut self, why: &str) -> Option<T> {
        log::error(why);
        self.outcome.off(why);
        None
    }

    /// Opens the copy lane and what goes with it, once.
    pub fn open_lanes(&mut self) -> Result<(), String> {
        let Some(device) = self.device else {
            return Err("no device".to_string());
        };
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
            let buffer =
                Buffer::allocate(device.memory_type(), device.alignment()).ok_or_else(refused)?;
            self.placeholder = Some(buffer.holds_weights());
        }
        if self.arena.is_none() {
            let mut arena = Arena::new(device, self.config.debug.fill);
            arena.trace = self.trace.clone();
            self.arena = Some(arena);
        }
        self.note_arena();
        Ok(())
    }

    /// Whether `backend` computes on our device.
    ///
    /// # Safety
    /// `backend` is a live backend.
    pub unsafe fn on_device(&self, backend: ffi::ggml_backend_t) -> bool {
        self.device
            .is_some_and(|d| ffi::ggml_backend_get_device(backend) == d.raw())
    }

    /// Bytes by which device allocations are rounded up.
    pub fn granularity(&self) -> u64 {
        self.config
            .sim
            .as_ref()
            .map_or(DRIVER_GRANULARITY, |spec| spec.granularity.max(1))
    }

    /// Device memory that is held beside the arena: the runtime's own, and weights that the user put there.
    fn own_bytes(&self) -> u64 {
        let placeholder = self
            .placeholder
            .as_ref()
            .map_or(0, |p| p.size().next_multiple_of(self.granularity()));
        let placed_by_user: u64 = self.models.iter().map(|m| m.placed_by_user).sum();
        placeholder + placed_by_user + self.copier.as_ref().map_or(0, |c| c.device_bytes())
    }

    /// What is kept for the backend's own memory.
    pub fn reserve(&self) -> u64 {
        // no card has a pebibyte, and sums do not overflow
        self.own_bytes() + self.pools.reserve().min(1 << 50)
    }

    /// Waits until nothing on the device uses the arena.
    pub fn drain(&mut self) {
        if self.config.debug.dropped_wait == Some(DroppedWait::Drain) {
            return;
        }
        let since = self.trace.since();
        // the end of a scheduler's latest pass: its backends may be gone by now, the event is ours
        for done in self.scheds.values().filter_map(|s| s.pass_done.as_ref()) {
            done.synchronize();
        }
        if let Some(copier) = &self.copier {
            copier.stream().synchronize();
        }
        if let Some(fetcher) = &self.fetcher {
            fetcher.synchronize();
        }
        self.trace.worked(since, HostWork::Drain);
    }

    /// Gives all of the arena's memory back. Graphs that were split before are void.
    pub fn release_arena(&mut self) {
        if self.carved.is_none() {
            return;
        }
        self.drain();
        if let Some(arena) = &mut self.arena {
            arena.release();
        }
        self.units.iter_mut().for_each(LoadedUnit::unplace);
        self.carved = None;
        self.carving += 1;
        self.void_graphs();
        self.note_arena();
    }

    /// Graphs that were split before must not be reused.
    pub fn void_graphs(&mut self) {
        if !std::mem::replace(&mut self.graphs_void, true) {
            self.epoch += 1;
        }
    }

    /// Gives the arena the shape of the current plan, if it has another. Where the device refuses memory that the budget
    /// allows (another program took it), plans again with what there is.
    pub fn carve(&mut self) -> Result<(), String> {
        loop {
            let wanted = self.current_plan().map_err(|e| e.to_string())?.clone();
            if self
                .carved
                .as_ref()
                .is_some_and(|have| same_shape(have, &wanted))
            {
                self.graphs_void = false;
                return Ok(());
            }
            // residents are about to be read
            if let Some(shrunk) = self.shrunk_file() {
                return Err(shrunk.to_string());
            }
            self.drain();
            if self.carved.take().is_some() {
                self.outcome.recarvings += 1;
                self.void_graphs();
            }
            self.carving += 1;
            let (Some(arena), Some(copier)) = (&mut self.arena, &mut self.copier) else {
                return Err("the copy lane is not open".to_string());
            };
            if self.units.iter().any(|u| !u.pinned()) {
                copier.prepare_staging()?;
            }
            let since = self.trace.since();
            let result = arena.carve(&wanted, &mut self.units, copier);
            self.trace.worked(since, HostWork::Carve);
            self.note_arena();
            match result {
                Ok(()) => {
                    self.graphs_void = false;
                    self.outcome.set_minimum(wanted.minimum_budget);
                    self.carved = Some(wanted);
                    self.note_dropped_residents();
                    return Ok(());
                }
                Err(error) => self.make_do(&wanted, &error.to_string())?,
            }
        }
    }

    /// Why the device does nothing any more. Only the simulated one says so; others end the process.
    pub fn device_failure(&self) -> Option<String> {
        self.config.sim.as_ref()?;
        let device = self.device?;
        let why = pipeshard_sim::failure(device.raw())?;
        let name = device.name();
        Some(format!(
            "{name} failed: {why}. Nothing can be computed on it any more; restart the program"
        ))
    }

    /// A file that has become shorter since its weights were loaded.
    pub fn shrunk_file(&self) -> Option<Shrunk> {
        self.models.iter().find_map(|model| model.files.shrunk())
    }

    /// Whether [`Runtime::carve`] would change the arena's shape.
    pub fn will_carve(&mut self) -> bool {
        if self.current_plan().is_err() {
            return false;
        }
        match (&self.carved, &self.plan) {
            (Some(have), Some(wanted)) => !same_shape(have, wanted) || self.fetches_otherwise(),
            _ => true,
        }
    }

    /// A scheduler is about to be freed. Its owner has waited for its work, and may have freed the backends already.
    pub fn sched_freed(&mut self, sched: usize) {
        self.scheds.remove(&sched);
        if self.ring_reader == Some(sched) {
            self.ring_reader = None;
        }
        self.trace.sched_freed(sched);
        self.sched_gone(sched);
    }

    /// After a refused allocation: lowers the budget to what the device still has, or gives up.
    fn make_do(&mut self, wanted: &Plan, why: &str) -> Result<(), String> {
        self.units.iter_mut().for_each(LoadedUnit::unplace);
        if let Some(failure) = self.device_failure() {
            return Err(failure);
        }
        let free = self.device.map_or(0, |d| d.memory().0);
        let held = self.ledger.now().total();
        let lowered =
            (held + free.saturating_sub(free / 32)).min(wanted.ledger.total().saturating_sub(1));
        log::warn(&format!(
            "{why}; going on with a budget of {} MiB",
            lowered >> 20
        ));
        self.outcome.note_error(why.to_string());
        self.budget = lowered;
        self.replan();
        match self.current_plan() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{why}, and {error}")),
        }
    }

    /// Books what the arena holds.
    pub fn note_arena(&mut self) {
        if let Some(arena) = &self.arena {
            self.ledger
                .set_arena(arena.resident_bytes(), arena.slot_bytes());
        }
        self.ledger
            .set_other(self.own_bytes() + self.fetcher_bytes() + self.pools.held());
    }
}

/// Whether two plans put the same things in the same places.
fn same_shape(a: &Plan, b: &Plan) -> bool {
    a.chunks == b.chunks && a.ring == b.ring && a.tiers == b.tiers
}
