//! What is asked: a model, a context, and what is done with it. Any budget can be tried on it.

use serde::Serialize;

use pipeshard::plan_cache::{PlanCache, Stored};
use pipeshard::profile::build_name;
use pipeshard_plan::cost::{Prediction, Workload};
use pipeshard_plan::plan::{Plan, PlanError, PlanSettings};
use pipeshard_plan::profile::Profile;
use pipeshard_plan::request::{PlanKey, PlanRequest};
use pipeshard_plan::search::{Found, Tried, UbatchScore};

/// What lives where, and what that is worth.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The plan.
    pub plan: Plan,
    /// What the conversation costs.
    pub prediction: Prediction,
    /// The conversation, with the ubatch that was chosen.
    pub workload: Workload,
    /// What was tried.
    pub explanation: Explanation,
    /// An earlier run of the same command, or `pipeshard tune`, has found it.
    pub kept: bool,
}

/// How the plan was found.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The plan's ubatch and score.
    pub chosen: UbatchScore,
    /// Plans that were priced.
    pub priced: u32,
    /// The best of each size of the ubatch, with the output head on the device and on the host.
    pub ubatches: Vec<UbatchScore>,
    /// What was tried, in order; what became the plan comes last.
    pub tried: Vec<Tried>,
}

/// A model in a context, as a run asks for it.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// What a run asks; its budget does not matter.
    pub request: PlanRequest<'a>,
    /// What the user keeps for the backend, in bytes.
    pub reserve: Option<u64>,
    /// Plans that runs have kept; none where the machine is not this one.
    pub kept: Option<PlanCache>,
}

impl Question<'_> {
    /// What a saved plan says about the context; `ubatch`: the one that was chosen.
    pub fn settings(&self, ubatch: u32) -> PlanSettings {
        let context = &self.request.context;
        PlanSettings {
            context: context.tokens(),
            ubatch,
            parallel: context.sequences,
            cache_type_k: context.type_k.name.to_owned(),
            cache_type_v: context.type_v.name.to_owned(),
        }
    }

    /// What a run within `budget` bytes asks.
    pub fn within(&self, budget: u64) -> PlanRequest<'_> {
        let mut request = self.request.clone();
        request.memory.budget = budget;
        request
    }

    /// What a kept plan of such a run belongs to.
    pub fn key(&self, budget: u64, profile: &Profile) -> PlanKey {
        PlanKey::of(&self.within(budget), profile, &build_name(), self.reserve)
    }

    /// The plan that a run follows: the kept one, or else the one with the best score.
    ///
    /// # Errors
    /// As [`PlanRequest::solve`].
    pub fn solve(&self, budget: u64, profile: &Profile) -> Result<Solution, PlanError> {
        let request = self.within(budget);
        let kept = self.kept.as_ref().and_then(|kept| {
            match kept.load(&self.key(budget, profile)) {
                Stored::Valid(kept) => match &kept.adapted {
                    // compute buffers are known, and no estimate is needed
                    Some(adapted) => request.settled(profile, &kept.decided, adapted).ok(),
                    None => request.follow(profile, &kept.decided).ok(),
                },
                // the next run says that, and replaces it
                Stored::Nothing | Stored::Damaged(_) => None,
            }
        });
        let is_kept = kept.is_some();
        let found: Found = match kept {
            Some(found) => found,
            None => request.solve(profile)?,
        };
        Ok(Solution {
            workload: Workload {
                ubatch: found.ubatch,
                ..request.conversation()
            },
            plan: found.plan,
            prediction: found.prediction,
            explanation: Explanation {
                chosen: UbatchScore {
                    ubatch: found.ubatch,
                    output_on_host: found.output_on_host,
                    score: found.score,
                    ttft: found.prediction.ttft,
                    tps: found.prediction.tps,
                },
                priced: found.priced,
                ubatches: found.ubatches,
                tried: found.tried,
            },
            kept: is_kept,
        })
    }
}
