//! A tensor to be written, and how its values are distributed.

use crate::synth::spec::FIXED_TOKENS;
use pipeshard_model::inventory::DType;

/// How the values of a tensor are distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::synth) enum Values {
    /// Normal around 0, with some rows nearly 0.
    Normal { std: f32, quiet: Quiet },
    /// Normal around a mean; f32 only.
    Around { mean: f32, std: f32 },
}

/// Rows of the vocabulary that must not be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::synth) enum Quiet {
    /// No rows.
    None,
    /// Rows of an output head: special tokens, and bytes that are not printable ASCII. Generation then neither ends by
    /// chance nor yields text that is no UTF-8.
    Output,
    /// The same for a token embedding that doubles as output head: the begin token keeps its row, because a prompt
    /// may consist of it alone.
    Tied,
}

impl Quiet {
    /// The deviation of quiet rows, as a fraction of that of the others.
    pub(in crate::synth) const FACTOR: f32 = 1.0 / 1024.0;

    /// Rows from here on are never quiet.
    pub(in crate::synth) const END: u64 = FIXED_TOKENS as u64;

    /// Whether a row is quiet.
    pub(in crate::synth) fn covers(self, row: u64) -> bool {
        match (self, row) {
            (Quiet::None, _) => false,
            (Quiet::Tied, 1) => false,
            (_, 0..=2) => true,
            (_, row) => match u8::try_from(row - 3) {
                Ok(b'\n' | b' '..=b'~') => false,
                Ok(_) => true,
                Err(_) => false,
            },
        }
    }
}

/// One tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::synth) struct TensorPlan {
    pub name: String,
    /// Elements per dimension, without trailing ones.
    pub shape: Vec<u64>,
    pub dtype: &'static DType,
    pub values: Values,
    /// Bytes of the data.
    pub bytes: u64,
}
