//! What one device has, and who holds how much of it.
//!
//! Owns the budget, the ledger and the reserve for the backend's own memory. The answers ask it before memory is taken and tell it
//! afterwards; it allocates nothing and does not know what plans are made of its figures.

pub mod backend_reserve;
mod device_check;
pub mod expected;
mod watch;

use crate::arena::ledger::{Holdings, Ledger};
use crate::hook::config::Config;
use crate::hook::log;
use crate::lanes::choice::choose;
use crate::lanes::device::Device;
use crate::lanes::driver_memory::{DriverMemory, MemorySource, SimulatedMemory};
use crate::lanes::matrix_library;
use crate::report::MemoryHeld;
use crate::share::shares::Sharing;
use backend_reserve::{BackendReserve, Seen, LOOKS};
use device_check::DeviceCheck;
use expected::Expected;
use pipeshard_plan::profile::Op;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use watch::Watch;

/// The driver's allocation granularity on real devices (cudaMalloc hands out 2 MiB pages).
const DRIVER_GRANULARITY: u64 = 2 << 20;
/// Left free on a real device when no budget is given: a sixteenth of what is free, within these bounds.
const MARGIN: Range<u64> = 256 << 20..1 << 30;
/// Where no budget is given it is a multiple of this: the same command has the same one, though other programs hold a little more or
/// less.
const STEP: u64 = 256 << 20;

/// The budget where none is given, by what is free.
fn budget_of(free: u64, real: bool) -> u64 {
    if !real {
        return free;
    }
    let margin = (free / 16).clamp(MARGIN.start, MARGIN.end);
    let room = free.saturating_sub(margin);
    // a card that has hardly anything free is not refused for a step
    match room / STEP * STEP {
        0 => room,
        steps => steps,
    }
}

/// One device's memory.
pub struct Accounts {
    config: Arc<Config>,
    /// The device, once it was asked for.
    device: Option<Device>,
    /// In bytes.
    budget: u64,
    /// What was asked for, or would be kept to if the device had not refused it.
    wanted_budget: u64,
    /// Looks in a row that found room for a budget that was lowered.
    room: u32,
    /// What the driver says of the device's memory, once the device was asked for.
    watch: Option<Watch>,
    /// Who holds how much.
    pub ledger: Ledger,
    /// What the device's backend takes on its own account.
    pub reserve: BackendReserve,
    /// Encoders of images and sound that are about to be loaded.
    pub expected: Expected,
    /// Operations of an encoder that was announced, which are measured with the language model's.
    pub of_encoder: Vec<Op>,
    /// Bytes of the weights of encoders that the device addresses in host memory, or will.
    pub addressed_of_encoders: u64,
    own: u64,
    check: DeviceCheck,
    /// Of several processes' total, if the budget is a share of one.
    share: Option<Arc<Sharing>>,
}

/// What the device's backend was seen to hold on its own account.
#[derive(Debug, Clone, Copy)]
pub enum BackendHolds {
    /// It was not looked at: that is a call to the driver.
    Unknown,
    /// No more than was kept for it, or than is known.
    Enough,
    /// More than was kept for it.
    TooMuch,
    /// Less than was kept for it, which is kept no longer; or the device has room again for what it once refused.
    Less,
}

impl Accounts {
    /// No device was asked for yet.
    pub fn new(config: Arc<Config>) -> Self {
        let mib = |mib| u64::from(mib) << 20;
        let real = config.sim.is_none();
        let mut reserve =
            BackendReserve::new(config.reserve, real, config.debug.pools_mib.map(mib));
        if config.debug.others_mib.is_some() {
            reserve.watch();
        }
        Accounts {
            config,
            device: None,
            budget: 0,
            wanted_budget: 0,
            room: 0,
            watch: None,
            ledger: Ledger::default(),
            reserve,
            expected: Expected::default(),
            of_encoder: Vec::new(),
            addressed_of_encoders: 0,
            own: 0,
            check: DeviceCheck::default(),
            share: None,
        }
    }

    /// The budget will be a share.
    pub fn set_share(&mut self, share: Arc<Sharing>) {
        self.share = Some(share);
    }

