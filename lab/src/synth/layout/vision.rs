//! Vision towers, under the names that llama.cpp's multimodal library knows.

use super::builder::Builder;
use super::{ATTENTION_GAIN, ATTENTION_SHARPNESS, BIAS, FEED_FORWARD_GAIN};
use crate::synth::spec::{SynthSpec, Vision};
use crate::synth::SynthError;
use pipeshard_model::inventory::DType;

/// Patches that become one token, along each side.
const MERGED: u64 = 2;

/// Red, green and blue.
const COLOURS: u64 = 3;

pub(super) fn push(
    builder: &mut Builder,
    spec: &SynthSpec,
    vision: Vision,
) -> Result<(), SynthError> {
    let width = u64::from(spec.embedding);
    let patch = u64::from(vision.patch);
    // convolutions want floats
    let float = match spec.types.embedding.quantised {
        true => builder.f32,
        false => spec.types.embedding,
    };
    let fan_in = (COLOURS * patch * patch) as f32;
    // the projection divides by the root of the row only
    let gain = (patch as f32 / fan_in).sqrt();
    let shape = [patch, patch, COLOURS, width];
    for name in ["v.patch_embd.weight", "v.patch_embd.weight.1"] {
        builder.projection(name.to_owned(), &shape, float, gain)?;
    }
    for layer in 0..spec.layers {
        push_layer(builder, spec, layer)?;
    }
    builder.norm("v.post_ln.weight".to_owned(), width, 1.0)?;
    let merged = width * MERGED * MERGED;
    let out = u64::from(vision.projection);
    let dtype = spec.types.output;
    for (name, shape) in [("mm.0", [merged, merged]), ("mm.2", [merged, out])] {
        push_biased(builder, name, shape, dtype, 1.0)?;
    }
    Ok(())
}

fn push_biased(
    builder: &mut Builder,
    base: &str,
    shape: [u64; 2],
    dtype: &'static DType,
    gain: f32,
) -> Result<(), SynthError> {
    builder.projection(format!("{base}.weight"), &shape, dtype, gain)?;
    builder.bias(format!("{base}.bias"), &shape[1..], BIAS)
}

fn push_layer(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let base = |name: &str| format!("v.blk.{layer}.{name}");
    let width = u64::from(spec.embedding);
    let inner = u64::from(spec.feed_forward);
    let (attention, feed_forward) = (spec.types.attention, spec.types.feed_forward);
    builder.norm(format!("{}.weight", base("ln1")), width, 1.0)?;
    for (name, gain) in [
        ("attn_q", ATTENTION_SHARPNESS),
        ("attn_k", 1.0),
        ("attn_v", 1.0),
        ("attn_out", ATTENTION_GAIN),
    ] {
        push_biased(builder, &base(name), [width, width], attention, gain)?;
    }
    builder.norm(format!("{}.weight", base("ln2")), width, 1.0)?;
    for (name, shape, gain) in [
        ("ffn_gate", [width, inner], 1.0),
        ("ffn_up", [width, inner], 1.0),
        ("ffn_down", [inner, width], FEED_FORWARD_GAIN),
    ] {
        push_biased(builder, &base(name), shape, feed_forward, gain)?;
    }
    Ok(())
}
