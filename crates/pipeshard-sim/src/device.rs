//! The device: its memory, what it has counted, what is page-locked for it, and whether it still works.

use std::ffi::{c_void, CString};
use std::ptr;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use pipeshard_sys as ffi;

use super::faults::Health;
use super::memory::{DeviceMemory, MemoryConfig, MemoryError};
use super::meter::Meter;
use super::pins::{Coverage, PinError, Pins};
use super::spec::SimSpec;
use super::supply::Supply;

/// A stream, to the device that it belongs to.
pub(super) trait Lane: Send + Sync {
    /// Blocks until all that was submitted before is done.
    fn drain(&self);
    /// Reports whether something is being carried out.
    fn is_busy(&self) -> bool;
}

/// A simulated GPU. It lives as long as the process, or until [`Device::forget`].
pub(super) struct Device {
    pub spec: SimSpec,
    pub memory: DeviceMemory,
    pub meter: Mutex<Meter>,
    pins: Mutex<Pins>,
    streams: Mutex<Vec<Weak<dyn Lane>>>,
    pub health: Health,
    pub description: CString,
    pub offload_min_batch: i64,
    /// Where its memory comes from, if that is not its own.
    pub supply: Option<Arc<dyn Supply>>,
    handles: OnceLock<Handles>,
}

/// What ggml holds of a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handles {
    pub registry: ffi::ggml_backend_reg_t,
    pub device: ffi::ggml_backend_dev_t,
    pub memory_type: ffi::ggml_backend_buffer_type_t,
    pub host_type: ffi::ggml_backend_buffer_type_t,
}

impl Handles {
    const NONE: Handles = Handles {
        registry: ptr::null_mut(),
        device: ptr::null_mut(),
        memory_type: ptr::null_mut(),
        host_type: ptr::null_mut(),
    };
}

// SAFETY: what the pointers refer to is written once, before they are shared, and never freed.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

static DEVICES: RwLock<Vec<&'static Device>> = RwLock::new(Vec::new());

impl Device {
    /// A device, which ggml gets to know by what `handles` makes of it.
    pub fn new(
        (spec, supply): (SimSpec, Option<Arc<dyn Supply>>),
        description: CString,
        offload_min_batch: i64,
        handles: impl FnOnce(&'static Self) -> Handles,
    ) -> Result<&'static Self, MemoryError> {
        let config = MemoryConfig {
            capacity: spec.vram,
            context: spec.context,
            granularity: spec.granularity,
            poison: spec.poison,
            fail_alloc: spec.fail_alloc,
        };
        let memory = DeviceMemory::new(config, supply.clone())?;
        let device: &'static Self = Box::leak(Box::new(Self {
            memory,
            meter: Mutex::new(Meter::new()),
            pins: Mutex::new(Pins::new(spec.pin)),
            streams: Mutex::new(Vec::new()),
            health: Health::new(spec.lost, spec.fail_event),
            description,
            offload_min_batch,
            supply,
            handles: OnceLock::new(),
            spec,
        }));
        let made = handles(device);
        device.handles.get_or_init(|| made);
        DEVICES.write().push(device);
        Ok(device)
    }

    /// What ggml holds of it; nothing until it is made.
    pub fn handles(&self) -> Handles {
        self.handles.get().copied().unwrap_or(Handles::NONE)
    }

    /// Ends a device.
    ///
    /// # Safety
    /// It was made by [`Device::new`], and nobody uses it any more.
    pub unsafe fn forget(device: *mut Self) {
        DEVICES
            .write()
            .retain(|known| !std::ptr::eq(*known, device));
        // SAFETY: it was a box, and this was the last reference.
        drop(unsafe { Box::from_raw(device) });
    }

    /// All devices of this process.
    pub fn all() -> Vec<&'static Self> {
        DEVICES.read().clone()
    }

    /// Returns the simulated device of ggml's handle, if it is one.
    pub fn find(handle: ffi::ggml_backend_dev_t) -> Option<&'static Self> {
        let devices = DEVICES.read();
        devices
            .iter()
            .copied()
            .find(|d| d.handles().device == handle)
    }

    pub fn add_stream(&self, stream: Weak<dyn Lane>) {
        let mut streams = self.streams.lock();
        streams.retain(|s| s.strong_count() > 0);
        streams.push(stream);
    }

    /// Waits for all streams, as freeing memory does on a real card. Counted when something was pending.
    pub fn synchronize(&self, why: &str) {
        for stream in self.live_streams() {
            stream.drain();
        }
        self.meter.lock().sync_all(why);
    }

    /// Why the device does nothing any more, if so.
    pub fn failure(&self) -> Option<String> {
        self.health.failure()
    }

    /// Reports in the log that a wait ended for a device that failed.
    pub fn report_failure(&self, what: &str) {
        if let Some(failure) = self.failure() {
            log::error!("{what}: the simulated GPU failed before: {failure}");
        }
    }

    /// Brings a failed device back to life.
    pub fn revive(&self) {
        self.health.revive();
    }

    /// Free and total memory in bytes; none of a device that is gone.
    pub fn free_and_total(&self) -> (u64, u64) {
        match self.failure() {
            Some(_) => (0, 0),
            None => self.memory.free_and_total(),
        }
    }

    pub fn coverage(&self, address: *const c_void, len: usize) -> Coverage {
        self.pins.lock().coverage(address as usize, len)
    }

    pub fn pinned_bytes(&self) -> u64 {
        self.pins.lock().locked()
    }

    pub fn may_pin(&self, len: usize) -> Result<(), PinError> {
        if !self.health.begin_operation() {
            return Err(PinError::Gone);
        }
        self.pins.lock().check(len)
    }

    pub fn pin(&self, address: *const c_void, len: usize) -> Result<(), PinError> {
        if !self.health.begin_operation() {
            return Err(PinError::Gone);
        }
        self.pins.lock().lock(address as usize, len)
    }

    /// Releases page-locked memory, once no copy uses it any more.
    pub fn unpin(&self, address: *const c_void, len: usize) -> Result<(), PinError> {
        self.synchronize("unpin");
        if !self.spec.unpin {
            return Err(PinError::Kept {
                address: address as usize,
            });
        }
        self.pins.lock().unlock(address as usize, len)
    }

    /// The length of what is page-locked from there on.
    pub fn locked_at(&self, address: *const c_void) -> Option<usize> {
        self.pins.lock().locked_at(address as usize)
    }

    pub fn live_streams(&self) -> Vec<Arc<dyn Lane>> {
        self.streams
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// # Safety
/// `handle` must be the handle of a simulated device, which only ever gets to functions of this crate as such.
pub(super) unsafe fn device_of(handle: ffi::ggml_backend_dev_t) -> &'static Device {
    // SAFETY: the context of these handles is a device, and devices live as long as the process.
    unsafe { &*(*handle).context.cast::<Device>() }
}
