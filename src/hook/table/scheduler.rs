//! What ggml's scheduler asks.

use super::{shared_of, Shared};
use crate::hook::log;
use crate::hook::pass::PassError;
use crate::hook::placement;
use crate::hook::runtime::{Runtime, Sched};
use crate::lanes::hand_over::{HandOver, HostWait};
use crate::trace::record::HostWork;
use parking_lot::MutexGuard;
use pipeshard_sys as ffi;
use std::ffi::c_void;

// SAFETY of everything below: ggml calls with the table's own `user` pointer and with objects that are alive during the
// call, as the contract in ggml-pipeshard.h says. No call happens while another of the same thread is in progress.

pub(super) unsafe extern "C" fn sched_made(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    shared.guard("sched_made", (), || {
        let mut runtime = shared.lock();
        let count = ffi::ggml_backend_sched_get_n_backends(sched);
        let backends: Vec<_> = (0..count)
            .map(|i| ffi::ggml_backend_sched_get_backend(sched, i))
            .collect();
        let Some(&cpu_backend) = backends.last() else {
            return;
        };
        let device_backends = backends
            .iter()
            .copied()
            .filter(|&b| runtime.on_device(b))
            .collect();
        let dropped = runtime.config.debug.dropped_wait;
        runtime.scheds.insert(
            sched as usize,
            Sched {
                device_backends,
                cpu_backend,
                graph: Default::default(),
                nodes: None,
                hand_over: HandOver::new(dropped),
                pass_done: None,
            },
        );
    })
}

pub(super) unsafe extern "C" fn sched_freed(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    shared.guard_or(
        "sched_freed",
        (),
        || {
            let mut runtime = shared.lock_idle();
            shared.end_preparing(&mut runtime);
            runtime.sched_freed(sched as usize);
        },
        || shared.lock_idle().sched_freed(sched as usize),
    )
}

pub(super) unsafe extern "C" fn graph_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    graph: *mut ffi::ggml_cgraph,
    measuring: bool,
) -> bool {
    let shared = shared_of(user);
    shared.guard("graph_begin", false, || {
        let mut runtime = shared.lock_idle();
        // the graph before it will not run again
        shared.end_preparing(&mut runtime);
        if runtime.broken {
            return false;
        }
        if !measuring {
            runtime.settle_decisions();
            if runtime.will_carve() {
                drop(runtime);
                runtime = shared.lock_alone();
            }
        }
        let since = runtime.trace.since();
        let placed = runtime.graph_begin(sched, graph, measuring);
        runtime.trace.worked(since, HostWork::GraphBegin);
        match placed {
            Ok(()) => {
                if runtime.refers_to_arena(sched as usize) {
                    shared.begin_preparing(&mut runtime);
                }
                true
            }
            Err(why) if measuring => {
                runtime.retry.fail(why);
                false
            }
            Err(why) => {
                log::error(&why);
                runtime.outcome.note_error(why);
                false
            }
        }
    })
}

pub(super) unsafe extern "C" fn cut(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    node: *const ffi::ggml_tensor,
) -> bool {
    let shared = shared_of(user);
    shared.guard("cut", false, || {
        let mut runtime = shared.lock();
        runtime
            .scheds
            .get_mut(&(sched as usize))
            .is_some_and(|s| s.graph.cut(node as usize))
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
        let mut runtime = shared.lock();
        let nodes = placement::graph_nodes(nodes);
        runtime.trace.split_made(sched as usize, split, nodes);
        if let Some(entry) = runtime.scheds.get_mut(&(sched as usize)) {
            entry.graph.add_split(nodes);
        }
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
    shared.guard("scratch_wanted", false, || {
        let mut runtime = match measuring {
            true => shared.lock_alone(),
            false => shared.lock_idle(),
        };
        let granted = !runtime.broken
            && (!runtime.on_device(backend)
                || runtime.scratch_wanted(sched as usize, size as u64, measuring));
        if !granted {
            shared.end_preparing(&mut runtime);
        }
        granted
    })
}

/// The status of a step of a pass. Failures are logged by the caller as well, with the name of what failed.
fn status<'a>(
    shared: &'a Shared,
    callback: &'static str,
    lock: impl FnOnce(&'a Shared) -> MutexGuard<'a, Runtime>,
    step: impl FnOnce(&mut Runtime) -> Result<(), PassError>,
) -> ffi::ggml_status {
    shared.guard(callback, ffi::GGML_STATUS_FAILED, || {
        let mut runtime = lock(shared);
        let result = match (runtime.broken, runtime.device_failure()) {
            (true, _) => Err(PassError::Broken),
            (false, Some(failure)) => Err(PassError::DeviceFailed(failure)),
            (false, None) => step(&mut runtime),
        };
        match result {
            Ok(()) => ffi::GGML_STATUS_SUCCESS,
            // logged when it happened
            Err(PassError::Broken) => ffi::GGML_STATUS_FAILED,
            Err(error) => {
                log::error(&error.to_string());
                runtime.outcome.note_error(error.to_string());
                ffi::GGML_STATUS_FAILED
            }
        }
    })
}

pub(super) unsafe extern "C" fn pass_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
) -> ffi::ggml_status {
    let shared = shared_of(user);
    let result = status(shared, "pass_begin", Shared::lock_idle, |runtime| {
        runtime.traced_pass_begin(sched as usize)
    });
    if result != ffi::GGML_STATUS_SUCCESS {
        // there is no pass, and pass_end will not be called
        let mut runtime = shared.lock();
        runtime.pass_over(sched as usize);
        shared.end_preparing(&mut runtime);
        shared.step.notify_all();
    }
    result
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
        let mut runtime = shared.lock();
        let (taken, wait) = runtime.input_copy(sched as usize, (from, to), input, copy);
        drop(runtime);
        wait.wait();
        taken
    })
}

pub(super) unsafe extern "C" fn split_before(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    let shared = shared_of(user);
    let wait = shared.guard("split_before", HostWait::Nothing, || {
        shared
            .lock()
            .inputs_copied(sched as usize, split as usize, backend)
    });
    // others may go on meanwhile
    wait.wait();
    status(shared, "split_before", Shared::lock, |runtime| {
        runtime.traced_split_before(sched as usize, split as usize, backend)
    })
}

pub(super) unsafe extern "C" fn split_after(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    status(shared_of(user), "split_after", Shared::lock, |runtime| {
        runtime.traced_split_after(sched as usize, split as usize, backend)
    })
}

pub(super) unsafe extern "C" fn pass_end(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    result: ffi::ggml_status,
) {
    let shared = shared_of(user);
    let mut wait = HostWait::Nothing;
    shared.guard_or(
        "pass_end",
        (),
        || {
            let mut runtime = shared.lock();
            runtime.traced_pass_end(sched as usize, result);
            wait = runtime.inputs_read(sched as usize);
        },
        || shared.lock().settle(sched as usize),
    );
    wait.wait();
    shared.guard("pass_end", (), || {
        let mut runtime = shared.lock();
        let ended = runtime.calibration_clock();
        runtime.calibration_ends(sched as usize, result == ffi::GGML_STATUS_SUCCESS, ended);
    });
    let mut runtime = shared.lock();
    runtime.pass_over(sched as usize);
    shared.end_preparing(&mut runtime);
    shared.step.notify_all();
}

pub(super) unsafe extern "C" fn host_wait(
    user: *mut c_void,
    _sched: ffi::ggml_backend_sched_t,
    why: ffi::ggml_sched_host_wait,
) {
    let shared = shared_of(user);
    shared.guard("host_wait", (), || shared.lock().host_wait(why))
}
