//! The answers to llama.cpp's and the scheduler's questions: free functions over the parts, thin enough to read together with
//! the table.
//!
//! | file | when |
//! |---|---|
//! | [`loading`] | models come and go |
//! | [`budget`] | the budget changes |
//! | [`context`] | contexts come and go: KV, compute buffers, retries |
//! | [`encoder`] | encoders of images and sound come and go, and compute |
//! | [`encode`] | one that takes turns with the language model computes |
//! | [`refused`] | what is said where an encoder has no room |
//! | [`search`] | a context is decided about |
//! | [`graph`] | a graph is about to be split |
//! | [`pass`] | a graph is computed |
//! | [`shape`] | the arena takes another shape |
//! | [`keeping`] | decisions are kept, or those that were kept are taken |
//! | [`observing`] | what passes took is written down |
//!
//! What may only run while no pass is being submitted, or while nothing refers to the arena, takes the proof of it
//! ([`super::gate`]). Nobody here locks anything.

pub mod budget;
pub mod context;
pub mod encode;
pub mod encoder;
pub mod graph;
pub mod keeping;
pub mod loading;
pub mod observing;
pub mod pass;
#[cfg(test)]
mod pass_tests;
pub mod refused;
pub mod search;
pub mod shape;
#[cfg(test)]
mod shape_tests;
