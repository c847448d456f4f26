//! What becomes of a panic in a callback: a bug, after which nothing that is known can be relied on.
//!
//! It is logged once. From then on every graph, pass and model is refused, cleanly: no answer is made from a state that
//! may be wrong. Memory and schedulers that go are still let go of, and once the last model is gone all is well again.

use super::log;
use super::runtime::Runtime;
use super::table::{Shared, CALLBACKS};
use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

/// Which call of which callback panics, for tests (`PIPESHARD_DEBUG_PANIC`).
#[derive(Debug)]
pub struct PanicAt {
    callback: &'static str,
    /// Counted from 1.
    number: u64,
    calls: AtomicU64,
}

impl Clone for PanicAt {
    fn clone(&self) -> Self {
        PanicAt {
            callback: self.callback,
            number: self.number,
            calls: AtomicU64::new(self.calls.load(Ordering::Relaxed)),
        }
    }
}

impl PanicAt {
    /// Reads `pass_begin` (the first call) or `pass_begin:3` (the third).
    pub fn parse(text: &str) -> Option<Self> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, number.parse().ok().filter(|n| *n > 0)?),
            None => (text, 1),
        };
        let callback = CALLBACKS.iter().copied().find(|c| *c == name)?;
        Some(PanicAt {
            callback,
            number,
            calls: AtomicU64::new(0),
        })
    }

    fn check(&self, callback: &str) {
        if self.callback == callback
            && self.calls.fetch_add(1, Ordering::Relaxed) + 1 == self.number
        {
            panic!(
                "call {} of {callback}, as PIPESHARD_DEBUG_PANIC says",
                self.number
            );
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_string()
}

impl Shared {
    /// Runs the work of a callback. A panic becomes `otherwise`.
    pub fn guard<T>(&self, callback: &'static str, otherwise: T, work: impl FnOnce() -> T) -> T {
        self.guard_or(callback, otherwise, work, || ())
    }

    /// The same, where after a panic `rescue` has to do what must be done in any case.
    pub fn guard_or<T>(
        &self,
        callback: &'static str,
        otherwise: T,
        work: impl FnOnce() -> T,
        rescue: impl FnOnce(),
    ) -> T {
        let checked = || {
            if let Some(panic_at) = &self.panic_at {
                panic_at.check(callback);
            }
            work()
        };
        match catch_unwind(AssertUnwindSafe(checked)) {
            Ok(answer) => answer,
            Err(panic) => {
                let what = format!("{callback}: {}", message(&*panic));
                // the lock was let go of while the stack was unwound
                let rescued = catch_unwind(AssertUnwindSafe(|| {
                    let mut runtime = self.lock();
                    runtime.break_off(&what);
                    self.end_preparing(&mut runtime);
                    drop(runtime);
                    rescue();
                }));
                if rescued.is_err() {
                    log::error("what the internal error left behind could not be let go of");
                }
                self.step.notify_all();
                otherwise
            }
        }
    }
}

impl Runtime {
    /// An internal error: nothing is computed any more. Logged the first time.
    fn break_off(&mut self, what: &str) {
        if self.broken {
            return;
        }
        self.broken = true;
        let why = format!(
            "internal error ({what}): what is being computed fails, and so does all that follows until the model is loaded \
             again. Please report it"
        );
        log::error(&why);
        self.outcome.off(&why);
        self.outcome.note_error(why);
    }

    /// After an internal error, when the last model is gone: everything is made anew for the next one.
    pub fn mend(&mut self) {
        if !self.broken || !self.models.is_empty() {
            return;
        }
        self.drain();
        if let Some(arena) = &mut self.arena {
            arena.release();
        }
        self.units.clear();
        self.plan_units.clear();
        self.index.clear();
        self.scheds.clear();
        self.ledger.forget_all();
        self.carved = None;
        self.plan = None;
        self.ring_reader = None;
        self.retry = Default::default();
        self.carving += 1;
        self.void_graphs();
        self.note_arena();
        self.outcome.on_again();
        self.broken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;
    use super::*;

    #[test]
    fn which_call_of_which_callback() {
        for (text, number) in [("pass_begin", 1), ("cut:7", 7)] {
            let parsed = PanicAt::parse(text).expect("one of the callbacks");
            assert_eq!(parsed.number, number);
        }
        for wrong in ["", "pass", "pass_begin:", "pass_begin:0", "cut:x", ":1"] {
            assert!(PanicAt::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn after_a_panic_nothing_is_held_and_nothing_is_computed() {
        let shared = Shared::new(Config::default());
        let mut rescued = false;
        let answer = shared.guard_or(
            "pass_begin",
            1,
            || {
                let mut runtime = shared.lock();
                shared.begin_preparing(&mut runtime);
                panic!("on purpose")
            },
            || rescued = true,
        );
        assert!(answer == 1 && rescued);
        let mut runtime = shared.lock_alone();
        assert!(runtime.broken);
        let errors = &runtime.outcome.errors;
        assert!(errors[0].contains("pass_begin: on purpose"), "{errors:?}");
        runtime.mend();
        assert!(!runtime.broken, "no model is loaded");
    }
}
