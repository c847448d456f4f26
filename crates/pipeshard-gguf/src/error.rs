//! Why a model's inventory cannot be taken from its file.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What is wrong with a model file.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// The file cannot be opened or read.
    #[error("cannot read the model {}: {source}. Check the path and that you may read it.", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a folder, a device or a pipe.
    #[error("{} is not a file. Give the path of a GGUF model.", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("the model {} is empty: a download or a copy did not finish. Fetch it again.", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a GGUF model: {found}. Convert the model to GGUF, or check the path.", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// The file ends too early.
    #[error(
        "the model {} is cut short: {what} needs a file of at least {expected} bytes, and it has {actual}. \
         A download or a copy did not finish. Fetch it again.",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The first part that is not whole.
        what: String,
        /// Bytes that the file should have, at least.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// The file is a GGUF by its first bytes, and then is not.
    #[error("the model {} is damaged: {reason}. Fetch or convert it again.", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is a GGUF but no language model with layers.
    #[error(
        "{} is not a language model that can be planned: {reason}. \
         Give the language model itself, not its vision projector, adapter or vocabulary.",
        path.display()
    )]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// One piece of a split model is missing or out of place.
    #[error(
        "the model {} is in {count} pieces and {reason}. \
         Give the first piece (…-00001-of-{count:05}.gguf) with all others in the same folder.",
        path.display()
    )]
    Split {
        /// The piece that was given.
        path: PathBuf,
        /// Number of pieces.
        count: u64,
        /// What is wrong.
        reason: String,
    },
}
