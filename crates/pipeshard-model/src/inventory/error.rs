//! Why a model's inventory cannot be taken.

use thiserror::Error;

/// A loaded model lacks metadata without which nothing can be planned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the loaded model does not say its {key}; pipeshard cannot plan for it and stays off. \
     Load a GGUF that llama.cpp's own converter made."
)]
pub struct MissingKey {
    /// The metadata key.
    pub key: String,
}
