//! What is given room first.

use super::descent::Descent;
use crate::constants::tried::{KV_STEPS, LAYER_STEPS};
use crate::plan::{estimate_excess, spread, Decisions, UnitClass, UnitId};

/// Classes that are weighed against each other.
pub(super) const CLASSES: [UnitClass; 4] = [
    UnitClass::Attention,
    UnitClass::FeedForward,
    UnitClass::Output,
    UnitClass::Experts,
];

/// Units of a layer and class, which the CPU computes in one go.
#[derive(Debug, Clone)]
struct Block {
    class: UnitClass,
    layer: Option<u32>,
    units: Vec<UnitId>,
}

impl Descent<'_> {
    /// Orders of the classes, layers spread over the model or in sequence; where some KV was sent to the host, with all of it
    /// on the device again, too.
    pub(super) fn orders(&self) -> Vec<Decisions> {
        let blocks = self.blocks();
        let present: Vec<UnitClass> = CLASSES
            .into_iter()
            .filter(|class| blocks.iter().any(|block| block.class == *class))
            .collect();
        let mut proposed = Vec::new();
        for classes in permutations(&present) {
            for spreads in [true, false] {
                let order = by_class(&blocks, &classes, spreads);
                let decisions = self.with_order(order);
                if !decisions.kv_on_host.is_empty() {
                    proposed.push(Decisions {
                        kv_on_host: Vec::new(),
                        ..decisions.clone()
                    });
                }
                proposed.push(decisions);
            }
        }
        proposed
    }

    fn with_order(&self, order: Vec<UnitId>) -> Decisions {
        Decisions {
            order,
            ..self.decisions.clone()
        }
    }

    /// The residents of a class spread tensor by tensor, in place of layer by layer: then every layer waits for as many copies
    /// as every other, and a small ring is enough to hide their copies under the layer's own computation.
    pub(super) fn even(&self) -> Vec<Decisions> {
        let mut proposed = Vec::new();
        for class in CLASSES {
            let of_class = |id: &UnitId| self.plan.units[id.index()].class == class;
            let (same, others): (Vec<UnitId>, Vec<UnitId>) =
                self.plan.residents.iter().copied().partition(of_class);
            let all = (0..self.plan.units.len()).map(|index| UnitId(index as u32));
            let all: Vec<UnitId> = all.filter(of_class).collect();
            if same.is_empty() || same.len() == all.len() {
                continue;
            }
            let (chosen, rest) = evenly(&all, same.len());
            proposed.push(self.with_order([others, chosen, rest].concat()));
        }
        proposed
    }

    /// Reports whether KV may go to the host. Where compute buffers may turn out so much smaller that everything fits, it
    /// stays: weights can come back, a cache cannot.
    fn may_host_kv(&self) -> bool {
        let missing = self.plan.full_budget.saturating_sub(self.plan.budget);
        self.input.kv_fixed.is_none() && missing > estimate_excess(self.input.scratch)
    }

    /// Whole layers from the last one down, the others with their KV on the host: what stock llama.cpp does.
    pub(super) fn layers_first(&self) -> Vec<Decisions> {
        if !self.may_host_kv() {
            return Vec::new();
        }
        let blocks = self.blocks();
        let layers = self.layers().len();
        let steps = layers.min(LAYER_STEPS);
        let head = blocks.iter().filter(|block| block.layer.is_none());
        let head: Vec<UnitId> = head.flat_map(|block| block.units.clone()).collect();
        let mut proposed = Vec::new();
        for step in 0..=steps {
            let whole = self.whole_layers(layers * step / steps.max(1));
            let head_first = Decisions {
                order: head.iter().chain(&whole.order).copied().collect(),
                ..whole.clone()
            };
            proposed.extend([head_first, whole]);
        }
        proposed
    }

    /// More or fewer layers with their KV on the host, the last ones: what it took goes to weights.
    pub(super) fn kv_on_host(&self) -> Vec<Decisions> {
        if !self.may_host_kv() {
            return Vec::new();
        }
        let layers: Vec<u32> = self.plan.kv.iter().map(|layer| layer.layer).collect();
        let is_host = |layer: &&u32| {
            self.plan
                .kv
                .iter()
                .any(|kv| kv.layer == **layer && !kv.device)
        };
        let now: Vec<u32> = layers.iter().filter(is_host).copied().collect();
        let count = layers.len();
        let steps = count.min(KV_STEPS);
        let near = [1, 2, 4]
            .into_iter()
            .flat_map(|by| [now.len().saturating_sub(by), now.len() + by]);
        let mut counts: Vec<usize> = (0..=steps)
            .map(|step| count * step / steps.max(1))
            .collect();
        counts.extend(near.filter(|&hosted| hosted <= count));
        let last = counts
            .into_iter()
            .map(|hosted| layers[count - hosted..].to_vec());
        // those that have no room: said so, the rest is for weights
        let mut choices = vec![now.clone()];
        choices.extend(last);
        let with = |kv_on_host| Decisions {
            kv_on_host,
            ..self.decisions.clone()
        };
        choices.into_iter().map(with).collect()
    }

    /// The layers after the first `hosted` ones come first, whole, from the last one down; those have their KV on the host.
    pub(super) fn whole_layers(&self, hosted: usize) -> Decisions {
        let (layers, blocks) = (self.layers(), self.blocks());
        let (hosted, kept) = layers.split_at(hosted.min(layers.len()));
        let members = |layer: &u32| {
            let layer = *layer;
            blocks
                .iter()
                .filter(move |block| block.layer == Some(layer))
        };
        let order = kept.iter().rev().flat_map(members);
        Decisions {
            order: order
                .flat_map(|block| block.units.iter().copied())
                .collect(),
            kv_on_host: hosted.to_vec(),
            ..Decisions::default()
        }
    }

    /// All units by class, the layers of a class spread over the model.
    pub(super) fn order_of_classes(&self, classes: &[UnitClass]) -> Vec<UnitId> {
        by_class(&self.blocks(), classes, true)
    }

    /// Layers in order.
    pub(super) fn layers(&self) -> Vec<u32> {
        let mut layers: Vec<u32> = self
            .blocks()
            .iter()
            .filter_map(|block| block.layer)
            .collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// Blocks exchanged across the border between what is resident and what is not: one for one, and one for as many of another class
    /// as have room then. Of each kind, one stands for all that are alike: the outermost ones.
    pub(super) fn exchanges(&self) -> Vec<Decisions> {
        let blocks = self.blocks();
        let resident = self.residency(&blocks);
        let on = |side: bool| {
            let of_side = blocks.iter().zip(&resident).filter(|(_, is)| **is == side);
            of_side.map(|(block, _)| block).collect::<Vec<&Block>>()
        };
        let (inside, outside) = (on(true), on(false));
        let ends = |of: &[&Block]| {
            let mut ends: Vec<usize> = Vec::new();
            for class in CLASSES {
                ends.extend(of.iter().position(|block| block.class == class));
                ends.extend(of.iter().rposition(|block| block.class == class));
            }
            ends.dedup();
            ends
        };
        let mut proposed = Vec::new();
        for enter in ends(&outside) {
            let class = outside[enter].class;
            let alike = |blocks: &[&Block]| -> Vec<Block> {
                let alike = blocks.iter().filter(|block| block.class == class);
                alike.map(|block| (*block).clone()).collect()
            };
            let (mut before, behind) = (alike(&outside[..enter]), alike(&outside[enter + 1..]));
            before.reverse();
            let run = [behind, before].concat();
            let leaving = ends(&inside).into_iter().map(Some);
            for leave in std::iter::once(None).chain(leaving) {
                let stays = inside.iter().enumerate();
                let stays = stays.filter(|(at, _)| Some(*at) != leave);
                let stays = stays.map(|(_, block)| *block).chain([outside[enter]]);
                let units = |block: &Block| block.units.clone();
                let single: Vec<UnitId> = stays.flat_map(units).collect();
                let other = leave.is_some_and(|leave| inside[leave].class != class);
                if other && !run.is_empty() {
                    let several = single.iter().copied().chain(run.iter().flat_map(units));
                    proposed.push(self.with_order(several.collect()));
                }
                proposed.push(self.with_order(single));
            }
        }
        proposed
    }

    fn residency(&self, blocks: &[Block]) -> Vec<bool> {
        let mut resident = vec![false; self.plan.units.len()];
        for id in &self.plan.residents {
            resident[id.index()] = true;
        }
        let all = |block: &Block| block.units.iter().all(|id| resident[id.index()]);
        blocks.iter().map(all).collect()
    }

    /// Blocks in order of use.
    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for (index, unit) in self.input.units.iter().enumerate() {
            if !CLASSES.contains(&unit.class) {
                continue;
            }
            let id = UnitId(index as u32);
            let mut same = blocks.iter_mut().rev().take(CLASSES.len());
            match same.find(|block| block.layer == unit.layer && block.class == unit.class) {
                Some(block) => block.units.push(id),
                None => blocks.push(Block {
                    class: unit.class,
                    layer: unit.layer,
                    units: vec![id],
                }),
            }
        }
        blocks
    }
}

