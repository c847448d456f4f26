//! The answers to the scheduler's questions (`ggml-pipeshard/include/ggml-pipeshard.h`).
//!
//! | file | answers |
//! |---|---|
//! | [`library`] | what ggml's loader finds in libpipeshard.so, and the handshake |
//! | [`table`] | the C callbacks: panic boundary, nothing else |
//! | [`runtime`] | what is known: models, schedulers, plan, arena, and its upkeep |
//! | [`models`] | weights that come and go |
//! | [`admission`] | KV placement, compute buffers, the budget |
//! | [`choosing`] | the search for a plan, before a context is made |
//! | [`panics`] | what becomes of a panic in a callback |
//! | [`turns`] | who may change the arena's shape, and when |
//! | [`placement`] | a graph about to be split: who computes what, from which copy of the weights |
//! | [`pass`] | a pass: copies ahead of their use, waits, counts |
//! | [`traced`] | the same steps, with notes for a trace |
//! | [`divide`] | a token's experts divided between the device and the CPU |
//! | [`fetching`] | what a pass has to do for these: memory, copies, waits |
//! | [`routing`] | which experts a batch has chosen |
//! | [`pools`] | what the device's backend takes on its own account |
//! | [`outcome`] | the report |
//! | [`saved`] | a saved plan that is followed |
//! | [`rewrite`] | graph rewrites |
//! | [`lookup`] | embeddings looked up by several threads |
//! | [`helpers`] | these threads |

pub mod admission;
pub mod calibrating;
mod choosing;
pub mod config;
mod divide;
mod fetching;
mod helpers;
mod learning;
pub mod library;
pub mod log;
mod lookup;
pub mod models;
pub mod outcome;
pub mod panics;
pub mod pass;
pub mod placement;
mod planning;
pub mod pools;
pub mod rewrite;
pub mod routing;
pub mod runtime;
pub mod saved;
pub mod table;
pub mod traced;
pub mod turns;
