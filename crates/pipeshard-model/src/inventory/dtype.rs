//! ggml's element types: sizes only, so that planning needs no foreign code. A test compares the table with ggml.

/// ggml's CUDA kernels read quantised rows in steps of this many elements, past the end of the last one.
const MATRIX_ROW_PADDING: u64 = 512;

/// An element type of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType {
    /// ggml's number.
    pub id: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Elements per block.
    pub block: u32,
    /// Bytes per block.
    pub block_bytes: u32,
    /// Whether blocks are quantised.
    pub quantised: bool,
}

const fn plain(id: u32, name: &'static str, block_bytes: u32) -> DType {
    DType {
        id,
        name,
        block: 1,
        block_bytes,
        quantised: false,
    }
}

const fn quant(id: u32, name: &'static str, block: u32, block_bytes: u32) -> DType {
    DType {
        id,
        name,
        block,
        block_bytes,
        quantised: true,
    }
}

/// All element types that the pinned ggml knows, in the order of their numbers.
pub static DTYPES: &[DType] = &[
    plain(0, "f32", 4),
    plain(1, "f16", 2),
    quant(2, "q4_0", 32, 18),
    quant(3, "q4_1", 32, 20),
    quant(6, "q5_0", 32, 22),
    quant(7, "q5_1", 32, 24),
    quant(8, "q8_0", 32, 34),
    quant(9, "q8_1", 32, 36),
    quant(10, "q2_K", 256, 84),
    quant(11, "q3_K", 256, 110),
    quant(12, "q4_K", 256, 144),
    quant(13, "q5_K", 256, 176),
    quant(14, "q6_K", 256, 210),
    quant(15, "q8_K", 256, 292),
    quant(16, "iq2_xxs", 256, 66),
    quant(17, "iq2_xs", 256, 74),
    quant(18, "iq3_xxs", 256, 98),
    quant(19, "iq1_s", 256, 50),
    quant(20, "iq4_nl", 32, 18),
    quant(21, "iq3_s", 256, 110),
    quant(22, "iq2_s", 256, 82),
    quant(23, "iq4_xs", 256, 136),
    plain(24, "i8", 1),
    plain(25, "i16", 2),
    plain(26, "i32", 4),
    plain(27, "i64", 8),
    plain(28, "f64", 8),
    quant(29, "iq1_m", 256, 56),
    plain(30, "bf16", 2),
    quant(34, "tq1_0", 256, 54),
    quant(35, "tq2_0", 256, 66),
    quant(39, "mxfp4", 32, 17),
    quant(40, "nvfp4", 64, 36),
    quant(41, "q1_0", 128, 18),
    quant(42, "q2_0", 64, 18),
];

impl DType {
    /// The type with ggml's number `id`.
    pub fn from_id(id: u32) -> Option<&'static DType> {
        DTYPES.iter().find(|dtype| dtype.id == id)
    }

    /// The type with ggml's name, upper or lower case.
    pub fn from_name(name: &str) -> Option<&'static DType> {
        DTYPES
            .iter()
            .find(|dtype| dtype.name.eq_ignore_ascii_case(name))
    }

    /// How many rows at once ggml's CPU backend multiplies one by one, at most. Beyond, it may take blocks of 256 elements in tiles,
    /// whose sums it forms in another order (ggml-cpu/tiled/tiled.cpp).
    pub fn rows_one_by_one(&self) -> u32 {
        match self.block {
            256.. => 7,
            _ => u32::MAX,
        }
    }

    /// Bytes of one row of `elements`; a partial block counts as a whole one. Saturates.
    pub fn row_bytes(&self, elements: u64) -> u64 {
        elements
            .div_ceil(u64::from(self.block))
            .saturating_mul(u64::from(self.block_bytes))
    }

    /// Bytes of a contiguous tensor on the host. Saturates.
    pub fn bytes(&self, shape: [u64; 4]) -> u64 {
        shape[1..]
            .iter()
            .fold(self.row_bytes(shape[0]), |bytes, &n| {
                bytes.saturating_mul(n)
            })
    }

    /// Bytes that a CUDA buffer allocates for a contiguous tensor, before alignment. Saturates.
    pub fn device_bytes(&self, shape: [u64; 4]) -> u64 {
        self.bytes(shape).saturating_add(self.tail_bytes(shape[0]))
    }

    /// Bytes that CUDA's kernels may read past the end of a tensor whose rows have `elements` elements.
    pub fn tail_bytes(&self, elements: u64) -> u64 {
        match elements % MATRIX_ROW_PADDING {
            0 => 0,
            _ if !self.quantised => 0,
            rest => self.row_bytes(MATRIX_ROW_PADDING - rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique() {
        for (index, dtype) in DTYPES.iter().enumerate() {
            assert_eq!(DType::from_id(dtype.id), Some(dtype));
            assert_eq!(DType::from_name(dtype.name), Some(dtype));
            assert!(index == 0 || DTYPES[index - 1].id < dtype.id);
        }
        assert_eq!(DType::from_name("Q4_K").map(|d| d.id), Some(12));
        assert_eq!(DType::from_id(4), None);
    }

    #[test]
    fn rows_of_576_and_768_get_a_tail() {
        let q4_0 = DType::from_name("q4_0").unwrap();
        assert_eq!(q4_0.bytes([576, 10, 1, 1]), 10 * 18 * 18);
        assert_eq!(q4_0.device_bytes([576, 10, 1, 1]), 10 * 18 * 18 + 14 * 18);
        assert_eq!(q4_0.tail_bytes(768), 8 * 18);
        assert_eq!(q4_0.tail_bytes(1024), 0);
        assert_eq!(DType::from_name("f16").unwrap().tail_bytes(576), 0);
    }

    #[test]
    fn sizes_saturate() {
        let f32 = DType::from_name("f32").unwrap();
        assert_eq!(f32.bytes([u64::MAX, u64::MAX, 1, 1]), u64::MAX);
    }
}
