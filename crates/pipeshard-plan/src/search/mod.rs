//! The decisions with which a conversation is predicted to be served best.
//!
//! What is given room on the device first, how large the ring is, how much short batches stream, and from which number of rows on
//! everything is streamed: one decision after the other is varied while the others stay, until nothing helps any more. Every
//! candidate is a plan that could be run, and is priced as a whole, with its hand-overs; so the result is never predicted worse
//! than any of them, among which are the usual order, the order of stock llama.cpp (whole layers with their KV) and every
//! order of the classes.

mod batches;
mod candidate;
mod orders;

#[cfg(test)]
mod tests;

pub use candidate::Candidate;

use crate::cost::{Costs, ModelShape, Prediction, Workload};
use crate::plan::{plan, Decisions, Plan, PlanError, PlanInput};
use crate::profile::Profile;

const MIB: u64 = 1 << 20;
/// Sizes of the ring that are tried, in MiB, besides the derived one.
const RINGS: [u64; 9] = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048];
/// How much more a change of the time per token counts than the same change of the time to the first one.
const TOKEN_WEIGHT: f64 = 2.0;
/// What a candidate has to gain on the best one: less is within what a profile can tell.
const GAIN: f64 = 0.002;

/// A size of the ubatch with the compute buffers that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UbatchOption {
    /// Tokens.
    pub ubatch: u32,
    /// Bytes of compute buffers.
    pub scratch: u64,
    /// Bytes that the device's backend is expected to take on its own account for it, beyond what the input reserves.
    pub pools: u64,
}

/// What is searched for.
#[derive(Debug, Clone, Copy)]
pub struct SearchInput<'a> {
    /// What is given; its scratch is replaced by that of the ubatch, and its reserve grows with it.
    pub input: &'a PlanInput,
    /// The model whose tensors the input's units are.
    pub model: ModelShape<'a>,
    /// The machine.
    pub profile: &'a Profile,
    /// The conversation that counts; its ubatch is replaced by the one that is chosen.
    pub workload: Workload,
    /// Sizes of the ubatch to choose from.
    pub ubatches: &'a [UbatchOption],
    /// Take this one, and search for nothing but the ubatch.
    pub forced: Option<Candidate>,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The decisions.
    pub decisions: Decisions,
    /// The plan that they make.
    pub plan: Plan,
    /// What it is predicted to cost.
    pub prediction: Prediction,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// How many plans were priced.
    pub priced: u32,
}

impl Prediction {
    /// What a search makes as small as it can: the time to the first token and the time per token, weighed by their ratios, so
    /// that neither is bought with a multiple of the other, however long the answer turns out to be.
    pub fn score(&self) -> f64 {
        self.score_with(self.ttft)
    }

    fn score_with(&self, ttft: f64) -> f64 {
        let per_token = 1.0 / self.tps.max(f64::MIN_POSITIVE);
        let product = ttft.max(f64::MIN_POSITIVE) * per_token.powf(TOKEN_WEIGHT);
        product.powf(1.0 / (1.0 + TOKEN_WEIGHT))
    }
}

/// What a plan is predicted to cost, and its score. Where the conversation's prompt does not fill an ubatch, one that does counts
/// as much: it computes longer beside the same copies, and so prefers another plan.
fn weigh(costs: &Costs, plan: &Plan, workload: Workload) -> (Prediction, f64) {
    let prediction = costs.predict(plan, workload);
    let filling = Workload {
        prompt: workload.ubatch / workload.sequences.max(1),
        ..workload
    };
    let score = match filling.prompt > workload.prompt {
        true => {
            let filled = costs.first_token(plan, filling);
            prediction.score_with((prediction.ttft * filled).sqrt())
        }
        false => prediction.score(),
    };
    (prediction, score)
}

/// Searches for the best decisions.
///
/// # Errors
/// As [`plan`], if no size of the ubatch can be planned for: of the size that needs the smallest budget.
pub fn search(wanted: &SearchInput) -> Result<Found, PlanError> {
    let costs = Costs::new(wanted.model, wanted.profile);
    let mut best: Option<Search> = None;
    let mut failure = None;
    for option in wanted.ubatches {
        match Search::new(wanted, option, &costs, Decisions::default()) {
            // what fits is computed as llama.cpp does
            Ok(search) if search.all_fits() && best.is_none() => {
                best = Some(search);
                break;
            }
            Ok(mut search) => {
                search.try_shares();
                let better = best
                    .as_ref()
                    .is_none_or(|best| search.score < best.score * (1.0 - GAIN));
                if better {
                    best = Some(search);
                }
            }
            Err(error) => failure = Some(the_nearer(failure, error)),
        }
    }
    let mut search = best.ok_or_else(|| failure.unwrap_or_else(no_ubatch))?;
    match wanted.forced {
        Some(candidate) => search.force(candidate),
        None => {
            search.improve();
            search.refine();
            search.tune_batches();
        }
    }
    Ok(search.found())
}

