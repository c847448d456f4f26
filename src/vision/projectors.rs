//! What llama.cpp's multimodal library knows of a projector type and no file says: how large images are, and how many patches become a
//! token. From `clip.cpp` (`load_hparams`) of the llama.cpp that is built.

/// What the largest graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Most {
    /// An image as it is, of so many tokens at most.
    Tokens(u64),
    /// The same, unless the file has a limit of its own.
    TokensOrFile(u64),
    /// An image as it is, up to the limit that the file has.
    File,
    /// An image whose longer side has as many pixels as the file says.
    LongestEdge,
    /// An image, or a part of it, that is scaled to the square that the encoder was made for.
    Square,
    /// Several such squares: as many as give no more than so many tokens.
    Squares(u64),
    /// The overview and all parts of an image.
    Parts,
    /// Parts that are somewhat larger than the square.
    Slices,
    /// Parts of so many pixels along a side.
    Tile(u64),
}

/// What is known of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Patches along a side of what becomes a token, where the file does not say.
    pub merge: u64,
    /// What the largest graph is for.
    pub most: Most,
    /// Whether `--image-max-tokens` is obeyed.
    pub limited: bool,
    /// Tokens of the smallest image, where the file does not say.
    pub least: u64,
}

/// Tokens that `llama-mtmd-cli` and `llama-server` encode in one graph at most, where a type allows several parts in one.
const BATCH_TOKENS: u64 = 1024;

/// Whether images of such a type are scaled to the nearest multiples of a token's pixels within limits
/// (`mtmd_image_preprocessor_dyn_size`).
pub fn is_scaled_within(projector: &str) -> bool {
    matches!(
        projector,
        "qwen2vl_merger"
            | "qwen2.5vl_merger"
            | "qwen2.5o"
            | "qwen3vl_merger"
            | "ling3vl"
            | "glm4v"
            | "minimax_m3"
            | "pixtral"
            | "kimivl"
            | "kimik25"
            | "gemma4v"
            | "gemma4uv"
            | "mimovl"
            | "exaone4_5"
            | "dots_ocr"
            | "dots3note_v"
            | "paddleocr"
            | "hunyuanvl"
            | "phi4"
    )
}

/// Whether each image of such a type is scaled to one square.
pub fn is_one_square(projector: &str) -> bool {
    matches!(
        projector,
        "gemma3" | "janus_pro" | "cogvlm" | "nemotron_v2_vl"
    )
}

/// What is known of a type, by llama.cpp's name for it.
pub fn facts(projector: &str) -> Facts {
    let any = |merge, most| Facts {
        merge,
        most,
        limited: true,
        least: 8,
    };
    let fixed = |merge, most| Facts {
        merge,
        most,
        limited: false,
        least: 8,
    };
    match projector {
        "qwen2vl_merger" | "qwen2.5vl_merger" | "qwen2.5o" | "qwen3vl_merger" | "ling3vl" => {
            any(2, Most::TokensOrFile(4096))
        }
        "muse-glimmer" | "glm4v" => any(2, Most::Tokens(4096)),
        "kimivl" => any(2, Most::Tokens(1024)),
        "pixtral" => any(1, Most::Tokens(1024)),
        "minimax_m3" => any(2, Most::Tokens(576)),
        "youtuvl" => any(2, Most::Tokens(62_500)),
        "gemma4v" => Facts {
            least: 70,
            ..any(3, Most::Tokens(1120))
        },
        // its patches are as large as a token
        "gemma4uv" => Facts {
            least: 70,
            ..any(1, Most::Tokens(1120))
        },
        "deepseek4v" => any(3, Most::File),
        "glm5v" => any(2, Most::File),
        "lightonocr" => any(1, Most::LongestEdge),
        "kimik25" => Facts {
            least: 2,
            ..fixed(2, Most::TokensOrFile(4096))
        },
        "hunyuanvl" => Facts {
            least: 256,
            ..fixed(2, Most::TokensOrFile(16_384))
        },
        "mimovl" | "exaone4_5" | "dots_ocr" | "dots3note_v" | "paddleocr" => fixed(2, Most::File),
        "phi4" => fixed(1, Most::File),
        "internvl" => fixed(2, Most::Squares(BATCH_TOKENS)),
        "deepseekocr" | "deepseekocr2" => fixed(1, Most::Squares(BATCH_TOKENS)),
        "granite4_vision" => fixed(1, Most::Parts),
        "resampler" => fixed(1, Most::Slices),
        "minicpmv4_6" => fixed(4, Most::Slices),
        "lfm2" | "d1omni_v" => fixed(2, Most::Tile(512)),
        "gemma3" | "step3vl" => fixed(4, Most::Square),
        "idefics3" | "nemotron_v2_vl" | "llama4" | "cohere2v" => fixed(2, Most::Square),
        _ => fixed(1, Most::Square),
    }
}

impl Most {
    /// Whether images keep their shape, so that the number of rows follows from it.
    pub fn follows_image(self) -> bool {
        matches!(
            self,
            Most::Tokens(_) | Most::TokensOrFile(_) | Most::File | Most::LongestEdge
        )
    }
}

/// Limits of images that keep their shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Both sides are multiples of this number of pixels.
    pub align: u64,
    /// Pixels of the smallest image.
    pub least: u64,
    /// Pixels of the largest image.
    pub most: u64,
}

/// The multiple of `align` that is nearest to `pixels`, in the precision of llama.cpp.
fn multiple(pixels: f32, align: u64, towards: fn(f32) -> f32) -> u64 {
    let parts = towards(pixels / align as f32);
    // what is negative or no number becomes zero
    parts as u64 * align
}

impl Limits {
    /// The size to which an image of `width` by `height` pixels is scaled: of about its shape, within the limits.
    pub fn scaled(&self, width: u64, height: u64) -> (u64, u64) {
        let (w, h) = (width as f32, height as f32);
        let nearest = |side| multiple(side, self.align, f32::round).max(self.align);
        let (wide, high) = (nearest(w), nearest(h));
        let area = wide.saturating_mul(high);
        if area > self.most {
            let by = (h * w / self.most as f32).sqrt();
            let smaller = |side: f32| multiple(side / by, self.align, f32::floor).max(self.align);
            (smaller(w), smaller(h))
        } else if area < self.least {
            let by = (self.least as f32 / (h * w)).sqrt();
            let larger = |side: f32| multiple(side * by, self.align, f32::ceil);
            (larger(w), larger(h))
        } else {
            (wide, high)
        }
    }
}
