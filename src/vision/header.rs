//! What a projector file (`--mmproj`) says of its encoders, and what they are expected to take of a device: before llama.cpp loads
//! them, so that the plan of the language model leaves them room.

use super::limits::Limits;
use super::projectors::{facts, is_one_square, is_scaled_within, Most};
use super::stages::{most_rows, Sizes, Stages};
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
/// Fewer tokens tell a model nothing of an image.
const FEW_TOKENS: u64 = 16;
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
    /// Tokens that a limit has to allow at least: less is refused, or tells a model nothing of an image.
    pub least_tokens: u64,
    /// Values in a row.
    width: u64,
    /// Values in a row between the products of a feed-forward network.
    inner: u64,
    /// Pixels along a side of a patch.
    patch: u64,
    /// Rows of the largest image, where there is no limit of the user's.
    most_rows: u64,
    /// The number of rows follows from the image.
    follows_image: bool,
    /// And so from a limit on its tokens.
    limited: bool,
    /// What is alive at once.
    stages: Stages,
    /// Pixels along a side of the square that it was made for.
    image: u64,
    /// Pixels of the smallest image and of the largest, where the file says so.
    pixels: (Option<u64>, Option<u64>),
    /// Rows for the class of an image, or registers.
    pub(super) class: u64,
    /// A token ends each row of an image.
    breaks: bool,
    /// What a pass computes.
    work: Work,
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
            encoders: encoders(&file, &file.tensors().collect::<Vec<_>>()),
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
fn encoders(keys: &dyn KeyValues, tensors: &[LoadedTensor]) -> Vec<EncoderShape> {
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
        .map(|(kind, _, base)| shape(keys, tensors, *kind, base))
        .collect()
}

fn shape(keys: &dyn KeyValues, tensors: &[LoadedTensor], kind: Kind, base: &str) -> EncoderShape {
    // what is larger is no number of anything, and sums of these do not overflow
    let number = |name: &str| Some(keys.number(&format!("{base}.{name}"))?.min(1 << 30));
    let projector = keys.string(&format!("{base}.projector_type"));
    let projector = projector.or_else(|| keys.string("clip.projector_type"));
    let projector = projector.unwrap_or_default();
    let facts = facts(&projector);
    let merge = number("spatial_merge_size").or_else(|| number("projector.scale_factor"));
    let mut sizes = Sizes {
        width: number("embedding_length").unwrap_or(0),
        inner: number("feed_forward_length").unwrap_or(0),
        heads: number("attention.head_count").unwrap_or(0),
        experts_used: number("expert_used_count").unwrap_or(0).min(1 << 10),
        patch: number("patch_size").unwrap_or(14).clamp(1, 1 << 12),
        merge: merge.unwrap_or(facts.merge).clamp(1, 64),
        mel: number("num_mel_bins").unwrap_or(128),
        sam: (
            number("sam.embedding_length").unwrap_or(0),
            number("sam.head_count").unwrap_or(0),
        ),
        block: number("chunk_size").unwrap_or(0).min(1 << 12),
    };
    let mut image = number("image_size").unwrap_or(0);
    match projector.as_str() {
        // one patch for each token
        "gemma4uv" => {
            sizes.patch *= number("projector.scale_factor").unwrap_or(3).clamp(1, 64);
            sizes.merge = 1;
        }
        // what looks at the image first
        "deepseekocr" | "deepseekocr2" => (sizes.patch, sizes.merge, image) = (16, 4, 1024),
        _ => {}
    }
    let longest = number("preproc_image_size").unwrap_or(image);
    let limit = (image, longest, number("image_max_pixels"));
    // a token for the class, or registers
    let class = tensors.iter().find(|tensor| tensor.name == "v.class_embd");
    let class = match projector.as_str() {
        // its tokens join behind what looks at the image first
        "deepseekocr" | "deepseekocr2" => 0,
        _ => class.map_or(0, |tensor| tensor.ne[1].clamp(1, 1024) as u64),
    };
    let follows_image = kind == Kind::Images && facts.most.follows_image();
    let most_rows = match kind {
        Kind::Images => {
            let parts = parts(keys, base, image);
            most_rows(facts.most, sizes, limit, (parts, class))
        }
        // eight pieces of a second in a graph
        Kind::Sound if projector == "qwen3a" => 800,
        Kind::Sound => SOUND_ROWS,
        Kind::SpokenSound => 64,
    };
    let prefix = match kind {
        Kind::Images => "v",
        Kind::Sound | Kind::SpokenSound => "a",
    };
    let of_kind = of_kind(tensors, kind);
    EncoderShape {
        windowed: windowed(keys, base, &projector, sizes.patch).filter(|_| kind == Kind::Images),
        stages: Stages::of(&projector, prefix, sizes, &of_kind),
        kind,
        projector,
        rows_per_token: sizes.merge * sizes.merge,
        least_tokens: {
            let of_token = sizes.patch * sizes.patch * sizes.merge * sizes.merge;
            let least = number("image_min_pixels").unwrap_or(0).div_ceil(of_token);
            least.max(facts.least).max(FEW_TOKENS)
        },
        width: sizes.width,
        inner: sizes.inner,
        patch: sizes.patch,
        most_rows: most_rows.min(MOST_ROWS),
        follows_image,
        limited: follows_image && facts.limited,
        image,
        pixels: (number("image_min_pixels"), number("image_max_pixels")),
        class: if follows_image { 0 } else { class },
        breaks: tensors.iter().any(|t| t.name == "v.token_embd.img_break"),
        work: work(&of_kind, &sizes, number("n_wa_pattern").unwrap_or(0)),
    }
}

