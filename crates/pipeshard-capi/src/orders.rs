//! What the sessions of a device have to do when a budget needs it. One thread gives orders, all sessions follow them: those that do
//! nothing by that thread itself, those that evaluate or generate at the next place where nothing is lost ([`Orders::after`]), on their
//! own threads. No order is given while all is well, and looking costs one load.

use crate::failure::Failure;
use crate::locks::locked;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

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

    /// Gives another order, or says that there is none any more. Its number.
    pub fn give(&self, order: Option<Order>) -> u64 {
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
