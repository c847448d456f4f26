//! What ggml's scheduler asks.

use super::shared::{shared_of, Shared};
use crate::hook::answers::graph::{self, Begun};
use crate::hook::answers::pass::InputCopy;
use crate::hook::answers::{context, encoder, pass, search};
use crate::hook::gate::{Idle, NoPass, Plain};
use crate::hook::graph::nodes::graph_nodes;
use crate::hook::log;
use crate::hook::pass_error::PassError;
use crate::hook::runtime::Runtime;
use crate::hook::schedulers::computes_on;
use crate::lanes::hand_over::HostWait;
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
        // an exception on its way through the scheduler leaves its pass unended: nobody else would end it
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
        encoder::begin(accounts, encoders, schedulers, telemetry, begun);
        let settles = concerns && !measuring && encoder::may_settle(accounts, encoders);
        let room = !measuring && graph::needs_room(accounts, tenant);
        if !concerns && !room {
            return true;
        }
        let as_it_is = concerns && !room && !settles && !measuring && graph::needs_nothing(tenant);
        let failure = accounts.device_failure();
        let split = match failure {
            Some(failure) => Err(failure),
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
                log::error(&why);
                runtime.telemetry.counters.note_error(why);
                false
            }
        }
    })
}

/// Decides the nodes of a graph that finds everything in place, while other passes may be under way.
unsafe fn split_as_it_is(runtime: &mut Runtime, begun: Begun) -> Result<(), String> {
    let since = runtime.telemetry.trace.since();
    let Runtime {
        config,
        accounts,
        tenant,
        schedulers,
        telemetry,
        ..
    } = runtime;
    graph::note_written_files(tenant, telemetry);
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
) -> (Idle<'_, Runtime>, Result<(), String>) {
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
            encoder::settle(accounts, tenant, proof);
        }
        search::decide_again(config, accounts, tenant, &mut telemetry.counters, proof);
        graph::note_written_files(tenant, telemetry);
        if tenant.wants_another_shape(accounts) {
            let mut alone = runtime.alone();
            since = alone.telemetry.trace.since();
            let (parts, proof) = alone.parts();
            let Runtime {
                accounts,
                tenant,
                telemetry,
                ..
            } = parts;
            let prepared = graph::prepare_run(accounts, tenant, telemetry, proof);
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
            let granted = match (ours, encoders.knows(wanted.0)) {
                (false, _) => true,
                (_, true) => {
                    encoder::scratch_measured(accounts, tenant, encoders, telemetry, wanted, proof)
                }
                _ => context::scratch_measured(accounts, tenant, wanted, proof),
            };
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
                    (_, true) => {
                        encoder::scratch_grows(accounts, tenant, encoders, telemetry, wanted, proof)
                    }
                    _ => context::scratch_grows(accounts, tenant, telemetry, wanted, proof),
                };
            if !granted {
                runtime.end_preparing();
            }
            granted
        }
    })
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
            parts.tenant.planner.attempts.fail(why);
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

/// Why nothing is computed, if it is not.
fn failing(broken: bool, runtime: &Runtime) -> Result<(), PassError> {
    match (broken, runtime.accounts.device_failure()) {
        (true, _) => Err(PassError::Broken),
        (false, Some(failure)) => Err(PassError::DeviceFailed(failure)),
        (false, None) => Ok(()),
    }
}

/// The status of a step of a pass. Failures are logged by the caller as well, with the name of what failed.
fn status(result: Result<(), PassError>, runtime: &mut Runtime) -> ffi::ggml_status {
    match result {
        Ok(()) => ffi::GGML_STATUS_SUCCESS,
        // logged when it happened
        Err(PassError::Broken) => ffi::GGML_STATUS_FAILED,
        Err(error) => {
            log::error(&error.to_string());
            runtime.telemetry.counters.note_error(error.to_string());
            ffi::GGML_STATUS_FAILED
        }
    }
}

/// A step of a pass that another step of it came before.
fn step(
    shared: &Shared,
    callback: &'static str,
    step: impl FnOnce(&mut Runtime) -> Result<(), PassError>,
) -> ffi::ggml_status {
    shared.guard(callback, ffi::GGML_STATUS_FAILED, || {
        let mut runtime = shared.gate.plain();
        let result = failing(runtime.is_broken(), &runtime).and_then(|()| step(&mut runtime));
        status(result, &mut runtime)
    })
}

