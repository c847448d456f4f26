//! What ggml's scheduler asks while it submits a pass.

use super::shared::{shared_of, Shared};
use crate::hook::answers::pass::InputCopy;
use crate::hook::answers::{encode, pass};
use crate::hook::gate::Plain;
use crate::hook::log;
use crate::hook::pass_error::PassError;
use crate::hook::runtime::Runtime;
use crate::hook::stopping;
use crate::lanes::hand_over::HostWait;
use pipeshard_sys as ffi;
use std::ffi::c_void;

// SAFETY of everything below: as in [`super::scheduler`].

/// A thread that was asked to end its pass does nothing more for it.
fn go_on(shared: &Shared) -> Result<(), PassError> {
    match stopping::is_wanted(&shared.memory_is_wanted) {
        true => Err(PassError::Stopped),
        false => Ok(()),
    }
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
        Err(PassError::Stopped) => ffi::GGML_STATUS_ABORTED,
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
        let takes_turns = runtime.encoders.takes_turns(sched);
        if !takes_turns && !runtime.schedulers.uses_lanes(sched) {
            // what it refers to stays until its end, for this thread prepares as long
            let failing = failing(runtime.is_broken(), &runtime).and_then(|()| go_on(shared));
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
        let failing = failing(runtime.is_broken(), &runtime).and_then(|()| go_on(shared));
        let (parts, proof) = runtime.parts();
        let Runtime {
            tenant,
            encoders,
            schedulers,
            telemetry,
            ..
        } = &mut *parts;
        let result = failing.and_then(|()| match takes_turns {
            true => {
                encoders.began(sched, telemetry.trace.since());
                encode::begin(encoders, schedulers, sched, proof)
            }
            false => pass::begin(tenant, schedulers, telemetry, sched, proof),
        });
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
    // what was encoded is still on the device, to be read from there
    if !runtime.encoders.takes_turns(sched) {
        runtime.end_preparing();
    }
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
            encoders,
            schedulers,
            telemetry,
        } = &mut *runtime;
        if config.debug.stock_hand_over {
            return false;
        }
        let (key, between) = (sched as usize, (from, to));
        let tower = encoders.tower(key).map(|tower| &tower.weights);
        let who = pass::input_copy(
            accounts,
            tower.unwrap_or(&tenant.weights),
            schedulers,
            telemetry,
            (key, between),
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
    if go_on(shared).is_err() {
        return ffi::GGML_STATUS_ABORTED;
    }
    let waits = shared.guard("split_before", [HostWait::Nothing; 3], || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            tenant,
            encoders,
            schedulers,
            telemetry,
            ..
        } = &mut *runtime;
        if encoders.takes_turns(which.0) {
            let wait = encode::inputs_copied(schedulers, which.0, backend);
            return [wait, HostWait::Nothing, HostWait::Nothing];
        }
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
            encoders,
            schedulers,
            telemetry,
            ..
        } = runtime;
        match encoders.tower_mut(which.0) {
            Some(tower) => encode::split_before(tower, schedulers, which, backend),
            None => pass::split_before(accounts, tenant, schedulers, telemetry, which, backend),
        }
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
            encoders,
            schedulers,
            telemetry,
            ..
        } = runtime;
        match encoders.tower_mut(which.0) {
            Some(tower) => encode::split_after(tower, schedulers, which, backend),
            None => pass::split_after(accounts, tenant, schedulers, telemetry, which, backend),
        }
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
                encoders,
                schedulers,
                telemetry,
                ..
            } = &mut *runtime;
            wait = match encoders.tower_mut(which.0) {
                Some(tower) => encode::end(accounts, tower, schedulers, telemetry, which),
                None => pass::end(accounts, tenant, schedulers, telemetry, which),
            };
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