/// So many of `all` at equal distances, and the others; every prefix of both is spread evenly.
fn evenly(all: &[UnitId], count: usize) -> (Vec<UnitId>, Vec<UnitId>) {
    let chosen = |at: usize| (at + 1) * count / all.len() > at * count / all.len();
    let pick = |wanted: bool| {
        let at = (0..all.len()).filter(|&at| chosen(at) == wanted);
        spread(&at.map(|at| all[at]).collect::<Vec<UnitId>>())
    };
    (pick(true), pick(false))
}

fn by_class(blocks: &[Block], classes: &[UnitClass], spreads: bool) -> Vec<UnitId> {
    let mut order = Vec::new();
    for &class in classes {
        let members = || blocks.iter().filter(move |block| block.class == class);
        let mut layers: Vec<u32> = members().filter_map(|block| block.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        if spreads {
            layers = spread(&layers);
        }
        let layers = layers.into_iter().map(Some).chain([None]);
        for layer in layers {
            let units = members().filter(|block| block.layer == layer);
            order.extend(units.flat_map(|block| block.units.iter().copied()));
        }
    }
    order
}

/// All orders of a few things.
fn permutations(of: &[UnitClass]) -> Vec<Vec<UnitClass>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, &first) in of.iter().enumerate() {
        let mut rest = of.to_vec();
        rest.remove(at);
        for mut tail in permutations(&rest) {
            tail.insert(0, first);
            all.push(tail);
        }
    }
    all
}
