//! A stream of the device, as ggml sees it: a backend.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use pipeshard_sys as ffi;

use super::buffer::name_of;
use super::clock::Direction;
use super::compute::GraphCopy;
use super::device::{Device, Lane};
use super::event::event_of;
use super::faults::lost_byte;
use super::guard::{abort, guard};
use super::meter::LinkCopy;
use super::pins::Coverage;
use super::stream::{exiting, Command, Source, Stream};

/// What ggml knows the backend by.
static GUID: [u8; 16] = [
    0x6b, 0x1d, 0x52, 0x9e, 0x0c, 0x47, 0x4f, 0x3a, 0x91, 0xe4, 0x38, 0x7f, 0xd2, 0x05, 0xaa, 0x6c,
];

/// A new stream of a device; null, with a message in the log, if there cannot be one.
pub(super) fn open(device: &'static Device) -> ffi::ggml_backend_t {
    match Stream::start(device) {
        Ok(stream) => Box::into_raw(Box::new(ffi::ggml_backend {
            guid: ptr::from_ref(&GUID).cast_mut(),
            iface: INTERFACE,
            device: device.handles().device,
            context: Arc::into_raw(stream).cast_mut().cast(),
        })),
        Err(error) => {
            log::error!("the simulated GPU cannot start a thread for a stream: {error}");
            ptr::null_mut()
        }
    }
}

/// # Safety
/// `backend` must be one that `open` made, and not yet freed.
pub(super) unsafe fn stream_of<'a>(backend: ffi::ggml_backend_t) -> &'a Stream {
    // SAFETY: the context of these backends is a stream, and they hold a reference to it.
    unsafe { &*(*backend).context.cast::<Stream>() }
}

const INTERFACE: ffi::ggml_backend_i = ffi::ggml_backend_i {
    get_name: Some(backend_name),
    free: Some(backend_free),
    set_tensor_async: Some(backend_set),
    get_tensor_async: Some(backend_get),
    set_tensor_2d_async: None,
    get_tensor_2d_async: None,
    cpy_tensor_async: Some(backend_copy),
    synchronize: Some(backend_synchronize),
    graph_plan_create: None,
    graph_plan_free: None,
    graph_plan_update: None,
    graph_plan_compute: None,
    graph_compute: Some(backend_compute),
    event_record: Some(backend_event_record),
    event_wait: Some(backend_event_wait),
    graph_optimize: None,
};

unsafe extern "C" fn backend_name(_backend: ffi::ggml_backend_t) -> *const c_char {
    c"SIM0".as_ptr()
}

unsafe extern "C" fn backend_free(backend: ffi::ggml_backend_t) {
    guard("free", (), || {
        // SAFETY: made by open(), and ggml frees a backend once.
        let stream = unsafe {
            let backend = Box::from_raw(backend);
            Arc::from_raw(backend.context.cast::<Stream>())
        };
        stream.stop();
    });
}

unsafe extern "C" fn backend_set(
    backend: ffi::ggml_backend_t,
    tensor: *mut ffi::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    guard("set_tensor_async", (), || {
        // SAFETY: ggml calls this with a backend of this library, a tensor, and as many bytes as it says.
        let (stream, to) = unsafe {
            (
                stream_of(backend),
                locate(stream_of(backend), tensor, offset, size),
            )
        };
        let Some(pinned) = begin_link_copy(stream, Direction::Up, tensor, data, size) else {
            return;
        };
        let from = match pinned {
            true => Source::Host(data.cast(), size),
            // SAFETY: as above.
            false => Source::Staged(
                unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.into(),
            ),
        };
        stream.submit(Command::Upload { to, from });
    });
}

unsafe extern "C" fn backend_get(
    backend: ffi::ggml_backend_t,
    tensor: *const ffi::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    guard("get_tensor_async", (), || {
        // SAFETY: ggml calls this with a backend of this library, a tensor, and room for as many bytes as it says.
        let (stream, from) = unsafe {
            (
                stream_of(backend),
                locate(stream_of(backend), tensor, offset, size),
            )
        };
        let Some(pinned) = begin_link_copy(stream, Direction::Down, tensor, data, size) else {
            // SAFETY: as above.
            unsafe { ptr::write_bytes(data.cast::<u8>(), lost_byte((*tensor).type_), size) };
            return;
        };
        stream.submit(Command::Download {
            to: data.cast(),
            from,
            len: size,
            // SAFETY: as above.
            when_lost: lost_byte(unsafe { (*tensor).type_ }),
        });
        if !pinned {
            stream.drain();
        }
    });
}

/// Counts and times an async copy over the link; whether its host side is page-locked. Nothing if the copy fails.
fn begin_link_copy(
    stream: &Stream,
    direction: Direction,
    tensor: *const ffi::ggml_tensor,
    host: *const c_void,
    size: usize,
) -> Option<bool> {
    let device = stream.device;
    if !device.health.begin_operation() {
        return None;
    }
    // SAFETY: the callers got the tensor from ggml.
    let label = unsafe { name_of(tensor) };
    let coverage = device.coverage(host, size);
    let pinned = coverage == Coverage::All;
    let mut meter = device.meter.lock();
    let fails = meter.next_copy_fails(&device.spec);
    if !fails && coverage != Coverage::Part {
        let copy = LinkCopy {
            direction,
            bytes: size as u64,
            pinned,
            label: &label,
        };
        meter.link_copy(&device.spec, &copy, stream.id);
        return Some(pinned);
    }
    drop(meter);
    device.health.fail(&match fails {
        true => format!("the copy of '{label}', {size} bytes, failed because the specification says so (failcopy)"),
        false => format!(
            "the {size} bytes of host memory that '{label}' is copied from or to are page-locked in part only, which \
             CUDA refuses: lock all of them or none"
        ),
    });
    None
}

