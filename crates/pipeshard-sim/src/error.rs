//! Errors of specifications of a simulated GPU.

use pipeshard_model::size::{ByteSize, ParseSizeError};

/// All properties.
const KEYS: &str = "vram, pcie, pageable, flops, membw, launch, cpu, granularity, seed, delay, pin, context, failalloc, failevent, failcopy, lost, unpin, poison, compute, freewait";

/// An invalid specification of a simulated GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No capacity.
    #[error("the simulated GPU needs to know its memory: write for example vram=8G,pcie=25G")]
    NoVram,
    /// Not `key=value`.
    #[error(
        "'{0}' in the simulated GPU's specification is not of the form key=value, such as vram=8G"
    )]
    NoValue(String),
    /// A key that does not exist.
    #[error("'{0}' is not a property of a simulated GPU; known: {KEYS}")]
    UnknownKey(String),
    /// A key that was given before.
    #[error("'{0}' is given twice in the simulated GPU's specification; leave one out")]
    Twice(String),
    /// Not a size.
    #[error("{key} of the simulated GPU: {source}")]
    Size {
        /// The property.
        key: String,
        /// What is wrong with it.
        source: ParseSizeError,
    },
    /// Not a rate.
    #[error("{key} of the simulated GPU: invalid rate '{value}'; write a number above 0 per second with K, M, G or T (powers of 1000), such as 25G")]
    Rate {
        /// The property.
        key: String,
        /// What was typed.
        value: String,
    },
    /// Not a duration.
    #[error("{key} of the simulated GPU: invalid duration '{value}'; write a number with ns, us, ms or s, such as 200us")]
    Duration {
        /// The property.
        key: String,
        /// What was typed.
        value: String,
    },
    /// Not a whole number.
    #[error("{key} of the simulated GPU: '{value}' is not a whole number{}", if *.least > 0 { " above 0" } else { "" })]
    Number {
        /// The property.
        key: String,
        /// What was typed.
        value: String,
        /// The least that is allowed.
        least: u64,
    },
    /// Neither on nor off.
    #[error("{key} of the simulated GPU: '{value}' is neither on nor off{}", if .key == "pin" { ", nor a size such as 1G" } else { "" })]
    Switch {
        /// The property.
        key: String,
        /// What was typed.
        value: String,
    },
    /// More or less than can be simulated.
    #[error("{key}={value} of the simulated GPU is out of range: it must be {allowed}")]
    Range {
        /// The property.
        key: String,
        /// What was typed, as understood.
        value: ByteSize,
        /// What is possible.
        allowed: String,
    },
}