    /// What the budget is a share of.
    pub fn share(&self) -> Option<Arc<Sharing>> {
        self.share.clone()
    }

    /// The device that computes, once it was found.
    pub fn device(&self) -> Option<Device> {
        self.device
    }

    /// The device that computes, found on the first call: that, and whether it was found now. Else why there is none.
    pub fn find_device(&mut self) -> Result<(Device, bool), String> {
        if let Some(device) = self.device {
            return Ok((device, false));
        }
        let mut devices = Device::gpus();
        if self.config.sim.is_some() {
            devices.retain(|device| device.registry() == "SIM");
        }
        if let Some(name) = &self.config.device {
            devices.retain(|device| device.name() == *name);
            if devices.is_empty() {
                return Err(format!("no GPU has the name {name}"));
            }
        }
        let (device, usable) = choose(&devices, self.config.devices)?;
        if usable > 1 {
            log::info(&format!(
                "{usable} GPUs were found, and {} is used; hide it from this process (CUDA_VISIBLE_DEVICES) to use another",
                device.name()
            ));
        }
        if !device.can_pipeline() {
            return Err(format!(
                "{} ({}) has no asynchronous copies or events, without which weights cannot be streamed; leave out --pipeshard",
                device.name(),
                device.description()
            ));
        }
        // what every process holds on a real device is not part of the budget
        let opened =
            match self.config.sim {
                Some(_) => None,
                None => {
                    let opened = matrix_library::opened(device);
                    Some(opened.map_err(|why| {
                        format!("{why}; free some VRAM, or leave out --pipeshard")
                    })?)
                }
            };
        let total = device.memory().1;
        let watch = Watch::start(self.source(device));
        drop(opened);
        let free = watch.free_at_start();
        self.watch = Some(watch);
        let stated = self.config.budget;
        self.budget = stated.unwrap_or_else(|| budget_of(free, self.is_real()));
        if let Some(share) = &self.share {
            self.budget = share.grant(self.budget)?;
            let (budget, total) = (self.budget >> 20, share.total() >> 20);
            log::info(&format!(
                "{budget} MiB of the {total} MiB that are shared are left for this process"
            ));
        }
        self.wanted_budget = self.budget;
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
        self.device = Some(device);
        Ok((device, true))
    }

