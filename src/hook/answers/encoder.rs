//! Encoders of images and sound come and go, and compute: whether their weights and compute buffers fit beside the language model.

use super::graph::Begun;
use super::refused::Refused;
use super::{loading, shape};
use crate::arena::ledger::OfEncoder;
use crate::hook::accounts::backend_reserve::WORKSPACE;
use crate::hook::accounts::expected::Expected;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::encoders::Encoders;
use crate::hook::gate::{NewShape, NoPass};
use crate::hook::log;
use crate::hook::schedulers::{computes_on, Schedulers};
use crate::hook::telemetry::counters::Counters;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::tower::units::{plan_of_all, units_of, Rounding};
use crate::hook::tower::Tower;
use crate::vision::header::{EncoderFile, Kind};
use crate::vision::Backends;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{Plan, PlanError};
use pipeshard_sys as ffi;
use std::path::Path;
use std::sync::Arc;

/// Encoders that will be loaded with the next language model.
#[derive(Debug, Clone, Copy)]
pub struct Announced<'a> {
    /// Their file.
    pub path: &'a Path,
    /// Where they will compute; null for the first GPU.
    pub device: ffi::ggml_backend_dev_t,
    /// The user's limit on the tokens of an image; 0 for none.
    pub limit: u64,
}

/// Encoders will be loaded: plans leave room for them from here on.
pub fn expected(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    announced: Announced<'_>,
    _: NewShape<'_>,
) {
    accounts.expected = Expected::default();
    tenant.planner.replan();
    let Some(device) = loading::device(accounts, tenant, telemetry) else {
        return;
    };
    if !announced.device.is_null() && announced.device != device.raw() {
        log::info(&format!(
            "images and sound are encoded on another device than {}, where the budget does not hold",
            device.name()
        ));
        return;
    }
    let file = match EncoderFile::read(announced.path) {
        Ok(file) => file,
        // llama.cpp says more when it loads it
        Err(why) => return log::warn(&format!("no room is left for an encoder: {why}")),
    };
    let real = accounts.is_real();
    let rounding = Rounding {
        granularity: accounts.granularity(),
        alignment: device.alignment(),
    };
    accounts.expected = expected_of(&file, announced.limit, rounding, real);
    let of_images = file.encoder(Kind::Images);
    accounts.of_encoder = of_images
        .map(|shape| shape.measurable())
        .unwrap_or_default();
}

/// What encoders of a file are expected to hold. `limit`: the user's on the tokens of an image, 0 for none; `real`: a real device's
/// backend takes memory on its own account.
pub fn expected_of(file: &EncoderFile, limit: u64, rounding: Rounding, real: bool) -> Expected {
    let rounded = |bytes: u64| bytes.next_multiple_of(rounding.granularity);
    // of all encoders in the file together, which is more than each has
    let weights = plan_of_all(&units_of(&file.tensors), rounding);
    let weights = weights.map_or(file.weights, |all| all.minimum_budget);
    let mut expected = Expected::default();
    for encoder in &file.encoders {
        let rows = encoder.rows(limit);
        let scratch = rounded(encoder.scratch(rows));
        if real {
            expected.scratch += encoder.pool(rows) + WORKSPACE;
        }
        if takes_turns(encoder.kind) {
            expected.weights += rounded(rounding.alignment);
            expected = expected.and_in_turn(weights, scratch);
        } else {
            expected.scratch = expected.scratch.saturating_add(scratch);
            expected.weights += rounded(file.weights_of(encoder.kind));
        }
    }
    expected
}

/// Whether encoders of a kind take turns with the language model. What speaks does not: it computes between any two tokens.
fn takes_turns(kind: Kind) -> bool {
    kind != Kind::SpokenSound
}

/// An encoder that is being loaded.
#[derive(Debug, Clone, Copy)]
pub struct Loading<'a> {
    /// Its scheduler.
    pub sched: ffi::ggml_backend_sched_t,
    /// Its file.
    pub path: &'a Path,
    /// What it takes in.
    pub kind: Kind,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Its tensors, which have no memory yet.
    pub tensors: *mut ffi::ggml_context,
}

