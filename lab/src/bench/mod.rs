//! `pipeshard-lab grids`: pipeshard and what stock llama.cpp can do with the same memory, measured in turn on one machine.
//!
//! | module | |
//! |---|---|
//! | [`types`] | what is measured, and what a measurement says |
//! | [`models`] | which models, as they are named on the command line |
//! | [`grid`], [`job`] | which of them, budgets, prompts and ubatches, and in what order; one step of it |
//! | [`sweep`] | the further grids: contexts, batches, placements |
//! | [`search`], [`way`], [`place`] | where stock llama.cpp may be told to put weights, at a budget |
//! | [`command`] | the command line of `llama-bench` for each of them |
//! | [`memory`] | the device's memory, sampled while a process runs |
//! | [`link`] | the bare context and the speed of the link, in a process of its own |
//! | [`estimate`], [`clock`] | how long things should take, and what to skip when time runs out |
//! | [`store`] | results in a file, so that a run can be taken up again |
//! | [`settings`], [`setup`] | how to run; models and the machine |
//! | [`runner`], [`jobs`], [`rounds`], [`measure`] | all of it in turn |
//! | [`placements`], [`predictions`] | how good the plan's choice was, and what it predicted |
//! | [`analysis`], [`targets`], [`verdicts`] | ratios, bounds, what was to be reached and whether it was |
//! | [`table`], [`export`], [`plot`] | for people, for programs, as pictures |
//!
//! The rule that everything else serves: both sides get the same bytes of device memory by the driver's count, less what a
//! process takes that only opens the device, and a baseline that took more is thrown out.

pub mod analysis;
pub mod clock;
pub mod command;
pub mod estimate;
pub mod export;
pub mod grid;
pub mod job;
pub mod jobs;
pub mod link;
pub mod measure;
pub mod models;
pub mod place;
pub mod placements;
pub mod plot;
pub mod predictions;

pub mod repeats;
pub mod rounds;
pub mod runner;
pub mod search;
pub mod settings;
pub mod setup;
pub mod store;
pub mod sweep;
pub mod table;
pub mod targets;
pub mod types;
pub mod verdicts;
pub mod way;

/// A mebibyte.
pub const MIB: u64 = 1 << 20;
