//! What ggml's scheduler asks about graphs and compute buffers.

use super::shared::{shared_of, Shared};
use crate::hook::answers::graph::{self, Begun};
use crate::hook::answers::{context, encode, encoder, search};
use crate::hook::gate::{Idle, NoPass, Plain};
use crate::hook::graph::nodes::graph_nodes;
use crate::hook::log;
use crate::hook::refusal::Refusal;
use crate::hook::runtime::Runtime;
use crate::hook::schedulers::computes_on;
use crate::lanes::purpose::{compute_buffers_are, Purpose};
use crate::trace::record::HostWork;
use pipeshard_sys as ffi;
use std::ffi::c_void;

// SAFETY of everything below: ggml calls with the table's own `user` pointer and with objects that are alive during the
// call, as the contract in ggml-pipeshard.h says. No call happens while another of the same thread is in progress.

pub(super) unsafe extern "C" fn sched_freed(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    let freed = || {
        let mut plain = shared.gate.plain();
        plain.end_preparing_of(sched as usize);
        // an exception on its way through the scheduler leaves its pass unended: nothing else would end it
        plain.end_pass(sched as usize);
        drop(plain);
        let mut runtime = shared.gate.idle();
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            encoders,
            schedulers,
            telemetry,
            ..
        } = parts;
        let freed = (sched as usize, encoders.knows(sched as usize));
        context::sched_freed(accounts, tenant, schedulers, telemetry, freed, proof);
    };
    shared.guard_or("sched_freed", (), freed, freed)
}

pub(super) unsafe extern "C" fn graph_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    graph: *mut ffi::ggml_cgraph,
    measuring: bool,
) -> bool {
    let shared = shared_of(user);
    let begun = Begun {
        sched,
        graph,
        measuring,
    };
    shared.guard("graph_begin", false, || {
        let mut runtime = shared.gate.plain();
        // the graph before it will not run again
        runtime.end_preparing();
        if runtime.is_broken() {
            return false;
        }
        let Runtime {
            config,
            accounts,
            tenant,
            encoders,
            schedulers,
            telemetry,
        } = &mut *runtime;
        let of = (begun, encoders.knows(sched as usize));
        let concerns = graph::concerns(config, accounts, tenant, schedulers, telemetry, of);
        let reserved = accounts.reserved();
        encoder::begin(accounts, encoders, schedulers, telemetry, begun);
        encode::foresee(encoders, begun);
        if encoders.takes_turns(sched as usize) {
            if accounts.reserved() != reserved {
                // what its backend takes for itself stays, whichever model's turn it is
                tenant.planner.replan();
            }
            return begin_encode(shared, runtime, begun);
        }
        let settles = concerns && !measuring && encoder::may_settle(accounts, encoders);
        let room = !measuring && graph::needs_room(accounts, tenant);
        if !concerns && !room {
            return true;
        }
        let as_it_is = concerns && !room && !settles && !measuring && graph::needs_nothing(tenant);
        let failure = accounts.device_failure();
        let split = match failure {
            Some(failure) => Err(Refusal::from(failure)),
            None if as_it_is => {
                let split = split_as_it_is(&mut runtime, begun);
                if runtime.schedulers.refers_to_arena(sched as usize) {
                    runtime.begin_preparing(sched as usize);
                }
                split
            }
            None => {
                drop(runtime);
                let (mut idle, split) = prepare_and_split(shared.gate.idle(), begun, concerns);
                // what is only measured refers to the places of its weights too, until ggml says that it is dropped
                let measured = measuring && split.is_ok();
                if measured || idle.schedulers.refers_to_arena(sched as usize) {
                    idle.begin_preparing(sched as usize);
                }
                drop(idle);
                runtime = shared.gate.plain();
                split
            }
        };
        match split {
            Ok(()) => true,
            Err(why) if measuring => {
                runtime.tenant.planner.attempts.fail(why);
                false
            }
            Err(why) => {
                log::refusal(&why);
                runtime.telemetry.counters.note_error(why.text);
                false
            }
        }
    })
}

