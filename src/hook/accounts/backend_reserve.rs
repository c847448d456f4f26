//! Owns the expectation of what the backend of a real device takes on its own account: kernels' code, page tables for page-locked memory, and a pool for
//! converted activations and KV cache. None of it is announced, so it is expected from the shapes, then noticed by asking the driver.

use crate::hook::pool_estimate::widest_product;
use pipeshard_model::inventory::Inventory;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kernels' code, loaded when first used, streams and captured graphs, beyond what the device's context and matrix library hold,
/// which are not part of the budget: 59 to 81 MiB were seen on an H100 with models of 32, 48 and 64 layers, in addition to the
/// page tables and pools below. Too much costs a few residents, too little a budget that is overrun until it is noticed, and
/// residents that move in mid-prompt.
const CODE: u64 = 112 << 20;
/// The device's page tables have so many bytes for each page of host memory that it addresses, and lie in its own memory: 32 MiB
/// were seen to go while 16 GB were page-locked.
const PAGE: u64 = 4096;
const PAGE_TABLE_ENTRY: u64 = 8;
/// A pool grows in steps, beyond what the widest product takes: 1.06 times as much was seen at 512, 2,048 and 4,096 tokens.
const POOL_EIGHTHS: u64 = 9;

/// Each context has a matrix library of its own, with a workspace of so many bytes on Hopper (4 MiB on older cards). The first one's
/// is in [`CODE`].
pub const WORKSPACE: u64 = 32 << 20;
/// The driver is asked at least so often while passes run.
const PERIOD: Duration = Duration::from_secs(2);
/// So many looks in a row have to find less before it counts as given back: a pool is filled by a context's widest pass, not by its
/// first.
pub(super) const LOOKS: u32 = 3;

/// What is expected of one context.
#[derive(Debug, Default, Clone, Copy)]
struct OfContext {
    /// For the widest product of its graphs.
    product: u64,
    /// Passes of these graphs.
    passes: u64,
}

/// Looks in a row that found less than was made room for.
#[derive(Debug, Default, Clone, Copy)]
struct Low {
    looks: u32,
    /// The most of them.
    most: u64,
}

/// What the driver was seen to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that changes anything.
    Enough,
    /// More than ever before, and more than was reserved.
    More,
    /// Less than was made room for is held for some time.
    Less,
}

/// What is kept for the backend's own memory, in bytes.
#[derive(Debug, Default, Clone)]
pub struct BackendReserve {
    /// What the user set; nothing is measured then.
    fixed: Option<u64>,
    /// A real device, whose backend has reserve.
    real: bool,
    /// A simulated card's memory is looked at as well.
    watched: bool,
    /// Bytes that a simulated card's backend claims to take, after the first pass.
    acted: Option<u64>,
    /// Host memory that the device addresses.
    page_locked: u64,
    /// What each context, by its scheduler, is expected to take.
    contexts: BTreeMap<usize, OfContext>,
    /// The widest product of a context that is about to be made.
    coming: u64,
    /// What was measured when it was more than expected and there was room for it.
    made_room_for: u64,
    /// What was measured last.
    held: u64,
    /// The most that was measured, until less was for some time.
    most: u64,
    low: Low,
    looked: Option<Instant>,
}

impl BackendReserve {
    /// `fixed`: what the user set; `real`: the device is not simulated; `acted`: what it acts as if it took, if it is.
    pub fn new(fixed: Option<u64>, real: bool, acted: Option<u64>) -> Self {
        let acted = acted.filter(|_| !real);
        BackendReserve {
            fixed,
            real,
            watched: real || acted.is_some(),
            acted,
            ..BackendReserve::default()
        }
    }

    /// The device's memory is looked at, simulated or not.
    pub fn watch(&mut self) {
        self.watched = true;
    }

    /// So much host memory is page-locked for the device.
    pub fn expect_page_locked(&mut self, bytes: u64) {
        self.page_locked = bytes;
    }

    /// A graph of this scheduler was seen whose widest product needs so much.
    pub fn expect_product(&mut self, sched: usize, bytes: u64) {
        let coming = &mut self.coming;
        let first = || OfContext {
            product: std::mem::take(coming),
            passes: 0,
        };
        let context = self.contexts.entry(sched).or_insert_with(first);
        context.product = context.product.max(bytes);
    }

    /// A context will be made, which computes ubatches of so many tokens of this model.
    pub fn expect_ubatch(&mut self, inventory: &Inventory, ubatch: u32) {
        self.coming = widest_product(inventory, ubatch);
    }

    /// No context is about to be made.
    pub fn nothing_comes(&mut self) {
        self.coming = 0;
    }

