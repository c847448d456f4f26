//! Random weights, made directly in the format of each type: quants are random bits, scales are chosen so that the
//! weights have the standard deviation that is asked for and no bias. Weights within a quantised block are therefore
//! uniform and not normal; what a kernel does with them takes the same time.

use rand::Rng;
use rand_pcg::Pcg64Mcg;

use super::half::{bf16_bits, f16_bits};
use pipeshard_model::inventory::DType;

/// The types that can be written.
pub const WRITABLE: &[&str] = &[
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K",
    "q6_K", "iq4_nl", "iq4_xs", "mxfp4",
];

/// Entries of the table that normal weights are drawn from.
const NORMAL_TABLE: usize = 4096;

/// How block scales spread around their mean: the root mean square of `0.75 + i / 256` for i below 128.
const SCALE_RMS: f32 = 1.008_2;

/// What the sixteen quants of IQ4 stand for: root mean square.
const IQ4_RMS: f32 = 67.44;

/// Scales of IQ4_XS sub-blocks, whole numbers from -32 to 31: root mean square.
const IQ4_XS_SCALE_RMS: f32 = 18.48;

/// What the sixteen quants of MXFP4 stand for, 0 to 6 of either sign: root mean square.
const MXFP4_RMS: f32 = 2.926;

/// Makes the data of one tensor, chunk by chunk.
pub(super) struct Filler {
    dtype: &'static DType,
    kind: Kind,
}

/// Tables for one type at one standard deviation.
enum Kind {
    /// Four-byte weights.
    F32(Vec<f32>),
    /// Two-byte weights.
    F16(Vec<u16>),
    /// Blocks with a scale at byte 0 and random bits everywhere else; signed quants have no bias because half of the
    /// scales are negative.
    SignedScale(Box<[u16; 256]>),
    /// Blocks with a scale at byte 0, a minimum at byte 2 and random bits after that.
    ScaleAndMin(Box<[(u16, u16); 256]>),
    /// As `SignedScale`, with signed bytes; -128 is not used.
    Bytes(Box<[u16; 256]>),
    /// Blocks with a power of two at byte 0 and random bits after it.
    PowerOfTwo(Box<[u8; 256]>),
    /// Super-blocks.
    Q2K(Box<[(u16, u16); 256]>),
    Q3K(Box<[u16; 256]>),
    Q45K(Box<[(u16, u16); 256]>),
    Q6K(Box<[u16; 256]>),
}

/// Standard normal values as sums of twelve uniform ones: the same on every machine.
fn normal_table() -> Vec<f32> {
    let mut rng = Pcg64Mcg::new(0x7069_7065_7368_6172);
    let mut table: Vec<f32> = (0..NORMAL_TABLE)
        .map(|_| {
            let sum: u64 = (0..12).map(|_| rng.next_u64() >> 40).sum();
            (sum as f64 / f64::from(1_u32 << 24) - 6.0) as f32
        })
        .collect();
    let count = NORMAL_TABLE as f32;
    let mean = table.iter().sum::<f32>() / count;
    table.iter_mut().for_each(|value| *value -= mean);
    let deviation = (table.iter().map(|value| value * value).sum::<f32>() / count).sqrt();
    table.iter_mut().for_each(|value| *value /= deviation);
    table
}

/// A spread of scales around `scale`; the upper half is negative when `signed`.
fn scales(scale: f32, signed: bool) -> impl Fn(usize) -> f32 {
    move |index| {
        let spread = (0.75 + (index % 128) as f32 / 256.0) / SCALE_RMS;
        let sign = if signed && index >= 128 { -1.0 } else { 1.0 };
        scale * spread * sign
    }
}

fn signed(scale: f32) -> Box<[u16; 256]> {
    let scale = scales(scale, true);
    Box::new(std::array::from_fn(|index| f16_bits(scale(index))))
}

/// Scales, and minima that are `middle` times as large.
fn with_min(scale: f32, middle: f32) -> Box<[(u16, u16); 256]> {
    let scale = scales(scale, false);
    Box::new(std::array::from_fn(|index| {
        let scale = scale(index);
        (f16_bits(scale), f16_bits(scale * middle))
    }))
}

/// Biased exponents of two neighbouring powers of two, mixed so that their root mean square is `scale`.
fn powers_of_two(scale: f32) -> Box<[u8; 256]> {
    const BIAS: f32 = 127.0;
    let lower = scale.log2().floor();
    let above = scale / lower.exp2();
    // squares of 1 and 2, mixed to the square of a number between them
    let share = (4.0 - above * above) / 3.0;
    let lower = (lower + BIAS).clamp(0.0, 253.0) as u8;
    Box::new(std::array::from_fn(|index| {
        lower + u8::from(index as f32 >= share * 256.0)
    }))
}

