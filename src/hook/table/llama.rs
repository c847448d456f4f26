//! What llama.cpp asks.

use super::shared::shared_of;
use crate::hook::answers::context::LayerKv;
use crate::hook::answers::{context as contexts, encode, loading, search};
use crate::hook::helpers::Helpers;
use crate::hook::planning::context::ContextSize;
use crate::hook::runtime::Runtime;
use crate::hook::{log, publish};
use pipeshard_sys as ffi;
use std::ffi::c_void;

// SAFETY of everything below: llama.cpp calls with the table's own `user` pointer and with objects that are alive during the
// call, as the contract in ggml-pipeshard.h says. No call happens while another of the same thread is in progress.

pub(super) unsafe extern "C" fn epoch(user: *mut c_void, sched: ffi::ggml_backend_sched_t) -> u64 {
    let shared = shared_of(user);
    shared.guard("epoch", 0, || {
        let mut runtime = shared.gate.in_turn();
        // the graph before may be used again: what it refers to stays until its pass
        runtime.begin_preparing(sched as usize);
        runtime.telemetry.trace.epoch_asked();
        runtime.tenant.residency.generation().reuse()
    })
}

pub(super) unsafe extern "C" fn device(user: *mut c_void) -> ffi::ggml_backend_dev_t {
    let shared = shared_of(user);
    shared.guard("device", std::ptr::null_mut(), || {
        let mut runtime = shared.gate.alone();
        if runtime.is_broken() {
            if !runtime.tenant.weights.models().is_empty() {
                log::error("after an internal error no model is loaded until all others are gone");
                return std::ptr::null_mut();
            }
            let (parts, proof) = runtime.parts();
            let Runtime {
                accounts,
                tenant,
                schedulers,
                telemetry,
                ..
            } = parts;
            loading::start_over(accounts, tenant, schedulers, telemetry, proof);
            runtime.repaired();
        }
        let Runtime {
            accounts,
            tenant,
            telemetry,
            ..
        } = &mut *runtime;
        let device = loading::device(accounts, tenant, telemetry);
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
        let mut runtime = shared.gate.alone();
        if runtime.is_broken() {
            return false;
        }
        runtime.telemetry.published = false;
        let (parts, proof) = runtime.parts();
        let Runtime {
            config,
            accounts,
            tenant,
            telemetry,
            ..
        } = parts;
        let tensors = match tensors.is_null() {
            true => &[][..],
            false => std::slice::from_raw_parts(tensors, count),
        };
        let model = (model as usize, tensors);
        loading::weights_ready(config, accounts, tenant, telemetry, model, proof)
    })
}

pub(super) unsafe extern "C" fn weights_gone(user: *mut c_void, model: *const c_void) {
    let shared = shared_of(user);
    let gone = |publishes: bool| {
        let mut runtime = shared.gate.alone();
        let only = runtime.tenant.weights.only_model();
        if publishes && only.is_some_and(|only| only.key == model as usize) {
            publish::publish(&mut runtime, true);
        }
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            telemetry,
            ..
        } = parts;
        loading::weights_gone(accounts, tenant, telemetry, model as usize, proof);
    };
    // nothing may read them any more, whatever happened
    shared.guard_or("weights_gone", (), || gone(true), || gone(false));
}

pub(super) unsafe extern "C" fn ubatch(
    user: *mut c_void,
    model: *const c_void,
    context: *mut ffi::ggml_sched_hook_context,
) -> u32 {
    let shared = shared_of(user);
    let context = &mut *context;
    let as_it_is = (context.n_ubatch, context.n_ctx);
    let (ubatch, tokens) = shared.guard("ubatch", as_it_is, || {
        let wanted = ContextSize {
            context: context.n_ctx,
            context_is_free: context.n_ctx_is_free,
            batch: context.n_batch,
            ubatch: context.n_ubatch,
            ubatch_is_free: shared.ubatch.is_free(),
            experts_used: context.n_expert_used,
            sequences: context.n_seq_max,
            threads: u32::try_from(context.n_threads).unwrap_or(1),
            type_k: u32::try_from(context.type_k).unwrap_or(u32::MAX),
            type_v: u32::try_from(context.type_v).unwrap_or(u32::MAX),
            outputs: context.n_outputs_max,
            shared_cache: context.kv_unified,
            full_windows: context.swa_full,
        };
        let mut runtime = shared.gate.making();
        let (parts, proof) = runtime.parts();
        let Runtime {
            config,
            accounts,
            tenant,
            telemetry,
            ..
        } = parts;
        let wanted = (model as usize, wanted);
        search::context_wanted(config, accounts, tenant, telemetry, wanted, proof)
    });
    context.n_ctx = tokens;
    ubatch
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
        let wanted = LayerKv {
            model: model as usize,
            owner: owner as usize,
            layer: u32::try_from(layer).unwrap_or(0),
            bytes: size as u64,
        };
        let mut runtime = shared.gate.alone();
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            encoders,
            ..
        } = parts;
        encode::close(accounts, encoders, proof);
        contexts::kv_on_host(accounts, tenant, wanted, proof)
    })
}

pub(super) unsafe extern "C" fn kv_gone(user: *mut c_void, owner: *const c_void) {
    let shared = shared_of(user);
    let gone = || {
        let mut runtime = shared.gate.idle();
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts, tenant, ..
        } = parts;
        contexts::kv_gone(accounts, tenant, owner as usize, proof);
    };
    shared.guard_or("kv_gone", (), gone, gone)
}

pub(super) unsafe extern "C" fn layer_on_host(
    user: *mut c_void,
    model: *const c_void,
    layer: i32,
) -> bool {
    let shared = shared_of(user);
    shared.guard("layer_on_host", false, || {
        let runtime = shared.gate.plain();
        let ledger = &runtime.accounts.ledger;
        u32::try_from(layer).is_ok_and(|layer| ledger.layer_on_host(model as usize, layer))
    })
}

pub(super) unsafe extern "C" fn context_made(user: *mut c_void, _model: *const c_void) {
    let shared = shared_of(user);
    let made = || shared.gate.plain().end_making();
    shared.guard_or("context_made", (), made, made)
}

pub(super) unsafe extern "C" fn context_failed(user: *mut c_void, _model: *const c_void) -> bool {
    let shared = shared_of(user);
    shared.guard("context_failed", false, || {
        let mut runtime = shared.gate.idle();
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            telemetry,
            ..
        } = parts;
        let again = contexts::failed(accounts, tenant, telemetry, proof);
        drop(runtime);
        if !again {
            shared.gate.plain().end_making();
        }
        again
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
