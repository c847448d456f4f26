//! Which callbacks there are, and which call of one panics in a test.

use crate::hook::config::ConfigError;
use crate::hook::gate::GUARDS;
use std::sync::atomic::{AtomicU64, Ordering};

/// The table's callbacks, by name.
pub const CALLBACKS: &[&str] = &{
    let mut names = [""; GUARDS.len()];
    let mut at = 0;
    while at < GUARDS.len() {
        names[at] = GUARDS[at].0;
        at += 1;
    }
    names
};

/// The callback that panics, and at which call, for tests (`PIPESHARD_DEBUG_PANIC`).
#[derive(Debug)]
pub struct PanicAt {
    callback: &'static str,
    /// Counted from 1.
    number: u64,
    calls: AtomicU64,
}

impl PanicAt {
    /// Reads `pass_begin` (the first call) or `pass_begin:3` (the third).
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError::Variable {
            variable: "PIPESHARD_DEBUG_PANIC",
            value: text.to_string(),
            expected: "CALLBACK or CALLBACK:NUMBER, with a callback of the hook's table such as pass_begin",
        }
        };
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => {
                let number = number.parse().ok().filter(|n| *n > 0);
                (name, number.ok_or_else(wrong)?)
            }
            None => (text, 1),
        };
        let callback = CALLBACKS.iter().copied().find(|c| *c == name);
        Ok(PanicAt {
            callback: callback.ok_or_else(wrong)?,
            number,
            calls: AtomicU64::new(0),
        })
    }

    /// A callback begins. Panics if this is the call.
    pub fn check(&self, callback: &str) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_call_of_which_callback() {
        for (text, number) in [("pass_begin", 1), ("cut:7", 7)] {
            let parsed = PanicAt::parse(text).expect("one of the callbacks");
            assert_eq!(parsed.number, number);
        }
        for wrong in ["", "pass", "pass_begin:", "pass_begin:0", "cut:x", ":1"] {
            assert!(PanicAt::parse(wrong).is_err(), "{wrong}");
        }
    }
}
