//! What a model consists of: plain values, no I/O and no foreign code.

use serde::{Deserialize, Serialize};

use super::dtype::DType;

/// What a weight tensor is for. Placement decisions group by layer and role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looked up by row at the start of a pass (token, position and per-layer embeddings).
    TokenEmbedding,
    /// Normalisation weights and biases: always small.
    Norm,
    /// Projections, biases, sinks and indexers of attention.
    Attention,
    /// A feed-forward network that every token goes through.
    DenseFeedForward,
    /// The routed experts of a mixture: one tensor holds the slices of all experts.
    Experts,
    /// The experts of a mixture that every token goes through.
    SharedExperts,
    /// What chooses the experts.
    Router,
    /// State-space, linear-attention, RWKV and short-convolution blocks.
    Recurrent,
    /// The output head and what is attached to it, its norm apart.
    Output,
    /// Everything else: rotary factors, residual mixing, what a new architecture brings.
    Other,
}

/// One weight tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// llama.cpp's name, for example `blk.3.ffn_down.weight`.
    pub name: String,
    /// The layer it belongs to; `None` for inputs, outputs and what all layers share.
    pub layer: Option<u32>,
    /// What it is for.
    pub role: Role,
    /// ggml's name of the element type, for example `q4_0`.
    pub type_name: String,
    /// ggml's number of the element type.
    pub ggml_type: u32,
    /// Elements per dimension, fastest first; 1 where a dimension is absent.
    pub shape: [u64; 4],
    /// Bytes of the data on the host.
    pub bytes: u64,
    /// Bytes that a GPU buffer needs for it: `bytes`, and for quantised types the tail that the kernels may
    /// read past the last row. Not rounded up to the buffer's alignment.
    pub device_bytes: u64,
}

impl TensorInfo {
    /// Reports whether the tensor is a matrix (or a stack of them), as opposed to a vector or a scalar.
    pub fn is_matrix(&self) -> bool {
        self.shape[1] > 1
    }

    /// Bytes of one expert's slice on the host; the whole tensor where it is not a stack of experts.
    pub fn bytes_per_expert(&self) -> u64 {
        match self.role {
            Role::Experts if self.shape[2] > 1 => self.bytes / self.shape[2],
            _ => self.bytes,
        }
    }
}

/// The attention cache of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayer {
    /// The layer that owns the cache.
    pub layer: u32,
    /// Elements that K takes per token.
    pub k_elements: u32,
    /// Elements that V takes per token; 0 where V is derived from K (multi-head latent attention).
    pub v_elements: u32,
    /// Tokens that the layer looks back; `None` where it sees the whole context.
    pub window: Option<u32>,
}

impl KvLayer {
    /// Tokens that llama.cpp allocates KV cache for in this layer, for one stream of `n_ctx` tokens (already padded by the
    /// caller), `n_ubatch` tokens per pass and `n_seq` sequences that share the stream.
    pub fn kv_tokens(&self, n_ctx: u64, n_ubatch: u64, n_seq: u64) -> u64 {
        match self.window {
            None => n_ctx,
            Some(window) => {
                let wanted = u64::from(window)
                    .saturating_mul(n_seq.max(1))
                    .saturating_add(n_ubatch);
                wanted
                    .min(n_ctx)
                    .checked_next_multiple_of(SWA_PADDING)
                    .unwrap_or(u64::MAX)
            }
        }
    }
}

/// llama.cpp rounds the tokens of a sliding-window cache up to a multiple of this.
const SWA_PADDING: u64 = 256;

/// The attention caches of a model. Layers without one (recurrent layers, layers that reuse another's) are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvGeometry {
    /// In layer order.
    pub layers: Vec<KvLayer>,
}

impl KvGeometry {
    /// The cache of a layer, where it has one.
    pub fn layer(&self, layer: u32) -> Option<&KvLayer> {
        self.layers
            .binary_search_by_key(&layer, |kv| kv.layer)
            .ok()
            .map(|index| &self.layers[index])
    }

    /// Bytes of all caches, each with the tokens that [`KvLayer::kv_tokens`] gives.
    pub fn bytes(
        &self,
        n_ctx: u64,
        n_ubatch: u64,
        n_seq: u64,
        type_k: &DType,
        type_v: &DType,
    ) -> u64 {
        self.layers.iter().fold(0, |sum: u64, kv| {
            sum.saturating_add(kv_bytes(
                kv,
                kv.kv_tokens(n_ctx, n_ubatch, n_seq),
                type_k,
                type_v,
            ))
        })
    }
}