    /// A scheduler is gone, and its context's pool with it. One that has never run makes way for another try.
    pub fn context_gone(&mut self, sched: usize) {
        if let Some(gone) = self.contexts.remove(&sched) {
            if gone.passes == 0 {
                self.coming = self.coming.max(gone.product);
            }
        }
    }

    /// No context is left, and a pool goes with its context.
    pub fn contexts_gone(&mut self) {
        self.contexts.clear();
        (self.coming, self.held) = (0, 0);
    }

    /// A pass of `sched` has ended. True when it is time to ask the driver, which takes a moment: often while a context is new, and
    /// then from time to time.
    pub fn pass_ended(&mut self, sched: usize, now: Instant) -> bool {
        let context = self.contexts.entry(sched).or_default();
        context.passes += 1;
        let since = self.looked.map(|looked| now.duration_since(looked));
        let due = context.passes.is_power_of_two() || since.is_none_or(|since| since >= PERIOD);
        let looks = self.watched && due;
        if looks {
            self.looked = Some(now);
        }
        looks
    }

    /// The driver reports that this much is held in addition to what is accounted for.
    pub fn measure(&mut self, bytes: u64) -> Seen {
        self.held = bytes;
        let more = bytes > self.most;
        self.most = self.most.max(bytes);
        if bytes > self.most - self.most / 8 {
            self.low = Low::default();
        } else {
            self.low.looks += 1;
            self.low.most = self.low.most.max(bytes);
        }
        if self.fixed.is_some() {
            return Seen::Enough;
        }
        if more && bytes > self.reserve() {
            return Seen::More;
        }
        if self.low.looks < LOOKS {
            return Seen::Enough;
        }
        let low = std::mem::take(&mut self.low);
        self.most = low.most;
        let before = self.reserve();
        self.made_room_for = self.made_room_for.min(low.most);
        match self.reserve() < before {
            true => Seen::Less,
            false => Seen::Enough,
        }
    }

    /// Reserves as much as was measured from here on. Answers what [`Self::take_room_back`] wants to know.
    pub fn make_room(&mut self) -> u64 {
        let most = self.made_room_for.max(self.most);
        std::mem::replace(&mut self.made_room_for, most)
    }

    /// It does not fit.
    pub fn take_room_back(&mut self, before: u64) {
        self.made_room_for = before;
    }

    /// What the planner keeps free.
    pub fn reserve(&self) -> u64 {
        match (self.fixed, self.real) {
            (Some(fixed), _) => fixed,
            (None, true) => {
                let known = self.contexts.values().map(|context| context.product);
                let coming = Some(self.coming).filter(|&product| product > 0);
                let products: Vec<u64> = known.chain(coming).collect();
                expected(self.page_locked, &products).max(self.made_room_for)
            }
            (None, false) => self.made_room_for,
        }
    }

    /// What of it the backend does not hold by now.
    pub fn unheld(&self) -> u64 {
        self.reserve().saturating_sub(self.held)
    }

    /// What is expected for ubatches of `ubatch` tokens of this model, beyond what is kept free by now.
    pub fn expected_beyond(&self, inventory: &Inventory, ubatch: u32) -> u64 {
        match (self.fixed, self.real) {
            (None, true) => expected_for(inventory, ubatch).saturating_sub(self.reserve()),
            _ => 0,
        }
    }

    /// What was measured last; 0 before a context's first pass.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What a simulated card acts as if its backend held.
    pub fn acted(&self) -> u64 {
        let ran = self.contexts.values().any(|context| context.passes > 1);
        self.acted.filter(|_| ran).unwrap_or(0)
    }
}

/// `products`: the widest product of each context.
fn expected(page_locked: u64, products: &[u64]) -> u64 {
    let tables = page_locked / PAGE * PAGE_TABLE_ENTRY;
    let pool = |product: &u64| (product / 8).saturating_mul(POOL_EIGHTHS);
    let further = products.len().saturating_sub(1) as u64;
    let own = CODE + tables + further * WORKSPACE;
    products.iter().map(pool).fold(own, u64::saturating_add)
}

