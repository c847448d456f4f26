//! A context as llama.cpp is about to make it.

use crate::constants::conversation::UBATCHES;
use crate::cost::Workload;
use crate::plan::{estimate_scratch, KvLayer};
use crate::request::workload::StatedWorkload;
use pipeshard_model::inventory::{kv_bytes, DType, Inventory, Role};

/// llama.cpp rounds the context of each sequence up to this many tokens.
const CONTEXT_PADDING: u64 = 256;
/// The smallest context that is chosen where the user gave none, and the step in which it grows: as llama.cpp's `--fit` has them.
const LEAST_CONTEXT: u32 = 4096;
const CONTEXT_STEP: u32 = 1024;
/// The KV cache of a chosen context takes this share of the budget at most, unless everything fits: 1 / 4.
const KV_SHARE: u64 = 4;
/// What the backend takes for itself is allowed this share of the budget where everything is to fit: 1 / 16.
const BACKEND_SHARE: u64 = 16;

/// What llama.cpp is told about a context.
#[derive(Debug, Clone, Copy)]
pub struct ContextRequest {
    /// Tokens of all sequences together, as asked for: llama.cpp rounds them up.
    pub context: u32,
    /// Tokens that are handed over at a time.
    pub batch: u32,
    /// Tokens per ubatch: those that llama.cpp would use, or the user's.
    pub ubatch: u32,
    /// The user gave no ubatch: the plan's is used.
    pub ubatch_is_free: bool,
    /// Sequences.
    pub sequences: u32,
    /// They share one KV cache; else the context is divided among them.
    pub shared_cache: bool,
    /// Layers with a sliding window cache the whole context.
    pub full_windows: bool,
    /// Rows of a batch that may get logits; 0: all of them.
    pub outputs: u32,
    /// Type of the keys in the KV cache.
    pub type_k: &'static DType,
    /// Type of the values in the KV cache.
    pub type_v: &'static DType,
}

impl ContextRequest {
    fn parts(&self) -> u32 {
        match self.shared_cache {
            true => 1,
            false => self.sequences.max(1),
        }
    }

    /// Tokens that each sequence has room for.
    pub fn each(&self) -> u64 {
        let each = u64::from(self.context / self.parts()).max(1);
        each.next_multiple_of(CONTEXT_PADDING)
    }

    /// Tokens of the KV cache, of all sequences together.
    pub fn tokens(&self) -> u64 {
        self.each() * u64::from(self.parts())
    }

    /// Sizes of the ubatch to choose from, the one that llama.cpp would use first.
    pub fn ubatches(&self) -> Vec<u32> {
        let longest = u64::from(self.batch).min(self.tokens());
        let larger = UBATCHES.iter().copied();
        let larger = larger.filter(|&size| size > self.ubatch && u64::from(size) <= longest);
        std::iter::once(self.ubatch)
            .chain(larger.filter(|_| self.ubatch_is_free))
            .collect()
    }

    /// Rows of a ubatch for which llama.cpp reserves logits.
    pub fn outputs_of(&self, ubatch: u32) -> u32 {
        let most = match self.outputs {
            0 => self.batch,
            outputs => outputs,
        };
        most.min(ubatch)
    }

    /// The KV cache of each layer. That of a sliding window grows with the ubatch.
    pub fn kv(&self, inventory: &Inventory, ubatch: u32) -> Vec<KvLayer> {
        let (each, parts) = (self.each(), u64::from(self.parts()));
        let sequences = u64::from(self.sequences.max(1));
        let layers = inventory.kv.layers.iter();
        let bytes = layers.map(|layer| {
            let tokens = match self.shared_cache {
                _ if self.full_windows => each * parts,
                true => layer.kv_tokens(each, u64::from(ubatch), sequences),
                false => layer.kv_tokens(each, u64::from(ubatch), 1) * parts,
            };
            KvLayer {
                layer: layer.layer,
                bytes: kv_bytes(layer, tokens, self.type_k, self.type_v),
            }
        });
        bytes.collect()
    }

    /// Tokens of the context where the user gave none, in a budget of so many bytes: those that the model was trained for (which
    /// `self.context` is) if everything fits with them or their KV cache takes a quarter of the budget at most, else the most for
    /// which that holds, and 4,096 at least.
    pub fn fitting(&self, inventory: &Inventory, budget: u64) -> u32 {
        let embeddings_stay = |role: Role| role == Role::TokenEmbedding && !inventory.tied_output;
        let weights = inventory.tensors.iter();
        let weights = weights.filter(|tensor| !embeddings_stay(tensor.role));
        let weights: u64 = weights.map(|tensor| tensor.device_bytes).sum();
        let fits = |tokens: u32| {
            let context = ContextRequest {
                context: tokens,
                ..*self
            };
            let layers = context.kv(inventory, self.ubatch);
            let kv: u64 = layers.iter().map(|layer| layer.bytes).sum();
            let each = u32::try_from(context.each()).unwrap_or(u32::MAX);
            let outputs = self.outputs_of(self.ubatch);
            let scratch = estimate_scratch(inventory, self.ubatch, each, outputs);
            let all = weights.saturating_add(kv).saturating_add(scratch);
            kv <= budget / KV_SHARE || all <= budget - budget / BACKEND_SHARE
        };
        if self.context <= LEAST_CONTEXT || fits(self.context) {
            return self.context;
        }
        let (mut most, mut beyond) = (
            LEAST_CONTEXT / CONTEXT_STEP,
            self.context.div_ceil(CONTEXT_STEP),
        );
        while beyond - most > 1 {
            let middle = most.midpoint(beyond);
            match fits(middle * CONTEXT_STEP) {
                true => most = middle,
                false => beyond = middle,
            }
        }
        most * CONTEXT_STEP
    }

