//! The border to C: nothing unwinds across it, and misuse ends the process with a message.

use std::collections::HashSet;
use std::ffi::CString;
use std::panic::{catch_unwind, AssertUnwindSafe};

use parking_lot::Mutex;

use pipeshard_sys as ffi;

/// Runs the body of a function that C calls. A panic in it is logged and becomes `answer`.
pub(super) fn guard<T>(function: &str, answer: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            log::error!(
                "simulated GPU: {function} panicked: {}",
                text.unwrap_or("no message")
            );
            answer
        }
    }
}

/// Logs an error the first time that it happens.
pub(super) fn log_once(message: &'static str) {
    static LOGGED: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    if LOGGED.lock().get_or_insert_default().insert(message) {
        log::error!("{message}");
    }
}

/// Ends the process as ggml does when it is misused: with a message and a backtrace.
pub(super) fn abort(message: &str) -> ! {
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: all are strings, and the format takes one of them.
    unsafe {
        ffi::ggml_abort(c"simulated GPU".as_ptr(), 0, c"%s".as_ptr(), text.as_ptr());
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_answer() {
        assert_eq!(guard("test", 1, || 2), 2);
        assert_eq!(guard("test", 1, || panic!("on purpose")), 1);
    }
}
