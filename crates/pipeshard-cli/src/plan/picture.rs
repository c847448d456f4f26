//! An image that is planned for, as values.

use std::str::FromStr;

use serde::Serialize;

use pipeshard::hook::tower::units::Placed;
use pipeshard_plan::cost::EncodeCost;

/// Pixels of an image, `1920x1080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pixels {
    /// From left to right.
    pub width: u64,
    /// From top to bottom.
    pub height: u64,
}

impl FromStr for Pixels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: u64 = 65_536;
        let side = |text: &str| {
            text.trim()
                .parse()
                .ok()
                .filter(|side| (1..=MOST).contains(side))
        };
        let sides = text.split_once(['x', 'X', '×']);
        let sides = sides.and_then(|(width, height)| side(width).zip(side(height)));
        let (width, height) = sides
            .ok_or("an image's size is written as WIDTHxHEIGHT in pixels, for example 1920x1080")?;
        Ok(Pixels { width, height })
    }
}

/// What an encoder takes, and how long.
#[derive(Debug, Clone, Serialize)]
pub struct ImageAnswer {
    /// The projector file.
    pub file: String,
    /// llama.cpp's name for what it is.
    pub projector: String,
    /// The image that was asked about; none for the largest that there may be.
    pub image: Option<Pixels>,
    /// Pixels that it is scaled to; none where it is cut into parts, or that is not known.
    pub scaled: Option<Pixels>,
    /// Patches of a graph.
    pub rows: u64,
    /// Tokens that the language model sees; none where the image is cut into parts.
    pub tokens: Option<u64>,
    /// Bytes of the file's weights.
    pub weights: u64,
    /// The CPU encodes, as with `--no-mmproj-offload`: all below is zero but for its time.
    pub on_cpu: bool,
    /// Where weights are while it is encoded.
    pub placed: Placed,
    /// Compute buffers, in bytes: at least what a run takes.
    pub scratch: u64,
    /// The most device memory that is held while it is encoded, in bytes.
    pub vision_peak: u64,
    /// The same while the language model computes.
    pub language_peak: u64,
    /// The larger of the two.
    pub peak: u64,
    /// The smallest budget in which this image is encoded on the device, in bytes.
    pub minimum_budget: u64,
    /// Seconds.
    pub encode: EncodeCost,
    /// Seconds to the first token of a prompt that contains it.
    pub ttft: f64,
    /// The same where the CPU encodes, by the plan at hand.
    pub ttft_on_cpu: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_images_are_two_numbers() {
        let size = |width, height| Ok(Pixels { width, height });
        assert_eq!("2560x1440".parse(), size(2560, 1440));
        assert_eq!("1X1".parse(), size(1, 1));
        for wrong in [
            "", "100", "100x", "0x10", "axb", "1x2x3", "70000x10", "-1x5",
        ] {
            let said = wrong.parse::<Pixels>().expect_err(wrong);
            assert!(said.contains("1920x1080"), "{said}");
        }
    }
}
