//! What a timeline consists of.

use super::record::{HostWork, WaitReason};

/// One row of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// Passes as a whole.
    Passes,
    /// The copy lane.
    Copy,
    /// Experts that are fetched for single tokens.
    Fetch,
    /// A compute stream, by number.
    Compute(u8),
    /// Images and sound that are encoded.
    Encodes,
    /// Splits that the CPU computes.
    Cpu,
    /// The thread that drives the scheduler.
    Host,
}

/// What a slice is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A pass, from its begin on the host until the device was through with it.
    Pass {
        /// Most rows that an operation saw.
        rows: u32,
    },
    /// The copy of a streamed group.
    Copy {
        /// In the names' groups.
        group: u32,
        /// Weights, in bytes.
        bytes: u64,
        /// When it was submitted.
        submitted: u64,
    },
    /// Uploads of residents.
    Residents {
        /// Weights, in bytes.
        bytes: u64,
    },
    /// Experts for a single token on their way.
    Fetch {
        /// Weights, in bytes.
        bytes: u64,
    },
    /// Inputs of a split on their way, to the device or back.
    HandOver,
    /// A compute stream waits until groups are filled.
    WaitForCopies {
        /// Of this split.
        split: u32,
    },
    /// A split.
    Split {
        /// Its number in the graph.
        split: u32,
        /// Its first node, in the names' nodes.
        node: u32,
        /// How many nodes it has.
        nodes: u32,
        /// The copies that it read, as indices of slices.
        reads: Vec<usize>,
        /// Groups that it read whose copies are no longer in the records.
        reads_forgotten: u32,
    },
    /// The host waits for the device.
    HostWait(WaitReason),
    /// The host copies inputs of a split to the device and submits it.
    Inputs,
    /// The host submits a split.
    Submit,
    /// The host is busy in the runtime.
    Work(HostWork),
    /// An image, or a piece of sound, that is encoded.
    Encode {
        /// Rows of activations (patches of an image).
        rows: u64,
        /// Weights that were copied for it, in bytes.
        weights: u64,
        /// Compute buffers, in bytes.
        scratch: u64,
    },
    /// llama.cpp between two passes: results, sampling, other work of the program.
    Between,
    /// llama.cpp builds and allocates the graph of the next pass, or finds that it may use the last one again.
    Graph,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The row it is in.
    pub track: Track,
    /// Begin.
    pub start: u64,
    /// End.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
    /// The number of the pass it belongs to; what lies between two passes belongs to the later one.
    pub pass: u64,
}

impl Slice {
    /// Its length.
    pub fn duration(&self) -> u64 {
        self.end - self.start
    }
}
