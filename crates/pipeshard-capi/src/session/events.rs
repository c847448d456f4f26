//! Generations on a thread of the session's own, and what the host hears of them.

use crate::failure::{Code, Failure};
use crate::locks::locked;
use crate::types::{WakeupFn, EVENT_DONE, EVENT_ENDED, EVENT_TEXT};
use std::ffi::{c_void, CString};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whom to wake.
#[derive(Clone, Copy)]
struct Wakeup {
    function: WakeupFn,
    user: usize,
}

/// What has not been fetched yet.
#[derive(Default)]
struct Waiting {
    /// A generation was submitted, and its end was not fetched.
    submitted: bool,
    text: String,
    end: Option<Result<(), Failure>>,
    /// The text of the event that was fetched last, which C reads.
    handed_out: CString,
}

/// What comes of generations.
#[derive(Default)]
pub struct Events {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// Locked while it is called, so that nobody is woken who has said no.
    wakeup: Mutex<Option<Wakeup>>,
}

/// An event for C.
pub struct Told {
    pub kind: i32,
    pub code: i32,
    pub text: *const std::ffi::c_char,
    pub length: usize,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        locked(&self.waiting)
    }

    fn changed(&self) {
        self.changed.notify_all();
        let wakeup = locked(&self.wakeup);
        if let Some(wakeup) = *wakeup {
            // SAFETY: the host's function, with the host's argument.
            unsafe { (wakeup.function)(wakeup.user as *mut c_void) };
        }
    }

    /// Whom to wake from now on.
    pub fn wake(&self, function: Option<WakeupFn>, user: *mut c_void) {
        let user = user as usize;
        *locked(&self.wakeup) = function.map(|function| Wakeup { function, user });
    }

    /// A generation begins; what was not fetched of the one before is gone.
    pub fn begin(&self) {
        let mut waiting = self.lock();
        waiting.submitted = true;
        waiting.text.clear();
        waiting.end = None;
    }

    /// Text came.
    pub fn text(&self, piece: &str) {
        self.lock().text.push_str(piece);
        self.changed();
    }

    /// The generation is over.
    pub fn end(&self, result: Result<(), Failure>) {
        self.lock().end = Some(result);
        self.changed();
    }

    /// What came, waiting for it up to `patience`.
    ///
    /// # Errors
    /// Nothing came, or nothing was submitted.
    pub fn fetch(&self, patience: Duration) -> Result<Told, Failure> {
        let until = Instant::now() + patience;
        let mut waiting = self.lock();
        loop {
            if !waiting.submitted {
                return Err(Failure::invalid(
                    "nothing was submitted, or its last event was fetched already",
                ));
            }
            if !waiting.text.is_empty() {
                let text = std::mem::take(&mut waiting.text);
                return Ok(waiting.tell(EVENT_TEXT, 0, &text));
            }
            if let Some(end) = waiting.end.take() {
                waiting.submitted = false;
                return Ok(match end {
                    Ok(()) => waiting.tell(EVENT_DONE, 0, ""),
                    Err(why) => waiting.tell(EVENT_ENDED, why.code as i32, &why.text),
                });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::new(Code::Timeout, "nothing has happened yet"));
            }
            let woken = self.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Waiting {
    fn tell(&mut self, kind: i32, code: i32, text: &str) -> Told {
        self.handed_out = CString::new(text.replace('\0', " ")).unwrap_or_default();
        Told {
            kind,
            code,
            text: self.handed_out.as_ptr(),
            length: self.handed_out.as_bytes().len(),
        }
    }
}
