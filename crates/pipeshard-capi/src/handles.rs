//! Handles: numbers that C holds as pointers, and what they stand for. One that is not in the table is refused, so a handle that was
//! closed, or was none, does no harm.

use crate::failure::Failure;
use crate::locks::locked;
use crate::process;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What stands behind the handles of one kind. Nothing is allocated where none is open.
pub struct Table<T>(Mutex<Option<HashMap<usize, Arc<T>>>>);

/// Where handles begin, and how far apart they are: no valid pointer of a small program, and never twice the same.
const FIRST: usize = 0x5053_0000;
const STEP: usize = 16;

/// The next handle of all kinds.
static NEXT: AtomicUsize = AtomicUsize::new(FIRST);

impl<T> Table<T> {
    pub const fn new() -> Self {
        Table(Mutex::new(None))
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<usize, Arc<T>>>> {
        // a map is as good as it was where somebody panicked
        locked(&self.0)
    }

    /// A new handle.
    pub fn open<H>(&self, value: Arc<T>) -> *mut H {
        let handle = NEXT.fetch_add(STEP, Ordering::Relaxed);
        self.lock()
            .get_or_insert_with(HashMap::new)
            .insert(handle, value);
        std::ptr::without_provenance_mut(handle)
    }

    /// What a handle stands for.
    pub fn get<H>(&self, handle: *const H, name: &str) -> Result<Arc<T>, Failure> {
        process::check(name)?;
        let known = self
            .lock()
            .as_ref()
            .and_then(|open| open.get(&handle.addr()).cloned());
        known.ok_or_else(|| match handle.is_null() {
            true => Failure::invalid(format!("{name} is NULL")),
            false => Failure::invalid(format!("{name} is not open: it was closed, or it is none")),
        })
    }

    /// Closes a handle, and returns what it stood for. Nothing in a child of the process that opened it.
    pub fn close<H>(&self, handle: *const H) -> Option<Arc<T>> {
        process::check("").ok()?;
        let mut held = self.lock();
        let open = held.as_mut()?;
        let value = open.remove(&handle.addr());
        if open.is_empty() {
            *held = None;
        }
        value
    }
}
