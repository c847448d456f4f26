//! What becomes of a panic in a callback: a bug, after which nothing that is known can be relied on.
//!
//! It is logged once. From then on every graph, pass and model is refused, cleanly: no answer is made from a state that
//! may be wrong. Memory and schedulers that go are still let go of, and once the last model is gone all is well again
//! ([`crate::hook::answers::loading::start_over`]).

use super::shared::Shared;
use crate::hook::log;
use crate::lanes::purpose::{During, Purpose};
use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

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
        // what allocates here says what for
        let _during = During::begin(Purpose::Other);
        log::after(|| match catch_unwind(AssertUnwindSafe(checked)) {
            Ok(answer) => answer,
            Err(panic) => {
                let what = format!("{callback}: {}", message(&*panic));
                // the lock was let go of while the stack was unwound
                let rescued = catch_unwind(AssertUnwindSafe(|| {
                    self.break_off(&what);
                    rescue();
                }));
                if rescued.is_err() {
                    log::error("resources could not be released after the internal error");
                }
                otherwise
            }
        })
    }

    /// An internal error: nothing is computed any more. Logged the first time.
    fn break_off(&self, what: &str) {
        let mut runtime = self.gate.plain();
        runtime.end_preparing();
        if !runtime.break_off() {
            return;
        }
        let why = format!(
            "internal error ({what}): what is being computed fails, and so does all that follows until the model is loaded \
             again. Please report it"
        );
        log::error(&why);
        runtime.telemetry.counters.off(&why);
        runtime.telemetry.counters.note_error(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::answers::loading::start_over;
    use crate::hook::config::Config;

    #[test]
    fn after_a_panic_nothing_is_held_and_nothing_is_computed() {
        let shared = Shared::new(Config::default(), None, None);
        let mut rescued = false;
        let answer = shared.guard_or(
            "pass_begin",
            1,
            || {
                shared.gate.in_turn().begin_preparing(1);
                panic!("on purpose")
            },
            || rescued = true,
        );
        assert!(answer == 1 && rescued);
        let mut runtime = shared.gate.alone();
        assert!(runtime.is_broken());
        let errors = runtime.telemetry.counters.errors();
        assert!(errors[0].contains("pass_begin: on purpose"), "{errors:?}");
        let (parts, proof) = runtime.parts();
        start_over(
            &mut parts.accounts,
            &mut parts.tenant,
            &mut parts.schedulers,
            &mut parts.telemetry,
            proof,
        );
        assert_eq!(parts.telemetry.counters.reason_off(), None);
        runtime.repaired();
        assert!(!runtime.is_broken());
    }
}
