//! Seconds for each operation of a model, looked up once.

use super::steps::{OpId, Steps};
use super::types::ModelShape;
use crate::profile::{Op, Processor, Profile};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

/// Bytes per element of an activation.
const ACTIVATION: f64 = 4.0;

/// What an operation takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Times {
    pub gpu: f64,
    pub cpu: f64,
    /// On the CPU, while the copy lane reads host memory too.
    pub cpu_copy_busy: f64,
    /// Bytes of weights or KV cache that are read.
    pub bytes: f64,
    /// Bytes of all KV cache that an attention is given, also of the tokens that only later rows look at.
    pub kv_bytes: f64,
}

impl Times {
    pub fn on(&self, on: Processor) -> f64 {
        match on {
            Processor::Cpu => self.cpu,
            Processor::Gpu => self.gpu,
        }
    }
}

/// What the operations of a model cost on a machine.
///
/// Making it takes the model apart; what is asked is remembered. So a search makes it once.
pub struct Costs<'a> {
    pub(super) model: ModelShape<'a>,
    /// As runs of this model have shown it.
    pub(super) profile: Cow<'a, Profile>,
    pub(super) steps: Steps,
    /// Per operation: batch sizes that were asked for.
    products: RefCell<Vec<Vec<(u32, Times)>>>,
    /// By kind, tokens of each sequence, KV tokens that they see on average, and KV tokens that they are given.
    attention: RefCell<HashMap<(u16, u32, u64, u64), Times>>,
}

impl<'a> Costs<'a> {
    /// Takes the model apart.
    pub fn new(model: ModelShape<'a>, profile: &'a Profile) -> Self {
        let steps = Steps::of(model.inventory);
        Costs {
            products: RefCell::new(vec![Vec::new(); steps.ops.len()]),
            attention: RefCell::default(),
            profile: profile.for_model(model.inventory),
            model,
            steps,
        }
    }

    /// Seconds that the operation on the weights of one unit takes for `rows` tokens, read where `on` computes it: in the
    /// device's memory or in the host's. 0 for a unit that no product reads.
    pub fn unit_seconds(&self, unit: usize, rows: u32, on: Processor) -> f64 {
        let op = self.steps.op_of.get(unit).copied().flatten();
        op.map_or(0.0, |op| self.product(op, rows).on(on))
    }

    /// Seconds that `rows` tokens of one sequence, which has `kv_tokens` tokens in its cache already, take for the attention of a
    /// layer. 0 for a layer without a cache of its own.
    pub fn attention_seconds(&self, layer: u32, rows: u32, kv_tokens: u64, on: Processor) -> f64 {
        let mut steps = self.steps.steps.iter();
        let kind = steps.find_map(|step| match step.work {
            super::steps::Work::Attention { layer: of, kind } if of == layer => Some(kind),
            _ => None,
        });
        kind.map_or(0.0, |kind| self.attend(kind, rows, 1, kv_tokens).on(on))
    }

    /// Seconds to move an activation of so many elements per token to the other processor.
    pub(super) fn hand_over(&self, to: Processor, elements: f64, rows: u32) -> f64 {
        let link = &self.profile.link;
        let bytes = elements * ACTIVATION * f64::from(rows);
        let overheads = &self.profile.overheads;
        match to {
            Processor::Cpu => {
                overheads.to_cpu.median + at(bytes, or(link.back.median, link.pinned.median))
            }
            Processor::Gpu => overheads.to_gpu.median + at(bytes, link.pinned.median),
        }
    }

    /// Seconds for small operations over activations of so many elements per token.
    pub(super) fn small(&self, on: Processor, count: f64, elements: f64, rows: u32) -> f64 {
        let each = match on {
            Processor::Gpu => self.profile.overheads.launch.median,
            Processor::Cpu => self.profile.overheads.cpu_op.median,
        };
        count * (each + self.traffic(on, 2.0 * elements, rows))
    }

    /// Seconds to read or write activations of so many elements per token.
    fn traffic(&self, on: Processor, elements: f64, rows: u32) -> f64 {
        at(
            elements * ACTIVATION * f64::from(rows),
            self.profile.roofline(on).bytes,
        )
    }

