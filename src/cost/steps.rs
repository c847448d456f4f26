//! What a pass does, in order, whatever the plan.
//!
//! The order is that of the model's tensors. Attention itself, which reads no weights, comes in front of its output
//! projection. A norm is a step of its own because the device computes it wherever its neighbours are.

use crate::inventory::{Inventory, KvLayer, Role, TensorInfo};
use crate::profile::Op;

/// Small operations of a layer beside its products and its attention: norms, rotations, stores to the cache, sums, the
/// activation. ggml's kernels fuse some of them.
const SMALL_OPERATIONS: f64 = 10.0;
/// Of these, so many stand around attention: rotations and stores.
const AROUND_ATTENTION: f64 = 4.0;
/// What choosing experts and weighing their results takes besides.
const AROUND_ROUTER: f64 = 5.0;
/// The usual lengths of a head, for models whose tensors do not show it.
const HEAD_LENGTHS: [u64; 5] = [128, 64, 256, 96, 80];

/// Index of a distinct operation.
pub(super) type OpId = u16;

/// Which rows an operation sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Those of the pass.
    All,
    /// Those whose logits are wanted.
    Outputs,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// A product with a unit's weights.
    Weights { unit: u32, op: OpId },
    /// Attention over the cells of a layer, of a kind of cache.
    Attention { layer: u32, kind: u16 },
    /// A norm and its like.
    Small,
}

/// One step of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub layer: Option<u32>,
    pub work: Work,
    pub rows: Rows,
    /// Elements per token that it takes from the step before.
    pub takes: f64,
    /// Elements per token that it leaves.
    pub leaves: f64,
    /// Small operations that go with it.
    pub small: f64,
}

/// A kind of cache: layers that share it cost the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cache {
    pub head: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub window: Option<u32>,
    /// Values are stored, and not derived from the keys.
    pub values: bool,
}

impl Cache {
    /// The operation over so many cells.
    pub fn op(&self, type_k: &str, type_v: &str, cells: u64) -> Op {
        Op::Attention {
            head: self.head,
            heads: self.heads,
            kv_heads: self.kv_heads,
            type_k: type_k.to_owned(),
            type_v: match self.values {
                true => type_v.to_owned(),
                false => String::new(),
            },
            cells,
        }
    }
}

/// A model taken apart.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub steps: Vec<Step>,
    pub ops: Vec<Op>,
    /// Of each tensor; none where no product reads it.
    pub op_of: Vec<Option<OpId>>,
    pub caches: Vec<Cache>,
}

impl Steps {
    pub fn of(inventory: &Inventory) -> Self {
        let mut steps = Steps {
            op_of: vec![None; inventory.tensors.len()],
            ..Steps::default()
        };
        let mut known: Vec<(&TensorInfo, OpId)> = Vec::new();
        let tensors = &inventory.tensors;
        for (index, tensor) in tensors.iter().enumerate() {
            let head = inventory.tied_output && tensor.name == "token_embd.weight";
            if is_product(tensor) || head {
                let like = |(other, _): &&(&TensorInfo, OpId)| {
                    other.ggml_type == tensor.ggml_type
                        && other.shape == tensor.shape
                        && (other.role == Role::Experts) == (tensor.role == Role::Experts)
                };
                let id = match known.iter().find(like) {
                    Some(&(_, id)) => id,
                    None => {
                        let id = OpId::try_from(steps.ops.len()).unwrap_or(OpId::MAX);
                        steps.ops.push(product(tensor, inventory));
                        known.push((tensor, id));
                        id
                    }
                };
                steps.op_of[index] = Some(id);
            }
        }
        let mut from = 0;
        let mut cache = None;
        let evaluated = |range: &[TensorInfo]| !range.iter().any(|t| t.name.contains(".nextn."));
        let layers: Vec<(usize, usize)> = runs(tensors)
            .filter(|&(from, to)| tensors[from].layer.is_some() && evaluated(&tensors[from..to]))
            .collect();
        let last = layers.last().copied();
        for (begin, end) in layers {
            steps.outside(inventory, from, begin);
            steps.layer(
                inventory,
                (begin, end),
                &mut cache,
                last == Some((begin, end)),
            );
            from = end;
        }
        steps.outside(inventory, from, tensors.len());
        if inventory.tied_output {
            let tied = tensors.iter().position(|t| t.name == "token_embd.weight");
            steps.weights(inventory, tied.unwrap_or(0), Rows::Outputs);
        }
        steps
    }

