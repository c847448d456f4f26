//! Bindings to the patched llama.cpp that this build made: ggml, its backends, gguf, llama and the pipeshard hook.
//!
//! Generated from the headers; names are those of C, enumerators are plain constants. Functions of `ggml-cpu.h` are
//! declared too, but live in a module that ggml loads at run time: reach them with `ggml_backend_reg_get_proc_address`.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// What the headers of this build say that they belong to: llama.cpp's commit, and a hash of all that is laid over it.
pub const BUILD_ID: &str = env!("PIPESHARD_BUILD_ID");

/// llama.cpp's commit.
pub const LLAMA_COMMIT: &str = env!("PIPESHARD_LLAMA_COMMIT");
