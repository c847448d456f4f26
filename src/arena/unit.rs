//! A loaded weight and its copy on the device.

use crate::lanes::copy::{bytes_tensor, CopyTask};
use crate::lanes::device::Buffer;
use pipeshard_model::inventory::DType;
use pipeshard_sys as ffi;

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
    device: Box<ffi::ggml_tensor>,
    tail: Option<Box<ffi::ggml_tensor>>,
}

// SAFETY: the pointers are to weights that llama.cpp keeps until it announces their end, and are only read.
unsafe impl Send for LoadedUnit {}

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
            device,
            tail: None,
        }
    }

    /// The tensor that llama.cpp loaded.
    pub fn source(&self) -> *const ffi::ggml_tensor {
        self.source
    }

    /// The tensor that stands for it on the device.
    pub fn device_tensor(&mut self) -> *mut ffi::ggml_tensor {
        &mut *self.device
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
        let (ne, nb) = (self.device.ne, self.device.nb);
        let experts = u32::try_from(ne[2]).ok().filter(|&n| n > 1 && ne[3] == 1)?;
        (nb[2].checked_mul(experts as usize) == Some(self.bytes)).then_some(experts)
    }

    /// How many rows at once the CPU multiplies it with one by one, at most.
    pub fn rows_one_by_one(&self) -> u32 {
        let kind = DType::from_id(self.device.type_);
        kind.map_or(1, DType::rows_one_by_one)
    }

    /// Offsets where one page-locked range ends and the next begins.
    pub fn seams(&self) -> &[usize] {
        &self.seams
    }

    /// Notes whether the host memory is page-locked, and at which offsets one locked range ends and the next begins.
    pub fn set_pinned(&mut self, pinned: bool, seams: Box<[usize]>) {
        self.pinned = pinned;
        self.seams = seams;
    }

    /// Whether the host memory is page-locked.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// Gives it a place in a device buffer.
    pub fn place(&mut self, buffer: &Buffer, offset: u64) {
        let address = buffer.base().wrapping_add(offset as usize);
        self.device.buffer = buffer.raw();
        self.device.data = address.cast();
        let padding = self.device_bytes.saturating_sub(self.bytes as u64);
        self.tail =
            (padding > 0).then(|| bytes_tensor(buffer, address.wrapping_add(self.bytes), padding));
    }

    /// Points it to memory that no graph will read, while graphs are only measured.
    pub fn place_for_measuring(&mut self, buffer: &Buffer) {
        self.device.buffer = buffer.raw();
        self.device.data = buffer.base().cast();
        self.tail = None;
    }

    /// Takes its place away.
    pub fn unplace(&mut self) {
        self.device.buffer = std::ptr::null_mut();
        self.device.data = std::ptr::null_mut();
        self.tail = None;
    }

    /// The copy of the whole weight to its place.
    pub fn copy_task(&mut self) -> CopyTask {
        CopyTask {
            host: self.host,
            bytes: self.bytes,
            pinned: self.pinned,
            seams: &*self.seams,
            device: &mut *self.device,
            tail: self.tail.as_deref_mut().map(|t| t as *mut _),
        }
    }
}
