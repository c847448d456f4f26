//! The C callbacks: each takes a guard ([`super::gate::GUARDS`]), hands the runtime's parts to an answer, and turns what comes back
//! into C's. A panic inside becomes the answer that fails the operation cleanly ([`panics`]).

mod llama;
mod panic_at;
mod panics;
mod scheduler;
mod shared;

pub use panic_at::{PanicAt, CALLBACKS};
use pipeshard_sys as ffi;
pub use shared::Shared;

/// The table for ggml, which keeps it for the life of the process.
pub fn table(shared: &'static Shared, build_id: &'static std::ffi::CStr) -> ffi::ggml_sched_hook {
    ffi::ggml_sched_hook {
        abi: ffi::GGML_SCHED_HOOK_ABI,
        table_size: std::mem::size_of::<ffi::ggml_sched_hook>() as u32,
        tensor_size: std::mem::size_of::<ffi::ggml_tensor>() as u32,
        build_id: build_id.as_ptr(),
        user: std::ptr::from_ref(shared).cast_mut().cast(),
        sched_freed: Some(scheduler::sched_freed),
        graph_begin: Some(scheduler::graph_begin),
        cut: Some(scheduler::cut),
        split_made: Some(scheduler::split_made),
        scratch_wanted: Some(scheduler::scratch_wanted),
        scratch_failed: Some(scheduler::scratch_failed),
        graph_dropped: Some(scheduler::graph_dropped),
        input_copy: Some(scheduler::input_copy),
        pass_begin: Some(scheduler::pass_begin),
        split_before: Some(scheduler::split_before),
        split_after: Some(scheduler::split_after),
        pass_end: Some(scheduler::pass_end),
        epoch: Some(llama::epoch),
        device: Some(llama::device),
        weights_ready: Some(llama::weights_ready),
        weights_gone: Some(llama::weights_gone),
        ubatch: Some(llama::ubatch),
        kv_on_host: Some(llama::kv_on_host),
        kv_gone: Some(llama::kv_gone),
        layer_on_host: Some(llama::layer_on_host),
        in_parts: Some(llama::in_parts),
        context_made: Some(llama::context_made),
        context_failed: Some(llama::context_failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn every_callback_has_a_guard() {
        let first = offset_of!(ffi::ggml_sched_hook, sched_freed);
        let callbacks = (size_of::<ffi::ggml_sched_hook>() - first) / size_of::<usize>();
        assert_eq!(CALLBACKS.len(), callbacks);
    }
}
