//! The device and its registry, as ggml sees them.

use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use crate::ffi;

use super::backend;
use super::buffer;
use super::compute::cpu_device;
use super::event;
use super::faults::Health;
use super::guard::{guard, log_once};
use super::memory::{DeviceMemory, MemoryConfig, MemoryError};
use super::meter::Meter;
use super::pins::{Coverage, PinError, Pins};
use super::spec::SimSpec;
use super::stream::{quiesce_at_exit, Stream};

/// Operations on batches below this stay with weights that lie on the host, as with CUDA.
const OFFLOAD_MIN_BATCH: i64 = 32;

/// The name of the device, and of its memory.
const NAME: &CStr = c"SIM0";

/// A simulated GPU. It lives as long as the process.
pub(super) struct Device {
    pub spec: SimSpec,
    pub memory: DeviceMemory,
    pub meter: Mutex<Meter>,
    pins: Mutex<Pins>,
    streams: Mutex<Vec<Weak<Stream>>>,
    pub health: Health,
    description: CString,
    offload_min_batch: i64,
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

// SAFETY: what the pointers refer to is written once, before they are shared, and never freed.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

static DEVICES: RwLock<Vec<&'static Device>> = RwLock::new(Vec::new());

impl Device {
    /// Makes a device that ggml can be told of.
    pub fn create(spec: SimSpec) -> Result<&'static Self, MemoryError> {
        let memory = DeviceMemory::new(MemoryConfig {
            capacity: spec.vram,
            context: spec.context,
            granularity: spec.granularity,
            poison: spec.poison,
            fail_alloc: spec.fail_alloc,
        })?;
        let offload_min_batch = std::env::var("GGML_OP_OFFLOAD_MIN_BATCH")
            .ok()
            .map_or(OFFLOAD_MIN_BATCH, |text| text.trim().parse().unwrap_or(0));
        let device: &'static Self = Box::leak(Box::new(Self {
            memory,
            meter: Mutex::new(Meter::new()),
            pins: Mutex::new(Pins::new(spec.pin)),
            streams: Mutex::new(Vec::new()),
            health: Health::new(&spec),
            description: CString::new(spec.to_string()).unwrap_or_default(),
            offload_min_batch,
            handles: OnceLock::new(),
            spec,
        }));
        device.handles.get_or_init(|| device.make_handles());
        let mut devices = DEVICES.write();
        if devices.is_empty() {
            // SAFETY: the function is plain, and stays loaded as long as the devices that it is about.
            unsafe { libc::atexit(at_exit) };
        }
        devices.push(device);
        Ok(device)
    }

    pub fn handles(&'static self) -> &'static Handles {
        self.handles.get_or_init(|| self.make_handles())
    }

    /// All devices of this process.
    pub fn all() -> Vec<&'static Self> {
        DEVICES.read().clone()
    }

    /// The simulated device behind ggml's handle, if it is one.
    pub fn find(handle: ffi::ggml_backend_dev_t) -> Option<&'static Self> {
        let devices = DEVICES.read();
        devices
            .iter()
            .copied()
            .find(|d| d.handles().device == handle)
    }

    pub fn add_stream(&self, stream: &Arc<Stream>) {
        let mut streams = self.streams.lock();
        streams.retain(|s| s.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
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

    /// Says in the log that a wait ended for a device that failed.
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
    fn free_and_total(&self) -> (u64, u64) {
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

    fn live_streams(&self) -> Vec<Arc<Stream>> {
        self.streams
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn make_handles(&'static self) -> Handles {
        let context: *mut c_void = ptr::from_ref(self).cast_mut().cast();
        let registry = Box::into_raw(Box::new(ffi::ggml_backend_reg {
            api_version: ffi::GGML_BACKEND_API_VERSION as i32,
            iface: ffi::ggml_backend_reg_i {
                get_name: Some(registry_name),
                get_device_count: Some(registry_device_count),
                get_device: Some(registry_device),
                get_proc_address: Some(registry_proc_address),
            },
            context,
        }));
        let device = Box::into_raw(Box::new(ffi::ggml_backend_device {
            iface: DEVICE_INTERFACE,
            reg: registry,
            context,
        }));
        Handles {
            registry,
            device,
            memory_type: buffer::memory_type(device, context),
            host_type: buffer::host_type(device, context),
        }
    }
}

extern "C" fn at_exit() {
    guard("at_exit", (), || {
        let streams: Vec<Arc<Stream>> = Device::all()
            .into_iter()
            .flat_map(Device::live_streams)
            .collect();
        quiesce_at_exit(&streams);
    });
}

/// # Safety
/// `handle` must be the handle of a simulated device, which only ever gets to functions of this module as such.
pub(super) unsafe fn device_of(handle: ffi::ggml_backend_dev_t) -> &'static Device {
    // SAFETY: the context of these handles is a device, and devices live as long as the process.
    unsafe { &*(*handle).context.cast::<Device>() }
}

const DEVICE_INTERFACE: ffi::ggml_backend_device_i = ffi::ggml_backend_device_i {
    get_name: Some(device_name),
    get_description: Some(device_description),
    get_memory: Some(device_memory),
    get_type: Some(device_type),
    get_props: Some(device_props),
    init_backend: Some(device_init_backend),
    get_buffer_type: Some(device_buffer_type),
    get_host_buffer_type: Some(device_host_buffer_type),
    buffer_from_host_ptr: None,
    supports_op: Some(device_supports_op),
    supports_buft: Some(device_supports_buft),
    offload_op: Some(device_offload_op),
    event_new: Some(event::device_event_new),
    event_free: Some(event::device_event_free),
    event_synchronize: Some(event::device_event_synchronize),
};

unsafe extern "C" fn device_name(_device: ffi::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn device_description(device: ffi::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: ggml calls this with a handle of ours.
    unsafe { device_of(device) }.description.as_ptr()
}

unsafe extern "C" fn device_memory(
    device: ffi::ggml_backend_dev_t,
    free: *mut usize,
    total: *mut usize,
) {
    guard("get_memory", (), || {
        // SAFETY: ggml calls this with a handle of ours and with places for two numbers.
        unsafe {
            let (f, t) = device_of(device).free_and_total();
            *free = f as usize;
            *total = t as usize;
        }
    });
}

unsafe extern "C" fn device_type(_device: ffi::ggml_backend_dev_t) -> ffi::ggml_backend_dev_type {
    ffi::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn device_props(
    device: ffi::ggml_backend_dev_t,
    props: *mut ffi::ggml_backend_dev_props,
) {
    guard("get_props", (), || {
        // SAFETY: ggml calls this with a handle of ours and with a place for the answer.
        unsafe {
            let (free, total) = device_of(device).free_and_total();
            *props = ffi::ggml_backend_dev_props {
                name: NAME.as_ptr(),
                description: device_of(device).description.as_ptr(),
                memory_free: free as usize,
                memory_total: total as usize,
                type_: ffi::GGML_BACKEND_DEVICE_TYPE_GPU,
                device_id: ptr::null(),
                caps: ffi::ggml_backend_dev_caps {
                    async_: true,
                    host_buffer: true,
                    buffer_from_host_ptr: false,
                    events: true,
                    mmap_support: true,
                },
            };
        }
    });
}

unsafe extern "C" fn device_init_backend(
    device: ffi::ggml_backend_dev_t,
    _params: *const c_char,
) -> ffi::ggml_backend_t {
    guard("init_backend", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle of ours.
        let device = unsafe { device_of(device) };
        match device.health.begin_operation() {
            true => backend::open(device),
            false => ptr::null_mut(),
        }
    })
}

unsafe extern "C" fn device_buffer_type(
    device: ffi::ggml_backend_dev_t,
) -> ffi::ggml_backend_buffer_type_t {
    guard("get_buffer_type", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle of ours.
        let device = unsafe { device_of(device) };
        device.handles().memory_type
    })
}

unsafe extern "C" fn device_host_buffer_type(
    device: ffi::ggml_backend_dev_t,
) -> ffi::ggml_backend_buffer_type_t {
    guard("get_host_buffer_type", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle of ours.
        let device = unsafe { device_of(device) };
        device.handles().host_type
    })
}

unsafe extern "C" fn device_supports_op(
    device: ffi::ggml_backend_dev_t,
    op: *const ffi::ggml_tensor,
) -> bool {
    guard("supports_op", false, || {
        // SAFETY: ggml calls this with a handle of ours and a tensor.
        let (device, node) = unsafe { (device_of(device), &*op) };
        let on_the_host = matches!(
            node.op,
            ffi::GGML_OP_MAP_CUSTOM1
                | ffi::GGML_OP_MAP_CUSTOM2
                | ffi::GGML_OP_MAP_CUSTOM3
                | ffi::GGML_OP_CUSTOM
        );
        // SAFETY: sources are null or tensors, buffers null or buffers.
        let elsewhere = node.src.iter().any(|source| unsafe {
            source
                .as_ref()
                .and_then(|s| s.buffer.as_ref())
                .is_some_and(|b| is_of_another(device, b.buft))
        });
        if on_the_host || elsewhere {
            return false;
        }
        match cpu_device() {
            // SAFETY: the device comes from ggml's registry. What the CPU looks for in the buffers of sources are
            // layouts of its own; for any other buffer the answer is about the operation.
            Some(cpu) => unsafe { ffi::ggml_backend_dev_supports_op(cpu, op) },
            None => {
                log_once(
                    "the simulated GPU computes through ggml's CPU backend, and there is none",
                );
                false
            }
        }
    })
}

/// Whether a buffer type belongs to another simulated device.
fn is_of_another(device: &'static Device, buft: ffi::ggml_backend_buffer_type_t) -> bool {
    // SAFETY: buffer types live as long as the process.
    let owner = unsafe { (*buft).device };
    owner != device.handles().device
        && Device::find(owner).is_some_and(|d| d.handles().memory_type == buft)
}

unsafe extern "C" fn device_supports_buft(
    device: ffi::ggml_backend_dev_t,
    buft: ffi::ggml_backend_buffer_type_t,
) -> bool {
    guard("supports_buft", false, || {
        // SAFETY: ggml calls this with a handle of ours.
        let device = unsafe { device_of(device) };
        buft == device.handles().memory_type
    })
}

unsafe extern "C" fn device_offload_op(
    device: ffi::ggml_backend_dev_t,
    op: *const ffi::ggml_tensor,
) -> bool {
    guard("offload_op", false, || {
        // SAFETY: ggml calls this with a handle of ours and a tensor.
        let (device, node) = unsafe { (device_of(device), &*op) };
        batch_size(node) >= device.offload_min_batch
    })
}

/// The rows that an operation has to do with at once, as CUDA counts them.
fn batch_size(node: &ffi::ggml_tensor) -> i64 {
    match node.op {
        ffi::GGML_OP_GET_ROWS => 0,
        ffi::GGML_OP_MUL_MAT => node.ne[1],
        ffi::GGML_OP_MUL_MAT_ID | ffi::GGML_OP_ROPE | ffi::GGML_OP_ROPE_BACK => node.ne[2],
        _ => node.ne[1..].iter().product(),
    }
}

unsafe extern "C" fn registry_name(_registry: ffi::ggml_backend_reg_t) -> *const c_char {
    c"SIM".as_ptr()
}

unsafe extern "C" fn registry_device_count(_registry: ffi::ggml_backend_reg_t) -> usize {
    1
}

unsafe extern "C" fn registry_device(
    registry: ffi::ggml_backend_reg_t,
    index: usize,
) -> ffi::ggml_backend_dev_t {
    guard("get_device", ptr::null_mut(), || {
        // SAFETY: the context of these registries is a device, and devices live as long as the process.
        let device: &'static Device = unsafe { &*(*registry).context.cast::<Device>() };
        match index {
            0 => device.handles().device,
            _ => ptr::null_mut(),
        }
    })
}

unsafe extern "C" fn registry_proc_address(
    _registry: ffi::ggml_backend_reg_t,
    name: *const c_char,
) -> *mut c_void {
    guard("get_proc_address", ptr::null_mut(), || {
        // SAFETY: ggml passes a string.
        match unsafe { CStr::from_ptr(name) }.to_bytes() {
            b"ggml_backend_set_n_threads" => backend::set_n_threads as *mut c_void,
            b"ggml_backend_register_host_buffer" => register_host_buffer as *mut c_void,
            b"ggml_backend_unregister_host_buffer" => unregister_host_buffer as *mut c_void,
            _ => ptr::null_mut(),
        }
    })
}

/// Page-locking under the names that ggml's backends give it.
unsafe extern "C" fn register_host_buffer(address: *mut c_void, len: usize) -> bool {
    guard("register_host_buffer", false, || {
        super::register_host_range(address, len).is_ok()
    })
}

unsafe extern "C" fn unregister_host_buffer(address: *mut c_void) {
    guard("unregister_host_buffer", (), || {
        for device in Device::all() {
            let len = device.pins.lock().locked_at(address as usize);
            if let Some(len) = len {
                if let Err(error) = device.unpin(address, len) {
                    log::error!("{error}");
                }
            }
        }
    })
}
