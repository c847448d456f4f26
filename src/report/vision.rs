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
    /// Time from the first split of each graph until its result was read, in microseconds.
    pub encode_us: u64,
    /// The most device memory that was held while something was encoded, in bytes: of the language model, too.
    pub phase_peak: u64,
    /// Graphs that were split once more when there was memory for them: the first time showed how much they need.
    pub split_twice: u64,
    /// Attentions within windows that were computed side by side, without a mask.
    pub attentions_batched: u64,
    /// Windows of all these.
    pub windows_batched: u64,
    /// Pieces of rows that feed-forward networks were computed in, where that was more than one.
    pub pieces: u64,
    /// Blocks of queries that attention was computed in, where it is not fused.
    pub blocks: u64,
    /// Graphs that were computed without their mask of windows.
    pub masks_skipped: u64,
    /// Graphs that have windows and were computed with their mask.
    pub masks_kept: u64,
    /// Why, with the number of graphs, those that were only measured included.
    pub declined: BTreeMap<String, u64>,
    /// Weights copied to the device for encodes, in bytes.
    pub bytes_streamed: u64,
    /// Small weights copied there when an encoder was given memory, in bytes.
    pub bytes_uploaded: u64,
    /// Those of both that went through the staging ring, for they were not page-locked.
    pub staged_bytes: u64,
    /// Copies that operations had to wait for because they were not submitted ahead.
    pub stalls: u64,
    /// Bytes of the language model's residents that made way.
    pub bytes_evicted: u64,
    /// Bytes that were copied to the device when it took its memory back.
    pub bytes_restored: u64,
    /// Times that the language model gave way to an encoder, or took its memory back.
    pub phase_changes: u64,
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
    /// It takes turns with the language model: its weights are in host memory, and what it has on the device is there while
    /// something is encoded, and after that while nothing else needs the room.
    pub in_turn: bool,
    /// Bytes of its weights.
    pub weights: u64,
    /// Those of them that stay on the device while something is encoded: small ones.
    pub resident: u64,
    /// Those that are copied there for each encode, unless they are still there.
    pub streamed: u64,
    /// The largest ring that they went through, in bytes.
    pub ring: u64,
    /// The most that its compute buffers took there, in bytes.
    pub scratch_peak: u64,
}

impl VisionReport {
    /// In a line.
    pub fn sentence(&self) -> String {
        let each = self.encoders.iter().map(|encoder| {
            let place = match encoder.in_turn {
                true => " in host memory",
                false => "",
            };
            format!(
                "{} ({}): weights {}{place}, scratch {}",
                encoder.projector,
                encoder.kind,
                ByteSize(encoder.weights),
                ByteSize(encoder.scratch_peak)
            )
        });
        let mut text = each.collect::<Vec<_>>().join("; ");
        text += &format!("; {} encoded", self.encodes);
        if self.encode_us > 0 {
            text += &format!(" in {:.3} s", self.encode_us as f64 / 1e6);
        }
        if self.masks_skipped > 0 {
            text += &format!(", {} of them in windows without a mask", self.masks_skipped);
        }
        if self.bytes_streamed > 0 {
            text += &format!(", {} streamed", ByteSize(self.bytes_streamed));
        }
        if self.phase_changes > 0 {
            let evicted = ByteSize(self.bytes_evicted);
            text += &format!(", {evicted} of residents made way");
        }
        text
    }
}
