//! The C callbacks: each takes the lock, asks the runtime, and turns the answer into C's. A panic inside becomes the answer
//! that fails the operation cleanly ([`super::panics`]).

mod llama;
mod scheduler;

use super::config::Config;
use super::panics::PanicAt;
use super::runtime::Runtime;
use parking_lot::{Condvar, Mutex, MutexGuard};
use pipeshard_sys as ffi;
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
    "input_copy",
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
    "in_parts",
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
        sched_made: Some(scheduler::sched_made),
        sched_freed: Some(scheduler::sched_freed),
        graph_begin: Some(scheduler::graph_begin),
        cut: Some(scheduler::cut),
        split_made: Some(scheduler::split_made),
        scratch_wanted: Some(scheduler::scratch_wanted),
        input_copy: Some(scheduler::input_copy),
        pass_begin: Some(scheduler::pass_begin),
        split_before: Some(scheduler::split_before),
        split_after: Some(scheduler::split_after),
        pass_end: Some(scheduler::pass_end),
        host_wait: Some(scheduler::host_wait),
        epoch: Some(llama::epoch),
        device: Some(llama::device),
        weights_ready: Some(llama::weights_ready),
        weights_gone: Some(llama::weights_gone),
        ubatch: Some(llama::ubatch),
        kv_on_host: Some(llama::kv_on_host),
        kv_gone: Some(llama::kv_gone),
        layer_on_host: Some(llama::layer_on_host),
        in_parts: Some(llama::in_parts),
        context_failed: Some(llama::context_failed),
    }
}
