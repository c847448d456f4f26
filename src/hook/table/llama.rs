//! What llama.cpp asks.

use super::shared_of;
use crate::hook::admission::ContextSize;
use crate::hook::helpers::Helpers;
use crate::hook::{log, outcome};
use crate::trace::record::HostWork;
use pipeshard_sys as ffi;
use std::ffi::c_void;

// SAFETY of everything below: llama.cpp calls with the table's own `user` pointer and with objects that are alive during the
// call, as the contract in ggml-pipeshard.h says. No call happens while another of the same thread is in progress.

pub(super) unsafe extern "C" fn epoch(user: *mut c_void) -> u64 {
    let shared = shared_of(user);
    shared.guard("epoch", 0, || {
        let mut runtime = shared.lock_in_turn();
        // the graph before may be used again: what it refers to stays until its pass
        shared.begin_preparing(&mut runtime);
        runtime.trace.epoch_asked();
        runtime.epoch
    })
}

pub(super) unsafe extern "C" fn device(user: *mut c_void) -> ffi::ggml_backend_dev_t {
    let shared = shared_of(user);
    shared.guard("device", std::ptr::null_mut(), || {
        let mut runtime = shared.lock_alone();
        runtime.mend();
        if runtime.broken {
            log::error("after an internal error no model is loaded until all others are gone");
            return std::ptr::null_mut();
        }
        let device = runtime.find_device();
        device.map_or(std::ptr::null_mut(), |d| d.raw())
    })
}

pub(super) unsafe extern "C" fn weights_ready(
    user: *mut c_void,
    model: *const c_void,
    tensors: *const *mut ffi::ggml_tensor,
    count: usize,
) -> bool {
    let shared = shared_of(user);
    shared.guard("weights_ready", false, || {
        let mut runtime = shared.lock_alone();
        if runtime.broken {
            return false;
        }
        let since = runtime.trace.since();
        let tensors = std::slice::from_raw_parts(tensors, count);
        let ready = runtime.weights_ready(model as usize, tensors);
        runtime.trace.worked(since, HostWork::WeightsReady);
        match ready {
            Ok(()) => true,
            Err(why) => {
                log::error(&why);
                runtime.outcome.off(&why);
                false
            }
        }
    })
}

pub(super) unsafe extern "C" fn weights_gone(user: *mut c_void, model: *const c_void) {
    let shared = shared_of(user);
    shared.guard_or(
        "weights_gone",
        (),
        || {
            let mut runtime = shared.lock_alone();
            let last = runtime.models.iter().all(|m| m.key == model as usize);
            if last && !runtime.models.is_empty() {
                outcome::publish(&mut runtime);
            }
            runtime.weights_gone(model as usize);
        },
        // nothing may read them any more, whatever happened
        || shared.lock_alone().weights_gone(model as usize),
    )
}

pub(super) unsafe extern "C" fn ubatch(
    user: *mut c_void,
    model: *const c_void,
    context: *const ffi::ggml_sched_hook_context,
) -> u32 {
    let shared = shared_of(user);
    let context = &*context;
    shared.guard("ubatch", context.n_ubatch, || {
        let wanted = ContextSize {
            context: context.n_ctx,
            batch: context.n_batch,
            ubatch: context.n_ubatch,
            experts_used: context.n_expert_used,
            sequences: context.n_seq_max,
            threads: u32::try_from(context.n_threads).unwrap_or(1),
            type_k: u32::try_from(context.type_k).unwrap_or(u32::MAX),
            type_v: u32::try_from(context.type_v).unwrap_or(u32::MAX),
        };
        shared.lock_idle().context_wanted(model as usize, wanted)
    })
}

pub(super) unsafe extern "C" fn kv_on_host(
    user: *mut c_void,
    model: *const c_void,
    owner: *const c_void,
    layer: i32,
    size: usize,
) -> bool {
    let shared = shared_of(user);
    // in host memory it takes nothing from the budget; a context with it will not be made
    shared.guard("kv_on_host", true, || {
        let layer = u32::try_from(layer).unwrap_or(0);
        shared
            .lock_alone()
            .kv_on_host(model as usize, owner as usize, layer, size as u64)
    })
}

pub(super) unsafe extern "C" fn kv_gone(user: *mut c_void, owner: *const c_void) {
    let shared = shared_of(user);
    shared.guard_or(
        "kv_gone",
        (),
        || shared.lock_idle().kv_gone(owner as usize),
        || shared.lock_idle().kv_gone(owner as usize),
    )
}

pub(super) unsafe extern "C" fn layer_on_host(
    user: *mut c_void,
    model: *const c_void,
    layer: i32,
) -> bool {
    let shared = shared_of(user);
    shared.guard("layer_on_host", false, || {
        u32::try_from(layer)
            .is_ok_and(|layer| shared.lock().ledger.layer_on_host(model as usize, layer))
    })
}

pub(super) unsafe extern "C" fn context_failed(user: *mut c_void, _model: *const c_void) -> bool {
    let shared = shared_of(user);
    shared.guard("context_failed", false, || {
        shared.lock_idle().context_failed()
    })
}

pub(super) unsafe extern "C" fn in_parts(
    user: *mut c_void,
    parts: usize,
    part: Option<unsafe extern "C" fn(*mut c_void, usize)>,
    data: *mut c_void,
) {
    let Some(part) = part else {
        return;
    };
    // an address: the caller vouches for its use on several threads
    let data = data as usize;
    let work = |index| part(data as *mut c_void, index);
    let all = || Helpers::of_process().share(parts, &work);
    shared_of(user).guard_or("in_parts", (), all, all);
}
