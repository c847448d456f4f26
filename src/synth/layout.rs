//! Which tensors a synthetic model has, and how their values are distributed.
//!
//! The deviations keep a random network alive: activations stay of order one, attention looks at few tokens instead of
//! averaging over all, every layer adds something of its own, and the logits spread enough for distinct tokens. A
//! mixture of experts then routes about as broadly as a trained one. Weights that are equal across layers or an
//! attention that averages would make all tokens alike, and with them the experts.

use super::blocks::Filler;
use super::spec::{SynthSpec, FIXED_TOKENS};
use super::{Architecture, SynthError};
use crate::inventory::DType;

/// How the values of a tensor are distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Values {
    /// Normal around 0, with some rows nearly 0.
    Normal { std: f32, quiet: Quiet },
    /// Normal around a mean; f32 only.
    Around { mean: f32, std: f32 },
}

/// Rows of the vocabulary that must not be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    /// No rows.
    None,
    /// Rows of an output head: special tokens, and bytes that are not printable ASCII. Generation then neither ends by
    /// chance nor yields text that is no UTF-8.
    Output,
    /// The same for a token embedding that doubles as output head: the begin token keeps its row, because a prompt
    /// may consist of it alone.
    Tied,
}

impl Quiet {
    /// The deviation of quiet rows, as a fraction of that of the others.
    pub(super) const FACTOR: f32 = 1.0 / 1024.0;

    /// Rows from here on are never quiet.
    pub(super) const END: u64 = FIXED_TOKENS as u64;

    /// Whether a row is quiet.
    pub(super) fn covers(self, row: u64) -> bool {
        match (self, row) {
            (Quiet::None, _) => false,
            (Quiet::Tied, 1) => false,
            (_, 0..=2) => true,
            (_, row) => match u8::try_from(row - 3) {
                Ok(b'\n' | b' '..=b'~') => false,
                Ok(_) => true,
                Err(_) => false,
            },
        }
    }
}

/// One tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorPlan {
    pub name: String,
    /// Elements per dimension, without trailing ones.
    pub shape: Vec<u64>,
    pub dtype: &'static DType,
    pub values: Values,
    /// Bytes of the data.
    pub bytes: u64,
}

/// What a type is replaced with where a row does not fill its blocks, as llama.cpp's quantiser does.
fn fitting(dtype: &'static DType, row: u64) -> &'static DType {
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
        _ => named("f16"),
    };
    if fits(smaller) {
        smaller
    } else {
        named("f16")
    }
}

struct Builder {
    tensors: Vec<TensorPlan>,
    f32: &'static DType,
}

