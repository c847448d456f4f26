//! A GPU that is not there: a ggml backend which behaves like one and computes through ggml-cpu.
//!
//! Its memory has a capacity, faults when the host touches it, and holds poison until it is filled. Its streams run on
//! threads of their own, so a missing wait is a wrong answer and not a slower one; seeded random delays bring such
//! answers out. Virtual clocks say what a run would take on a card with the stated bandwidths, the same on every
//! machine. What it computes is what ggml-cpu computes with the same number of threads, bit for bit.
//!
//! | CUDA | here |
//! |---|---|
//! | stream | a [`ggml_backend`](ffi::ggml_backend) with a thread and a queue |
//! | `cudaMemcpyAsync`, page-locked | reads or writes host memory when the stream gets there |
//! | the same, pageable | reads the source at once; a read back blocks the host |
//! | `cudaMemcpy*` through a buffer | at once, in no order with the streams |
//! | `cudaFree`, `cudaFreeHost`, `cudaHostUnregister` | wait for all streams |
//! | an error | sticks: nothing is done any more, and `graph_compute` fails |

mod backend;
mod buffer;
mod clock;
mod compute;
mod counters;
mod device;
mod error;
mod event;
mod faults;
mod fence;
mod guard;
mod memory;
mod meter;
mod pins;
mod queue;
mod registry;
mod spec;
mod stream;
mod supply;
mod sync;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use pipeshard_sys as ffi;

use device::Device;

pub use counters::{EntryKind, SimCounters, TimelineEntry};
pub use error::SpecError;
pub use faults::Faults;
pub use pins::PinError;
pub use pins::PinPolicy;
pub use spec::SimSpec;
pub use supply::{Supplied, Supply};

/// Makes a simulated GPU, called `SIM0`, and the registry that ggml finds it in. Both live as long as the process, or until
/// [`forget`].
///
/// Every call makes another device. llama.cpp loads backends more than once (for `-ot` while it parses, then again), so
/// `ggml_backend_init` must answer with the same registry each time, or the model sees two GPUs.
///
/// Null, with a message in the log, when the host refuses the address space.
pub fn registry(spec: SimSpec) -> ffi::ggml_backend_reg_t {
    registry_with(spec, None)
}

/// The same, with memory from elsewhere.
pub fn registry_with(spec: SimSpec, supply: Option<Arc<dyn Supply>>) -> ffi::ggml_backend_reg_t {
    match registry::create(spec, supply) {
        Ok(device) => device.handles().registry,
        Err(error) => {
            log::error!("{error}");
            ptr::null_mut()
        }
    }
}

/// Ends a simulated GPU and its registry.
///
/// # Safety
/// ggml does not have the registry any more (`ggml_backend_unload`), and nothing of the device is left: no backend, buffer or event.
pub unsafe fn forget(registry: ffi::ggml_backend_reg_t) {
    // SAFETY: the caller vouches for it.
    unsafe { registry::forget(registry) }
}

/// Computes graphs with one thread each from now on, for libraries whose ggml was built without OpenMP.
pub fn compute_alone() {
    compute::compute_alone();
}

/// Lets streams finish what they carry out before the process ends: for libraries whose program may end in the middle of a pass.
pub fn quiesce_at_exit() {
    registry::quiesce_when_the_process_ends();
}

/// Reports whether a device is a simulated one.
pub fn is_simulated(device: ffi::ggml_backend_dev_t) -> bool {
    Device::find(device).is_some()
}

/// What a simulated device was made from; nothing for another device.
pub fn spec(device: ffi::ggml_backend_dev_t) -> Option<SimSpec> {
    Device::find(device).map(|d| d.spec.clone())
}

/// What the device counted since it was made or since [`reset_counters`].
///
/// # Panics
/// If the device is not simulated.
pub fn counters(device: ffi::ggml_backend_dev_t) -> SimCounters {
    let device = simulated(device);
    let memory = device.memory.counts();
    SimCounters {
        allocations: memory.allocations,
        frees: memory.frees,
        failed_allocations: memory.failures,
        current_bytes: memory.current,
        peak_bytes: memory.peak,
        pinned_bytes: device.pinned_bytes(),
        ..device.meter.lock().counters()
    }
}

