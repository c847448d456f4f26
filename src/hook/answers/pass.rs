//! A pass: the splits of one graph, submitted in order.
//!
//! What runs here runs for every split of every token. It allocates nothing and waits for nothing but the choice of experts where
//! only those are fetched; what the host has to wait for else is handed back, for the caller to wait without the lock. Each step is
//! noted for a trace and for the comparison with what was predicted; without a trace each note is a test of an empty option.

use super::observing;
use crate::arena::unit::LoadedUnit;
use crate::hook::accounts::{Accounts, BackendHolds};
use crate::hook::gate::NoPass;
use crate::hook::graph::split_graph::SplitGraph;
use crate::hook::log;
use crate::hook::pass_error::PassError;
use crate::hook::residency::Residency;
use crate::hook::schedulers::{computes_on, Sched, Schedulers};
use crate::hook::stopping;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::weights::Weights;
use crate::lanes::hand_over::{Ends, HostWait};
use crate::lanes::mapped_file::Shrunk;
use crate::trace::record::{HostWork, WaitReason};
use crate::trace::Recorder;
use pipeshard_plan::plan::{plan, Placement};
use pipeshard_sys as ffi;
use std::ops::Range;

type Backend = ffi::ggml_backend_t;

/// The first split of `sched`'s graph is about to be submitted, which uses what there is one of.
pub fn begin(
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    sched: usize,
    _: NoPass<'_>,
) -> Result<(), PassError> {
    telemetry.pass_begins(sched, true);
    timed(
        schedulers,
        telemetry,
        sched,
        |schedulers, telemetry| match begin_graph(tenant, schedulers, telemetry, sched)? {
            Some(entry) => begin_lanes(tenant, entry, sched),
            None => Ok(()),
        },
    )
}

/// The same for a graph that uses no shared part: other passes may go on at the same time.
pub fn begin_shared(
    tenant: &Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    sched: usize,
) -> Result<(), PassError> {
    telemetry.pass_begins(sched, false);
    timed(schedulers, telemetry, sched, |schedulers, telemetry| {
        begin_graph(tenant, schedulers, telemetry, sched).map(|_| ())
    })
}

fn timed(
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    sched: usize,
    begin: impl FnOnce(&mut Schedulers, &mut Telemetry) -> Result<(), PassError>,
) -> Result<(), PassError> {
    if let Some(clock) = telemetry.clock_of(sched) {
        clock.pass_begins();
    }
    let rows = schedulers.get(sched).map_or(0, |s| s.graph.rows);
    telemetry.trace_of(sched).pass_begins(rows);
    let since = telemetry.trace_of(sched).since();
    let result = begin(schedulers, telemetry);
    telemetry.trace_of(sched).worked(since, HostWork::PassBegin);
    result
}

/// The scheduler, if it is known, and its graph may run.
fn begin_graph<'s>(
    tenant: &Tenant,
    schedulers: &'s mut Schedulers,
    telemetry: &mut Telemetry,
    sched: usize,
) -> Result<Option<&'s mut Sched>, PassError> {
    let Some(entry) = schedulers.get_mut(sched) else {
        return Ok(None);
    };
    let now = tenant.residency.generation().addresses();
    if entry.graph.addresses.is_some_and(|of| of != now) {
        return Err(PassError::Stale);
    }
    check_sources(tenant, entry)?;
    if !std::mem::replace(&mut entry.graph.fresh, false) {
        telemetry.counters.graph_reuses += 1;
    }
    Ok(Some(entry))
}

fn begin_lanes(tenant: &mut Tenant, entry: &mut Sched, sched: usize) -> Result<(), PassError> {
    if entry.graph.uses.is_empty() {
        return Ok(());
    }
    let Some(&compute) = entry.device_backends.first() else {
        return Ok(());
    };
    entry
        .run_ahead
        .begin_pass(tenant.residency.bytes_streamed());
    if let Some((ring, mut lanes)) = tenant.residency.pipeline_of_pass(sched, compute) {
        ring.begin_pass(&entry.graph.uses);
        entry.graph.routings.announce(ring);
        ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
    }
    Ok(())
}

/// Who copies a tensor between two backends.
pub enum InputCopy {
    /// It is submitted, or not needed.
    Done,
    /// The caller, on the backend that it goes to, in these pieces.
    InPieces(Vec<Range<usize>>),
    /// The scheduler, after the host has waited.
    ByScheduler(HostWait),
}

