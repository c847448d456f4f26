//! What happens once in one stream and is waited for in others.

use std::sync::Arc;

use crate::sync::{Condvar, Mutex};

/// Something that happens once.
#[derive(Debug, Default)]
pub struct Fence {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    done: bool,
    /// Threads that wait for it.
    waiting: usize,
}

impl Fence {
    /// It happens.
    pub fn signal(&self) {
        self.state.lock().done = true;
        self.changed.notify_all();
    }

    /// Blocks until it has happened.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        while !state.done {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
    }

    /// Reports whether a thread has got to [`Fence::wait`] and waits there: for tests.
    #[cfg(test)]
    pub fn is_waited_for(&self) -> bool {
        let state = self.state.lock();
        !state.done && state.waiting > 0
    }
}

/// One recording of an event.
#[derive(Debug, Clone)]
pub struct Recording {
    pub fence: Arc<Fence>,
    /// When it happens on the virtual clock, in nanoseconds.
    pub moment: u64,
}

/// An event as CUDA has them: a waiter waits for the latest recording that was submitted before, and for nothing
/// if there is none. Recording it again leaves those who wait already with the recording that they know.
#[derive(Debug, Default)]
pub struct Event {
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