/// What one pass computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Work {
    /// Products of each row with matrices, in operations.
    of_row: u64,
    /// Attention of a pair of rows in all layers, in operations.
    of_pair: u64,
    /// Layers, and of how many one looks at all rows where others look at a window only (0 or 1: all do).
    layers: u64,
    pattern: u64,
}

fn work(tensors: &[LoadedTensor], sizes: &Sizes, pattern: u64) -> Work {
    let elements = |tensor: &LoadedTensor| -> u64 {
        let of = tensor.ne.iter().map(|&n| u64::try_from(n).unwrap_or(0));
        of.fold(1, u64::saturating_mul)
    };
    let matrices = tensors.iter().filter(|tensor| tensor.ne[1] > 1);
    let of_row = matrices.map(|tensor| match tensor.name.starts_with("mm.") {
        // of tokens
        true => elements(tensor) / (sizes.merge * sizes.merge).max(1),
        // a table, of which rows are picked
        false if tensor.name.contains("position_embd") => 0,
        false => elements(tensor),
    });
    let of_row = of_row.fold(0, u64::saturating_add).saturating_mul(2);
    let is_layer = |tensor: &&LoadedTensor| tensor.name.ends_with("attn_out.weight");
    let layers = tensors.iter().filter(is_layer).count() as u64;
    Work {
        of_row,
        of_pair: 4 * sizes.width * layers,
        layers,
        pattern,
    }
}

/// The tensors of a file that belong to encoders of a kind, by their names.
fn of_kind(tensors: &[LoadedTensor], kind: Kind) -> Vec<LoadedTensor> {
    let is_sound = |name: &str| name.starts_with("a.") || name.starts_with("mm.a.");
    let wanted = |tensor: &&LoadedTensor| is_sound(&tensor.name) == (kind != Kind::Images);
    tensors.iter().filter(wanted).cloned().collect()
}

