//! Layers whose experts are on the host, computed by both: of the experts that a token has chosen the device fetches some and
//! computes them while the CPU computes the others. The same goes for each token of a small batch.
//!
//! What is fetched for a layer lies side by side in a *kit*, which has room for the same number of experts of each of the layer's
//! tensors. Layers take turns in it, for what the next one chooses follows from what this one has computed. Layers whose
//! experts differ in size have kits of their own.

use super::chunks::round_up;
use super::types::{BatchFetch, Placement, Plan, PlanInput, Unit, UnitClass};
use std::collections::BTreeMap;

/// The most experts that are fetched for a layer.
pub const MOST_FETCHED: u32 = 256;
/// Bytes of their numbers, which lie in front of each kit.
pub const NUMBERS_BYTES: u64 = 4 * MOST_FETCHED as u64;
/// No device has so many bytes.
const TOO_MUCH: u64 = 1 << 56;

/// A layer's tensors of experts, in order of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertLayer {
    /// The layer.
    pub layer: u32,
    /// Indices of its units.
    pub units: Vec<usize>,
    /// Index of its kit.
    pub kit: usize,
}

/// Where fetched experts lie, in bytes from the beginning of the allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchKit {
    /// For each token, where in the kit its experts are.
    pub numbers: u64,
    /// The experts of each of a layer's tensors.
    pub tensors: Vec<u64>,
}

/// Where fetched experts lie, in bytes of one allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchLayout {
    /// All layers with experts.
    pub layers: Vec<ExpertLayer>,
    /// One for each size of experts.
    pub kits: Vec<FetchKit>,
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
            let bytes = each.saturating_mul(u64::from(fetched.min(unit.expert_count)));
            let bytes = bytes.saturating_add(padding).min(TOO_MUCH);
            (each, round_up(bytes, alignment))
        };
        let mut sizes_of_kits: Vec<Vec<(u64, u64)>> = Vec::new();
        let mut layout = FetchLayout::default();
        for (layer, units) in layers {
            let sizes: Vec<(u64, u64)> = units.iter().map(room).collect();
            let known = sizes_of_kits.iter().position(|known| *known == sizes);
            let kit = known.unwrap_or_else(|| {
                let mut place = |bytes: u64| {
                    let at = layout.bytes;
                    layout.bytes = at.saturating_add(bytes);
                    at
                };
                let kit = FetchKit {
                    numbers: place(round_up(NUMBERS_BYTES, alignment)),
                    tensors: sizes.iter().map(|&(_, bytes)| place(bytes)).collect(),
                };
                layout.kits.push(kit);
                sizes_of_kits.push(sizes);
                layout.kits.len() - 1
            });
            layout.layers.push(ExpertLayer { layer, units, kit });
        }
        layout
    }
}

/// Experts that are fetched for a layer: for each token the first of those that it has chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchShape {
    /// For a token by itself.
    pub single: u32,
    /// For each token of a batch; larger batches are not served like that.
    pub batches: Vec<BatchFetch>,
}

impl FetchShape {
    /// For each token of a batch of `rows`; 0: none.
    pub fn experts(&self, rows: u32) -> u32 {
        fetched_for(self.single, &self.batches, rows)
    }

    /// The most of a tensor at once.
    pub fn most(&self) -> u32 {
        let batches = self.batches.iter();
        let of_batches = batches.map(|batch| batch.rows * batch.experts);
        of_batches.max().unwrap_or(0).max(self.single)
    }

    /// The most tokens.
    pub fn rows(&self) -> u32 {
        self.batches.iter().map(|b| b.rows).max().unwrap_or(1)
    }
}

fn fetched_for(single: u32, batches: &[BatchFetch], rows: u32) -> u32 {
    match rows {
        0 | 1 => single,
        _ => {
            let batch = batches.iter().find(|batch| rows <= batch.rows);
            batch.map_or(0, |batch| batch.experts)
        }
    }
}

impl PlanInput {
    /// Experts that are fetched, as many as there may be numbers of.
    pub fn fetch_shape(&self) -> FetchShape {
        let given = (self.fetched_experts, &self.fetched_by_batches);
        let fixed = self.fixed.as_ref();
        let fixed = fixed.map(|fixed| (fixed.fetched_experts, &fixed.fetched_by_batches));
        let (single, batches) = fixed.unwrap_or(given);
        let within = |batch: &BatchFetch| BatchFetch {
            experts: batch.experts.min(MOST_FETCHED / batch.rows.max(1)),
            ..*batch
        };
        FetchShape {
            single: single.min(MOST_FETCHED),
            batches: batches.iter().map(within).collect(),
        }
    }

    /// Device memory for fetched experts, in bytes.
    pub fn fetch_bytes(&self) -> u64 {
        match self.fetch_shape().most() {
            0 => 0,
            count => {
                let layout = FetchLayout::new(&self.units, count, self.alignment);
                round_up(layout.bytes.min(TOO_MUCH), self.granularity.max(1))
            }
        }
    }
}

impl Plan {
    /// Experts that are fetched, in layers that are shared with the device.
    pub fn fetch_shape(&self) -> FetchShape {
        FetchShape {
            single: self.fetched_experts,
            batches: self.fetched_by_batches.clone(),
        }
    }

