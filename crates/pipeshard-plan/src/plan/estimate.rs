//! A guess at the compute buffers of a model that has not been loaded.
//!
//! With a device at hand the real figure comes from reserving the graphs; this one serves to plan
//! without any. It adds up the activations that are alive at the same time, in f32, for a
//! micro-batch of `u` tokens, with flash attention:
//!
//! ```text
//! the larger of
//!   layers      u × 4 × 4 × n_embd       (embeddings, the stream, its normalised copy, a result)
//!             + u × 2 × KV tokens        (a mask; two where some layers look back over a window)
//!             + the largest of, for any layer,
//!                 attention   u × 4 × (rows of q, k, v, … + columns of the output projection)
//!                 FFN         u × 4 × (columns of down + the larger of rows of gate and up,
//!                                                                       rows of down)
//!                 experts     the same × experts per token  +  u × 4 × 3 × experts
//!             + an eighth for fragmentation and for what an architecture adds of its own
//!   output      n_outputs × 4 × (n_vocab + 2 × n_embd)
//! ```
//!
//! The output's part is nothing when the CPU computes the head.

use pipeshard_model::inventory::{Inventory, Role, TensorInfo};

const F32: u64 = 4;
const F16: u64 = 2;
const CONTEXT_PADDING: u64 = 256;
const SLACK: u64 = 8;
/// Positions, ids and padding between tensors.
const BASE: u64 = 1 << 20;

/// Estimated bytes of compute buffers for micro-batches of `ubatch` tokens over a context of `ctx`
/// tokens; `outputs` of them have logits on the device (0 when the CPU computes the output head).
/// Saturates.
pub fn estimate_scratch(inventory: &Inventory, ubatch: u32, ctx: u32, outputs: u32) -> u64 {
    let tokens = u64::from(ubatch.min(ctx)).max(1);
    let kv_tokens = u64::from(ctx).next_multiple_of(CONTEXT_PADDING);
    let width = u64::from(inventory.embedding_length);

    let mask = |windowed| {
        let layers = inventory.kv.layers.iter();
        let layers = layers.filter(|layer| layer.window.is_some() == windowed);
        let kv_tokens = layers.map(|layer| layer.kv_tokens(kv_tokens, tokens, 1));
        kv_tokens.max().unwrap_or(0).saturating_mul(F16)
    };
    let layers = 0..inventory.layer_count;
    let busiest = layers.map(|layer| layer_elements(inventory, layer)).max();
    let elements = busiest.unwrap_or(0).saturating_add(4 * width);
    let layers = mask(true)
        .saturating_add(mask(false))
        .saturating_add(elements.saturating_mul(F32))
        .saturating_mul(tokens);

    let output = u64::from(inventory.vocabulary_size) + 2 * width;
    let output = u64::from(outputs).saturating_mul(output * F32);
    let most = layers.saturating_add(layers / SLACK).max(output);
    most.saturating_add(BASE)
}

/// How much too large such an estimate may be, in bytes: what it adds for good measure.
pub fn estimate_excess(scratch: u64) -> u64 {
    scratch / (SLACK + 1) + BASE
}

/// Elements per token that the busiest part of a layer keeps alive, the stream apart.
fn layer_elements(inventory: &Inventory, layer: u32) -> u64 {
    let used = u64::from(inventory.expert_used_count);
    let mut attention = 0u64;
    let mut router = 0u64;
    let mut dense = FeedForward::default();
    let mut experts = FeedForward::default();
    for tensor in inventory.layer(layer).filter(|tensor| tensor.is_matrix()) {
        match tensor.role {
            Role::Attention | Role::Recurrent => {
                let is_last = tensor.name.contains("_out");
                let kept = if is_last {
                    tensor.shape[0]
                } else {
                    rows(tensor)
                };
                attention = attention.saturating_add(kept);
            }
            Role::DenseFeedForward | Role::SharedExperts => dense.add(tensor),
            Role::Experts => experts.add(tensor),
            // Logits, probabilities and their order.
            Role::Router => router = router.saturating_add(tensor.shape[1].saturating_mul(3)),
            Role::TokenEmbedding | Role::Norm | Role::Output | Role::Other => {}
        }
    }
    let experts = experts.elements().saturating_mul(used);
    let mixture = experts.saturating_add(router);
    attention.max(dense.elements()).max(mixture)
}

