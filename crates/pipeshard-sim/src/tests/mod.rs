//! The simulated device as ggml sees it: everything here goes through ggml's own functions.

mod device;
mod graphs;
mod streams;

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use pipeshard_sys as ffi;

use super::device::Device;
use super::fence::Fence;
use super::stream::{Command, Stream};
use super::test_support::{load_cpu, page_locked_is};
use super::SimSpec;

/// A device of its own for each test.
struct Card {
    device: &'static Device,
    handle: ffi::ggml_backend_dev_t,
}

impl Card {
    fn new(spec: &str) -> Self {
        load_cpu();
        let spec = SimSpec::parse(spec).expect("a valid specification");
        let device = super::registry::create(spec, None).expect("address space for a small device");
        Self {
            device,
            handle: device.handles().device,
        }
    }

    fn memory_type(&self) -> ffi::ggml_backend_buffer_type_t {
        self.device.handles().memory_type
    }

    fn stream(&self) -> Lane {
        // SAFETY: a device's handle is good for the whole process.
        let backend = unsafe { ffi::ggml_backend_dev_init(self.handle, ptr::null()) };
        assert!(!backend.is_null());
        Lane { backend }
    }

    fn event(&self) -> Mark {
        // SAFETY: a device's handle is good for the whole process.
        let event = unsafe { ffi::ggml_backend_event_new(self.handle) };
        assert!(!event.is_null());
        Mark { event }
    }

    /// Tensors of `count` floats each, in one buffer of their own.
    fn floats<const N: usize>(&self, count: i64) -> Tensors<N> {
        Tensors::new(self.memory_type(), |context| {
            // SAFETY: the context has room for the tensors.
            unsafe { ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_F32, count) }
        })
    }
}

/// A backend of the simulated device, freed when dropped.
struct Lane {
    backend: ffi::ggml_backend_t,
}

impl Lane {
    fn stream(&self) -> &Stream {
        // SAFETY: the context of the device's backends is a stream, and they hold a reference to it.
        unsafe { &*(*self.backend).context.cast::<Stream>() }
    }

    /// Keeps the stream from going on until the gate is opened.
    fn close(&self) -> Gate {
        let fence = Arc::new(Fence::default());
        self.stream().submit(Command::Wait(Arc::clone(&fence)));
        Gate { fence }
    }

    /// Opens the gate as soon as a thread waits for all that the stream was told to do.
    fn open_when_waited_for(&self, gate: Gate) -> std::thread::JoinHandle<()> {
        // SAFETY: as for `stream`; the count keeps it until the thread is through.
        let stream = unsafe {
            let stream = (*self.backend).context.cast::<Stream>();
            Arc::increment_strong_count(stream);
            Arc::from_raw(stream)
        };
        std::thread::spawn(move || {
            while !stream.is_waited_for() {
                std::thread::yield_now();
            }
            gate.open();
        })
    }

    /// Returns when the stream waits for the latest recording of an event.
    fn reaches(&self, mark: &Mark) {
        // SAFETY: the event is alive as long as its mark.
        let event = unsafe { crate::event::event_of(mark.event) };
        let recording = event.latest().expect("it was recorded");
        while !recording.fence.is_waited_for() {
            std::thread::yield_now();
        }
    }

    fn set(&self, tensor: *mut ffi::ggml_tensor, data: &[f32]) {
        let bytes = size_of_val(data);
        // SAFETY: the tensor lives in device memory and the data is as long as it says.
        unsafe {
            ffi::ggml_backend_tensor_set_async(self.backend, tensor, data.as_ptr().cast(), 0, bytes)
        };
    }

    fn get(&self, tensor: *mut ffi::ggml_tensor, data: &mut [f32]) {
        let bytes = size_of_val(data);
        // SAFETY: the tensor lives in device memory and there is room for as many bytes as it says.
        unsafe {
            ffi::ggml_backend_tensor_get_async(
                self.backend,
                tensor,
                data.as_mut_ptr().cast(),
                0,
                bytes,
            )
        };
    }

    fn record(&self, mark: &Mark) {
        // SAFETY: both are alive and of the same device.
        unsafe { ffi::ggml_backend_event_record(mark.event, self.backend) };
    }

    fn wait(&self, mark: &Mark) {
        // SAFETY: both are alive and of the same device.
        unsafe { ffi::ggml_backend_event_wait(self.backend, mark.event) };
    }

    fn synchronize(&self) {
        // SAFETY: the backend is alive.
        unsafe { ffi::ggml_backend_synchronize(self.backend) };
    }

    fn submit(&self, graph: *mut ffi::ggml_cgraph) -> ffi::ggml_status {
        // SAFETY: the backend is alive, and the graph is one.
        unsafe { ffi::ggml_backend_graph_compute_async(self.backend, graph) }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: made by ggml_backend_dev_init() and freed once.
        unsafe { ffi::ggml_backend_free(self.backend) };
    }
}

/// Opened when dropped, so that a failed test ends.
struct Gate {
    fence: Arc<Fence>,
}

impl Gate {
    fn open(self) {}

    /// Returns when the stream stands before the gate.
    fn reached(&self) {
        while !self.fence.is_waited_for() {
            std::thread::yield_now();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.fence.signal();
    }
}

struct Mark {
    event: ffi::ggml_backend_event_t,
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: made by ggml_backend_event_new() and freed once.
        unsafe { ffi::ggml_backend_event_free(self.event) };
    }
}

/// Some tensors and the buffer that they live in.
struct Tensors<const N: usize> {
    context: *mut ffi::ggml_context,
    buffer: ffi::ggml_backend_buffer_t,
    all: [*mut ffi::ggml_tensor; N],
}

impl<const N: usize> Tensors<N> {
    fn new(
        buft: ffi::ggml_backend_buffer_type_t,
        mut make: impl FnMut(*mut ffi::ggml_context) -> *mut ffi::ggml_tensor,
    ) -> Self {
        // SAFETY: the context has room for far more than the tests make, and they only make tensors in it.
        unsafe {
            let context = ffi::ggml_init(ffi::ggml_init_params {
                mem_size: 1 << 20,
                mem_buffer: ptr::null_mut(),
                no_alloc: true,
            });
            let all = std::array::from_fn(|_| make(context));
            let buffer = ffi::ggml_backend_alloc_ctx_tensors_from_buft(context, buft);
            assert!(!buffer.is_null());
            Self {
                context,
                buffer,
                all,
            }
        }
    }
}

impl<const N: usize> Drop for Tensors<N> {
    fn drop(&mut self) {
        // SAFETY: both were made in new() and are freed once.
        unsafe {
            ffi::ggml_backend_buffer_free(self.buffer);
            ffi::ggml_free(self.context);
        }
    }
}

/// What a tensor holds now, in no order with any stream.
fn peek(tensor: *mut ffi::ggml_tensor) -> Vec<f32> {
    // SAFETY: the tensor is allocated, holds floats, and the answer has room for all of them.
    unsafe {
        let mut data = vec![0f32; ffi::ggml_nelements(tensor) as usize];
        ffi::ggml_backend_tensor_get(
            tensor,
            data.as_mut_ptr().cast(),
            0,
            ffi::ggml_nbytes(tensor),
        );
        data
    }
}

fn poke(tensor: *mut ffi::ggml_tensor, data: &[f32]) {
    // SAFETY: the tensor is allocated, and ggml checks the length.
    unsafe { ffi::ggml_backend_tensor_set(tensor, data.as_ptr().cast(), 0, size_of_val(data)) };
}

fn address<T>(data: &[T]) -> *const c_void {
    data.as_ptr().cast()
}