/// The deviation of whole numbers spread evenly over `levels` neighbouring values, around their mean.
fn even_spread(levels: f32) -> f32 {
    ((levels * levels - 1.0) / 12.0).sqrt()
}

/// The same around the value just above the middle, where the scale has a random sign.
fn offset_spread(levels: f32) -> f32 {
    ((levels * levels - 1.0) / 12.0 + 0.25).sqrt()
}

impl Filler {
    /// For weights of this type with standard deviation `std`. `None` for a type that cannot be written.
    pub(super) fn new(dtype: &'static DType, std: f32) -> Option<Self> {
        let kind = match dtype.name {
            "f32" => Kind::F32(normal_table().iter().map(|value| value * std).collect()),
            "f16" => Kind::F16(normal_table().iter().map(|v| f16_bits(v * std)).collect()),
            "bf16" => Kind::F16(normal_table().iter().map(|v| bf16_bits(v * std)).collect()),
            "q4_0" => Kind::SignedScale(signed(std / offset_spread(16.0))),
            "q5_0" => Kind::SignedScale(signed(std / offset_spread(32.0))),
            "q4_1" => Kind::ScaleAndMin(with_min(std / even_spread(16.0), -7.5)),
            "q5_1" => Kind::ScaleAndMin(with_min(std / even_spread(32.0), -15.5)),
            "q8_0" => Kind::Bytes(signed(std / even_spread(255.0))),
            "iq4_nl" => Kind::SignedScale(signed(std / IQ4_RMS)),
            "iq4_xs" => Kind::SignedScale(signed(std / (IQ4_RMS * IQ4_XS_SCALE_RMS))),
            "mxfp4" => Kind::PowerOfTwo(powers_of_two(std / MXFP4_RMS)),
            // the divisors are the root mean squares of the sub-block scales that `super_block_scales` and the like draw
            "q2_K" => Kind::Q2K(with_min(std / (even_spread(4.0) * 11.73), 1.5)),
            "q3_K" => Kind::Q3K(signed(std / (offset_spread(8.0) * 24.45))),
            "q4_K" => Kind::Q45K(with_min(std / (even_spread(16.0) * 48.39), 7.5)),
            "q5_K" => Kind::Q45K(with_min(std / (even_spread(32.0) * 48.39), 15.5)),
            "q6_K" => Kind::Q6K(signed(std / (offset_spread(64.0) * 97.27))),
            _ => return None,
        };
        Some(Filler { dtype, kind })
    }

    /// Fills whole blocks.
    pub(super) fn fill(&self, rng: &mut Pcg64Mcg, out: &mut [u8]) {
        match &self.kind {
            Kind::F32(table) => return fill_plain(rng, out, table, f32::to_le_bytes),
            Kind::F16(table) => return fill_plain(rng, out, table, u16::to_le_bytes),
            _ => rng.fill_bytes(out),
        }
        let blocks = out.chunks_exact_mut(self.dtype.block_bytes as usize);
        match &self.kind {
            Kind::F32(_) | Kind::F16(_) => {}
            Kind::SignedScale(scales) => blocks.for_each(|block| {
                // the first random byte chooses the scale
                put(block, 0, scales[usize::from(block[0])]);
            }),
            Kind::ScaleAndMin(scales) => blocks.for_each(|block| {
                let (scale, min) = scales[usize::from(block[0])];
                put(block, 0, scale);
                put(block, 2, min);
            }),
            Kind::Bytes(scales) => blocks.for_each(|block| {
                put(block, 0, scales[usize::from(block[0])]);
                for quant in &mut block[2..] {
                    *quant = (*quant).cast_signed().max(-127).cast_unsigned();
                }
            }),
            Kind::PowerOfTwo(exponents) => blocks.for_each(|block| {
                block[0] = exponents[usize::from(block[0])];
            }),
            Kind::Q2K(scales) => blocks.for_each(|block| {
                // scale and minimum of a sub-block are equal, 8 to 15
                for pair in &mut block[..16] {
                    let scale = 8 | (*pair & 7);
                    *pair = scale | scale << 4;
                }
                let (scale, min) = scales[usize::from(block[80])];
                put(block, 80, scale);
                put(block, 82, min);
            }),
            Kind::Q3K(scales) => blocks.for_each(|block| {
                // the upper two bits of a sub-block's scale are equal: -32 to -17 or 16 to 31
                for bits in &mut block[104..108] {
                    let low = *bits & 0x55;
                    *bits = low | low << 1;
                }
                put(block, 108, scales[usize::from(block[108])]);
            }),
            Kind::Q45K(scales) => blocks.for_each(|block| {
                let (scale, min) = scales[usize::from(block[0])];
                put(block, 0, scale);
                put(block, 2, min);
                super_block_scales(&mut block[4..16]);
            }),
            Kind::Q6K(scales) => blocks.for_each(|block| {
                // 64 to 127 or the same below zero
                for scale in &mut block[192..208] {
                    let magnitude = 64 | (*scale & 63);
                    *scale = match *scale & 64 {
                        0 => magnitude,
                        _ => magnitude.wrapping_neg(),
                    };
                }
                put(block, 208, scales[usize::from(block[208])]);
            }),
        }
    }
}