pub(super) unsafe extern "C" fn pass_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
) -> ffi::ggml_status {
    let shared = shared_of(user);
    let sched = sched as usize;
    let result = shared.guard("pass_begin", ffi::GGML_STATUS_FAILED, || {
        let mut runtime = shared.gate.plain();
        runtime.accounts.check_device();
        if !runtime.schedulers.uses_lanes(sched) {
            // what it refers to stays until its end, for this thread prepares as long
            let failing = failing(runtime.is_broken(), &runtime);
            let Runtime {
                tenant,
                encoders,
                schedulers,
                telemetry,
                ..
            } = &mut *runtime;
            let begun = failing
                .and_then(|()| encoders.check(sched))
                .and_then(|()| pass::begin_shared(tenant, schedulers, telemetry, sched));
            return status(begun, &mut runtime);
        }
        drop(runtime);
        let mut runtime = shared.gate.idle();
        runtime.begin_pass(sched);
        let failing = failing(runtime.is_broken(), &runtime);
        let (parts, proof) = runtime.parts();
        let Runtime {
            tenant,
            schedulers,
            telemetry,
            ..
        } = &mut *parts;
        let result =
            failing.and_then(|()| pass::begin(tenant, schedulers, telemetry, sched, proof));
        status(result, parts)
    });
    if result != ffi::GGML_STATUS_SUCCESS {
        // there is no pass, and pass_end will not be called
        pass_over(shared, sched);
    }
    result
}

/// No pass of `sched` is being submitted any more.
fn pass_over(shared: &Shared, sched: usize) {
    let mut runtime: Plain<'_, Runtime> = shared.gate.plain();
    runtime.telemetry.pass_over(sched);
    runtime.end_pass(sched);
    runtime.end_preparing();
}

pub(super) unsafe extern "C" fn input_copy(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    from: ffi::ggml_backend_t,
    to: ffi::ggml_backend_t,
    input: *const ffi::ggml_tensor,
    copy: *mut ffi::ggml_tensor,
) -> bool {
    let shared = shared_of(user);
    shared.guard("input_copy", false, || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            config,
            accounts,
            tenant,
            schedulers,
            telemetry,
            ..
        } = &mut *runtime;
        if config.debug.stock_hand_over {
            return false;
        }
        let between = (sched as usize, (from, to));
        let who = pass::input_copy(
            accounts,
            tenant,
            schedulers,
            telemetry,
            between,
            (input, copy),
        );
        drop(runtime);
        match who {
            InputCopy::Done => true,
            InputCopy::InPieces(pieces) => {
                for piece in pieces {
                    let source = (*input).data.cast::<u8>().add(piece.start).cast();
                    ffi::ggml_backend_tensor_set_async(to, copy, source, piece.start, piece.len());
                }
                true
            }
            InputCopy::ByScheduler(wait) => {
                wait.wait();
                false
            }
        }
    })
}

pub(super) unsafe extern "C" fn split_before(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    let shared = shared_of(user);
    let which = (sched as usize, split as usize);
    let waits = shared.guard("split_before", [HostWait::Nothing; 2], || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            tenant,
            schedulers,
            telemetry,
            ..
        } = &mut *runtime;
        pass::inputs_copied(tenant, schedulers, telemetry, which, backend)
    });
    // others may go on meanwhile
    for wait in waits {
        wait.wait();
    }
    step(shared, "split_before", |runtime| {
        let Runtime {
            accounts,
            tenant,
            schedulers,
            telemetry,
            ..
        } = runtime;
        pass::split_before(accounts, tenant, schedulers, telemetry, which, backend)
    })
}

pub(super) unsafe extern "C" fn split_after(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    let which = (sched as usize, split as usize);
    step(shared_of(user), "split_after", |runtime| {
        let Runtime {
            accounts,
            tenant,
            schedulers,
            telemetry,
            ..
        } = runtime;
        pass::split_after(accounts, tenant, schedulers, telemetry, which, backend)
    })
}

pub(super) unsafe extern "C" fn pass_end(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    result: ffi::ggml_status,
) {
    let shared = shared_of(user);
    let which = (sched as usize, result == ffi::GGML_STATUS_SUCCESS);
    let mut wait = HostWait::Nothing;
    shared.guard_or(
        "pass_end",
        (),
        || {
            let mut runtime = shared.gate.plain();
            runtime.accounts.check_device();
            if which.1 {
                runtime.encoders.ran(which.0);
            }
            let Runtime {
                accounts,
                tenant,
                schedulers,
                telemetry,
                ..
            } = &mut *runtime;
            wait = pass::end(accounts, tenant, schedulers, telemetry, which);
        },
        || shared.gate.plain().schedulers.synchronize(sched as usize),
    );
    // without the lock: others may go on meanwhile, but for those who wait until this pass is over
    wait.wait();
    // what the pass took includes that wait
    shared.guard("pass_end", (), || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            tenant,
            schedulers,
            telemetry,
            ..
        } = &mut *runtime;
        pass::compare(tenant, schedulers, telemetry, which);
    });
    // last, and whatever happened: others may change what the pass has read from here on
    pass_over(shared, sched as usize);
}
