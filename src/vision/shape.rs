//! What is known of an encoder before it computes: sizes of images, rows, compute buffers, and what a pass computes.

use super::limits::Limits;
use super::projectors::{facts, is_one_square, is_scaled_within, Most};
use super::stages::Stages;
use super::windows::Windowed;
use pipeshard_plan::cost::Times;
use pipeshard_plan::profile::Op;

/// Rows that are looked at where attention is measured.
const SEEN: u64 = 4096;
/// Tokens of the image that llama.cpp reserves compute buffers for when it loads such an encoder.
const WARM_UP_TOKENS: u64 = 46 * 46;

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
    pub(super) width: u64,
    /// Values in a row between the products of a feed-forward network.
    pub(super) inner: u64,
    /// Pixels along a side of a patch.
    pub(super) patch: u64,
    /// Rows of the largest image, where there is no limit of the user's.
    pub(super) most_rows: u64,
    /// The number of rows follows from the image.
    pub(super) follows_image: bool,
    /// And so from a limit on its tokens.
    pub(super) limited: bool,
    /// What is alive at once.
    pub(super) stages: Stages,
    /// Pixels along a side of the square that it was made for.
    pub(super) image: u64,
    /// Pixels of the smallest image and of the largest, where the file says so.
    pub(super) pixels: (Option<u64>, Option<u64>),
    /// Rows for the class of an image, or registers.
    pub(super) class: u64,
    /// A token ends each row of an image.
    pub(super) breaks: bool,
    /// What a pass computes.
    pub(super) work: Work,
}

/// Matrices of weights of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    /// ggml's name of their type.
    pub(super) type_name: &'static str,
    /// Values in a row that goes in, and in what comes out.
    pub(super) from_to: (u64, u64),
    /// Rows of patches that become one that goes in.
    pub(super) merged: u64,
    /// They belong to feed-forward networks, which are computed in pieces.
    pub(super) of_network: bool,
    /// How many there are.
    pub(super) count: u64,
}

/// What one pass computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Matrices that rows are multiplied with.
    pub(super) matrices: Vec<Matrix>,
    /// Heads of attention.
    pub(super) heads: u64,
    /// Products of each row with matrices, in operations.
    pub(super) of_row: u64,
    /// Attention of a pair of rows in all layers, in operations.
    pub(super) of_pair: u64,
    /// Layers, and of how many one looks at all rows where others look at a window only (0 or 1: all do).
    pub(super) layers: u64,
    pub(super) pattern: u64,
}

impl Matrix {
    fn op(&self) -> Op {
        Op::Product {
            type_name: self.type_name.to_owned(),
            columns: self.from_to.0,
            rows: self.from_to.1,
        }
    }
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
        let (rows, work) = (rows as f64, &self.work);
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

    fn attention(&self, seen: u64) -> Op {
        let heads = self.work.heads.max(1);
        Op::Attention {
            head: u32::try_from(self.width / heads).unwrap_or(0),
            heads: u32::try_from(heads).unwrap_or(1),
            kv_heads: u32::try_from(heads).unwrap_or(1),
            type_k: "f16".to_owned(),
            type_v: "f16".to_owned(),
            kv_tokens: seen,
        }
    }

    /// What is worth measuring for a prediction: the largest products of its layers, attention, and sums of activations.
    pub fn measurable(&self) -> Vec<Op> {
        let mut matrices: Vec<&Matrix> = self.work.matrices.iter().collect();
        let weight = |m: &Matrix| m.from_to.0 * m.from_to.1 * m.count;
        matrices.sort_by_key(|matrix| std::cmp::Reverse(weight(matrix)));
        let products = matrices.iter().take(2).map(|matrix| matrix.op());
        products
            .chain([
                self.attention(SEEN),
                Op::Sum {
                    columns: self.width,
                },
            ])
            .collect()
    }

    /// Products and attention of a pass over so many rows, and bytes of activations that everything else reads and writes.
    pub fn passes(&self, rows: u64) -> (Vec<Times>, f64) {
        let pieces = super::rows::count(i64::try_from(rows).unwrap_or(i64::MAX)) as u64;
        let counted = |rows: u64| u32::try_from(rows.max(1)).unwrap_or(u32::MAX);
        let mut moved = 0.0;
        let mut products: Vec<Times> = Vec::new();
        for matrix in &self.work.matrices {
            let (from, to) = matrix.from_to;
            let rows = rows / matrix.merged.max(1);
            let pieces = if matrix.of_network { pieces } else { 1 };
            products.push(Times {
                op: matrix.op(),
                rows: counted(rows / pieces),
                times: (matrix.count * pieces) as f64,
            });
            // made 16 bits wide and 32 again, and a bias is added
            moved += (matrix.count * rows * (6 * from + 14 * to)) as f64;
        }
        let (width, layers, inner) = (self.width, self.work.layers, self.inner);
        // two norms, two sums, queries and keys are turned, keys and values become 16 bits wide, and what is between a network's products
        moved += (layers * rows * (16 * width + 24 * width + 16 * width + 12 * width)) as f64;
        moved += (layers * rows * 12 * inner) as f64;
        let of_windows = match (self.windowed, self.work.pattern) {
            (Some(windowed), 2..) => {
                let side = u64::from(windowed.window / windowed.patch.max(1));
                Some((side * side).min(rows))
            }
            _ => None,
        };
        let all = match of_windows {
            Some(_) => layers / self.work.pattern,
            None => layers,
        };
        let mut look = |seen: u64, layers: u64| {
            // as often as what a measured length of keys takes
            let share = seen as f64 / SEEN as f64;
            products.push(Times {
                op: self.attention(SEEN),
                rows: counted(rows),
                times: layers as f64 * share,
            });
        };
        look(rows, all);
        if let Some(seen) = of_windows {
            look(seen, layers - all);
            // queries, keys and values of a window are read once
            moved += ((layers - all) * rows * 14 * width) as f64;
        }
        (products, moved)
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
