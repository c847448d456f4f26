//! Why a pass cannot go on.

use crate::lanes::fetch::NoSuchExpert;
use crate::lanes::mapped_file::Shrunk;
use crate::lanes::ring::RingError;

/// Why a pass cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The graph refers to device memory that has moved.
    #[error("the graph was split before the arena changed its shape; it has to be split again")]
    Stale,
    /// The ring cannot hold what a split needs.
    #[error("the ring cannot serve a split: {0:?}")]
    Ring(RingError),
    /// The device does nothing any more.
    #[error("{0}")]
    DeviceFailed(String),
    /// Weights that the graph reads are lost.
    #[error(transparent)]
    FileShrunk(Shrunk),
    /// An image's windows are not where its graph expects them.
    #[error(
        "the windows of an image are not in the order in which llama.cpp usually puts them, so its embeddings would be wrong: please report it, and use --no-mmproj-offload until then"
    )]
    OtherWindows,
    /// Nobody wants the result, or memory is wanted first: not a failure.
    #[error("the pass was ended early")]
    Stopped,
    /// A callback panicked before.
    #[error("nothing is computed after an internal error")]
    Broken,
    /// The router's choice is not where it should be.
    #[error("the router's choice of experts cannot be read back: its result has no memory")]
    NoChoice,
    /// The router's choice makes no sense.
    #[error(
        "the router chose expert {expert} of {experts}; the device's results cannot be trusted"
    )]
    NoSuchExpert {
        /// What was read back.
        expert: i32,
        /// How many there are.
        experts: u32,
    },
}

impl From<NoSuchExpert> for PassError {
    fn from(wrong: NoSuchExpert) -> Self {
        PassError::NoSuchExpert {
            expert: wrong.expert,
            experts: wrong.experts,
        }
    }
}
