//! Something is encoded by an encoder that takes turns with the language model: where its memory comes from, and its pass.
//!
//! For an encode the language model lends its ring, whose contents come back by themselves, then residents from the end of their
//! list, no more than is needed. When the encode is over its compute buffers are freed; its weights stay where they are until the
//! language model, or another encoder, needs the room. So the peak is the larger of the two phases, and where there is room for both
//! nothing is moved from one image to the next.
//!
//! How large compute buffers are is known when a graph is split. So a graph that finds no weights on the device is split in vain
//! first, [`scratch_grows`] says no, and [`open`] makes room before the scheduler splits it again. For an image of a size that was there
//! before, that is known ([`foresee`]).

use super::encoder::note_tower;
use super::graph::{self, Begun};
use super::pass;
use super::refused::Refused;
use crate::hook::accounts::Accounts;
use crate::hook::encoders::Encoders;
use crate::hook::gate::{NewShape, NoPass};
use crate::hook::graph::bind::Binder;
use crate::hook::graph::nodes::{graph_nodes, Backends};
use crate::hook::pass_error::PassError;
use crate::hook::refusal::Refusal;
use crate::hook::schedulers::Schedulers;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::tower::Tower;
use crate::lanes::hand_over::HostWait;
use pipeshard_plan::plan::PlanError;
use pipeshard_sys as ffi;

type Backend = ffi::ggml_backend_t;

/// The share of a budget by which what the language model holds may be larger in a larger one: its weights are packed in another way
/// then, and its graphs are divided at other places, where inputs are copied.
const OTHERWISE: u64 = 128;

/// Whether a graph has to be given memory before it is split: it was split in vain.
pub fn needs_memory(encoders: &Encoders, begun: Begun) -> bool {
    let tower = encoders.tower(begun.sched as usize);
    !begun.measuring && tower.is_some_and(|tower| tower.wanted.is_some())
}

/// A graph was rewritten and will run. Where a graph like it was seen before, it is known how much memory it needs, and it is split once.
pub fn foresee(encoders: &mut Encoders, begun: Begun) {
    let sched = begun.sched as usize;
    let (about, false) = (encoders.about(sched), begun.measuring) else {
        return;
    };
    let Some(tower) = encoders.tower_mut(sched) else {
        return;
    };
    if tower.residency.carved().is_none() && tower.plan_of_all().is_some() {
        let known = about.and_then(|about| tower.known.get(&about).copied());
        tower.wanted = tower.wanted.max(known);
    }
}

/// Weights of all encoders that take turns leave the device.
pub fn close(accounts: &mut Accounts, encoders: &mut Encoders, proof: NewShape<'_>) {
    for (sched, tower) in encoders.towers_mut() {
        if tower.residency.holds_memory() {
            tower.release(proof);
            note_tower(accounts, sched, tower);
        }
    }
}

/// The language model is about to take its memory back: weights of encoders leave the device unless they have room beside it.
pub fn make_way(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    proof: NewShape<'_>,
) {
    if !encoders.hold_memory() {
        return;
    }
    let language = match tenant.current_plan(accounts) {
        Ok(plan) => plan.ledger.total(),
        Err(_) => u64::MAX,
    };
    let ledger = &accounts.ledger;
    let in_turn = ledger.encoders() - ledger.encoders_for_good();
    if language.saturating_add(in_turn) > accounts.budget() {
        close(accounts, encoders, proof);
    }
}

