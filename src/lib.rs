//! pipeshard: llama.cpp models inside a VRAM budget that the user states, with the same answers.
//!
//! Data goes one way: [`inventory`] (what the model consists of) → [`plan`] (what lives where, who computes it) →
//! [`arena`] and [`lanes`] (device memory, and when things are copied into it). [`hook`] answers the questions that
//! llama.cpp asks on the way; [`sim`] is a GPU to try all of it on; [`report`] says what happened,
//! [`trace`] when.

pub mod arena;
pub mod bench;
pub mod cli;
pub mod cost;
pub mod ffi;
pub mod hook;
pub mod inventory;
pub mod lanes;
pub mod llama;
pub mod matrix;
pub mod plan;
pub mod profile;
pub mod report;
pub mod sim;
pub mod size;
mod sync;
pub mod synth;
pub mod trace;
