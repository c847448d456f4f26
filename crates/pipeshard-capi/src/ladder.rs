//! A budget that moving weights alone does not reach: contexts are made again within it, and conversations go through host memory.
//!
//! One thread gives orders, all sessions follow them: those that do nothing by that thread itself, those that evaluate or generate at
//! the next place where nothing is lost ([`Orders::after`]), on their own threads. No order is given while all is well, and looking costs
//! one load.

use crate::device::Device;
use crate::failure::{Code, Failure};
use crate::locks::locked;
use runtime::hook::{control, log};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `pipeshard_budget_request.allow`: contexts may be made again.
pub const ROUND_TRIP: u32 = 1;
/// The same: where even that is not enough, everything is given back.
pub const SLEEP: u32 = 2;

/// What sessions have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Give their memory back.
    Sleep,
    /// Take it again.
    Wake,
}

#[derive(Default)]
struct Now {
    number: u64,
    order: Option<Order>,
}

/// What the sessions of a device have to do now.
#[derive(Default)]
pub struct Orders {
    given: AtomicBool,
    now: Mutex<Now>,
    changed: Condvar,
}

impl Orders {
    /// Reports whether there may be an order.
    pub fn are_given(&self) -> bool {
        self.given.load(Ordering::Relaxed)
    }

    /// Waits for another order than that number. None: there is none any more.
    pub fn after(&self, number: u64) -> Option<(u64, Order)> {
        let mut now = locked(&self.now);
        loop {
            let order = now.order?;
            if now.number != number {
                return Some((now.number, order));
            }
            now = self
                .changed
                .wait(now)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, order: Option<Order>) -> u64 {
        let mut now = locked(&self.now);
        now.number += 1;
        now.order = order;
        self.given.store(order.is_some(), Ordering::Relaxed);
        self.changed.notify_all();
        now.number
    }
}

/// A session that follows orders.
pub trait Follower {
    /// It slept when it was asked first.
    fn slept(&self) -> bool;

    /// Follows an order, or waits until it was followed.
    ///
    /// # Errors
    /// Why it could not be.
    fn follow(&self, number: u64, order: Order) -> Result<(), Failure>;
}

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
