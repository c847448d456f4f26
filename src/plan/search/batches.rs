//! What short batches do: stream through part of the ring, or all of it.

use super::super::decisions::Decisions;
use super::super::solve::plan;
use super::super::types::{Placement, StreamShare, UnitClass};
use super::{Search, GAIN};
use crate::cost::PassShape;

/// Shares of the ring that are tried, in percent.
const SHARES: [u32; 13] = [0, 10, 20, 30, 40, 50, 60, 65, 70, 75, 80, 90, 100];
/// Batch sizes that may have a share of their own.
const BATCHES: [u32; 4] = [2, 4, 8, 16];
/// Batch sizes from which on everything may be streamed.
const THRESHOLDS: [u32; 8] = [2, 4, 8, 16, 32, 64, 128, 256];

impl Search<'_> {
    /// How much generation streams while the CPU computes.
    pub(super) fn try_shares(&mut self) -> bool {
        let mut better = false;
        if !self.may_stream() {
            return false;
        }
        let rows = 1;
        for percent in SHARES {
            let decisions = Decisions {
                short_streams: self.with_share(rows, percent),
                ..self.decisions.clone()
            };
            better |= decisions != self.decisions && self.attempt(decisions);
        }
        better
    }

    /// Of how many experts the device relieves the CPU when it generates.
    pub(super) fn try_fetching(&mut self) -> bool {
        let mut better = false;
        if self.all_fits() {
            return false;
        }
        for fetched_experts in 0..self.costs.experts_used() {
            let decisions = Decisions {
                fetched_experts,
                ..self.decisions.clone()
            };
            better |= decisions != self.decisions && self.attempt(decisions);
        }
        better
    }

    /// Batches between generation and prompts: the share that each streams, and where streaming everything begins.
    pub(super) fn tune_batches(&mut self) {
        if self.plan.ring.groups.is_empty() {
            return;
        }
        if self.may_stream() {
            for rows in BATCHES {
                self.tune_share(rows);
            }
        }
        for experts in [false, true] {
            self.tune_threshold(experts);
        }
    }

    /// Whether anything but experts is in the ring.
    fn may_stream(&self) -> bool {
        let mut units = self.plan.ring.groups.iter().flat_map(|group| &group.units);
        units.any(|(id, _)| self.plan.units[id.index()].class != UnitClass::Experts)
    }

    fn with_share(&self, min_rows: u32, percent: u32) -> Vec<StreamShare> {
        let mut shares = self.decisions.short_streams.clone();
        shares.retain(|share| share.min_rows != min_rows);
        shares.push(StreamShare { min_rows, percent });
        shares.sort_by_key(|share| share.min_rows);
        shares
    }

    fn tune_share(&mut self, rows: u32) {
        let mut best = (self.batch_seconds(&self.decisions.clone(), rows), None);
        for percent in SHARES {
            let decisions = Decisions {
                short_streams: self.with_share(rows, percent),
                ..self.decisions.clone()
            };
            let seconds = self.batch_seconds(&decisions, rows);
            if seconds < best.0 * (1.0 - GAIN) {
                best = (seconds, Some(decisions));
            }
        }
        if let Some(decisions) = best.1 {
            self.adopt_if_harmless(decisions);
        }
    }

    fn tune_threshold(&mut self, experts: bool) {
        let prompt = self.plan.tiers.last().map(|tier| &tier.placements);
        let mut placed = prompt.into_iter().flatten().zip(&self.plan.units);
        if !placed.any(|(placement, unit)| {
            *placement == Placement::Streamed && (unit.class == UnitClass::Experts) == experts
        }) {
            return;
        }
        let with = |rows: u32| {
            let mut decisions = self.decisions.clone();
            match experts {
                true => decisions.expert_min_rows = Some(rows),
                false => {
                    // experts keep theirs
                    let own = decisions.expert_min_rows.or(self.input.expert_min_rows);
                    decisions.expert_min_rows = own.or(Some(self.input.stream_min_rows));
                    decisions.stream_min_rows = Some(rows);
                }
            }
            decisions
        };
        // the fewest rows for which, and for all more, streaming everything is no slower
        let mut found = None;
        for &rows in THRESHOLDS.iter().rev() {
            let all = self.batch_seconds(&with(rows), rows);
            let part = self.batch_seconds(&with(rows + 1), rows);
            if all > part {
                break;
            }
            found = Some(rows);
        }
        let rows = found.unwrap_or(2 * THRESHOLDS[THRESHOLDS.len() - 1]);
        self.adopt_if_harmless(with(rows));
    }

    /// Takes over decisions about other batches than those of the conversation, unless they concern it all the same.
    fn adopt_if_harmless(&mut self, decisions: Decisions) {
        if let Some(priced) = self.price(decisions) {
            if priced.score <= self.score * (1.0 + GAIN) {
                self.take(priced);
            }
        }
    }

    /// Takes over decisions whatever they cost.
    pub(super) fn adopt(&mut self, decisions: Decisions) {
        if let Some(priced) = self.price(decisions) {
            self.take(priced);
        }
    }

    /// Seconds of a pass of `rows` tokens, each of a sequence of its own.
    fn batch_seconds(&self, decisions: &Decisions, rows: u32) -> f64 {
        let Ok(made) = plan(&self.input.with(decisions)) else {
            return f64::INFINITY;
        };
        let cells = u64::from(self.workload.prompt / rows.max(1));
        let shape = PassShape {
            rows,
            sequences: rows,
            cells,
            outputs: rows,
        };
        self.costs.pass(&made, shape).seconds
    }
}
