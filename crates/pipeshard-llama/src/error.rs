//! What llama.cpp refuses.

use std::path::PathBuf;

/// Why a call into llama.cpp failed. llama.cpp's own message went to standard error.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// A model.
    #[error("{} could not be loaded (see above)", .0.display())]
    Model(PathBuf),
    /// A context.
    #[error("no context could be made (see above)")]
    Context,
    /// A batch.
    #[error("llama_decode of {tokens} tokens failed with {code} (see above)")]
    Decode {
        /// Tokens of the batch.
        tokens: i32,
        /// llama.cpp's return value.
        code: i32,
    },
    /// Logits or embeddings were asked for where there are none.
    #[error("llama.cpp gave no {0}")]
    Missing(&'static str),
    /// A result that is not a number.
    #[error("a {what} is {value}: weights or activations were read that were never written")]
    NotANumber {
        /// logit or embedding.
        what: &'static str,
        /// The value.
        value: f32,
    },
    /// An adapter, a session file or another part that a model or context did not take.
    #[error("{what} was refused by llama.cpp (see above)")]
    Refused {
        /// What it was.
        what: String,
    },
    /// A text with a zero byte.
    #[error("'{0}' holds a zero byte")]
    Text(String),
}
