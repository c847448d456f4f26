//! Collects tensors and gives each a type that fits.

use super::{Quiet, TensorPlan, Values};
use crate::synth::blocks::Filler;
use crate::synth::SynthError;
use pipeshard_model::inventory::DType;

/// What a type is replaced with where a row does not fill its blocks, as llama.cpp's quantiser does.
pub(super) fn fitting(dtype: &'static DType, row: u64) -> &'static DType {
    let named = |name| DType::from_name(name).unwrap_or(dtype);
    let fits = |dtype: &DType| row.is_multiple_of(u64::from(dtype.block));
    if fits(dtype) {
        return dtype;
    }
    let smaller = match dtype.name {
        "q2_K" | "q3_K" => named("q4_0"),
        "q4_K" => named("q5_0"),
        "q5_K" => named("q5_1"),
        "q6_K" => named("q8_0"),
        "iq4_xs" => named("iq4_nl"),
        _ => named("f16"),
    };
    if fits(smaller) {
        smaller
    } else {
        named("f16")
    }
}

/// Collects the tensors of a model in the order in which they come.
pub(in crate::synth) struct Builder {
    pub tensors: Vec<TensorPlan>,
    /// The type of norms, biases and routers.
    pub f32: &'static DType,
}

impl Builder {
    pub fn new() -> Self {
        let Some(f32_type) = DType::from_name("f32") else {
            unreachable!("f32 is one of ggml's types");
        };
        Builder {
            tensors: Vec::new(),
            f32: f32_type,
        }
    }

    pub fn push(
        &mut self,
        name: String,
        shape: Vec<u64>,
        dtype: &'static DType,
        values: Values,
    ) -> Result<(), SynthError> {
        let dtype = fitting(dtype, shape[0]);
        let too_large = || SynthError::Shape {
            reason: format!("tensor {name} would be too large for any file"),
        };
        let rows = shape[1..]
            .iter()
            .try_fold(1_u64, |rows, &n| rows.checked_mul(n));
        let bytes = rows
            .and_then(|rows| rows.checked_mul(dtype.row_bytes(shape[0])))
            .filter(|&bytes| bytes < 1 << 50)
            .ok_or_else(too_large)?;
        if Filler::new(dtype, 1.0).is_none() {
            return Err(SynthError::UnknownType {
                text: dtype.name.to_owned(),
                reason: "random weights of this type cannot be made".to_owned(),
            });
        }
        self.tensors.push(TensorPlan {
            name,
            shape,
            dtype,
            values,
            bytes,
        });
        Ok(())
    }

    /// Numbers around a mean, always f32.
    pub fn around(
        &mut self,
        name: String,
        shape: &[u64],
        mean: f32,
        std: f32,
    ) -> Result<(), SynthError> {
        let values = Values::Around { mean, std };
        self.push(name, shape.to_vec(), self.f32, values)
    }

    /// A norm's weights.
    pub fn norm(&mut self, name: String, width: u64, mean: f32) -> Result<(), SynthError> {
        self.around(name, &[width], mean, mean.abs() * 0.1)
    }

    /// A bias around 0.
    pub fn bias(&mut self, name: String, shape: &[u64], std: f32) -> Result<(), SynthError> {
        self.around(name, shape, 0.0, std)
    }

    /// A projection whose outputs are `gain` times as large as its inputs.
    pub fn projection(
        &mut self,
        name: String,
        shape: &[u64],
        dtype: &'static DType,
        gain: f32,
    ) -> Result<(), SynthError> {
        let values = Values::Normal {
            std: gain / (shape[0] as f32).sqrt(),
            quiet: Quiet::None,
        };
        self.push(name, shape.to_vec(), dtype, values)
    }
}
