//! Which layers keep an attention cache, and how large it is per token.

use std::collections::HashMap;

use super::keys::{ArchKeys, PerLayer};
use super::types::{KvGeometry, KvLayer, Role, TensorInfo};

/// Architectures whose layers look back over a window in a fixed pattern unless the file says otherwise: name, period,
/// and whether the full layer is the first of each period or the last.
const WINDOW_PATTERNS: &[(&str, u32, bool)] = &[
    ("afmoe", 4, false),
    ("cohere2", 4, false),
    ("cohere2moe", 4, true),
    ("exaone4", 4, false),
    ("exaone-moe", 4, false),
    ("gemma-embedding", 6, false),
    ("gemma2", 2, false),
    ("gemma3", 6, false),
    ("gemma3n", 5, false),
    ("gpt-oss", 2, false),
    ("laguna", 4, true),
    ("llama4", 4, false),
    ("mellum", 4, false),
    ("muse-glimmer", 4, false),
    ("olmo2", 4, false),
    ("plamo3", 8, false),
    ("smallthinker", 4, true),
];

/// Architectures that see a whole text at once, and keep no cache.
const UNCACHED: &[&str] = &[
    "bert",
    "dream",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "llada",
    "llada-moe",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "rnd1",
    "wavtokenizer-dec",
];

/// Architectures in which a layer may hold a recurrent block and attention side by side.
const PARALLEL_HYBRIDS: &[&str] = &["falcon-h1"];

/// Layers of gemma3n that keep a KV cache of their own; the other layers read these caches.
const GEMMA3N_CACHED_LAYERS: u32 = 20;

/// What the tensors of one layer say about its cache.
#[derive(Default)]
struct LayerTensors {
    k_rows: Option<u64>,
    v_rows: Option<u64>,
    latent_rows: Option<u64>,
    attention: bool,
    recurrent: bool,
}

fn by_layer(tensors: &[TensorInfo]) -> HashMap<u32, LayerTensors> {
    let mut layers: HashMap<u32, LayerTensors> = HashMap::new();
    for tensor in tensors {
        let Some(layer) = tensor.layer else { continue };
        if tensor.name.starts_with("enc.") {
            continue;
        }
        let facts = layers.entry(layer).or_default();
        match tensor.role {
            Role::Attention => facts.attention = true,
            Role::Recurrent => facts.recurrent = true,
            _ => {}
        }
        let rows = Some(tensor.shape[1]);
        if tensor.name.ends_with(".attn_k.weight") {
            facts.k_rows = rows;
        } else if tensor.name.ends_with(".attn_v.weight") {
            facts.v_rows = rows;
        } else if tensor.name.ends_with(".attn_kv_a_mqa.weight") {
            facts.latent_rows = rows;
        }
    }
    layers
}

/// The sliding window of each layer.
fn windows(keys: &ArchKeys<'_>, layer_count: u32) -> Vec<Option<u32>> {
    let arch = keys.architecture;
    let full = vec![None; layer_count as usize];
    let window = match (arch, keys.number("attention.sliding_window")) {
        ("phi3", _) => return full,
        ("exaone4", _) if layer_count != 64 => return full,
        (_, Some(0)) => return full,
        ("llama4", _) => 8192,
        (_, Some(window)) => window,
        ("gemma2" | "exaone4", None) => 4096,
        _ => return full,
    };
    let window = u32::try_from(window).ok();
    if let Some(pattern) = keys.numbers("attention.sliding_window_pattern") {
        return (0..layer_count as usize)
            .map(|layer| window.filter(|_| pattern.get(layer).is_some_and(|&slides| slides != 0)))
            .collect();
    }
    let known = WINDOW_PATTERNS.iter().find(|(name, ..)| *name == arch);
    let written = keys.number("attention.sliding_window_pattern");
    let (period, full_first) = match (written, known) {
        (Some(period), Some((.., full_first))) => (u32::try_from(period).unwrap_or(1), *full_first),
        (None, Some((_, period, full_first))) => (*period, *full_first),
        // an architecture that is not known to slide: count the whole context, which is never too little
        (_, None) => return full,
    };
    (0..layer_count)
        .map(|layer| {
            let slides = match (period, full_first) {
                (0, _) => true,
                (_, true) => layer % period != 0,
                (_, false) => layer % period < period - 1,
            };
            window.filter(|_| slides)
        })
        .collect()
}

/// Whether layers are recurrent by the metadata, for architectures whose tensors do not show it.
struct RecurrentByKeys {
    marked: PerLayer,
    interval: Option<u64>,
}

impl RecurrentByKeys {
    fn new(keys: &ArchKeys<'_>) -> Self {
        let written = keys.number("full_attention_interval");
        Self {
            marked: keys.per_layer("attention.recurrent_layers"),
            interval: match (keys.architecture, written) {
                ("minimax-01", None) => Some(8),
                (_, interval) => interval,
            },
        }
    }

