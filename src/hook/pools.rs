//! What the backend of a real device takes on its own account: kernels' code, libraries' work spaces, and a pool for converted
//! activations. None of it is announced, so it is expected from the shapes, then noticed by asking the driver.

use crate::ffi;
use crate::inventory::{Inventory, Role};

/// Kernels' code, loaded when first used, streams and captured graphs, beyond what the device's context and matrix library hold,
/// which are no part of the budget: 190 to 232 MiB were seen on an H100 with models of 32 and 48 layers, beside [`PRODUCTS`]. Too
/// much costs a few residents, too little a budget that is overrun until it is noticed, and residents that move in mid-prompt.
const CODE: u64 = 240 << 20;
/// The pool was seen to keep so many times what the widest product takes, at 512, 2,048 and 4,096 tokens.
const PRODUCTS: u64 = 2;

/// Book-keeping of the backend's own memory, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pools {
    /// What the user set; nothing is measured then.
    fixed: Option<u64>,
    /// A real device, whose backend has pools.
    real: bool,
    /// What a simulated card's backend acts as if it took, behind the first pass.
    acted: Option<u64>,
    /// For the widest product of the graphs that were seen.
    product: u64,
    /// What was measured when it was more than expected and there was room for it.
    made_room_for: u64,
    measured: u64,
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

    /// A graph was seen whose widest product needs so much.
    pub fn expect(&mut self, bytes: u64) {
        self.product = self.product.max(bytes);
    }

    /// The driver says that so much is held beside what is booked. True when that is more than ever before and more than was
    /// reserved.
    pub fn measure(&mut self, bytes: u64) -> bool {
        let more = bytes > self.measured;
        self.measured = self.measured.max(bytes);
        more && self.fixed.is_none() && bytes > self.reserve()
    }

    /// The same books with as much reserved as was measured.
    pub fn with_measured(&self) -> Self {
        Pools {
            made_room_for: self.made_room_for.max(self.measured),
            ..*self
        }
    }

    /// What the planner keeps free.
    pub fn reserve(&self) -> u64 {
        match (self.fixed, self.real) {
            (Some(fixed), _) => fixed,
            (None, true) => {
                let expected = CODE + PRODUCTS * self.product;
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

    /// The most that was seen to be held.
    pub fn measured(&self) -> u64 {
        self.measured
    }

    /// Whether measuring makes sense.
    pub fn measurable(&self) -> bool {
        self.real || self.acted.is_some()
    }

    /// What a simulated card acts as if it held beside what is booked, after so many passes; none where the driver is asked.
    pub fn acted(&self, passes: u64) -> Option<u64> {
        self.acted.map(|bytes| if passes > 1 { bytes } else { 0 })
    }
}

/// What a product on the device takes from the backend's pool: activations converted to the type that the kernel multiplies,
/// and for weights that are not quantised a converted result.
///
/// # Safety
/// `node` is a valid node with valid sources.
pub unsafe fn bytes_for(node: *const ffi::ggml_tensor) -> u64 {
    if !matches!((*node).op, ffi::GGML_OP_MUL_MAT | ffi::GGML_OP_MUL_MAT_ID) {
        return 0;
    }
    let weights = (*node).src[0];
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
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
    CODE.saturating_add(widest.max().unwrap_or(0).saturating_mul(PRODUCTS))
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
        pools.expect(1 << 30);
        assert_eq!(pools.reserve(), 0);
    }

    #[test]
    fn more_than_expected_is_noticed_once() {
        let mut pools = Pools::new(None, true, None);
        pools.expect(20 << 20);
        assert_eq!(pools.reserve(), CODE + (40 << 20));
        assert!(!pools.measure(CODE));
        assert!(pools.measure(CODE + (60 << 20)));
        assert!(!pools.measure(CODE + (60 << 20)));
        assert_eq!(pools.reserve(), CODE + (40 << 20));
        assert_eq!(pools.with_measured().reserve(), CODE + (60 << 20));
    }

    #[test]
    fn what_the_user_set_stays() {
        let mut pools = Pools::new(Some(64 << 20), true, None);
        assert!(!pools.measure(1 << 30));
        assert_eq!(pools.reserve(), 64 << 20);
        assert_eq!(pools.measured(), 1 << 30);
    }
}
