//! The C callbacks: each takes the lock, asks the runtime, and turns the answer into C's. A panic inside becomes the answer
//! that fails the operation cleanly ([`super::panics`]).

use super::admission::ContextSize;
use super::config::Config;
use super::log;
use super::panics::PanicAt;
use super::pass::PassError;
use super::runtime::{Runtime, Sched};
use crate::ffi;
use crate::trace::record::HostWork;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::ffi::c_void;
use std::sync::OnceLock;

/// The runtime of the process, and the signal that something happened that others may wait for.
pub struct Shared {
    runtime: Mutex<Runtime>,
    /// A pass was submitted, or a graph run or given up.
    pub step: Condvar,
    /// A test wants a callback to panic.
    pub panic_at: Option<PanicAt>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// The process's runtime, made on the first call.
pub fn install(config: Config) -> &'static Shared {
    SHARED.get_or_init(|| Shared::new(config))
}

/// The process's runtime, if there is one.
pub fn shared() -> Option<&'static Shared> {
    SHARED.get()
}

impl Shared {
    /// A runtime that has seen nothing yet.
    pub fn new(config: Config) -> Self {
        Shared {
            panic_at: config.debug.panic_at.clone(),
            runtime: Mutex::new(Runtime::new(config)),
            step: Condvar::new(),
        }
    }

    /// Locks the runtime.
    pub fn lock(&self) -> MutexGuard<'_, Runtime> {
        self.runtime.lock()
    }

    /// Locks the runtime when no pass is being submitted by another thread.
    pub fn lock_idle(&self) -> MutexGuard<'_, Runtime> {
        let mut runtime = self.runtime.lock();
        while runtime.active_pass.is_some() {
            self.step.wait(&mut runtime);
        }
        runtime
    }
}

/// The table's callbacks, by name.
pub const CALLBACKS: &[&str] = &[
    "sched_made",
    "sched_freed",
    "graph_begin",
    "cut",
    "split_made",
    "scratch_wanted",
    "pass_begin",
    "split_before",
    "split_after",
    "pass_end",
    "host_wait",
    "epoch",
    "device",
    "weights_ready",
    "weights_gone",
    "ubatch",
    "kv_on_host",
    "kv_gone",
    "layer_on_host",
    "context_failed",
];

/// The shared state behind the table's `user` pointer.
///
/// # Safety
/// `user` is the pointer that [`table`] put into the table.
unsafe fn shared_of<'a>(user: *mut c_void) -> &'a Shared {
    &*user.cast::<Shared>()
}

/// The table for ggml, which keeps it for the life of the process.
pub fn table(shared: &'static Shared, build_id: &'static std::ffi::CStr) -> ffi::ggml_sched_hook {
    ffi::ggml_sched_hook {
        abi: ffi::GGML_SCHED_HOOK_ABI,
        table_size: std::mem::size_of::<ffi::ggml_sched_hook>() as u32,
        tensor_size: std::mem::size_of::<ffi::ggml_tensor>() as u32,
        build_id: build_id.as_ptr(),
        user: std::ptr::from_ref(shared).cast_mut().cast(),
        sched_made: Some(sched_made),
        sched_freed: Some(sched_freed),
        graph_begin: Some(graph_begin),
        cut: Some(cut),
        split_made: Some(split_made),
        scratch_wanted: Some(scratch_wanted),
        pass_begin: Some(pass_begin),
        split_before: Some(split_before),
        split_after: Some(split_after),
        pass_end: Some(pass_end),
        host_wait: Some(host_wait),
        epoch: Some(epoch),
        device: Some(device),
        weights_ready: Some(weights_ready),
        weights_gone: Some(weights_gone),
        ubatch: Some(ubatch),
        kv_on_host: Some(kv_on_host),
        kv_gone: Some(kv_gone),
        layer_on_host: Some(layer_on_host),
        context_failed: Some(context_failed),
    }
}

// SAFETY of everything below: ggml calls with the table's own `user` pointer and with objects that are alive during the
// call, as the contract in ggml-pipeshard.h says. No call happens while another of the same thread is in progress.