    /// The conversation in it. Sequences that have a part of the cache each are taken to be computed side by side; of those that
    /// share one, as in llama-server unless told otherwise, one.
    pub fn workload(&self, said: StatedWorkload) -> Workload {
        let (prompt, generated) = said.in_context(self.each());
        Workload {
            prompt,
            generated,
            sequences: self.parts(),
            ubatch: self.ubatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_model::test_support as models;

    fn context(tokens: u32, sequences: u32) -> ContextRequest {
        let f16 = DType::from_name("f16").unwrap();
        ContextRequest {
            context: tokens,
            batch: 2048,
            ubatch: 512,
            ubatch_is_free: true,
            sequences,
            shared_cache: false,
            full_windows: false,
            outputs: 1,
            type_k: f16,
            type_v: f16,
        }
    }

    #[test]
    fn a_context_that_nobody_asked_for_leaves_most_of_the_budget_to_weights() {
        let mut model = models::dense();
        for tensor in &mut model.tensors {
            tensor.device_bytes *= 1000;
        }
        let bytes = |tokens: u32| -> u64 {
            let layers = context(tokens, 1).kv(&model, 512);
            layers.iter().map(|layer| layer.bytes).sum()
        };
        let trained = context(1 << 17, 1);
        // a quarter of the budget, to the step
        let budget = 4 * bytes(20 * 1024);
        assert_eq!(trained.fitting(&model, budget), 20 * 1024);
        assert_eq!(trained.fitting(&model, budget - 1), 19 * 1024);
        assert_eq!(trained.fitting(&model, 1 << 20), 4096, "no less");
        assert_eq!(trained.fitting(&model, 64 * bytes(1 << 17)), 1 << 17);
        assert_eq!(context(2048, 1).fitting(&model, 1), 2048, "no more");
        let mut last = 0;
        for mib in (1..400).step_by(7) {
            let found = trained.fitting(&model, mib << 20);
            assert!(found >= last, "{mib} MiB: {found} after {last}");
            last = found;
        }
        // more than a quarter where all of it fits
        let small = models::dense();
        let weights: u64 = small.tensors.iter().map(|t| t.device_bytes).sum();
        let found = trained.fitting(&small, 2 * weights);
        assert!(found < 1 << 17 && bytes(found) > weights / 2, "{found}");
    }

    #[test]
    fn contexts_are_rounded_up_per_sequence() {
        let tokens = |wanted, sequences| context(wanted, sequences).tokens();
        assert_eq!(tokens(1000, 1), 1024);
        assert_eq!(tokens(1024, 1), 1024);
        assert_eq!(tokens(4000, 4), 4 * 1024);
        assert_eq!(tokens(0, 0), 256);
        let shared = ContextRequest {
            shared_cache: true,
            ..context(4000, 4)
        };
        assert_eq!((shared.tokens(), shared.each()), (4096, 4096));
        assert_eq!(shared.workload(StatedWorkload::default()).sequences, 1);
    }

    #[test]
    fn the_cache_grows_with_context_type_and_window() {
        let mut model = models::dense();
        let bytes = |context: &ContextRequest, model: &Inventory| -> u64 {
            context.kv(model, 64).iter().map(|layer| layer.bytes).sum()
        };
        let short = bytes(&context(1024, 1), &model);
        assert_eq!(short, 8 * 1024 * 1024 * 2);
        assert_eq!(bytes(&context(2048, 1), &model), 2 * short);
        let fine = ContextRequest {
            type_v: DType::from_name("f32").unwrap(),
            ..context(1024, 1)
        };
        assert_eq!(bytes(&fine, &model), short * 3 / 2);
        for layer in &mut model.kv.layers[..4] {
            layer.window = Some(128);
        }
        let each = 1024 * 2;
        assert_eq!(bytes(&context(4096, 1), &model), 4 * (4096 + 256) * each);
        let four = context(4096, 4);
        assert_eq!(bytes(&four, &model), 4 * (4096 + 4 * 256) * each);
        // 128 tokens for each sequence and the ubatch, once
        let shared = ContextRequest {
            shared_cache: true,
            ..four
        };
        assert_eq!(bytes(&shared, &model), 4 * (4096 + 768) * each);
        let full = ContextRequest {
            full_windows: true,
            ..four
        };
        assert_eq!(bytes(&full, &model), 8 * 4096 * each);
    }

    #[test]
    fn ubatches_are_no_longer_than_batches_and_contexts() {
        let mut wanted = context(4096, 1);
        assert_eq!(wanted.ubatches(), [512, 1024, 2048]);
        wanted.batch = 8192;
        assert_eq!(wanted.ubatches(), [512, 1024, 2048, 4096]);
        wanted.context = 1000;
        assert_eq!(wanted.ubatches(), [512, 1024]);
        wanted.ubatch_is_free = false;
        assert_eq!(wanted.ubatches(), [512]);
    }

    #[test]
    fn logits_are_reserved_for_the_rows_that_may_have_them() {
        let mut wanted = context(4096, 1);
        assert_eq!(wanted.outputs_of(512), 1);
        wanted.outputs = 0;
        assert_eq!(wanted.outputs_of(512), 512);
        wanted.batch = 64;
        assert_eq!(wanted.outputs_of(512), 64);
    }
}
