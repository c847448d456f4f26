//! Language models that write text.

use super::builder::Builder;
use super::{
    final_deviation, state_space, Quiet, Values, ATTENTION_GAIN, ATTENTION_SHARPNESS, BIAS,
    FEED_FORWARD_GAIN, LOGIT_SPREAD,
};
use crate::synth::spec::{Latent, SynthSpec};
use crate::synth::{Architecture, SynthError};

/// How far the scores of experts spread. Tokens then agree on experts about as little as in a trained model.
const ROUTER_SHARPNESS: f32 = 2.0;

/// The scale of what routed experts add, where the architecture has one.
pub(in crate::synth) const EXPERT_WEIGHTS_SCALE: f32 = 2.5;

/// What follows from the architecture for the scale of a token embedding.
fn embedding_deviation(spec: &SynthSpec) -> f32 {
    let root = (spec.embedding as f32).sqrt();
    // A tied head must not answer every token with itself: its rows are small compared with what the layers add.
    let gemma = spec.architecture == Architecture::Gemma3;
    match (spec.tied, gemma) {
        (false, false) => 1.0,
        (false, true) => 1.0 / root,
        (true, false) => 0.5 * final_deviation(spec) / root,
        (true, true) => 0.3 * final_deviation(spec) / (root * root),
    }
}

pub(super) fn push(builder: &mut Builder, spec: &SynthSpec) -> Result<(), SynthError> {
    let width = u64::from(spec.embedding);
    let root = (spec.embedding as f32).sqrt();
    let vocabulary = u64::from(spec.vocabulary);
    let std = embedding_deviation(spec);
    let quiet = if spec.tied { Quiet::Tied } else { Quiet::None };
    builder.push(
        "token_embd.weight".to_owned(),
        vec![width, vocabulary],
        spec.types.embedding,
        Values::Normal { std, quiet },
    )?;
    if spec.architecture == Architecture::Phi3 {
        let pairs = u64::from(spec.head_dim / 2);
        for (which, mean) in [("long", 2.0), ("short", 1.0)] {
            builder.norm(format!("rope_factors_{which}.weight"), pairs, mean)?;
        }
    }
    for layer in 0..spec.layers {
        push_layer(builder, spec, layer)?;
    }
    let head_std = if spec.tied { std } else { 1.0 / root };
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
    Ok(())
}

fn push_layer(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let architecture = spec.architecture;
    let width = u64::from(spec.embedding);

    builder.norm(name("attn_norm"), width, 1.0)?;
    match (spec.state_space, spec.latent) {
        (Some(state), _) if spec.layer_is_recurrent(layer) => {
            if architecture == Architecture::Qwen3Next {
                state_space::push_delta_net(builder, spec, state, layer)?;
            } else {
                state_space::push_mamba2(builder, spec, state, layer)?;
            }
        }
        (_, Some(latent)) => push_latent_attention(builder, spec, latent, layer)?,
        _ => push_attention(builder, spec, layer)?,
    }
    if architecture == Architecture::Mamba2 {
        return Ok(());
    }
    if architecture.normalises_outputs() {
        builder.norm(name("post_attention_norm"), width, ATTENTION_GAIN)?;
    }
    if architecture.names_norm_after_attention() {
        builder.norm(name("post_attention_norm"), width, 1.0)?;
    } else {
        builder.norm(name("ffn_norm"), width, 1.0)?;
    }
    if spec.layer_mixes(layer) {
        push_experts(builder, spec, layer)?;
    } else {
        let inner = u64::from(spec.feed_forward);
        let dtype = spec.types.feed_forward;
        if architecture == Architecture::Phi3 {
            builder.projection(name("ffn_up"), &[width, 2 * inner], dtype, 1.0)?;
        } else {
            builder.projection(name("ffn_gate"), &[width, inner], dtype, 1.0)?;
            builder.projection(name("ffn_up"), &[width, inner], dtype, 1.0)?;
        }
        let gain = FEED_FORWARD_GAIN;
        let down = spec.types.finer_in(layer, spec.layers, dtype);
        builder.projection(name("ffn_down"), &[inner, width], down, gain)?;
    }
    if architecture.normalises_outputs() {
        builder.norm(name("post_ffw_norm"), width, 1.0)?;
    }
    Ok(())
}

