//! Events: a mark in one stream that others, and the host, can wait for.

use std::ptr;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::ffi;

use super::device::device_of;
use super::guard::guard;
use super::stream::exiting;

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

pub(super) unsafe extern "C" fn device_event_new(
    device: ffi::ggml_backend_dev_t,
) -> ffi::ggml_backend_event_t {
    guard("event_new", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle of ours.
        if !unsafe { device_of(device) }.health.begin_event() {
            return ptr::null_mut();
        }
        Box::into_raw(Box::new(ffi::ggml_backend_event {
            device,
            context: Box::into_raw(Box::new(Event::default())).cast(),
        }))
    })
}

pub(super) unsafe extern "C" fn device_event_free(
    _device: ffi::ggml_backend_dev_t,
    event: ffi::ggml_backend_event_t,
) {
    guard("event_free", (), || {
        // SAFETY: made by event_new(), and ggml frees an event once. Streams that still wait for a recording of it hold
        // that themselves.
        unsafe {
            let event = Box::from_raw(event);
            drop(Box::from_raw(event.context.cast::<Event>()));
        }
    });
}

pub(super) unsafe extern "C" fn device_event_synchronize(
    device: ffi::ggml_backend_dev_t,
    event: ffi::ggml_backend_event_t,
) {
    guard("event_synchronize", (), || {
        // SAFETY: ggml calls this with a handle of ours and an event of event_new().
        let (device, event) = unsafe { (device_of(device), event_of(event)) };
        if let Some(recording) = event.latest() {
            if !exiting() {
                recording.fence.wait();
            }
            device
                .meter
                .lock()
                .sync_until(recording.moment, "event_synchronize");
        }
        device.report_failure("event_synchronize");
    });
}

/// # Safety
/// `event` must be an event of a simulated device that is not freed while the answer is used.
pub(super) unsafe fn event_of<'a>(event: ffi::ggml_backend_event_t) -> &'a Event {
    // SAFETY: the context of these events is an `Event`.
    unsafe { &*(*event).context.cast::<Event>() }
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
