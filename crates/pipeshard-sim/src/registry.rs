//! What ggml is told of a simulated device: the registry that it is found in, and the functions of both.

use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr;
use std::sync::{Arc, Once};

use pipeshard_sys as ffi;

use super::backend;
use super::buffer;
use super::compute::{cpu_device, stop_engine};
use super::device::{device_of, Device, Handles, Lane};
use super::event;
use super::guard::{guard, log_once};
use super::memory::MemoryError;
use super::spec::SimSpec;
use super::stream::quiesce_at_exit;
use super::supply::Supply;

/// Operations on batches below this stay with weights that lie on the host, as with CUDA.
const OFFLOAD_MIN_BATCH: i64 = 32;

/// The name of the device, and of its memory.
const NAME: &CStr = c"SIM0";

/// Makes a device that ggml can be told of.
pub(super) fn create(
    spec: SimSpec,
    supply: Option<Arc<dyn Supply>>,
) -> Result<&'static Device, MemoryError> {
    let offload_min_batch = std::env::var("GGML_OP_OFFLOAD_MIN_BATCH")
        .ok()
        .map_or(OFFLOAD_MIN_BATCH, |text| text.trim().parse().unwrap_or(0));
    let description = CString::new(spec.to_string()).unwrap_or_default();
    Device::new((spec, supply), description, offload_min_batch, make_handles)
}

/// Lets streams finish what they carry out before the process ends.
pub(super) fn quiesce_when_the_process_ends() {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: the function is plain, and stays loaded as long as the devices that it is about.
        unsafe { libc::atexit(at_exit) };
    });
}

/// Ends a device.
///
/// # Safety
/// As for [`super::forget`].
pub(super) unsafe fn forget(registry: ffi::ggml_backend_reg_t) {
    // SAFETY: all of these were made by `make_handles` as boxes, and nobody has them any more.
    unsafe {
        let device = (*registry).context.cast::<Device>();
        let handles = (*device).handles();
        Device::forget(device);
        drop(Box::from_raw(handles.memory_type));
        drop(Box::from_raw(handles.host_type));
        drop(Box::from_raw(handles.device));
        drop(Box::from_raw(handles.registry));
    }
    if Device::all().is_empty() {
        stop_engine();
    }
}

fn make_handles(owner: &'static Device) -> Handles {
    let context: *mut c_void = ptr::from_ref(owner).cast_mut().cast();
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

extern "C" fn at_exit() {
    guard("at_exit", (), || {
        let streams: Vec<Arc<dyn Lane>> = Device::all()
            .into_iter()
            .flat_map(Device::live_streams)
            .collect();
        quiesce_at_exit(&streams);
    });
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
    // SAFETY: ggml calls this with a handle that this library made.
    unsafe { device_of(device) }.description.as_ptr()
}

unsafe extern "C" fn device_memory(
    device: ffi::ggml_backend_dev_t,
    free: *mut usize,
    total: *mut usize,
) {
    guard("get_memory", (), || {
        // SAFETY: ggml calls this with a handle that this library made and with places for two numbers.
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
        // SAFETY: ggml calls this with a handle that this library made and with a place for the answer.
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
        // SAFETY: ggml calls this with a handle that this library made.
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
        // SAFETY: ggml calls this with a handle that this library made.
        let device = unsafe { device_of(device) };
        device.handles().memory_type
    })
}

unsafe extern "C" fn device_host_buffer_type(
    device: ffi::ggml_backend_dev_t,
) -> ffi::ggml_backend_buffer_type_t {
    guard("get_host_buffer_type", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a handle that this library made.
        let device = unsafe { device_of(device) };
        device.handles().host_type
    })
}

unsafe extern "C" fn device_supports_op(
    device: ffi::ggml_backend_dev_t,
    op: *const ffi::ggml_tensor,
) -> bool {
    guard("supports_op", false, || {
        // SAFETY: ggml calls this with a handle that this library made and a tensor.
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

/// Reports whether a buffer type belongs to another simulated device.
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
        // SAFETY: ggml calls this with a handle that this library made.
        let device = unsafe { device_of(device) };
        buft == device.handles().memory_type
    })
}

unsafe extern "C" fn device_offload_op(
    device: ffi::ggml_backend_dev_t,
    op: *const ffi::ggml_tensor,
) -> bool {
    guard("offload_op", false, || {
        // SAFETY: ggml calls this with a handle that this library made and a tensor.
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
            let len = device.locked_at(address);
            if let Some(len) = len {
                if let Err(error) = device.unpin(address, len) {
                    log::error!("{error}");
                }
            }
        }
    })
}
