//! A graph is about to be split.

use super::shape;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::gate::{NewShape, NoPass};
use crate::hook::graph::decide::{decide, Given};
use crate::hook::graph::divide::Divider;
use crate::hook::graph::nodes::{graph_nodes, sources, Backends};
use crate::hook::graph::rewrite;
use crate::hook::graph::split_graph::SplitGraph;
use crate::hook::log;
use crate::hook::refusal::Refusal;
use crate::hook::residency::Residency;
use crate::hook::schedulers::Schedulers;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::hook::weights::Weights;
use pipeshard_plan::plan::{Placement, UnitId};
use pipeshard_sys as ffi;

/// A graph that a scheduler is about to split.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// By whom.
    pub sched: ffi::ggml_backend_sched_t,
    /// The graph.
    pub graph: *mut ffi::ggml_cgraph,
    /// It will never run.
    pub measuring: bool,
}

impl Begun {
    fn key(&self) -> usize {
        self.sched as usize
    }
}

/// Looks at a graph first, the first of its scheduler among them: whether some of its nodes read weights that pipeshard
/// placed. One that reads none is forgotten. `encodes`: it is one of an encoder of images or sound, which belongs to no
/// context of a language model.
///
/// # Safety
/// As the contract says of `graph_begin`.
pub unsafe fn concerns(
    config: &Config,
    accounts: &Accounts,
    tenant: &mut Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (begun, encodes): (Begun, bool),
) -> bool {
    if !schedulers.knows(begun.key()) {
        let dropped = config.debug.dropped_wait;
        schedulers.add(begun.sched, accounts.device(), dropped);
        if !encodes {
            tenant.planner.attempts.sched_made(begun.key());
        }
    }
    let Some((entry, _)) = schedulers.lanes_of(begun.key()) else {
        return false;
    };
    // what was known of the graph before it must not be mixed with this one, whatever becomes of this one
    entry.graph.clear();
    if config.debug.rewrite {
        telemetry.counters.rewritten_nodes += rewrite::identity(begun.graph);
    }
    let index = tenant.weights.index();
    let of_ours = |node: &*mut ffi::ggml_tensor| {
        sources(*node).any(|source| index.contains_key(&(source as usize)))
    };
    graph_nodes(begun.graph).iter().any(of_ours)
}

/// The graph will only be measured: there is a plan for it, and every unit has an address.
pub fn prepare_measuring(
    accounts: &Accounts,
    tenant: &mut Tenant,
    _: NoPass<'_>,
) -> Result<(), Refusal> {
    tenant.plan_for_measuring(accounts)?;
    tenant.place_for_measuring();
    Ok(())
}

/// The graph will run: the arena takes the shape of the plan for now, if it has another.
pub fn prepare_run(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    proof: NewShape<'_>,
) -> Result<(), Refusal> {
    if tenant.residency.carved().is_none() {
        tenant.weights.unplace();
    }
    shape::take(accounts, tenant, &mut telemetry.counters, proof)
}

/// Reports whether the arena has the shape of the plan for now and nothing is left to decide, so that the graph can be split
/// as things are.
pub fn needs_nothing(tenant: &Tenant) -> bool {
    let plan = tenant.planner.plan();
    tenant.planner.is_decided() && plan.is_some_and(|plan| tenant.residency.has_shape(plan))
}

/// More is booked than the budget allows: compute buffers were asked for that the arena has to make room for.
pub fn needs_room(accounts: &Accounts, tenant: &Tenant) -> bool {
    let booked = accounts.ledger.now().total();
    tenant.residency.holds_memory() && booked > accounts.budget()
}

/// The same where it has that shape already.
pub fn prepare_run_as_it_is(accounts: &Accounts, tenant: &mut Tenant) -> Result<(), Refusal> {
    tenant.current_plan(accounts)?;
    tenant.residency.begin_generation();
    Ok(())
}

