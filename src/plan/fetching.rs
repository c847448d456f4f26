//! Layers whose experts are on the host, computed by both: of the experts that a token has chosen the device fetches some and
//! computes them while the CPU computes the others.
//!
//! What is fetched lies in two *kits* in turn, so that the copies for one layer need not wait for the layer before. A kit has
//! room for the same number of experts of each of a layer's tensors. Layers whose experts differ in size have kits of their own.

use super::chunks::round_up;
use super::types::{Placement, Plan, PlanInput, Unit, UnitClass};
use std::collections::BTreeMap;

/// Bytes in front of the kits: the numbers of the fetched experts in them, which are 0, 1, 2 and so on.
pub const NUMBERS_BYTES: u64 = 256;
/// Kits of each kind, used in turn.
pub const KITS: usize = 2;
/// No device has so many bytes.
const TOO_MUCH: u64 = 1 << 56;
/// The most experts that are fetched for a token and layer.
pub const MOST_FETCHED: u32 = (NUMBERS_BYTES / 4) as u32;

/// A layer's tensors of experts, in order of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertLayer {
    /// The layer.
    pub layer: u32,
    /// Indices of its units.
    pub units: Vec<usize>,
    /// Which kind of kit it uses.
    pub kind: usize,
}

/// Where fetched experts lie, in bytes of one allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchLayout {
    /// All layers with experts.
    pub layers: Vec<ExpertLayer>,
    /// Per kind and kit: where each tensor's experts begin.
    pub kits: Vec<[Vec<u64>; KITS]>,
    /// The size of the allocation.
    pub bytes: u64,
}

impl FetchLayout {
    /// Room for `fetched` experts of each tensor.
    pub fn new(units: &[Unit], fetched: u32, alignment: u64) -> Self {
        let mut layers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, unit) in units.iter().enumerate() {
            if let (UnitClass::Experts, Some(layer), 2..) =
                (unit.class, unit.layer, unit.expert_count)
            {
                layers.entry(layer).or_default().push(index);
            }
        }
        let room = |&index: &usize| {
            let unit = &units[index];
            let each = unit.bytes / u64::from(unit.expert_count);
            let padding = unit.device_bytes.saturating_sub(unit.bytes);
            // sizes are somebody else's words until the planner has checked their sum
            let bytes = each.saturating_mul(u64::from(fetched));
            let bytes = bytes.saturating_add(padding).min(TOO_MUCH);
            (each, round_up(bytes, alignment))
        };
        let mut kinds: Vec<Vec<(u64, u64)>> = Vec::new();
        let mut layout = FetchLayout {
            bytes: NUMBERS_BYTES,
            ..Self::default()
        };
        for (layer, units) in layers {
            let sizes: Vec<(u64, u64)> = units.iter().map(room).collect();
            let known = kinds.iter().position(|kind| *kind == sizes);
            let kind = known.unwrap_or_else(|| {
                layout.kits.push(std::array::from_fn(|_| {
                    let place = |&(_, bytes): &(u64, u64)| {
                        let at = layout.bytes;
                        layout.bytes = at.saturating_add(bytes);
                        at
                    };
                    sizes.iter().map(place).collect()
                }));
                kinds.push(sizes);
                kinds.len() - 1
            });
            layout.layers.push(ExpertLayer { layer, units, kind });
        }
        layout
    }
}

impl PlanInput {
    /// Experts that are fetched for a token and layer.
    pub fn fetched(&self) -> u32 {
        let fixed = self.fixed.as_ref().map(|fixed| fixed.fetched_experts);
        fixed.unwrap_or(self.fetched_experts).min(MOST_FETCHED)
    }

    /// Device memory for fetched experts, in bytes.
    pub fn fetch_bytes(&self) -> u64 {
        match self.fetched() {
            0 => 0,
            count => {
                let layout = FetchLayout::new(&self.units, count, self.alignment);
                round_up(layout.bytes.min(TOO_MUCH), self.granularity.max(1))
            }
        }
    }
}

