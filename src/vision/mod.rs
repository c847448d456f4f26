//! Encoders of images and sound: what a file says of them, and rewrites of their graphs that take less memory and give the same
//! results. Knows no device's state and no plan: [`crate::hook`] says when.
//!
//! | file | |
//! |---|---|
//! | [`header`] | what a projector file (`--mmproj`) holds, and what its encoders are expected to take |
//! | [`windows`] | in which windows an image is attended to, as llama.cpp orders its patches |
//! | [`attention`] | a rewrite: windows attended to side by side, without the mask that keeps them apart |

pub mod attention;
pub mod header;
pub mod windows;
