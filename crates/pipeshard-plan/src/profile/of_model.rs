//! Which operation a tensor or a KV cache of a model is. What is measured and what is priced are both made here, so that a
//! measured curve is found again by the model that it was measured for.

use super::types::Op;
use pipeshard_model::inventory::{Inventory, Role, TensorInfo};

/// Head sizes that models have, those that most of them have first: for models whose tensors do not show theirs.
const HEAD_SIZES: [u64; 6] = [128, 64, 256, 96, 80, 32];
/// The norm of all heads at once is longer than any head.
const LONGEST_HEAD: u64 = 256;

impl Op {
    /// The product that a weight takes part in; none for what is not multiplied (norms, biases, looked-up rows). Matrices that
    /// are stacked, but not to choose from, count as one.
    pub fn of_weight(tensor: &TensorInfo, inventory: &Inventory) -> Option<Op> {
        let head = inventory.tied_output && tensor.name == "token_embd.weight";
        let looked_up = tensor.role == Role::TokenEmbedding && !head;
        let bias = tensor.name.ends_with(".bias");
        if !tensor.is_matrix() || tensor.role == Role::Norm || looked_up || bias {
            return None;
        }
        let type_name = tensor.type_name.clone();
        let [columns, rows, stack, outer] = tensor.shape;
        if tensor.role == Role::Experts && stack > 1 {
            let experts = u32::try_from(stack).unwrap_or(u32::MAX);
            return Some(Op::Experts {
                type_name,
                columns,
                rows,
                experts,
                used: inventory.expert_used_count.clamp(1, experts),
            });
        }
        let stacked = rows.saturating_mul(stack.max(1));
        Some(Op::Product {
            type_name,
            columns,
            rows: stacked.saturating_mul(outer.max(1)),
        })
    }
}

/// How the attention of a layer is divided into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Elements of a head's key.
    pub size: u32,
    /// Query heads.
    pub queries: u32,
    /// Key and value heads.
    pub keys: u32,
    /// Values are stored, and not derived from the keys as in latent attention.
    pub values: bool,
}

impl Heads {
    /// Those of a layer; none for a layer without a cache of its own.
    ///
    /// The size of a head is read from the norm of the keys or queries, from the rotary factors, or else assumed: only the
    /// product of heads and their size has much influence.
    pub fn of_layer(inventory: &Inventory, layer: u32) -> Option<Heads> {
        let kv = inventory.kv.layer(layer)?;
        let elements = u64::from(kv.k_elements);
        if elements == 0 {
            return None;
        }
        let shape = |suffix: &str| {
            let mut tensors = inventory.layer(layer);
            let tensor = tensors.find(|tensor| tensor.name.ends_with(suffix));
            tensor.map(|tensor| tensor.shape)
        };
        let count = |heads: u64| u32::try_from(heads).unwrap_or(u32::MAX).max(1);
        if kv.v_elements == 0 {
            return Some(Heads {
                size: kv.k_elements,
                queries: count(shape(".attn_k_b.weight").map_or(1, |shape| shape[2])),
                keys: 1,
                values: false,
            });
        }
        let output = shape(".attn_output.weight").map(|shape| shape[0]);
        let queries = output.or_else(|| shape(".attn_q.weight").map(|shape| shape[1]));
        let queries = queries
            .filter(|width| *width >= elements)
            .unwrap_or(elements);
        let fits = |size: &u64| {
            *size > 0 && elements.is_multiple_of(*size) && queries.is_multiple_of(*size)
        };
        let normed = [".attn_k_norm.weight", ".attn_q_norm.weight"];
        let normed = normed.iter().filter_map(|name| shape(name)).map(|s| s[0]);
        let rotated = inventory.tensor("rope_freqs.weight");
        let rotated = rotated.map(|tensor| tensor.shape[0].saturating_mul(2));
        let known = normed
            .chain(rotated)
            .filter(|&size| size < elements || size <= LONGEST_HEAD);
        let size = known.chain(HEAD_SIZES).find(fits).unwrap_or(elements);
        Some(Heads {
            size: count(size),
            queries: count(queries / size),
            keys: count(elements / size),
            values: true,
        })
    }

    /// Attention over `kv_tokens` tokens. Where no values are stored, their type is empty.
    pub fn attention(&self, type_k: &str, type_v: &str, kv_tokens: u64) -> Op {
        Op::Attention {
            head: self.size,
            heads: self.queries,
            kv_heads: self.keys,
            type_k: type_k.to_owned(),
            type_v: match self.values {
                true => type_v.to_owned(),
                false => String::new(),
            },
            kv_tokens,
        }
    }
}
