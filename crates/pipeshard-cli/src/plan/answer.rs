//! What is answered, as values: `--json` prints them, [`text`](super::text) puts them in words.

use serde::Serialize;

use super::machine::PlannedMachine;
use super::picture::ImageAnswer;
use super::question::{Explanation, Question};
use pipeshard_plan::cost::{Prediction, Workload};
use pipeshard_plan::plan::{Plan, PlanError};
use pipeshard_plan::profile::{Origin, ProfileKey, WhatIf};

const GIB: u64 = 1 << 30;

/// A budget and what it is good for.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BudgetRow {
    /// Bytes of device memory.
    pub budget: u64,
    /// `None` where the budget is too small.
    pub prediction: Option<Prediction>,
}

/// Another machine or budget.
#[derive(Debug, Clone, Serialize)]
pub struct Alternative {
    /// What was said to be different.
    pub what_if: String,
    /// Its budget in bytes.
    pub budget: u64,
    /// The conversation, with the ubatch that was chosen.
    pub workload: Workload,
    /// What lives where.
    pub plan: Plan,
    /// What that costs.
    pub prediction: Prediction,
}

/// Where the machine's figures come from.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// Measured or stated.
    pub origin: Origin,
    /// What they belong to.
    pub key: ProfileKey,
    /// A sentence.
    pub note: String,
}

/// What is said of a plan that was not searched for.
const KEPT: &str = " The plan is the one that an earlier run has kept.";

/// Everything that the command knows.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The model's file.
    pub model: String,
    /// What the model calls itself.
    pub name: Option<String>,
    /// llama.cpp's name of the architecture.
    pub architecture: String,
    /// Layers.
    pub layers: u32,
    /// Cells of the KV cache.
    pub context: u64,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// Type of the keys in the KV cache.
    pub cache_type_k: &'static str,
    /// Type of the values in the KV cache.
    pub cache_type_v: &'static str,
    /// The conversation that is predicted.
    pub workload: Workload,
    /// Where the machine's figures come from.
    pub profile: Source,
    /// What the conversation costs. A prediction, not a measurement.
    pub prediction: Prediction,
    /// The same with a little less and more device memory.
    pub budgets: Vec<BudgetRow>,
    /// The same on another machine.
    pub alternative: Option<Alternative>,
    /// `kept` by an earlier run of the same command or by `pipeshard tune`, or `searched` for now.
    pub plan_source: &'static str,
    /// What lives where.
    pub plan: Plan,
    /// An image ahead of the prompt, if an encoder was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageAnswer>,
    /// How the plan was found, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// Answers a question.
///
/// # Errors
/// As [`pipeshard_plan::plan::plan`], for the budget and for that of the alternative.
pub fn answer(
    model: String,
    question: &Question,
    machine: &PlannedMachine,
    budget: u64,
    what_if: Option<(&str, &WhatIf)>,
) -> Result<Answer, PlanError> {
    let solved = question.solve(budget, &machine.profile)?;
    let alternative = match what_if {
        None => None,
        Some((text, what)) => {
            let budget = what.vram().unwrap_or(budget);
            let profile = what.apply(&machine.profile);
            let solved = question.solve(budget, &profile)?;
            Some(Alternative {
                what_if: text.to_owned(),
                budget,
                workload: solved.workload,
                prediction: solved.prediction,
                plan: solved.plan,
            })
        }
    };
    let row = |other: u64| BudgetRow {
        budget: other,
        prediction: if other == budget {
            Some(solved.prediction)
        } else {
            let solved = question.solve(other, &machine.profile);
            solved.ok().map(|solved| solved.prediction)
        },
    };
    // each is a search of its own
    let budgets = std::thread::scope(|scope| {
        let row = &row;
        let started = neighbours(budget).into_iter();
        let started: Vec<_> = started
            .map(|other| (other, scope.spawn(move || row(other))))
            .collect();
        let ended = started.into_iter().map(|(budget, thread)| {
            thread.join().unwrap_or(BudgetRow {
                budget,
                prediction: None,
            })
        });
        ended.collect()
    });
    let inventory = question.request.inventory;
    let context = &question.request.context;
    let mut note = machine.source_for(inventory);
    if solved.kept {
        note += KEPT;
    }
    Ok(Answer {
        model,
        name: inventory.name.clone(),
        architecture: inventory.architecture.clone(),
        layers: inventory.layer_count,
        context: context.tokens(),
        ubatch: solved.workload.ubatch,
        cache_type_k: context.type_k.name,
        cache_type_v: context.type_v.name,
        workload: solved.workload,
        profile: Source {
            origin: machine.profile.origin,
            key: machine.profile.key.clone(),
            note,
        },
        prediction: solved.prediction,
        budgets,
        alternative,
        plan_source: if solved.kept { "kept" } else { "searched" },
        plan: solved.plan,
        image: None,
        explanation: Some(solved.explanation),
    })
}

/// A budget, one GiB less and one more; a quarter of it where that is less than a GiB.
fn neighbours(budget: u64) -> Vec<u64> {
    let step = if budget >= 4 * GIB { GIB } else { budget / 4 };
    let all = [
        budget.saturating_sub(step),
        budget,
        budget.saturating_add(step),
    ];
    let mut all = all.to_vec();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_a_gib_away_or_a_quarter() {
        assert_eq!(neighbours(6 * GIB), [5 * GIB, 6 * GIB, 7 * GIB]);
        assert_eq!(neighbours(GIB), [3 * GIB / 4, GIB, 5 * GIB / 4]);
        assert_eq!(neighbours(2), [2]);
    }
}