/// Makes room for the compute buffers that a graph was refused, and for weights beside them. The language model gives way.
pub fn open(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    (sched, proof): (usize, NewShape<'_>),
) -> Result<(), Refusal> {
    close(accounts, encoders, proof);
    let Some(tower) = encoders.tower_mut(sched) else {
        return Ok(());
    };
    let Some(wanted) = tower.wanted.take() else {
        return Ok(());
    };
    let scratch = wanted.max(accounts.ledger.encoder(sched).scratch);
    let all = tower.plan_of_all().ok_or("its graph was never split")?;
    let (weights_min, all) = (all.minimum_budget, all.ledger.total());
    let least = scratch.saturating_add(weights_min);
    // beside the buffers of a smaller image, which go when these are made
    let beside = |accounts: &Accounts| {
        let held = accounts.spoken_for();
        held.saturating_sub(accounts.ledger.encoder(sched).scratch)
    };
    let fits = |accounts: &Accounts, bytes: u64| {
        beside(accounts).saturating_add(bytes) <= accounts.budget()
    };
    let holds = tenant.residency.holdings(accounts.granularity());
    let (residents, ring) = holds.arena.unwrap_or_default();
    let minimum = beside(accounts)
        .saturating_sub(holds.lendable())
        .saturating_add(least);
    if minimum > accounts.budget() {
        let refused = Refused {
            needed: least,
            fixed: weights_min,
            ..Refused::compute_buffers(encoders.get(sched), " and the weights of a layer or two")
        };
        let budget = accounts.budget();
        let error = PlanError::BudgetTooSmall {
            budget,
            minimum: accounts.rounded(minimum.saturating_add(minimum / OTHERWISE)),
            contributors: Vec::new(),
        };
        return Err(refused.refusal(budget, &error));
    }
    let mut evicted = None;
    let mut lend = |accounts: &mut Accounts, tenant: &mut Tenant, keep: u64| {
        let units = tenant.weights.units_mut();
        let gone = tenant.residency.lend(units, keep, proof);
        *evicted.get_or_insert(0) += gone;
        tenant.note_holdings(accounts);
    };
    // copies of one layer run ahead while another is computed with, and there is room for a few more
    let comfortable = scratch.saturating_add(weights_min.saturating_mul(2).min(all));
    if ring > 0 && !fits(accounts, comfortable) {
        lend(accounts, tenant, residents);
    }
    if holds.fetched > 0 && !fits(accounts, least) {
        tenant.residency.release_fetcher(proof);
        tenant.note_holdings(accounts);
    }
    if !fits(accounts, least) {
        let missing = beside(accounts).saturating_add(least) - accounts.budget();
        lend(accounts, tenant, residents.saturating_sub(missing));
    }
    if let Some(evicted) = evicted {
        encoders.note_lent(evicted);
    }
    let Some(tower) = encoders.tower_mut(sched) else {
        return Ok(());
    };
    let room = accounts.budget().saturating_sub(beside(accounts));
    let plan = tower.plan_within(room.saturating_sub(scratch))?;
    let carved = tower.carve(&plan, proof);
    note_tower(accounts, sched, tower);
    let not_locked = carved?;
    if telemetry.counters.page_lock_refused.is_none() {
        telemetry.counters.page_lock_refused = not_locked;
    }
    Ok(())
}

/// Decides the nodes of a graph that is about to be split. One that finds no weights on the device refers to none.
///
/// # Safety
/// As the contract says of `graph_begin`.
pub unsafe fn bind(
    encoders: &mut Encoders,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    begun: Begun,
) -> Result<(), Refusal> {
    let sched = begun.sched as usize;
    let (Some(tower), Some(entry)) = (encoders.tower_mut(sched), schedulers.get_mut(sched)) else {
        return Ok(());
    };
    let Some(&device) = entry.device_backends.first() else {
        return Ok(());
    };
    let nodes = graph_nodes(begun.graph);
    tower.know_order(nodes)?;
    let has_memory = tower.residency.carved().is_some();
    if !has_memory {
        tower.place_for_measuring();
    }
    let backends = Backends {
        sched: begun.sched,
        device,
        cpu: entry.cpu_backend,
    };
    let plan = tower.plan().ok_or("there is no plan for its weights")?;
    let (index, units) = (tower.weights.index(), tower.weights.units());
    Binder::new(plan, index, units, backends).bind(&mut entry.graph, nodes);
    if has_memory && !begun.measuring {
        tower.residency.begin_generation();
        graph::note_reads(&mut entry.graph, &tower.weights, &tower.residency);
        graph::note_written_files(&mut tower.weights, telemetry, "images may be misunderstood");
        if entry.graph.declined > 0 {
            encoders.note_left();
        }
    }
    Ok(())
}

/// Compute buffers are about to become `bytes` on the device. Where the graph that wants them has no weights there, or no room, the
/// scheduler splits it once more, and [`open`] makes room before that.
pub fn scratch_grows(
    accounts: &mut Accounts,
    encoders: &mut Encoders,
    (sched, bytes): (usize, u64),
    _: NoPass<'_>,
) -> bool {
    let bytes = accounts.rounded(bytes);
    let before = accounts.ledger.encoder(sched);
    let others = accounts.spoken_for().saturating_sub(before.scratch);
    let fits = bytes <= before.scratch || others.saturating_add(bytes) <= accounts.budget();
    let about = encoders.about(sched);
    let Some(tower) = encoders.tower_mut(sched) else {
        return false;
    };
    if let Some(about) = about {
        tower.known.insert(about, bytes);
    }
    if tower.residency.carved().is_none() || !fits {
        tower.wanted = Some(bytes);
        encoders.note_split_in_vain();
        return false;
    }
    let weights = tower.bytes();
    if bytes > before.scratch {
        accounts.ledger.set_encoder_scratch(sched, bytes);
    }
    encoders.note_held(sched, weights, bytes);
    encoders.note_phase(sched, accounts.spoken_for());
    true
}

/// The graph will not run. Compute buffers are `there_is` bytes as they are.
pub fn dropped(accounts: &mut Accounts, encoders: &mut Encoders, (sched, there_is): (usize, u64)) {
    if let Some(tower) = encoders.tower_mut(sched) {
        tower.wanted = None;
    }
    accounts.ledger.set_encoder_scratch(sched, there_is);
}

/// What was encoded was read: compute buffers are freed.
pub fn done(accounts: &mut Accounts, encoders: &mut Encoders, telemetry: &Telemetry, sched: usize) {
    if encoders.takes_turns(sched) {
        if let Some((since, rows, weights)) = encoders.was_read(sched) {
            let scratch = accounts.ledger.encoder(sched).scratch;
            telemetry.trace.encoded(since, rows, weights, scratch);
        }
        dropped(accounts, encoders, (sched, 0));
    }
}

/// The first split of a graph is about to be submitted.
///
/// # Safety
/// `sched` is about to run the graph that it has split last.
pub unsafe fn begin(
    encoders: &mut Encoders,
    schedulers: &mut Schedulers,
    sched: usize,
    _: NoPass<'_>,
) -> Result<(), PassError> {
    encoders.check(sched)?;
    let lanes = schedulers.lanes_of(sched);
    let (Some(tower), Some((entry, compute))) = (encoders.tower_mut(sched), lanes) else {
        return Ok(());
    };
    let now = tower.residency.generation().addresses();
    if entry.graph.addresses != Some(now) {
        return Err(PassError::Stale);
    }
    if let Some(shrunk) = tower.weights.shrunk_among(&entry.graph.files).next() {
        return Err(PassError::FileShrunk(shrunk));
    }
    entry.graph.fresh = false;
    if let Some((ring, mut lanes)) = tower.residency.pipeline_of_pass(sched, compute) {
        ring.begin_pass(&entry.graph.uses);
        ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
    }
    Ok(())
}

/// The inputs of a split are copied or being copied. What the host has to wait for before it is computed on `backend`.
///
/// # Safety
/// `sched` is submitting a pass.
pub unsafe fn inputs_copied(
    schedulers: &mut Schedulers,
    sched: usize,
    backend: Backend,
) -> HostWait {
    match schedulers.lanes_of(sched) {
        Some((entry, compute)) => entry.hand_over.before_split(compute, backend == compute),
        None => HostWait::Nothing,
    }
}

/// A split is about to be submitted to `backend`.
///
/// # Safety
/// `backend` is a live backend, to which `sched` submits.
pub unsafe fn split_before(
    tower: &mut Tower,
    schedulers: &Schedulers,
    (sched, split): (usize, usize),
    backend: Backend,
) -> Result<(), PassError> {
    let graph = schedulers.get(sched).map(|entry| &entry.graph);
    let Some(groups) = graph.and_then(|graph| graph.groups_of_split(split)) else {
        return Ok(());
    };
    match tower.residency.pipeline(backend) {
        Some((ring, mut lanes)) => ring
            .before_split(groups, &mut lanes)
            .map_err(PassError::Ring),
        None => Ok(()),
    }
}

/// A split was submitted to `backend`.
///
/// # Safety
/// `backend` is a live backend, to which `sched` submits.
pub unsafe fn split_after(
    tower: &mut Tower,
    schedulers: &Schedulers,
    (sched, split): (usize, usize),
    backend: Backend,
) -> Result<(), PassError> {
    match schedulers.get(sched) {
        Some(entry) => pass::groups_were_read(&mut tower.residency, &entry.graph, split, backend),
        None => Ok(()),
    }
}

/// The last split was submitted, or the pass failed. What the host has to wait for before it goes on.
///
/// # Safety
/// `sched` is submitting a pass.
pub unsafe fn end(
    accounts: &Accounts,
    tower: &mut Tower,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, ok): (usize, bool),
) -> HostWait {
    let Some((entry, compute)) = schedulers.lanes_of(sched) else {
        return HostWait::Nothing;
    };
    tower.residency.pass_ended(sched, compute);
    if let (false, Some(failure)) = (ok, accounts.device_failure()) {
        telemetry.counters.note_error(failure);
    }
    entry.hand_over.before_host_goes_on(compute)
}