    /// A product, and what reads its result.
    pub(super) fn product(&self, op: OpId, rows: u32) -> Times {
        let mut products = self.products.borrow_mut();
        let Some(known) = products.get_mut(usize::from(op)) else {
            return Times::default();
        };
        if let Some(&(_, times)) = known.iter().find(|(of, _)| *of == rows) {
            return times;
        }
        let op = &self.steps.ops[usize::from(op)];
        let leaves = match op {
            Op::Product { rows, .. } => *rows as f64,
            Op::Experts { rows, used, .. } => *rows as f64 * f64::from(*used),
            Op::Attention { .. } | Op::Sum { .. } => 0.0,
        };
        let times = self.times(op, rows, leaves);
        known.push((rows, times));
        times
    }

    /// Attention of `rows` tokens, evenly of `sequences` sequences, each of which has `kv_tokens` tokens in its cache already.
    pub(super) fn attend(&self, kind: u16, rows: u32, sequences: u32, kv_tokens: u64) -> Times {
        let Some(cache) = self.steps.caches.get(usize::from(kind)) else {
            return Times::default();
        };
        let sequences = sequences.max(1);
        let each = rows.div_ceil(sequences);
        // a token sees the ones before it, so half of the batch on average
        let own = u64::from(each).div_ceil(2);
        let window = cache.window.map_or(u64::MAX, u64::from);
        // a sequence's tokens see only their own sequence
        let behind = |own: u64| {
            let kv_tokens = kv_tokens.min(window).saturating_add(own);
            kv_tokens.saturating_mul(u64::from(sequences))
        };
        let (seen, given) = (behind(own), behind(u64::from(each)));
        let key = (kind, each, seen, given);
        if let Some(&times) = self.attention.borrow().get(&key) {
            return times;
        }
        let (type_k, type_v) = (self.model.type_k, self.model.type_v);
        let over = |kv_tokens| cache.heads.attention(type_k, type_v, kv_tokens);
        let times = Times {
            kv_bytes: over(given).work(each).bytes,
            ..self.times(&over(seen), each, 0.0)
        };
        self.attention.borrow_mut().insert(key, times);
        times
    }

    fn times(&self, op: &Op, rows: u32, leaves: f64) -> Times {
        let profile = &self.profile;
        let cpu = profile.seconds(Processor::Cpu, op, rows, false);
        let busy = profile.seconds(Processor::Cpu, op, rows, true);
        let traffic = self.traffic(Processor::Cpu, leaves, rows);
        Times {
            gpu: profile.seconds(Processor::Gpu, op, rows, false)
                + self.traffic(Processor::Gpu, leaves, rows),
            cpu: cpu + traffic,
            cpu_copy_busy: busy.max(cpu) + traffic,
            bytes: op.work(rows).bytes,
            kv_bytes: 0.0,
        }
    }
}

/// Seconds for an amount at a rate; what has no rate takes no time.
pub(super) fn at(amount: f64, rate: f64) -> f64 {
    if rate > 0.0 {
        amount / rate
    } else {
        0.0
    }
}

/// The first figure, unless it was not measured.
pub(super) fn or(first: f64, second: f64) -> f64 {
    if first > 0.0 {
        first
    } else {
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{shape, Machine};
    use pipeshard_model::test_support::SMALL;

    #[test]
    fn the_price_of_attention_does_not_depend_on_what_was_asked_before() {
        let model = SMALL.inventory();
        let profile = Machine::measured().profile();
        // both see 1032 KV tokens on average for each of 64 tokens, and are given 1064 and 1096
        let asked = [(64, 1, 1000), (128, 2, 484)];
        let alone = asked.map(|(rows, sequences, kv_tokens)| {
            Costs::new(shape(&model), &profile).attend(0, rows, sequences, kv_tokens)
        });
        assert!(alone[0].kv_bytes < alone[1].kv_bytes, "{alone:?}");
        let costs = Costs::new(shape(&model), &profile);
        let behind =
            asked.map(|(rows, sequences, kv_tokens)| costs.attend(0, rows, sequences, kv_tokens));
        assert_eq!(alone, behind);
    }
}
