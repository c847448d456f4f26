//! What the passes of a run say of the machine that its profile does not.
//!
//! Of a pass two times are known: the whole, and the CPU's part of it. The latter says how fast the CPU is beside what the profile
//! has of it. What is left of the whole is the device's, whose times are the profile's, and waiting for copies: it says how much
//! the link moves while the CPU computes. So both are looked for with which the pass would be priced at what it took.

use super::calibration::PassSeconds;
use super::table::{or, Costs};
use super::types::{ModelShape, PassCost, PassShape};
use crate::constants::runs::{DEPENDS, HALVINGS, LEAST_LINK, MOST_CPU, PART, ROUNDS};
use crate::plan::Plan;
use crate::profile::{model_label, Learned, Profile};

/// Passes of one shape that a run had under one plan.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The shape.
    pub shape: PassShape,
    /// How many passes.
    pub passes: u64,
    /// What one took.
    pub measured: PassSeconds,
}

/// What such passes show, and what one would have been priced at with it. None where they depend on neither the CPU nor the link.
pub fn learn(
    model: ModelShape,
    profile: &Profile,
    observed: &Observed,
) -> Option<(Learned, PassSeconds)> {
    let PassSeconds { all, cpu } = observed.measured;
    let label = model_label(model.inventory);
    let before = profile.learned_of(&label).cloned();
    let mut tried = Learned {
        passes: observed.passes,
        ..before.unwrap_or_else(|| Learned::before_any_run(label))
    };
    let measured = Profile {
        learned: Vec::new(),
        ..profile.clone()
    };
    let priced = |learned: &Learned| -> PassCost {
        Costs::new(model, &measured.corrected(learned)).pass(observed.plan, observed.shape)
    };
    let mut cost = priced(&tried);
    let shows_cpu = cpu >= PART * all && cost.cpu >= PART * cost.seconds;
    let mut shown_link = None;
    for _ in 0..ROUNDS {
        if shows_cpu {
            let factor = tried.cpu * cpu / cost.cpu.max(f64::MIN_POSITIVE);
            tried.cpu = factor.clamp(1.0 / MOST_CPU, MOST_CPU);
        }
        shown_link = link_for(all, profile, &tried, &priced);
        tried.link_during_cpu = shown_link.or(tried.link_during_cpu);
        cost = priced(&tried);
    }
    let after = PassSeconds {
        all: cost.seconds,
        cpu: cost.cpu,
    };
    let shown = Learned {
        link_during_cpu: shown_link,
        ..tried
    };
    (shows_cpu || shown_link.is_some()).then_some((shown, after))
}

/// With how many bytes per second beside the CPU a pass would be priced at `all` seconds, or as near to it as possible.
fn link_for(
    all: f64,
    profile: &Profile,
    known: &Learned,
    priced: &dyn Fn(&Learned) -> PassCost,
) -> Option<f64> {
    let most = profile.link.pinned.median;
    let seconds = |link: f64| {
        let tried = Learned {
            link_during_cpu: Some(link),
            ..known.clone()
        };
        priced(&tried).seconds
    };
    let (mut low, mut high) = (
        or(profile.link.pinned_cpu_busy.median, most).min(most) * LEAST_LINK,
        most,
    );
    let depends = most > 0.0 && seconds(low) > seconds(high) * (1.0 + DEPENDS);
    if !depends {
        return None;
    }
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        match seconds(middle) > all {
            true => low = middle,
            false => high = middle,
        }
    }
    Some(high)
}
