//! How far the host submits ahead of the device.
//!
//! The host waits for no copy and no product of a streamed pass, so all of it is submitted long before it is computed, and nobody can
//! end it any more. Where somebody may want to, the host stays within some copies of the device.

use super::device::{Device, Event};
use super::hand_over::HostWait;
use pipeshard_sys as ffi;

/// Points that the device has to come to before the host goes on.
const MARKS: usize = 2;

/// The marks of one scheduler.
#[derive(Debug, Default)]
pub struct RunAhead {
    marks: [Option<Event>; MARKS],
    /// How many of this pass were recorded.
    recorded: usize,
    /// Bytes that had been copied at the latest.
    copied: u64,
    /// The one that is written over next was not waited for.
    due: bool,
}

impl RunAhead {
    /// A pass begins; so many bytes were copied in those before it.
    pub fn begin_pass(&mut self, copied: u64) {
        (self.recorded, self.copied, self.due) = (0, copied, false);
    }

    /// A split was submitted to `compute`, and copies until now are `copied` bytes. After each `apart` bytes there is a mark.
    ///
    /// # Safety
    /// `compute` is a live backend of `device`.
    pub unsafe fn submitted(
        &mut self,
        device: Device,
        compute: ffi::ggml_backend_t,
        copied: u64,
        apart: u64,
    ) {
        if copied - self.copied < apart {
            return;
        }
        let mark = &mut self.marks[self.recorded % MARKS];
        if mark.is_none() {
            *mark = Event::new(device);
        }
        let Some(mark) = mark else {
            return;
        };
        mark.record(compute);
        self.recorded += 1;
        self.copied = copied;
        self.due = self.recorded >= MARKS;
    }

    /// What the host waits for before it submits more: the device is at the mark before the latest.
    pub fn wait(&mut self) -> HostWait {
        if !std::mem::take(&mut self.due) {
            return HostWait::Nothing;
        }
        let oldest = &self.marks[self.recorded % MARKS];
        oldest
            .as_ref()
            .map_or(HostWait::Nothing, |mark| HostWait::Point(mark.raw()))
    }
}
