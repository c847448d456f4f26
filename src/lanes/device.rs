//! A ggml device as the runtime uses it: buffers, backends and events with owners.
//!
//! The wrappers own what they point to and free it when dropped. They are used under the runtime's lock only.

use pipeshard_sys as ffi;
use std::ffi::CStr;

/// A kind of memory: a device's own, or page-locked memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(ffi::ggml_backend_buffer_type_t);

impl Memory {
    /// Ordinary memory of the host.
    pub fn host() -> Self {
        // SAFETY: no preconditions; the type is static.
        Memory(unsafe { ffi::ggml_backend_cpu_buffer_type() })
    }

    /// The memory that a buffer is in.
    ///
    /// # Safety
    /// `buffer` is a live buffer.
    pub unsafe fn of(buffer: ffi::ggml_backend_buffer_t) -> Self {
        Memory(ffi::ggml_backend_buffer_get_type(buffer))
    }
}

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that computes from host memory.
    Integrated,
    /// No GPU.
    Other,
}

/// A device that computes, known to ggml for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(ffi::ggml_backend_dev_t);

// SAFETY: ggml devices are registered once, never freed while the process lives, and their functions are thread-safe.
unsafe impl Send for Device {}

impl Device {
    /// Wraps a device handle; `None` for a null one.
    pub fn new(raw: ffi::ggml_backend_dev_t) -> Option<Self> {
        (!raw.is_null()).then_some(Device(raw))
    }

    /// The registered GPUs, integrated ones last.
    pub fn gpus() -> Vec<Self> {
        // SAFETY: indices below the count are valid; devices are never unregistered.
        let all =
            unsafe { (0..ffi::ggml_backend_dev_count()).map(|i| ffi::ggml_backend_dev_get(i)) };
        let mut gpus: Vec<Device> = all
            .map(Device)
            .filter(|dev| dev.kind() != Kind::Other)
            .collect();
        gpus.sort_by_key(|dev| dev.kind() == Kind::Integrated);
        gpus
    }

    /// The first registered device of type GPU.
    pub fn first_gpu() -> Option<Self> {
        Self::gpus()
            .into_iter()
            .find(|dev| dev.kind() == Kind::Discrete)
    }

    /// What kind of device it is.
    pub fn kind(&self) -> Kind {
        // SAFETY: the device is live.
        match unsafe { ffi::ggml_backend_dev_type(self.0) } {
            ffi::GGML_BACKEND_DEVICE_TYPE_GPU => Kind::Discrete,
            ffi::GGML_BACKEND_DEVICE_TYPE_IGPU => Kind::Integrated,
            _ => Kind::Other,
        }
    }

    /// The name of its backend's registry, such as `CUDA`.
    pub fn registry(&self) -> String {
        // SAFETY: the registry and its NUL-terminated name live as long as the device.
        let name = unsafe {
            let registry = ffi::ggml_backend_dev_backend_reg(self.0);
            CStr::from_ptr(ffi::ggml_backend_reg_name(registry))
        };
        name.to_string_lossy().into_owned()
    }

    /// ggml's handle.
    pub fn raw(&self) -> ffi::ggml_backend_dev_t {
        self.0
    }

    /// The short name, such as `CUDA0`.
    pub fn name(&self) -> String {
        // SAFETY: ggml returns a NUL-terminated string that lives as long as the device.
        unsafe {
            CStr::from_ptr(ffi::ggml_backend_dev_name(self.0))
                .to_string_lossy()
                .into_owned()
        }
    }

    /// What the device calls itself, such as the card's name.
    pub fn description(&self) -> String {
        // SAFETY: as for `name`.
        unsafe {
            CStr::from_ptr(ffi::ggml_backend_dev_description(self.0))
                .to_string_lossy()
                .into_owned()
        }
    }

    /// Free and total memory in bytes, as the driver tells.
    pub fn memory(&self) -> (u64, u64) {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both pointers are valid for writes during the call.
        unsafe { ffi::ggml_backend_dev_memory(self.0, &mut free, &mut total) };
        (free as u64, total as u64)
    }

    fn properties(&self) -> ffi::ggml_backend_dev_props {
        // SAFETY: an all-zero ggml_backend_dev_props is valid, and ggml fills it in.
        unsafe {
            let mut props = std::mem::zeroed::<ffi::ggml_backend_dev_props>();
            ffi::ggml_backend_dev_get_props(self.0, &mut props);
            props
        }
    }

    /// Reports whether copies and kernels run asynchronously and can be ordered by events.
    pub fn can_pipeline(&self) -> bool {
        let props = self.properties();
        props.caps.async_ && props.caps.events
    }

    /// Where it is on the machine's PCI bus, such as `0000:3b:00.0`, if its backend says so.
    pub fn bus_id(&self) -> Option<String> {
        let id = self.properties().device_id;
        // SAFETY: a text that is not null is NUL-terminated and lives as long as the device.
        let id = (!id.is_null()).then(|| unsafe { CStr::from_ptr(id) });
        id.map(|id| id.to_string_lossy().into_owned())
    }

    /// Bytes that `tensor` needs in this device's memory, row padding included.
    ///
    /// # Safety
    /// `tensor` points to a valid ggml tensor.
    pub unsafe fn alloc_size(&self, tensor: *const ffi::ggml_tensor) -> u64 {
        ffi::ggml_backend_buft_get_alloc_size(self.buffer_type(), tensor) as u64
    }

    /// Alignment of tensors in this device's memory, in bytes.
    pub fn alignment(&self) -> u64 {
        // SAFETY: the buffer type belongs to a live device.
        unsafe { ffi::ggml_backend_buft_get_alignment(self.buffer_type()) as u64 }
    }

