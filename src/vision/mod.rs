//! Encoders of images and sound: what a file says of them, and rewrites of their graphs that take less memory and give the same
//! results. Knows no device's state and no plan: [`crate::hook`] says when.
//!
//! | file | |
//! |---|---|
//! | [`header`] | what a projector file (`--mmproj`) holds |
//! | `shape` | an encoder's shape: rows of an image, compute buffers, operations |
//! | [`images`] | to which size images are scaled, and how many tokens they become |
//! | [`limits`] | to which size images are scaled that keep their shape |
//! | [`projectors`] | what llama.cpp knows of a projector type: sizes of images, patches of a token |
//! | [`stages`] | how much memory a graph holds at once |
//! | [`windows`] | in which windows an image is attended to, as llama.cpp orders its patches |
//! | [`order`] | a rewrite: keys, values and queries one after the other |
//! | [`attention`] | a rewrite: windows attended to side by side, without the mask that keeps them apart |
//! | [`blocks`] | a rewrite: attention that is not fused, in blocks of queries |
//! | [`rows`] | a rewrite: feed-forward networks in pieces of rows |

pub mod attention;
pub mod blocks;
pub mod header;
pub mod images;
mod limits;
pub mod order;
pub mod projectors;
pub mod rows;
mod shape;
pub mod stages;
pub mod windows;

use crate::rewrite::Tensor;
use pipeshard_sys as ffi;

/// Who computes.
#[derive(Debug, Clone, Copy)]
pub struct Backends {
    /// The scheduler that is about to split the graph.
    pub sched: ffi::ggml_backend_sched_t,
    /// Its backend on the device.
    pub device: ffi::ggml_backend_t,
    /// Its backend on the CPU.
    pub cpu: ffi::ggml_backend_t,
}

/// Whether a node computes nothing, and only looks at another's memory.
unsafe fn is_view(node: Tensor) -> bool {
    matches!(
        (*node).op,
        ffi::GGML_OP_VIEW | ffi::GGML_OP_RESHAPE | ffi::GGML_OP_PERMUTE | ffi::GGML_OP_TRANSPOSE
    )
}