/// Bytes that one layer's K and V take in a device buffer for `kv_tokens` tokens; saturates instead of overflowing.
pub fn kv_bytes(layer: &KvLayer, kv_tokens: u64, type_k: &DType, type_v: &DType) -> u64 {
    let k = type_k.device_bytes([u64::from(layer.k_elements), kv_tokens, 1, 1]);
    let v = type_v.device_bytes([u64::from(layer.v_elements), kv_tokens, 1, 1]);
    k.saturating_add(v)
}

/// Everything the planner needs to know about a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// llama.cpp's name of the architecture, for example `qwen3moe`.
    pub architecture: String,
    /// The name that the model gives itself.
    pub name: Option<String>,
    /// Number of layers, those of a multi-token prediction head included.
    pub layer_count: u32,
    /// Tokens of context that the model was trained for.
    pub context_length: u32,
    /// Width of the residual stream.
    pub embedding_length: u32,
    /// Tokens in the vocabulary, by the rows of the embedding.
    pub vocabulary_size: u32,
    /// Routed experts per layer; 0 for dense models.
    pub expert_count: u32,
    /// Routed experts that one token uses, the most of any layer.
    pub expert_used_count: u32,
    /// All weight tensors in the order in which a forward pass uses them: inputs, layers, outputs.
    pub tensors: Vec<TensorInfo>,
    /// The attention caches.
    pub kv: KvGeometry,
    /// Whether the output head uses the token embedding's weights.
    pub tied_output: bool,
    /// Bytes of all the model's files; of the tensors only, when made from a loaded model.
    pub file_bytes: u64,
}

impl Inventory {
    /// The same model with so many experts for each token: what is known of loaded tensors alone does not say.
    pub fn using_experts(&self, used: u32) -> Inventory {
        Inventory {
            expert_used_count: used,
            ..self.clone()
        }
    }

    /// Bytes of all weights on the host.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .fold(0, |sum: u64, tensor| sum.saturating_add(tensor.bytes))
    }

    /// The tensors of one layer, in order of use.
    pub fn layer(&self, layer: u32) -> impl Iterator<Item = &TensorInfo> {
        self.tensors
            .iter()
            .filter(move |tensor| tensor.layer == Some(layer))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(window: Option<u32>) -> KvLayer {
        KvLayer {
            layer: 3,
            k_elements: 1024,
            v_elements: 512,
            window,
        }
    }

    #[test]
    fn cache_bytes_follow_types_and_tokens() {
        let f16 = DType::from_name("f16").unwrap();
        let q8_0 = DType::from_name("q8_0").unwrap();
        assert_eq!(kv_bytes(&kv(None), 100, f16, f16), 100 * (1024 + 512) * 2);
        assert_eq!(
            kv_bytes(&kv(None), 100, q8_0, f16),
            100 * (1024 / 32 * 34 + 1024)
        );
        assert_eq!(kv_bytes(&kv(None), u64::MAX, f16, f16), u64::MAX);
    }

    #[test]
    fn quantised_cache_rows_that_are_no_multiple_of_512_are_padded() {
        let q8_0 = DType::from_name("q8_0").unwrap();
        let narrow = KvLayer {
            k_elements: 192,
            v_elements: 0,
            ..kv(None)
        };
        assert_eq!(kv_bytes(&narrow, 256, q8_0, q8_0), 256 * 6 * 34 + 10 * 34);
    }

    #[test]
    fn windows_bound_the_kv_cache() {
        assert_eq!(kv(None).kv_tokens(4096, 512, 1), 4096);
        assert_eq!(kv(Some(64)).kv_tokens(4096, 512, 1), 768);
        assert_eq!(kv(Some(64)).kv_tokens(4096, 512, 4), 768);
        assert_eq!(kv(Some(64)).kv_tokens(256, 512, 1), 256);
        assert_eq!(kv(Some(1024)).kv_tokens(8192, 512, 4), 4608);
    }

    #[test]
    fn geometry_finds_layers() {
        let geometry = KvGeometry {
            layers: vec![
                kv(None),
                KvLayer {
                    layer: 7,
                    ..kv(None)
                },
            ],
        };
        assert_eq!(geometry.layer(7).map(|kv| kv.layer), Some(7));
        assert!(geometry.layer(4).is_none());
        let f16 = DType::from_name("f16").unwrap();
        assert_eq!(geometry.bytes(256, 512, 1, f16, f16), 2 * 256 * 1536 * 2);
    }
}