/// The same for a graph of an encoder that takes turns with the language model.
unsafe fn begin_encode<'g>(
    shared: &'g Shared,
    mut runtime: Plain<'g, Runtime>,
    begun: Begun,
) -> bool {
    let sched = begun.sched as usize;
    let bind = |parts: &mut Runtime| {
        let Runtime {
            encoders,
            schedulers,
            telemetry,
            ..
        } = parts;
        encode::bind(encoders, schedulers, telemetry, begun)
    };
    let failure = runtime.accounts.device_failure();
    let bound = match (failure, encode::needs_memory(&runtime.encoders, begun)) {
        (Some(failure), _) => Err(failure.into()),
        (None, false) => {
            let bound = bind(&mut runtime);
            if bound.is_ok() {
                runtime.begin_preparing(sched);
            }
            bound
        }
        (None, true) => {
            drop(runtime);
            let mut alone = shared.gate.alone();
            if alone.is_broken() {
                return false;
            }
            let (parts, proof) = alone.parts();
            let Runtime {
                accounts,
                tenant,
                encoders,
                telemetry,
                ..
            } = parts;
            let opened = encode::open(accounts, tenant, encoders, telemetry, (sched, proof));
            let bound = opened.and_then(|()| bind(parts));
            if bound.is_ok() {
                alone.begin_preparing(sched);
            }
            drop(alone);
            runtime = shared.gate.plain();
            bound
        }
    };
    if let Err(why) = &bound {
        log::refusal(why);
        runtime.telemetry.counters.note_error(why.text.clone());
    }
    bound.is_ok()
}

/// Decides the nodes of a graph that finds everything in place, while other passes may be under way.
unsafe fn split_as_it_is(runtime: &mut Runtime, begun: Begun) -> Result<(), Refusal> {
    let since = runtime.telemetry.trace.since();
    let Runtime {
        config,
        accounts,
        tenant,
        schedulers,
        telemetry,
        ..
    } = runtime;
    graph::note_written_files(&mut tenant.weights, telemetry, "answers may be wrong");
    graph::prepare_run_as_it_is(accounts, tenant)?;
    let split = graph::split(config, accounts, tenant, schedulers, telemetry, begun);
    telemetry.trace.worked(since, HostWork::GraphBegin);
    split
}

/// Sees to it that what the graph refers to is there, and decides its nodes. Waits to be alone where the arena has to take another
/// shape for it.
unsafe fn prepare_and_split(
    mut runtime: Idle<'_, Runtime>,
    begun: Begun,
    concerns: bool,
) -> (Idle<'_, Runtime>, Result<(), Refusal>) {
    let mut since = runtime.telemetry.trace.since();
    let (parts, proof) = runtime.parts();
    let Runtime {
        config,
        accounts,
        tenant,
        encoders,
        telemetry,
        ..
    } = parts;
    let prepared = if begun.measuring {
        graph::prepare_measuring(accounts, tenant, proof)
    } else {
        if concerns && encoder::may_settle(accounts, encoders) {
            encoder::settle(accounts, tenant, &mut telemetry.counters, proof);
        }
        search::decide_again(config, accounts, tenant, &mut telemetry.counters, proof);
        graph::note_written_files(&mut tenant.weights, telemetry, "answers may be wrong");
        let in_the_way = encoders.hold_memory() && accounts.spoken_for() > accounts.budget();
        if in_the_way || tenant.wants_another_shape(accounts) {
            let mut alone = runtime.alone();
            since = alone.telemetry.trace.since();
            let (parts, proof) = alone.parts();
            let Runtime {
                accounts,
                tenant,
                encoders,
                telemetry,
                ..
            } = parts;
            encode::make_way(accounts, tenant, encoders, proof);
            let before = tenant.residency.uploaded_bytes();
            let prepared = graph::prepare_run(accounts, tenant, telemetry, proof);
            encoders.note_restored(tenant.residency.uploaded_bytes() - before);
            runtime = alone.into_idle();
            prepared
        } else {
            graph::prepare_run_as_it_is(accounts, tenant)
        }
    };
    let Runtime {
        config,
        accounts,
        tenant,
        schedulers,
        telemetry,
        ..
    } = &mut *runtime;
    let split = match prepared {
        Ok(()) if concerns => graph::split(config, accounts, tenant, schedulers, telemetry, begun),
        prepared => prepared,
    };
    telemetry.trace.worked(since, HostWork::GraphBegin);
    (runtime, split)
}

pub(super) unsafe extern "C" fn cut(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    node: *const ffi::ggml_tensor,
) -> bool {
    let shared = shared_of(user);
    shared.guard("cut", false, || {
        let mut runtime = shared.gate.plain();
        graph::cut(&mut runtime.schedulers, sched as usize, node as usize)
    })
}

pub(super) unsafe extern "C" fn split_made(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    _backend: ffi::ggml_backend_t,
    nodes: *mut ffi::ggml_cgraph,
) {
    let shared = shared_of(user);
    shared.guard("split_made", (), || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            schedulers,
            telemetry,
            ..
        } = &mut *runtime;
        let which = (sched as usize, split);
        graph::split_made(schedulers, telemetry, which, graph_nodes(nodes));
    })
}

