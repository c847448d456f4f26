//! The C callbacks: each takes a guard ([`super::gate::GUARDS`]), hands the runtime's parts to an answer, and turns what comes back
//! into C's. A panic inside becomes the answer that fails the operation cleanly ([`panics`]).

mod llama;
mod mtmd;
mod panic_at;
mod panics;
mod pass;
mod scheduler;
mod shared;

pub use panic_at::{PanicAt, CALLBACKS};
use pipeshard_sys as ffi;
pub use shared::Shared;

/// The table for ggml. What it refers to has to live until ggml has another, or none.
pub fn table(shared: &Shared, build_id: &std::ffi::CStr) -> ffi::ggml_sched_hook {
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
        input_copy: Some(pass::input_copy),
        pass_begin: Some(pass::pass_begin),
        split_before: Some(pass::split_before),
        split_after: Some(pass::split_after),
        pass_end: Some(pass::pass_end),
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
        encoder_expected: Some(mtmd::encoder_expected),
        encoder_wanted: Some(mtmd::encoder_wanted),
        encode_done: Some(mtmd::encode_done),
        encoder_gone: Some(mtmd::encoder_gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::config::Config;
    use std::mem::{offset_of, size_of};

    #[test]
    fn every_callback_has_a_guard() {
        let first = offset_of!(ffi::ggml_sched_hook, sched_freed);
        let callbacks = (size_of::<ffi::ggml_sched_hook>() - first) / size_of::<usize>();
        assert_eq!(CALLBACKS.len(), callbacks);
    }

    #[test]
    fn a_pass_that_uses_no_lane_does_not_wait_for_one_that_does() {
        let shared: &'static Shared =
            Box::leak(Box::new(Shared::new(Config::default(), None, None)));
        let callbacks = table(shared, c"build");
        shared.gate.idle().begin_pass(1);
        let (over, done) = std::sync::mpsc::channel();
        let user = callbacks.user.expose_provenance();
        let (begin, end) = (callbacks.pass_begin, callbacks.pass_end);
        std::thread::spawn(move || {
            let user = std::ptr::with_exposed_provenance_mut(user);
            let other = std::ptr::without_provenance_mut(2);
            // SAFETY: the table's own pointer; a scheduler that is not known is only an address.
            let status = unsafe { begin.expect("it is there")(user, other) };
            unsafe { end.expect("it is there")(user, other, status) };
            let _ = over.send(status);
        });
        // without an answer it waits for the other's pass, which never ends
        let status = done.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(status, Ok(ffi::GGML_STATUS_SUCCESS));
        assert_eq!(shared.gate.watched().pass, Some(1));
    }
}
