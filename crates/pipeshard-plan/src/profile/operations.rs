//! Which operations a model consists of, and which of them are worth measuring.

use super::of_model::Heads;
use super::types::Op;
use pipeshard_model::inventory::{DType, Inventory, TensorInfo};

/// An operation whose weights are less than this share of all is not measured: its time hardly matters.
const LEAST_SHARE: f64 = 0.005;
/// Elements of a matrix that is measured; of a larger one fewer rows are. Rates do not change beyond.
const MOST_ELEMENTS: u64 = 64 << 20;
/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effort {
    /// A few seconds.
    Quick,
    /// Longer: more operations, batch sizes and repetitions.
    Full,
}

impl Effort {
    /// Products that are measured at most.
    fn products(self) -> usize {
        match self {
            Effort::Quick => 6,
            Effort::Full => 24,
        }
    }

    /// Lengths of the KV cache at which attention is measured.
    fn kv_tokens(self) -> &'static [u64] {
        match self {
            Effort::Quick => &[1024, 16384],
            Effort::Full => &[512, 2048, 8192, 32768],
        }
    }
}

impl Op {
    /// Bytes of the weights or KV cache that it is given.
    pub fn operand_bytes(&self) -> u64 {
        let matrix = |type_name: &str, shape| {
            DType::from_name(type_name).map_or(0, |dtype| dtype.device_bytes(shape))
        };
        match self {
            Op::Product {
                type_name,
                columns,
                rows,
            } => matrix(type_name, [*columns, *rows, 1, 1]),
            Op::Experts {
                type_name,
                columns,
                rows,
                experts,
                ..
            } => matrix(type_name, [*columns, *rows, u64::from(*experts), 1]),
            Op::Sum { .. } => 0,
            Op::Attention {
                head,
                kv_heads,
                type_k,
                type_v,
                kv_tokens,
                ..
            } => {
                let shape = [u64::from(*head) * u64::from(*kv_heads), *kv_tokens, 1, 1];
                matrix(type_k, shape) + matrix(type_v, shape)
            }
        }
    }

    /// The same with fewer rows, experts or KV tokens, so that its operand takes at most `bytes`; none where nothing sensible is left.
    fn within(&self, bytes: u64) -> Option<Op> {
        let mut op = self.clone();
        let whole = self.operand_bytes().max(1);
        let share = |count: u64| (u128::from(count) * u128::from(bytes) / u128::from(whole)) as u64;
        match &mut op {
            Op::Product { columns, rows, .. } => {
                let most = (MOST_ELEMENTS / (*columns).max(1)).min(share(*rows));
                if *rows > most {
                    *rows = most / 64 * 64;
                }
                (*rows > 0).then_some(op)
            }
            Op::Experts { experts, used, .. } => {
                *experts = u64::from(*experts).min(share(u64::from(*experts))) as u32;
                (*experts >= *used).then_some(op)
            }
            Op::Sum { .. } => Some(op),
            Op::Attention { kv_tokens, .. } => {
                if *kv_tokens > share(*kv_tokens) {
                    *kv_tokens = share(*kv_tokens) / 256 * 256;
                }
                (*kv_tokens > 0).then_some(op)
            }
        }
    }

    fn kind(&self) -> (u8, &str) {
        match self {
            Op::Product { type_name, .. } => (0, type_name),
            Op::Experts { type_name, .. } => (1, type_name),
            Op::Attention { .. } => (2, ""),
            Op::Sum { .. } => (3, ""),
        }
    }
}

/// Bytes that an operand may take where measuring may hold `device_memory`: a quarter, rounded to a power of two, so that a little
/// more or less of it does not make for other operations.
fn operand_limit(device_memory: u64) -> u64 {
    let quarter = (device_memory / 4).max(1);
    1 << quarter.ilog2()
}