fn put(block: &mut [u8], at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Packs eight random 6-bit scales of 32 to 63 the way q4_K and q5_K do, each with a minimum of the same number.
fn super_block_scales(packed: &mut [u8]) {
    for j in 0..4 {
        let (low, high) = (32 | (packed[j] & 31), 32 | (packed[j + 4] & 31));
        packed[j] = low | high >> 4 << 6;
        packed[j + 4] = low | high >> 4 << 6;
        packed[j + 8] = (high & 15) | high << 4;
    }
}

/// Draws each element from a table with 12 random bits.
fn fill_plain<T: Copy, const N: usize>(
    rng: &mut Pcg64Mcg,
    out: &mut [u8],
    table: &[T],
    bytes: fn(T) -> [u8; N],
) {
    let Ok(table) = <&[T; NORMAL_TABLE]>::try_from(table) else {
        unreachable!("the table has {NORMAL_TABLE} entries");
    };
    for group in out.chunks_mut(5 * N) {
        let mut bits = rng.next_u64();
        for element in group.chunks_exact_mut(N) {
            element.copy_from_slice(&bytes(table[bits as usize % NORMAL_TABLE]));
            bits >>= 12;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_sys as ffi;

    /// What ggml makes of `blocks`.
    fn dequantised(dtype: &DType, data: &[u8]) -> Vec<f32> {
        let count = data.len() / dtype.block_bytes as usize * dtype.block as usize;
        let mut values = vec![0.0_f32; count];
        if dtype.name == "f32" {
            for (value, bytes) in values.iter_mut().zip(data.chunks_exact(4)) {
                *value = f32::from_le_bytes(bytes.try_into().unwrap());
            }
            return values;
        }
        // SAFETY: the type is one of ggml's, the input holds `count` elements of it, the output is as long.
        unsafe {
            let traits = ffi::ggml_get_type_traits(dtype.id);
            let to_float = (*traits).to_float.unwrap();
            to_float(data.as_ptr().cast(), values.as_mut_ptr(), count as i64);
        }
        values
    }

    #[test]
    fn weights_have_the_deviation_asked_for_and_no_bias() {
        for name in WRITABLE {
            let dtype = DType::from_name(name).unwrap();
            for std in [0.02_f32, 1.0] {
                let filler = Filler::new(dtype, std).unwrap();
                let mut data =
                    vec![0; (1 << 18) / dtype.block as usize * dtype.block_bytes as usize];
                filler.fill(&mut Pcg64Mcg::new(7), &mut data);
                let values = dequantised(dtype, &data);
                assert!(values.iter().all(|value| value.is_finite()), "{name}");
                let count = values.len() as f64;
                let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
                let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
                let deviation = square.sqrt() / f64::from(std);
                assert!((0.98..1.02).contains(&deviation), "{name}: {deviation}");
                assert!((mean / f64::from(std)).abs() < 0.01, "{name}: mean {mean}");
            }
        }
    }

    #[test]
    fn the_types_offered_are_those_implemented() {
        let can = |dtype: &&&'static DType| Filler::new(dtype, 1.0).is_some();
        let implemented: Vec<_> = pipeshard_model::inventory::DTYPES
            .iter()
            .collect::<Vec<_>>()
            .iter()
            .filter(can)
            .map(|dtype| dtype.name)
            .collect();
        let mut offered = WRITABLE.to_vec();
        offered.sort_by_key(|name| DType::from_name(name).map(|dtype| dtype.id));
        assert_eq!(implemented, offered);
    }

    #[test]
    fn q8_0_never_holds_minus_128() {
        let filler = Filler::new(DType::from_name("q8_0").unwrap(), 1.0).unwrap();
        let mut data = vec![0; 34 * 4096];
        filler.fill(&mut Pcg64Mcg::new(3), &mut data);
        assert!(data
            .chunks_exact(34)
            .all(|block| !block[2..].contains(&0x80)));
    }
}