unsafe extern "C" fn backend_copy(
    from_backend: ffi::ggml_backend_t,
    to_backend: ffi::ggml_backend_t,
    from: *const ffi::ggml_tensor,
    to: *mut ffi::ggml_tensor,
) -> bool {
    guard("cpy_tensor_async", false, || {
        // SAFETY: ggml calls this with two backends and tensors; the second backend belongs to this library.
        unsafe {
            let device = stream_of(to_backend).device;
            let same_device = (*from_backend).device == device.handles().device;
            let owned = |t: *const ffi::ggml_tensor| device.memory.owns((*t).data as usize);
            if !same_device || !owned(from) || !owned(to) {
                return false;
            }
            let (source, target) = (stream_of(from_backend), stream_of(to_backend));
            if !device.health.begin_operation() {
                return true;
            }
            let len = ffi::ggml_nbytes(from);
            let command = Command::Copy {
                to: locate(target, to, 0, len),
                from: locate(source, from, 0, len),
                len,
            };
            let label = name_of(from);
            let mut meter = device.meter.lock();
            if meter.next_copy_fails(&device.spec) {
                drop(meter);
                device.health.fail(&format!(
                    "the copy of '{label}', {len} bytes, failed because the specification says so (failcopy)"
                ));
                return true;
            }
            meter.device_copy(&device.spec, Some(source.id), len as u64, &label);
            if source.id != target.id {
                meter.join(target.id, source.id);
            }
            drop(meter);
            source.submit(command);
            if source.id != target.id {
                let fence = Arc::default();
                source.submit(Command::Signal(Arc::clone(&fence)));
                target.submit(Command::Wait(fence));
            }
            true
        }
    })
}

unsafe extern "C" fn backend_synchronize(backend: ffi::ggml_backend_t) {
    guard("synchronize", (), || {
        // SAFETY: ggml calls this with a backend of this library.
        let stream = unsafe { stream_of(backend) };
        stream.drain();
        stream
            .device
            .meter
            .lock()
            .sync_stream(stream.id, "synchronize");
        stream.device.report_failure("synchronize");
    });
}

unsafe extern "C" fn backend_compute(
    backend: ffi::ggml_backend_t,
    graph: *mut ffi::ggml_cgraph,
) -> ffi::ggml_status {
    guard("graph_compute", ffi::GGML_STATUS_FAILED, || {
        // SAFETY: ggml calls this with a backend of this library.
        let stream = unsafe { stream_of(backend) };
        let device = stream.device;
        if !device.health.begin_operation() {
            device.report_failure("graph_compute");
            return ffi::GGML_STATUS_FAILED;
        }
        // SAFETY: ggml passes a graph.
        let graph = match unsafe { GraphCopy::new(graph, &device.memory) } {
            Ok(graph) => graph,
            Err(error) => {
                device.health.fail(&error.to_string());
                return ffi::GGML_STATUS_FAILED;
            }
        };
        let cost = graph.cost(&device.spec);
        device.meter.lock().graph(stream.id, cost, &graph.label());
        stream.submit(Command::Graph {
            graph: Box::new(graph),
            threads: stream.threads(),
        });
        ffi::GGML_STATUS_SUCCESS
    })
}

unsafe extern "C" fn backend_event_record(
    backend: ffi::ggml_backend_t,
    event: ffi::ggml_backend_event_t,
) {
    guard("event_record", (), || {
        // SAFETY: ggml calls this with a backend of this library and an event of its device.
        let (stream, event) = unsafe { (stream_of(backend), event_of(event)) };
        // streams go on when the device is gone: so that no thread waits for ever
        stream.device.health.begin_operation();
        event.record(|fence| {
            let moment = stream.device.meter.lock().record_event(stream.id);
            stream.submit(Command::Signal(fence));
            moment
        });
    });
}

unsafe extern "C" fn backend_event_wait(
    backend: ffi::ggml_backend_t,
    event: ffi::ggml_backend_event_t,
) {
    guard("event_wait", (), || {
        // SAFETY: ggml calls this with a backend of this library and an event of its device.
        let (stream, event) = unsafe { (stream_of(backend), event_of(event)) };
        stream.device.health.begin_operation();
        let latest = event.latest();
        let moment = latest.as_ref().map(|r| r.moment);
        stream.device.meter.lock().wait_event(stream.id, moment);
        if let Some(recording) = latest {
            if !exiting() {
                stream.submit(Command::Wait(recording.fence));
            }
        }
    });
}

/// What ggml finds under `ggml_backend_set_n_threads`.
pub(super) unsafe extern "C" fn set_n_threads(backend: ffi::ggml_backend_t, threads: i32) {
    guard("set_n_threads", (), || {
        // SAFETY: ggml calls this with a backend of this library.
        let stream = unsafe { stream_of(backend) };
        stream.set_threads(threads);
    });
}

/// Where a part of a tensor really is. One that is not in this device's memory ends the process.
///
/// # Safety
/// `tensor` must be a tensor.
unsafe fn locate(
    stream: &Stream,
    tensor: *const ffi::ggml_tensor,
    offset: usize,
    size: usize,
) -> *mut u8 {
    // SAFETY: the caller vouches for the tensor.
    let start = unsafe { (*tensor).data } as usize;
    match stream
        .device
        .memory
        .translate(start.wrapping_add(offset), size)
    {
        Ok(place) => place,
        // SAFETY: the caller vouches for the tensor.
        Err(error) => abort(&format!("an async copy of '{}': {error}", unsafe {
            name_of(tensor)
        })),
    }
}