    /// The same for each token of a batch of `rows`.
    pub fn fetched_for(&self, rows: u32) -> u32 {
        fetched_for(self.fetched_experts, &self.fetched_by_batches, rows)
    }

    /// Reports whether that is what `shape` says.
    pub fn fetches(&self, shape: Option<&FetchShape>) -> bool {
        match shape {
            Some(shape) => {
                (self.fetched_experts, &self.fetched_by_batches) == (shape.single, &shape.batches)
            }
            None => {
                let mut batches = self.fetched_by_batches.iter();
                self.fetched_experts == 0 && batches.all(|batch| batch.rows * batch.experts == 0)
            }
        }
    }

    /// For each unit, whether it belongs to a layer of whose chosen experts the device fetches some for each token of a batch of
    /// `rows`: one whose experts are all on the host then.
    pub fn shared_with_device(&self, rows: u32) -> Vec<bool> {
        let mut shared = vec![false; self.units.len()];
        let few = self.fetched_for(rows) > 0;
        let Some(tier) = self.tier(rows.max(1)).filter(|_| few) else {
            return shared;
        };
        for layer in FetchLayout::new(&self.units, 1, 1).layers {
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
    fn layers_of_one_size_share_a_kit_and_others_have_their_own() {
        let units = [
            expert(0, 8000, 0),
            expert(0, 1600, 64),
            expert(1, 8000, 0),
            expert(1, 1600, 64),
            expert(2, 8000, 0),
            expert(2, 2400, 64),
        ];
        let layout = FetchLayout::new(&units, 3, 256);
        let kits: Vec<usize> = layout.layers.iter().map(|l| l.kit).collect();
        assert_eq!(kits, [0, 0, 1]);
        // three of 1000 bytes, and three of 200 with the padding
        let kit = |numbers, tensors: [u64; 2]| FetchKit {
            numbers,
            tensors: tensors.to_vec(),
        };
        assert_eq!(layout.kits, [kit(0, [1024, 4096]), kit(4864, [5888, 8960])]);
        assert_eq!(layout.bytes, 9984);
        assert!(FetchLayout::new(&[], 3, 256).layers.is_empty());
        // there are no more than eight
        let all = FetchLayout::new(&units, 8, 256);
        assert_eq!(FetchLayout::new(&units, 40, 256), all);
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
            let mut taken = Vec::new();
            let mut seen = vec![false; layout.kits.len()];
            for layer in &layout.layers {
                if std::mem::replace(&mut seen[layer.kit], true) {
                    continue;
                }
                let kit = &layout.kits[layer.kit];
                taken.push((kit.numbers, kit.numbers + NUMBERS_BYTES));
                for (&at, &unit) in kit.tensors.iter().zip(&layer.units) {
                    let unit = &units[unit];
                    let bytes = unit.bytes / 8 * u64::from(fetched) + unit.device_bytes - unit.bytes;
                    prop_assert!(at % 256 == 0);
                    taken.push((at, at + bytes));
                }
            }
            taken.sort_unstable();
            prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", taken);
            prop_assert!(taken.last().is_some_and(|last| last.1 <= layout.bytes));
        }

        #[test]
        fn numbers_have_room_whatever_is_asked_for(fetched in 0u32..600, rows in 0u32..600) {
            let mut input = PlanInput::new(vec![expert(0, 8000, 0)], Vec::new(), 1 << 30);
            input.fetched_experts = fetched;
            input.fetched_by_batches = vec![BatchFetch { rows, experts: fetched }];
            prop_assert!(input.fetch_shape().most() <= MOST_FETCHED);
        }
    }

    #[test]
    fn what_is_fetched_is_paid_for_out_of_the_budget() {
        let units: Vec<Unit> = (0..6).map(|layer| expert(layer, 8 << 20, 0)).collect();
        let mut input = PlanInput::new(units, Vec::new(), 40 << 20);
        let without = plan(&input).expect("a plan");
        assert_eq!(without.shared_with_device(1), [false; 6]);
        input.fetched_experts = 2;
        let with = plan(&input).expect("a plan");
        // a kit of two experts of 1 MiB each, and the numbers
        assert_eq!(with.ledger.reserve, 4 << 20);
        // a smaller budget works without
        assert_eq!(with.minimum_budget, without.minimum_budget);
        input.budget = with.minimum_budget;
        assert_eq!(plan(&input).expect("a plan").fetched_experts, 0);
        input.budget = 40 << 20;
        assert!(with.ledger.total() <= input.budget);
        let shared = with.shared_with_device(1);
        let host = |at: usize| with.tier(1).expect("a tier").placements[at] == Placement::Host;
        assert!(shared.contains(&true));
        assert!((0..6).all(|at| shared[at] == host(at)));
        // for single tokens only, unless batches are asked for
        assert_eq!(with.shared_with_device(2), [false; 6]);
        let of = |rows, experts| BatchFetch { rows, experts };
        input.fetched_by_batches = vec![of(2, 3), of(4, 1)];
        let batches = plan(&input).expect("a plan");
        assert_eq!(batches.ledger.reserve, 8 << 20);
        let fetched = [1, 2, 3, 4, 5].map(|rows| batches.fetched_for(rows));
        assert_eq!(fetched, [2, 3, 1, 1, 0]);
        assert!(batches.shared_with_device(4).contains(&true));
        assert_eq!(batches.shared_with_device(5), [false; 6]);
    }
}
