//! How much memory an encoder's graph holds at once, from its file: the stages that it goes through, and what is alive in each.
//!
//! Compute buffers are as large as the largest of them, for ggml's allocator gives what is no longer read to what comes next. With `w`
//! values in a row of the residual stream, `q`, `k` and `v` in rows of queries, keys and values, and `i` between the products of a
//! feed-forward network:
//!
//! | stage | alive at once, for each row |
//! |---|---|
//! | patches | three colours of a patch's pixels, the same as the convolution wants them, and what another convolution made of it |
//! | attention | the stream, its norm, keys in 32 and in 16 bits, values as well, or queries; more where one product makes all three |
//! | network | the stream, its norm, `i` or `3·i` with a gate: of all rows, or of a piece of them; and a gap |
//! | projector | what goes into its largest product, and what comes out |
//!
//! From the first layer on a mask of all pairs of rows may be alive as well, and features of layers that are asked for in the end.
//! Attention is fused: llama.cpp's default.

use super::projectors::Most;
use super::{order, rows};
use pipeshard_model::inventory::LoadedTensor;

/// Bytes of a value.
const FLOAT: u64 = 4;
/// Bytes of a value of 16 bits.
const HALF: u64 = 2;
/// Bytes of positions and of the order of windows for each row.
const POSITIONS: u64 = 24;
/// Bytes by which the few tensors that are alive at once are rounded up, and inputs of a few rows.
const SLACK: u64 = 16 * 1024;
/// ggml's number of the type that convolutions compute in 32 bits.
const BF16: u32 = 30;

/// The sizes that a file's metadata has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// Values in a row of the stream.
    pub width: u64,
    /// Values in a row between the products of a network.
    pub inner: u64,
    /// Heads of attention.
    pub heads: u64,
    /// Experts that a row uses; 0 where there are none.
    pub experts_used: u64,
    /// Pixels along a side of a patch.
    pub patch: u64,
    /// Patches along a side of what becomes a token.
    pub merge: u64,
    /// Frequencies of sound.
    pub mel: u64,
    /// Width and heads of a first encoder that looks at smaller patches.
    pub sam: (u64, u64),
    /// Moments of sound that look at each other; 0 where all do.
    pub block: u64,
}

/// What an encoder looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Patches of images.
    Patches,
    /// Sound through two convolutions along time, which leave half of the moments.
    Whisper,
    /// Sound through convolutions along time and frequency, the first of which has so many channels.
    Conformer { channels: u64 },
    /// Sound as it is: so many values at a time.
    Waveform { values: u64 },
    /// Patches, which a first encoder sees with a bias for each pair and head.
    Biased { width: u64, heads: u64, tile: u64 },
}

/// What is alive in an encoder's stages, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stages {
    source: Source,
    /// For each row.
    patches: u64,
    attention: u64,
    /// Of a network: for each row whether or not it is computed in pieces, and for each row of a piece.
    network: (u64, u64),
    /// It is computed in pieces.
    divided: bool,
    projector: u64,
    /// For each row from the first layers on until the end.
    kept: u64,
    /// For each pair of rows.
    mask: u64,
    /// Whatever the number of rows.
    fixed: u64,
    /// Frequencies of sound, heads, and width.
    mel: u64,
    heads: u64,
    width: u64,
}

/// Tensors of a file by their names.
struct Named<'t>(&'t [LoadedTensor]);

impl Named<'_> {
    fn get(&self, name: &str) -> Option<&LoadedTensor> {
        self.0.iter().find(|tensor| tensor.name == name)
    }

    /// Values that a product with these weights makes of a row.
    fn made(&self, name: &str) -> Option<u64> {
        self.get(name).map(|tensor| positive(tensor.ne[1]))
    }

    fn any(&self, is: impl Fn(&LoadedTensor) -> bool) -> bool {
        self.0.iter().any(is)
    }
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0).min(1 << 30)
}

