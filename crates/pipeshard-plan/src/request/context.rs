//! A context as llama.cpp is about to make it.

use crate::cost::Workload;
use crate::plan::{KvLayer, UBATCHES};
use crate::request::workload::StatedWorkload;
use pipeshard_model::inventory::{kv_bytes, DType, Inventory};

/// llama.cpp rounds the context of each sequence up to this many tokens.
const CONTEXT_PADDING: u64 = 256;

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
                true => layer.cells(each, u64::from(ubatch), sequences),
                false => layer.cells(each, u64::from(ubatch), 1) * parts,
            };
            KvLayer {
                layer: layer.layer,
                bytes: kv_bytes(layer, tokens, self.type_k, self.type_v),
            }
        });
        bytes.collect()
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