/// Reports which files were written to while they are in use. Nobody can tell whether the weights are still the same.
/// `suspect`: what that may do.
pub fn note_written_files(weights: &mut Weights, telemetry: &mut Telemetry, suspect: &str) {
    for path in weights.written_files() {
        let what = format!(
            "{path} was written to while it is in use: {suspect} from here on; load the model again"
        );
        log::warn(&what);
        telemetry.counters.note_error(what);
    }
}

/// Decides every node of the graph, which was prepared for.
///
/// # Safety
/// As the contract says of `graph_begin`.
pub unsafe fn split(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &Tenant,
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    begun: Begun,
) -> Result<(), Refusal> {
    let planned = match begun.measuring {
        true => tenant.planner.plan_of_measured(),
        false => tenant.planner.plan(),
    };
    let plan = planned.ok_or("no plan")?;
    let Some(entry) = schedulers.get_mut(begun.key()) else {
        return Ok(());
    };
    let Some(&device) = entry.device_backends.first() else {
        return Ok(());
    };
    let backends = Backends {
        sched: begun.sched,
        device,
        cpu: entry.cpu_backend,
    };
    let given = Given {
        plan,
        index: tenant.weights.index(),
        units: tenant.weights.units(),
        backends,
        debug: &config.debug,
    };
    let decided = decide(given, &mut entry.graph, graph_nodes(begun.graph));
    let rows = entry.graph.rows;
    if !begun.measuring {
        telemetry.counters.rewritten_nodes += decided.lookups;
        let few = rows > 0 && plan.fetched_for(rows) > 0;
        if let (true, Some(fetcher)) = (few, tenant.residency.fetcher()) {
            let divider = Divider {
                index: tenant.weights.index(),
                units: tenant.weights.units(),
                shared: &plan.shared_with_device(rows),
                fetcher,
                backends,
                on_cpu: &decided.on_cpu,
            };
            let replaced = entry.graph.bound.len();
            let (divided, nodes) = divider.divide(begun.graph, &mut entry.nodes, replaced);
            entry.graph.divided = divided;
            telemetry.counters.rewritten_nodes += nodes;
        }
    }
    let pool = entry.graph.pool_bytes;
    accounts.reserve.expect_product(begun.key(), pool);
    if !begun.measuring {
        if let Some(device) = accounts.device() {
            let bytes = entry.graph.routings.bytes();
            entry.choices.reserve(device, bytes)?;
        }
        note_reads(&mut entry.graph, &tenant.weights, &tenant.residency);
        let units = tenant.weights.described();
        telemetry.counters.note_graph(&entry.graph, units);
    }
    Ok(())
}

/// Notes in a graph that will run which files its passes read, and which places in the arena it refers to.
pub fn note_reads(graph: &mut SplitGraph, weights: &Weights, residency: &Residency) {
    let bound = graph.bound.iter();
    let read = bound.clone().filter(|(_, at)| *at != Placement::Resident);
    let read: Vec<UnitId> = read.map(|(id, _)| *id).collect();
    let bound: Vec<UnitId> = bound.map(|(id, _)| *id).collect();
    graph.files = weights.files_read(&bound, &read);
    graph.addresses = Some(residency.generation().addresses());
}

/// Reports whether a new split must start at this node.
pub fn cut(schedulers: &mut Schedulers, sched: usize, node: usize) -> bool {
    let entry = schedulers.get_mut(sched);
    entry.is_some_and(|entry| entry.graph.cut(node))
}

/// The next split consists of these nodes.
///
/// # Safety
/// The nodes are valid.
pub unsafe fn split_made(
    schedulers: &mut Schedulers,
    telemetry: &mut Telemetry,
    (sched, split): (usize, i32),
    nodes: &[*mut ffi::ggml_tensor],
) {
    telemetry.trace.split_made(sched, split, nodes);
    if let Some(entry) = schedulers.get_mut(sched) {
        entry.graph.add_split(nodes);
    }
}