    /// Who tells how much of the device's memory is gone.
    fn source(&self, device: Device) -> Box<dyn MemorySource> {
        let others = self.config.debug.others_mib.unwrap_or(0);
        match self.config.sim {
            Some(_) => Box::new(SimulatedMemory::of(device, u64::from(others) << 20)),
            None => Box::new(DriverMemory::of(device)),
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

    /// The budget in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Another budget. Returns the one before.
    pub fn set_budget(&mut self, bytes: u64) -> u64 {
        self.wanted_budget = bytes;
        std::mem::replace(&mut self.budget, bytes)
    }

    /// What is held now, by class.
    pub fn held(&self) -> MemoryHeld {
        let now = self.ledger.now();
        MemoryHeld {
            resident: now.resident,
            kv: now.kv,
            slots: now.slots,
            scratch: now.scratch,
            vision: now.vision,
            other: now.other,
        }
    }

    /// Another budget for a question, which is not kept to. Returns the one before.
    pub fn try_budget(&mut self, bytes: u64) -> u64 {
        std::mem::replace(&mut self.budget, bytes)
    }

    /// Bytes that this process has taken of the device since it was opened, by the driver's figure.
    pub fn taken_by_driver(&mut self) -> u64 {
        let booked = self.ledger.now().total();
        let booked = booked.saturating_sub(self.reserve.held());
        self.watch.as_mut().map_or(0, |watch| watch.taken(booked))
    }

    /// Bytes that have to be within the budget: those that are held or reserved, or what the driver says of this process, if that is more.
    pub fn counted(&mut self) -> u64 {
        let knows = self.watch.as_ref().is_some_and(Watch::knows_processes);
        let by_driver = match knows {
            true => self.taken_by_driver(),
            false => 0,
        };
        self.spoken_for().max(by_driver)
    }

    /// Bytes by which device allocations are rounded up.
    pub fn granularity(&self) -> u64 {
        let simulated = self.config.sim.as_ref();
        simulated.map_or(DRIVER_GRANULARITY, |spec| spec.granularity.max(1))
    }

    /// What buffers of so many bytes in all take: as few as the device allows, each rounded up.
    pub fn rounded(&self, bytes: u64) -> u64 {
        let largest = self.device.map_or(u64::MAX, |d| d.largest_buffer());
        rounded(bytes, self.granularity(), largest)
    }

    /// What is kept free of weights, KV and compute buffers: the tenants' own memory, and the backend's.
    pub fn reserved(&self) -> u64 {
        // no card has a pebibyte, and sums do not overflow
        self.own + self.reserve.reserve().min(1 << 50)
    }

    /// What is kept free for encoders of images and sound: what they hold for good, or are expected to.
    pub fn for_encoders(&self) -> u64 {
        self.ledger.encoders_for_good().max(self.expected.total())
    }

    /// Reports whether a real device computes, whose backend takes memory on its own account.
    pub fn is_real(&self) -> bool {
        self.config.sim.is_none()
    }

    /// Notes what the tenant holds now.
    pub fn note(&mut self, holds: Holdings) {
        if let Some((residents, slots)) = holds.arena {
            self.ledger.set_arena(residents, slots);
        }
        self.own = holds.own;
        let other = holds.own + holds.fetched + self.reserve.held();
        self.ledger.set_other(other);
    }

    /// What is held, and what the backend is going to take.
    pub fn spoken_for(&self) -> u64 {
        // no card has a pebibyte, and sums do not overflow
        self.ledger.now().total() + self.reserve.unheld().min(1 << 50)
    }

    /// Looks whether a simulated device has memory taken that is not in the ledger.
    pub fn check_device(&mut self) {
        if let Some(device) = self.device {
            self.check.look(device, &self.ledger, self.reserve.held());
        }
    }

    /// What [`Self::check_device`] found: the largest excess that was ever seen, and the exact difference now, in bytes. Nothing for
    /// a real device.
    pub fn unaccounted(&self) -> Option<(u64, i64)> {
        let held = self.reserve.held();
        self.check.figures(self.device?, &self.ledger, held)
    }

    /// Bytes that are neither held nor reserved.
    pub fn unused(&self) -> u64 {
        self.budget.saturating_sub(self.spoken_for())
    }

    /// A pass of `sched` has ended: looks what the backend took on its own account, seldom.
    pub fn look_at_backend(&mut self, sched: usize) -> BackendHolds {
        if !self.reserve.pass_ended(sched, Instant::now()) {
            return BackendHolds::Unknown;
        }
        let Some(watch) = &mut self.watch else {
            return BackendHolds::Unknown;
        };
        let beside = self.ledger.now().total();
        let beside = beside.saturating_sub(self.reserve.held());
        let held = watch.taken(beside) + self.reserve.acted();
        let seen = self.reserve.measure(held.saturating_sub(beside));
        match (seen, self.raise_budget()) {
            (Seen::More, _) => BackendHolds::TooMuch,
            (Seen::Less, _) | (Seen::Enough, true) => BackendHolds::Less,
            (Seen::Enough, false) => BackendHolds::Enough,
        }
    }

    /// What the device has for this process now, by what the driver calls free.
    fn there_is(&mut self) -> u64 {
        let free = self.watch.as_mut().map_or(0, Watch::free);
        self.ledger.now().total() + free.saturating_sub(free / 32)
    }

    /// Reports whether a budget that was lowered is raised again, as others have given memory back for some time.
    fn raise_budget(&mut self) -> bool {
        if self.budget >= self.wanted_budget {
            return false;
        }
        let possible = self.there_is().min(self.wanted_budget);
        // a few residents are not worth their copies
        self.room = match possible.saturating_sub(self.budget) >= self.wanted_budget / 16 {
            true => self.room + 1,
            false => 0,
        };
        if self.room < LOOKS {
            return false;
        }
        (self.room, self.budget) = (0, possible);
        log::info(&format!(
            "memory is available again: continuing with a budget of {} MiB",
            possible >> 20
        ));
        true
    }

    /// The device refused memory that the budget allows: the budget becomes what there is. `wanted`: what was to be held in all.
    pub fn lower_budget(&mut self, wanted: u64) -> u64 {
        let there_is = self.there_is();
        self.room = 0;
        self.budget = there_is.min(wanted.saturating_sub(1));
        self.budget
    }
}

/// What buffers of `bytes` in all take, where none is larger than `largest` and each is rounded up to `granularity`.
fn rounded(bytes: u64, granularity: u64, largest: u64) -> u64 {
    let further = bytes.div_ceil(largest.max(1)).saturating_sub(1);
    let rounded = bytes.checked_next_multiple_of(granularity).unwrap_or(bytes);
    rounded.saturating_add(further.saturating_mul(granularity))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_budget_that_is_not_given_depends_little_on_what_others_hold() {
        const GIB: u64 = 1 << 30;
        assert_eq!(budget_of(8 * GIB, true), 15 * GIB / 2);
        assert_eq!(budget_of(8 * GIB + 100 * MIB, true), 15 * GIB / 2);
        assert_eq!(budget_of(300 * MIB, true), 44 * MIB);
        assert_eq!(budget_of(0, true), 0);
        assert_eq!(budget_of(12345, false), 12345);
    }

    #[test]
    fn every_buffer_is_rounded_up() {
        assert_eq!(rounded(5 * MIB, 2 * MIB, u64::MAX), 6 * MIB);
        assert_eq!(rounded(0, 2 * MIB, u64::MAX), 0);
        // three buffers; the last one is short
        assert_eq!(rounded(9 * MIB, 2 * MIB, 4 * MIB), 14 * MIB);
    }

    /// A card with this much free memory, at one check after the other; the last value comes first.
    struct Free(Vec<u64>);

    impl MemorySource for Free {
        fn held_by_process(&mut self) -> Result<u64, String> {
            Err("the driver does not say".to_owned())
        }

        fn free(&mut self) -> u64 {
            self.0.pop().unwrap_or_default()
        }
    }

    /// On a simulated card, with a backend that is expected to take 32 MiB.
    fn accounts() -> Accounts {
        let config = Config {
            reserve: Some(32 * MIB),
            ..Config::default()
        };
        let mut accounts = Accounts::new(Arc::new(config));
        accounts.set_budget(100 * MIB);
        accounts
    }

    #[test]
    fn what_the_backend_will_take_is_nobody_elses() {
        let mut accounts = accounts();
        accounts.note(Holdings {
            arena: Some((40 * MIB, 0)),
            own: 8 * MIB,
            fetched: 0,
        });
        assert_eq!(accounts.unused(), 20 * MIB);
        // it has taken half of it
        accounts.reserve.measure(16 * MIB);
        accounts.note(Holdings {
            arena: Some((40 * MIB, 0)),
            own: 8 * MIB,
            fetched: 0,
        });
        assert_eq!(accounts.unused(), 20 * MIB);
    }

    #[test]
    fn a_budget_that_another_program_lowered_is_raised_when_it_has_gone() {
        let mut accounts = accounts();
        accounts.ledger.set_arena(40 * MIB, 0);
        let told = |free: &[u64]| -> Box<dyn MemorySource> {
            Box::new(Free(free.iter().map(|mib| mib * MIB).rev().collect()))
        };
        // at the start, when memory is refused, and at each look
        accounts.watch = Some(Watch::start(told(&[
            160, 32, 32, 32, 64, 64, 64, 64, 64, 64,
        ])));
        assert_eq!(accounts.lower_budget(100 * MIB), 71 * MIB);
        let raised: Vec<bool> = (0..6).map(|_| accounts.raise_budget()).collect();
        assert_eq!(raised, [false, false, false, false, true, false]);
        assert_eq!(accounts.budget(), 100 * MIB);
        // another budget is another question
        accounts.set_budget(50 * MIB);
        assert!(!accounts.raise_budget());
    }
}
