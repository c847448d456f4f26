//! What a projector file (`--mmproj`) says of its encoders, and what they are expected to take of a device: before llama.cpp loads
//! them, so that the plan of the language model leaves them room.

use super::rows;
use pipeshard_gguf::{GgufFile, InventoryError};
use pipeshard_model::inventory::{KeyValues, LoadedTensor};
use std::path::Path;

/// Rows that are planned for where the user has set no limit: 4,096 tokens of four patches, which is the limit of most models. Some
/// have none to speak of.
const MOST_ROWS: u64 = 4 * 4096;
/// Tokens of the image that llama.cpp reserves compute buffers for when it loads such an encoder.
const WARM_UP_TOKENS: u64 = 46 * 46;
/// Rows of 30 seconds of sound ahead of the first convolution.
const SOUND_ROWS: u64 = 3000;
/// Pixels along a side of a window, where the file does not say.
const WINDOW: u64 = 112;

/// What an encoder takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Images, and frames of videos.
    Images,
    /// Sound.
    Sound,
    /// It makes sound, a frame for each token.
    SpokenSound,
}

impl Kind {
    /// By what llama.cpp has the names of its tensors begin with.
    pub fn of_prefix(prefix: &str) -> Kind {
        match prefix {
            "v" => Kind::Images,
            "a" => Kind::Sound,
            _ => Kind::SpokenSound,
        }
    }

    /// As messages and the report call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Images => "images",
            Kind::Sound => "sound",
            Kind::SpokenSound => "spoken sound",
        }
    }
}

/// Windows that patches attend to, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windowed {
    /// Along a side of a patch.
    pub patch: u32,
    /// Along a side of a window.
    pub window: u32,
}

/// An encoder's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderShape {
    /// What it takes in.
    pub kind: Kind,
    /// llama.cpp's name for what it is.
    pub projector: String,
    /// Windows that a rewrite can attend to side by side, if it has such.
    pub windowed: Option<Windowed>,
    /// Rows of activations that become a token.
    pub rows_per_token: u64,
    /// Values in a row.
    width: u64,
    /// Values in a row between the products of a feed-forward network.
    inner: u64,
    /// Pixels along a side of a patch.
    patch: u64,
    /// Rows of the largest image, where there is no limit of the user's.
    most_rows: u64,
    /// The number of rows follows from the image, and so from a limit on its tokens.
    follows_image: bool,
}

/// What a projector file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderFile {
    /// Bytes of all tensors. Some may not be loaded.
    pub weights: u64,
    /// The tensors, in the file's order.
    pub tensors: Vec<LoadedTensor>,
    /// Its encoders.
    pub encoders: Vec<EncoderShape>,
}

impl EncoderFile {
    /// Reads a file's header.
    ///
    /// # Errors
    /// [`InventoryError`] where it is missing, damaged or no GGUF file.
    pub fn read(path: &Path) -> Result<Self, InventoryError> {
        let file = GgufFile::open(path)?;
        Ok(EncoderFile {
            weights: file.tensors().map(|tensor| tensor.nbytes).sum(),
            tensors: file.tensors().collect(),
            encoders: encoders(&file),
        })
    }

    /// Bytes of the tensors of an encoder of this kind, by their names; those of another kind may be among them.
    pub fn weights_of(&self, kind: Kind) -> u64 {
        let speaks = |tensor: &&LoadedTensor| tensor.name.starts_with("a.gen");
        let spoken = self.tensors.iter().filter(speaks);
        let spoken = spoken.map(|tensor| tensor.nbytes).sum();
        match kind {
            // who names them otherwise
            Kind::SpokenSound if spoken > 0 => spoken,
            Kind::SpokenSound => self.weights,
            Kind::Images | Kind::Sound => self.weights - spoken,
        }
    }

    /// Its encoder of a kind.
    pub fn encoder(&self, kind: Kind) -> Option<&EncoderShape> {
        self.encoders.iter().find(|encoder| encoder.kind == kind)
    }
}

