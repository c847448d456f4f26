//! What short batches do: stream through part of the ring, or all of it.

use super::descent::Descent;
use crate::constants::preference::{BATCH_GAIN, CONVERSATION_WEIGHT, HARMLESS};
use crate::constants::tried::{BATCHES, FETCHED_ROWS, MORE_FETCHED, SHARES, THRESHOLDS};
use crate::cost::PassShape;
use crate::plan::{BatchFetch, Decisions, Placement, Plan, StreamShare, UnitClass};

impl Descent<'_> {
    /// How much generation streams while the CPU computes.
    pub(super) fn shares(&self) -> Vec<Decisions> {
        if !self.may_stream() {
            return Vec::new();
        }
        let with = |percent| Decisions {
            short_streams: self.with_share(1, percent),
            ..self.decisions.clone()
        };
        SHARES.into_iter().map(with).collect()
    }

    /// Of how many experts the device relieves the CPU when it generates.
    pub(super) fn fetching(&self) -> Vec<Decisions> {
        let rows = self.workload.sequences;
        let several = rows > 1 && self.may_divide(rows);
        let with = |fetched_experts| {
            let decisions = Decisions {
                fetched_experts,
                ..self.decisions.clone()
            };
            if several && fetched_experts > 0 {
                self.divided(decisions, rows, fetched_experts)
            } else {
                decisions
            }
        };
        (0..self.costs.experts_used()).map(with).collect()
    }

    /// Reports whether batches of so many tokens may have their experts divided.
    fn may_divide(&self, rows: u32) -> bool {
        let most = FETCHED_ROWS.last().copied().unwrap_or(1);
        rows <= most.min(self.costs.divisible_rows())
    }

    /// The same decisions, but batches of up to so many tokens leave experts on the host, for the device to fetch some.
    fn divided(&self, decisions: Decisions, rows: u32, experts: u32) -> Decisions {
        let streamed = decisions.expert_min_rows.or(self.input.expert_min_rows);
        let streamed = streamed.unwrap_or(self.input.stream_min_rows);
        let mut fetched_by_batches = decisions.fetched_by_batches.clone();
        fetched_by_batches.retain(|batch| batch.rows < rows);
        fetched_by_batches.push(BatchFetch { rows, experts });
        Decisions {
            fetched_by_batches,
            expert_min_rows: Some(streamed.max(rows + 1)),
            ..decisions
        }
    }

    /// Batches between generation and prompts: the share that each streams, and where streaming everything begins.
    pub(super) fn tune_batches(&mut self) {
        if self.plan.ring.groups.is_empty() {
            return;
        }
        let most = self.score * (1.0 + HARMLESS);
        if self.may_stream() {
            for rows in BATCHES {
                self.tune_share(rows, most);
            }
        }
        for experts in [false, true] {
            self.tune_threshold(experts, most);
        }
        self.tune_fetched_batches();
    }

    /// Up to how many tokens the device relieves the CPU of experts for each of them, as it does for a single one, and of how
    /// many. The more rows an expert has the longer the CPU takes for it, and the more are worth fetching; but these take
    /// memory from everything else.
    fn tune_fetched_batches(&mut self) {
        let single = self.plan.fetched_experts;
        if single == 0 {
            return;
        }
        let most = self.costs.experts_used().min(single + MORE_FETCHED + 1);
        for rows in FETCHED_ROWS {
            if !self.may_divide(rows) || rows <= self.workload.sequences {
                continue;
            }
            let counts = single.saturating_sub(1).max(1)..most;
            let mut tried: Vec<(f64, u32)> = Vec::new();
            for experts in counts {
                let decisions = self.divided(self.decisions.clone(), rows, experts);
                tried.push((self.batch_seconds(&decisions, rows), experts));
            }
            let least = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((_, experts)) = least else {
                return;
            };
            let weighed = |descent: &Self, plan: &Plan, score: f64| {
                descent.pass_seconds(plan, rows).ln() + CONVERSATION_WEIGHT * score.ln()
            };
            let before = weighed(self, &self.plan, self.score);
            let Some(priced) = self.price(self.divided(self.decisions.clone(), rows, experts))
            else {
                return;
            };
            let divides = priced.plan.fetched_for(rows) > 0;
            if !divides || weighed(self, &priced.plan, priced.weighed.score) > before - BATCH_GAIN {
                return;
            }
            self.take(priced);
        }
    }

    /// Reports whether anything but experts is in the ring.
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

    fn tune_share(&mut self, rows: u32, most: f64) {
        let mut best = (self.batch_seconds(&self.decisions.clone(), rows), None);
        for percent in SHARES {
            let decisions = Decisions {
                short_streams: self.with_share(rows, percent),
                ..self.decisions.clone()
            };
            let seconds = self.batch_seconds(&decisions, rows);
            if seconds < best.0 * (1.0 - BATCH_GAIN) {
                best = (seconds, Some(decisions));
            }
        }
        if let Some(decisions) = best.1 {
            self.adopt_if_harmless(decisions, most);
        }
    }

    fn tune_threshold(&mut self, experts: bool, most: f64) {
        let prompt = self.plan.tiers.last().map(|tier| &tier.placements);
        let mut placed = prompt.into_iter().flatten().zip(&self.plan.units);
        if !placed.any(|(placement, unit)| {
            *placement == Placement::Streamed && (unit.class == UnitClass::Experts) == experts
        }) {
            return;
        }
        let (given, known) = (&self.input, self.decisions.clone());
        let (usual, usual_experts) = (given.stream_min_rows, given.expert_min_rows);
        let with = |rows: u32| {
            let mut decisions = known.clone();
            match experts {
                true => decisions.expert_min_rows = Some(rows),
                false => {
                    // experts keep their placement
                    let own = decisions.expert_min_rows.or(usual_experts);
                    decisions.expert_min_rows = own.or(Some(usual));
                    decisions.stream_min_rows = Some(rows);
                }
            }
            decisions
        };
        // the fewest rows for which, and for all more, streaming everything is not slower
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
        self.adopt_if_harmless(with(rows), most);
    }

    /// Adopts decisions about batches outside the conversation, unless they make the conversation slower by more than `most`.
    fn adopt_if_harmless(&mut self, decisions: Decisions, most: f64) {
        if let Some(priced) = self.price(decisions) {
            if priced.weighed.score <= most {
                self.take(priced);
            }
        }
    }

    /// Seconds of a pass of `rows` tokens, each of a sequence of its own.
    fn batch_seconds(&mut self, decisions: &Decisions, rows: u32) -> f64 {
        match self.planned(decisions) {
            Some(made) => self.pass_seconds(&made, rows),
            None => f64::INFINITY,
        }
    }

    /// The same under a plan that was made.
    fn pass_seconds(&self, made: &Plan, rows: u32) -> f64 {
        let kv_tokens = u64::from(self.workload.prompt / rows.max(1));
        let shape = PassShape {
            rows,
            sequences: rows,
            kv_tokens,
            outputs: rows,
        };
        self.costs.pass(made, shape).seconds
    }
}
