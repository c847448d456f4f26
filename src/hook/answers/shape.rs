//! The arena takes another shape. One order for all: what is in the way gives way, then memory is taken.

use crate::hook::accounts::Accounts;
use crate::hook::gate::NewShape;
use crate::hook::log;
use crate::hook::residency::CarveError;
use crate::hook::telemetry::counters::Counters;
use crate::hook::tenant::Tenant;
use pipeshard_plan::plan::Plan;

/// Gives all of the arena's memory back. Graphs that were split before are void.
pub fn release(accounts: &mut Accounts, tenant: &mut Tenant, proof: NewShape<'_>) {
    let units = tenant.weights.units_mut();
    tenant.residency.release(units, proof);
    tenant.note_holdings(accounts);
}

/// Gives the arena, and the memory of fetched experts, the shape of the plan for now, if they have another. Where the device refuses
/// memory that the budget allows (another program took it), plans again with what there is.
pub fn take(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    proof: NewShape<'_>,
) -> Result<(), String> {
    loop {
        let wanted = tenant.current_plan(accounts).map_err(|e| e.to_string())?;
        let wanted = wanted.clone();
        tenant.residency.release_other_fetcher(&wanted, proof);
        if !tenant.residency.is_carved_as(&wanted) {
            // residents are about to be read
            if let Some(shrunk) = tenant.weights.shrunk_file() {
                tenant.note_holdings(accounts);
                return Err(shrunk.to_string());
            }
            let units = tenant.weights.units_mut();
            let carved = tenant.residency.carve(&wanted, units, proof);
            tenant.note_holdings(accounts);
            match carved {
                Ok(()) => {
                    counters.set_minimum(wanted.minimum_budget);
                    tenant.planner.followed.note_dropped_residents(&wanted);
                }
                Err(CarveError::Other(why)) => return Err(why),
                Err(CarveError::Refused(why)) => {
                    lower_budget(accounts, tenant, counters, &wanted, &why.to_string())?;
                    continue;
                }
            }
        }
        let units = tenant.weights.described();
        let opened = tenant.residency.open_fetcher(&wanted, units, proof);
        tenant.note_holdings(accounts);
        match opened {
            Ok(()) => {
                tenant.residency.begin_generation();
                return Ok(());
            }
            Err(why) => {
                log::warn(&format!(
                    "{why}; the CPU computes all experts that are not on the device"
                ));
                counters.note_error(why);
                tenant.planner.fetch_nothing();
            }
        }
    }
}

/// After a refused allocation: lowers the budget to what the device still has, or gives up.
fn lower_budget(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    wanted: &Plan,
    why: &str,
) -> Result<(), String> {
    if let Some(failure) = accounts.device_failure() {
        return Err(failure);
    }
    let lowered = accounts.lower_budget(wanted.ledger.total());
    log::warn(&format!(
        "{why}; going on with a budget of {} MiB",
        lowered >> 20
    ));
    counters.note_error(why.to_string());
    tenant.planner.replan();
    match tenant.current_plan(accounts) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{why}, and {error}")),
    }
}
