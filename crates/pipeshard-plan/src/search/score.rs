//! What a search makes as small as it can.

use crate::constants::preference::{TOKEN_WEIGHT, USUAL_PASS};
use crate::cost::{Costs, PassCost, Prediction, Workload};
use crate::plan::{Placement, Plan, UnitClass};

impl Prediction {
    /// The time to the first token and the time per token, weighed by their ratios, so that neither is bought with a multiple of the
    /// other, however long the answer turns out to be: the cube root of the former times the square of the latter, in seconds. Less
    /// is better, and half of it is a machine twice as fast.
    pub fn score(&self) -> f64 {
        self.score_with(self.ttft)
    }

    fn score_with(&self, ttft: f64) -> f64 {
        let per_token = 1.0 / self.tps.max(f64::MIN_POSITIVE);
        let product = ttft.max(f64::MIN_POSITIVE) * per_token.powf(TOKEN_WEIGHT);
        product.powf(1.0 / (1.0 + TOKEN_WEIGHT))
    }
}

/// A plan's price.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighed {
    pub prediction: Prediction,
    /// Seconds to the first token after [`USUAL_PASS`] tokens, where the conversation's prompt is shorter.
    filled: Option<f64>,
    /// What is made as small as possible, in seconds.
    pub score: f64,
}

/// What a plan is predicted to cost, and its score. Where the conversation's prompt is short, one of [`USUAL_PASS`] tokens counts
/// as much: it computes longer during the same copies, and so prefers another plan.
pub(super) fn weigh(costs: &Costs, plan: &Plan, workload: Workload) -> Weighed {
    let prompt = costs.prompts(plan, workload);
    let filling = Workload {
        prompt: USUAL_PASS / workload.sequences.max(1),
        ..workload
    };
    let fills = filling.prompt > workload.prompt;
    let filled = fills.then(|| costs.first_token(plan, filling));
    with_prompt(costs, plan, workload, prompt, filled)
}

/// The same for a plan that treats prompts as `like` does, whose price is known: most of the work is not done again.
pub(super) fn weigh_like(
    costs: &Costs,
    plan: &Plan,
    workload: Workload,
    (like, known): (&Plan, &Weighed),
) -> Weighed {
    if same_prompts(plan, like, workload) {
        with_prompt(costs, plan, workload, known.prediction.prompt, known.filled)
    } else {
        weigh(costs, plan, workload)
    }
}

fn with_prompt(
    costs: &Costs,
    plan: &Plan,
    workload: Workload,
    prompt: PassCost,
    filled: Option<f64>,
) -> Weighed {
    let prediction = costs.predict_behind(plan, workload, prompt);
    let score = match filled {
        Some(filled) => prediction.score_with((prediction.ttft * filled).sqrt()),
        None => prediction.score(),
    };
    Weighed {
        prediction,
        filled,
        score,
    }
}

/// Reports whether two plans compute the conversation's prompt alike, whatever they do with single tokens.
fn same_prompts(a: &Plan, b: &Plan, workload: Workload) -> bool {
    if workload.sequences > 1 || (&a.ring, &a.kv) != (&b.ring, &b.kv) {
        return false;
    }
    let ubatch = workload.ubatch.max(1);
    let rest = |tokens: u32| [tokens.min(ubatch), tokens % ubatch];
    let passes = [rest(workload.prompt), rest(USUAL_PASS)].concat();
    let head_alike = match (a.tier(1), b.tier(1)) {
        (Some(first), Some(second)) => (a.units.iter())
            .zip(first.placements.iter().zip(&second.placements))
            .all(|(unit, (one, other))| unit.class != UnitClass::Output || one == other),
        _ => false,
    };
    head_alike
        && a.host_kv_min_rows == b.host_kv_min_rows
        && passes.into_iter().filter(|&rows| rows > 0).all(|rows| {
            let (Some(first), Some(second)) = (a.tier(rows), b.tier(rows)) else {
                return false;
            };
            // where a prompt streams nothing, its last token is treated as a single one
            first.placements.contains(&Placement::Streamed)
                && first.placements == second.placements
                && first.chosen_percent == second.chosen_percent
                && a.fetched_for(rows) == b.fetched_for(rows)
        })
}