/// A tensor is about to be copied between two backends of `sched`, which computes with `weights`.
///
/// # Safety
/// The tensors have memory and the same layout, and belong to the graph that `sched` is submitting.
pub unsafe fn input_copy(
    accounts: &Accounts,
    weights: &Weights,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, between): (usize, (Backend, Backend)),
    (input, copy): (*const ffi::ggml_tensor, *mut ffi::ggml_tensor),
) -> InputCopy {
    let idle = schedulers
        .get(sched)
        .is_some_and(|s| s.graph.is_idle(copy as usize));
    if idle {
        return InputCopy::Done;
    }
    // the scheduler waits where it copies by itself
    let why = match (*input).flags & ffi::GGML_TENSOR_FLAG_INPUT as i32 != 0 {
        true => WaitReason::UserInput,
        false => WaitReason::HandOver,
    };
    let lanes = schedulers.lanes_of(sched);
    let (Some(device), Some((entry, compute))) = (accounts.device(), lanes) else {
        telemetry.host_waits(sched, why);
        return InputCopy::ByScheduler(HostWait::Nothing);
    };
    let ends = Ends {
        device,
        compute,
        cpu: entry.cpu_backend,
    };
    telemetry.trace_of(sched).inputs_begin(sched, compute);
    if let Some(pieces) = weights.pieces_of(input) {
        return InputCopy::InPieces(pieces);
    }
    if entry.hand_over.copy(ends, between, input, copy) {
        return InputCopy::Done;
    }
    telemetry.host_waits(sched, why);
    InputCopy::ByScheduler(entry.hand_over.sources_free(compute))
}

/// The inputs of a split are copied or being copied; it is about to be computed on `backend`. What the host has to wait
/// for first: what the CPU reads, and what the router chose.
///
/// # Safety
/// `sched` is submitting a pass.
pub unsafe fn inputs_copied(
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, split): (usize, usize),
    backend: Backend,
) -> [HostWait; 3] {
    let Some((entry, compute)) = schedulers.lanes_of(sched) else {
        return [HostWait::Nothing; 3];
    };
    let divided = &entry.graph.divided;
    let fetches = divided.share(split).fetches;
    if let (Some(layer), Some(fetcher)) = (fetches, tenant.residency.fetcher()) {
        let layer = &divided.layers[layer];
        let raw = sched as ffi::ggml_backend_sched_t;
        let made_by = ffi::ggml_backend_sched_get_tensor_backend(raw, layer.chosen);
        let before = fetcher.await_numbers(layer.kit, compute);
        if fetcher.ask(compute, made_by, layer.chosen, layer.choice) || before {
            entry.hand_over.expect_results();
        }
    }
    telemetry.trace_of(sched).inputs_end(compute);
    let results = entry.hand_over.before_split(compute, backend == compute);
    if results != HostWait::Nothing {
        telemetry.host_waits(sched, WaitReason::HandOver);
    }
    [
        results,
        ask_for_choice(tenant, entry, (sched, split), backend),
        entry.run_ahead.wait(),
    ]
}

/// Asks for what the router chose where the split has to know it.
unsafe fn ask_for_choice(
    tenant: &mut Tenant,
    entry: &mut Sched,
    (sched, split): (usize, usize),
    backend: Backend,
) -> HostWait {
    let Some(groups) = entry.graph.splits.get(split).filter(|g| !g.is_empty()) else {
        return HostWait::Nothing;
    };
    let waits = tenant.residency.waits_for_choice();
    let Some((ring, _)) = tenant.residency.pipeline(backend) else {
        return HostWait::Nothing;
    };
    let raw = sched as ffi::ggml_backend_sched_t;
    let asked = entry.choices.ask(raw, &entry.graph.routings, groups, ring);
    match waits {
        true => asked,
        false => HostWait::Nothing,
    }
}

/// A split is about to be submitted to `backend`.
///
/// # Safety
/// `backend` is a live backend, to which `sched` submits.
pub unsafe fn split_before(
    accounts: &Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, split): (usize, usize),
    backend: Backend,
) -> Result<(), PassError> {
    if let (Some(entry), Some(clock)) = (schedulers.get(sched), telemetry.clock_of(sched)) {
        clock.split_begins(backend == entry.cpu_backend);
    }
    let since = telemetry.trace_of(sched).since();
    let result = prepare_split(tenant, schedulers, telemetry, (sched, split), backend);
    let trace = telemetry.trace_of(sched);
    trace.worked(since, HostWork::SplitBefore);
    trace.split_begins(sched, split, traced_stream(accounts, trace, backend));
    result
}

