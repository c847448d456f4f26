//! Contexts come and go: who may take how much device memory, and what happens when it does not fit.

use super::shape;
use crate::arena::ledger::OfEncoder;
use crate::hook::accounts::Accounts;
use crate::hook::gate::{NewShape, NoPass};
use crate::hook::log;
use crate::hook::planning::attempts::Failed;
use crate::hook::schedulers::Schedulers;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{plan, KvPlacement};

/// KV of one layer that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct LayerKv {
    /// Of which model.
    pub model: usize,
    /// Of whom: llama.cpp's address of the memory that it belongs to.
    pub owner: usize,
    /// The layer.
    pub layer: u32,
    /// How many bytes.
    pub bytes: u64,
}

/// Decides where this layer's KV cache goes: to the device while everything that must be there fits next to it.
pub fn kv_on_host(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    wanted: LayerKv,
    proof: NewShape<'_>,
) -> bool {
    let LayerKv {
        model,
        owner,
        layer,
        bytes,
    } = wanted;
    if tenant.weights.model(model).is_none() {
        return false;
    }
    let mut input = tenant.plan_input(accounts, 0);
    let attempt = tenant.planner.attempts.current();
    if attempt.kv_gives_way {
        // the buffers come after the KV cache, which can no longer make room for them
        input.scratch = input.scratch.max(attempt.estimated_scratch);
    }
    let granularity = accounts.granularity();
    let mut placement = KvPlacement {
        layer,
        device: true,
        bytes: accounts.ledger.kv_takes(owner, bytes, granularity),
    };
    if let Some(kv) = &mut input.kv_fixed {
        kv.push(placement);
    }
    placement.device = match tenant.planner.followed.kv_on_host(layer, bytes) {
        Some(on_host) => !on_host,
        None => {
            let decided = tenant.planner.context_of(model);
            let on_host = decided.is_some_and(|c| c.has_on_host(layer, bytes));
            let wanted = attempt.tried() || !on_host;
            wanted && !tenant.planner.attempts.smallest() && plan(&input).is_ok()
        }
    };
    // what stays where it is need not be copied again; the next plan takes it over or frees it
    if !placement.device {
        placement.bytes = bytes;
    }
    let taken = if placement.device { placement.bytes } else { 0 };
    let held = accounts.spoken_for() + taken;
    if accounts.rounded(held) > accounts.budget() {
        shape::release(accounts, tenant, proof);
    }
    accounts.ledger.add_kv(owner, model, bytes, placement);
    tenant.planner.replan();
    !placement.device
}

/// The KV of `owner` was freed, after its context's scheduler.
pub fn kv_gone(accounts: &mut Accounts, tenant: &mut Tenant, owner: usize, _: NoPass<'_>) {
    tenant.planner.attempts.kv_gone();
    if accounts.ledger.has_kv(owner) {
        accounts.ledger.remove_kv(owner);
        tenant.planner.replan();
    }
}

/// A scheduler is about to be freed. Its owner has waited for its work, and may have freed the backends already. `encodes`: it is that of
/// an encoder of images or sound.
pub fn sched_freed(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, encodes): (usize, bool),
    _: NoPass<'_>,
) {
    schedulers.remove(sched);
    accounts.reserve.context_gone(sched);
    tenant.residency.forget_sched(sched);
    telemetry.trace.sched_freed(sched);
    if encodes {
        // no context makes another in its place
        let of = accounts.ledger.encoder(sched);
        let left = OfEncoder { scratch: 0, ..of };
        accounts.ledger.set_encoder(sched, left, true);
    } else {
        let before = accounts.ledger.scratch();
        accounts.ledger.remove_scratch(sched);
        tenant.planner.attempts.sched_gone(sched, before);
    }
    tenant.planner.replan();
}

/// Compute buffers that a scheduler is about to have on the device, in bytes: what they were, and what they become.
enum Wanted {
    /// They are allowed already.
    Granted,
    /// Nothing can be planned for them.
    Refused,
    /// They fit by plan.
    Fit { before: u64, bytes: u64 },
}

/// Room for compute buffers that grow while running, as a share of all: KV in host memory is copied for attention, and ggml packs graphs
/// in another way for each number of tokens in it. The largest growth that was seen was 0.7 % (granite-hybrid, two contexts).
const GROWTH_SHARE: u64 = 64;

/// What may be added to compute buffers of `bytes` while running. Only the smallest plan keeps room for it: others give something up then.
fn growth(accounts: &Accounts, tenant: &Tenant, bytes: u64) -> u64 {
    let copied = accounts.ledger.kv_placements().iter().any(|kv| !kv.device);
    match copied && tenant.planner.attempts.smallest() {
        true => accounts.rounded(bytes / GROWTH_SHARE),
        false => 0,
    }
}

/// Plans for compute buffers. Where they fit by plan, that is the plan for now. `measuring`: they may grow later.
fn wanted(
    accounts: &Accounts,
    tenant: &mut Tenant,
    (sched, bytes): (usize, u64),
    measuring: bool,
) -> Wanted {
    if let Some(why) = tenant.planner.followed.refusal() {
        let why = why.into();
        tenant.planner.attempts.fail(why);
        return Wanted::Refused;
    }
    let bytes = accounts.rounded(bytes);
    let before = accounts.ledger.scratch_of(sched);
    if bytes <= before {
        return Wanted::Granted;
    }
    let later = match measuring {
        true => growth(accounts, tenant, accounts.ledger.scratch() - before + bytes),
        false => 0,
    };
    match tenant.make_plan(accounts, bytes - before + later) {
        Ok(made) => {
            tenant.planner.set(made);
            Wanted::Fit { before, bytes }
        }
        Err(error) => {
            let wanted = accounts.ledger.scratch() - before + bytes;
            let attempts = &mut tenant.planner.attempts;
            attempts.fail_for_scratch(wanted, &error);
            tenant.planner.replan();
            Wanted::Refused
        }
    }
}