impl Builder {
    fn push(
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

    /// A norm's weights.
    fn norm(&mut self, name: String, width: u64, mean: f32) -> Result<(), SynthError> {
        let values = Values::Around {
            mean,
            std: mean.abs() * 0.1,
        };
        self.push(name, vec![width], self.f32, values)
    }

    /// A projection whose outputs are `gain` times as large as its inputs.
    fn projection(
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

/// How sharply queries pick keys: the deviation of the attention scores. With 2, a token attends to one in fifty.
const ATTENTION_SHARPNESS: f32 = 2.0;

/// The deviation of the logits.
const LOGIT_SPREAD: f32 = 3.0;

/// What attention and feed-forward network are scaled by before they join the residual stream.
const ATTENTION_GAIN: f32 = 0.7;
const FEED_FORWARD_GAIN: f32 = 1.5;

/// The deviation of the residual stream after the last layer, about.
fn final_deviation(spec: &SynthSpec) -> f32 {
    let per_layer = if spec.architecture.normalises_outputs() {
        2.0
    } else {
        // a gated unit's output has a deviation of 0.6; attention adds less
        let feed_forward = 0.6 * FEED_FORWARD_GAIN;
        feed_forward * feed_forward + 0.2
    };
    (1.0 + per_layer * spec.layers as f32).sqrt()
}

/// All tensors of a model, in order of use, which is also their order in the file.
pub(super) fn tensors(spec: &SynthSpec) -> Result<Vec<TensorPlan>, SynthError> {
    spec.check()?;
    let Some(f32_type) = DType::from_name("f32") else {
        unreachable!("f32 is one of ggml's types");
    };
    let mut builder = Builder {
        tensors: Vec::new(),
        f32: f32_type,
    };
    let width = u64::from(spec.embedding);
    let root = (spec.embedding as f32).sqrt();
    let vocabulary = u64::from(spec.vocabulary);

    // A tied head must not answer every token with itself: its rows are small beside what the layers add.
    let gemma = spec.architecture == Architecture::Gemma3;
    let embedding_std = match (spec.tied, gemma) {
        (false, false) => 1.0,
        (false, true) => 1.0 / root,
        (true, false) => 0.5 * final_deviation(spec) / root,
        (true, true) => 0.3 * final_deviation(spec) / (root * root),
    };
    let quiet = if spec.tied { Quiet::Tied } else { Quiet::None };
    builder.push(
        "token_embd.weight".to_owned(),
        vec![width, vocabulary],
        spec.types.embedding,
        Values::Normal {
            std: embedding_std,
            quiet,
        },
    )?;
    for layer in 0..spec.layers {
        push_layer(&mut builder, spec, layer)?;
    }
    let head_std = if spec.tied { embedding_std } else { 1.0 / root };
    let mean = LOGIT_SPREAD / (head_std * root);
    builder.norm("output_norm.weight".to_owned(), width, mean)?;
    if !spec.tied {
        builder.push(
            "output.weight".to_owned(),
            vec![width, vocabulary],
            spec.types.output,
            Values::Normal {
                std: head_std,
                quiet: Quiet::Output,
            },
        )?;
    }
    Ok(builder.tensors)
}

fn push_layer(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let architecture = spec.architecture;
    let width = u64::from(spec.embedding);
    let head = u64::from(spec.head_dim);
    let queries = u64::from(spec.heads) * head;
    let keys = u64::from(spec.kv_heads) * head;
    let normed = architecture.normalises_queries();
    let attention = spec.types.attention;

    builder.norm(name("attn_norm"), width, 1.0)?;
    let sharpness = if normed { 1.0 } else { ATTENTION_SHARPNESS };
    builder.projection(name("attn_q"), &[width, queries], attention, sharpness)?;
    if normed {
        builder.norm(name("attn_q_norm"), head, ATTENTION_SHARPNESS)?;
    }
    builder.projection(name("attn_v"), &[width, keys], attention, 1.0)?;
    builder.projection(name("attn_k"), &[width, keys], attention, 1.0)?;
    if normed {
        builder.norm(name("attn_k_norm"), head, 1.0)?;
    }
    let out = name("attn_output");
    builder.projection(out, &[queries, width], attention, ATTENTION_GAIN)?;
    if architecture.normalises_outputs() {
        builder.norm(name("post_attention_norm"), width, ATTENTION_GAIN)?;
    }

    builder.norm(name("ffn_norm"), width, 1.0)?;
    if architecture.is_mixture() {
        let experts = u64::from(spec.experts);
        let inner = u64::from(spec.expert_feed_forward);
        let dtype = spec.types.experts;
        // the outputs of several experts are averaged, which makes their sum smaller
        let gain = FEED_FORWARD_GAIN * (spec.experts_used as f32).sqrt();
        let up = [width, inner, experts];
        let router = name("ffn_gate_inp");
        builder.projection(router, &[width, experts], builder.f32, 2.0)?;
        builder.projection(name("ffn_gate_exps"), &up, dtype, 1.0)?;
        builder.projection(name("ffn_up_exps"), &up, dtype, 1.0)?;
        builder.projection(name("ffn_down_exps"), &[inner, width, experts], dtype, gain)?;
    } else {
        let inner = u64::from(spec.feed_forward);
        let dtype = spec.types.feed_forward;
        builder.projection(name("ffn_gate"), &[width, inner], dtype, 1.0)?;
        builder.projection(name("ffn_up"), &[width, inner], dtype, 1.0)?;
        builder.projection(name("ffn_down"), &[inner, width], dtype, FEED_FORWARD_GAIN)?;
    }
    if architecture.normalises_outputs() {
        builder.norm(name("post_ffw_norm"), width, 1.0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{layer_of, role_of, Role};
    use crate::synth::{shape, SHAPES};

    #[test]
    fn real_shapes_have_their_real_number_of_parameters() {
        for (name, billions) in [
            ("smollm2-135m", 0.1345),
            ("llama3-8b", 8.03),
            ("minitron-4b", 4.51),
            ("minitron-8b", 8.41),
            ("qwen3-30b-a3b", 30.53),
            ("qwen3-32b", 32.76),
            ("qwen3-235b-a22b", 235.1),
        ] {
            let tensors = tensors(&shape(name).unwrap()).unwrap();
            let count: u64 = tensors
                .iter()
                .map(|t| t.shape.iter().product::<u64>())
                .sum();
            let difference = count as f64 / 1e9 / billions - 1.0;
            assert!(difference.abs() < 0.005, "{name}: {count}");
        }
    }

    #[test]
    fn test_models_have_large_and_small_weights_in_every_layer() {
        const LARGE: u64 = 1 << 20;
        for shape in SHAPES
            .iter()
            .filter(|shape| shape.name.starts_with("tiny-"))
        {
            let spec = shape.spec();
            let tensors = tensors(&spec).unwrap();
            let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            assert!(total < 48 << 20, "{}: {total}", shape.name);
            for layer in 0..spec.layers {
                let of_layer = || {
                    tensors
                        .iter()
                        .filter(move |tensor| layer_of(&tensor.name) == Some(layer))
                };
                let large = of_layer().filter(|tensor| tensor.bytes > LARGE).count();
                assert!(large >= 3, "{}", shape.name);
                assert!(of_layer().any(|tensor| tensor.bytes < LARGE));
                assert!(of_layer()
                    .filter(|tensor| matches!(
                        role_of(&tensor.name),
                        Role::DenseFeedForward | Role::Experts
                    ))
                    .all(|tensor| tensor.bytes > LARGE));
            }
        }
    }

    #[test]
    fn rows_that_do_not_fill_blocks_fall_back() {
        let named = |name| DType::from_name(name).unwrap();
        assert_eq!(fitting(named("q4_K"), 576).name, "q5_0");
        assert_eq!(fitting(named("q6_K"), 576).name, "q8_0");
        assert_eq!(fitting(named("q4_K"), 768).name, "q4_K");
        assert_eq!(fitting(named("q4_0"), 100).name, "f16");
        assert_eq!(fitting(named("q2_K"), 100).name, "f16");
    }

    #[test]
    fn quiet_rows() {
        assert!(Quiet::Output.covers(0) && Quiet::Output.covers(1) && Quiet::Output.covers(2));
        assert!(!Quiet::Tied.covers(1) && Quiet::Tied.covers(2));
        let byte = |byte: u8| u64::from(byte) + 3;
        assert!(!Quiet::Tied.covers(byte(b'a')) && !Quiet::Tied.covers(byte(b'\n')));
        assert!(Quiet::Output.covers(byte(0x80)) && Quiet::Output.covers(byte(0)));
        assert!(!Quiet::Output.covers(Quiet::END));
        assert!(!Quiet::None.covers(0));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let mut spec = shape("tiny-llama").unwrap();
        spec.feed_forward = u32::MAX;
        spec.embedding = u32::MAX - 31;
        assert!(tensors(&spec).is_err());
    }
}
