//! One size of the ubatch: moves are tried, and what helps is kept.

use super::score::{weigh, weigh_like, Weighed};
use super::types::{Found, SearchInput, Tried, UbatchOption, UbatchScore};
use crate::constants::preference::GAIN;
use crate::constants::tried::{REPEATED, ROUNDS};
use crate::cost::{Costs, Prediction, Workload};
use crate::plan::{plan, Decisions, Plan, PlanError, PlanInput};
use std::collections::HashSet;

/// One decision to vary.
pub(super) struct Move {
    /// What it is called where a search is explained.
    pub name: &'static str,
    /// Other values of the decision, the others as they are.
    pub propose: fn(&Descent) -> Vec<Decisions>,
    /// What is proposed follows from what is resident, so it is asked again as long as something was taken.
    pub repeats: bool,
}

/// Decisions, the plan that they make, and its price.
pub(super) struct Priced {
    pub decisions: Decisions,
    pub plan: Plan,
    pub weighed: Weighed,
}

/// A search in progress for one size of the ubatch: the best so far.
pub(super) struct Descent<'a> {
    pub input: PlanInput,
    /// The same with the decisions that are tried. Its units have no names: many plans are made of it.
    trial: PlanInput,
    pub costs: &'a Costs<'a>,
    pub workload: Workload,
    pub decisions: Decisions,
    pub plan: Plan,
    weighed: Weighed,
    /// What is made as small as possible.
    pub score: f64,
    pub priced: u32,
    accepted: u32,
    pub tried: Vec<Tried>,
    /// Decisions that were priced.
    seen: HashSet<Decisions>,
}

impl<'a> Descent<'a> {
    pub fn new(
        wanted: &SearchInput,
        option: &UbatchOption,
        costs: &'a Costs<'a>,
        decisions: Decisions,
    ) -> Result<Self, PlanError> {
        let mut input = wanted.input.clone();
        input.scratch = option.scratch;
        input.reserve = input.reserve.saturating_add(option.pools);
        input.output_on_host |= option.output_on_host;
        if let Some(kv) = &option.kv {
            input.kv.clone_from(kv);
        }
        let workload = Workload {
            ubatch: option.ubatch,
            ..wanted.workload
        };
        // what was decided before stays, whatever is known of the machine by now
        let attends_from =
            || costs.device_attends_from(u64::from(workload.prompt), workload.sequences);
        input.host_kv_min_rows = decisions.host_kv_min_rows.unwrap_or_else(attends_from);
        let decisions = Decisions {
            host_kv_min_rows: None,
            ..decisions
        };
        let mut trial = input.clone();
        for unit in &mut trial.units {
            unit.name = String::new();
        }
        let plan = plan(&trial.with(&decisions))?;
        let weighed = weigh(costs, &plan, workload);
        Ok(Descent {
            trial,
            input,
            costs,
            workload,
            score: weighed.score,
            weighed,
            plan,
            priced: 1,
            accepted: 0,
            tried: Vec::new(),
            seen: HashSet::from([decisions.clone()]),
            decisions,
        })
    }

    pub fn found(self) -> Found {
        Found {
            ubatches: vec![self.best()],
            decisions: Decisions {
                host_kv_min_rows: Some(self.input.host_kv_min_rows),
                ..self.decisions
            },
            prediction: self.weighed.prediction,
            score: self.score,
            ubatch: self.workload.ubatch,
            output_on_host: self.input.output_on_host,
            plan: Plan {
                units: self.input.units,
                ..self.plan
            },
            priced: self.priced,
            tried: self.tried,
        }
    }

    /// The best so far.
    pub fn best(&self) -> UbatchScore {
        let Prediction { ttft, tps, .. } = self.weighed.prediction;
        UbatchScore {
            ubatch: self.workload.ubatch,
            output_on_host: self.input.output_on_host,
            score: self.score,
            ttft,
            tps,
        }
    }

    /// Nothing is left on the host that may be on the device. Decisions that were made for less room, such as room for fetched
    /// experts, may keep weights out of a budget that holds them all.
    pub fn all_fits(&self) -> bool {
        self.plan.budget >= self.plan.full_budget && self.plan.ring.groups.is_empty()
    }