/// What is worth measuring of a model: the largest product of each type, then others by their share of the weights, then
/// attention at some lengths of the KV cache. Matrices are cut down to what fits into `device_memory` bytes.
pub fn operations(
    inventory: &Inventory,
    type_k: &str,
    type_v: &str,
    device_memory: u64,
    effort: Effort,
) -> Vec<Op> {
    let limit = operand_limit(device_memory);
    let mut products: Vec<(Op, u64)> = Vec::new();
    let known_type = |tensor: &&TensorInfo| DType::from_name(&tensor.type_name).is_some();
    for tensor in inventory.tensors.iter().filter(known_type) {
        let op = Op::of_weight(tensor, inventory).and_then(|op| op.within(limit));
        let Some(op) = op else { continue };
        match products.iter_mut().find(|(known, _)| *known == op) {
            Some((_, bytes)) => *bytes += tensor.bytes,
            None => products.push((op, tensor.bytes)),
        }
    }
    let all: u64 = products.iter().map(|(_, bytes)| bytes).sum();
    products.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    products.retain(|(_, bytes)| *bytes as f64 >= all as f64 * LEAST_SHARE);
    let first_of_kind = |index: usize| {
        let kind = products[index].0.kind();
        !products[..index].iter().any(|(op, _)| op.kind() == kind)
    };
    let (first, rest): (Vec<usize>, Vec<usize>) =
        (0..products.len()).partition(|&index| first_of_kind(index));
    let chosen = first.into_iter().chain(rest).take(effort.products());
    let mut chosen: Vec<Op> = chosen.map(|index| products[index].0.clone()).collect();
    let layers = || inventory.kv.layers.iter();
    let full = layers().find(|kv| kv.window.is_none());
    let attending = full.or_else(|| layers().next());
    let heads = attending.and_then(|kv| Heads::of_layer(inventory, kv.layer));
    // latent attention reads its values out of the keys, which no graph here does
    if let Some(heads) = heads.filter(|heads| heads.values) {
        for &kv_tokens in effort.kv_tokens() {
            match heads.attention(type_k, type_v, kv_tokens).within(limit) {
                Some(op) if !chosen.contains(&op) => chosen.push(op),
                _ => {}
            }
        }
    }
    chosen
}