fn push_attention(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let bias = |base: &str| format!("blk.{layer}.{base}.bias");
    let architecture = spec.architecture;
    let width = u64::from(spec.embedding);
    let head = u64::from(spec.head_dim);
    let queries = u64::from(spec.heads) * head;
    let keys = u64::from(spec.kv_heads) * head;
    let normed = architecture.normalises_queries();
    let dtype = spec.types.attention;

    if architecture == Architecture::Phi3 {
        // one gain for queries and keys, whose product then is as sharp
        let gain = ATTENTION_SHARPNESS.sqrt();
        let shape = [width, queries + 2 * keys];
        builder.projection(name("attn_qkv"), &shape, dtype, gain)?;
    } else {
        let sharpness = if normed { 1.0 } else { ATTENTION_SHARPNESS };
        // a gate for each element comes with the queries
        let gates = match architecture {
            Architecture::Qwen3Next => queries,
            _ => 0,
        };
        let shape = [width, queries + gates];
        builder.projection(name("attn_q"), &shape, dtype, sharpness)?;
        let biased = architecture.biases_queries();
        if biased {
            builder.bias(bias("attn_q"), &[queries], BIAS)?;
        }
        if normed {
            builder.norm(name("attn_q_norm"), head, ATTENTION_SHARPNESS)?;
        }
        let values = spec.types.finer_in(layer, spec.layers, dtype);
        for (base, dtype) in [("attn_v", values), ("attn_k", dtype)] {
            builder.projection(name(base), &[width, keys], dtype, 1.0)?;
            if biased {
                builder.bias(bias(base), &[keys], BIAS)?;
            }
        }
        if normed {
            builder.norm(name("attn_k_norm"), head, 1.0)?;
        }
    }
    if architecture == Architecture::GptOss {
        builder.bias(name("attn_sinks"), &[u64::from(spec.heads)], 1.0)?;
    }
    let out = name("attn_output");
    builder.projection(out, &[queries, width], dtype, ATTENTION_GAIN)?;
    if architecture == Architecture::GptOss {
        builder.bias(bias("attn_output"), &[width], BIAS)?;
    }
    Ok(())
}

fn push_latent_attention(
    builder: &mut Builder,
    spec: &SynthSpec,
    latent: Latent,
    layer: u32,
) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let dtype = spec.types.attention;
    let width = u64::from(spec.embedding);
    let heads = u64::from(spec.heads);
    let query_rank = u64::from(latent.query_rank);
    let key_rank = u64::from(latent.key_rank);
    let rotated = u64::from(latent.rotated);
    let (key, value) = (u64::from(latent.key), u64::from(latent.value));
    let plain = key - rotated;

    builder.projection(name("attn_q_a"), &[width, query_rank], dtype, 1.0)?;
    builder.norm(name("attn_q_a_norm"), query_rank, 1.0)?;
    let sharpness = ATTENTION_SHARPNESS;
    let shape = [query_rank, heads * key];
    builder.projection(name("attn_q_b"), &shape, dtype, sharpness)?;
    let shape = [width, key_rank + rotated];
    builder.projection(name("attn_kv_a_mqa"), &shape, dtype, 1.0)?;
    builder.norm(name("attn_kv_a_norm"), key_rank, 1.0)?;
    // it is used transposed: what counts is that keys, made from `key_rank` numbers, are as large as those
    let gain = (plain as f32 / key_rank as f32).sqrt();
    let shape = [plain, key_rank, heads];
    builder.projection(name("attn_k_b"), &shape, dtype, gain)?;
    let shape = [key_rank, value, heads];
    builder.projection(name("attn_v_b"), &shape, dtype, 1.0)?;
    let shape = [heads * value, width];
    builder.projection(name("attn_output"), &shape, dtype, ATTENTION_GAIN)
}

fn push_experts(builder: &mut Builder, spec: &SynthSpec, layer: u32) -> Result<(), SynthError> {
    let name = |base: &str| format!("blk.{layer}.{base}.weight");
    let bias = |base: &str| format!("blk.{layer}.{base}.bias");
    let architecture = spec.architecture;
    let width = u64::from(spec.embedding);
    let experts = u64::from(spec.experts);
    let inner = u64::from(spec.expert_feed_forward);
    let dtype = spec.types.experts;
    let biased = architecture == Architecture::GptOss;

    let router = [width, experts];
    builder.projection(name("ffn_gate_inp"), &router, builder.f32, ROUTER_SHARPNESS)?;
    if biased {
        builder.bias(bias("ffn_gate_inp"), &[experts], BIAS)?;
    }
    let mut gain = FEED_FORWARD_GAIN * (spec.experts_used as f32).sqrt();
    if architecture == Architecture::Deepseek2 {
        // corrects the load of experts; routing must stay the token's business
        builder.bias(bias("exp_probs_b"), &[experts], 0.02)?;
        gain /= EXPERT_WEIGHTS_SCALE;
    }
    let up = [width, inner, experts];
    let down = spec.types.finer_in(layer, spec.layers, dtype);
    for (base, shape, dtype, gain) in [
        ("ffn_gate_exps", up, dtype, 1.0),
        ("ffn_up_exps", up, dtype, 1.0),
        // the outputs of several experts are averaged, which makes their sum smaller
        ("ffn_down_exps", [inner, width, experts], down, gain),
    ] {
        builder.projection(name(base), &shape, dtype, gain)?;
        if biased {
            builder.bias(bias(base), &[shape[1], experts], BIAS)?;
        }
    }
    let shared = u64::from(spec.shared_feed_forward);
    if shared == 0 {
        return Ok(());
    }
    let dtype = spec.types.feed_forward;
    if architecture == Architecture::Qwen3Next {
        let std = 1.0 / (width as f32).sqrt();
        builder.bias(name("ffn_gate_inp_shexp"), &[width], std)?;
    }
    builder.projection(name("ffn_gate_shexp"), &[width, shared], dtype, 1.0)?;
    builder.projection(name("ffn_up_shexp"), &[width, shared], dtype, 1.0)?;
    let gain = FEED_FORWARD_GAIN;
    builder.projection(name("ffn_down_shexp"), &[shared, width], dtype, gain)
}