/// Where an encoder's weights go.
#[derive(Debug, Clone, Copy)]
pub enum Loaded {
    /// Nowhere, after saying why.
    Refused,
    /// To its device's memory.
    OnDevice,
    /// They are in host memory, in this buffer.
    InHost(ffi::ggml_backend_buffer_t),
}

/// Whether an encoder's weights may be loaded, and where to. One that computes elsewhere may, and is none of ours.
///
/// # Safety
/// As the contract says of `encoder_wanted`.
pub unsafe fn wanted(
    config: &Arc<Config>,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    loading: Loading<'_>,
    proof: NewShape<'_>,
) -> Loaded {
    let Some(device) = loading::device(accounts, tenant, telemetry) else {
        return Loaded::Refused;
    };
    let backend = ffi::ggml_backend_sched_get_backend(loading.sched, 0);
    if !computes_on(backend, accounts.device()) {
        return Loaded::OnDevice;
    }
    let sched = loading.sched as usize;
    let file = loading.path.file_name().unwrap_or(loading.path.as_os_str());
    let shape = EncoderFile::read(loading.path).ok();
    let shape = shape.and_then(|file| file.encoder(loading.kind).cloned());
    let file = file.to_string_lossy().into_owned();
    encoders.add(sched, file, loading.kind, shape);
    if takes_turns(loading.kind) {
        // it keeps a placeholder, which is all that it takes now; a test's noise takes more
        let own = accounts.rounded(device.alignment());
        if config.debug.noise.is_some() || accounts.spoken_for() + own > accounts.budget() {
            shape::release(accounts, tenant, proof);
        }
        let place = (device, accounts.granularity());
        match Tower::map(loading.path, loading.tensors, place, config) {
            Ok((tower, buffer)) => {
                note_tower(accounts, sched, &tower);
                let weights = tower.bytes();
                encoders.set_tower(sched, tower);
                let first = !encoders.was_seen(sched);
                encoders.note_held(sched, weights, 0);
                if !config.no_page_lock {
                    accounts.addressed_of_encoders += weights;
                    tenant.note_page_locked(accounts);
                }
                tenant.planner.replan();
                if first {
                    say_what_fits(accounts, tenant, encoders, sched);
                }
                return Loaded::InHost(buffer);
            }
            Err(why) => {
                let why = format!(
                    "{why}; the encoder's weights stay in device memory, next to the language model's"
                );
                log::warn(&why);
                telemetry.counters.note_error(why);
            }
        }
    }
    let holds = OfEncoder {
        weights: accounts.rounded(loading.bytes),
        ..OfEncoder::default()
    };
    match take(accounts, tenant, (sched, holds)) {
        Ok(()) => {
            if accounts.spoken_for() > accounts.budget() {
                shape::release(accounts, tenant, proof);
            }
            hold(accounts, encoders, sched);
            Loaded::OnDevice
        }
        Err(error) => {
            let encoder = encoders.get(sched);
            let coming = encoder.map_or(0, |encoder| encoder.scratch_at_load());
            // compute buffers are asked for next
            let held = accounts.ledger.encoders_for_good() + holds.weights;
            let room = accounts.expected.total().saturating_sub(held);
            let refused = Refused {
                what: encoder.map(|e| e.name()).unwrap_or_default(),
                of: "its weights".to_owned(),
                needed: holds.weights,
                fixed: 0,
                coming: coming.saturating_sub(room),
                image: None,
            };
            let why = refused.refusal(accounts.budget(), &error);
            encoders.remove(sched);
            log::note_minimum(&why);
            // llama.cpp asks twice, for it looks first how much would be taken
            if telemetry.counters.note_error(why.text.clone()) {
                log::error(&why.text);
            }
            Loaded::Refused
        }
    }
}