/// What is expected of a real card for a model that is not loaded, with ubatches of `ubatch` tokens, in bytes.
pub fn expected_for(inventory: &Inventory, ubatch: u32) -> u64 {
    expected(
        inventory.weight_bytes(),
        &[widest_product(inventory, ubatch)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_simulated_gpu_has_no_pools() {
        let mut reserve = BackendReserve::new(None, false, None);
        reserve.expect_product(1, 1 << 30);
        reserve.expect_page_locked(1 << 40);
        assert_eq!(reserve.reserve(), 0);
    }

    #[test]
    fn more_than_expected_is_noticed_once() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(1, 32 * MIB);
        assert_eq!(reserve.reserve(), CODE + 36 * MIB);
        assert_eq!(reserve.measure(CODE), Seen::Enough);
        assert_eq!(reserve.measure(CODE + 60 * MIB), Seen::More);
        assert_eq!(reserve.measure(CODE + 60 * MIB), Seen::Enough);
        assert_eq!(reserve.reserve(), CODE + 36 * MIB);
        let before = reserve.make_room();
        assert_eq!(reserve.reserve(), CODE + 60 * MIB);
        reserve.take_room_back(before);
        assert_eq!(reserve.reserve(), CODE + 36 * MIB);
    }

    #[test]
    fn what_was_given_back_is_given_back() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(1, 8 * MIB);
        let usual = reserve.reserve();
        // a game begins
        assert_eq!(reserve.measure(4096 * MIB), Seen::More);
        reserve.make_room();
        assert_eq!(reserve.reserve(), 4096 * MIB);
        // a single look may come between two passes of its
        assert_eq!(reserve.measure(100 * MIB), Seen::Enough);
        assert_eq!(reserve.measure(4096 * MIB), Seen::Enough);
        // and ends
        let looks = [(); 3].map(|()| reserve.measure(100 * MIB));
        assert_eq!(looks, [Seen::Enough, Seen::Enough, Seen::Less]);
        assert_eq!(reserve.reserve(), usual);
        // the next one is noticed as the first was
        assert_eq!(reserve.measure(2048 * MIB), Seen::More);
    }

    #[test]
    fn the_tables_for_page_locked_memory_are_the_devices() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_page_locked(16 << 30);
        assert_eq!(reserve.reserve(), CODE + 32 * MIB);
    }

    #[test]
    fn each_context_has_a_pool_and_a_workspace() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(1, 8 * MIB);
        reserve.expect_product(1, 16 * MIB);
        assert_eq!(reserve.reserve(), CODE + 18 * MIB);
        reserve.expect_product(2, 8 * MIB);
        assert_eq!(reserve.reserve(), CODE + 18 * MIB + WORKSPACE + 9 * MIB);
        // it has run, and is gone
        assert!(reserve.pass_ended(1, Instant::now()));
        reserve.context_gone(1);
        assert_eq!(reserve.reserve(), CODE + 9 * MIB);
        // this one was only tried, and comes again
        reserve.context_gone(2);
        assert_eq!(reserve.reserve(), CODE + 9 * MIB);
        reserve.expect_product(3, MIB);
        assert_eq!(reserve.reserve(), CODE + 9 * MIB);
        reserve.context_gone(3);
        reserve.nothing_comes();
        assert_eq!(reserve.reserve(), CODE);
    }

    #[test]
    fn a_pool_goes_with_the_last_context() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(1, 20 * MIB);
        assert!(reserve.pass_ended(1, Instant::now()));
        assert_eq!(reserve.measure(CODE), Seen::Enough);
        assert_eq!(reserve.held(), CODE);
        reserve.contexts_gone();
        assert_eq!((reserve.held(), reserve.reserve()), (0, CODE));
    }

    #[test]
    fn the_driver_is_asked_while_a_context_is_new_and_then_from_time_to_time() {
        let mut reserve = BackendReserve::new(None, true, None);
        let start = Instant::now();
        let mut asked = |sched, passes: std::ops::RangeInclusive<u64>, seconds| -> Vec<u64> {
            let now = start + Duration::from_secs(seconds);
            passes.filter(|_| reserve.pass_ended(sched, now)).collect()
        };
        assert_eq!(asked(1, 1..=20, 0), [1, 2, 4, 8, 16]);
        // a second one, however long the first has run
        assert_eq!(asked(2, 1..=3, 1), [1, 2]);
        assert_eq!(asked(1, 21..=24, 2), Vec::<u64>::new());
        assert_eq!(asked(1, 25..=31, 3), [25]);
        assert_eq!(asked(1, 33..=40, 6), [33]);
        let mut simulated = BackendReserve::new(None, false, None);
        assert!(!simulated.pass_ended(1, start));
        simulated.watch();
        assert!(simulated.pass_ended(1, start));
    }

    #[test]
    fn what_the_user_set_stays() {
        let mut reserve = BackendReserve::new(Some(64 * MIB), true, None);
        assert_eq!(reserve.measure(1 << 30), Seen::Enough);
        assert_eq!(reserve.reserve(), 64 * MIB);
        assert_eq!(reserve.held(), 1 << 30);
    }
}
