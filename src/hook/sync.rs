//! The locks of [`super::gate`]. `tests/loom.rs` compiles that file with a model of these in their place, and tries every
//! order of threads.

pub(super) use parking_lot::{Condvar, Mutex, MutexGuard};
pub(super) use std::thread::ThreadId;

/// The calling thread.
pub(super) fn current_thread() -> ThreadId {
    std::thread::current().id()
}
