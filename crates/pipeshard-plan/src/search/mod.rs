//! The decisions with which a conversation is predicted to be served best.
//!
//! What is given room on the device first, where the KV cache lies, how large the ring is, how much short batches stream, and from
//! which number of rows on everything is streamed: for each size of the ubatch one decision after the other is varied while the
//! others stay, until nothing helps any more ([`descent`]). What helps one size is tried for the others too. Every candidate is a
//! plan that could be run, and is priced as a whole, with its hand-overs; the best score of all of them wins.
//!
//! ```text
//! score     what is made as small as possible
//! types     what is asked and what is found
//! moves     what is tried, as a list
//! orders    what is given room first: proposals
//! batches   what short batches do: proposals
//! descent   one size of the ubatch: tries the moves, keeps what helps, notes both
//! candidate plans that are taken whatever they cost
//! ```

mod batches;
mod candidate;
mod descent;
mod moves;
mod orders;
mod score;
mod types;

#[cfg(test)]
mod tests;

pub use types::{Candidate, Found, SearchInput, Tried, UbatchOption, UbatchScore};

use self::descent::Descent;
use crate::constants::preference::{GAIN, GAIN_ON_USUAL};
use crate::cost::Costs;
use crate::plan::{Decisions, PlanError};

/// Searches for the best decisions.
///
/// # Errors
/// As [`plan`](crate::plan::plan), if no size of the ubatch can be planned for: of the size that needs the smallest budget.
pub fn search(wanted: &SearchInput) -> Result<Found, PlanError> {
    let costs = Costs::new(wanted.model, wanted.profile);
    let mut descents: Vec<Descent> = Vec::new();
    let mut failure = None;
    for option in wanted.ubatches {
        match Descent::new(wanted, option, &costs, Decisions::default()) {
            Ok(descent) => descents.push(descent),
            Err(error) => failure = Some(the_nearer(failure, error)),
        }
    }
    if let Some(candidate) = wanted.forced {
        for descent in &mut descents {
            descent.run(&moves::SHARES);
        }
        let chosen = chosen(&descents).ok_or_else(|| failure.unwrap_or_else(no_ubatch))?;
        let mut forced = descents.swap_remove(chosen);
        forced.force(candidate);
        return Ok(forced.found());
    }
    descend(&mut descents);
    let chosen = chosen(&descents).ok_or_else(|| failure.unwrap_or_else(no_ubatch))?;
    let ubatches = descents.iter().map(Descent::best).collect();
    let priced: u32 = descents.iter().map(|descent| descent.priced).sum();
    let before = descents[..chosen].iter().flat_map(|d| d.tried.clone());
    let behind = descents[chosen + 1..].iter().flat_map(|d| d.tried.clone());
    let others: Vec<Tried> = before.chain(behind).collect();
    let mut best = descents.swap_remove(chosen);
    let own = best.priced;
    best.tune_batches();
    let tuning = best.priced - own;
    let found = best.found();
    Ok(Found {
        priced: priced + tuning,
        ubatches,
        tried: others.into_iter().chain(found.tried).collect(),
        ..found
    })
}

/// Improves each as if it was the only one, and then with what was found for the others as further starts.
fn descend(descents: &mut [Descent]) {
    for descent in descents.iter_mut() {
        descent.run(&moves::ALL);
    }
    for at in 0..descents.len() {
        let others = descents.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let starts: Vec<Decisions> = others.map(|(_, d)| d.decisions.clone()).collect();
        if descents[at].start_from(starts) {
            descents[at].run(&moves::ALL);
        }
    }
}

/// Which of them is taken.
fn chosen(descents: &[Descent]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, descent) in descents.iter().enumerate() {
        let better = best.is_none_or(|best| {
            let best = &descents[best];
            let gain = if best.everything_on_device() {
                GAIN_ON_USUAL
            } else {
                GAIN
            };
            descent.score < best.score * (1.0 - gain)
        });
        if better {
            best = Some(at);
        }
    }
    best
}

/// Adapts decisions to what has become known since: the memory that is there for weights. Changes how large the ring is and how
/// much generation streams through it. Neither needs other compute buffers. Only the first ubatch of `wanted` is considered.
///
/// # Errors
/// As [`plan`](crate::plan::plan).
pub fn adapt(wanted: &SearchInput, decisions: Decisions) -> Result<Found, PlanError> {
    let costs = Costs::new(wanted.model, wanted.profile);
    let option = wanted.ubatches.first().ok_or_else(no_ubatch)?;
    let mut descent = Descent::new(wanted, option, &costs, decisions)?;
    if wanted.forced.is_none() {
        descent.run(&moves::ADAPTING);
    }
    Ok(descent.found())
}

/// The plan that decisions make which were found before, and what it costs now. Nothing is searched for; only the first ubatch of
/// `wanted` counts.
///
/// # Errors
/// As [`plan`](crate::plan::plan).
pub fn follow(wanted: &SearchInput, decisions: Decisions) -> Result<Found, PlanError> {
    let costs = Costs::new(wanted.model, wanted.profile);
    let option = wanted.ubatches.first().ok_or_else(no_ubatch)?;
    Ok(Descent::new(wanted, option, &costs, decisions)?.found())
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