unsafe extern "C" fn sched_made(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
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
        runtime.scheds.insert(
            sched as usize,
            Sched {
                device_backends,
                cpu_backend,
                graph: Default::default(),
                pass_done: None,
            },
        );
    })
}

unsafe extern "C" fn sched_freed(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
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

unsafe extern "C" fn graph_begin(
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

unsafe extern "C" fn cut(
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

unsafe extern "C" fn split_made(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    _backend: ffi::ggml_backend_t,
    nodes: *mut ffi::ggml_cgraph,
) {
    let shared = shared_of(user);
    shared.guard("split_made", (), || {
        let mut runtime = shared.lock();
        let nodes = super::placement::graph_nodes(nodes);
        runtime.trace.split_made(sched as usize, split, nodes);
        if let Some(entry) = runtime.scheds.get_mut(&(sched as usize)) {
            entry.graph.add_split(nodes);
        }
    })
}

unsafe extern "C" fn scratch_wanted(
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

unsafe extern "C" fn pass_begin(
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

unsafe extern "C" fn split_before(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    status(shared_of(user), "split_before", Shared::lock, |runtime| {
        runtime.traced_split_before(sched as usize, split as usize, backend)
    })
}

unsafe extern "C" fn split_after(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    status(shared_of(user), "split_after", Shared::lock, |runtime| {
        runtime.traced_split_after(sched as usize, split as usize, backend)
    })
}

unsafe extern "C" fn pass_end(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    result: ffi::ggml_status,
) {
    let shared = shared_of(user);
    shared.guard_or(
        "pass_end",
        (),
        || shared.lock().traced_pass_end(sched as usize, result),
        || shared.lock().settle(sched as usize),
    );
    let mut runtime = shared.lock();
    runtime.pass_over(sched as usize);
    shared.end_preparing(&mut runtime);
    shared.step.notify_all();
}

unsafe extern "C" fn host_wait(
    user: *mut c_void,
    _sched: ffi::ggml_backend_sched_t,
    why: ffi::ggml_sched_host_wait,
) {
    let shared = shared_of(user);
    shared.guard("host_wait", (), || shared.lock().host_wait(why))
}

unsafe extern "C" fn epoch(user: *mut c_void) -> u64 {
    let shared = shared_of(user);
    shared.guard("epoch", 0, || {
        let mut runtime = shared.lock_in_turn();
        // the graph before may be used again: what it refers to stays until its pass
        shared.begin_preparing(&mut runtime);
        runtime.trace.epoch_asked();
        runtime.epoch
    })
}

unsafe extern "C" fn device(user: *mut c_void) -> ffi::ggml_backend_dev_t {
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

unsafe extern "C" fn weights_ready(
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

unsafe extern "C" fn weights_gone(user: *mut c_void, model: *const c_void) {
    let shared = shared_of(user);
    shared.guard_or(
        "weights_gone",
        (),
        || {
            let mut runtime = shared.lock_alone();
            let last = runtime.models.iter().all(|m| m.key == model as usize);
            if last && !runtime.models.is_empty() {
                super::outcome::publish(&runtime);
            }
            runtime.weights_gone(model as usize);
        },
        // nothing may read them any more, whatever happened
        || shared.lock_alone().weights_gone(model as usize),
    )
}

unsafe extern "C" fn ubatch(
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

unsafe extern "C" fn kv_on_host(
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

unsafe extern "C" fn kv_gone(user: *mut c_void, owner: *const c_void) {
    let shared = shared_of(user);
    shared.guard_or(
        "kv_gone",
        (),
        || shared.lock_idle().kv_gone(owner as usize),
        || shared.lock_idle().kv_gone(owner as usize),
    )
}

unsafe extern "C" fn layer_on_host(user: *mut c_void, model: *const c_void, layer: i32) -> bool {
    let shared = shared_of(user);
    shared.guard("layer_on_host", false, || {
        u32::try_from(layer)
            .is_ok_and(|layer| shared.lock().ledger.layer_on_host(model as usize, layer))
    })
}

unsafe extern "C" fn context_failed(user: *mut c_void, _model: *const c_void) -> bool {
    let shared = shared_of(user);
    shared.guard("context_failed", false, || {
        shared.lock_idle().context_failed()
    })
}