    /// What stands before or behind the layers.
    fn outside(&mut self, inventory: &Inventory, from: usize, to: usize) {
        for index in from..to {
            let tensor = &inventory.tensors[index];
            let skipped = tensor.layer.is_some() || tensor.role == Role::TokenEmbedding;
            let behind = tensor.role == Role::Output || tensor.name.starts_with("output");
            let rows = if behind { Rows::Outputs } else { Rows::All };
            match tensor.role {
                _ if skipped => {}
                Role::Norm if !tensor.name.ends_with(".bias") => {
                    self.small(inventory, None, rows, 2.0);
                }
                _ => self.weights(inventory, index, rows),
            }
        }
    }

    fn layer(
        &mut self,
        inventory: &Inventory,
        (from, to): (usize, usize),
        cache: &mut Option<(u32, Cache)>,
        last: bool,
    ) {
        let tensors = &inventory.tensors[from..to];
        let layer = tensors[0].layer;
        let own = layer.and_then(|layer| inventory.kv.layer(layer));
        if let (Some(kv), Some(layer)) = (own, layer) {
            *cache = Some((layer, cache_of(kv, tensors)));
        }
        let projects = |t: &TensorInfo| {
            const BEHIND: [&str; 5] = [
                "attn_v_b",
                "attn_gate",
                "attn_sub_norm",
                "attn_output",
                "attn_o.",
            ];
            let base = t
                .name
                .rsplit("blk.")
                .next()
                .and_then(|rest| rest.split_once('.'));
            base.is_some_and(|(_, base)| BEHIND.iter().any(|b| base.starts_with(b)))
        };
        let mixes = |t: &TensorInfo| matches!(t.role, Role::Attention | Role::Recurrent);
        let mixed = tensors.iter().rposition(mixes).map_or(0, |at| at + 1);
        let recurrent = tensors.iter().any(|t| t.role == Role::Recurrent);
        // layers without cells of their own read those of a layer before
        let attends = own.is_some() || (!recurrent && mixed > 0 && tensors.iter().any(projects));
        let attention_at = match cache.filter(|_| attends) {
            Some(_) => tensors[..mixed].iter().position(projects).unwrap_or(mixed),
            None => usize::MAX,
        };
        let norms = tensors.iter().filter(|t| is_norm(t)).count();
        let around = if attention_at < usize::MAX || recurrent {
            AROUND_ATTENTION
        } else {
            0.0
        };
        let per_norm = (SMALL_OPERATIONS - around) / (norms.max(1) as f64);
        for (at, tensor) in tensors.iter().enumerate() {
            if at == attention_at {
                self.attention(layer, cache);
            }
            let rows = if last && at >= mixed {
                Rows::Outputs
            } else {
                Rows::All
            };
            match tensor.role {
                Role::Norm if is_norm(tensor) => self.small(inventory, layer, rows, per_norm),
                Role::Norm | Role::TokenEmbedding => {}
                _ => self.weights(inventory, from + at, rows),
            }
        }
        if attention_at == tensors.len() {
            self.attention(layer, cache);
        }
    }

    fn attention(&mut self, layer: Option<u32>, cache: &Option<(u32, Cache)>) {
        let Some((owner, cache)) = *cache else { return };
        let kind = match self.caches.iter().position(|known| *known == cache) {
            Some(kind) => kind,
            None => {
                self.caches.push(cache);
                self.caches.len() - 1
            }
        };
        let queries = f64::from(cache.head) * f64::from(cache.heads);
        let keys = f64::from(cache.head) * f64::from(cache.kv_heads);
        self.steps.push(Step {
            layer,
            work: Work::Attention {
                layer: owner,
                kind: kind as u16,
            },
            rows: Rows::All,
            takes: queries + keys * if cache.values { 2.0 } else { 1.0 },
            leaves: queries,
            small: AROUND_ATTENTION,
        });
    }