/// Operations of usual models, for a profile without one: an 8B in f16 and q4_K, and experts of a 30B.
pub fn usual_operations(device_memory: u64, effort: Effort) -> Vec<Op> {
    let product = |type_name: &str, columns, rows| Op::Product {
        type_name: type_name.to_owned(),
        columns,
        rows,
    };
    let attention = |kv_tokens: &u64| Op::Attention {
        head: 128,
        heads: 32,
        kv_heads: 8,
        type_k: "f16".to_owned(),
        type_v: "f16".to_owned(),
        kv_tokens: *kv_tokens,
    };
    let mut all = vec![
        product("f16", 4096, 14336),
        product("q8_0", 4096, 14336),
        product("q4_K", 4096, 14336),
        product("q6_K", 14336, 4096),
        product("q4_0", 4096, 4096),
        Op::Experts {
            type_name: "q4_0".to_owned(),
            columns: 2048,
            rows: 768,
            experts: 128,
            used: 8,
        },
    ];
    all.extend(effort.kv_tokens().iter().map(attention));
    let limit = operand_limit(device_memory);
    all.iter().filter_map(|op| op.within(limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_model::inventory::{KvGeometry, KvLayer, Role};

    fn tensor(name: &str, role: Role, type_name: &str, shape: [u64; 4]) -> TensorInfo {
        let dtype = DType::from_name(type_name).unwrap();
        TensorInfo {
            name: name.to_owned(),
            layer: name.starts_with("blk.").then_some(0),
            role,
            type_name: type_name.to_owned(),
            ggml_type: dtype.id,
            shape,
            bytes: dtype.bytes(shape),
            device_bytes: dtype.device_bytes(shape),
        }
    }

    fn model(tensors: Vec<TensorInfo>) -> Inventory {
        Inventory {
            architecture: "qwen3moe".to_owned(),
            name: None,
            layer_count: 1,
            context_length: 4096,
            embedding_length: 2048,
            vocabulary_size: 1000,
            expert_count: 128,
            expert_used_count: 8,
            tensors,
            kv: KvGeometry {
                layers: vec![KvLayer {
                    layer: 0,
                    k_elements: 512,
                    v_elements: 512,
                    window: None,
                }],
            },
            tied_output: false,
            file_bytes: 0,
        }
    }

    fn mixture() -> Inventory {
        model(vec![
            tensor(
                "token_embd.weight",
                Role::TokenEmbedding,
                "q4_0",
                [2048, 150_000, 1, 1],
            ),
            tensor("blk.0.attn_norm.weight", Role::Norm, "f32", [2048, 1, 1, 1]),
            tensor(
                "blk.0.attn_q.weight",
                Role::Attention,
                "q4_0",
                [2048, 4096, 1, 1],
            ),
            tensor(
                "blk.0.attn_k_norm.weight",
                Role::Norm,
                "f32",
                [128, 1, 1, 1],
            ),
            tensor(
                "blk.0.attn_output.weight",
                Role::Attention,
                "q4_0",
                [4096, 2048, 1, 1],
            ),
            tensor(
                "blk.0.ffn_gate_inp.weight",
                Role::Router,
                "f32",
                [2048, 8, 1, 1],
            ),
            tensor(
                "blk.0.ffn_up_exps.weight",
                Role::Experts,
                "q4_0",
                [2048, 768, 128, 1],
            ),
            tensor("output.weight", Role::Output, "q6_K", [2048, 150_000, 1, 1]),
        ])
    }

    #[test]
    fn a_mixture_is_measured_by_its_kinds() {
        let ops = operations(&mixture(), "f16", "f16", 768 << 20, Effort::Quick);
        assert_eq!(
            ops[0],
            Op::Product {
                type_name: "q6_K".to_owned(),
                columns: 2048,
                rows: 32768,
            },
            "the head, cut down"
        );
        assert!(matches!(
            ops[1],
            Op::Experts {
                experts: 128,
                used: 8,
                ..
            }
        ));
        assert!(matches!(
            ops[2],
            Op::Product {
                columns: 2048,
                rows: 4096,
                ..
            }
        ));
        assert_eq!(
            ops.last(),
            Some(&Op::Attention {
                head: 128,
                heads: 32,
                kv_heads: 4,
                type_k: "f16".to_owned(),
                type_v: "f16".to_owned(),
                kv_tokens: 16384,
            })
        );
        let routers = |op: &&Op| matches!(op, Op::Product { type_name, .. } if type_name == "f32");
        assert_eq!(ops.iter().filter(routers).count(), 0, "too small to matter");
    }

    #[test]
    fn little_memory_makes_for_smaller_operations() {
        for device_memory in [8 << 20, 40 << 20, 512 << 20] {
            let ops = operations(&mixture(), "q8_0", "q8_0", device_memory, Effort::Full);
            assert!(!ops.is_empty());
            for op in ops {
                assert!(op.operand_bytes() <= device_memory / 4, "{op:?}");
            }
        }
        let near = |bytes| operations(&mixture(), "f16", "f16", bytes, Effort::Quick);
        assert_eq!(near(700 << 20), near(640 << 20));
    }

    #[test]
    fn a_tied_head_is_a_product_and_a_looked_up_table_is_none() {
        let mut model = mixture();
        let embedding = model.tensors[0].clone();
        assert_eq!(Op::of_weight(&embedding, &model), None);
        model.tied_output = true;
        assert!(Op::of_weight(&embedding, &model).is_some());
    }

    #[test]
    fn a_head_size_is_found_without_norms() {
        let mut model = mixture();
        model.tensors.retain(|t| !t.name.contains("norm"));
        model.kv.layers[0].k_elements = 192;
        model.kv.layers[0].v_elements = 192;
        for tensor in &mut model.tensors {
            if tensor.name.ends_with("attn_output.weight") {
                tensor.shape[0] = 576;
            }
        }
        let heads = |size, queries, keys| Heads {
            size,
            queries,
            keys,
            values: true,
        };
        assert_eq!(Heads::of_layer(&model, 0), Some(heads(64, 9, 3)));
        assert_eq!(Heads::of_layer(&model, 1), None);
    }

    #[test]
    fn a_norm_of_all_heads_at_once_does_not_show_their_size() {
        let mut model = mixture();
        for tensor in &mut model.tensors {
            if tensor.name.ends_with("attn_k_norm.weight") {
                tensor.shape[0] = 512;
            }
        }
        let heads = Heads::of_layer(&model, 0);
        assert_eq!(heads.map(|heads| heads.size), Some(128));
    }
}
