//! Owns the expectation of what the backend of a real device takes on its own account: kernels' code, page tables for page-locked memory, and a pool for
//! converted activations and cells. None of it is announced, so it is expected from the shapes, then noticed by asking the driver.

use crate::hook::pool_estimate::widest_product;
use pipeshard_model::inventory::Inventory;

/// Kernels' code, loaded when first used, streams and captured graphs, beyond what the device's context and matrix library hold,
/// which are no part of the budget: 59 to 81 MiB were seen on an H100 with models of 32, 48 and 64 layers, beside the page tables
/// and pools below. Too much costs a few residents, too little a budget that is overrun until it is noticed, and residents that
/// move in mid-prompt.
const CODE: u64 = 112 << 20;
/// The device's page tables have so many bytes for each page of host memory that it addresses, and lie in its own memory: 32 MiB
/// were seen to go while 16 GB were page-locked.
const PAGE: u64 = 4096;
const PAGE_TABLE_ENTRY: u64 = 8;
/// A pool grows in steps, beyond what the widest product takes: 1.06 times as much was seen at 512, 2,048 and 4,096 tokens.
const POOL_EIGHTHS: u64 = 9;

/// What is kept for the backend's own memory, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct BackendReserve {
    /// What the user set; nothing is measured then.
    fixed: Option<u64>,
    /// A real device, whose backend has reserve.
    real: bool,
    /// What a simulated card's backend acts as if it took, behind the first pass.
    acted: Option<u64>,
    /// Host memory that the device addresses.
    page_locked: u64,
    /// For the widest product of the graphs that were seen.
    product: u64,
    /// Passes of these graphs.
    passes: u64,
    /// What was measured when it was more than expected and there was room for it.
    made_room_for: u64,
    /// What was measured last.
    held: u64,
    /// The most that was ever measured.
    most: u64,
}

impl BackendReserve {
    /// `fixed`: what the user set; `real`: the device is not simulated; `acted`: what it acts as if it took, if it is.
    pub fn new(fixed: Option<u64>, real: bool, acted: Option<u64>) -> Self {
        BackendReserve {
            fixed,
            real,
            acted: acted.filter(|_| !real),
            ..BackendReserve::default()
        }
    }

    /// So much host memory is page-locked for the device.
    pub fn expect_page_locked(&mut self, bytes: u64) {
        self.page_locked = bytes;
    }

    /// A graph was seen whose widest product needs so much.
    pub fn expect_product(&mut self, bytes: u64) {
        self.product = self.product.max(bytes);
    }

    /// Ubatches of so many tokens of this model will be computed.
    pub fn expect_ubatch(&mut self, inventory: &Inventory, ubatch: u32) {
        self.expect_product(widest_product(inventory, ubatch));
    }

    /// No context is left, and a pool goes with its context.
    pub fn contexts_gone(&mut self) {
        (self.product, self.passes, self.held) = (0, 0, 0);
    }

    /// A pass has ended. True when it is time to ask the driver, which takes a moment.
    pub fn pass_ended(&mut self) -> bool {
        self.passes += 1;
        (self.real || self.acted.is_some()) && self.passes.is_power_of_two()
    }

    /// The driver says that so much is held beside what is accounted for. True when that is more than ever before and more than was
    /// reserved.
    pub fn measure(&mut self, bytes: u64) -> bool {
        let more = bytes > self.most;
        self.held = bytes;
        self.most = self.most.max(bytes);
        more && self.fixed.is_none() && bytes > self.reserve()
    }

    /// The same with as much reserved as was measured.
    pub fn with_measured(&self) -> Self {
        BackendReserve {
            made_room_for: self.made_room_for.max(self.most),
            ..*self
        }
    }

    /// What the planner keeps free.
    pub fn reserve(&self) -> u64 {
        match (self.fixed, self.real) {
            (Some(fixed), _) => fixed,
            (None, true) => {
                let expected = expected(self.page_locked, self.product);
                expected.max(self.made_room_for)
            }
            (None, false) => self.made_room_for,
        }
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
        let acts = |_: &u64| self.passes > 1;
        self.acted.filter(acts).unwrap_or(0)
    }
}

fn expected(page_locked: u64, product: u64) -> u64 {
    let tables = page_locked / PAGE * PAGE_TABLE_ENTRY;
    (CODE + tables).saturating_add((product / 8).saturating_mul(POOL_EIGHTHS))
}

/// What is expected of a real card for a model that is not loaded, with ubatches of `ubatch` tokens, in bytes.
pub fn expected_for(inventory: &Inventory, ubatch: u32) -> u64 {
    expected(inventory.weight_bytes(), widest_product(inventory, ubatch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_gpu_has_no_pools() {
        let mut reserve = BackendReserve::new(None, false, None);
        reserve.expect_product(1 << 30);
        reserve.expect_page_locked(1 << 40);
        assert_eq!(reserve.reserve(), 0);
    }

    #[test]
    fn more_than_expected_is_noticed_once() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(32 << 20);
        assert_eq!(reserve.reserve(), CODE + (36 << 20));
        assert!(!reserve.measure(CODE));
        assert!(reserve.measure(CODE + (60 << 20)));
        assert!(!reserve.measure(CODE + (60 << 20)));
        assert_eq!(reserve.reserve(), CODE + (36 << 20));
        assert_eq!(reserve.with_measured().reserve(), CODE + (60 << 20));
    }

    #[test]
    fn the_tables_for_page_locked_memory_are_the_devices() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_page_locked(16 << 30);
        assert_eq!(reserve.reserve(), CODE + (32 << 20));
    }

    #[test]
    fn a_pool_goes_with_the_last_context() {
        let mut reserve = BackendReserve::new(None, true, None);
        reserve.expect_product(20 << 20);
        assert!(reserve.pass_ended());
        assert!(!reserve.measure(CODE));
        assert_eq!(reserve.held(), CODE);
        reserve.contexts_gone();
        assert_eq!((reserve.held(), reserve.reserve()), (0, CODE));
        // the next one's first pass is looked at again
        assert!(reserve.pass_ended());
    }

    #[test]
    fn the_driver_is_asked_ever_more_seldom() {
        let mut reserve = BackendReserve::new(None, true, None);
        let asked: Vec<u64> = (1..20).filter(|_| reserve.pass_ended()).collect();
        assert_eq!(asked, [1, 2, 4, 8, 16]);
        assert!(!BackendReserve::new(None, false, None).pass_ended());
    }

    #[test]
    fn what_the_user_set_stays() {
        let mut reserve = BackendReserve::new(Some(64 << 20), true, None);
        assert!(!reserve.measure(1 << 30));
        assert_eq!(reserve.reserve(), 64 << 20);
        assert_eq!(reserve.held(), 1 << 30);
    }
}
