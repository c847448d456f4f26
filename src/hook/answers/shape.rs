//! The arena takes another shape. One order for all: what is in the way gives way, then memory is taken.

use crate::arena::Arena;
use crate::hook::accounts::Accounts;
use crate::hook::gate::NewShape;
use crate::hook::log;
use crate::hook::refusal::Refusal;
use crate::hook::residency::CarveError;
use crate::hook::telemetry::counters::Counters;
use crate::hook::tenant::Tenant;
use pipeshard_plan::plan::{Chunk, Placement, Plan, Tier, Unit, UnitClass};

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
) -> Result<(), Refusal> {
    loop {
        let wanted = tenant.current_plan(accounts)?;
        let wanted = wanted.clone();
        tenant.residency.release_other_fetcher(&wanted, proof);
        if !tenant.residency.is_carved_as(&wanted) {
            // residents are about to be read
            if let Some(shrunk) = tenant.weights.shrunk_file() {
                tenant.note_holdings(accounts);
                return Err(shrunk.to_string().into());
            }
            let read = read_from_host(&wanted, tenant.weights.described());
            page_lock(accounts, tenant, counters, &wanted, &read);
            let units = tenant.weights.units_mut();
            let carved = tenant.residency.carve(&wanted, units, proof);
            let uploaded = tenant.residency.waits_for_uploads();
            if let Some(device) = accounts.device().filter(|_| uploaded) {
                // SAFETY: what was uploaded was waited for, and the ring is empty.
                unsafe { tenant.weights.unlock_others(device, &read) };
            }
            tenant.note_holdings(accounts);
            match carved {
                Ok(()) => {
                    counters.set_minimum(wanted.minimum_budget);
                    tenant.planner.followed.note_dropped_residents(&wanted);
                }
                Err(CarveError::Other(why)) => return Err(why.into()),
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

/// By unit, whether it is read from host memory under this plan, looked-up embeddings aside: the device streams it, or the CPU computes
/// with it.
fn read_from_host(plan: &Plan, units: &[Unit]) -> Vec<bool> {
    let resident = |at: usize, tier: &Tier| tier.placements.get(at) == Some(&Placement::Resident);
    let read = |(at, unit): (usize, &Unit)| {
        unit.class != UnitClass::HostOnly && !plan.tiers.iter().all(|tier| resident(at, tier))
    };
    units.iter().enumerate().map(read).collect()
}

/// By unit, whether it will be uploaded: its chunk is not there yet.
fn uploaded<'c>(have: impl Iterator<Item = &'c Chunk>, plan: &Plan) -> Vec<bool> {
    let shared = have.zip(&plan.chunks);
    let shared = shared.take_while(|(have, want)| have == want).count();
    let mut uploaded = vec![false; plan.units.len()];
    for (id, _) in plan.chunks[shared..].iter().flat_map(|chunk| &chunk.units) {
        uploaded[id.index()] = true;
    }
    uploaded
}

/// Page-locks what the plan reads from host memory.
fn page_lock(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    plan: &Plan,
    read: &[bool],
) {
    let Some(device) = accounts.device() else {
        return;
    };
    tenant.residency.drain();
    let have = tenant.residency.arena().into_iter();
    let uploaded = uploaded(have.flat_map(Arena::chunks), plan);
    // SAFETY: the lanes were drained.
    counters.page_lock_refused = unsafe { tenant.weights.lock_for(device, read, &uploaded) };
    tenant.note_page_locked(accounts);
}

/// After a refused allocation: lowers the budget to what the device still has, or gives up.
fn lower_budget(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    wanted: &Plan,
    why: &str,
) -> Result<(), Refusal> {
    if let Some(failure) = accounts.device_failure() {
        return Err(failure.into());
    }
    let lowered = accounts.lower_budget(wanted.ledger.total());
    log::warn(&format!(
        "{why}; continuing with a budget of {} MiB",
        lowered >> 20
    ));
    counters.note_error(why.to_string());
    tenant.planner.replan();
    match tenant.current_plan(accounts) {
        Ok(_) => Ok(()),
        Err(error) => Err(Refusal::from(&error).saying(format!("{why}, and {error}"))),
    }
}
