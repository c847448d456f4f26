//! Events: a mark in one stream that others, and the host, can wait for.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Something that happens once.
#[derive(Debug, Default)]
pub(super) struct Fence {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Fence {
    pub fn signal(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }

    /// Blocks until it has happened.
    pub fn wait(&self) {
        let mut done = self.done.lock();
        while !*done {
            self.changed.wait(&mut done);
        }
    }
}

/// One recording of an event.
#[derive(Debug, Clone)]
pub(super) struct Recording {
    pub fence: Arc<Fence>,
    /// When it happens on the virtual clock, in nanoseconds.
    pub moment: u64,
}

/// An event as CUDA has them: whoever waits, waits for the latest recording that was submitted before, and for nothing
/// if there is none. Recording it again leaves those who wait already with the recording that they know.
#[derive(Debug, Default)]
pub(super) struct Event {
    latest: Mutex<Option<Recording>>,
}

impl Event {
    /// Makes a new recording the latest one. `submit` puts it into a stream and says when it happens.
    pub fn record(&self, submit: impl FnOnce(Arc<Fence>) -> u64) {
        let mut latest = self.latest.lock();
        let fence = Arc::new(Fence::default());
        let moment = submit(Arc::clone(&fence));
        *latest = Some(Recording { fence, moment });
    }

    pub fn latest(&self) -> Option<Recording> {
        self.latest.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_fence_holds_who_waits_until_it_is_signalled() {
        let fence = Arc::new(Fence::default());
        let waiter = {
            let fence = Arc::clone(&fence);
            thread::spawn(move || fence.wait())
        };
        thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        fence.signal();
        waiter.join().expect("it only waits");
        fence.wait();
    }

    #[test]
    fn recording_again_replaces_what_later_waits_see() {
        let event = Event::default();
        assert!(event.latest().is_none());
        event.record(|_| 10);
        let first = event.latest().expect("recorded");
        event.record(|_| 20);
        let second = event.latest().expect("recorded");
        assert_eq!((first.moment, second.moment), (10, 20));
        second.fence.signal();
        assert!(!Arc::ptr_eq(&first.fence, &second.fence));
    }
}