impl Stages {
    /// Those of an encoder of a projector type; `prefix`: what the names of its tensors begin with, `v` or `a`.
    pub fn of(projector: &str, prefix: &str, sizes: Sizes, tensors: &[LoadedTensor]) -> Self {
        let named = Named(tensors);
        let Sizes { width, inner, .. } = sizes;
        let layer = |base: &str| named.made(&format!("{prefix}.blk.0.{base}.weight"));
        let has = |base: &str| layer(base).is_some();
        let inner = layer("ffn_up").unwrap_or(inner);
        let fused = layer("attn_qkv");
        let q = named.get(&format!("{prefix}.blk.0.attn_out.weight"));
        let q = q.map_or(width, |out| positive(out.ne[0]));
        let (k, v) = match fused {
            Some(all) => (all.saturating_sub(q) / 2, all.saturating_sub(q) / 2),
            None => (layer("attn_k").unwrap_or(q), layer("attn_v").unwrap_or(q)),
        };
        let narrow = (k + v) / 2;
        let pixels = 3 * sizes.patch * sizes.patch;
        let attention = match fused {
            // queries and keys are turned by their positions, or else keys and values become 16 bits wide at once
            Some(all) => width + all + q + k + k / 2,
            // blocks are not fused
            None if sizes.block > 0 || !order::pays(projector) => 2 * width + q + k + v + k / 2,
            // keys, then values, then queries: see [`super::order`]; and places too small for what comes next
            None => {
                let gap = match projector {
                    // between the pixels' place and that of patches in the order of windows
                    "qwen2.5vl_merger" | "qwen2.5o" | "exaone4_5" | "youtuvl" => pixels,
                    _ => 0,
                };
                let most = (2 * width + 2 * k)
                    .max(2 * width + narrow + v.max(q))
                    .max(width + narrow + 2 * q);
                most + (k / 2).max(if gap < width { gap } else { 0 })
            }
        };
        let attention = match projector {
            // features of other layers wait, and small transformers look at them
            "granite4_vision" => 8 * width,
            // windows of merged patches are put together
            "minicpmv4_6" => 4 * width + k / 2,
            _ => attention,
        };
        let gated = has("ffn_gate");
        let network = match sizes.experts_used {
            0 if gated => 3 * inner,
            0 => inner,
            // two products, and which experts with which weights
            used => 2 * used * layer("ffn_up_exps").unwrap_or(inner) + experts(&named) + 3 * used,
        };
        // scores of a block, before and after they are normalised, and those by distance
        let blocks = 3 * sizes.block * sizes.heads;
        let attention = attention + blocks;
        let divided = sizes.experts_used == 0
            && !matches!(
                projector,
                "gemma4v" | "granite4_vision" | "qwen3a" | "lfm2a" | "d1omni_a" | "gemma4a"
            );
        let (once, of_piece) = match (sizes.experts_used, projector) {
            // the place of what was normalised is too small for what comes next
            (0, _) => (2 * width, width + network),
            _ => (2 * width, network),
        };
        let masks = match projector {
            "mimovl" | "minicpmv4_6" => HALF,
            // two of all moments; a third, of half of them, comes when these are gone
            "mimo_audio" => 2 * HALF,
            _ => 0,
        };
        Stages {
            source: source(projector, &named, sizes),
            patches: patches(projector, &named, sizes),
            attention: attention * FLOAT + POSITIONS,
            network: (once * FLOAT + POSITIONS, of_piece * FLOAT),
            divided,
            projector: projector_of(projector, &named, sizes),
            kept: kept(&named, sizes) * FLOAT
                + match projector {
                    // the order of columns, there and back, and positions in it
                    "mimovl" => POSITIONS,
                    _ => 0,
                },
            mask: masks,
            fixed: fixed(&named, sizes, q),
            mel: sizes.mel,
            heads: sizes.heads,
            width,
        }
    }