/// Parts that an image is divided into at most, and its overview, where the file lists sizes of what they are put together to.
fn parts(keys: &dyn KeyValues, base: &str, image: u64) -> u64 {
    let sizes = keys.numbers(&format!("{base}.image_grid_pinpoints"));
    let sizes = sizes.unwrap_or_default();
    let along = |pixels: u64| pixels.min(1 << 20) / image.max(1);
    let parts = sizes
        .chunks_exact(2)
        .map(|size| along(size[0]) * along(size[1]));
    parts.max().unwrap_or(4) + 1
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
    /// Whether images keep their shape, so that small ones take less.
    pub fn follows_image(&self) -> bool {
        self.follows_image
    }

    /// Whether a limit on an image's tokens makes its graphs smaller.
    pub fn is_limited(&self) -> bool {
        self.limited
    }

    /// Rows of the largest image. `limit`: the user's, on an image's tokens; none where it is 0.
    pub fn rows(&self, limit: u64) -> u64 {
        match (self.limited, limit) {
            (true, 1..) => limit.saturating_mul(self.rows_per_token),
            _ => self.most_rows,
        }
    }

    /// Rows of the image that llama.cpp reserves compute buffers for while it loads the encoder.
    pub fn rows_at_load(&self, limit: u64) -> u64 {
        let warm_up = WARM_UP_TOKENS * self.rows_per_token;
        self.rows(limit).min(warm_up)
    }

    /// Bytes that compute buffers take for an image, or a piece of sound, of so many rows and for smaller ones, with fused attention: at
    /// least what ggml's allocator takes, and little more. See [`super::stages`].
    pub fn scratch(&self, rows: u64) -> u64 {
        self.stages.bytes_up_to(rows)
    }

    /// The same for this number of rows alone.
    pub fn scratch_of(&self, rows: u64) -> u64 {
        self.stages.bytes(rows)
    }

    /// Tokens of the largest image whose compute buffers take no more than `room` bytes, and which a limit on tokens can ask for: no
    /// more than `most`. None where a limit is not obeyed, or nothing fits.
    pub fn tokens_within(&self, room: u64, most: u64) -> Option<u64> {
        let fits = |tokens: u64| self.scratch(tokens.saturating_mul(self.rows_per_token)) <= room;
        if !self.limited || !fits(1) {
            return None;
        }
        let (mut least, mut beyond) = (1, most.saturating_add(1).max(2));
        while beyond - least > 1 {
            let middle = least + (beyond - least) / 2;
            match fits(middle) {
                true => least = middle,
                false => beyond = middle,
            }
        }
        Some(least)
    }

    /// Floating-point operations of a pass over so many rows.
    pub fn operations(&self, rows: u64) -> f64 {
        let (rows, work) = (rows as f64, self.work);
        let seen = match (self.windowed, work.pattern) {
            (Some(windowed), 2..) => {
                let side = f64::from(windowed.window / windowed.patch.max(1));
                let all = 1.0 / work.pattern as f64;
                all * rows + (1.0 - all) * (side * side).min(rows)
            }
            _ => rows,
        };
        rows * (work.of_row as f64 + work.of_pair as f64 * seen)
    }

    /// Kernels of a pass over so many rows, about: what a layer consists of, and more where networks are computed in pieces.
    pub fn kernels(&self, rows: u64) -> u64 {
        let pieces = super::rows::count(i64::try_from(rows).unwrap_or(i64::MAX)) as u64;
        self.work.layers * (14 + 6 * pieces) + 8
    }

    /// The side of the square that each image is scaled to, if it is.
    pub(super) fn square(&self) -> Option<u64> {
        (self.kind == Kind::Images && is_one_square(&self.projector)).then_some(self.image)
    }

    pub(super) fn patch_pixels(&self) -> u64 {
        (self.patch * self.patch).max(1)
    }

    /// Pixels along a side of a token.
    pub(super) fn align(&self) -> u64 {
        self.patch * self.rows_per_token.isqrt()
    }

    pub(super) fn has_breaks(&self) -> bool {
        self.breaks
    }

    /// Limits of images that keep their shape; none where they are scaled in another way.
    pub(super) fn limits(&self, limit: u64) -> Option<Limits> {
        if self.kind != Kind::Images || !is_scaled_within(&self.projector) {
            return None;
        }
        let (facts, align) = (facts(&self.projector), self.align());
        let area = align * align;
        let of_file = |tokens: u64, pixels: Option<u64>| match facts.most {
            Most::Tokens(_) => tokens * area,
            _ => pixels.unwrap_or(tokens * area),
        };
        let most = match (facts.most, limit) {
            (_, 1..) if self.limited => limit.saturating_mul(area),
            (Most::Tokens(tokens) | Most::TokensOrFile(tokens), _) => {
                of_file(tokens, self.pixels.1)
            }
            _ => self.pixels.1?,
        };
        Some(Limits {
            align,
            least: of_file(facts.least, self.pixels.0),
            most,
        })
    }

    /// Rows of a graph that is given an image, or several of the same size, of these pixels.
    pub fn rows_of_pixels(&self, [width, height, _, count]: [i64; 4]) -> u64 {
        let patches = |pixels: i64| u64::try_from(pixels).unwrap_or(0) / self.patch.max(1);
        let each = patches(width) * patches(height) + self.class;
        each * u64::try_from(count).unwrap_or(0)
    }

    /// Bytes that a real device's backend is expected to take for so many rows on its own account: activations and results of the
    /// widest product, converted.
    pub fn pool(&self, rows: u64) -> u64 {
        let widest = self.width.saturating_add(self.inner);
        rows.saturating_mul(2).saturating_mul(widest)
    }
}

#[cfg(test)]
pub(crate) mod tests {
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

    /// The encoder of Qwen2.5-VL-7B.
    pub(crate) fn qwen() -> EncoderShape {
        encoders(&keys(QWEN), &[]).remove(0)
    }

    #[test]
    fn the_scratch_of_a_large_image_is_foreseen() {
        let qwen = qwen();
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
        let siglip = &encoders(&siglip, &[])[0];
        assert_eq!((siglip.rows(0), siglip.rows(100)), (4096, 4096));
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
        let both = encoders(&both, &[]);
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
        let odd = &encoders(&odd, &[])[0];
        let _ = (
            odd.scratch(u64::MAX),
            odd.pool(u64::MAX),
            odd.rows(u64::MAX),
        );
    }
}
