//! The link between host and device: how fast weights can cross it at best, from which memory.
//!
//! This runs in a process of its own (`pipeshard-lab grids --probe-device`), which opens the device and its matrix library and
//! nothing else. What the driver counts for it at that moment is the *bare context*.

use std::ffi::{c_void, CStr};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::MIB;
use pipeshard::lanes::copy::COPY_BYTES;
use pipeshard::lanes::device::{Buffer, Device, Stream};
use pipeshard::lanes::host_memory::LockedMemory;
use pipeshard::lanes::matrix_library;
use pipeshard::measure::{page_locked, Copies, SharedPages};
use pipeshard_sys as ffi;

/// Bytes of one copy, as streaming weights has them.
const CHUNK: u64 = COPY_BYTES as u64;
/// Bytes that each figure is measured over.
const SPAN: u64 = 256 * MIB;
/// How often; the best counts.
const REPEATS: u32 = 6;

/// The first thing that the process says: the device is open, and the driver may be asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// What the device calls itself.
    pub device: String,
    /// Its memory that is free now, in bytes.
    pub free: u64,
    /// All of it, in bytes.
    pub total: u64,
}

/// Bandwidths in bytes per second; 0 for what the device does not offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkSpeed {
    /// Host to device, from page-locked memory that the driver allocated.
    pub pinned: f64,
    /// Host to device, from a mapped file that was page-locked in place.
    pub registered: f64,
    /// Page-locking of a mapped file in place.
    pub register: f64,
    /// Host to device, from ordinary memory.
    pub pageable: f64,
    /// Device to host, into page-locked memory.
    pub back: f64,
}

/// The part of the process that measures: prints [`Opened`] and [`LinkSpeed`] as lines of JSON.
///
/// `file` is mapped as llama.cpp maps a model.
///
/// # Errors
/// Where there is no GPU, or it cannot be opened.
pub fn probe(simulated: Option<&str>, file: Option<&Path>) -> Result<(), String> {
    // ggml-cuda page-locks in place only where this is set
    std::env::set_var("GGML_CUDA_REGISTER_HOST", "1");
    if let Some(spec) = simulated {
        std::env::set_var("LLAMA_ARG_PIPESHARD_SIM", spec);
    }
    // SAFETY: no preconditions.
    unsafe {
        ffi::llama_log_set(Some(quiet), std::ptr::null_mut());
        ffi::ggml_backend_load_all();
    }
    let device = Device::first_gpu().ok_or(
        "ggml knows no GPU here: put the backend's library beside the tools, or give --sim vram=1G",
    )?;
    let stream = matrix_library::opened(device)?;
    let (free, total) = device.memory();
    tell(&Opened {
        device: device.description(),
        free,
        total,
    })?;
    // so that the driver's figure can be sampled
    std::thread::sleep(std::time::Duration::from_millis(250));
    tell(&measure(device, stream, file))
}

unsafe extern "C" fn quiet(
    level: ffi::ggml_log_level,
    text: *const std::ffi::c_char,
    _: *mut c_void,
) {
    if level == ffi::GGML_LOG_LEVEL_ERROR {
        // SAFETY: ggml passes NUL-terminated texts.
        eprint!("{}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
}

fn tell(value: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string(value).map_err(|e| e.to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| e.to_string())
}

fn measure(device: Device, stream: Stream, file: Option<&Path>) -> LinkSpeed {
    let mut speed = LinkSpeed::default();
    let Some(target) = Buffer::allocate(device.memory_type(), CHUNK) else {
        return speed;
    };
    let Ok(copies) = Copies::new(stream, (&target, 0), CHUNK) else {
        return speed;
    };
    if let Some(pinned) = page_locked(device, SPAN) {
        pinned.clear(1);
        // SAFETY: the buffer is host memory of that size.
        unsafe {
            speed.pinned = best_rate(&copies, pinned.base(), false);
            speed.back = best_rate(&copies, pinned.base(), true);
        }
    }
    let mut pageable = vec![1u8; SPAN as usize];
    // SAFETY: the vector has that size.
    speed.pageable = unsafe { best_rate(&copies, pageable.as_mut_ptr(), false) };
    drop(pageable);
    if let Some(mapped) = file.and_then(|path| SharedPages::of_file(path, SPAN)) {
        let mut locked = LockedMemory::default();
        let start = Instant::now();
        // SAFETY: the mapping outlives the lock, which is declared later and dropped first.
        let done = unsafe { locked.lock(device, mapped.base(), SPAN as usize) };
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        if done.is_ok() {
            speed.register = SPAN as f64 / seconds;
            // SAFETY: the mapping has that size, and copies to the device only read it.
            speed.registered = unsafe { best_rate(&copies, mapped.base(), false) };
        }
    }
    speed
}

/// Bytes per second of copies from `host`, the best of some repetitions.
///
/// # Safety
/// `host` has [`SPAN`] readable bytes; with `back` they are writable.
unsafe fn best_rate(copies: &Copies<'_>, host: *mut u8, back: bool) -> f64 {
    let once = || {
        let (moved, seconds) = copies.timed((host, SPAN), SPAN, back);
        moved as f64 / seconds
    };
    (0..REPEATS).map(|_| once()).fold(0.0, f64::max)
}
