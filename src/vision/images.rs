//! To which size llama.cpp scales an image before it is encoded, and how many tokens it becomes: as `mtmd-image.cpp` and
//! `clip_n_output_tokens` of the llama.cpp that is built. Types that cut images into parts are left out.

use super::header::EncoderShape;

/// An image as an encoder is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scaled {
    /// Pixels.
    pub width: u64,
    /// Pixels.
    pub height: u64,
    /// Rows of activations.
    pub rows: u64,
    /// Tokens that the language model sees, without those of text around them.
    pub tokens: u64,
}

impl EncoderShape {
    /// How an image of these pixels is encoded where the user's limit on tokens is `limit` (0: none). None for a type that cuts images
    /// into parts, or scales them in a way of its own.
    pub fn scaled(&self, (width, height): (u64, u64), limit: u64) -> Option<Scaled> {
        if width == 0 || height == 0 {
            return None;
        }
        let merged = self.rows_per_token.max(1);
        if let Some(square) = self.square() {
            let rows = square * square / self.patch_pixels();
            let tokens = match self.projector.as_str() {
                // tokens around it
                "cogvlm" => rows + 2,
                _ => rows / merged,
            };
            return Some(Scaled {
                width: square,
                height: square,
                rows: rows + self.class,
                tokens,
            });
        }
        let (width, height) = self.limits(limit)?.scaled(width, height);
        let rows = width * height / self.patch_pixels();
        let breaks = match self.has_breaks() {
            // one behind each row but the last
            true => (height / self.align()).saturating_sub(1),
            false => 0,
        };
        Some(Scaled {
            width,
            height,
            rows,
            tokens: rows / merged + breaks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::{qwen, with_tensors};

    #[test]
    fn images_are_scaled_as_llama_cpp_does() {
        // what llama-mtmd-cli gave the encoder of Qwen2.5-VL
        for (image, scaled, tokens) in [
            ((56, 56), (84, 84), 9),
            ((40, 60), (84, 112), 12),
            ((392, 280), (392, 280), 140),
            ((320, 960), (308, 952), 374),
            ((1932, 1092), (1932, 1092), 2691),
            ((2560, 1440), (2380, 1344), 4080),
        ] {
            let found = qwen().scaled(image, 0).expect("a size");
            assert_eq!((found.width, found.height), scaled, "{image:?}");
            assert_eq!((found.tokens, found.rows), (tokens, 4 * tokens));
        }
        let limited = qwen().scaled((2560, 1440), 1000).expect("a size");
        assert!(
            limited.tokens <= 1000 && limited.tokens > 900,
            "{limited:?}"
        );
        assert_eq!(qwen().scaled((0, 10), 0), None);
    }

    #[test]
    fn a_token_ends_each_row_but_the_last() {
        let pixtral = with_tensors("pixtral", 16, 1024, &["v.token_embd.img_break"]);
        let found = pixtral.scaled((64, 48), 0).expect("a size");
        assert_eq!((found.rows, found.tokens), (12, 14));
    }

    #[test]
    fn the_class_of_a_square_is_a_row_and_tokens_stand_around_it() {
        let cogvlm = with_tensors("cogvlm", 14, 490, &["v.class_embd"]);
        let found = cogvlm.scaled((1000, 300), 0).expect("a size");
        assert_eq!((found.width, found.height), (490, 490));
        assert_eq!((found.rows, found.tokens), (1226, 1227));
    }
}
