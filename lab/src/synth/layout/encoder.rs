//! Encoders: every token sees every other one, and norms come after each block.

use super::builder::Builder;
use super::{Quiet, Values, ATTENTION_GAIN, ATTENTION_SHARPNESS, BIAS, FEED_FORWARD_GAIN};
use crate::synth::spec::{Pooling, SynthSpec};
use crate::synth::SynthError;

/// Kinds of text that a token may be part of.
pub(in crate::synth) const TOKEN_TYPES: u32 = 2;

pub(super) fn push(builder: &mut Builder, spec: &SynthSpec) -> Result<(), SynthError> {
    let width = u64::from(spec.embedding);
    let rows = |std: f32| Values::Normal {
        std,
        quiet: Quiet::None,
    };
    for (name, count, dtype, std) in [
        ("token_embd", spec.vocabulary, spec.types.embedding, 1.0),
        ("token_types", TOKEN_TYPES, builder.f32, 0.3),
        ("position_embd", spec.context, builder.f32, 0.3),
    ] {
        let shape = vec![width, u64::from(count)];
        builder.push(format!("{name}.weight"), shape, dtype, rows(std))?;
    }
    push_norm(builder, "token_embd_norm", width)?;
    for layer in 0..spec.layers {
        push_layer(builder, spec, layer)?;
    }
    if spec.pooling == Some(Pooling::Rank) {
        let dtype = builder.f32;
        builder.projection("cls.weight".to_owned(), &[width, width], dtype, 1.0)?;
        builder.bias("cls.bias".to_owned(), &[width], BIAS)?;
        let out = "cls.output.weight".to_owned();
        builder.projection(out, &[width, 1], dtype, 3.0)?;
        builder.bias("cls.output.bias".to_owned(), &[1], BIAS)?;
    }
    Ok(())
}

fn push_norm(builder: &mut Builder, base: &str, width: u64) -> Result<(), SynthError> {
    builder.norm(format!("{base}.weight"), width, 1.0)?;
    builder.bias(format!("{base}.bias"), &[width], 0.1)
}

fn push_layer(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let base = |name: &str| format!("blk.{layer}.{name}");
    let width = u64::from(spec.embedding);
    let keys = u64::from(spec.kv_heads) * u64::from(spec.head_dim);
    let inner = u64::from(spec.feed_forward);
    let (attention, feed_forward) = (spec.types.attention, spec.types.feed_forward);
    let mut biased = |name: &str, shape: [u64; 2], dtype, gain| {
        builder.projection(format!("{}.weight", base(name)), &shape, dtype, gain)?;
        builder.bias(format!("{}.bias", base(name)), &shape[1..], BIAS)
    };
    biased("attn_q", [width, width], attention, ATTENTION_SHARPNESS)?;
    biased("attn_v", [width, keys], attention, 1.0)?;
    biased("attn_k", [width, keys], attention, 1.0)?;
    biased("attn_output", [width, width], attention, ATTENTION_GAIN)?;
    push_norm(builder, &base("attn_output_norm"), width)?;
    let mut biased = |name: &str, shape: [u64; 2], gain| {
        let dtype = feed_forward;
        builder.projection(format!("{}.weight", base(name)), &shape, dtype, gain)?;
        builder.bias(format!("{}.bias", base(name)), &shape[1..], BIAS)
    };
    biased("ffn_up", [width, inner], 1.0)?;
    biased("ffn_down", [inner, width], FEED_FORWARD_GAIN)?;
    push_norm(builder, &base("layer_output_norm"), width)
}