/// Adapts decisions to what has become known since: the memory that is there for weights. Changes how large the ring is and how
/// much generation streams through it, neither of which needs other compute buffers; for the first ubatch of `wanted` only.
///
/// # Errors
/// As [`plan`].
pub fn adapt(wanted: &SearchInput, decisions: Decisions) -> Result<Found, PlanError> {
    let costs = Costs::new(wanted.model, wanted.profile);
    let option = wanted.ubatches.first().ok_or_else(no_ubatch)?;
    let mut search = Search::new(wanted, option, &costs, decisions)?;
    if wanted.forced.is_none() && !search.all_fits() {
        search.try_shares();
        if search.try_rings() {
            search.try_shares();
        }
        search.try_fetching();
    }
    Ok(search.found())
}

/// Of two errors the one that names the smaller budget.
fn the_nearer(before: Option<PlanError>, error: PlanError) -> PlanError {
    match (&before, &error) {
        (
            Some(PlanError::BudgetTooSmall { minimum: least, .. }),
            PlanError::BudgetTooSmall { minimum, .. },
        ) if minimum < least => error,
        _ => before.unwrap_or(error),
    }
}

fn no_ubatch() -> PlanError {
    PlanError::InvalidInput("no size of the ubatch to choose from".to_owned())
}

/// Decisions, the plan that they make, and what it is predicted to cost.
struct Priced {
    decisions: Decisions,
    plan: Plan,
    prediction: Prediction,
    score: f64,
}

/// A search in progress: the best so far.
struct Search<'a> {
    input: PlanInput,
    costs: &'a Costs<'a>,
    workload: Workload,
    decisions: Decisions,
    plan: Plan,
    prediction: Prediction,
    /// What is made as small as possible.
    score: f64,
    priced: u32,
}

impl<'a> Search<'a> {
    fn new(
        wanted: &SearchInput,
        option: &UbatchOption,
        costs: &'a Costs<'a>,
        decisions: Decisions,
    ) -> Result<Self, PlanError> {
        let mut input = wanted.input.clone();
        input.scratch = option.scratch;
        input.reserve = input.reserve.saturating_add(option.pools);
        let workload = Workload {
            ubatch: option.ubatch,
            ..wanted.workload
        };
        input.host_cells_min_rows =
            costs.device_attends_from(u64::from(workload.prompt), workload.sequences);
        let decisions = Decisions {
            host_cells_min_rows: None,
            ..decisions
        };
        let plan = plan(&input.with(&decisions))?;
        let (prediction, score) = weigh(costs, &plan, workload);
        Ok(Search {
            score,
            input,
            costs,
            workload,
            decisions,
            plan,
            prediction,
            priced: 1,
        })
    }

    fn found(self) -> Found {
        Found {
            decisions: Decisions {
                host_cells_min_rows: Some(self.input.host_cells_min_rows),
                ..self.decisions
            },
            plan: self.plan,
            prediction: self.prediction,
            ubatch: self.workload.ubatch,
            priced: self.priced,
        }
    }

    /// Whether the conversation is served better with these decisions; then they are the best.
    fn attempt(&mut self, decisions: Decisions) -> bool {
        let Some(priced) = self.price(decisions) else {
            return false;
        };
        let better = priced.score < self.score * (1.0 - GAIN);
        if better {
            self.take(priced);
        }
        better
    }

    /// The plan that decisions make, if they make one, and its price.
    fn price(&mut self, decisions: Decisions) -> Option<Priced> {
        let plan = plan(&self.input.with(&decisions)).ok()?;
        self.priced += 1;
        let (prediction, score) = weigh(self.costs, &plan, self.workload);
        Some(Priced {
            decisions,
            plan,
            prediction,
            score,
        })
    }

    /// Makes these decisions the best.
    fn take(&mut self, priced: Priced) {
        self.score = priced.score;
        self.decisions = priced.decisions;
        self.plan = priced.plan;
        self.prediction = priced.prediction;
    }

    /// Nothing is left on the host that may be on the device.
    fn all_fits(&self) -> bool {
        self.plan.budget >= self.plan.full_budget
    }

    /// Varies one decision after the other.
    fn improve(&mut self) {
        if self.all_fits() {
            return;
        }
        for round in 0..3 {
            let mut better = self.try_orders(round);
            better |= self.try_rings();
            better |= self.try_shares();
            if !better {
                break;
            }
        }
        self.improve_order();
    }

    /// Varies what is decided once it is known which classes are resident, for which another ring may do.
    fn refine(&mut self) {
        for _ in 0..2 {
            let mut better = self.try_fetching();
            better |= self.try_even();
            better |= self.try_rings();
            if !better {
                break;
            }
            self.try_shares();
        }
    }

    fn try_rings(&mut self) -> bool {
        let streamed: u64 = self.plan.ring.groups.iter().map(|group| group.bytes).sum();
        let mut better = false;
        let sizes = RINGS.iter().map(|size| Some(size * MIB));
        for ring_target in std::iter::once(None).chain(sizes) {
            let known = ring_target == self.decisions.ring_target;
            if known || ring_target.is_some_and(|bytes| bytes > streamed.next_power_of_two()) {
                continue;
            }
            better |= self.attempt(Decisions {
                ring_target,
                ..self.decisions.clone()
            });
        }
        better
    }
}
