//! The process's runtime in its gate, and how a callback reaches it.

use super::panic_at::PanicAt;
use crate::hook::config::{Config, Ubatch};
use crate::hook::gate::Gate;
use crate::hook::log;
use crate::hook::planning::saved::PlanFile;
use crate::hook::runtime::Runtime;
use crate::hook::stopping::MemoryWanted;
use std::ffi::c_void;

/// What the table's `user` pointer points to.
pub struct Shared {
    /// The runtime.
    pub gate: Gate<Runtime>,
    /// Which ubatch contexts have.
    pub ubatch: Ubatch,
    /// Who waits for memory: passes that may be repeated end early then.
    pub memory_is_wanted: MemoryWanted,
    /// A test wants a callback to panic.
    pub panic_at: Option<PanicAt>,
}

impl Shared {
    /// A runtime that has seen nothing yet.
    pub fn new(config: Config, file: Option<PlanFile>, panic_at: Option<PanicAt>) -> Self {
        Shared {
            ubatch: config.ubatch.clone(),
            memory_is_wanted: MemoryWanted::default(),
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
