//! The process's runtime in its gate, and how a callback reaches it.

use super::panic_at::PanicAt;
use crate::hook::config::{Config, Ubatch};
use crate::hook::gate::Gate;
use crate::hook::log;
use crate::hook::planning::saved::PlanFile;
use crate::hook::runtime::Runtime;
use std::ffi::c_void;
use std::sync::atomic::AtomicBool;

/// What the table's `user` pointer points to.
pub struct Shared {
    /// The runtime.
    pub gate: Gate<Runtime>,
    /// Which ubatch contexts have.
    pub ubatch: Ubatch,
    /// Somebody waits for memory: passes that may be repeated end early.
    pub memory_is_wanted: AtomicBool,
    /// A test wants a callback to panic.
    pub panic_at: Option<PanicAt>,
}

impl Shared {
    /// A runtime that has seen nothing yet.
    pub fn new(config: Config, file: Option<PlanFile>, panic_at: Option<PanicAt>) -> Self {
        Shared {
            ubatch: config.ubatch.clone(),
            memory_is_wanted: AtomicBool::new(false),
            gate: Gate::new(Runtime::new(config, file), abandoned),
            panic_at,
        }
    }
}

fn abandoned() {
    log::warn("a batch was started but neither computed nor dropped; continuing without it");
}

/// The shared state that the table's `user` pointer refers to.
///
/// # Safety
/// `user` is the pointer that [`super::table`] put into the table.
pub unsafe fn shared_of<'a>(user: *mut c_void) -> &'a Shared {
    &*user.cast::<Shared>()
}
