//! Buffers: device memory, and page-locked host memory.

use std::ffi::{c_char, c_void};
use std::ptr;

use pipeshard_sys as ffi;

use super::clock::Direction;
use super::device::Device;
use super::faults::lost_byte;
use super::guard::{abort, guard};
use super::memory::ALIGNMENT;
use super::meter::LinkCopy;
use super::pins::Coverage;
use super::supply::Supplied;

/// Quantised rows take room for a multiple of this many elements, as CUDA's kernels want them.
const ROW_PADDING: i64 = 512;

/// A buffer of device memory.
struct DeviceBuffer {
    device: &'static Device,
    /// Where it begins, as a device address.
    address: usize,
    size: usize,
}

/// The type of the device's memory.
pub(super) fn memory_type(
    device: ffi::ggml_backend_dev_t,
    context: *mut c_void,
) -> ffi::ggml_backend_buffer_type_t {
    Box::into_raw(Box::new(ffi::ggml_backend_buffer_type {
        iface: ffi::ggml_backend_buffer_type_i {
            get_name: Some(memory_type_name),
            alloc_buffer: Some(memory_type_alloc),
            alloc_buffer_n: None,
            get_alignment: Some(memory_type_alignment),
            get_max_size: None,
            get_alloc_size: Some(memory_type_alloc_size),
            get_alloc_size_n: None,
            is_host: None,
        },
        device,
        context,
    }))
}

/// The type of page-locked host memory: to ggml it is like the CPU's, but for its name and where it comes from.
pub(super) fn host_type(
    device: ffi::ggml_backend_dev_t,
    context: *mut c_void,
) -> ffi::ggml_backend_buffer_type_t {
    // SAFETY: ggml's CPU buffer type is always there, and its interface is never changed.
    let cpu = unsafe { (*ffi::ggml_backend_cpu_buffer_type()).iface };
    Box::into_raw(Box::new(ffi::ggml_backend_buffer_type {
        iface: ffi::ggml_backend_buffer_type_i {
            get_name: Some(host_type_name),
            alloc_buffer: Some(host_type_alloc),
            get_max_size: None,
            ..cpu
        },
        device,
        context,
    }))
}

/// # Safety
/// `buft` must be one of the two buffer types of a simulated device.
unsafe fn device_of(buft: ffi::ggml_backend_buffer_type_t) -> &'static Device {
    // SAFETY: the context of these types is a device, and devices live as long as the process.
    unsafe { &*(*buft).context.cast::<Device>() }
}

/// # Safety
/// `buffer` must be one that `memory_type_alloc` made, and not yet freed.
unsafe fn buffer_of<'a>(buffer: ffi::ggml_backend_buffer_t) -> &'a DeviceBuffer {
    // SAFETY: the context of these buffers is a `DeviceBuffer`.
    unsafe { &*(*buffer).context.cast::<DeviceBuffer>() }
}

unsafe extern "C" fn memory_type_name(_buft: ffi::ggml_backend_buffer_type_t) -> *const c_char {
    c"SIM0".as_ptr()
}

unsafe extern "C" fn memory_type_alignment(_buft: ffi::ggml_backend_buffer_type_t) -> usize {
    ALIGNMENT
}

unsafe extern "C" fn memory_type_alloc(
    buft: ffi::ggml_backend_buffer_type_t,
    size: usize,
) -> ffi::ggml_backend_buffer_t {
    guard("alloc_buffer", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a buffer type of this library.
        let device = unsafe { device_of(buft) };
        if !device.health.begin_operation() {
            device.report_failure("alloc_buffer");
            return ptr::null_mut();
        }
        let address = match device.memory.allocate(size) {
            Ok(address) => address,
            Err(error) => {
                log::error!("the simulated GPU cannot allocate: {error}");
                return ptr::null_mut();
            }
        };
        let context = Box::into_raw(Box::new(DeviceBuffer {
            device,
            address,
            size,
        }));
        // SAFETY: the interface fits the context.
        unsafe { ffi::ggml_backend_buffer_init(buft, BUFFER_INTERFACE, context.cast(), size) }
    })
}

unsafe extern "C" fn memory_type_alloc_size(
    _buft: ffi::ggml_backend_buffer_type_t,
    tensor: *const ffi::ggml_tensor,
) -> usize {
    // SAFETY: ggml calls this with a tensor.
    guard("get_alloc_size", usize::MAX, || unsafe {
        let (kind, row) = ((*tensor).type_, (*tensor).ne[0]);
        let missing = (ROW_PADDING - row % ROW_PADDING) % ROW_PADDING;
        let padding = match missing > 0 && ffi::ggml_is_quantized(kind) {
            true => ffi::ggml_row_size(kind, missing),
            false => 0,
        };
        ffi::ggml_nbytes(tensor) + padding
    })
}

const BUFFER_INTERFACE: ffi::ggml_backend_buffer_i = ffi::ggml_backend_buffer_i {
    free_buffer: Some(buffer_free),
    get_base: Some(buffer_base),
    init_tensor: None,
    memset_tensor: Some(buffer_memset),
    set_tensor: Some(buffer_set),
    get_tensor: Some(buffer_get),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: Some(buffer_copy),
    clear: Some(buffer_clear),
    reset: None,
};