unsafe fn prepare_split(
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, split): (usize, usize),
    backend: Backend,
) -> Result<(), PassError> {
    let Some(entry) = schedulers.get_mut(sched) else {
        return Ok(());
    };
    share_experts(tenant, entry, telemetry.trace_of(sched), split, backend)?;
    if entry.graph.groups_of_split(split).is_none() {
        return Ok(());
    }
    let groups = &entry.graph.splits[split];
    let wait = tenant.residency.waits_for_choice();
    if let Some((ring, mut lanes)) = tenant.residency.pipeline(backend) {
        let raw = sched as ffi::ggml_backend_sched_t;
        let routings = &mut entry.graph.routings;
        if let Some(waits) = entry.choices.choose(raw, routings, groups, ring, wait)? {
            telemetry.counters.count_choices(waits);
            // the other groups that the same choice is about are copied while this one is used
            ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
        }
        ring.before_split(groups, &mut lanes)
            .map_err(PassError::Ring)?;
    }
    Ok(())
}

/// What a split has to do for a layer whose experts both processors compute: begin to fetch the device's, or wait for them.
///
/// # Safety
/// As for [`split_before`].
unsafe fn share_experts(
    tenant: &mut Tenant,
    entry: &Sched,
    trace: &Recorder,
    split: usize,
    backend: Backend,
) -> Result<(), PassError> {
    let share = entry.graph.divided.share(split);
    let Some(fetcher) = tenant.residency.fetcher_mut() else {
        return Ok(());
    };
    let layers = &entry.graph.divided.layers;
    if let Some(layer) = share.fetches.map(|layer| &layers[layer]) {
        // the choice was asked for and waited for; weights stay until the model says that they go, and the targets lie in the
        // fetcher's memory
        let begin = trace.fetch_begins(fetcher.stream());
        let before = fetcher.counters.bytes;
        fetcher.fetch(layer.kit, &layer.stacks, layer.choice)?;
        trace.fetched(begin, fetcher.stream(), fetcher.counters.bytes - before);
    }
    if let Some(layer) = share.reads.map(|layer| &layers[layer]) {
        // the layer's copies were submitted in an earlier split
        fetcher.wait_until_filled(layer.kit, backend);
    }
    Ok(())
}

/// A split was submitted to `backend`.
///
/// # Safety
/// `backend` is a live backend, to which `sched` submits.
pub unsafe fn split_after(
    accounts: &Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, split): (usize, usize),
    backend: Backend,
) -> Result<(), PassError> {
    telemetry.counters.splits += 1;
    if let Some(clock) = telemetry.clock_of(sched) {
        clock.split_ends();
    }
    let trace = telemetry.trace_of(sched);
    trace.split_ends(traced_stream(accounts, trace, backend));
    let since = trace.since();
    let result = match schedulers.get(sched) {
        Some(entry) => finish_split(tenant, entry, split, backend),
        None => Ok(()),
    };
    if stopping::is_possible() {
        stay_close(accounts, tenant, schedulers, sched);
    }
    trace.worked(since, HostWork::SplitAfter);
    result
}

/// Marks how far the device is, where the host is not to run too far ahead of it: a quarter of the ring lies between two marks, which keeps
/// the copy lane busy.
unsafe fn stay_close(
    accounts: &Accounts,
    tenant: &Tenant,
    schedulers: &mut Schedulers,
    sched: usize,
) {
    let ring = tenant.residency.ring_bytes();
    let lanes = schedulers.lanes_of(sched);
    if let (Some(device), Some((entry, compute))) = (accounts.device(), lanes) {
        if ring > 0 {
            let copied = tenant.residency.bytes_streamed();
            entry.run_ahead.submitted(device, compute, copied, ring / 4);
        }
    }
}

unsafe fn finish_split(
    tenant: &mut Tenant,
    entry: &Sched,
    split: usize,
    backend: Backend,
) -> Result<(), PassError> {
    let divided = &entry.graph.divided;
    let reads = divided.share(split).reads;
    if let (Some(layer), Some(fetcher)) = (reads, tenant.residency.fetcher_mut()) {
        fetcher.was_read(divided.layers[layer].kit, backend);
    }
    groups_were_read(&mut tenant.residency, &entry.graph, split, backend)
}

/// A split that may read streamed groups was submitted: their slots are free after it, and are filled again.
///
/// # Safety
/// As for [`split_after`].
pub unsafe fn groups_were_read(
    residency: &mut Residency,
    graph: &SplitGraph,
    split: usize,
    backend: Backend,
) -> Result<(), PassError> {
    let Some(groups) = graph.groups_of_split(split) else {
        return Ok(());
    };
    if let Some((ring, mut lanes)) = residency.pipeline(backend) {
        ring.after_split(groups, &mut lanes);
        ring.fill_ahead(&mut lanes).map_err(PassError::Ring)?;
    }
    Ok(())
}

