//! Plans that are taken whatever their predicted cost, to measure what a search rejects.

use super::descent::Descent;
use super::moves;
use super::orders::CLASSES;
use super::types::Candidate;
use crate::plan::{Decisions, Placement, StreamShare, UnitClass};

const MIB: u64 = 1 << 20;

impl Descent<'_> {
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
                self.run(&moves::ALL);
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
