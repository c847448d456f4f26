//! Events: a mark in one stream that others, and the host, can wait for.

use std::ptr;

use pipeshard_sys as ffi;

use super::device::device_of;
use super::fence::Event;
use super::guard::guard;
use super::stream::exiting;

pub(super) unsafe extern "C" fn device_event_new(
    device: ffi::ggml_backend_dev_t,
) -> ffi::ggml_backend_event_t {
    guard("event_new", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle that this library made.
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
        // SAFETY: ggml calls this with a handle that this library made and an event of event_new().
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
    use super::super::fence::Fence;
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_fence_holds_who_waits_until_it_is_signalled() {
        let fence = Arc::new(Fence::default());
        let waiter = {
            let fence = Arc::clone(&fence);
            thread::spawn(move || fence.wait())
        };
        while !fence.is_waited_for() {
            assert!(!waiter.is_finished());
            thread::yield_now();
        }
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
