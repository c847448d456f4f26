//! Results that go from the device to the CPU and back, in the order of the compute lane.
//!
//! ggml's scheduler waits for the device before every tensor that it copies, and again after it. Here each copy is one more
//! command of the compute lane: the host waits once, for all that a split of the CPU reads, and for nothing on the way
//! back. Host memory that the lane still reads stays as it is until then: ahead of whatever the CPU computes, and at the
//! end of a pass, the host waits for that.

use crate::lanes::copy::DroppedWait;
use crate::lanes::device::{Device, Event};
use pipeshard_sys as ffi;

/// Host memory that the compute lane was told to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sources {
    /// All of it may be written again.
    Free,
    /// Copies from it were submitted.
    Read,
    /// The event was recorded after them.
    Marked,
}

/// What the host has to wait for before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum HostWait {
    /// Nothing.
    Nothing,
    /// All that was submitted to this backend.
    Lane(ffi::ggml_backend_t),
    /// The latest record of this event.
    Point(ffi::ggml_backend_event_t),
}

impl HostWait {
    /// Blocks.
    ///
    /// # Safety
    /// Backend and event are alive: the scheduler that they belong to is in a pass of the calling thread's.
    pub unsafe fn wait(self) {
        match self {
            HostWait::Nothing => {}
            HostWait::Lane(backend) => ffi::ggml_backend_synchronize(backend),
            HostWait::Point(event) => ffi::ggml_backend_event_synchronize(event),
        }
    }
}

/// The two backends of a scheduler between which results go.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// What the device belongs to.
    pub device: Device,
    /// The compute lane.
    pub compute: ffi::ggml_backend_t,
    /// The CPU's.
    pub cpu: ffi::ggml_backend_t,
}

/// The copies of one scheduler between its compute lane and the CPU.
#[derive(Debug)]
pub struct HandOver {
    /// Results are on their way to host memory.
    results_due: bool,
    sources: Sources,
    marked: Option<Event>,
    dropped: Option<DroppedWait>,
}

impl HandOver {
    /// Nothing is under way. `dropped` is a wait that a mutation test leaves out.
    pub fn new(dropped: Option<DroppedWait>) -> Self {
        HandOver {
            results_due: false,
            sources: Sources::Free,
            marked: None,
            dropped,
        }
    }

    /// Submits the copy of `input` to `copy`, if it goes between the two ends and both tensors lie where these can copy.
    /// False: the caller has to, after what [`Self::sources_free`] returns.
    ///
    /// # Safety
    /// Both tensors have memory and the same layout, and belong to the graph that the scheduler of `ends` is submitting.
    pub unsafe fn copy(
        &mut self,
        ends: Ends,
        (from, to): (ffi::ggml_backend_t, ffi::ggml_backend_t),
        input: *const ffi::ggml_tensor,
        copy: *mut ffi::ggml_tensor,
    ) -> bool {
        let bytes = ffi::ggml_nbytes(input);
        if (from, to) == (ends.compute, ends.cpu) {
            if !on_device(ends.device, input) || !plain_host_memory(copy) {
                return false;
            }
            if bytes > 0 {
                ffi::ggml_backend_tensor_get_async(from, input, (*copy).data, 0, bytes);
                self.results_due = true;
            }
            true
        } else if (from, to) == (ends.cpu, ends.compute) {
            if !plain_host_memory(input) || !on_device(ends.device, copy) {
                return false;
            }
            if self.marked.is_none() {
                self.marked = Event::new(ends.device);
            }
            if self.marked.is_none() {
                return false;
            }
            if bytes > 0 {
                ffi::ggml_backend_tensor_set_async(to, copy, (*input).data, 0, bytes);
                self.sources = Sources::Read;
            }
            true
        } else {
            false
        }
    }

    /// Something else is on its way to the host, which has to wait for it ahead of the next split.
    pub fn expect_results(&mut self) {
        self.results_due = true;
    }

    /// What the host has to wait for before a split whose inputs were copied is computed.
    ///
    /// # Safety
    /// `compute` is the live compute lane of this scheduler.
    pub unsafe fn before_split(
        &mut self,
        compute: ffi::ggml_backend_t,
        on_compute: bool,
    ) -> HostWait {
        if on_compute {
            // ahead of the split, which may take long
            self.mark(compute);
            HostWait::Nothing
        } else {
            self.before_host_goes_on(compute)
        }
    }

    /// What the host has to wait for before it reads results, and writes what the device has read: ahead of a split of the CPU, and
    /// at the end of a pass, complete or not.
    ///
    /// # Safety
    /// `compute` is the live compute lane of this scheduler.
    pub unsafe fn before_host_goes_on(&mut self, compute: ffi::ggml_backend_t) -> HostWait {
        if std::mem::take(&mut self.results_due) {
            self.sources = Sources::Free;
            return match self.dropped {
                Some(DroppedWait::Results) => HostWait::Nothing,
                _ => HostWait::Lane(compute),
            };
        }
        self.sources_free(compute)
    }

    unsafe fn mark(&mut self, compute: ffi::ggml_backend_t) {
        if let (Sources::Read, Some(event)) = (self.sources, &self.marked) {
            event.record(compute);
            self.sources = Sources::Marked;
        }
    }

    /// What the host has to wait for before it writes to memory of the CPU's by itself.
    ///
    /// # Safety
    /// `compute` is the live compute lane of this scheduler.
    pub unsafe fn sources_free(&mut self, compute: ffi::ggml_backend_t) -> HostWait {
        self.mark(compute);
        let was = std::mem::replace(&mut self.sources, Sources::Free);
        match (was, &self.marked) {
            _ if self.dropped == Some(DroppedWait::Sources) => HostWait::Nothing,
            (Sources::Free, _) | (_, None) => HostWait::Nothing,
            (_, Some(event)) => HostWait::Point(event.raw()),
        }
    }
}

unsafe fn memory_of(tensor: *const ffi::ggml_tensor) -> ffi::ggml_backend_buffer_t {
    match (*tensor).view_src.is_null() {
        true => (*tensor).buffer,
        false => (*(*tensor).view_src).buffer,
    }
}

/// Memory that streams of the device copy from and to.
unsafe fn on_device(device: Device, tensor: *const ffi::ggml_tensor) -> bool {
    let buffer = memory_of(tensor);
    !buffer.is_null() && ffi::ggml_backend_buffer_get_type(buffer) == device.buffer_type()
}

/// Host memory in the usual layout that does not hold weights: of those the scheduler may copy a part.
unsafe fn plain_host_memory(tensor: *const ffi::ggml_tensor) -> bool {
    let buffer = memory_of(tensor);
    !buffer.is_null()
        && ffi::ggml_backend_buffer_is_host(buffer)
        && ffi::ggml_backend_buffer_get_usage(buffer) != ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
}