    /// The same, the output head included: what stock llama.cpp does by itself where it can.
    pub fn everything_on_device(&self) -> bool {
        self.all_fits() && !self.input.output_on_host
    }

    /// Goes through the moves until none of them helps.
    pub fn run(&mut self, moves: &[Move]) {
        if self.all_fits() {
            return;
        }
        for _ in 0..ROUNDS {
            let mut better = false;
            for tried in moves {
                better |= self.try_move(tried);
            }
            if !better {
                return;
            }
        }
    }

    /// Goes on from the best of these decisions, if one of them is better. Says whether it is.
    pub fn start_from(&mut self, starts: Vec<Decisions>) -> bool {
        if self.all_fits() {
            return false;
        }
        self.noted("as another ubatch", |descent| {
            descent.attempt_all(starts, usize::MAX);
        })
    }

    fn try_move(&mut self, tried: &Move) -> bool {
        self.noted(tried.name, |descent| {
            let most = if tried.repeats { REPEATED } else { usize::MAX };
            let mut left = most;
            loop {
                let proposed = (tried.propose)(descent);
                let count = proposed.len().min(left);
                let better = descent.attempt_all(proposed, left);
                left = left.saturating_sub(count);
                if !better || !tried.repeats || left == 0 {
                    return;
                }
            }
        })
    }

    /// Notes what became of `work`. Says whether it helped.
    fn noted(&mut self, what: &'static str, work: impl FnOnce(&mut Self)) -> bool {
        let (before, priced, accepted) = (self.score, self.priced, self.accepted);
        work(self);
        let tried = Tried {
            ubatch: self.workload.ubatch,
            output_on_host: self.input.output_on_host,
            what,
            priced: self.priced - priced,
            accepted: self.accepted - accepted,
            before,
            after: self.score,
        };
        if tried.priced > 0 {
            self.tried.push(tried);
        }
        tried.accepted > 0
    }

    /// Tries so many of them at most. Says whether one was taken.
    fn attempt_all(&mut self, proposed: Vec<Decisions>, most: usize) -> bool {
        let mut better = false;
        for decisions in proposed.into_iter().take(most) {
            better |= self.attempt(decisions);
        }
        better
    }

    /// Reports whether the conversation is served better with these decisions; then they are the best.
    fn attempt(&mut self, decisions: Decisions) -> bool {
        if !self.seen.insert(decisions.clone()) {
            return false;
        }
        let Some(priced) = self.price(decisions) else {
            return false;
        };
        let better = priced.weighed.score < self.score * (1.0 - GAIN);
        if better {
            self.take(priced);
        }
        better
    }

    /// The input with these decisions.
    fn decided(&mut self, decisions: &Decisions) -> &PlanInput {
        let (trial, input) = (&mut self.trial, &self.input);
        trial.stream_min_rows = input.stream_min_rows;
        trial.expert_min_rows = input.expert_min_rows;
        trial.host_kv_min_rows = input.host_kv_min_rows;
        trial.decide(decisions);
        trial
    }

    /// The plan that decisions make, if they make one.
    pub fn planned(&mut self, decisions: &Decisions) -> Option<Plan> {
        plan(self.decided(decisions)).ok()
    }

    /// The same with its price.
    pub fn price(&mut self, decisions: Decisions) -> Option<Priced> {
        let plan = self.planned(&decisions)?;
        self.priced += 1;
        let known = (&self.plan, &self.weighed);
        let weighed = weigh_like(self.costs, &plan, self.workload, known);
        Some(Priced {
            decisions,
            plan,
            weighed,
        })
    }

    /// Makes these decisions the best.
    pub fn take(&mut self, priced: Priced) {
        self.accepted += 1;
        self.score = priced.weighed.score;
        self.weighed = priced.weighed;
        self.decisions = priced.decisions;
        self.plan = priced.plan;
    }

    /// Takes over decisions whatever they cost.
    pub fn adopt(&mut self, decisions: Decisions) {
        if let Some(priced) = self.price(decisions) {
            self.take(priced);
        }
    }
}
