//! Another budget. Where moving weights alone does not reach it, contexts are made again within it, and conversations go through host
//! memory.

use crate::boundary::{call, read, write};
use crate::device::{failure_of, CDevice, Device, DEVICES};
use crate::failure::{CError, Code, Failure};
use crate::locks::locked;
use crate::orders::{Follower, Order, Orders};
use crate::types::{BudgetRequest, Limits};
use runtime::hook::{control, log};
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// `pipeshard_budget_request.allow`: contexts may be made again.
pub const ROUND_TRIP: u32 = 1;
/// The same: where even that is not enough, everything is given back.
pub const SLEEP: u32 = 2;

/// Orders, until they are over: sessions go on then.
struct Command<'d> {
    orders: &'d Orders,
    followers: Vec<Box<dyn Follower + 'd>>,
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        self.orders.give(None);
    }
}

impl Command<'_> {
    /// All follow, but those that slept before. The first of what went wrong.
    fn give(&self, order: Order) -> Result<(), Failure> {
        let number = self.orders.give(Some(order));
        let awake = self.followers.iter().filter(|f| !f.slept());
        // all of them, whatever becomes of the first
        let followed: Vec<_> = awake.map(|f| f.follow(number, order)).collect();
        followed.into_iter().collect()
    }
}

/// How long it took, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// Until all sessions had made way.
    pub waited_ms: f64,
    /// From there on.
    pub moved_ms: f64,
}

/// Another budget, within which all contexts are made again. `allow`: see [`ROUND_TRIP`].
///
/// # Errors
/// Sessions did not make way in time, or there is no room for them within it: nothing has changed then.
pub fn round_trip(
    device: &Device,
    budget: u64,
    patience: Option<Duration>,
    allow: u32,
) -> Result<Took, Failure> {
    let begin = Instant::now();
    let until = patience.and_then(|patience| begin.checked_add(patience));
    let _one = locked(&device.trip);
    let sessions = device.sessions();
    if sessions.iter().any(|session| session.is_used_here()) {
        return Err(Failure::new(
            Code::Busy,
            "a session of this thread generates, whose context would have to be made again: set the budget on another thread, or when the \
             answer is over",
        ));
    }
    let mut command = Command {
        orders: &device.orders,
        followers: Vec::new(),
    };
    // passes that may be repeated end early
    let wanted = patience.map(|_| device.memory_is_wanted().wait());
    let number = device.orders.give(Some(Order::Sleep));
    for session in &sessions {
        command.followers.push(session.follow(number, until)?);
    }
    drop(wanted);
    let waited_ms = begin.elapsed().as_secs_f64() * 1e3;
    let begin = Instant::now();
    let before = device.gate().plain().accounts.budget();
    let within = |budget| {
        command.give(Order::Sleep)?;
        change(device, budget)?;
        command.give(Order::Wake)
    };
    let made = match within(budget) {
        Err(why) if allow & SLEEP != 0 && is_for_want_of_memory(&why) => {
            command.give(Order::Sleep)?;
            give_back(device)?;
            log::after(|| control::set_budget_asleep(device.gate(), budget));
            Ok(())
        }
        Err(why) => {
            let why = with_minimum(why, within);
            within(before)?;
            Err(why)
        }
        Ok(()) => Ok(()),
    };
    made.map(|()| Took {
        waited_ms,
        moved_ms: begin.elapsed().as_secs_f64() * 1e3,
    })
}

/// The same with a minimum that works. What contexts take is known when they are made: so it is tried.
fn with_minimum(why: Failure, within: impl Fn(u64) -> Result<(), Failure>) -> Failure {
    /// Weights, compute buffers, an encoder: each may be refused in turn.
    const TRIES: u32 = 4;
    let mut named = why;
    for _ in 0..TRIES {
        match within(named.minimum) {
            Err(more) if more.minimum > named.minimum => named = more,
            _ => break,
        }
    }
    named
}

fn is_for_want_of_memory(why: &Failure) -> bool {
    matches!(why.code, Code::BudgetTooSmall | Code::NoMemory)
}

/// While all sleep.
fn change(device: &Device, budget: u64) -> Result<(), Failure> {
    give_back(device)?;
    log::after(|| control::change_budget(device.gate(), budget, None, None))
        .map(drop)
        .map_err(|why| device.not_changed(&why))
}

fn give_back(device: &Device) -> Result<(), Failure> {
    device.give_back().map_err(|why| device.not_changed(&why))
}

fn set_budget(device: &Device, request: &BudgetRequest) -> Result<Limits, Failure> {
    if request.budget == 0 {
        return Err(Failure::invalid("a budget of 0 bytes is none"));
    }
    if request.allow & !(ROUND_TRIP | SLEEP) != 0 || request.reserved != 0 {
        return Err(Failure::new(
            Code::Version,
            format!("allow {:#x} is not known to this library", request.allow),
        ));
    }
    let begin = Instant::now();
    let patience =
        (request.deadline_ms > 0).then(|| Duration::from_millis(request.deadline_ms.into()));
    let wanted = Some(device.memory_is_wanted());
    let changed =
        log::after(|| control::change_budget(device.gate(), request.budget, patience, wanted));
    let is_trip = match &changed {
        Ok(_) => device
            .sessions()
            .iter()
            .any(|s| s.made_within() < request.budget),
        Err(why) => failure_of(why).code == Code::BudgetTooSmall,
    };
    let trip = request.allow != 0 && is_trip;
    let took = match (changed, trip) {
        (Ok(changed), false) => Took {
            waited_ms: changed.waited_ms,
            moved_ms: changed.moved_ms,
        },
        (Err(why), false) => return Err(device.not_changed(&why)),
        (_, true) => {
            let left = patience.map(|patience| patience.saturating_sub(begin.elapsed()));
            round_trip(device, request.budget, left, request.allow)?
        }
    };
    Ok(Limits {
        waited_ms: took.waited_ms,
        moved_ms: took.moved_ms,
        ..device.limits()
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_set_budget(
    device: *mut CDevice,
    request: *const BudgetRequest,
    now: *mut Limits,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if request.is_null() {
            return Err(Failure::invalid("request is NULL"));
        }
        let device = DEVICES.get(device, "device")?;
        let limits = set_budget(&device, &read(request, "pipeshard_budget_request")?)?;
        write(now, &limits, "pipeshard_limits")
    })
}
