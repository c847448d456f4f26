//! The answers to the questions of llama.cpp and of ggml's scheduler (`ggml-pipeshard/include/ggml-pipeshard.h`).
//!
//! Imports go one way, from the bottom of this table to its top, and parts do not know each other:
//!
//! | | file | |
//! |---|---|---|
//! | leaves | [`config`] | what was asked for |
//! | | [`log`] | messages |
//! | | [`gate`] | who may do what when |
//! | | [`pass_error`], [`pool_estimate`], [`helpers`] | why a pass fails; what operations take from pools; threads |
//! | | [`stopping`] | passes that end early |
//! | | [`graph`] | a graph that is about to be split |
//! | parts | [`weights`] | models in host memory |
//! | | [`accounts`] | a device's memory, and who holds how much of it |
//! | | [`residency`] | what of the models is on the device |
//! | | [`planning`] | what should be there |
//! | | [`schedulers`] | ggml's schedulers |
//! | | [`tower`], [`encoders`] | weights of encoders of images and sound; encoders |
//! | | [`telemetry`] | what happened |
//! | | [`tenant`] | weights, residency and planner of models that share a plan |
//! | answers | [`answers`] | to each question, over the parts |
//! | runtime | [`runtime`] | the parts, put together |
//! | top | [`publish`] | the report |
//! | | [`control`] | what the host of the process asks for while it runs: the budget |
//! | | [`table`] | the C callbacks: guard, panic boundary, nothing else |
//! | | [`attach`] | the runtime of the process: the handshake with llama.cpp, and the end |
//! | | [`library`] | what ggml's loader finds in libpipeshard.so |

pub mod accounts;
pub mod answers;
pub mod attach;
pub mod config;
pub mod control;
pub mod encoders;
pub mod gate;
#[cfg(test)]
mod gate_tests;
pub mod graph;
mod helpers;
pub mod library;
pub mod log;
pub mod pass_error;
pub mod planning;
pub mod pool_estimate;
pub mod publish;
pub mod refusal;
pub mod residency;
pub mod runtime;
pub mod schedulers;
pub mod sharing;
pub mod stopping;
mod sync;
pub mod table;
pub mod telemetry;
pub mod tenant;
#[cfg(test)]
mod test_card;
pub mod tower;
pub mod visits;
pub mod weights;
