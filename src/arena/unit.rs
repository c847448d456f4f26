//! A loaded weight and its copy on the device. Owns the tensor that stands for it there.
//!
//! Units are placed without `ggml_backend_buffer_init_tensor`: a backend must have no state of its own per tensor.

use crate::lanes::copy::{bytes_tensor, CopyTask};
use crate::lanes::device::Buffer;
use pipeshard_model::inventory::DType;
use pipeshard_sys as ffi;
use std::ptr::NonNull;

/// A weight that llama.cpp has loaded into host memory, with the tensor that stands for it on the device.
pub struct LoadedUnit {
    source: *const ffi::ggml_tensor,
    host: *const u8,
    bytes: usize,
    device_bytes: u64,
    pinned: bool,
    /// Offsets where one page-locked range ends and the next begins.
    seams: Box<[usize]>,
    /// What graphs read in place of `source`; its address never changes.
    device: OwnedTensor,
    tail: Option<OwnedTensor>,
}

// SAFETY: `source` and `host` are to a weight that llama.cpp keeps until it announces its end, and are only read.
unsafe impl Send for LoadedUnit {}

/// A tensor of this library whose address C and copy commands hold. A `Box` would claim it exclusively, so this is not one.
struct OwnedTensor(NonNull<ffi::ggml_tensor>);

// SAFETY: owned, with pointers to device memory that are never dereferenced; used under the runtime's lock.
unsafe impl Send for OwnedTensor {}

impl OwnedTensor {
    fn new(tensor: Box<ffi::ggml_tensor>) -> Self {
        OwnedTensor(NonNull::from(Box::leak(tensor)))
    }

    fn raw(&self) -> *mut ffi::ggml_tensor {
        self.0.as_ptr()
    }
}

impl Drop for OwnedTensor {
    fn drop(&mut self) {
        // SAFETY: made from a box, freed once; graphs and commands that have the address are over, see `Residency::release`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl LoadedUnit {
    /// Describes a loaded weight. `device_bytes`: what the device allocates for it, padding included.
    ///
    /// # Safety
    /// `source` is a valid tensor with its data in host memory, and stays so while this value is used.
    pub unsafe fn new(source: *const ffi::ggml_tensor, device_bytes: u64) -> Self {
        let mut device = Box::new(*source);
        device.op = ffi::GGML_OP_NONE;
        device.src = [std::ptr::null_mut(); ffi::GGML_MAX_SRC as usize];
        device.extra = std::ptr::null_mut();
        device.buffer = std::ptr::null_mut();
        device.data = std::ptr::null_mut();
        LoadedUnit {
            source,
            host: (*source).data.cast(),
            bytes: ffi::ggml_nbytes(source),
            device_bytes,
            pinned: false,
            seams: Box::default(),
            device: OwnedTensor::new(device),
            tail: None,
        }
    }

    /// The tensor that llama.cpp loaded.
    pub fn source(&self) -> *const ffi::ggml_tensor {
        self.source
    }

    /// The tensor that stands for it on the device.
    pub fn device_tensor(&self) -> *mut ffi::ggml_tensor {
        self.device.raw()
    }

    /// Reports whether it has a place on the device, be it one for measuring.
    pub fn is_placed(&self) -> bool {
        // SAFETY: the tensor is owned.
        unsafe { !(*self.device.raw()).data.is_null() }
    }

    fn point(&mut self, buffer: ffi::ggml_backend_buffer_t, data: *mut u8) {
        let tensor = self.device.raw();
        // SAFETY: the tensor is owned; graphs that read it are not being computed or measured by other threads, as the arena's
        // shape only changes then.
        unsafe {
            (*tensor).buffer = buffer;
            (*tensor).data = data.cast();
        }
    }

    /// First byte in host memory.
    pub fn host(&self) -> *const u8 {
        self.host
    }

    /// Length in host memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many experts are stacked in it, one after the other; none for a tensor of another kind.
    pub fn experts(&self) -> Option<u32> {
        // SAFETY: the tensor is owned, and its shape never changes.
        let (ne, nb) = unsafe { ((*self.device.raw()).ne, (*self.device.raw()).nb) };
        let experts = u32::try_from(ne[2]).ok().filter(|&n| n > 1 && ne[3] == 1)?;
        (nb[2].checked_mul(experts as usize) == Some(self.bytes)).then_some(experts)
    }

    /// How many rows at once the CPU multiplies it with one by one, at most.
    pub fn rows_one_by_one(&self) -> u32 {
        // SAFETY: the tensor is owned, and its type never changes.
        let kind = DType::from_id(unsafe { (*self.device.raw()).type_ });
        kind.map_or(1, DType::rows_one_by_one)
    }

    /// Offsets where one page-locked range ends and the next begins.
    pub fn seams(&self) -> &[usize] {
        &self.seams
    }

    /// Notes whether the host memory is page-locked, and at which offsets one locked range ends and the next begins. Copy commands
    /// point to the seams: they may change only where the unit is in no ring, or gets another place before anything is copied.
    pub fn set_pinned(&mut self, pinned: bool, seams: Box<[usize]>) {
        self.pinned = pinned;
        if self.seams != seams {
            self.seams = seams;
        }
    }

    /// Reports whether the host memory is page-locked.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// Gives it a place in a device buffer.
    pub fn place(&mut self, buffer: &Buffer, offset: u64) {
        let address = buffer.base().wrapping_add(offset as usize);
        self.point(buffer.raw(), address);
        let padding = self.device_bytes.saturating_sub(self.bytes as u64);
        let tail = || bytes_tensor(buffer, address.wrapping_add(self.bytes), padding);
        self.tail = (padding > 0).then(|| OwnedTensor::new(tail()));
    }

    /// Points it to memory that no graph will read, while graphs are only measured.
    pub fn place_for_measuring(&mut self, buffer: &Buffer) {
        self.point(buffer.raw(), buffer.base());
        self.tail = None;
    }

    /// Takes its place away.
    pub fn unplace(&mut self) {
        self.point(std::ptr::null_mut(), std::ptr::null_mut());
        self.tail = None;
    }

    /// The copy of the whole weight to its place.
    pub fn copy_task(&self) -> CopyTask {
        CopyTask {
            host: self.host,
            bytes: self.bytes,
            pinned: self.pinned,
            seams: &*self.seams,
            device: self.device.raw(),
            tail: self.tail.as_ref().map(OwnedTensor::raw),
        }
    }
}
