//! What is given room first.

use super::Search;
use crate::plan::{estimate_excess, spread, Decisions, UnitClass, UnitId};

/// Classes that are weighed against each other.
pub(super) const CLASSES: [UnitClass; 4] = [
    UnitClass::Attention,
    UnitClass::FeedForward,
    UnitClass::Output,
    UnitClass::Experts,
];
/// Exchanges of a resident block for another that are tried at the end.
const EXCHANGES: usize = 48;

/// Numbers of layers on the host that are tried.
const LAYER_STEPS: usize = 16;
/// Blocks of which every choice is tried.
const FEW_BLOCKS: usize = 9;

/// Units of a layer and class, which the CPU computes in one go.
#[derive(Debug, Clone)]
struct Block {
    class: UnitClass,
    layer: Option<u32>,
    units: Vec<UnitId>,
}

impl Search<'_> {
    /// Orders of the classes, layers spread over the model or one behind the other; and whole layers with their KV.
    pub(super) fn try_orders(&mut self, round: u32) -> bool {
        let blocks = self.blocks();
        let present: Vec<UnitClass> = CLASSES
            .into_iter()
            .filter(|class| blocks.iter().any(|block| block.class == *class))
            .collect();
        let mut better = false;
        for classes in permutations(&present) {
            for spreads in [true, false] {
                let order = by_class(&blocks, &classes, spreads);
                let decisions = Decisions {
                    order,
                    kv_on_host: Vec::new(),
                    ..self.decisions.clone()
                };
                better |= decisions != self.decisions && self.attempt(decisions);
            }
        }
        if round == 0 {
            better |= self.try_layers(&blocks);
        }
        if blocks.len() <= FEW_BLOCKS {
            better |= self.try_all(&blocks);
        }
        better
    }

    /// The residents of a class spread tensor by tensor, in place of layer by layer: then every layer waits for as many copies
    /// as every other, and a small ring is enough to hide them behind what the layer itself computes.
    pub(super) fn try_even(&mut self) -> bool {
        let mut better = false;
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
            better |= self.attempt(Decisions {
                order: [others, chosen, rest].concat(),
                ..self.decisions.clone()
            });
        }
        better
    }

    /// Every choice of blocks.
    fn try_all(&mut self, blocks: &[Block]) -> bool {
        let mut better = false;
        for subset in 0..1u32 << blocks.len() {
            let chosen = blocks
                .iter()
                .enumerate()
                .filter(|(at, _)| subset >> at & 1 == 1);
            let order = chosen.flat_map(|(_, block)| block.units.iter().copied());
            better |= self.attempt(Decisions {
                order: order.collect(),
                ..self.decisions.clone()
            });
        }
        better
    }

    /// Whole layers from the last one down, the others with their KV on the host: what stock llama.cpp does.
    fn try_layers(&mut self, blocks: &[Block]) -> bool {
        // where compute buffers may turn out so much smaller that everything fits, KV stays: weights can come back, cells cannot
        let missing = self.plan.full_budget.saturating_sub(self.plan.budget);
        if self.input.kv_fixed.is_some() || missing <= estimate_excess(self.input.scratch) {
            return false;
        }
        let layers = self.layers().len();
        let steps = layers.min(LAYER_STEPS);
        let head = blocks.iter().filter(|block| block.layer.is_none());
        let head: Vec<UnitId> = head.flat_map(|block| block.units.clone()).collect();
        let mut better = false;
        for step in 0..=steps {
            let whole = self.whole_layers(layers * step / steps.max(1));
            let head_first = Decisions {
                order: head.iter().chain(&whole.order).copied().collect(),
                ..whole.clone()
            };
            better |= self.attempt(head_first);
            better |= self.attempt(whole);
        }
        better
    }

    /// The layers behind the first `hosted` ones come first, whole, from the last one down; those have their KV on the host.
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

    /// Exchanges single blocks across the border between what is resident and what is not.
    pub(super) fn improve_order(&mut self) {
        let blocks = self.blocks();
        let mut tried = 0;
        loop {
            let resident = self.residency(&blocks);
            let inside = blocks.iter().zip(&resident).filter(|(_, is)| **is);
            let inside: Vec<&Block> = inside.map(|(block, _)| block).collect();
            let outside = blocks.iter().zip(&resident).filter(|(_, is)| !**is);
            let outside: Vec<&Block> = outside.map(|(block, _)| block).collect();
            // one of each kind stands for all that are alike: the outermost ones
            let ends = |of: &[&Block]| {
                let mut ends: Vec<usize> = Vec::new();
                for class in CLASSES {
                    ends.extend(of.iter().position(|block| block.class == class));
                    ends.extend(of.iter().rposition(|block| block.class == class));
                }
                ends.dedup();
                ends
            };
            let mut moved = false;
            'pairs: for &enter in &ends(&outside) {
                let leaving = ends(&inside).into_iter().map(Some);
                for leave in std::iter::once(None).chain(leaving) {
                    if tried == EXCHANGES {
                        return;
                    }
                    tried += 1;
                    let stays = inside.iter().enumerate();
                    let stays = stays.filter(|(at, _)| Some(*at) != leave);
                    let first = stays.map(|(_, block)| *block).chain([outside[enter]]);
                    let order = first.flat_map(|block| block.units.clone()).collect();
                    let decisions = Decisions {
                        order,
                        ..self.decisions.clone()
                    };
                    if self.attempt(decisions) {
                        moved = true;
                        break 'pairs;
                    }
                }
            }
            if !moved {
                return;
            }
        }
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
