//! Which buffers hold tensors, and page-locking them.

use crate::arena::unit::LoadedUnit;
use crate::hook::config::Config;
use crate::hook::log;
use crate::lanes::device::{Device, Memory};
use crate::lanes::host_memory::LockedMemory;
use pipeshard_sys as ffi;

/// The buffers that hold any of these tensors, each once.
unsafe fn buffers_of(tensors: &[*mut ffi::ggml_tensor]) -> Vec<ffi::ggml_backend_buffer_t> {
    let mut buffers: Vec<ffi::ggml_backend_buffer_t> = Vec::new();
    for &tensor in tensors {
        let buffer = (*tensor).buffer;
        if !buffer.is_null() && !buffers.contains(&buffer) {
            buffers.push(buffer);
        }
    }
    buffers
}

/// Bytes of the device's buffers that hold any of these tensors, each rounded up: the user's tensor overrides put them there.
///
/// # Safety
/// The tensors are valid.
pub unsafe fn device_bytes_of(tensors: &[*mut ffi::ggml_tensor], granularity: u64) -> u64 {
    let buffers = buffers_of(tensors).into_iter();
    let on_device = buffers.filter(|&buffer| !ffi::ggml_backend_buffer_is_host(buffer));
    let sizes = on_device.map(|buffer| ffi::ggml_backend_buffer_get_size(buffer) as u64);
    sizes.map(|size| size.next_multiple_of(granularity)).sum()
}

/// Page-locks the buffers that hold these tensors, and notes in the units whether they are. Answers besides why some are not.
///
/// # Safety
/// The tensors are valid, and stay so while the locked memory is kept.
pub unsafe fn page_lock(
    device: Device,
    config: &Config,
    tensors: &[*mut ffi::ggml_tensor],
    units: &mut [LoadedUnit],
) -> (LockedMemory, Option<String>) {
    let mut locked = match config.debug.lock_step {
        Some(step) => LockedMemory::with_step(step as usize),
        None => LockedMemory::default(),
    };
    let pinned_type = device.pinned_memory();
    if !config.no_page_lock {
        for buffer in buffers_of(tensors) {
            let already = Some(Memory::of(buffer)) == pinned_type;
            if ffi::ggml_backend_buffer_is_host(buffer) && !already {
                let base = ffi::ggml_backend_buffer_get_base(buffer).cast::<u8>();
                locked.lock(device, base, ffi::ggml_backend_buffer_get_size(buffer));
            }
        }
    }
    for unit in units {
        let buffer = (*unit.source()).buffer;
        let made_pinned = Some(Memory::of(buffer)) == pinned_type;
        let pinned = made_pinned || locked.covers(unit.host(), unit.bytes());
        unit.set_pinned(pinned, locked.seams(unit.host(), unit.bytes()));
    }
    let refused = match config.no_page_lock {
        true => Some("page-locking is switched off".to_string()),
        false => locked.refused().map(str::to_string),
    };
    if let Some(why) = &refused {
        log::warn(&format!(
            "{why}; what is streamed goes through a small staging ring instead, which is slower"
        ));
    }
    (locked, refused)
}