/// The last split was submitted, or the pass failed. What the host has to wait for before it writes what the next pass reads.
///
/// # Safety
/// `sched` is submitting a pass.
pub unsafe fn end(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, ok): (usize, bool),
) -> HostWait {
    telemetry.trace_of(sched).pass_ends();
    let since = telemetry.trace_of(sched).since();
    if let Some((entry, compute)) = schedulers.lanes_of(sched) {
        end_lanes(accounts, tenant, entry, telemetry, (sched, ok, compute));
    }
    telemetry.trace_of(sched).worked(since, HostWork::PassEnd);
    match schedulers.lanes_of(sched) {
        Some((entry, compute)) => entry.hand_over.before_host_goes_on(compute),
        None => HostWait::Nothing,
    }
}

unsafe fn end_lanes(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    entry: &mut Sched,
    telemetry: &mut Telemetry,
    (sched, ok, compute): (usize, bool, Backend),
) {
    if tenant.residency.pass_ended(sched, compute) {
        telemetry.counters.contexts += 1;
    }
    if !ok {
        if let Some(failure) = accounts.device_failure() {
            telemetry.counters.note_error(failure);
        }
        return;
    }
    if !entry.graph.refers_to_arena() {
        return;
    }
    telemetry.counters.count_pass(entry.graph.rows);
    telemetry.counters.over_host_kv += entry.graph.over_host_kv.len() as u64;
    tenant.planner.pass_succeeded(sched);
    // the next pass most likely streams the same groups: fetch what fits already
    if !entry.graph.uses.is_empty() {
        if let Some((ring, mut lanes)) = tenant.residency.pipeline(compute) {
            ring.begin_pass(&entry.graph.uses);
            entry.graph.routings.announce(ring);
            // a refused copy shows again, and fails the pass, when a split needs it
            let _ = ring.fill_ahead(&mut lanes);
        }
    }
    look_at_backend(accounts, tenant, sched);
}

/// Where the backend of a real device took more on its own account than was kept for it, residents make room before the next batch.
/// Where what it was thought to hold was another program's, and is given back, they come back. To be called while all is held that the
/// pass of `sched` took.
pub fn look_at_backend(accounts: &mut Accounts, tenant: &mut Tenant, sched: usize) {
    let holds = accounts.look_at_backend(sched);
    if let BackendHolds::Unknown = holds {
        return;
    }
    tenant.note_holdings(accounts);
    let before = match holds {
        BackendHolds::Unknown | BackendHolds::Enough => return,
        BackendHolds::TooMuch => Some(accounts.reserve.make_room()),
        BackendHolds::Less => None,
    };
    match plan(&tenant.plan_input(accounts, 0)) {
        Ok(made) => {
            tenant.planner.set(made);
            tenant.planner.decide_again();
            tenant.residency.void_graphs();
        }
        Err(error) => {
            let Some(before) = before else { return };
            accounts.reserve.take_room_back(before);
            let device = accounts.device().map(|d| d.name()).unwrap_or_default();
            log::warn(&format!(
                "the backend of {device} holds {} MiB for itself, more than the budget leaves: {error}",
                accounts.reserve.held() >> 20
            ));
        }
    }
}

/// The host has waited for what [`end`] said. Compares the pass with what was predicted for it.
pub fn compare(
    tenant: &Tenant,
    schedulers: &Schedulers,
    telemetry: &mut Telemetry,
    (sched, ok): (usize, bool),
) {
    let Some(clock) = telemetry.clock_of(sched) else {
        return;
    };
    let (Some(at), Some(entry)) = (clock.now(), schedulers.get(sched)) else {
        return;
    };
    let now = tenant.residency.generation().addresses();
    if clock.pass_ends(sched, &entry.graph, now, ok, at) {
        if let Some(forecast) = observing::forecast(tenant, entry.graph.rows) {
            clock.forecast(forecast);
        }
    }
}

/// Looks whether what the graph reads from host memory is still there: once a pass, with a system call for each file.
fn check_sources(tenant: &Tenant, entry: &Sched) -> Result<(), PassError> {
    let weights = &tenant.weights;
    let lost = |shrunk: &Shrunk| {
        let lost = |unit: &LoadedUnit| shrunk.affects(unit.host(), unit.bytes());
        let bound = entry.graph.bound.iter().any(|&(id, placement)| {
            placement != Placement::Resident && lost(&weights.units()[id.index()])
        });
        bound || weights.lookups_lost(shrunk)
    };
    match weights.shrunk_among(&entry.graph.files).find(lost) {
        Some(shrunk) => Err(PassError::FileShrunk(shrunk)),
        None => Ok(()),
    }
}

/// The backend, if a trace wants to know when it computes: if it is a stream of our device.
unsafe fn traced_stream(
    accounts: &Accounts,
    trace: &Recorder,
    backend: Backend,
) -> Option<Backend> {
    let wanted = trace.is_on() && computes_on(backend, accounts.device());
    wanted.then_some(backend)
}