/// Bytes of the device's memory that are taken, without the context; nothing for another device.
pub fn taken_bytes(device: ffi::ggml_backend_dev_t) -> Option<u64> {
    Device::find(device).map(|d| d.memory.counts().current)
}

/// What the device did since it was made or since [`reset_counters`], in the order of submission. The oldest entries
/// are dropped when there are too many; [`SimCounters::timeline_dropped`] says how many.
///
/// # Panics
/// If the device is not simulated.
pub fn timeline(device: ffi::ggml_backend_dev_t) -> Vec<TimelineEntry> {
    simulated(device).meter.lock().timeline()
}

/// Begins to count anew, from the moment at which all that was submitted is done. Clocks go on.
///
/// # Panics
/// If the device is not simulated.
pub fn reset_counters(device: ffi::ggml_backend_dev_t) {
    let device = simulated(device);
    device.memory.reset_counts();
    device.meter.lock().reset();
}

/// Lets the host's virtual clock go on by this many nanoseconds, for work that the host did itself.
pub fn advance_host_clock(ns: u64) {
    for device in Device::all() {
        device.meter.lock().advance_host(ns);
    }
}

/// The host's virtual clock, in nanoseconds.
///
/// # Panics
/// If the device is not simulated.
pub fn host_clock(device: ffi::ggml_backend_dev_t) -> u64 {
    simulated(device).meter.lock().host_clock()
}

/// Marks where a stream is, for [`since_mark`].
///
/// # Safety
/// `stream` is a live backend of a simulated device.
pub unsafe fn mark(stream: ffi::ggml_backend_t) {
    // SAFETY: the caller vouches for the stream.
    let stream = unsafe { backend::stream_of(stream) };
    stream.device.meter.lock().mark(stream.id);
}

/// When what a stream was given since its mark begins and ends on the virtual clock, in nanoseconds: twice the same
/// moment if it was given nothing.
///
/// # Safety
/// As for [`mark`].
pub unsafe fn since_mark(stream: ffi::ggml_backend_t) -> (u64, u64) {
    // SAFETY: the caller vouches for the stream.
    let stream = unsafe { backend::stream_of(stream) };
    let span = stream.device.meter.lock().since_mark(stream.id);
    (span.start, span.end)
}

/// Why the device does nothing any more; nothing if it is well, or is not simulated.
pub fn failure(device: ffi::ggml_backend_dev_t) -> Option<String> {
    Device::find(device).and_then(Device::failure)
}

/// Brings a failed device back to life. Its memory is as the failure left it.
///
/// # Panics
/// If the device is not simulated.
pub fn revive(device: ffi::ggml_backend_dev_t) {
    simulated(device).revive();
}

/// Page-locks host memory for the simulated devices of this process: copies from it are read when the stream gets there,
/// at the link's full rate. It must be released before it is unmapped.
///
/// # Errors
/// When no device takes it; the error is the last one's.
pub fn register_host_range(address: *const c_void, len: usize) -> Result<(), PinError> {
    let devices = Device::all();
    let results = devices.iter().map(|d| d.pin(address, len));
    best_of(results.collect())
}

/// Releases host memory that [`register_host_range`] locked, after waiting for all streams.
///
/// # Errors
/// When it is not exactly such a range.
pub fn unregister_host_range(address: *const c_void, len: usize) -> Result<(), PinError> {
    let devices = Device::all();
    let results = devices.iter().map(|d| d.unpin(address, len));
    best_of(results.collect())
}

fn best_of(results: Vec<Result<(), PinError>>) -> Result<(), PinError> {
    let mut answer = Err(PinError::NoDevice);
    for result in results {
        if answer.is_err() {
            answer = result;
        }
    }
    answer
}

fn simulated(device: ffi::ggml_backend_dev_t) -> &'static Device {
    match Device::find(device) {
        Some(device) => device,
        None => panic!("not a simulated device"),
    }
}
