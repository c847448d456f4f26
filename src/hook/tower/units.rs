//! An encoder's tensors as units of a plan: in the order in which its graph uses them, the large ones in one group for each layer and
//! kind, so that a layer that is computed in pieces has all it needs side by side.

use pipeshard_model::inventory::LoadedTensor;
use pipeshard_plan::plan::{plan, Plan, PlanError, PlanInput, Unit, UnitClass};
use std::collections::HashMap;

/// Of all weights a tensor is small that takes less than this share, and less than [`SMALL`].
const SMALL_SHARE: u64 = 4096;
const SMALL: u64 = 1 << 20;
/// More than any device has, and sums of it overflow nothing.
const ANY_ROOM: u64 = 1 << 50;

/// What a device does to sizes.
#[derive(Debug, Clone, Copy)]
pub struct Rounding {
    /// Bytes by which allocations are rounded up.
    pub granularity: u64,
    /// Alignment of tensors.
    pub alignment: u64,
}

/// The layer that a tensor of this name belongs to: `v.blk.7.attn_q.weight` to the seventh.
fn layer_of(name: &str) -> Option<u32> {
    let mut parts = name.split('.').skip_while(|&part| part != "blk").skip(1);
    parts.next()?.parse().ok()
}

/// Units of these tensors, in their order.
pub fn units_of(tensors: &[LoadedTensor]) -> Vec<Unit> {
    let all: u64 = tensors.iter().map(|tensor| tensor.nbytes).sum();
    let small = (all / SMALL_SHARE).min(SMALL);
    let class = |tensor: &LoadedTensor| {
        let is_vector = tensor.ne[1..] == [1, 1, 1] || tensor.name.ends_with(".bias");
        match is_vector || tensor.nbytes < small {
            true => UnitClass::Small,
            false if tensor.name.contains("attn") => UnitClass::Attention,
            false => UnitClass::FeedForward,
        }
    };
    let unit = |tensor: &LoadedTensor| Unit {
        name: tensor.name.clone(),
        layer: layer_of(&tensor.name),
        class: class(tensor),
        bytes: tensor.nbytes,
        device_bytes: tensor.nbytes,
        expert_count: 0,
    };
    tensors.iter().map(unit).collect()
}

/// What happens to an encoder's weights while something is encoded, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Placed {
    /// Small ones, which stay on the device for that time.
    pub resident: u64,
    /// Those that pass through the ring.
    pub streamed: u64,
    /// The ring.
    pub ring: u64,
}

impl Placed {
    /// By a plan for these units.
    pub fn of(units: &[Unit], plan: &Plan) -> Self {
        let bytes = |small: bool| {
            let of_class = units
                .iter()
                .filter(|unit| (unit.class == UnitClass::Small) == small);
            of_class.map(|unit| unit.bytes).sum()
        };
        Placed {
            resident: bytes(true),
            streamed: bytes(false),
            ring: plan.ring.bytes,
        }
    }
}

/// A plan in which small units are resident and all others are streamed, whatever a graph's number of rows, through a ring that is as
/// large as `room` bytes allow.
///
/// # Errors
/// [`PlanError::BudgetTooSmall`] names the least room.
pub fn plan_within(units: &[Unit], room: u64, rounding: Rounding) -> Result<Plan, PlanError> {
    let mut of_layers: HashMap<(u32, UnitClass), u64> = HashMap::new();
    for unit in units {
        if let (Some(layer), true) = (unit.layer, unit.class != UnitClass::Small) {
            let padded = unit.device_bytes.next_multiple_of(rounding.alignment);
            *of_layers.entry((layer, unit.class)).or_default() += padded;
        }
    }
    let mut input = PlanInput::new(units.to_vec(), Vec::new(), room.min(ANY_ROOM));
    input.granularity = rounding.granularity;
    input.alignment = rounding.alignment;
    input.group_target = of_layers.values().copied().max().unwrap_or(1);
    input.all_in_ring = true;
    input.ring_target = Some(u64::MAX);
    input.stream_min_rows = 1;
    input.chosen_percent = 0;
    plan(&input)
}

/// A plan in a room that is large enough for all weights side by side.
///
/// # Errors
/// As for [`plan_within`], but for a lack of room.
pub fn plan_of_all(units: &[Unit], rounding: Rounding) -> Result<Plan, PlanError> {
    plan_within(units, ANY_ROOM, rounding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_plan::plan::Placement;

    const ROUNDING: Rounding = Rounding {
        granularity: 1024,
        alignment: 64,
    };

    fn tensor(name: &str, ne: [i64; 4]) -> LoadedTensor {
        LoadedTensor {
            name: name.to_owned(),
            ggml_type: 0,
            ne,
            nbytes: 4 * ne.iter().product::<i64>() as u64,
        }
    }

    /// Two layers, of 6,144 and 8,192 bytes each, between patches and a projector of two matrices.
    fn tower() -> Vec<Unit> {
        let mut tensors = vec![tensor("v.patch_embd.weight", [16, 16, 1, 4])];
        for layer in 0..2 {
            let name = |base: &str| format!("v.blk.{layer}.{base}");
            tensors.push(tensor(&name("ln1.weight"), [32, 1, 1, 1]));
            for base in ["attn_q.weight", "attn_k.weight", "attn_out.weight"] {
                tensors.push(tensor(&name(base), [16, 32, 1, 1]));
            }
            tensors.push(tensor(&name("attn_q.bias"), [32, 1, 1, 1]));
            for base in ["ffn_up.weight", "ffn_down.weight"] {
                tensors.push(tensor(&name(base), [32, 32, 1, 1]));
            }
        }
        tensors.push(tensor("mm.0.weight", [32, 64, 1, 1]));
        tensors.push(tensor("mm.2.weight", [32, 64, 1, 1]));
        units_of(&tensors)
    }

    #[test]
    fn every_large_weight_is_streamed_with_its_layer_whatever_the_room() {
        let units = tower();
        let all = plan_of_all(&units, ROUNDING).expect("room");
        let groups: Vec<u64> = all.ring.groups.iter().map(|group| group.bytes).collect();
        // the projector's matrices are groups of their own: together they are larger than a layer's
        assert_eq!(groups, [4096, 6144, 8192, 6144, 8192, 8192, 8192]);
        assert_eq!(all.ring.bytes, 49152);
        for room in [all.minimum_budget, all.minimum_budget + 9000, 1 << 40] {
            let plan = plan_within(&units, room, ROUNDING).expect("room");
            assert!(plan.ledger.total() <= room);
            for rows in [1, 8, 4000] {
                let tier = plan.tier(rows).expect("a tier for any number of rows");
                for (unit, placement) in units.iter().zip(&tier.placements) {
                    let expected = match unit.class {
                        UnitClass::Small => Placement::Resident,
                        _ => Placement::Streamed,
                    };
                    assert_eq!(*placement, expected, "{}", unit.name);
                }
            }
            // cut at the same places, compute buffers are as large
            let same = plan.ring.groups.iter().zip(&all.ring.groups);
            assert!(same.clone().count() == groups.len());
            assert!(same.clone().all(|(a, b)| a.bytes == b.bytes));
        }
        assert!(plan_within(&units, all.minimum_budget - 1, ROUNDING).is_err());
    }

    #[test]
    fn layers_are_found_in_names() {
        assert_eq!(layer_of("v.blk.7.attn_q.weight"), Some(7));
        assert_eq!(layer_of("a.gen.code.blk.0.ffn_up.weight"), Some(0));
        assert_eq!(layer_of("mm.2.weight"), None);
        assert_eq!(layer_of("blk"), None);
    }
}
