//! What a projector file (`--mmproj`) says of its encoders, and what they are expected to take of a device: before llama.cpp loads
//! them, so that the plan of the language model leaves them room.

use super::projectors::facts;
pub use super::shape::{EncoderShape, Kind};
use super::shape::{Matrix, Work};
use super::stages::{most_rows, Sizes, Stages};
use super::windows::{Order, Windowed};
use pipeshard_gguf::{GgufFile, InventoryError};
use pipeshard_model::inventory::{DType, KeyValues, LoadedTensor};
use std::path::Path;

/// Rows that are planned for where the user has set no limit: 4,096 tokens of four patches, which is the limit of most models. Some
/// have none to speak of.
const MOST_ROWS: u64 = 4 * 4096;
/// Rows of 30 seconds of sound ahead of the first convolution.
const SOUND_ROWS: u64 = 3000;
/// Fewer tokens tell a model nothing of an image.
const FEW_TOKENS: u64 = 16;
/// Pixels along a side of a window, where the file does not say.
const WINDOW: u64 = 112;

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
    let pattern = match projector.as_str() {
        "muse-glimmer" => 4,
        _ => number("n_wa_pattern").unwrap_or(0),
    };
    EncoderShape {
        windowed: windowed(keys, base, (&projector, sizes.patch), tensors)
            .filter(|_| kind == Kind::Images),
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
        work: work(&of_kind, &sizes, pattern),
    }
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
    let mut shapes: Vec<Matrix> = Vec::new();
    for tensor in tensors {
        let flat = tensor.ne[1] > 1 && tensor.ne[2..] == [1, 1];
        let dtype = DType::from_id(tensor.ggml_type);
        let (true, Some(dtype), false) = (
            flat && tensor.name.ends_with(".weight"),
            dtype,
            tensor.name.contains("embd"),
        ) else {
            continue;
        };
        let positive = |n: i64| u64::try_from(n).unwrap_or(0);
        let found = Matrix {
            type_name: dtype.name,
            from_to: (positive(tensor.ne[0]), positive(tensor.ne[1])),
            merged: match tensor.name.starts_with("mm.") {
                true => (sizes.merge * sizes.merge).max(1),
                false => 1,
            },
            of_network: tensor.name.contains("ffn"),
            count: 0,
        };
        let same = |known: &&mut Matrix| {
            **known
                == Matrix {
                    count: known.count,
                    ..found.clone()
                }
        };
        match shapes.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => shapes.push(Matrix { count: 1, ..found }),
        }
    }
    let is_layer = |tensor: &&LoadedTensor| tensor.name.ends_with("attn_out.weight");
    let layers = tensors.iter().filter(is_layer).count() as u64;
    Work {
        matrices: shapes,
        heads: sizes.heads,
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

/// Windows that a rewrite can attend to side by side. Those of `minicpmv4_6` have four patches each: kernels form other sums then.
fn windowed(
    keys: &dyn KeyValues,
    base: &str,
    (projector, patch): (&str, u64),
    tensors: &[LoadedTensor],
) -> Option<Windowed> {
    if projector == "muse-glimmer" {
        // as many patches as its table of positions has along a side
        let positions = tensors
            .iter()
            .find(|tensor| tensor.name == "v.position_embd.weight")?;
        let along = u64::try_from(positions.ne[1]).ok()?.isqrt();
        return Some(Windowed {
            patch: u32::try_from(patch).ok()?,
            window: u32::try_from(along.checked_mul(patch)?).ok()?,
            order: Order::Single,
        });
    }
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
        order: Order::Merged,
    })
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

    /// One that has vectors of these names.
    pub(crate) fn with_tensors(
        projector: &str,
        patch: u32,
        image: u32,
        names: &[&str],
    ) -> EncoderShape {
        let mut list = keys(&[
            ("clip.has_vision_encoder", "true"),
            ("clip.projector_type", projector),
            ("clip.vision.embedding_length", "1024"),
        ]);
        for (key, value) in [("patch_size", patch), ("image_size", image)] {
            list.insert(format!("clip.vision.{key}"), value.to_string());
        }
        let tensors = names.iter().map(|&name| LoadedTensor {
            name: name.to_owned(),
            ggml_type: 0,
            ne: [1024, 1, 1, 1],
            nbytes: 4096,
        });
        encoders(&list, &tensors.collect::<Vec<_>>()).remove(0)
    }

    #[test]
    fn the_scratch_of_a_large_image_is_foreseen() {
        let qwen = qwen();
        let windows = Windowed {
            patch: 14,
            window: 112,
            order: Order::Merged,
        };
        assert_eq!(qwen.windowed, Some(windows));
        // 4,080 tokens take 355 MiB where windows need no mask, networks are computed in pieces, and keys, values and queries one
        // after the other
        let scratch = qwen.scratch(4 * 4080);
        assert!((355 * MIB..370 * MIB).contains(&scratch), "{scratch}");
        assert_eq!(qwen.rows(0), 4 * 4096);
        assert_eq!((qwen.rows(1000), qwen.rows_at_load(1000)), (4000, 4000));
        assert_eq!(qwen.rows_at_load(0), 4 * 2116);
        // what goes into the widest product and what comes out, in 16 bits
        assert_eq!(qwen.pool(100), 100 * 2 * (1280 + 3420));
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
