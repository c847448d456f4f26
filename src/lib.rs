//! pipeshard: llama.cpp models inside a VRAM budget that the user states, with the same answers.
//!
//! This crate is the plug-in, `libpipeshard.so`. [`hook`] answers the questions that llama.cpp asks on the way; a plan
//! (`pipeshard-plan`) says what lives where, [`arena`] and [`lanes`] put it there: device memory, and when things are copied into
//! it. [`profile`] knows what this machine does per second, which [`measure`] finds out;
//! [`plan_cache`] keeps plans, so that the same command has the same one. [`report`] says what happened, [`trace`]
//! when. [`vision`] knows encoders of images and sound; [`share`] which processes have a total of memory together; [`rewrite`] is what changes of graphs have in common.

pub mod arena;
mod files;
pub mod hook;
pub mod lanes;
pub mod measure;
pub mod plan_cache;
pub mod profile;
pub mod report;
pub mod rewrite;
pub mod share;
pub mod trace;
pub mod vision;