/// Reports whether this much more fits next to what is held now and what the backend is going to take.
fn has_room(accounts: &Accounts, before: u64, bytes: u64) -> bool {
    accounts.spoken_for() - before + bytes <= accounts.budget()
}

/// Compute buffers of a scheduler are about to become `bytes` on the device, for graphs that are only measured. Makes room, or says no.
pub fn scratch_measured(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    (sched, bytes): (usize, u64),
    proof: NewShape<'_>,
) -> bool {
    match wanted(accounts, tenant, (sched, bytes), true) {
        Wanted::Granted => {
            tenant.place_for_measuring();
            true
        }
        Wanted::Refused => false,
        Wanted::Fit { before, bytes } => {
            if !has_room(accounts, before, bytes) {
                shape::release(accounts, tenant, proof);
            }
            // the graph refers to tensors that lost their places, to this or to what another thread did until the caller was alone
            tenant.place_for_measuring();
            accounts.ledger.set_scratch(sched, bytes);
            true
        }
    }
}

/// The same while running. The graph that wants them already refers to the arena: where that is in the way, the scheduler divides the
/// graph once more, and the arena makes room for the larger buffers before that.
pub fn scratch_grows(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    (sched, bytes): (usize, u64),
    _: NoPass<'_>,
) -> bool {
    let known = accounts.ledger.scratch_of(sched);
    if accounts.rounded(bytes) > known && tenant.planner.followed.refusal().is_none() {
        telemetry.counters.reallocations += 1;
    }
    match wanted(accounts, tenant, (sched, bytes), false) {
        Wanted::Granted => true,
        Wanted::Refused => {
            say_why_refused(tenant, telemetry, known);
            false
        }
        Wanted::Fit { before, bytes } => {
            if has_room(accounts, before, bytes) {
                accounts.ledger.set_scratch(sched, bytes);
                return true;
            }
            accounts.ledger.expect_scratch(sched, bytes);
            tenant.planner.replan();
            tenant.residency.void_graphs();
            false
        }
    }
}

/// A graph will not run: the compute buffers that it wants in addition to the `known` reserved bytes cannot be planned for.
fn say_why_refused(tenant: &Tenant, telemetry: &mut Telemetry, known: u64) {
    let Some(reason) = tenant.planner.attempts.error_here() else {
        return;
    };
    let why = reason.saying(format!(
        "this batch fails: it wants more compute buffers than the {} that were reserved. {reason}",
        ByteSize(known)
    ));
    log::note_minimum(&why);
    if telemetry.counters.note_error(why.text.clone()) {
        log::error(&why.text);
    }
}

/// A scheduler will not have all the compute buffers that it was allowed: the device refused them, or the graph that wanted them will
/// not run. Books what there is.
///
/// # Safety
/// `sched` is alive.
pub unsafe fn scratch_there_is(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    schedulers: &Schedulers,
    sched: usize,
    _: NoPass<'_>,
) {
    let there_is = schedulers.scratch_there_is(sched, |bytes| accounts.rounded(bytes));
    if accounts.ledger.scratch_of(sched) != there_is {
        accounts.ledger.restore_scratch(sched, there_is);
        tenant.planner.replan();
    }
}

/// A context could not be made, or has no room for the graphs that it wants to run from now on. True: try again, the answers will differ.
pub fn failed(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    _: NoPass<'_>,
) -> bool {
    let in_use = tenant.planner.in_use();
    // a saved plan says where everything goes: another try would go the same way
    let may_learn = !tenant.planner.followed.is_given();
    match tenant.planner.attempts.failed(may_learn, in_use) {
        Failed::NotHere => false,
        Failed::ForGood { missing, .. } if !in_use && accounts.expected.give_way(missing) => {
            log::info("no room for the context, the encoder and its largest image; planning for smaller images");
            tenant.planner.replan();
            true
        }
        Failed::ForGood { error, .. } => {
            accounts.reserve.nothing_comes();
            log::refusal(&error);
            match in_use {
                true => {
                    telemetry.counters.note_error(error.text);
                }
                false => telemetry.counters.off(&error.text),
            }
            false
        }
        Failed::Again => {
            if !in_use {
                accounts.ledger.forget_class_peaks();
            }
            log::info("the context did not fit as planned; planning again with what was measured");
            tenant.planner.replan();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::config::Config;
    use std::sync::Arc;

    #[test]
    fn compute_buffers_do_not_grow_into_what_the_backend_will_take() {
        let config = Config {
            reserve: Some(32),
            ..Config::default()
        };
        let mut accounts = Accounts::new(Arc::new(config));
        accounts.set_budget(100);
        accounts.ledger.set_arena(40, 10);
        accounts.ledger.set_scratch(1, 8);
        assert!(has_room(&accounts, 8, 18));
        assert!(!has_room(&accounts, 8, 19));
    }
}
