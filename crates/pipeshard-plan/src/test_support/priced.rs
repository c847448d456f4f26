//! What a profile measures for a model is what the cost model looks up for it: the check, for models of any source.

use super::{shape, Machine};
use crate::cost::{Costs, ModelShape};
use crate::profile::{operations, Curve, Effort, Op, Point, Processor, Profile};
use pipeshard_model::inventory::{Inventory, TensorInfo};

/// Products with less of the weights than this, a share, need not be measured.
const HARDLY_MATTERS: f64 = 0.005;
/// A larger matrix, in elements, is measured in part.
const MEASURED_WHOLE: u64 = 64 << 20;
/// Far longer than what the roofline says: it was looked up, or scaled from what was.
const FIRST: f64 = 1000.0;

/// Each operation takes a time of its own, whatever the number of tokens.
fn profile_of(measured: &[Op]) -> Profile {
    let mut profile = Machine::measured().profile();
    profile.gpu.bytes = 0.0;
    let curve = |(index, op): (usize, &Op)| Curve {
        on: Processor::Gpu,
        op: op.clone(),
        points: [1, 4096]
            .map(|rows| Point {
                rows,
                seconds: FIRST + index as f64,
                spread: 0.0,
                copy_busy: None,
            })
            .to_vec(),
    };
    profile.curves = measured.iter().enumerate().map(curve).collect();
    profile
}

/// The operation whose very time this is.
fn looked_up(measured: &[Op], seconds: f64) -> Option<&Op> {
    let index = (seconds - FIRST).round();
    let exact = (seconds - FIRST - index).abs() < 1e-9;
    measured.get(index as usize).filter(|_| exact)
}

/// Every product of the model that matters is priced by what was measured for it.
///
/// # Panics
/// Where one is not.
pub fn products(model: &Inventory) {
    let measured = operations(model, "f16", "f16", 1 << 50, Effort::Full);
    let profile = profile_of(&measured);
    let costs = Costs::new(shape(model), &profile);
    let alike = |a: &TensorInfo, b: &TensorInfo| a.type_name == b.type_name && a.shape == b.shape;
    let mut checked = 0;
    for (unit, tensor) in model.tensors.iter().enumerate() {
        let same = model.tensors.iter().filter(|other| alike(tensor, other));
        let bytes: u64 = same.map(|tensor| tensor.bytes).sum();
        let matters = bytes as f64 >= HARDLY_MATTERS * model.weight_bytes() as f64;
        for tokens in [1, 512] {
            let seconds = costs.unit_seconds(unit, tokens, Processor::Gpu);
            if seconds == 0.0 || !matters {
                continue;
            }
            checked += 1;
            let name = format!("{} of {:?}", tensor.name, model.name);
            if tensor.shape.iter().product::<u64>() > MEASURED_WHOLE && tensor.shape[2] == 1 {
                assert!(seconds > FIRST / 2.0, "{name} takes {seconds}");
                continue;
            }
            let op = looked_up(&measured, seconds);
            let is_it = match op {
                Some(
                    Op::Product {
                        type_name, columns, ..
                    }
                    | Op::Experts {
                        type_name, columns, ..
                    },
                ) => (type_name, *columns) == (&tensor.type_name, tensor.shape[0]),
                _ => false,
            };
            assert!(is_it, "{name} takes {seconds} as {op:?} of {measured:?}");
        }
    }
    assert!(checked >= 4, "{:?}: {checked}", model.name);
}

/// The same for attention. Returns how often it was looked up.
///
/// # Panics
/// Where what was measured is not what is looked up.
pub fn attention(model: &Inventory) -> usize {
    let mut looked_up_in = 0;
    let measured = operations(model, "q8_0", "f16", 1 << 50, Effort::Full);
    let profile = profile_of(&measured);
    let priced = ModelShape {
        type_k: "q8_0",
        ..shape(model)
    };
    let costs = Costs::new(priced, &profile);
    let seconds =
        |layer, rows, kv_tokens| costs.attention_seconds(layer, rows, kv_tokens, Processor::Gpu);
    for kv in model.kv.layers.iter().filter(|kv| kv.v_elements > 0) {
        let name = format!("layer {} of {:?}", kv.layer, model.name);
        for (rows, own) in [(1, 1), (512, 256)] {
            if kv.window.is_some() {
                assert!(seconds(kv.layer, rows, 64) > FIRST / 1000.0, "{name}");
                continue;
            }
            let lengths: Vec<u64> = (measured.iter())
                .filter_map(|op| match op {
                    Op::Attention { kv_tokens, .. } => Some(*kv_tokens),
                    _ => None,
                })
                .collect();
            assert!(lengths.len() > 2, "{name}: {measured:?}");
            for length in lengths {
                let seconds = seconds(kv.layer, rows, length - own);
                let op = looked_up(&measured, seconds);
                let is_it =
                    matches!(op, Some(Op::Attention { kv_tokens, .. }) if *kv_tokens == length);
                assert!(is_it, "{name} takes {seconds} as {op:?} of {measured:?}");
                looked_up_in += 1;
            }
        }
    }
    looked_up_in
}
