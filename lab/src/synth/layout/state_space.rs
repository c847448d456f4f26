//! Blocks that keep a state instead of a cache.

use super::builder::Builder;
use super::ATTENTION_GAIN;
use crate::synth::spec::{StateSpace, SynthSpec};
use crate::synth::SynthError;

/// The logarithm of the time step, about: one of 0.05 lets a head that decays at a rate of 4 remember five tokens.
const TIME_STEP_LOG: f32 = -3.0;

/// The rate at which states decay, negative as it is stored.
const DECAY: f32 = -4.0;

/// The convolution over the last tokens, and what decides how fast the state decays.
fn push_scan(
    builder: &mut Builder,
    state: StateSpace,
    channels: u64,
    layer: u32,
    parts: Parts,
) -> Result<(), SynthError> {
    let kernel = u64::from(state.kernel);
    let heads = u64::from(state.heads);
    let std = 1.0 / (kernel as f32).sqrt();
    let conv = |suffix: &str| format!("blk.{layer}.ssm_conv1d.{suffix}");
    builder.bias(conv("weight"), &[kernel, channels], std)?;
    if parts.convolution_bias {
        builder.bias(conv("bias"), &[channels], 0.1)?;
    }
    let time_step = format!("blk.{layer}.ssm_dt.bias");
    builder.around(time_step, &[heads], TIME_STEP_LOG, 0.5)?;
    let per_head: &[u64] = if parts.skip { &[1, heads] } else { &[heads] };
    builder.around(format!("blk.{layer}.ssm_a"), per_head, DECAY, 1.0)?;
    if parts.skip {
        builder.around(format!("blk.{layer}.ssm_d"), per_head, 1.0, 0.1)?;
    }
    Ok(())
}

/// What one kind of block has and the other has not.
struct Parts {
    convolution_bias: bool,
    /// A weight for what goes past the state.
    skip: bool,
}

/// Mamba's second version.
pub(super) fn push_mamba2(
    builder: &mut Builder,
    spec: &SynthSpec,
    state: StateSpace,
    layer: u32,
) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let width = u64::from(spec.embedding);
    let inner = u64::from(state.inner);
    let groups = u64::from(state.groups);
    let channels = inner + 2 * groups * u64::from(state.state);
    let dtype = spec.types.attention;

    let shape = [width, inner + channels + u64::from(state.heads)];
    builder.projection(name("ssm_in"), &shape, dtype, 1.0)?;
    let parts = Parts {
        convolution_bias: true,
        skip: true,
    };
    push_scan(builder, state, channels, layer, parts)?;
    builder.around(name("ssm_norm"), &[inner / groups, groups], 1.0, 0.1)?;
    builder.projection(name("ssm_out"), &[inner, width], dtype, ATTENTION_GAIN)
}

/// Qwen's gated delta net.
pub(super) fn push_delta_net(
    builder: &mut Builder,
    spec: &SynthSpec,
    state: StateSpace,
    layer: u32,
) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let width = u64::from(spec.embedding);
    let values = u64::from(state.inner);
    let keys = u64::from(state.groups) * u64::from(state.state);
    let channels = 2 * keys + values;
    let dtype = spec.types.attention;

    builder.projection(name("attn_qkv"), &[width, channels], dtype, 1.0)?;
    let shape = [width, 2 * u64::from(state.heads)];
    builder.projection(name("ssm_ba"), &shape, dtype, 1.0)?;
    let parts = Parts {
        convolution_bias: false,
        skip: false,
    };
    push_scan(builder, state, channels, layer, parts)?;
    builder.norm(name("ssm_norm"), u64::from(state.state), 1.0)?;
    builder.projection(name("ssm_out"), &[values, width], dtype, ATTENTION_GAIN)?;
    builder.projection(name("attn_gate"), &[width, values], dtype, 1.0)
}
