//! When things happen: the copy lane and its order with the compute lane.
//!
//! A second ggml backend on the same device is the copy lane. ggml events order it with the backend that computes; the host
//! waits for neither. [`hand_over`] takes results to the CPU and back; [`ring`] decides which copy of a weight comes next, [`copy`] submits it, [`host_memory`] makes the source of
//! the copies page-locked where the driver allows.

pub mod available_memory;
pub mod choice;
pub mod copy;
pub mod device;
pub mod driver_memory;
pub mod experts;
pub mod fetch;
pub mod file_mapping;
pub mod hand_over;
pub mod host_memory;
pub mod mapped_file;
pub mod matrix_library;
pub mod purpose;
pub mod ring;
pub mod run_ahead;
pub mod staging;
