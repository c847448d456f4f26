//! Another budget while models are loaded: what is possible now, and the change itself.

use super::{encode, graph, search};
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::encoders::Encoders;
use crate::hook::gate::NewShape;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::report::Limits;
use pipeshard_plan::plan::{plan, Plan, PlanError};

/// Why the budget stays what it was.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// Less than what cannot move: the KV cache, compute buffers, the backend's own memory and small tensors.
    #[error("{why}")]
    TooSmall {
        /// The smallest budget that works now, in bytes.
        minimum: u64,
        /// In a sentence.
        why: String,
    },
    /// No device was opened yet.
    #[error(
        "no model is loaded yet; --pipeshard-vram states the budget that the first one begins with"
    )]
    NothingLoaded,
    /// The device failed, or a plan cannot be made for another reason.
    #[error("the budget was not changed: {0}")]
    Failed(String),
}

impl From<PlanError> for BudgetError {
    fn from(error: PlanError) -> Self {
        let why = error.to_string();
        match error {
            PlanError::BudgetTooSmall { minimum, .. }
            | PlanError::FixedDoesNotFit {
                needed: minimum, ..
            } => BudgetError::TooSmall { minimum, why },
            _ => BudgetError::Failed(why),
        }
    }
}

/// The plan for a budget with everything else as it is.
fn planned(accounts: &mut Accounts, tenant: &Tenant, bytes: u64) -> Result<Plan, PlanError> {
    let before = accounts.try_budget(bytes);
    let made = plan(&tenant.plan_input(accounts, 0));
    accounts.try_budget(before);
    made
}

/// What is possible now, and what is held.
///
/// # Errors
/// No device was opened yet, or a plan cannot be made for a reason that is not the budget.
pub fn limits(accounts: &mut Accounts, tenant: &Tenant) -> Result<Limits, BudgetError> {
    if accounts.device().is_none() {
        return Err(BudgetError::NothingLoaded);
    }
    let (minimum, everything) = match planned(accounts, tenant, accounts.budget()) {
        Ok(plan) => (plan.minimum_budget, Some(plan.full_budget)),
        Err(error) => match BudgetError::from(error) {
            BudgetError::TooSmall { minimum, .. } => (minimum, None),
            error => return Err(error),
        },
    };
    Ok(Limits {
        budget: accounts.budget(),
        minimum,
        everything_resident: everything,
        held: accounts.held(),
        held_total: accounts.ledger.now().total(),
        by_driver: accounts.taken_by_driver(),
    })
}

/// Raises the budget, also while a pass is being submitted: weights are uploaded when the next graph begins. False where it is no raise.
pub fn raise(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    bytes: u64,
) -> bool {
    if accounts.device().is_none() || bytes < accounts.budget() {
        return false;
    }
    accounts.set_budget(bytes);
    tenant.planner.replan();
    tenant.planner.decide_again();
    tenant.residency.void_graphs();
    telemetry.counters.budget_changes += 1;
    true
}

/// Frees what the next plan will not have, and no more than that is known to be: the ring, then memory of fetched experts, then
/// residents from the end of their list. The plan's shape, whose ring is new and whose weights may have to be page-locked, is taken
/// when the next graph begins: who waits for the memory does not wait for that.
fn give_way(accounts: &mut Accounts, tenant: &mut Tenant, bytes: u64, proof: NewShape<'_>) {
    let holds = tenant.residency.holdings(accounts.granularity());
    let Some((residents, ring)) = holds.arena else {
        return;
    };
    let held = accounts.counted();
    let missing = held.saturating_sub(bytes).saturating_sub(ring);
    let by_fetched = missing.min(holds.fetched);
    if by_fetched > 0 {
        tenant.residency.release_fetcher(proof);
    }
    let keep = residents.saturating_sub(missing - by_fetched);
    let units = tenant.weights.units_mut();
    tenant.residency.give_up(units, keep, proof);
    tenant.note_holdings(accounts);
}

/// Changes the budget to a smaller one, whose memory has been given back when this returns.
///
/// # Errors
/// The budget is what it was, and nothing has moved, but where the device fails.
pub fn change(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    (bytes, proof): (u64, NewShape<'_>),
) -> Result<(), BudgetError> {
    if accounts.device().is_none() {
        return Err(BudgetError::NothingLoaded);
    }
    let made = planned(accounts, tenant, bytes)?;
    let before = accounts.set_budget(bytes);
    tenant.planner.set(made);
    tenant.planner.decide_again();
    tenant.residency.void_graphs();
    telemetry.counters.budget_changes += 1;
    if accounts.counted() <= bytes {
        return Ok(());
    }
    encode::make_way(accounts, tenant, encoders, proof);
    give_way(accounts, tenant, bytes, proof);
    if accounts.counted() <= bytes {
        return Ok(());
    }
    // what is left cannot be seen from here: the plan's shape is taken now
    let counters = &mut telemetry.counters;
    search::decide_again(config, accounts, tenant, counters, proof.no_pass());
    let moved = graph::prepare_run(accounts, tenant, telemetry, proof);
    let held = accounts.ledger.now().total();
    let why = match moved {
        Ok(()) if held <= bytes => return Ok(()),
        Ok(()) => format!("{held} bytes are held that no plan can move"),
        Err(why) => why.text,
    };
    accounts.set_budget(before);
    tenant.planner.replan();
    Err(BudgetError::Failed(why))
}
