//! The C callbacks: each takes the lock, asks the runtime, and turns the answer into C's. A panic inside becomes the answer
//! that fails the operation cleanly, and is logged once.

use super::config::Config;
use super::log;
use super::runtime::{Runtime, Sched};
use crate::ffi;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

/// The runtime of the process and the signal that a pass has been submitted.
pub struct Shared {
    runtime: Mutex<Runtime>,
    pass_submitted: Condvar,
    panicked: AtomicBool,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// The process's runtime, made on the first call.
pub fn install(config: Config) -> &'static Shared {
    SHARED.get_or_init(|| Shared {
        runtime: Mutex::new(Runtime::new(config)),
        pass_submitted: Condvar::new(),
        panicked: AtomicBool::new(false),
    })
}

/// The process's runtime, if there is one.
pub fn shared() -> Option<&'static Shared> {
    SHARED.get()
}

impl Shared {
    /// Locks the runtime.
    pub fn lock(&self) -> MutexGuard<'_, Runtime> {
        self.runtime.lock()
    }

    /// Locks the runtime when no pass is being submitted by another thread.
    pub fn lock_idle(&self) -> MutexGuard<'_, Runtime> {
        let mut runtime = self.runtime.lock();
        while runtime.active_pass.is_some() {
            self.pass_submitted.wait(&mut runtime);
        }
        runtime
    }

    /// Runs `work`; a panic is logged once and becomes `otherwise`.
    fn guard<T>(&self, otherwise: T, work: impl FnOnce() -> T) -> T {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(answer) => answer,
            Err(panic) => {
                let what = panic
                    .downcast_ref::<&str>()
                    .map(|s| s.to_string())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_string());
                if !self.panicked.swap(true, Ordering::Relaxed) {
                    log::error(&format!(
                        "internal error ({what}); what was being computed fails. Please report it."
                    ));
                }
                otherwise
            }
        }
    }
}

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
    shared.guard((), || {
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
    shared.guard((), || {
        let mut runtime = shared.lock_idle();
        let key = sched as usize;
        // the owner has waited for its work, and may have freed the backends already
        runtime.scheds.remove(&key);
        if runtime.ring_reader == Some(key) {
            runtime.ring_reader = None;
        }
        runtime.sched_gone(key);
    })
}

unsafe extern "C" fn graph_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    graph: *mut ffi::ggml_cgraph,
    measuring: bool,
) -> bool {
    let shared = shared_of(user);
    shared.guard(false, || {
        let mut runtime = shared.lock_idle();
        match runtime.graph_begin(sched, graph, measuring) {
            Ok(()) => true,
            Err(why) if measuring => {
                runtime.retry.fail(why);
                false
            }
            Err(why) => {
                log::error(&why);
                runtime.outcome.errors.push(why);
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
    shared.guard(false, || {
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
    _split: i32,
    _backend: ffi::ggml_backend_t,
    nodes: *mut ffi::ggml_cgraph,
) {
    let shared = shared_of(user);
    shared.guard((), || {
        let mut runtime = shared.lock();
        if let Some(entry) = runtime.scheds.get_mut(&(sched as usize)) {
            entry.graph.add_split(super::placement::graph_nodes(nodes));
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
    shared.guard(false, || {
        let mut runtime = shared.lock_idle();
        !runtime.on_device(backend)
            || runtime.scratch_wanted(sched as usize, size as u64, measuring)
    })
}

/// The status of a step of a pass. Failures are logged by the caller as well, with the name of what failed.
fn status<'a>(
    shared: &'a Shared,
    lock: impl FnOnce(&'a Shared) -> MutexGuard<'a, Runtime>,
    step: impl FnOnce(&mut Runtime) -> Result<(), super::pass::PassError>,
) -> ffi::ggml_status {
    shared.guard(ffi::GGML_STATUS_FAILED, || {
        let mut runtime = lock(shared);
        match step(&mut runtime) {
            Ok(()) => ffi::GGML_STATUS_SUCCESS,
            Err(error) => {
                log::error(&error.to_string());
                runtime.outcome.errors.push(error.to_string());
                ffi::GGML_STATUS_FAILED
            }
        }
    })
}

unsafe extern "C" fn pass_begin(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
) -> ffi::ggml_status {
    status(shared_of(user), Shared::lock_idle, |runtime| {
        runtime.pass_begin(sched as usize)
    })
}

unsafe extern "C" fn split_before(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    status(shared_of(user), Shared::lock, |runtime| {
        runtime.split_before(sched as usize, split as usize, backend)
    })
}

unsafe extern "C" fn split_after(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    split: i32,
    backend: ffi::ggml_backend_t,
) -> ffi::ggml_status {
    status(shared_of(user), Shared::lock, |runtime| {
        runtime.split_after(sched as usize, split as usize, backend)
    })
}

unsafe extern "C" fn pass_end(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    result: ffi::ggml_status,
) {
    let shared = shared_of(user);
    shared.guard((), || {
        shared
            .lock()
            .pass_end(sched as usize, result == ffi::GGML_STATUS_SUCCESS);
        shared.pass_submitted.notify_all();
    })
}

unsafe extern "C" fn host_wait(
    user: *mut c_void,
    _sched: ffi::ggml_backend_sched_t,
    why: ffi::ggml_sched_host_wait,
) {
    let shared = shared_of(user);
    shared.guard((), || shared.lock().outcome.count_host_wait(why))
}

unsafe extern "C" fn epoch(user: *mut c_void) -> u64 {
    let shared = shared_of(user);
    shared.guard(0, || shared.lock().epoch)
}

unsafe extern "C" fn device(user: *mut c_void) -> ffi::ggml_backend_dev_t {
    let shared = shared_of(user);
    shared.guard(std::ptr::null_mut(), || {
        shared
            .lock()
            .find_device()
            .map_or(std::ptr::null_mut(), |d| d.raw())
    })
}

unsafe extern "C" fn weights_ready(
    user: *mut c_void,
    model: *const c_void,
    tensors: *const *mut ffi::ggml_tensor,
    count: usize,
) -> bool {
    let shared = shared_of(user);
    shared.guard(false, || {
        let mut runtime = shared.lock_idle();
        match runtime.weights_ready(model as usize, std::slice::from_raw_parts(tensors, count)) {
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
    shared.guard((), || {
        let mut runtime = shared.lock_idle();
        let last = runtime.models.iter().all(|m| m.key == model as usize);
        if last && !runtime.models.is_empty() {
            super::outcome::publish(&runtime);
        }
        runtime.weights_gone(model as usize);
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
    shared.guard(false, || {
        let layer = u32::try_from(layer).unwrap_or(0);
        shared
            .lock_idle()
            .kv_on_host(model as usize, owner as usize, layer, size as u64)
    })
}

unsafe extern "C" fn kv_gone(user: *mut c_void, owner: *const c_void) {
    let shared = shared_of(user);
    shared.guard((), || shared.lock_idle().kv_gone(owner as usize))
}

unsafe extern "C" fn layer_on_host(user: *mut c_void, model: *const c_void, layer: i32) -> bool {
    let shared = shared_of(user);
    shared.guard(false, || {
        u32::try_from(layer)
            .is_ok_and(|layer| shared.lock().ledger.layer_on_host(model as usize, layer))
    })
}

unsafe extern "C" fn context_failed(user: *mut c_void, _model: *const c_void) -> bool {
    let shared = shared_of(user);
    shared.guard(false, || shared.lock_idle().context_failed())
}