unsafe extern "C" fn buffer_free(buffer: ffi::ggml_backend_buffer_t) {
    guard("free_buffer", (), || {
        // SAFETY: ggml frees a buffer of this library once.
        let context = unsafe { Box::from_raw((*buffer).context.cast::<DeviceBuffer>()) };
        if context.device.spec.free_waits {
            context.device.synchronize("free");
        }
        if let Err(error) = context.device.memory.free(context.address) {
            log::error!("the simulated GPU cannot free a buffer: {error}");
        }
    });
}

unsafe extern "C" fn buffer_base(buffer: ffi::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: ggml calls this with a buffer of this library.
    unsafe { buffer_of(buffer) }.address as *mut c_void
}

unsafe extern "C" fn buffer_memset(
    buffer: ffi::ggml_backend_buffer_t,
    tensor: *mut ffi::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    guard("memset_tensor", (), || {
        // SAFETY: ggml calls this with a buffer of this library and a tensor in it; locate() checks the range.
        unsafe {
            let buffer = buffer_of(buffer);
            let place = buffer.locate(tensor, offset, size);
            if buffer.device.health.begin_operation() {
                ptr::write_bytes(place, value, size);
            }
        }
    });
}

unsafe extern "C" fn buffer_set(
    buffer: ffi::ggml_backend_buffer_t,
    tensor: *mut ffi::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    guard("set_tensor", (), || {
        // SAFETY: ggml calls this with a buffer of this library, a tensor in it and as many bytes as it says; locate() checks
        // the range.
        unsafe {
            let buffer = buffer_of(buffer);
            let place = buffer.locate(tensor, offset, size);
            if !buffer.device.health.begin_operation() {
                return;
            }
            ptr::copy_nonoverlapping(data.cast::<u8>(), place, size);
            buffer.meter_sync(Direction::Up, tensor, data, size);
        }
    });
}

unsafe extern "C" fn buffer_get(
    buffer: ffi::ggml_backend_buffer_t,
    tensor: *const ffi::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    guard("get_tensor", (), || {
        // SAFETY: ggml calls this with a buffer of this library, a tensor in it and room for as many bytes as it says; locate()
        // checks the range.
        unsafe {
            let buffer = buffer_of(buffer);
            let place = buffer.locate(tensor, offset, size);
            if !buffer.device.health.begin_operation() {
                ptr::write_bytes(data.cast::<u8>(), lost_byte((*tensor).type_), size);
                return;
            }
            ptr::copy_nonoverlapping(place, data.cast::<u8>(), size);
            buffer.meter_sync(Direction::Down, tensor, data, size);
        }
    });
}

unsafe extern "C" fn buffer_copy(
    buffer: ffi::ggml_backend_buffer_t,
    from: *const ffi::ggml_tensor,
    to: *mut ffi::ggml_tensor,
) -> bool {
    guard("cpy_tensor", false, || {
        // SAFETY: ggml calls this with a buffer of this library, a tensor in it, and one in any buffer; locate() checks ranges.
        unsafe {
            let buffer = buffer_of(buffer);
            let Some(source) = buffer_of_tensor(from, buffer.device) else {
                return false;
            };
            if !buffer.device.health.begin_operation() {
                return true;
            }
            let len = ffi::ggml_nbytes(from);
            ptr::copy(source.locate(from, 0, len), buffer.locate(to, 0, len), len);
            let label = name_of(from);
            let device = buffer.device;
            device
                .meter
                .lock()
                .device_copy(&device.spec, None, len as u64, &label);
            true
        }
    })
}

unsafe extern "C" fn buffer_clear(buffer: ffi::ggml_backend_buffer_t, value: u8) {
    guard("clear", (), || {
        // SAFETY: ggml calls this with a buffer of this library, which is allocated until it is freed.
        unsafe {
            let buffer = buffer_of(buffer);
            let place = buffer.device.memory.translate(buffer.address, buffer.size);
            match place {
                Ok(_) if !buffer.device.health.begin_operation() => {}
                Ok(place) => ptr::write_bytes(place, value, buffer.size),
                Err(error) => abort(&format!("cannot clear a buffer: {error}")),
            }
        }
    });
}

impl DeviceBuffer {
    /// Where a part of a tensor really is. A part that is not within this buffer ends the process.
    ///
    /// # Safety
    /// `tensor` must be a tensor.
    unsafe fn locate(
        &self,
        tensor: *const ffi::ggml_tensor,
        offset: usize,
        size: usize,
    ) -> *mut u8 {
        // SAFETY: the caller vouches for the tensor.
        let start = unsafe { (*tensor).data } as usize;
        let inside = start.checked_add(offset).filter(|at| {
            let end = at.checked_add(size);
            *at >= self.address && end.is_some_and(|end| end <= self.address + self.size)
        });
        let place = inside.map(|at| self.device.memory.translate(at, size));
        match place {
            Some(Ok(place)) => place,
            Some(Err(error)) => abort(&error.to_string()),
            None => {
                // SAFETY: the caller vouches for the tensor.
                let name = unsafe { name_of(tensor) };
                let end = offset.saturating_add(size);
                abort(&format!(
                    "bytes {offset} to {end} of '{name}' at {start:#x} are outside of its buffer, {} bytes at {:#x}",
                    self.size, self.address
                ))
            }
        }
    }

