//! Random weights: a small quantised block of each type, repeated in another order as often as needed.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use pipeshard_model::inventory::DType;
use pipeshard_sys as ffi;

/// Elements that are quantised for a type, at least and at most.
const LEAST_ELEMENTS: usize = 1 << 14;
const MOST_ELEMENTS: usize = 1 << 20;
/// Rows of this many elements are quantised.
const ROW: usize = 4096;
/// No further row is quantised after this.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_millis(15);
/// What is repeated in one piece, in bytes, at most.
const PIECE: usize = 1 << 18;

/// Types that ggml can quantise to.
const QUANTISABLE: [&str; 21] = [
    "f32", "f16", "bf16", "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "nvfp4",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "tq1_0", "tq2_0", "iq4_nl", "iq4_xs",
];

/// Types whose codebooks take ggml seconds to prepare. All bits are good for them, but for the scale.
const CODEBOOKS: [&str; 7] = [
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s",
];

/// Random values of one type, as a series of its blocks. Any part of it that begins with a block is as good a matrix as another.
pub(super) struct Blocks {
    type_name: String,
    dtype: &'static DType,
    bytes: Vec<u8>,
}

/// Normally distributed numbers.
pub(super) fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    // Box and Muller's method
    let mut pair = || {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        let angle = uniform() * std::f64::consts::TAU;
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    let mut values: Vec<f32> = (0..count.div_ceil(2)).flat_map(|_| pair()).collect();
    values.truncate(count);
    values
}

/// Quantises random numbers with ggml.
fn quantised(dtype: &DType) -> Vec<u8> {
    let row = normal(MOST_ELEMENTS.min(64 * ROW), 1);
    let importance = vec![1.0f32; ROW];
    let row_bytes = dtype.row_bytes(ROW as u64) as usize;
    let mut bytes = vec![0u8; MOST_ELEMENTS / ROW * row_bytes];
    let start = std::time::Instant::now();
    let mut rows = 0;
    while rows < MOST_ELEMENTS / ROW
        && (rows < LEAST_ELEMENTS / ROW || start.elapsed() < TIME_LIMIT)
    {
        // rows that were used up are used again, shifted by some elements
        let from = (rows * ROW + rows / 64 * 37) % (row.len() - ROW + 1);
        // SAFETY: a whole number of blocks goes from a row of floats to the bytes that ggml needs for it; the type is one
        // that ggml quantises to, and has weights of importance where it asks for them.
        unsafe {
            ffi::ggml_quantize_chunk(
                dtype.id as ffi::ggml_type,
                row[from..from + ROW].as_ptr(),
                bytes[rows * row_bytes..][..row_bytes].as_mut_ptr().cast(),
                0,
                1,
                ROW as i64,
                importance.as_ptr(),
            );
        }
        rows += 1;
    }
    bytes.truncate(rows * row_bytes);
    bytes
}

/// Random bits with scales of 1/128.
fn random_bits(dtype: &DType) -> Vec<u8> {
    const SCALE: [u8; 2] = [0x00, 0x20];
    let block = dtype.block_bytes as usize;
    let mut rng = Pcg64Mcg::seed_from_u64(9);
    let mut bytes = vec![0u8; LEAST_ELEMENTS / dtype.block as usize * block];
    rng.fill_bytes(&mut bytes);
    for block in bytes.chunks_mut(block) {
        if dtype.name == "iq1_m" {
            // its scale is in the upper halves of the last four pairs of bytes
            let scales = &mut block[48..];
            scales
                .iter_mut()
                .skip(1)
                .step_by(2)
                .for_each(|byte| *byte &= 0x0f);
            scales[7] |= SCALE[1];
        } else {
            block[..2].copy_from_slice(&SCALE);
        }
    }
    bytes
}

impl Blocks {
    /// Random blocks; none for a type that models do not have.
    pub fn new(type_name: &str) -> Option<Self> {
        let dtype = DType::from_name(type_name)?;
        let bytes = match dtype.name {
            name if QUANTISABLE.contains(&name) => quantised(dtype),
            name if CODEBOOKS.contains(&name) => random_bits(dtype),
            _ => return None,
        };
        Some(Blocks {
            type_name: type_name.to_owned(),
            dtype,
            bytes,
        })
    }
    /// The type that they are of.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// The bytes of all blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where pieces of `length` bytes in all come from: offset and bytes of each, beginning with a block.
    pub fn pieces(&self, length: usize, seed: u64) -> impl Iterator<Item = (usize, usize)> + '_ {
        let block = self.dtype.block_bytes as usize;
        let piece = (PIECE.min(self.bytes.len() / 2) / block).max(1) * block;
        let starts = (self.bytes.len() - piece) / block + 1;
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        (0..length).step_by(piece).map(move |at| {
            let from = (rng.next_u64() % starts as u64) as usize * block;
            (from, piece.min(length - at))
        })
    }

    /// Fills host memory.
    pub fn fill(&self, to: &mut [u8], seed: u64) {
        let mut at = 0;
        for (from, bytes) in self.pieces(to.len(), seed) {
            to[at..at + bytes].copy_from_slice(&self.bytes[from..from + bytes]);
            at += bytes;
        }
    }
}

