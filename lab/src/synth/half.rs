//! Single to half precision, for scale tables. Speed does not matter here.

/// The nearest IEEE half-precision number, ties to even; too large becomes infinity, too small a subnormal or zero.
pub(super) fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // 65520 and above round to infinity
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // subnormal: count in units of 2^-24
        let units = f32::from_bits(magnitude) * 16_777_216.0;
        return sign | units.round_ties_even() as u16;
    }
    let rebased = magnitude - 0x3800_0000;
    let half = rebased >> 13;
    let rest = rebased & 0x1fff;
    let up = rest > 0x1000 || (rest == 0x1000 && half & 1 == 1);
    sign | (half + u32::from(up)) as u16
}

/// The nearest bfloat16, ties to even.
pub(super) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let rounding = 0x7fff + ((bits >> 16) & 1);
    (bits.wrapping_add(rounding) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_sys as ffi;

    #[test]
    fn agrees_with_ggml() {
        let mut value = 1e-9_f32;
        while value < 1e6 {
            for value in [value, -value, value * 1.000_1, value.recip()] {
                // SAFETY: both functions only compute.
                let (half, brain) =
                    unsafe { (ffi::ggml_fp32_to_fp16(value), ffi::ggml_fp32_to_bf16(value)) };
                assert_eq!(f16_bits(value), half, "{value}");
                assert_eq!(bf16_bits(value), brain.bits, "{value}");
            }
            value *= 1.003;
        }
        for value in [
            0.0,
            -0.0,
            f32::INFINITY,
            65519.9,
            65520.0,
            f32::MIN_POSITIVE,
        ] {
            // SAFETY: as above.
            assert_eq!(f16_bits(value), unsafe { ffi::ggml_fp32_to_fp16(value) });
        }
        assert_eq!(f16_bits(f32::NAN) & 0x7c00, 0x7c00);
    }
}