    fn small(&mut self, inventory: &Inventory, layer: Option<u32>, rows: Rows, small: f64) {
        let width = f64::from(inventory.embedding_length);
        self.steps.push(Step {
            layer,
            work: Work::Small,
            rows,
            takes: width,
            leaves: width,
            small,
        });
    }

    fn weights(&mut self, inventory: &Inventory, index: usize, rows: Rows) {
        let Some(op) = self.op_of[index] else { return };
        let tensor = &inventory.tensors[index];
        let (takes, leaves) = match &self.ops[usize::from(op)] {
            Op::Product { columns, rows, .. } => (*columns as f64, *rows as f64),
            Op::Experts {
                columns,
                rows,
                used,
                ..
            } => (*columns as f64, *rows as f64 * f64::from(*used)),
            Op::Attention { .. } => return,
        };
        self.steps.push(Step {
            layer: tensor.layer,
            work: Work::Weights {
                unit: index as u32,
                op,
            },
            rows,
            takes,
            leaves,
            small: match tensor.role {
                Role::Router => AROUND_ROUTER,
                _ => 0.0,
            },
        });
    }
}

/// Runs of tensors of one layer, or of none, as ranges.
fn runs(tensors: &[TensorInfo]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let first = tensors.get(from)?;
        let same = |t: &&TensorInfo| t.layer == first.layer;
        let begin = from;
        from += tensors[begin..].iter().take_while(same).count();
        Some((begin, from))
    })
}

fn is_norm(tensor: &TensorInfo) -> bool {
    tensor.role == Role::Norm && !tensor.name.ends_with(".bias")
}

fn is_product(tensor: &TensorInfo) -> bool {
    tensor.is_matrix()
        && !matches!(tensor.role, Role::Norm | Role::TokenEmbedding)
        && !tensor.name.ends_with(".bias")
}

fn product(tensor: &TensorInfo, inventory: &Inventory) -> Op {
    let type_name = tensor.type_name.clone();
    let [columns, rows, stacked, more] = tensor.shape;
    match tensor.role {
        Role::Experts if stacked > 1 => Op::Experts {
            type_name,
            columns,
            rows,
            experts: u32::try_from(stacked).unwrap_or(u32::MAX),
            used: inventory.expert_used_count.max(1),
        },
        _ => Op::Product {
            type_name,
            columns,
            rows: rows
                .saturating_mul(stacked.max(1))
                .saturating_mul(more.max(1)),
        },
    }
}

/// How attention is divided into heads, by the tensors of its layer.
fn cache_of(kv: &KvLayer, tensors: &[TensorInfo]) -> Cache {
    let named = |base: &str| {
        let ends = move |t: &&TensorInfo| t.name.ends_with(base);
        tensors.iter().find(ends)
    };
    let small = |elements: u64| u32::try_from(elements).unwrap_or(u32::MAX).max(1);
    let keys = u64::from(kv.k_elements).max(1);
    if kv.v_elements == 0 {
        let heads = named(".attn_k_b.weight").map_or(1, |t| t.shape[2]);
        return Cache {
            head: small(keys),
            heads: small(heads),
            kv_heads: 1,
            window: kv.window,
            values: false,
        };
    }
    let output = named(".attn_output.weight").map(|t| t.shape[0]);
    let queries = output.or_else(|| named(".attn_q.weight").map(|t| t.shape[1]));
    let queries = queries.unwrap_or(keys).max(1);
    let divides = |length: &u64| *length > 0 && keys % length == 0 && queries % length == 0;
    let shown = ["attn_k_norm.weight", "attn_q_norm.weight"];
    let shown = shown
        .iter()
        .find_map(|name| named(name))
        .map(|t| t.shape[0]);
    let head = shown
        .filter(divides)
        .or_else(|| HEAD_LENGTHS.into_iter().find(divides));
    let head = head.unwrap_or(keys);
    Cache {
        head: small(head),
        heads: small(queries / head),
        kv_heads: small(keys / head),
        window: kv.window,
        values: true,
    }
}