/// The encoders that a file's metadata announces.
fn encoders(keys: &dyn KeyValues) -> Vec<EncoderShape> {
    let all = [
        (Kind::Images, "clip.has_vision_encoder", "clip.vision"),
        (Kind::Sound, "clip.has_audio_encoder", "clip.audio"),
        (
            Kind::SpokenSound,
            "clip.has_gen_audio_encoder",
            "clip.gen.audio",
        ),
    ];
    let there = all
        .iter()
        .filter(|(_, flag, _)| keys.number(flag) == Some(1));
    there
        .map(|(kind, _, base)| shape(keys, *kind, base))
        .collect()
}

fn shape(keys: &dyn KeyValues, kind: Kind, base: &str) -> EncoderShape {
    // what is larger is no number of anything, and sums of these do not overflow
    let number = |name: &str| Some(keys.number(&format!("{base}.{name}"))?.min(1 << 30));
    let projector = keys.string(&format!("{base}.projector_type"));
    let projector = projector.or_else(|| keys.string("clip.projector_type"));
    let projector = projector.unwrap_or_default();
    let patch = number("patch_size").unwrap_or(14).clamp(1, 1 << 12);
    let image = number("image_size").unwrap_or(0);
    let merged = number("spatial_merge_size").unwrap_or(2).clamp(1, 64);
    // a square that is scaled to the size that the encoder was made for, and its class
    let fixed = (image / patch) * (image / patch) + 1;
    let most = number("image_max_pixels").map(|pixels| pixels / patch / patch);
    let follows_image = kind == Kind::Images && (most.is_some() || is_any_size(&projector));
    let most_rows = match (kind, follows_image) {
        (Kind::Images, true) => most.unwrap_or(MOST_ROWS),
        (Kind::Images, false) => fixed,
        (Kind::Sound, _) => SOUND_ROWS,
        (Kind::SpokenSound, _) => 64,
    };
    EncoderShape {
        windowed: windowed(keys, base, &projector, patch).filter(|_| kind == Kind::Images),
        kind,
        projector,
        rows_per_token: merged * merged,
        width: number("embedding_length").unwrap_or(0),
        inner: number("feed_forward_length").unwrap_or(0),
        patch,
        most_rows: most_rows.min(MOST_ROWS),
        follows_image,
    }
}

/// Whether such an encoder takes images as they are, of any size up to a limit.
fn is_any_size(projector: &str) -> bool {
    matches!(
        projector,
        "qwen2vl_merger"
            | "qwen2.5vl_merger"
            | "qwen2.5o"
            | "qwen3vl_merger"
            | "ling3vl"
            | "exaone4_5"
            | "youtuvl"
            | "mimovl"
            | "muse-glimmer"
            | "minimax_m3"
            | "glm4v"
            | "glm5v"
            | "dots_ocr"
            | "dots3note_v"
            | "paddleocr"
            | "pixtral"
            | "lightonocr"
            | "kimivl"
            | "kimik25"
            | "hunyuanvl"
            | "deepseek4v"
            | "cohere2v"
    )
}

fn windowed(keys: &dyn KeyValues, base: &str, projector: &str, patch: u64) -> Option<Windowed> {
    let has_windows = match projector {
        "qwen2.5vl_merger" | "qwen2.5o" | "exaone4_5" => {
            keys.number(&format!("{base}.n_wa_pattern"))? > 0
        }
        "youtuvl" => keys.numbers(&format!("{base}.wa_layer_indexes")).is_some(),
        _ => false,
    };
    let window = keys.number(&format!("{base}.window_size"));
    let window = window.filter(|&window| window > 0).unwrap_or(WINDOW);
    has_windows.then_some(Windowed {
        patch: u32::try_from(patch).ok()?,
        window: u32::try_from(window).ok()?,
    })
}

impl EncoderShape {
    /// Whether a limit on an image's tokens makes its graphs smaller.
    pub fn follows_image(&self) -> bool {
        self.follows_image
    }

    /// Rows of the largest image. `limit`: the user's, on an image's tokens; none where it is 0.
    pub fn rows(&self, limit: u64) -> u64 {
        match (self.follows_image, limit) {
            (true, 1..) => limit.saturating_mul(self.rows_per_token),
            _ => self.most_rows,
        }
    }

    /// Rows of the image that llama.cpp reserves compute buffers for while it loads the encoder.
    pub fn rows_at_load(&self, limit: u64) -> u64 {
        let warm_up = WARM_UP_TOKENS * self.rows_per_token;
        self.rows(limit).min(warm_up)
    }

