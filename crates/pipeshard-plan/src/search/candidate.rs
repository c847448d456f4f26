//! Plans that are taken whatever they are predicted to cost: to measure what a search leaves behind.

use super::orders::CLASSES;
use super::{Search, MIB};
use crate::plan::{Decisions, Placement, StreamShare, UnitClass};

/// A plan by name (`PIPESHARD_DEBUG_CANDIDATE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    /// The decisions of an input that nobody searched for.
    Usual,
    /// The feed-forward network before attention.
    FeedForwardFirst,
    /// The output head before the layers.
    HeadFirst,
    /// Experts before everything else.
    ExpertsFirst,
    /// Whole layers, from the last one down.
    LayersFirst,
    /// The same with the other layers' KV on the host.
    StockLike,
    /// What a search finds, but generation streams nothing.
    DecodeOnCpu,
    /// The usual decisions, and generation streams through most of the ring.
    DecodeStreamed,
    /// The usual decisions with a small ring.
    SmallRing,
    /// The usual decisions with a large ring.
    LargeRing,
}

impl Candidate {
    /// All of them with their names.
    pub const ALL: [(&'static str, Candidate); 10] = [
        ("usual", Candidate::Usual),
        ("ffn-first", Candidate::FeedForwardFirst),
        ("head-first", Candidate::HeadFirst),
        ("experts-first", Candidate::ExpertsFirst),
        ("layers-first", Candidate::LayersFirst),
        ("stock-like", Candidate::StockLike),
        ("decode-on-cpu", Candidate::DecodeOnCpu),
        ("decode-streamed", Candidate::DecodeStreamed),
        ("small-ring", Candidate::SmallRing),
        ("large-ring", Candidate::LargeRing),
    ];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Candidate> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, candidate)| *candidate)
    }
}

impl Search<'_> {
    /// Makes `candidate` the result.
    pub(super) fn force(&mut self, candidate: Candidate) {
        let usual = Decisions::default();
        let classes = |first: UnitClass| {
            let rest = CLASSES.into_iter().filter(|class| *class != first);
            let order: Vec<UnitClass> = std::iter::once(first).chain(rest).collect();
            Decisions {
                order: self.order_of_classes(&order),
                ..Decisions::default()
            }
        };
        let decisions = match candidate {
            Candidate::Usual => usual,
            Candidate::FeedForwardFirst => classes(UnitClass::FeedForward),
            Candidate::HeadFirst => classes(UnitClass::Output),
            Candidate::ExpertsFirst => classes(UnitClass::Experts),
            Candidate::LayersFirst => self.whole_layers(0),
            Candidate::StockLike => {
                self.force_stock();
                return;
            }
            Candidate::DecodeOnCpu => {
                self.improve();
                self.tune_batches();
                Decisions {
                    short_streams: Vec::new(),
                    fetched_experts: 0,
                    fetched_by_batches: Vec::new(),
                    ..self.decisions.clone()
                }
            }
            Candidate::DecodeStreamed => Decisions {
                short_streams: vec![StreamShare {
                    min_rows: 1,
                    percent: 70,
                }],
                ..usual
            },
            Candidate::SmallRing => Decisions {
                ring_target: Some(64 * MIB),
                ..usual
            },
            Candidate::LargeRing => Decisions {
                ring_target: Some(2048 * MIB),
                ..usual
            },
        };
        self.adopt(decisions);
    }

    /// As many whole layers as fit, and nothing of the others.
    fn force_stock(&mut self) {
        for hosted in 0..=self.layers().len() {
            self.adopt(self.whole_layers(hosted));
            let layers = self.layers();
            let kept = &layers[hosted..];
            let decode = self.plan.tiers.first().map(|tier| &tier.placements);
            let placed = decode.into_iter().flatten().zip(&self.plan.units);
            let mut of_kept =
                placed.filter(|(_, unit)| unit.layer.is_some_and(|l| kept.contains(&l)));
            if of_kept.all(|(placement, _)| *placement == Placement::Resident) {
                return;
            }
        }
    }
}
