//! The locks of protocols that `tests/loom.rs` tries in every order of their threads: it compiles the same files with a
//! model of these in their place.

pub(crate) use parking_lot::{Condvar, Mutex};