    /// Bytes that compute buffers for so many rows are expected to take, with fused attention. Most of it are queries, keys and values, or
    /// the three tensors of a piece of a feed-forward network, or of few layers the patches and what a convolution makes of them.
    pub fn scratch(&self, rows: u64) -> u64 {
        const FLOAT: u64 = 4;
        let pieces = rows::count(i64::try_from(rows).unwrap_or(i64::MAX)) as u64;
        let network = (5 * self.width / 2).saturating_add(3 * self.inner / pieces);
        let layer = network.max(11 * self.width / 2);
        let pixels = 3 * self.patch * self.patch;
        let patches = (4 * self.width).saturating_add(pixels);
        rows.saturating_mul(FLOAT)
            .saturating_mul(layer.max(patches))
    }

    /// Bytes that a real device's backend is expected to take for so many rows on its own account: activations and results of the
    /// widest product, converted.
    pub fn pool(&self, rows: u64) -> u64 {
        let widest = self.width.saturating_add(self.inner);
        rows.saturating_mul(2).saturating_mul(widest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const MIB: u64 = 1 << 20;

    fn keys(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        list.iter().map(owned).collect()
    }

    /// Qwen2.5-VL-7B's.
    const QWEN: &[(&str, &str)] = &[
        ("clip.has_vision_encoder", "true"),
        ("clip.projector_type", "qwen2.5vl_merger"),
        ("clip.vision.patch_size", "14"),
        ("clip.vision.image_size", "560"),
        ("clip.vision.embedding_length", "1280"),
        ("clip.vision.feed_forward_length", "3420"),
        ("clip.vision.n_wa_pattern", "8"),
    ];

    #[test]
    fn the_scratch_of_a_large_image_is_foreseen() {
        let qwen = &encoders(&keys(QWEN))[0];
        let windows = Windowed {
            patch: 14,
            window: 112,
        };
        assert_eq!(qwen.windowed, Some(windows));
        // 4,080 tokens take 435 MiB where windows need no mask and networks are computed in pieces
        let scratch = qwen.scratch(4 * 4080);
        assert!((400 * MIB..480 * MIB).contains(&scratch), "{scratch}");
        assert_eq!(qwen.rows(0), 4 * 4096);
        assert_eq!((qwen.rows(1000), qwen.rows_at_load(1000)), (4000, 4000));
        assert_eq!(qwen.rows_at_load(0), 4 * 2116);
    }

    #[test]
    fn a_square_stays_one_whatever_the_limit() {
        let siglip = keys(&[
            ("clip.has_vision_encoder", "true"),
            ("clip.projector_type", "gemma3"),
            ("clip.vision.patch_size", "14"),
            ("clip.vision.image_size", "896"),
        ]);
        let siglip = &encoders(&siglip)[0];
        assert_eq!((siglip.rows(0), siglip.rows(100)), (4097, 4097));
        assert!(!siglip.follows_image() && siglip.windowed.is_none());
    }

    #[test]
    fn images_and_sound_may_share_a_file() {
        let mut both = keys(QWEN);
        both.remove("clip.projector_type");
        both.extend(keys(&[
            ("clip.has_audio_encoder", "true"),
            ("clip.vision.projector_type", "qwen2.5o"),
            ("clip.audio.projector_type", "qwen2a"),
        ]));
        let both = encoders(&both);
        let projectors: Vec<&str> = both.iter().map(|e| e.projector.as_str()).collect();
        assert_eq!(projectors, ["qwen2.5o", "qwen2a"]);
        assert!(both[0].windowed.is_some() && both[1].windowed.is_none());
    }

    #[test]
    fn numbers_that_make_no_sense_overflow_nothing() {
        let mut odd = keys(QWEN);
        for key in [
            "patch_size",
            "image_size",
            "embedding_length",
            "feed_forward_length",
        ] {
            odd.insert(format!("clip.vision.{key}"), (u64::MAX / 8).to_string());
        }
        let odd = &encoders(&odd)[0];
        let _ = (
            odd.scratch(u64::MAX),
            odd.pool(u64::MAX),
            odd.rows(u64::MAX),
        );
    }
}
