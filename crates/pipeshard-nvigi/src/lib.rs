//! nvigi.plugin.gpt.ggml.pipeshard.so: the library for programs (crates/pipeshard-capi), behind the functions that hosts of NVIDIA's
//! In-Game Inferencing SDK call. docs/nvigi.md says what is supported.
//!
//! | | file | |
//! |---|---|---|
//! | their words | [`abi`] | structs, ids and codes |
//! | | [`chain`] | structs of hosts, whose versions may be older or newer |
//! | ours | [`refusal`] | codes, the log, the latest error |
//! | the plug-in | [`plugin`] | the one exported function: information, Register, Deregister |
//! | models | [`models`] | folders and cards |
//! | | [`capabilities`] | what a host is told before it creates anything |
//! | instances | [`creation`] | parameters of a new instance |
//! | | [`shared`] | the one device of the process, and its budget |
//! | | [`host_files`], [`cuda`] | files, GPU memory and a CUDA context of the host |
//! | | [`instance`] | instances, and whose turn it is |
//! | | [`face`] | what the host holds of it |
//! | evaluations | [`inputs`] | slots and parameters of one |
//! | | [`images`], [`request`] | slots `image` and `json` |
//! | | [`evaluation`] | evaluate, evaluateAsync, cancel |
//! | | [`poll`], [`polled`] | getResults, releaseResults |
//! | | [`outputs`] | texts for the host |
//! | more | [`state`] | session state |
//! | | [`control`] | `IPipeshard`: the budget while the host runs |
//!
//! The modules of the library are compiled in as they are; its functions are called as a program in C would call them.

mod abi;
mod capabilities;
mod chain;
mod control;
mod creation;
mod cuda;
mod evaluation;
mod face;
mod host_files;
mod images;
mod inputs;
mod instance;
mod models;
mod outputs;
mod plugin;
mod poll;
mod polled;
mod refusal;
mod request;
mod shared;
mod state;

// A part of it is not called from here.
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/boundary.rs"]
mod boundary;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/chat.rs"]
mod chat;
#[path = "../../pipeshard-capi/src/cuda_context.rs"]
mod cuda_context;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/device.rs"]
mod device;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/failure.rs"]
mod failure;
#[path = "../../pipeshard-capi/src/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/handles.rs"]
mod handles;
#[path = "../../pipeshard-capi/src/host_memory.rs"]
mod host_memory;
#[path = "../../pipeshard-capi/src/ladder.rs"]
mod ladder;
#[path = "../../pipeshard-capi/src/locks.rs"]
mod locks;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/media.rs"]
mod media;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/orders.rs"]
mod orders;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/predict.rs"]
mod predict;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/process.rs"]
mod process;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/session/mod.rs"]
mod session;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/threads.rs"]
mod threads;
#[allow(dead_code)]
#[path = "../../pipeshard-capi/src/types.rs"]
mod types;
#[path = "../../pipeshard-capi/src/words.rs"]
mod words;