    /// Bytes for so many rows: patches of an image, all parts of it that are in one graph, or moments of sound ahead of convolutions.
    pub fn bytes(&self, rows: u64) -> u64 {
        let times = |each: u64, count: u64| each.saturating_mul(count);
        let layers = |rows: u64| {
            let pieces = match self.divided {
                true => rows::count(i64::try_from(rows).unwrap_or(i64::MAX)) as u64,
                false => 1,
            };
            let network = times(self.network.0, rows)
                .saturating_add(times(self.network.1, rows.div_ceil(pieces)));
            times(self.attention, rows)
                .max(network)
                .max(times(self.projector, rows))
                .saturating_add(times(self.kept, rows))
                .saturating_add(times(self.mask, rows.saturating_mul(rows)))
        };
        let most = match self.source {
            Source::Patches => times(self.patches, rows).max(layers(rows)),
            Source::Whisper => {
                let moments = rows.div_ceil(2);
                // the sound, and what the first convolution reads of it
                times(11 * FLOAT * self.width / 2 + POSITIONS, moments).max(layers(moments))
            }
            Source::Conformer { channels } => {
                // the first convolution leaves half of the moments and half of the frequencies
                let seen = times(rows.div_ceil(2), self.mel.div_ceil(2));
                // what it makes and that in another order; what it is computed from; the sound, as it came and in another order
                let convolution = times(2 * FLOAT * channels + 9 * HALF, seen)
                    .saturating_add(times(2 * FLOAT * self.mel, rows));
                // all pairs of moments, once each and by their distance, before and after they are shifted
                let moments = rows.div_ceil(8);
                let pairs = times(22 * self.heads + FLOAT, moments.saturating_mul(moments));
                let stream = times(self.attention, moments);
                convolution.max(pairs.saturating_add(stream))
            }
            Source::Waveform { values } => {
                // a moment is four of those of other encoders
                times(2 * FLOAT * values, rows.div_ceil(4)).max(layers(rows.div_ceil(4)))
            }
            Source::Biased { width, heads, tile } => {
                let (large, small) = (64 * 64, (tile / 16) * (tile / 16));
                let each = match rows <= large {
                    true => large,
                    false => small,
                };
                // the bias and the same of 16 bits; queries, keys, values and the stream
                let pairs = times(rows.max(each), each).saturating_mul((FLOAT + HALF) * heads);
                let stream = times(rows.max(each), (6 * width + 4 * heads * 64) * FLOAT);
                pairs.saturating_add(stream).max(times(self.patches, rows))
            }
        };
        most.saturating_add(self.fixed).saturating_add(SLACK)
    }

    /// Bytes for so many rows or fewer: networks in fewer pieces may take more.
    pub fn bytes_up_to(&self, rows: u64) -> u64 {
        let fewer = [511, 767, 1023].into_iter().filter(|&few| few < rows);
        fewer
            .chain([rows])
            .map(|rows| self.bytes(rows))
            .max()
            .unwrap_or(0)
    }
}

fn source(projector: &str, named: &Named<'_>, sizes: Sizes) -> Source {
    let (width, heads) = sizes.sam;
    match projector {
        "deepseekocr" | "deepseekocr2" if heads > 0 => {
            let tile = if projector == "deepseekocr" { 640 } else { 768 };
            return Source::Biased { width, heads, tile };
        }
        "gemma4ua" => {
            let weights = named.get("mm.a.input_projection.weight");
            let values = weights.map_or(640, |weights| positive(weights.ne[0]));
            return Source::Waveform { values };
        }
        _ => {}
    }
    if !named.any(|tensor| tensor.name.starts_with("a.")) {
        return Source::Patches;
    }
    let planar = named.0.iter().filter(|tensor| {
        tensor.name.starts_with("a.")
            && tensor.ne[..3] == [3, 3, 1]
            && tensor.name.ends_with(".weight")
    });
    match planar.map(|tensor| positive(tensor.ne[3])).next() {
        Some(channels) => Source::Conformer { channels },
        None => Source::Whisper,
    }
}

/// Bytes that are alive for each patch while it is cut out.
fn patches(projector: &str, named: &Named<'_>, sizes: Sizes) -> u64 {
    let pixels = 3 * sizes.patch * sizes.patch;
    let weights = named.get("v.patch_embd.weight");
    let wide = |tensor: &LoadedTensor| tensor.ggml_type == BF16;
    let narrow = weights.is_none_or(|weights| !wide(weights) && weights.ne[2] > 1);
    let copied = match projector {
        // cut out by copies
        "granite4_vision" => FLOAT,
        _ if narrow => HALF,
        _ => FLOAT,
    };
    let frames = u64::from(named.get("v.patch_embd.weight.1").is_some());
    let more = match projector {
        // positions are an input of their own
        "hunyuanvl" => sizes.width,
        // positions are computed from the place of each patch
        "resampler" => sizes.width / 4,
        _ => frames * sizes.width,
    };
    let cut = pixels * (FLOAT + copied) + more * FLOAT + POSITIONS;
    // a convolution of each channel by itself, what went in and what comes out
    let channel = |tensor: &&LoadedTensor| {
        tensor.ne[2] == 1 && tensor.ne[0] > 1 && tensor.ne[0] == tensor.ne[1]
    };
    let largest = named
        .0
        .iter()
        .filter(|tensor| tensor.name.starts_with("v.stage.0"))
        .find(channel);
    let of_channels = largest.map_or(0, |tensor| {
        let around = positive(tensor.ne[0]) * positive(tensor.ne[1]);
        positive(tensor.ne[3]) * (around * HALF + 2 * FLOAT)
    });
    cut.max(of_channels)
}