    fn is_recurrent(&self, layer: u32) -> bool {
        if let Some(marked) = self.marked.of(layer) {
            return marked != 0;
        }
        let full = |interval| interval > 0 && (u64::from(layer) + 1) % interval != 0;
        self.interval.is_some_and(full)
    }
}

/// The caches of a model of `layer_count` layers with these tensors.
pub(super) fn geometry(
    keys: &ArchKeys<'_>,
    layer_count: u32,
    tensors: &[TensorInfo],
) -> KvGeometry {
    if UNCACHED.contains(&keys.architecture) {
        return KvGeometry::default();
    }
    let layers = by_layer(tensors);
    let windows = windows(keys, layer_count);
    let clamp = |elements: u64| u32::try_from(elements).unwrap_or(u32::MAX);

    let predicting = clamp(keys.number("nextn_predict_layers").unwrap_or(0));
    let cached = match (keys.architecture, keys.number("attention.shared_kv_layers")) {
        ("gemma3n", _) => GEMMA3N_CACHED_LAYERS,
        (_, Some(shared)) => layer_count.saturating_sub(clamp(shared)),
        _ if predicting < layer_count => layer_count - predicting,
        _ => layer_count,
    };
    let latent = keys
        .number("attention.key_length_mla")
        .is_some_and(|length| length > 0);

    let recurrent = RecurrentByKeys::new(keys);
    let head_counts = keys.per_layer("attention.head_count");
    let kv_head_counts = keys.per_layer("attention.head_count_kv");

    let geometry = (0..layer_count.min(cached)).filter_map(|layer| {
        let facts = layers.get(&layer)?;
        let parallel = PARALLEL_HYBRIDS.contains(&keys.architecture);
        if !facts.attention || (facts.recurrent && !parallel) || recurrent.is_recurrent(layer) {
            return None;
        }
        let heads = head_counts.of(layer);
        let kv_heads = kv_head_counts.of(layer).or(heads);
        if kv_heads == Some(0) {
            return None;
        }
        let window = windows.get(layer as usize).copied().flatten();
        let cache = |k: u64, v: u64| {
            Some(KvLayer {
                layer,
                k_elements: clamp(k),
                v_elements: clamp(v),
                window,
            })
        };
        if let (true, Some(rows)) = (latent, facts.latent_rows) {
            return cache(rows, 0);
        }
        if let Some(k) = facts.k_rows {
            return cache(k, facts.v_rows.unwrap_or(k));
        }
        let per_head = |key: &str| {
            keys.number(key)
                .or_else(|| keys.number("embedding_length")?.checked_div(heads?))
        };
        let total = |key: &str| Some(per_head(key)?.saturating_mul(kv_heads?));
        cache(
            total("attention.key_length")?,
            total("attention.value_length")?,
        )
    });
    KvGeometry {
        layers: geometry.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::inventory::{names, KeyValues};

    struct Keys {
        scalars: BTreeMap<&'static str, u64>,
        arrays: BTreeMap<&'static str, Vec<u64>>,
        copied: Cell<usize>,
    }

    impl KeyValues for Keys {
        fn number(&self, key: &str) -> Option<u64> {
            self.scalars.get(key.split_once('.')?.1).copied()
        }
        fn numbers(&self, key: &str) -> Option<Vec<u64>> {
            let list = self.arrays.get(key.split_once('.')?.1)?;
            self.copied.set(self.copied.get() + 1);
            Some(list.clone())
        }
        fn string(&self, _: &str) -> Option<String> {
            None
        }
    }

    fn keys(scalars: &[(&'static str, u64)], arrays: &[(&'static str, &[u64])]) -> Keys {
        Keys {
            scalars: scalars.iter().copied().collect(),
            arrays: arrays.iter().map(|(k, v)| (*k, v.to_vec())).collect(),
            copied: Cell::new(0),
        }
    }

    fn tensors(layers: u32, names: &[(&str, u64)]) -> Vec<TensorInfo> {
        (0..layers)
            .flat_map(|layer| {
                names.iter().map(move |(base, rows)| {
                    let name = format!("blk.{layer}.{base}.weight");
                    TensorInfo {
                        layer: Some(layer),
                        role: names::role_of(&name),
                        name,
                        type_name: "f32".to_owned(),
                        ggml_type: 0,
                        shape: [512, *rows, 1, 1],
                        bytes: 0,
                        device_bytes: 0,
                    }
                })
            })
            .collect()
    }

    fn of(arch: &str, layers: u32, keys: &Keys, tensors: &[TensorInfo]) -> Vec<KvLayer> {
        let keys = ArchKeys {
            keys,
            architecture: arch,
        };
        geometry(&keys, layers, tensors).layers
    }

    fn kv(layer: u32, k_elements: u32, v_elements: u32, window: Option<u32>) -> KvLayer {
        KvLayer {
            layer,
            k_elements,
            v_elements,
            window,
        }
    }

    #[test]
    fn grouped_queries() {
        let tensors = tensors(2, &[("attn_q", 512), ("attn_k", 128), ("attn_v", 64)]);
        assert_eq!(
            of("llama", 2, &keys(&[], &[]), &tensors),
            [kv(0, 128, 64, None), kv(1, 128, 64, None)]
        );
    }

    #[test]
    fn fused_projections_use_the_metadata() {
        let tensors = tensors(1, &[("attn_qkv", 1536)]);
        let scalars = [
            ("embedding_length", 512),
            ("attention.head_count", 8),
            ("attention.head_count_kv", 2),
        ];
        assert_eq!(
            of("gpt2", 1, &keys(&scalars, &[]), &tensors),
            [kv(0, 128, 128, None)]
        );
        let wide = [&scalars[..], &[("attention.key_length", 96)]].concat();
        assert_eq!(
            of("gpt2", 1, &keys(&wide, &[]), &tensors),
            [kv(0, 192, 128, None)]
        );
    }

    /// A damaged file may hold a list of millions and thousands of layers.
    #[test]
    fn a_list_is_copied_once_however_many_layers_there_are() {
        let heads = [8; 40];
        let lists: [(&str, &[u64]); 3] = [
            ("attention.head_count", &heads),
            ("attention.head_count_kv", &heads),
            ("attention.recurrent_layers", &[0; 40]),
        ];
        let keys = keys(&[("embedding_length", 512)], &lists);
        let found = of("gpt2", 40, &keys, &tensors(40, &[("attn_qkv", 1536)]));
        assert_eq!(found.len(), 40);
        assert_eq!(keys.copied.get(), lists.len());
    }

    #[test]
    fn latent_attention_caches_k_only() {
        let tensors = tensors(1, &[("attn_kv_a_mqa", 576), ("attn_k_b", 512)]);
        let mla = keys(&[("attention.key_length_mla", 192)], &[]);
        assert_eq!(of("deepseek2", 1, &mla, &tensors), [kv(0, 576, 0, None)]);
    }

    #[test]
    fn windows_by_architecture_scalar_and_array() {
        let tensors = tensors(7, &[("attn_k", 64), ("attn_v", 64)]);
        let slides = |keys: &Keys, arch: &str| -> Vec<bool> {
            of(arch, 7, keys, &tensors)
                .iter()
                .map(|kv| kv.window == Some(32))
                .collect()
        };
        let window = ("attention.sliding_window", 32);
        assert_eq!(
            slides(&keys(&[window], &[]), "gemma3"),
            [true, true, true, true, true, false, true]
        );
        assert_eq!(
            slides(
                &keys(&[window, ("attention.sliding_window_pattern", 3)], &[]),
                "gemma3"
            ),
            [true, true, false, true, true, false, true]
        );
        assert_eq!(
            slides(
                &keys(
                    &[window],
                    &[("attention.sliding_window_pattern", &[0, 1, 0, 0, 1, 1, 0])]
                ),
                "gemma4"
            ),
            [false, true, false, false, true, true, false]
        );
        assert_eq!(slides(&keys(&[window], &[]), "unheard-of"), [false; 7]);
        assert_eq!(slides(&keys(&[], &[]), "gemma3"), [false; 7]);
        assert_eq!(
            slides(&keys(&[window], &[]), "cohere2moe"),
            [false, true, true, true, false, true, true]
        );
    }

    #[test]
    fn layers_without_a_cache() {
        // recurrent by tensors, by head count, by interval, and the layers of a prediction head
        let mut hybrid = tensors(2, &[("attn_k", 64), ("attn_v", 64)]);
        hybrid.extend(tensors(1, &[("ssm_in", 64)]));
        let layers = |arch: &str, keys: &Keys, tensors: &[TensorInfo]| -> Vec<u32> {
            of(arch, 2, keys, tensors)
                .iter()
                .map(|kv| kv.layer)
                .collect()
        };
        assert_eq!(layers("qwen3next", &keys(&[], &[]), &hybrid), [1]);
        assert_eq!(layers("falcon-h1", &keys(&[], &[]), &hybrid), [0, 1]);
        let plain = tensors(2, &[("attn_k", 64), ("attn_v", 64)]);
        let heads = keys(&[], &[("attention.head_count_kv", &[4, 0])]);
        assert_eq!(layers("jamba", &heads, &plain), [0]);
        let interval = keys(&[("full_attention_interval", 2)], &[]);
        assert_eq!(layers("minimax-01", &interval, &plain), [1]);
        let nextn = keys(&[("nextn_predict_layers", 1)], &[]);
        assert_eq!(layers("glm4moe", &nextn, &plain), [0]);
        let shared = keys(&[("attention.shared_kv_layers", 1)], &[]);
        assert_eq!(layers("gemma4", &shared, &plain), [0]);
        assert_eq!(layers("nemotron_h", &keys(&[], &[]), &[]), [] as [u32; 0]);
        assert_eq!(layers("bert", &keys(&[], &[]), &plain), [] as [u32; 0]);
    }
}