/// Which experts each of `tokens` tokens uses: `used` different ones of `experts`, at random.
pub(super) fn chosen(experts: u32, used: u32, tokens: u32, seed: u64) -> Vec<i32> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut all: Vec<i32> = (0..experts as i32).collect();
    let mut chosen = Vec::with_capacity((used * tokens) as usize);
    for _ in 0..tokens {
        for place in 0..used as usize {
            let left = (all.len() - place) as u64;
            all.swap(place, place + (rng.next_u64() % left) as usize);
        }
        chosen.extend_from_slice(&all[..used as usize]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn weights_are_random_in_every_type() {
        for name in QUANTISABLE.iter().chain(&CODEBOOKS) {
            let blocks = Blocks::new(name).unwrap();
            let least = blocks.dtype.row_bytes(LEAST_ELEMENTS as u64) as usize;
            assert!(blocks.bytes.len() >= least, "{name}");
            let kinds: HashSet<u8> = blocks.bytes[..least].iter().copied().collect();
            assert!(kinds.len() > 16, "{name}: {} different bytes", kinds.len());
            let numbers = expanded(&blocks);
            assert!(
                numbers.iter().all(|n| n.is_finite() && n.abs() < 1000.0),
                "{name}"
            );
            assert!(numbers.iter().any(|n| n.abs() > 1e-3), "{name}");
        }
        assert!(Blocks::new("q8_1").is_none() && Blocks::new("i32").is_none());
    }

    /// What ggml makes of the first blocks.
    fn expanded(blocks: &Blocks) -> Vec<f32> {
        let count = 16 * blocks.dtype.block as usize;
        let mut numbers = vec![0.0f32; count];
        // SAFETY: there are as many blocks, and room for as many numbers.
        unsafe {
            let traits = ffi::ggml_get_type_traits(blocks.dtype.id as ffi::ggml_type);
            match (*traits).to_float {
                Some(expand) => expand(
                    blocks.bytes.as_ptr().cast(),
                    numbers.as_mut_ptr(),
                    count as i64,
                ),
                // floats as they are
                None => std::ptr::copy_nonoverlapping(
                    blocks.bytes.as_ptr().cast(),
                    numbers.as_mut_ptr(),
                    count,
                ),
            }
        }
        numbers
    }

    #[test]
    fn repeated_blocks_begin_where_blocks_do_and_come_in_another_order() {
        let blocks = Blocks::new("q6_K").unwrap();
        let mut to = vec![0u8; 210 * 9000];
        blocks.fill(&mut to, 7);
        let known: HashSet<&[u8]> = blocks.bytes.chunks(210).collect();
        assert!(to.chunks(210).all(|block| known.contains(block)));
        let mut other = vec![0u8; to.len()];
        blocks.fill(&mut other, 8);
        assert!(to != other);
    }

    #[test]
    fn numbers_are_normally_distributed() {
        let numbers = normal(100_000, 3);
        let mean = numbers.iter().sum::<f32>() / 1e5;
        let square = numbers.iter().map(|n| n * n).sum::<f32>() / 1e5;
        assert!(
            mean.abs() < 0.02 && (square - 1.0).abs() < 0.02,
            "{mean} {square}"
        );
    }

    #[test]
    fn a_token_uses_an_expert_once() {
        for (experts, used) in [(8, 8), (128, 8), (3, 1)] {
            let ids = chosen(experts, used, 50, 1);
            for token in ids.chunks(used as usize) {
                let different: HashSet<i32> = token.iter().copied().collect();
                assert_eq!(different.len(), used as usize);
                assert!(token.iter().all(|id| (0..experts as i32).contains(id)));
            }
        }
        assert_ne!(chosen(128, 8, 4, 1), chosen(128, 8, 4, 2));
    }
}
