//! libpipeshard.so.0: models inside a VRAM budget, for programs that are not llama.cpp's. The header, include/pipeshard.h, says what
//! functions do; the code here says how.
//!
//! | | file | |
//! |---|---|---|
//! | C | [`types`] | structs of the header |
//! | | [`failure`] | codes and errors |
//! | | [`boundary`] | calls, structs and texts on their way in and out; panics end here |
//! | | [`handles`] | what handles stand for |
//! | | [`words`] | what the tools' flags are called here |
//! | | [`locks`] | locks whose keeper panicked |
//! | process | [`process`] | the log, and the right to have a device |
//! | | [`threads`] | what is done where a thread starts or ends |
//! | the host's own | [`host_memory`] | allocators, and which streams there are |
//! | | [`cuda_context`] | the CUDA context that is current |
//! | what can be opened | [`device`] | a runtime that is attached, and its budget |
//! | | [`ladder`], [`orders`] | another budget, and what sessions do for it |
//! | | [`model`], [`chat`], [`media`] | a model, its chat template, its images and sound |
//! | | [`files`] | files that the host reads |
//! | | [`session`] | conversations and answers |
//! | before | [`predict`] | what a model would do within a budget, by its file's header |
//!
//! llama.cpp is linked in from archives, with its own copy of everything. Only functions marked `no_mangle` are visible outside.
//! crates/pipeshard-nvigi, the plug-in for NVIGI-shaped hosts, is made of the same files, where none of these functions is visible.
//! Locks are the standard library's: parking_lot's leave something behind in threads that have waited.

mod boundary;
mod chat;
mod cuda_context;
mod device;
mod failure;
mod files;
mod handles;
mod host_memory;
mod ladder;
mod locks;
mod media;
mod model;
mod orders;
mod predict;
mod process;
mod session;
mod threads;
mod types;
mod words;
