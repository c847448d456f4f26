//! Why a model of random weights cannot be made.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use pipeshard_model::size::ByteSize;

/// What is wrong with the specification or the place to write to.
#[derive(Debug, Error)]
pub enum SynthError {
    /// No shape has that name.
    #[error("there is no shape '{name}'. `pipeshard-lab synth --list` shows the shapes.")]
    UnknownShape {
        /// What was asked for.
        name: String,
    },
    /// A type specification that cannot be read.
    #[error(
        "'{text}' names no type: {reason}. Give one type for all weights (q4_0), one for some of them \
         (attention=f16), or both (q4_0,attention=f16). Types: {}; mixes: q4_K_M, q5_K_M. Weights: {}.",
        super::WRITABLE.join(", "),
        super::TypeMix::KEYS.join(", ")
    )]
    UnknownType {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Numbers that do not make a model.
    #[error("no model can have this shape: {reason}.")]
    Shape {
        /// What does not fit.
        reason: String,
    },
    /// The output exists and may not be replaced.
    #[error("{} exists already and was left as it is. Give another name, or --force to replace it.", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The disk has no room for the model.
    #[error(
        "there is no room for the model in {}: it takes {}, and {} are free. \
         Nothing was written. Free some space, choose another folder, or use fewer layers (--layers).",
        path.display(), ByteSize(*needed), ByteSize(*free)
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that the model takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The system refused.
    #[error("cannot write the model to {}: {source}. Nothing is left behind.", path.display())]
    Io {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
