//! A guess at the compute buffers of a model that has not been loaded.
//!
//! With a device at hand the real figure comes from reserving the graphs; this one serves to plan
//! without any. It adds up the activations that are alive at the same time, in f32, for a
//! micro-batch of `u` tokens, with flash attention:
//!
//! ```text
//! inputs     u × n_embd × 4   +   mask: u × n_ctx × 2, twice where some layers use a window
//! residual   u × n_embd × 4 × 2        (the stream, and its normalised copy)
//! the largest of
//!   attention   u × 4 × (rows of q, k, v, output, …)
//!   FFN         u × 4 × (rows of gate and up + columns of down + n_embd)
//!   experts     u × 4 × (the same of one expert) × experts per token  +  u × 4 × 3 × experts
//!   output      n_outputs × 4 × n_vocab  (nothing when the CPU computes the head)
//! ```
//!
//! and an eighth for fragmentation and for what an architecture adds of its own.

use crate::inventory::{Inventory, Role, TensorInfo};

const F32: u64 = 4;
const F16: u64 = 2;
const CONTEXT_PADDING: u64 = 256;
const SLACK: u64 = 8;
/// Positions, ids and padding between tensors.
const BASE: u64 = 1 << 20;

/// Estimated bytes of compute buffers for micro-batches of `ubatch` tokens over a context of `ctx`
/// tokens, of which `outputs` have logits on the device (0 when the CPU computes the output head).
/// Saturates.
pub fn estimate_scratch(inventory: &Inventory, ubatch: u32, ctx: u32, outputs: u32) -> u64 {
    let tokens = u64::from(ubatch.min(ctx)).max(1);
    let cells = u64::from(ctx).next_multiple_of(CONTEXT_PADDING);
    let width = u64::from(inventory.embedding_length);

    let windows = |windowed| {
        let layers = &inventory.kv.layers;
        u64::from(
            layers
                .iter()
                .any(|layer| layer.window.is_some() == windowed),
        )
    };
    let masks = windows(true) + windows(false);
    let per_token = (3 * F32)
        .saturating_mul(width)
        .saturating_add((masks * F16).saturating_mul(cells));

    let layers = 0..inventory.layer_count;
    let busiest = layers.map(|layer| layer_elements(inventory, layer)).max();
    let in_layers = busiest.unwrap_or(0).saturating_mul(F32 * tokens);
    let logits = u64::from(outputs)
        .saturating_mul(F32)
        .saturating_mul(u64::from(inventory.vocabulary_size));

    let sum = tokens
        .saturating_mul(per_token)
        .saturating_add(in_layers.max(logits));
    sum.saturating_add(sum / SLACK).saturating_add(BASE)
}

/// Elements per token that the busiest part of a layer keeps alive.
fn layer_elements(inventory: &Inventory, layer: u32) -> u64 {
    let width = u64::from(inventory.embedding_length);
    let used = u64::from(inventory.expert_used_count);
    let (mut attention, mut dense, mut experts) = (0u64, 0u64, 0u64);
    for tensor in inventory.layer(layer).filter(|tensor| tensor.is_matrix()) {
        match tensor.role {
            Role::Attention | Role::Recurrent => {
                attention = attention.saturating_add(heads(tensor));
            }
            Role::DenseFeedForward | Role::SharedExperts => {
                dense = dense.saturating_add(ffn(tensor));
            }
            Role::Experts => {
                experts = experts.saturating_add(ffn(tensor).saturating_mul(used));
            }
            // Logits, probabilities and their order.
            Role::Router => experts = experts.saturating_add(tensor.shape[1].saturating_mul(3)),
            Role::TokenEmbedding | Role::Norm | Role::Output | Role::Other => {}
        }
    }
    // Shared experts run beside the routed ones, whose sum is waiting.
    let dense = if dense > 0 {
        dense.saturating_add(width)
    } else {
        0
    };
    attention.max(dense).max(experts)
}

fn heads(tensor: &TensorInfo) -> u64 {
    tensor.shape[1].saturating_mul(tensor.shape[2].max(1))
}

/// What a feed-forward matrix adds: its result, and for the last one also its input, since the
/// gated product does not overwrite its factors.
fn ffn(tensor: &TensorInfo) -> u64 {
    match tensor.name.contains("ffn_down") {
        true => tensor.shape[0].saturating_add(tensor.shape[1]),
        false => tensor.shape[1],
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::models;
    use super::*;

    #[test]
    fn follows_the_formula_for_a_dense_model() {
        // n_embd 512, n_ff 1536, 4 × 512 rows of attention, no window.
        let model = models::dense();
        let ffn = 1536 * 2 + 1536 + 512 + 512;
        let sum = 128 * (3 * 4 * 512 + 2 * 1024 + 4 * ffn);
        assert_eq!(estimate_scratch(&model, 128, 1024, 0), sum + sum / 8 + BASE);
    }

    #[test]
    fn grows_with_everything_it_depends_on() {
        for model in [models::dense(), models::moe()] {
            let base = estimate_scratch(&model, 128, 1024, 1);
            assert!(estimate_scratch(&model, 256, 1024, 1) > base);
            assert!(estimate_scratch(&model, 128, 4096, 1) > base);
            assert!(estimate_scratch(&model, 128, 1024, 100_000) > base);
        }
    }

    #[test]
    fn layers_with_a_window_bring_a_mask_of_their_own() {
        let mut model = models::dense();
        let plain = estimate_scratch(&model, 128, 1024, 0);
        model.kv.layers[3].window = Some(64);
        let mask = 128 * 1024 * 2;
        let windowed = estimate_scratch(&model, 128, 1024, 0);
        assert_eq!(windowed - plain, mask + mask / 8);
    }

    #[test]
    fn saturates_on_nonsense() {
        let mut model = models::moe();
        for tensor in &mut model.tensors {
            tensor.shape = [u64::MAX; 4];
        }
        assert_eq!(
            estimate_scratch(&model, u32::MAX, u32::MAX, u32::MAX),
            u64::MAX
        );
        model.tensors.clear();
        model.layer_count = 0;
        estimate_scratch(&model, 0, 0, 0);
    }
}