impl Plan {
    /// For each unit, whether it belongs to a layer of whose chosen experts the device fetches some for a token: one whose
    /// experts are all on the host then.
    pub fn shared_with_device(&self) -> Vec<bool> {
        let mut shared = vec![false; self.units.len()];
        let Some(tier) = self.tier(1).filter(|_| self.fetched_experts > 0) else {
            return shared;
        };
        for layer in FetchLayout::new(&self.units, self.fetched_experts, 1).layers {
            let on_host = |&unit: &usize| tier.placements[unit] == Placement::Host;
            if layer.units.iter().all(on_host) {
                layer.units.iter().for_each(|&unit| shared[unit] = true);
            }
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use proptest::prelude::*;

    fn expert(layer: u32, bytes: u64, padding: u64) -> Unit {
        Unit {
            name: format!("blk.{layer}.ffn_up_exps.weight"),
            layer: Some(layer),
            class: UnitClass::Experts,
            bytes,
            device_bytes: bytes + padding,
            expert_count: 8,
        }
    }

    #[test]
    fn layers_of_one_size_share_kits_and_others_have_their_own() {
        let units = [
            expert(0, 8000, 0),
            expert(0, 1600, 64),
            expert(1, 8000, 0),
            expert(1, 1600, 64),
            expert(2, 8000, 0),
            expert(2, 2400, 64),
        ];
        let layout = FetchLayout::new(&units, 3, 256);
        let kinds: Vec<usize> = layout.layers.iter().map(|l| l.kind).collect();
        assert_eq!(kinds, [0, 0, 1]);
        // three of 1000 bytes, and three of 200 with the padding
        assert_eq!(layout.kits[0], [vec![256, 3328], vec![4096, 7168]]);
        assert_eq!(layout.kits[1][0], [7936, 11008]);
        assert_eq!(layout.bytes, 16128);
        assert!(FetchLayout::new(&[], 3, 256).layers.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_overlaps(
            sizes in prop::collection::vec((1u64..5000, 0u64..600), 1..12), fetched in 1u32..9,
        ) {
            let units: Vec<Unit> = (sizes.iter().enumerate())
                .map(|(at, &(each, padding))| expert(at as u32 / 2, each * 8, padding))
                .collect();
            let layout = FetchLayout::new(&units, fetched, 256);
            let mut taken = vec![(0, NUMBERS_BYTES)];
            let mut seen = vec![false; layout.kits.len()];
            for layer in &layout.layers {
                if std::mem::replace(&mut seen[layer.kind], true) {
                    continue;
                }
                for kit in &layout.kits[layer.kind] {
                    for (&at, &unit) in kit.iter().zip(&layer.units) {
                        let unit = &units[unit];
                        let bytes = unit.bytes / 8 * u64::from(fetched) + unit.device_bytes - unit.bytes;
                        prop_assert!(at % 256 == 0);
                        taken.push((at, at + bytes));
                    }
                }
            }
            taken.sort_unstable();
            prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", taken);
            prop_assert!(taken.last().is_some_and(|last| last.1 <= layout.bytes));
        }
    }

    #[test]
    fn what_is_fetched_is_paid_for_out_of_the_budget() {
        let units: Vec<Unit> = (0..6).map(|layer| expert(layer, 8 << 20, 0)).collect();
        let mut input = PlanInput::new(units, Vec::new(), 40 << 20);
        let without = plan(&input).expect("a plan");
        assert_eq!(without.shared_with_device(), [false; 6]);
        input.fetched_experts = 2;
        let with = plan(&input).expect("a plan");
        // two kits of two experts of 1 MiB each, and the numbers
        assert_eq!(with.ledger.reserve, 6 << 20);
        // a smaller budget works without
        assert_eq!(with.minimum_budget, without.minimum_budget);
        input.budget = with.minimum_budget;
        assert_eq!(plan(&input).expect("a plan").fetched_experts, 0);
        input.budget = 40 << 20;
        assert!(with.ledger.total() <= input.budget);
        let shared = with.shared_with_device();
        let host = |at: usize| with.tier(1).expect("a tier").placements[at] == Placement::Host;
        assert!(shared.contains(&true));
        assert!((0..6).all(|at| shared[at] == host(at)));
    }
}
