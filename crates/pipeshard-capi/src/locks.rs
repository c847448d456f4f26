//! Locks of the standard library's, whose keeper may have panicked: what is behind them is as good as it was.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock, also where somebody panicked with it.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