    /// The most bytes that one buffer in this device's memory may have.
    pub fn largest_buffer(&self) -> u64 {
        // SAFETY: the buffer type belongs to a live device.
        unsafe { ffi::ggml_backend_buft_get_max_size(self.buffer_type()) as u64 }
    }

    /// The device's own memory.
    pub fn memory_type(&self) -> Memory {
        Memory(self.buffer_type())
    }

    /// Of its ordinary memory.
    pub fn buffer_type(&self) -> ffi::ggml_backend_buffer_type_t {
        // SAFETY: the device is live.
        unsafe { ffi::ggml_backend_dev_buffer_type(self.0) }
    }

    /// Page-locked host memory, where the device has some.
    pub fn pinned_memory(&self) -> Option<Memory> {
        // SAFETY: the device is live.
        let buft = unsafe { ffi::ggml_backend_dev_host_buffer_type(self.0) };
        (!buft.is_null()).then_some(Memory(buft))
    }

    /// A function that the device's backend offers by name.
    pub fn proc_address(&self, name: &CStr) -> *mut std::ffi::c_void {
        // SAFETY: the registry lives as long as the device.
        unsafe {
            ffi::ggml_backend_reg_get_proc_address(
                ffi::ggml_backend_dev_backend_reg(self.0),
                name.as_ptr(),
            )
        }
    }
}

/// A buffer of ggml memory, freed when dropped.
#[derive(Debug)]
pub struct Buffer(ffi::ggml_backend_buffer_t);

// SAFETY: a ggml buffer may be used and freed from any thread, one at a time; the runtime's lock sees to that.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Allocates `bytes` of the given memory; `None` when it is refused.
    pub fn allocate(memory: Memory, bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        // SAFETY: the buffer type belongs to a device, which lives as long as the process.
        let raw = unsafe { ffi::ggml_backend_buft_alloc_buffer(memory.0, bytes) };
        (!raw.is_null()).then_some(Buffer(raw))
    }

    /// Marks the buffer as one that holds weights, so that the scheduler runs operations where their weights are.
    pub fn holds_weights(self) -> Self {
        // SAFETY: the buffer is live.
        unsafe {
            ffi::ggml_backend_buffer_set_usage(self.0, ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS)
        };
        self
    }

    /// Fills the whole buffer with one byte, before this returns.
    pub fn clear(&self, value: u8) {
        // SAFETY: the buffer is live.
        unsafe { ffi::ggml_backend_buffer_clear(self.0, value) }
    }

    /// ggml's handle.
    pub fn raw(&self) -> ffi::ggml_backend_buffer_t {
        self.0
    }

    /// Address of the first byte, in the memory that the buffer is in.
    pub fn base(&self) -> *mut u8 {
        // SAFETY: the buffer is live.
        unsafe { ffi::ggml_backend_buffer_get_base(self.0).cast() }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        // SAFETY: the buffer is live.
        unsafe { ffi::ggml_backend_buffer_get_size(self.0) as u64 }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the runtime has drained the lanes that use it.
        unsafe { ffi::ggml_backend_buffer_free(self.0) }
    }
}

/// A stream of the device that belongs to the runtime.
#[derive(Debug)]
pub struct Stream(ffi::ggml_backend_t);

// SAFETY: used under the runtime's lock only.
unsafe impl Send for Stream {}

impl Stream {
    /// Opens a new stream on `device`.
    pub fn open(device: Device) -> Option<Self> {
        // SAFETY: the device is live; a null parameter string means the defaults.
        let raw = unsafe { ffi::ggml_backend_dev_init(device.raw(), std::ptr::null()) };
        (!raw.is_null()).then_some(Stream(raw))
    }

    /// ggml's handle.
    pub fn raw(&self) -> ffi::ggml_backend_t {
        self.0
    }

    /// Blocks until everything submitted to the stream is done.
    pub fn synchronize(&self) {
        // SAFETY: the backend is live.
        unsafe { ffi::ggml_backend_synchronize(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::ggml_backend_free(self.0) }
    }
}

/// A point in a stream that others can wait for.
#[derive(Debug)]
pub struct Event(ffi::ggml_backend_event_t);

// SAFETY: used under the runtime's lock only.
unsafe impl Send for Event {}

impl Event {
    /// A new event, not recorded yet; `None` where the device has no events.
    pub fn new(device: Device) -> Option<Self> {
        // SAFETY: the device is live.
        let raw = unsafe { ffi::ggml_backend_event_new(device.raw()) };
        (!raw.is_null()).then_some(Event(raw))
    }

    /// ggml's handle.
    pub fn raw(&self) -> ffi::ggml_backend_event_t {
        self.0
    }

    /// Records the event after everything submitted to `backend` so far.
    ///
    /// # Safety
    /// `backend` is a live backend of the event's device.
    pub unsafe fn record(&self, backend: ffi::ggml_backend_t) {
        ffi::ggml_backend_event_record(self.0, backend)
    }

    /// Makes what is submitted to `backend` from now on wait for the latest record.
    ///
    /// # Safety
    /// `backend` is a live backend of the event's device.
    pub unsafe fn hold(&self, backend: ffi::ggml_backend_t) {
        ffi::ggml_backend_event_wait(backend, self.0)
    }

    /// Blocks the host until the latest record is reached.
    pub fn synchronize(&self) {
        // SAFETY: the event is live.
        unsafe { ffi::ggml_backend_event_synchronize(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::ggml_backend_event_free(self.0) }
    }
}