/// Says how large images may be, by an estimate, where that follows from them: beside what the language model cannot lend.
fn say_what_fits(accounts: &Accounts, tenant: &Tenant, encoders: &Encoders, sched: usize) {
    let Some((encoder, tower)) = encoders.get(sched).zip(encoders.tower(sched)) else {
        return;
    };
    let Ok(weights) = plan_of_all(&tower.units(), tower.rounding()) else {
        return;
    };
    let holds = tenant.residency.holdings(accounts.granularity());
    let taken = accounts.spoken_for().saturating_sub(holds.lendable());
    let room = accounts
        .budget()
        .saturating_sub(taken + weights.minimum_budget);
    let Some((most, fit)) = encoder.tokens_within(room, encoders.limit) else {
        return;
    };
    let (name, bytes) = (encoder.name(), ByteSize(tower.bytes()));
    let stays = format!("{name}: weights of {bytes} stay in host memory");
    match fit < most {
        true => log::warn(&format!(
            "{stays}; images of more than some {fit} tokens have no room in the budget of {}: raise it, or limit them with \
             --image-max-tokens {fit}",
            ByteSize(accounts.budget())
        )),
        false => log::info(&stays),
    }
}

/// Notes what an encoder that takes turns holds.
pub fn note_tower(accounts: &mut Accounts, sched: usize, tower: &Tower) {
    let (own, weights) = tower.holds();
    let holds = OfEncoder {
        own,
        weights,
        in_turn: true,
        ..accounts.ledger.encoder(sched)
    };
    accounts.ledger.set_encoder(sched, holds, true);
}

/// The encoder with this scheduler is gone.
pub fn gone(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    sched: usize,
    proof: NewShape<'_>,
) {
    if encoders.knows(sched) {
        if let Some(tower) = encoders.tower_mut(sched) {
            tower.release(proof);
            // commands may still read its weights
            tower.residency.drain();
            let addressed = &mut accounts.addressed_of_encoders;
            *addressed = addressed.saturating_sub(tower.bytes());
            tenant.note_page_locked(accounts);
        }
        encoders.remove(sched);
        accounts
            .ledger
            .set_encoder(sched, OfEncoder::default(), true);
        tenant.planner.replan();
    }
}

