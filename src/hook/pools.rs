//! What the backend of a real device takes on its own account: kernels' code, page tables for page-locked memory, and a pool for
//! converted activations and cells. None of it is announced, so it is expected from the shapes, then noticed by asking the driver.

use pipeshard_model::inventory::{Inventory, Role};
use pipeshard_sys as ffi;

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

/// Book-keeping of the backend's own memory, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pools {
    /// What the user set; nothing is measured then.
    fixed: Option<u64>,
    /// A real device, whose backend has pools.
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

impl Pools {
    /// `fixed`: what the user set; `real`: the device is not simulated; `acted`: what it acts as if it took, if it is.
    pub fn new(fixed: Option<u64>, real: bool, acted: Option<u64>) -> Self {
        Pools {
            fixed,
            real,
            acted: acted.filter(|_| !real),
            ..Pools::default()
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

    /// The driver says that so much is held beside what is booked. True when that is more than ever before and more than was
    /// reserved.
    pub fn measure(&mut self, bytes: u64) -> bool {
        let more = bytes > self.most;
        self.held = bytes;
        self.most = self.most.max(bytes);
        more && self.fixed.is_none() && bytes > self.reserve()
    }

    /// The same books with as much reserved as was measured.
    pub fn with_measured(&self) -> Self {
        Pools {
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

/// What an operation on the device takes from the backend's pool: a product activations converted to the type that the kernel
/// multiplies, and for weights that are not quantised a converted result; fused attention keys and values in halves, where the
/// cache has them in another type.
///
/// # Safety
/// `node` is a valid node with valid sources.
pub unsafe fn bytes_for(node: *const ffi::ggml_tensor) -> u64 {
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
    if (*node).op == ffi::GGML_OP_FLASH_ATTN_EXT {
        let cells = [(*node).src[1], (*node).src[2]];
        let converted = cells.iter().filter(|c| (***c).type_ != ffi::GGML_TYPE_F16);
        return converted
            .map(|c| 2 * (**c).ne.iter().map(|&n| size(n)).product::<u64>())
            .sum();
    }
    if !matches!((*node).op, ffi::GGML_OP_MUL_MAT | ffi::GGML_OP_MUL_MAT_ID) {
        return 0;
    }
    let weights = (*node).src[0];
    let rows = size((*node).ne[1]) * size((*node).ne[2]) * size((*node).ne[3]);
    let (width, height) = (size((*weights).ne[0]), size((*weights).ne[1]));
    product_bytes(
        ffi::ggml_is_quantized((*weights).type_),
        rows,
        width,
        height,
    )
}

/// What is expected of a real card for a model that is not loaded, with ubatches of `ubatch` tokens, in bytes.
pub fn expected_for(inventory: &Inventory, ubatch: u32) -> u64 {
    expected(inventory.weight_bytes(), widest_product(inventory, ubatch))
}

fn widest_product(inventory: &Inventory, ubatch: u32) -> u64 {
    let products = inventory.tensors.iter().filter(|tensor| {
        // the output head sees the rows that get logits: few
        tensor.is_matrix() && !matches!(tensor.role, Role::TokenEmbedding | Role::Output)
    });
    let widest = products.map(|tensor| {
        let used = match tensor.role {
            Role::Experts => u64::from(inventory.expert_used_count.max(1)),
            _ => 1,
        };
        let rows = u64::from(ubatch).saturating_mul(used);
        let quantised = !matches!(tensor.type_name.as_str(), "f32" | "f16" | "bf16");
        product_bytes(quantised, rows, tensor.shape[0], tensor.shape[1])
    });
    widest.max().unwrap_or(0)
}

fn product_bytes(quantised: bool, rows: u64, width: u64, height: u64) -> u64 {
    match quantised {
        // 32 values become 36 bytes
        true => rows.saturating_mul(width).saturating_mul(9) / 8,
        false => {
            let converted = rows.saturating_mul(width.saturating_add(height));
            converted.saturating_mul(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_gpu_has_no_pools() {
        let mut pools = Pools::new(None, false, None);
        pools.expect_product(1 << 30);
        pools.expect_page_locked(1 << 40);
        assert_eq!(pools.reserve(), 0);
    }

    #[test]
    fn more_than_expected_is_noticed_once() {
        let mut pools = Pools::new(None, true, None);
        pools.expect_product(32 << 20);
        assert_eq!(pools.reserve(), CODE + (36 << 20));
        assert!(!pools.measure(CODE));
        assert!(pools.measure(CODE + (60 << 20)));
        assert!(!pools.measure(CODE + (60 << 20)));
        assert_eq!(pools.reserve(), CODE + (36 << 20));
        assert_eq!(pools.with_measured().reserve(), CODE + (60 << 20));
    }

    #[test]
    fn the_tables_for_page_locked_memory_are_the_devices() {
        let mut pools = Pools::new(None, true, None);
        pools.expect_page_locked(16 << 30);
        assert_eq!(pools.reserve(), CODE + (32 << 20));
    }

    #[test]
    fn a_pool_goes_with_the_last_context() {
        let mut pools = Pools::new(None, true, None);
        pools.expect_product(20 << 20);
        assert!(pools.pass_ended());
        assert!(!pools.measure(CODE));
        assert_eq!(pools.held(), CODE);
        pools.contexts_gone();
        assert_eq!((pools.held(), pools.reserve()), (0, CODE));
        // the next one's first pass is looked at again
        assert!(pools.pass_ended());
    }

    #[test]
    fn the_driver_is_asked_ever_more_seldom() {
        let mut pools = Pools::new(None, true, None);
        let asked: Vec<u64> = (1..20).filter(|_| pools.pass_ended()).collect();
        assert_eq!(asked, [1, 2, 4, 8, 16]);
        assert!(!Pools::new(None, false, None).pass_ended());
    }

    #[test]
    fn what_the_user_set_stays() {
        let mut pools = Pools::new(Some(64 << 20), true, None);
        assert!(!pools.measure(1 << 30));
        assert_eq!(pools.reserve(), 64 << 20);
        assert_eq!(pools.held(), 1 << 30);
    }
}
