//! Who computes: a stream of the device, or the CPU with threads as llama.cpp makes them.

use std::ffi::{c_void, CStr};

use super::error::MeasureError;
use super::graph::{Graph, Tensor};
use crate::lanes::device::{Buffer, Device, Memory, Stream};
use pipeshard_sys as ffi;

/// ggml makes no more threads.
const MOST_THREADS: u32 = ffi::GGML_MAX_N_THREADS;

type NewPool = unsafe extern "C" fn(*mut ffi::ggml_threadpool_params) -> *mut ffi::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut ffi::ggml_threadpool);
type SetPool = unsafe extern "C" fn(ffi::ggml_backend_t, *mut ffi::ggml_threadpool);

/// Threads that wait for work, freed when dropped.
struct Pool {
    raw: *mut ffi::ggml_threadpool,
    free: FreePool,
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, after the backend that uses it.
        unsafe { (self.free)(self.raw) }
    }
}

/// A backend of its own on a device, freed when dropped.
pub(super) struct Engine {
    // freed before its threads
    stream: Stream,
    _pool: Option<Pool>,
    device: Device,
}

impl Engine {
    /// A new stream of `device`.
    pub fn of_device(device: Device, threads: u32) -> Result<Self, MeasureError> {
        let stream = Stream::open(device).ok_or_else(|| MeasureError::NotOpened(device.name()))?;
        let engine = Engine {
            stream,
            _pool: None,
            device,
        };
        // the simulated GPU computes on the CPU
        engine.set_threads(threads);
        Ok(engine)
    }

    /// The CPU with `threads` threads.
    pub fn of_cpu(threads: u32) -> Result<Self, MeasureError> {
        // SAFETY: no preconditions; null where there is none.
        let raw = unsafe { ffi::ggml_backend_dev_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU) };
        let device = Device::new(raw).ok_or(MeasureError::NoCpu)?;
        let mut engine = Engine::of_device(device, threads)?;
        engine._pool = engine.start_threads(threads);
        Ok(engine)
    }

    fn set_threads(&self, threads: u32) {
        let found = self.device.proc_address(c"ggml_backend_set_n_threads");
        // SAFETY: null becomes None; backends that offer this name give it this signature (ggml-backend.h).
        unsafe {
            let set = std::mem::transmute::<*mut c_void, ffi::ggml_backend_set_n_threads_t>(found);
            if let Some(set) = set {
                set(self.stream.raw(), threads.clamp(1, MOST_THREADS) as i32);
            }
        }
    }

    /// Threads that stay, where the backend has such; else it makes some for each graph.
    fn start_threads(&self, threads: u32) -> Option<Pool> {
        let find = |name: &CStr| {
            let found = self.device.proc_address(name);
            (!found.is_null()).then_some(found)
        };
        let new = find(c"ggml_threadpool_new")?;
        let free = find(c"ggml_threadpool_free")?;
        let set = find(c"ggml_backend_cpu_set_threadpool")?;
        // SAFETY: ggml's CPU backend offers these names for functions of these signatures (ggml-cpu.h).
        unsafe {
            let new = std::mem::transmute::<*mut c_void, NewPool>(new);
            let free = std::mem::transmute::<*mut c_void, FreePool>(free);
            let set = std::mem::transmute::<*mut c_void, SetPool>(set);
            let threads = threads.clamp(1, MOST_THREADS) as i32;
            let mut params = ffi::ggml_threadpool_params_default(threads);
            let raw = new(&mut params);
            if raw.is_null() {
                return None;
            }
            set(self.stream.raw(), raw);
            Some(Pool { raw, free })
        }
    }

    /// Reports whether it can compute a node.
    pub fn computes(&self, node: Tensor) -> bool {
        // SAFETY: the device is live, and the tensor belongs to a live graph.
        unsafe { ffi::ggml_backend_dev_supports_op(self.device.raw(), node.raw()) }
    }

    /// Computes a graph, and does not wait for it where the device works on its own. `wait` comes before the graph goes.
    pub fn submit(&self, graph: &Graph) -> Result<(), MeasureError> {
        // SAFETY: the graph is live, and its tensors are placed in memory of this engine's device.
        let status =
            unsafe { ffi::ggml_backend_graph_compute_async(self.stream.raw(), graph.raw()) };
        match status {
            ffi::GGML_STATUS_SUCCESS => Ok(()),
            status => {
                self.stream.synchronize();
                Err(MeasureError::Compute {
                    device: self.device.name(),
                    status,
                })
            }
        }
    }

    /// Host memory that it copies from and to: page-locked, where there is such.
    pub fn host_memory(&self, bytes: u64) -> Result<Buffer, MeasureError> {
        let pinned = self.device.pinned_memory();
        let buffer = pinned.and_then(|memory| Buffer::allocate(memory, bytes));
        let buffer = buffer.or_else(|| Buffer::allocate(Memory::host(), bytes));
        buffer.ok_or(MeasureError::HostMemory(bytes))
    }

    /// Submits a copy of `bytes` from host memory to the beginning of a tensor.
    ///
    /// # Safety
    /// Both have as many bytes, the tensor in memory of this engine's device, and stay as they are until [`Self::wait`].
    pub unsafe fn upload(&self, tensor: Tensor, from: *const u8, bytes: usize) {
        ffi::ggml_backend_tensor_set_async(self.stream.raw(), tensor.raw(), from.cast(), 0, bytes)
    }

    /// Submits a copy of the first `bytes` of a tensor to host memory.
    ///
    /// # Safety
    /// As for [`Self::upload`].
    pub unsafe fn download(&self, tensor: Tensor, to: *mut u8, bytes: usize) {
        ffi::ggml_backend_tensor_get_async(self.stream.raw(), tensor.raw(), to.cast(), 0, bytes)
    }

    /// Waits for all that was submitted.
    pub fn wait(&self) {
        self.stream.synchronize();
    }

    /// Computes a graph and waits for it.
    pub fn run(&self, graph: &Graph) -> Result<(), MeasureError> {
        self.submit(graph)?;
        self.wait();
        Ok(())
    }
}
