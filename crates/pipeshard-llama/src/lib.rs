//! llama.cpp's C API in safe wrappers: the part that the tool's own commands use.
//!
//! The wrappers own what they free and keep C's pointers to themselves. [`start`] comes first: backends, and with them
//! libpipeshard and a simulated GPU, are loaded as the process's environment says.

mod adapters;
mod batch;
mod context;
mod error;
mod fingerprint;
mod library;
mod model;
mod sampling;
mod session;

pub use adapters::Lora;
pub use batch::Batch;
pub use context::{Context, ContextOptions, FlashAttention, Stop};
pub use error::LlamaError;
pub use fingerprint::Fingerprint;
pub use library::Library;
pub use model::{LoadMode, Model, ModelOptions, Progress, Side};
pub use sampling::Sampler;

use pipeshard_sys as ffi;
use std::ffi::{c_char, c_void, CStr};

unsafe extern "C" fn quiet(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == ffi::GGML_LOG_LEVEL_ERROR || level == ffi::GGML_LOG_LEVEL_WARN {
        eprint!("{}", CStr::from_ptr(text).to_string_lossy());
    }
}

/// Loads backends and starts llama.cpp; without `verbose` only warnings and errors are shown.
pub fn start(verbose: bool) {
    // SAFETY: no preconditions; the callback is a plain function.
    unsafe {
        if !verbose {
            ffi::llama_log_set(Some(quiet), std::ptr::null_mut());
        }
        ffi::ggml_backend_load_all();
        ffi::llama_backend_init();
    }
}

/// Tokens that look like nothing in particular, the same for the same seed.
pub fn random_tokens(seed: u64, count: u32, vocabulary: i32) -> Vec<i32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % vocabulary.max(1) as u64) as i32
        })
        .collect()
}

/// The index of the largest value; of the last one, if there are several.
pub fn largest(values: &[f32]) -> i32 {
    let largest = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.map_or(0, |(i, _)| i as i32)
}
