//! Encoders of images and sound in a report.

use pipeshard_model::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What encoders of images and sound held and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionReport {
    /// Those that computed on the device.
    pub encoders: Vec<EncoderReport>,
    /// Graphs that ran: one for each image, slice, pair of frames or piece of sound.
    pub encodes: u64,
    /// Rows of activations (patches of images) in all of them.
    pub rows: u64,
    /// Attentions within windows that were computed side by side, without a mask.
    pub attentions_batched: u64,
    /// Windows of all these.
    pub windows_batched: u64,
    /// Pieces of rows that feed-forward networks were computed in, where that was more than one.
    pub pieces: u64,
    /// Graphs whose mask was neither filled nor copied.
    pub masks_skipped: u64,
    /// Graphs that have windows and were computed with their mask.
    pub masks_kept: u64,
    /// Why, with the number of graphs, those that were only measured included.
    pub declined: BTreeMap<String, u64>,
}

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncoderReport {
    /// The file that it was loaded from.
    pub file: String,
    /// What it takes in: `images`, `sound`, or `spoken sound` for what makes sound.
    pub kind: String,
    /// llama.cpp's name for what it is.
    pub projector: String,
    /// Bytes of its weights on the device.
    pub weights: u64,
    /// The most that its compute buffers took there, in bytes.
    pub scratch_peak: u64,
}

impl VisionReport {
    /// In a line.
    pub fn sentence(&self) -> String {
        let each = self.encoders.iter().map(|encoder| {
            format!(
                "{} ({}): weights {}, scratch {}",
                encoder.projector,
                encoder.kind,
                ByteSize(encoder.weights),
                ByteSize(encoder.scratch_peak)
            )
        });
        let mut text = each.collect::<Vec<_>>().join("; ");
        text += &format!("; {} encoded", self.encodes);
        if self.masks_skipped > 0 {
            text += &format!(", {} of them in windows without a mask", self.masks_skipped);
        }
        text
    }
}
