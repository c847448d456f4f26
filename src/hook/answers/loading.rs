//! Models come and go.

use super::shape;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::gate::NewShape;
use crate::hook::log;
use crate::hook::schedulers::Schedulers;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::weights::describe;
use crate::lanes::choice::in_short;
use crate::lanes::device::Device;
use crate::trace::record::HostWork;
use pipeshard_sys as ffi;

/// The device that computes, found on the first call.
///
/// # Errors
/// Why there is none, in a sentence.
pub fn open(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
) -> Result<Device, String> {
    let (device, is_new) = accounts.find_device()?;
    if is_new {
        let name = format!("{} ({})", device.name(), device.description());
        telemetry.counters.device = Some(name);
        telemetry.trace.attach(device);
        tenant.residency.attach(device);
    }
    Ok(device)
}

/// The same for llama.cpp. Logs why there is none.
pub fn device(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
) -> Option<Device> {
    let opened = open(accounts, tenant, telemetry);
    let opened = opened.inspect_err(|why| {
        log::error(why);
        telemetry.counters.off(in_short(why));
    });
    opened.ok()
}

/// A model's weights are loaded: they become units. False, after saying why, if the model cannot be served.
///
/// # Safety
/// The tensors are valid and stay so until [`weights_gone`] is called with the same model.
pub unsafe fn weights_ready(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    model: (usize, &[*mut ffi::ggml_tensor]),
    proof: NewShape<'_>,
) -> bool {
    let since = telemetry.trace.since();
    let added = match device(accounts, tenant, telemetry) {
        Some(device) => add(config, accounts, tenant, telemetry, (device, model), proof),
        None => Err("there is no device".to_string()),
    };
    telemetry.trace.worked(since, HostWork::WeightsReady);
    match added {
        Ok(()) => true,
        Err(why) => {
            log::error(&why);
            telemetry.counters.off(&why);
            false
        }
    }
}

unsafe fn add(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    (device, (model, tensors)): (Device, (usize, &[*mut ffi::ggml_tensor])),
    proof: NewShape<'_>,
) -> Result<(), String> {
    tenant.residency.open(device)?;
    tenant.note_holdings(accounts);
    let first = tenant.weights.models().is_empty();
    tenant.planner.followed.check_model(first, tensors)?;
    let described = describe(tensors)?;
    shape::release(accounts, tenant, proof);
    tenant.planner.replan();
    let granularity = accounts.granularity();
    let weights = &mut tenant.weights;
    weights.add(model, described, tensors, device, granularity, config)?;
    if let Some(why) = weights.locking_off() {
        log::warn(&format!(
            "{why}; streamed weights go through a small staging ring, which is slower"
        ));
        telemetry.counters.page_lock_refused = Some(why);
    }
    tenant.note_page_locked(accounts);
    tenant.note_holdings(accounts);
    telemetry.counters.models += 1;
    tenant.planner.followed.follow(tenant.weights.described())
}

/// A model's weights are about to be freed: nothing may read them any more.
pub fn weights_gone(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    model: usize,
    proof: NewShape<'_>,
) {
    if tenant.weights.model(model).is_none() {
        return;
    }
    shape::release(accounts, tenant, proof);
    // commands of another stream may still read them
    tenant.residency.drain();
    tenant.residency.release_fetcher(proof);
    tenant.weights.remove(model);
    tenant.planner.forget_model(model);
    tenant.residency.void_graphs();
    if tenant.planner.context().is_none() {
        telemetry.clock.context(false);
    }
    tenant.note_page_locked(accounts);
    tenant.note_holdings(accounts);
}

/// After an internal error, when the last model is gone: everything is made anew for the next one.
pub fn start_over(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    proof: NewShape<'_>,
) {
    let units = tenant.weights.units_mut();
    tenant.residency.release_anyway(units, proof);
    tenant.residency.forget_scheds();
    tenant.weights.clear();
    tenant.planner.start_over();
    schedulers.clear();
    accounts.ledger.forget_all();
    accounts.reserve.contexts_gone();
    tenant.note_holdings(accounts);
    telemetry.counters.on_again();
}