    /// # Safety
    /// `tensor` must be a tensor.
    unsafe fn meter_sync(
        &self,
        direction: Direction,
        tensor: *const ffi::ggml_tensor,
        host: *const c_void,
        size: usize,
    ) {
        // SAFETY: the caller vouches for the tensor.
        let label = unsafe { name_of(tensor) };
        let copy = LinkCopy {
            direction,
            bytes: size as u64,
            pinned: self.device.coverage(host, size) == Coverage::All,
            label: &label,
        };
        self.device
            .meter
            .lock()
            .sync_link_copy(&self.device.spec, &copy);
    }
}

/// The buffer of a tensor, if it is memory of this device.
///
/// # Safety
/// `tensor` must be a tensor.
unsafe fn buffer_of_tensor<'a>(
    tensor: *const ffi::ggml_tensor,
    device: &'static Device,
) -> Option<&'a DeviceBuffer> {
    // SAFETY: the caller vouches for the tensor, and a tensor's buffer is null or a buffer.
    unsafe {
        let owner = match (*tensor).view_src.as_ref() {
            Some(viewed) => viewed.buffer,
            None => (*tensor).buffer,
        };
        let ours = owner
            .as_ref()
            .is_some_and(|b| b.buft == device.handles().memory_type && !b.context.is_null());
        ours.then(|| buffer_of(owner))
    }
}

/// # Safety
/// `tensor` must be a tensor.
pub(super) unsafe fn name_of(tensor: *const ffi::ggml_tensor) -> String {
    // SAFETY: the caller vouches for the tensor, whose name ends within its array.
    let name = unsafe { &(*tensor).name };
    let bytes = name.iter().take_while(|c| **c != 0).map(|c| *c as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

unsafe extern "C" fn host_type_name(_buft: ffi::ggml_backend_buffer_type_t) -> *const c_char {
    c"SIM0_Host".as_ptr()
}

unsafe extern "C" fn host_type_alloc(
    buft: ffi::ggml_backend_buffer_type_t,
    size: usize,
) -> ffi::ggml_backend_buffer_t {
    guard("alloc_buffer", ptr::null_mut(), || {
        // SAFETY: ggml calls this with a buffer type of this library.
        let device = unsafe { device_of(buft) };
        match map_pinned(device, size) {
            // SAFETY: the mapping is as long as the buffer says, and host_free() ends both.
            Some(memory) => unsafe {
                let buffer = ffi::ggml_backend_cpu_buffer_from_ptr(memory, size);
                (*buffer).buft = buft;
                (*buffer).iface.free_buffer = Some(host_free);
                buffer
            },
            // As CUDA does: unlocked memory is slower, and good enough.
            // SAFETY: ggml's CPU buffer type is always there.
            None => unsafe {
                ffi::ggml_backend_buft_alloc_buffer(ffi::ggml_backend_cpu_buffer_type(), size)
            },
        }
    })
}

fn map_pinned(device: &Device, size: usize) -> Option<*mut c_void> {
    if let Err(error) = device.may_pin(size) {
        log::debug!("unlocked memory in place of page-locked: {error}");
        return None;
    }
    if let Some(supply) = &device.supply {
        match supply.host(size) {
            Supplied::Own => {}
            Supplied::Refused => return None,
            Supplied::Memory(memory) => {
                if let Err(error) = device.pin(memory.cast(), size) {
                    log::debug!("unlocked memory in place of page-locked: {error}");
                    supply.release_host(memory);
                    return None;
                }
                return Some(memory.cast());
            }
        }
    }
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing one.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return None;
    }
    if let Err(error) = device.pin(memory, size) {
        log::debug!("unlocked memory in place of page-locked: {error}");
        // SAFETY: mapped above, and not yet known to anyone else.
        unsafe { libc::munmap(memory, size) };
        return None;
    }
    Some(memory)
}

unsafe extern "C" fn host_free(buffer: ffi::ggml_backend_buffer_t) {
    guard("free_buffer", (), || {
        // SAFETY: ggml frees a buffer of this library once; its context is the mapping, which is as long as the buffer.
        unsafe {
            let (memory, size) = ((*buffer).context, (*buffer).size);
            let device = device_of((*buffer).buft);
            if let Err(error) = device.unpin(memory, size) {
                log::error!("page-locked memory of the simulated GPU: {error}");
            }
            let supply = device.supply.as_ref();
            if supply.is_some_and(|supply| supply.release_host(memory.cast())) {
                return;
            }
            libc::munmap(memory, size);
        }
    });
}
