//! What a model consists of: which tensors, in which layer, for what, how large on the host and on a GPU, and how
//! large its attention caches grow. The inventory is the planner's input. It can be taken from a GGUF file without
//! loading it (`pipeshard-gguf`) and from the tensors of a loaded model; both give the same.

mod dtype;
mod error;
mod keys;
mod kv;
mod names;
mod routing;
mod types;

use std::collections::HashSet;

pub use dtype::{DType, DTYPES};
pub use error::MissingKey;
pub use keys::KeyValues;
pub use names::{canonical_order, layer_of, role_of};
pub use routing::expected_distinct;
pub use types::{kv_bytes, Inventory, KvGeometry, KvLayer, Role, TensorInfo};

use keys::ArchKeys;

/// A weight tensor as llama.cpp has it in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedTensor {
    /// Its name.
    pub name: String,
    /// ggml's number of its type.
    pub ggml_type: u32,
    /// Elements per dimension, fastest first, 1 where a dimension is absent.
    pub ne: [i64; 4],
    /// What `ggml_nbytes` says.
    pub nbytes: u64,
}

impl Inventory {
    /// Takes the inventory of a model that llama.cpp has loaded. A tensor that occurs twice (a tied output head on
    /// another device) counts once. `keys` answers with the model's metadata; arrays may be missing from it, then
    /// per-layer facts come from the tensors' shapes.
    ///
    /// # Errors
    /// [`MissingKey`] when the metadata does not name the architecture or the number of layers.
    pub fn from_loaded(
        tensors: impl Iterator<Item = LoadedTensor>,
        keys: &dyn KeyValues,
    ) -> Result<Self, MissingKey> {
        build(tensors, keys)
    }
}

/// More layers than any model has; llama.cpp allows 512. A damaged count must not keep us busy for minutes.
const MAX_LAYERS: u32 = 4096;

/// Architectures that make embeddings or ranks, and have no output head; that they have no tensor for one does not mean
/// that the token embedding stands in for it.
const WITHOUT_HEAD: &[&str] = &[
    "bert",
    "eurobert",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
];

fn tensor_info(loaded: LoadedTensor) -> TensorInfo {
    let shape = loaded.ne.map(|n| u64::try_from(n).unwrap_or(0));
    let dtype = DType::from_id(loaded.ggml_type);
    TensorInfo {
        layer: layer_of(&loaded.name),
        role: role_of(&loaded.name),
        type_name: dtype.map_or_else(
            || format!("type-{}", loaded.ggml_type),
            |dtype| dtype.name.to_owned(),
        ),
        ggml_type: loaded.ggml_type,
        shape,
        bytes: loaded.nbytes,
        device_bytes: loaded
            .nbytes
            .saturating_add(dtype.map_or(0, |dtype| dtype.tail_bytes(shape[0]))),
        name: loaded.name,
    }
}

fn build(
    tensors: impl Iterator<Item = LoadedTensor>,
    keys: &dyn KeyValues,
) -> Result<Inventory, MissingKey> {
    let missing = |key: &str| MissingKey {
        key: key.to_owned(),
    };
    let architecture = keys
        .string("general.architecture")
        .ok_or_else(|| missing("general.architecture"))?;
    let arch = ArchKeys {
        keys,
        architecture: &architecture,
    };
    let clamp = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let layer_count = arch
        .number("block_count")
        .map(clamp)
        .filter(|count| (1..=MAX_LAYERS).contains(count))
        .ok_or_else(|| missing(&format!("{architecture}.block_count")))?;

    let mut seen = HashSet::new();
    let mut tensors: Vec<TensorInfo> = tensors
        .filter(|tensor| seen.insert(tensor.name.clone()))
        .map(tensor_info)
        .collect();
    tensors.sort_by(canonical_order);

    let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let embedding = named("token_embd.weight");
    let tied_output = embedding.is_some()
        && !WITHOUT_HEAD.contains(&architecture.as_str())
        && !tensors
            .iter()
            .any(|tensor| tensor.role == Role::Output && tensor.layer.is_none());
    Ok(Inventory {
        name: keys.string("general.name"),
        layer_count,
        context_length: arch.number("context_length").map_or(0, clamp),
        embedding_length: arch
            .number("embedding_length")
            .or_else(|| embedding.map(|tensor| tensor.shape[0]))
            .map_or(0, clamp),
        vocabulary_size: embedding
            .map(|tensor| tensor.shape[1])
            .or_else(|| arch.number("vocab_size"))
            .map_or(0, clamp),
        expert_count: arch.number("expert_count").map_or(0, clamp),
        expert_used_count: arch.largest("expert_used_count").map_or(0, clamp),
        kv: kv::geometry(&arch, layer_count, &tensors),
        tied_output,
        file_bytes: tensors
            .iter()
            .fold(0, |sum: u64, tensor| sum.saturating_add(tensor.bytes)),
        tensors,
        architecture,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_loaded_model_without_metadata_is_refused() {
        let error = Inventory::from_loaded(std::iter::empty(), &BTreeMap::new()).unwrap_err();
        assert!(
            error.to_string().contains("general.architecture"),
            "{error}"
        );
    }
}
