//! Faults on purpose: which operations fail, and whether the device is still there.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use pipeshard_sys as ffi;

/// Which of the operations of one kind fail, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// The first that fails.
    pub from: u64,
    /// All after it fail as well.
    pub lasting: bool,
}

impl Faults {
    /// Reads `3` (the third) or `3+` (the third and all after it).
    pub fn parse(text: &str) -> Option<Self> {
        let (number, lasting) = match text.strip_suffix('+') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let from = number.parse().ok().filter(|n| *n > 0)?;
        Some(Self { from, lasting })
    }

    /// Reports whether the operation with this number fails.
    pub fn hit(&self, number: u64) -> bool {
        number == self.from || (self.lasting && number > self.from)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.lasting { "+" } else { "" };
        write!(f, "{}{all}", self.from)
    }
}

/// Whether a device works, and for how long it does.
#[derive(Debug)]
pub(super) struct Health {
    /// Set with `failure`; read without a lock.
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
    /// After so many operations the device is gone.
    lost: Option<u64>,
    operations: AtomicU64,
    fail_event: Option<Faults>,
    events: AtomicU64,
}

impl Health {
    /// After so many operations it is gone; events fail as said.
    pub fn new(lost: Option<u64>, fail_event: Option<Faults>) -> Self {
        Self {
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            lost,
            operations: AtomicU64::new(0),
            fail_event,
            events: AtomicU64::new(0),
        }
    }

    /// Why the device does nothing any more, if so.
    pub fn failure(&self) -> Option<String> {
        match self.failed.load(Ordering::Acquire) {
            true => self.failure.lock().clone(),
            false => None,
        }
    }

    /// From here on the device does nothing any more, and says so once.
    pub fn fail(&self, what: &str) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            log::error!("the simulated GPU failed: {what}; it does nothing any more");
            *failure = Some(what.to_owned());
            self.failed.store(true, Ordering::Release);
        }
    }

    /// Brings a failed device back to life.
    pub fn revive(&self) {
        let mut failure = self.failure.lock();
        *failure = None;
        self.failed.store(false, Ordering::Release);
    }

    /// An operation begins; whether the device is there to do it.
    pub fn begin_operation(&self) -> bool {
        if let Some(lost) = self.lost {
            if self.operations.fetch_add(1, Ordering::Relaxed) >= lost {
                self.fail(&format!(
                    "the device disappeared after {lost} operations because the specification says so (lost)"
                ));
            }
        }
        !self.failed.load(Ordering::Acquire)
    }

    /// An event is made; whether that works.
    pub fn begin_event(&self) -> bool {
        let number = self.events.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = self.fail_event.is_some_and(|faults| faults.hit(number));
        if refused {
            log::error!("the simulated GPU makes no event: number {number} fails because the specification says so (failevent)");
        }
        self.begin_operation() && !refused
    }
}

/// What the bytes of a tensor read as when a failed device is asked for them: NaN, so that it shows, where there is such a
/// thing; otherwise 0, which is an index within any range.
pub(super) fn lost_byte(kind: ffi::ggml_type) -> u8 {
    match kind {
        ffi::GGML_TYPE_I8 | ffi::GGML_TYPE_I16 | ffi::GGML_TYPE_I32 | ffi::GGML_TYPE_I64 => 0,
        _ => 0xFF,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operation_or_all_from_one_on() {
        let once = Faults::parse("3").expect("a number");
        assert_eq!([2, 3, 4].map(|n| once.hit(n)), [false, true, false]);
        let lasting = Faults::parse("3+").expect("a number");
        assert_eq!([2, 3, 4].map(|n| lasting.hit(n)), [false, true, true]);
        assert_eq!(lasting.to_string(), "3+");
        for wrong in ["", "+", "0", "0+", "-1", "3++", "3 +", "x"] {
            assert_eq!(Faults::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_device_disappears_after_so_many_operations() {
        let health = Health::new(Some(2), None);
        assert!(health.begin_operation() && health.begin_event());
        assert_eq!(health.failure(), None);
        assert!(!health.begin_operation());
        assert!(health.failure().is_some_and(|why| why.contains("lost")));
        assert!(!health.begin_event() && !health.begin_operation());
    }
}