/// Bytes that are alive for each row while features become tokens.
fn projector_of(projector: &str, named: &Named<'_>, sizes: Sizes) -> u64 {
    let matrices = || {
        let all = named.0.iter();
        all.filter(|tensor| {
            let is_matrix = tensor.ne[1] > 1 && tensor.ne[2] == 1;
            tensor.name.starts_with("mm.") && tensor.name.ends_with(".weight") && is_matrix
        })
    };
    let widest = matrices().map(|tensor| positive(tensor.ne[0])).max();
    let merged = match named.any(|tensor| tensor.name.starts_with("a.")) {
        // as many moments as are put side by side
        true => widest.unwrap_or(0) / sizes.width.max(1),
        false => sizes.merge * sizes.merge,
    };
    let merged = merged.max(1);
    let each = matrices().map(|tensor| {
        let [from, to] = [tensor.ne[0], tensor.ne[1]].map(positive);
        // the place of the features that went in is too small for what comes out
        let gate = match tensor.name.contains("gate") {
            true => to + sizes.width,
            false => 0,
        };
        from + to + gate
    });
    let largest = each.max().unwrap_or(0).div_ceil(merged);
    let depthwise = named
        .0
        .iter()
        .filter(|tensor| tensor.name.starts_with("mm.") && tensor.ne[..3] == [3, 3, 1]);
    // of all patches, or of those that are left
    let left = if projector == "ldpv2" { 4 } else { 1 };
    let around = depthwise.map(|tensor| positive(tensor.ne[3]) * (9 * HALF + 2 * FLOAT) / left);
    let resampled = match projector {
        "resampler" => {
            let out = named.made("resampler.kv.weight").unwrap_or(sizes.width);
            3 * out * FLOAT + out
        }
        _ => 0,
    };
    (largest * FLOAT)
        .max(around.max().unwrap_or(0))
        .max(resampled)
        + POSITIONS
}

/// Experts of a layer.
fn experts(named: &Named<'_>) -> u64 {
    let experts = |tensor: &&LoadedTensor| tensor.name.ends_with("ffn_up_exps.weight");
    let found = named.0.iter().find(experts);
    found.map_or(0, |tensor| positive(tensor.ne[2]))
}

/// Bytes that do not follow from the number of rows: tables that the graph turns round, or picks from.
fn fixed(named: &Named<'_>, sizes: Sizes, q: u64) -> u64 {
    let codebooks = named.0.iter();
    let codebooks = codebooks.filter(|tensor| tensor.name.starts_with("a.rvq.codebook"));
    let codes = codebooks.map(|tensor| positive(tensor.ne[0]) * positive(tensor.ne[1]));
    let head = q / sizes.heads.max(1);
    (2 * codes.max().unwrap_or(0) + sizes.block * sizes.block * head) * FLOAT
}

/// Values of features of layers in the middle, for each row, which wait for the end.
fn kept(named: &Named<'_>, sizes: Sizes) -> u64 {
    let merged = (sizes.merge * sizes.merge).max(1);
    let features = named.0.iter().filter(|tensor| {
        tensor.name.starts_with("v.deepstack.") && tensor.name.ends_with(".fc2.weight")
    });
    features
        .map(|tensor| positive(tensor.ne[1]).div_ceil(merged))
        .sum()
}

/// Rows of the largest graph of images, where the user has set no limit. `parts`: of an image at most, and its overview; `class`: rows
/// that join each square.
pub fn most_rows(
    most: Most,
    sizes: Sizes,
    (image, longest, pixels): (u64, u64, Option<u64>),
    (parts, class): (u64, u64),
) -> u64 {
    let patch = sizes.patch.max(1);
    let merged = (sizes.merge * sizes.merge).max(1);
    let side = |pixels: u64| pixels / patch;
    let square = side(image) * side(image);
    match most {
        Most::Tokens(tokens) => tokens * merged,
        Most::TokensOrFile(tokens) => {
            pixels.map_or(tokens * merged, |pixels| pixels / patch / patch)
        }
        Most::File => pixels.map_or(4096 * merged, |pixels| pixels / patch / patch),
        Most::LongestEdge => side(longest) * side(longest),
        Most::Square => square + class,
        Most::Squares(tokens) => (square + class) * (tokens / (square / merged).max(1)).max(1),
        Most::Parts => (square + class) * parts.max(1),
        Most::Slices => square + square / 8 + class,
        Most::Tile(pixels) => side(pixels) * side(pixels) + class,
    }
}

#[cfg(test)]
mod tests;
