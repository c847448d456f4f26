//! Why nothing could be measured.

use pipeshard_model::size::ByteSize;

/// Why nothing could be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Less device memory than measuring needs.
    #[error("measuring needs {} of device memory, and {} may be used; allow more, or give a profile (--profile FILE)", ByteSize(*.needed), ByteSize(*.limit))]
    LimitTooSmall {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that may be held.
        limit: u64,
    },
    /// The device refuses memory.
    #[error("{device} has no {} of memory left to measure with; free some, or give a profile (--profile FILE)", ByteSize(*.bytes))]
    DeviceMemory {
        /// The device.
        device: String,
        /// Bytes that it refused.
        bytes: u64,
    },
    /// The host has no memory.
    #[error("the host has no {} of memory left to measure with", ByteSize(*.0))]
    HostMemory(u64),
    /// A backend does not start.
    #[error("{0} could not be opened to measure it: its backend says why")]
    NotOpened(String),
    /// There is no CPU backend.
    #[error("ggml's CPU backend is not loaded, so the CPU cannot be measured")]
    NoCpu,
    /// ggml has no memory to describe a graph.
    #[error("ggml has no memory for a graph of {0} tensors")]
    NoContext(usize),
    /// A tensor does not fit where it was meant to be.
    #[error("a tensor of {} does not fit into the {} that are left for it", ByteSize(*.bytes), ByteSize(*.room))]
    NoRoom {
        /// What it needs.
        bytes: u64,
        /// What there is.
        room: u64,
    },
    /// A graph was not computed.
    #[error("{device} failed to compute while it was measured (ggml's status {status})")]
    Compute {
        /// The device.
        device: String,
        /// ggml's status.
        status: i32,
    },
}
