//! What operations take from the pool of a device's backend, by their shapes: converted activations, results and KV cache.
//! Nobody announces it; [`super::accounts`] keeps room for it.

use pipeshard_model::inventory::{Inventory, Role};
use pipeshard_sys as ffi;

/// What an operation on the device takes from the backend's pool: a product activations converted to the type that the kernel
/// multiplies, and for weights that are not quantised a converted result; fused attention keys and values in halves, where the
/// cache has them in another type.
///
/// # Safety
/// `node` is a valid node with valid sources.
pub unsafe fn bytes_for(node: *const ffi::ggml_tensor) -> u64 {
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
    if (*node).op == ffi::GGML_OP_FLASH_ATTN_EXT {
        let caches = [(*node).src[1], (*node).src[2]];
        let converted = caches.iter().filter(|c| (***c).type_ != ffi::GGML_TYPE_F16);
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

/// What the widest product of a ubatch of so many tokens takes, in bytes.
pub fn widest_product(inventory: &Inventory, ubatch: u32) -> u64 {
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
