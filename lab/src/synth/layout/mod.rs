//! Which tensors a synthetic model has, and how their values are distributed.
//!
//! The deviations keep a random network alive: activations stay of order one, attention looks at few tokens instead of
//! averaging over all, every layer adds something of its own, and the logits spread enough for distinct tokens. A
//! mixture of experts then routes about as broadly as a trained one. Weights that are equal across layers or an
//! attention that averages would make all tokens alike, and with them the experts.

mod builder;
mod decoder;
mod encoder;
mod state_space;
mod tensor;
mod vision;

use super::spec::SynthSpec;
use super::{Architecture, SynthError};

pub(super) use builder::Builder;
pub(super) use decoder::EXPERT_WEIGHTS_SCALE;
pub(super) use encoder::TOKEN_TYPES;
pub(super) use tensor::{Quiet, TensorPlan, Values};

/// How sharply queries pick keys: the deviation of the attention scores. With 2, a token attends to one in fifty.
const ATTENTION_SHARPNESS: f32 = 2.0;

/// The deviation of the logits.
const LOGIT_SPREAD: f32 = 3.0;

/// What attention and feed-forward network are scaled by before they join the residual stream.
const ATTENTION_GAIN: f32 = 0.7;
const FEED_FORWARD_GAIN: f32 = 1.5;

/// The deviation of biases, of the outputs of a projection about a third.
const BIAS: f32 = 0.3;

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
    let mut builder = Builder::new();
    match (spec.architecture, spec.vision) {
        (Architecture::Clip, Some(vision)) => vision::push(&mut builder, spec, vision)?,
        (Architecture::Bert, _) => encoder::push(&mut builder, spec)?,
        _ => decoder::push(&mut builder, spec)?,
    }
    Ok(builder.tensors)
}

#[cfg(test)]
mod tests {
    use super::builder::fitting;
    use super::*;
    use crate::synth::{shape, SHAPES};
    use pipeshard_model::inventory::layer_of;
    use pipeshard_model::inventory::DType;

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
            ("cosmos-reason1-7b", 7.62),
            ("cosmos-reason1-7b-mmproj", 0.676),
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
        for shape in SHAPES
            .iter()
            .filter(|shape| shape.name.starts_with("tiny-"))
        {
            let spec = shape.spec();
            let tensors = tensors(&spec).unwrap();
            let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            assert!(total < 48 << 20, "{}: {total}", shape.name);
            // what the planner calls small, with room for a model that is loaded in part
            let threshold = total / 4096;
            for layer in (0..spec.layers).filter(|_| spec.vision.is_none()) {
                let of_layer = || {
                    tensors
                        .iter()
                        .filter(move |tensor| layer_of(&tensor.name) == Some(layer))
                };
                let large = of_layer().filter(|tensor| tensor.bytes > 4 * threshold);
                assert!(large.count() >= 2, "{}", shape.name);
                assert!(
                    of_layer().any(|tensor| tensor.bytes < threshold),
                    "{}",
                    shape.name
                );
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
        assert_eq!(fitting(named("iq4_xs"), 96).name, "iq4_nl");
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