pub(super) unsafe extern "C" fn scratch_wanted(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    backend: ffi::ggml_backend_t,
    size: usize,
    measuring: bool,
) -> bool {
    let shared = shared_of(user);
    let wanted = (sched as usize, size as u64);
    shared.guard("scratch_wanted", false, || match measuring {
        true => {
            let mut runtime = shared.gate.alone();
            if runtime.is_broken() {
                return false;
            }
            let (parts, proof) = runtime.parts();
            let Runtime {
                accounts,
                tenant,
                encoders,
                telemetry,
                ..
            } = parts;
            let ours = computes_on(backend, accounts.device());
            // buffers of a measured graph stay, so they have to fit next to the language model
            encode::close(accounts, encoders, proof);
            let granted = match (ours, encoders.knows(wanted.0)) {
                (false, _) => true,
                // the contract has it measured without any
                (_, true) if encoders.takes_turns(wanted.0) => false,
                (_, true) => {
                    encoder::scratch_measured(accounts, tenant, encoders, telemetry, wanted, proof)
                }
                _ => context::scratch_measured(accounts, tenant, wanted, proof),
            };
            compute_buffers_are(of_compute_buffers(encoders.knows(wanted.0)));
            if granted {
                runtime.begin_preparing(sched as usize);
            }
            granted
        }
        false => {
            let mut runtime = shared.gate.idle();
            let broken = runtime.is_broken();
            let (parts, proof) = runtime.parts();
            let Runtime {
                accounts,
                tenant,
                encoders,
                telemetry,
                ..
            } = parts;
            let ours = computes_on(backend, accounts.device());
            let granted = !broken
                && match (ours, encoders.knows(wanted.0)) {
                    (false, _) => true,
                    (_, true) if encoders.takes_turns(wanted.0) => {
                        encode::scratch_grows(accounts, encoders, wanted, proof)
                    }
                    (_, true) => {
                        encoder::scratch_grows(accounts, tenant, encoders, telemetry, wanted, proof)
                    }
                    _ => context::scratch_grows(accounts, tenant, telemetry, wanted, proof),
                };
            compute_buffers_are(of_compute_buffers(encoders.knows(wanted.0)));
            if !granted {
                runtime.end_preparing();
            }
            granted
        }
    })
}

fn of_compute_buffers(of_encoder: bool) -> Purpose {
    match of_encoder {
        true => Purpose::Vision,
        false => Purpose::Buffers,
    }
}

pub(super) unsafe extern "C" fn scratch_failed(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
) {
    let shared = shared_of(user);
    let failed = || {
        let mut runtime = shared.gate.idle();
        let (parts, proof) = runtime.parts();
        let sched = sched as usize;
        let ledger = &parts.accounts.ledger;
        let wanted = ledger.scratch_of(sched) + ledger.encoder(sched).scratch;
        let why = format!(
            "the device refused {} MiB for compute buffers, which the budget allows: another program may have taken the memory; \
             free some, or lower --pipeshard-vram",
            wanted.div_ceil(1 << 20)
        );
        log::error(&why);
        parts.telemetry.counters.note_error(why.clone());
        if !parts.encoders.knows(sched) {
            parts.tenant.planner.attempts.fail(why.into());
        }
        scratch_there_is(parts, sched, proof);
    };
    shared.guard("scratch_failed", (), failed)
}

/// A scheduler has the compute buffers that it has, and not those that it was allowed.
unsafe fn scratch_there_is(parts: &mut Runtime, sched: usize, proof: NoPass<'_>) {
    let Runtime {
        accounts,
        tenant,
        encoders,
        schedulers,
        ..
    } = parts;
    match encoders.knows(sched) {
        true if encoders.takes_turns(sched) => {
            let there_is = schedulers.scratch_there_is(sched, |bytes| accounts.rounded(bytes));
            encode::dropped(accounts, encoders, (sched, there_is));
        }
        true => encoder::scratch_there_is(accounts, tenant, schedulers, sched, proof),
        false => context::scratch_there_is(accounts, tenant, schedulers, sched, proof),
    }
}

pub(super) unsafe extern "C" fn graph_dropped(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    let dropped = || {
        shared.gate.plain().end_preparing();
        let mut runtime = shared.gate.idle();
        let (parts, proof) = runtime.parts();
        scratch_there_is(parts, sched as usize, proof);
    };
    shared.guard_or("graph_dropped", (), dropped, || {
        shared.gate.plain().end_preparing()
    })
}