/// Books what an encoder is about to hold, if the language model can make room for it: that is the plan for now.
fn take(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    (sched, holds): (usize, OfEncoder),
) -> Result<(), PlanError> {
    let before = accounts.ledger.encoder(sched);
    accounts.ledger.set_encoder(sched, holds, false);
    let mut made = plan_beside(accounts, tenant);
    if made.is_err() && accounts.expected.total() > accounts.ledger.encoders_for_good() {
        // what is here goes before what may come
        accounts.expected = Expected::default();
        made = plan_beside(accounts, tenant);
    }
    match made {
        Ok(Some(made)) => {
            tenant.planner.set(made);
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => {
            accounts.ledger.set_encoder(sched, before, false);
            tenant.planner.replan();
            Err(error)
        }
    }
}

/// The plan for the language models beside encoders, if there are any.
fn plan_beside(accounts: &Accounts, tenant: &Tenant) -> Result<Option<Plan>, PlanError> {
    if !tenant.weights.models().is_empty() {
        return tenant.make_plan(accounts, 0).map(Some);
    }
    let minimum = accounts
        .reserved()
        .saturating_add(accounts.ledger.encoders_for_good());
    match minimum <= accounts.budget() {
        true => Ok(None),
        false => Err(PlanError::BudgetTooSmall {
            budget: accounts.budget(),
            minimum,
            contributors: Vec::new(),
        }),
    }
}

/// What was booked is held from here on.
fn hold(accounts: &mut Accounts, encoders: &mut Encoders, sched: usize) {
    let holds = accounts.ledger.encoder(sched);
    accounts.ledger.set_encoder(sched, holds, true);
    encoders.note_held(sched, holds.weights, holds.scratch);
}

/// A graph of an encoder is about to be split; others are left alone.
///
/// # Safety
/// As the contract says of `graph_begin`.
pub unsafe fn begin(
    accounts: &mut Accounts,
    encoders: &mut Encoders,
    schedulers: &Schedulers,
    telemetry: &mut Telemetry,
    begun: Begun,
) {
    let sched = begun.sched as usize;
    let Some(entry) = schedulers.get(sched).filter(|_| encoders.knows(sched)) else {
        return;
    };
    let Some(&device) = entry.device_backends.first() else {
        return;
    };
    let backends = Backends {
        sched: begun.sched,
        device,
        cpu: entry.cpu_backend,
    };
    let made = encoders.begin(begun.graph, backends);
    if !begun.measuring {
        telemetry.counters.rewritten_nodes += made.nodes;
    }
    accounts.reserve.expect_product(sched, made.pool);
}

/// Whether encoders were expected and are loaded.
pub fn may_settle(accounts: &Accounts, encoders: &Encoders) -> bool {
    !encoders.is_empty() && accounts.expected != Expected::default()
}

/// The first batch runs beside encoders that are loaded: from here on only what they hold is left alone.
pub fn settle(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    _: NoPass<'_>,
) {
    let expected = std::mem::take(&mut accounts.expected);
    tenant.planner.replan();
    if expected.total() > accounts.ledger.encoders_for_good() {
        tenant.planner.decide_again();
    }
    // the smallest budget is no longer one for the largest image
    if let Ok(plan) = tenant.current_plan(accounts) {
        counters.set_minimum(plan.minimum_budget);
    }
}

/// Compute buffers of an encoder are about to become `bytes` on the device, for graphs that are only measured.
pub fn scratch_measured(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    wanted: (usize, u64),
    proof: NewShape<'_>,
) -> bool {
    let taken = scratch(accounts, tenant, encoders, telemetry, wanted);
    if taken {
        if accounts.spoken_for() > accounts.budget() {
            shape::release(accounts, tenant, proof);
        }
        hold(accounts, encoders, wanted.0);
    }
    taken
}

/// The same for a graph that will run. Where the arena is in the way, the scheduler divides the graph once more, and the arena makes
/// room before that.
pub fn scratch_grows(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    wanted: (usize, u64),
    _: NoPass<'_>,
) -> bool {
    let known = accounts.ledger.encoder(wanted.0).scratch;
    if !scratch(accounts, tenant, encoders, telemetry, wanted) {
        return false;
    }
    let grows = accounts.ledger.encoder(wanted.0).scratch > known;
    if grows && accounts.spoken_for() > accounts.budget() {
        tenant.planner.replan();
        tenant.residency.void_graphs();
        return false;
    }
    hold(accounts, encoders, wanted.0);
    true
}

/// Books compute buffers. False, after saying why, where the language model cannot make room for them.
fn scratch(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &Encoders,
    telemetry: &mut Telemetry,
    (sched, bytes): (usize, u64),
) -> bool {
    let before = accounts.ledger.encoder(sched);
    let holds = OfEncoder {
        scratch: accounts.rounded(bytes),
        ..before
    };
    if holds.scratch <= before.scratch {
        return true;
    }
    let Err(error) = take(accounts, tenant, (sched, holds)) else {
        return true;
    };
    let refused = Refused {
        needed: holds.scratch,
        ..Refused::compute_buffers(encoders.get(sched), "")
    };
    let why = refused.refusal(accounts.budget(), &error);
    log::refusal(&why);
    telemetry.counters.note_error(why.text);
    false
}

/// An encoder will not have all the compute buffers that it was allowed: the device refused them, or the graph that wanted them will not
/// run. Books what there is.
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
    if accounts.ledger.encoder(sched).scratch != there_is {
        accounts.ledger.set_encoder_scratch(sched, there_is);
        tenant.planner.replan();
    }
}