fn rows(tensor: &TensorInfo) -> u64 {
    tensor.shape[1].saturating_mul(tensor.shape[2].max(1))
}

/// The projections of a feed-forward network. The gated product does not overwrite its factors,
/// but they are gone when the last projection runs.
#[derive(Debug, Default)]
struct FeedForward {
    first: u64,
    product: u64,
    last: u64,
}

impl FeedForward {
    fn add(&mut self, tensor: &TensorInfo) {
        if tensor.name.contains("ffn_down") {
            self.product = self.product.saturating_add(tensor.shape[0]);
            self.last = self.last.saturating_add(tensor.shape[1]);
        } else {
            self.first = self.first.saturating_add(tensor.shape[1]);
        }
    }

    fn elements(&self) -> u64 {
        self.product.saturating_add(self.first.max(self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_model::test_support as models;

    const MIB: f64 = (1 << 20) as f64;

    /// The model with other widths: of the stream, of attention, of (an expert's) FFN.
    fn reshaped(mut model: Inventory, width: u64, heads: u64, keys: u64, ffn: u64) -> Inventory {
        model.embedding_length = width as u32;
        model.vocabulary_size = 64;
        for tensor in &mut model.tensors {
            let name = tensor.name.strip_suffix(".weight").unwrap_or_default();
            let part = name.rsplit('.').next().unwrap_or_default();
            let (columns, rows) = match part {
                "attn_q" => (width, heads),
                "attn_k" | "attn_v" => (width, keys),
                "attn_output" => (heads, width),
                "ffn_gate" | "ffn_up" | "ffn_gate_exps" | "ffn_up_exps" => (width, ffn),
                "ffn_down" | "ffn_down_exps" => (ffn, width),
                _ => continue,
            };
            (tensor.shape[0], tensor.shape[1]) = (columns, rows);
        }
        model
    }

    #[test]
    fn is_close_to_what_llama_cpp_reserves() {
        let dense = reshaped(models::dense(), 1024, 1024, 256, 4096);
        let attention = reshaped(models::dense(), 1024, 4096, 4096, 512);
        let mut moe = reshaped(models::moe(), 1024, 1024, 256, 512);
        moe.expert_used_count = 8;
        let mut smol = reshaped(models::dense(), 576, 576, 192, 1536);
        smol.vocabulary_size = 49152;
        // MiB that the pinned llama.cpp reserved for models of these shapes.
        for (model, ubatch, ctx, outputs, reserved) in [
            (&dense, 512, 512, 64, 32.5),
            (&dense, 512, 8192, 64, 40.0),
            (&dense, 2048, 8192, 64, 160.1),
            (&dense, 512, 65536, 64, 96.0),
            (&attention, 512, 512, 64, 39.5),
            (&attention, 2048, 8192, 64, 188.1),
            (&attention, 512, 65536, 64, 103.0),
            (&moe, 512, 512, 64, 32.5),
            (&moe, 2048, 8192, 64, 160.1),
            (&smol, 2048, 8192, 2048, 393.0),
        ] {
            let estimated = estimate_scratch(model, ubatch, ctx, outputs) as f64 / MIB;
            let ratio = estimated / reserved;
            let within = (1.0..1.2).contains(&ratio);
            assert!(within, "{ubatch} {ctx}: {estimated} for {reserved}");
        }
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
        let mask = 128 * 256 * 2;
        let windowed = estimate_scratch(&model, 128, 1024, 0);
        assert_eq!(windowed - plain, mask + mask / 8);
    }

    #[test]
    fn saturates_on_nonsense() {
        let mut model = models::moe();
        for tensor in &mut model.tensors {
            tensor.shape = [u64::MAX; 4];
        }
        let most = estimate_scratch(&model, u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(most, u64::MAX);
        model.tensors.clear();
        model.layer_count = 0;
        estimate_scratch(&model, 0, 0, 0);
    }
}
