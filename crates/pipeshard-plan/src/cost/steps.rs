//! What a pass does, in order, whatever the plan.
//!
//! The order is that of the model's tensors. Attention itself, which reads no weights, comes in front of its output
//! projection. A norm is a step of its own because the device computes it wherever its neighbours are.

use crate::constants::graph::{AROUND_ATTENTION, AROUND_ROUTER, SMALL_OPERATIONS};
use crate::profile::{Heads, Op};
use pipeshard_model::inventory::{Inventory, Role, TensorInfo};
use std::collections::HashMap;

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
    /// Attention over the KV cache of a layer, of a kind of cache.
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
    pub heads: Heads,
    pub window: Option<u32>,
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
        let tensors = &inventory.tensors;
        let mut known: HashMap<Op, OpId> = HashMap::new();
        for (tensor, op_of) in tensors.iter().zip(&mut steps.op_of) {
            *op_of = Op::of_weight(tensor, inventory).map(|op| {
                *known.entry(op).or_insert_with_key(|op| {
                    steps.ops.push(op.clone());
                    OpId::try_from(steps.ops.len() - 1).unwrap_or(OpId::MAX)
                })
            });
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
        let heads = layer.and_then(|layer| Heads::of_layer(inventory, layer));
        if let (Some(kv), Some(heads)) = (own, heads) {
            let window = kv.window;
            *cache = Some((kv.layer, Cache { heads, window }));
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
        // layers without a KV cache read that of an earlier layer
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
        let heads = cache.heads;
        let queries = f64::from(heads.size) * f64::from(heads.queries);
        let keys = f64::from(heads.size) * f64::from(heads.keys);
        self.steps.push(Step {
            layer,
            work: Work::Attention {
                layer: owner,
                kind: kind as u16,
            },
            rows: Rows::All,
            takes: queries + keys * if heads.values { 2.0 } else { 1.0 },
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
            Op::Attention { .. } | Op::Sum { .. } => return,
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
