//! What every process that computes on a device holds of it, whatever it computes: the device's context, its kernels' module,
//! and the library that multiplies matrices. A backend opens them when they are first used.

use super::device::{Device, Stream};
use pipeshard_sys as ffi;

/// Opens `device` as if something had been multiplied on it. What is held is kept until the stream is dropped, or longer.
///
/// # Errors
/// Where the device cannot be opened or does not compute.
pub fn opened(device: Device) -> Result<Stream, String> {
    let stream = Stream::open(device)
        .ok_or_else(|| format!("{} could not be opened: see above", device.name()))?;
    multiply(device, &stream)?;
    Ok(stream)
}

/// Multiplies two small matrices, which are stored as those are that backends have no kernels of their own for.
fn multiply(device: Device, stream: &Stream) -> Result<(), String> {
    // SAFETY: a context of its own with room for its tensors and a graph; tensors are allocated in the device's memory
    // before they are used, and buffer and context are freed after the last use.
    unsafe {
        let size = 8 * ffi::ggml_tensor_overhead() + ffi::ggml_graph_overhead();
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: size,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        });
        if context.is_null() {
            return Err("ggml made no context".to_owned());
        }
        let weights = ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_F16, 256, 256);
        let rows = ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_F32, 256, 128);
        let product = ffi::ggml_mul_mat(context, weights, rows);
        let graph = ffi::ggml_new_graph(context);
        ffi::ggml_build_forward_expand(graph, product);
        let buffer = ffi::ggml_backend_alloc_ctx_tensors(context, stream.raw());
        let done = if buffer.is_null() {
            Err(format!("{} has no memory left", device.name()))
        } else {
            ffi::ggml_backend_buffer_clear(buffer, 0);
            match ffi::ggml_backend_graph_compute(stream.raw(), graph) {
                ffi::GGML_STATUS_SUCCESS => Ok(()),
                code => Err(format!("{} does not compute: status {code}", device.name())),
            }
        };
        ffi::ggml_backend_buffer_free(buffer);
        ffi::ggml_free(context);
        done
    }
}
