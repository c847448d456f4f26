//! What a tensor is for and when it is used, told from its name.
//!
//! The names are those of llama.cpp's own table (`llama-arch.cpp`): an optional `enc.` or `dec.`, `blk.N.` for what
//! belongs to a layer, a base name, and a suffix such as `.weight` or `.bias`.

use std::cmp::Ordering;

use super::types::{Role, TensorInfo};

/// A tensor's name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts<'a> {
    section: Section,
    layer: Option<u32>,
    base: &'a str,
    suffix: &'a str,
}

/// The large pieces of a model in the order in which a pass runs through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Input,
    Encoder,
    EncoderOutput,
    Layers,
    Output,
}

const SUFFIXES: &[&str] = &["weight", "bias", "scale", "input_scale"];

/// Base names outside the layers that are used after them.
const OUTPUT_BASES: &[&str] = &[
    "output_res_score",
    "output_hc_norm",
    "output_hc_fn",
    "output_hc_base",
    "output_hc_scale",
    "output_hc_down",
    "output_hc_up",
    "output_norm",
    "altup_unembd_proj",
    "nextn.post_projection",
    "fc",
    "cls.norm",
    "cls",
    "cls.output",
    "dense_2",
    "dense_3",
    "output",
    "d2t",
    "markov_w1",
    "markov_w2",
    "conf_proj",
    "selector_predecessor",
    "selector_successor",
    "selector_hidden",
];

/// Base names outside the layers that are used before them.
const INPUT_BASES: &[&str] = &[
    "token_embd",
    "token_types",
    "position_embd",
    "token_embd_norm",
    "masked_embd_centroids",
    "masked_embd_ordering",
    "nextn.pre_projection",
    "altup_proj",
    "per_layer_token_embd",
    "per_layer_model_proj",
    "per_layer_proj_norm",
    "rope_freqs",
    "rope_factors_long",
    "rope_factors_short",
];

/// Base names within a layer in order of use. llama.cpp evaluates the gate before the up projection, and V before K in
/// most architectures.
const LAYER_BASES: &[&str] = &[
    // what comes before attention
    "nextn.embed_tokens",
    "nextn.enorm",
    "nextn.hnorm",
    "nextn.eh_proj",
    "ple_norm_key",
    "ple_norm_query",
    "ple_norm_conv",
    "ple_key",
    "ple_value",
    "ple_conv1d",
    "altup_router_norm",
    "altup_router",
    "altup_predict_coef",
    "attn_res_score",
    "hc_attn_norm",
    "hc_attn_fn",
    "hc_attn_base",
    "hc_attn_scale",
    "hc_attn_down",
    "hc_attn_up",
    "attn_norm",
    "attn_norm_2",
    "laurel_l",
    "laurel_r",
    "laurel_post_norm",
    // attention
    "attn_conv_base",
    "attn_conv_proj",
    "attn_qkv",
    "vis_attn_qkv",
    "attn_q_a",
    "attn_q_a_norm",
    "attn_q_b",
    "attn_q",
    "attn_q_norm",
    "attn_kv",
    "attn_kv_a_mqa",
    "attn_kv_a_norm",
    "attn_kv_b",
    "attn_k_b",
    "attn_v",
    "attn_k",
    "attn_k_norm",
    "attn_rot_embd",
    "indexer.q_proj",
    "indexer.attn_q_b",
    "indexer.q_norm",
    "indexer.k_proj",
    "indexer.attn_k",
    "indexer.k_norm",
    "indexer.proj",
    "indexer_compressor_kv",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "indexer_compressor_norm",
    "attn_compressor_kv",
    "attn_compressor_gate",
    "attn_compressor_ape",
    "attn_compressor_norm",
    "attn_rel_b",
    "attn_sinks",
    // recurrent blocks, which replace attention or come in addition to it
    "ssm_in",
    "ssm_ba",
    "ssm_conv1d",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "ssm_x",
    "ssm_dt_norm",
    "ssm_b_norm",
    "ssm_c_norm",
    "ssm_dt",
    "ssm_f_a",
    "ssm_f_b",
    "ssm_alpha",
    "ssm_beta",
    "ssm_a",
    "ssm_d",
    "ssm_g",
    "ssm_g_a",
    "ssm_g_b",
    "ssm_norm",
    "ssm_out",
    "shortconv.in_proj",
    "shortconv.conv",
    "shortconv.out_proj",
    // attention's output
    "attn_v_b",
    "attn_gate",
    "attn_sub_norm",
    "attn_output_a",
    "attn_output_b",
    "attn_output",
    "attn_o",
    "vis_attn_output",
    "attn_output_norm",
    "hc_attn_inject",
    "post_attention_norm",
    // cross-attention
    "cross_attn_norm",
    "cross_attn_q",
    "cross_attn_v",
    "cross_attn_k",
    "cross_attn_rel_b",
    "cross_attn_o",
    // feed-forward
    "altup_correct_coef",
    "altup_correct_scale",
    "ffn_res_score",
    "hc_ffn_norm",
    "hc_ffn_fn",
    "hc_ffn_base",
    "hc_ffn_scale",
    "hc_ffn_down",
    "hc_ffn_up",
    "ffn_conv_base",
    "ffn_conv_proj",
    "ffn_norm",
    "pre_ffw_norm_2",
    "ffn_norm_exps",
    "ffn_gate_inp",
    "ffn_gate_tid2eid",
    "exp_probs_b",
    "exp_probs_b_vl",
    "ffn_latent_down",
    "ffn_routed_down",
    "ffn_gate_up_exps",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_chexps",
    "ffn_up_chexps",
    "ffn_down_chexps",
    "ffn_routed_norm",
    "ffn_routed_up",
    "ffn_latent_up",
    "ffn_gate_inp_shexp",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ffn_gate",
    "vis_gate",
    "ffn_up",
    "vis_up",
    "ffn.act",
    "ffn_sub_norm",
    "ffn_down",
    "vis_down",
    "hc_ffn_inject",
    "post_ffw_norm_1",
    "post_ffw_norm_2",
    "post_ffw_norm",
    "layer_output_norm",
    // what comes after it
    "inp_gate",
    "proj",
    "post_norm",
    "layer_output_scale",
    "nextn.shared_head_norm",
    "nextn.shared_head_head",
];

fn parse(name: &str) -> Parts<'_> {
    let (stack, rest) = match name.split_once('.') {
        Some(("enc", rest)) => (Section::Encoder, rest),
        Some(("dec", rest)) => (Section::Layers, rest),
        _ => (Section::Layers, name),
    };
    let numbered = rest.strip_prefix("blk.").and_then(|rest| {
        let (number, rest) = rest.split_once('.')?;
        Some((number.parse::<u32>().ok()?, rest))
    });
    let (layer, rest) = match numbered {
        Some((layer, rest)) => (Some(layer), rest),
        None => (None, rest),
    };
    let (base, suffix) = match rest.rsplit_once('.') {
        Some((base, suffix)) if SUFFIXES.contains(&suffix) => (base, suffix),
        _ => (rest, ""),
    };
    let section = match (layer, stack) {
        (Some(_), stack) => stack,
        (None, Section::Encoder) => Section::EncoderOutput,
        (None, _) if OUTPUT_BASES.contains(&base) => Section::Output,
        (None, _) => Section::Input,
    };
    Parts {
        section,
        layer,
        base,
        suffix,
    }
}

/// The base without a trailing expert number: old files keep each expert in a tensor of its own (`ffn_up.7`).
fn without_expert(base: &str) -> (&str, Option<u32>) {
    match base.rsplit_once('.') {
        Some((stem, number)) => match number.parse() {
            Ok(expert) => (stem, Some(expert)),
            Err(_) => (base, None),
        },
        None => (base, None),
    }
}

fn is_norm(base: &str) -> bool {
    base.split(['_', '.'])
        .any(|word| matches!(word, "norm" | "enorm" | "hnorm" | "ln"))
}

/// The layer that a tensor of this name belongs to.
pub fn layer_of(name: &str) -> Option<u32> {
    parse(name).layer
}

/// What a tensor of this name is for.
pub fn role_of(name: &str) -> Role {
    let parts = parse(name);
    let (base, expert) = without_expert(parts.base);
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| base.starts_with(prefix));
    if is_norm(base) {
        return Role::Norm;
    }
    if matches!(
        base,
        "token_embd"
            | "position_embd"
            | "token_types"
            | "per_layer_token_embd"
            | "nextn.embed_tokens"
    ) {
        return Role::TokenEmbedding;
    }
    if parts.layer.is_none() {
        return match parts.section {
            Section::Output => Role::Output,
            _ => Role::Other,
        };
    }
    if base == "nextn.shared_head_head" {
        Role::Output
    } else if base.ends_with("_shexp") {
        Role::SharedExperts
    } else if base.ends_with("_exps") || base.ends_with("_chexps") {
        Role::Experts
    } else if starts(&["ffn_gate_inp", "ffn_gate_tid2eid", "exp_probs_b"]) {
        Role::Router
    } else if starts(&["ssm_", "time_mix_", "shortconv."]) {
        Role::Recurrent
    } else if base.ends_with("_res_score") {
        Role::Other
    } else if starts(&["attn_", "cross_attn_", "vis_attn_", "indexer"]) {
        Role::Attention
    } else if starts(&["ffn_", "ffn.", "vis_", "channel_mix_"]) {
        match expert {
            Some(_) => Role::Experts,
            None => Role::DenseFeedForward,
        }
    } else {
        Role::Other
    }
}

/// Where within its section a base name comes. Unknown names go to the place of their role, so that a new
/// architecture keeps a sensible order.
fn rank(parts: &Parts<'_>) -> usize {
    let (base, _) = without_expert(parts.base);
    let table = match parts.section {
        Section::Input => INPUT_BASES,
        Section::Output | Section::EncoderOutput => OUTPUT_BASES,
        Section::Encoder | Section::Layers => LAYER_BASES,
    };
    let position = |base: &str| table.iter().position(|&known| known == base);
    if let Some(position) = position(base) {
        return position;
    }
    let neighbour = if base.starts_with("time_mix_") {
        "ssm_in"
    } else if base.starts_with("channel_mix_") || base.starts_with("ffn") {
        "ffn_up"
    } else if base.contains("attn") {
        "attn_k"
    } else {
        return table.len();
    };
    position(neighbour).unwrap_or(table.len())
}

/// The canonical order: inputs, layers by number with their tensors in order of use, outputs. Depends on names
/// alone, so that a file and a loaded model agree.
pub fn canonical_order(a: &TensorInfo, b: &TensorInfo) -> Ordering {
    let key = |tensor: &TensorInfo| {
        let parts = parse(&tensor.name);
        let (_, expert) = without_expert(parts.base);
        let suffix = SUFFIXES
            .iter()
            .position(|&known| known == parts.suffix)
            .unwrap_or(SUFFIXES.len());
        (parts.section, parts.layer, rank(&parts), expert, suffix)
    };
    key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str) -> TensorInfo {
        TensorInfo {
            name: name.to_owned(),
            layer: layer_of(name),
            role: role_of(name),
            type_name: "f32".to_owned(),
            ggml_type: 0,
            shape: [1; 4],
            bytes: 4,
            device_bytes: 4,
        }
    }

    #[test]
    fn roles() {
        use Role::*;
        for (name, role, layer) in [
            ("token_embd.weight", TokenEmbedding, None),
            ("per_layer_token_embd.weight", TokenEmbedding, None),
            ("position_embd.weight", TokenEmbedding, None),
            ("token_embd_norm.weight", Norm, None),
            ("rope_freqs.weight", Other, None),
            ("per_layer_model_proj.weight", Other, None),
            ("output.weight", Output, None),
            ("output.bias", Output, None),
            ("cls.output.weight", Output, None),
            ("output_norm.weight", Norm, None),
            ("blk.0.attn_norm.weight", Norm, Some(0)),
            ("blk.12.attn_q.weight", Attention, Some(12)),
            ("blk.12.attn_q.bias", Attention, Some(12)),
            ("blk.1.attn_q_norm.weight", Norm, Some(1)),
            ("blk.1.attn_kv_a_mqa.weight", Attention, Some(1)),
            ("blk.1.attn_kv_a_norm.weight", Norm, Some(1)),
            ("blk.1.attn_k_b.weight", Attention, Some(1)),
            ("blk.1.attn_sinks.weight", Attention, Some(1)),
            ("blk.1.indexer.proj.weight", Attention, Some(1)),
            ("blk.1.indexer.k_norm.bias", Norm, Some(1)),
            ("blk.1.post_attention_norm.weight", Norm, Some(1)),
            ("blk.1.post_ffw_norm.weight", Norm, Some(1)),
            ("blk.1.ffn_gate.weight", DenseFeedForward, Some(1)),
            ("blk.1.ffn_down.bias", DenseFeedForward, Some(1)),
            ("blk.1.ffn.act", DenseFeedForward, Some(1)),
            ("blk.1.channel_mix_key.weight", DenseFeedForward, Some(1)),
            ("blk.1.ffn_gate_inp.weight", Router, Some(1)),
            ("blk.1.ffn_gate_inp_shexp.weight", SharedExperts, Some(1)),
            ("blk.1.exp_probs_b.bias", Router, Some(1)),
            ("blk.1.ffn_down_exps.weight", Experts, Some(1)),
            ("blk.1.ffn_gate_up_exps.weight", Experts, Some(1)),
            ("blk.1.ffn_up.7.weight", Experts, Some(1)),
            ("blk.1.ffn_down_shexp.weight", SharedExperts, Some(1)),
            ("blk.1.ssm_in.weight", Recurrent, Some(1)),
            ("blk.1.ssm_a", Recurrent, Some(1)),
            ("blk.1.ssm_norm.weight", Norm, Some(1)),
            ("blk.1.time_mix_key.weight", Recurrent, Some(1)),
            ("blk.1.time_mix_ln.weight", Norm, Some(1)),
            ("blk.1.shortconv.conv.weight", Recurrent, Some(1)),
            ("blk.1.inp_gate.weight", Other, Some(1)),
            ("blk.47.nextn.eh_proj.weight", Other, Some(47)),
            ("blk.47.nextn.enorm.weight", Norm, Some(47)),
            ("blk.47.nextn.embed_tokens.weight", TokenEmbedding, Some(47)),
            ("blk.47.nextn.shared_head_head.weight", Output, Some(47)),
            ("enc.blk.2.attn_q.weight", Attention, Some(2)),
            ("dec.blk.2.cross_attn_q.weight", Attention, Some(2)),
            ("dec.output_norm.weight", Norm, None),
            ("blk.x.attn_q.weight", Other, None),
            ("", Other, None),
        ] {
            assert_eq!((role_of(name), layer_of(name)), (role, layer), "{name}");
        }
    }

    #[test]
    fn order_of_use() {
        let expected = [
            "token_embd.weight",
            "rope_freqs.weight",
            "blk.0.attn_norm.weight",
            "blk.0.attn_q.weight",
            "blk.0.attn_q.bias",
            "blk.0.attn_v.weight",
            "blk.0.attn_k.weight",
            "blk.0.attn_k_norm.weight",
            "blk.0.attn_output.weight",
            "blk.0.ffn_norm.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_down.weight",
            "blk.2.attn_norm.weight",
            "blk.2.attn_brand_new.weight",
            "blk.2.ffn_gate_inp.weight",
            "blk.2.ffn_up.2.weight",
            "blk.2.ffn_up.10.weight",
            "blk.2.ffn_up_shexp.weight",
            "blk.2.unheard_of.weight",
            "blk.10.attn_norm.weight",
            "output_norm.weight",
            "output.weight",
        ];
        let mut tensors: Vec<_> = expected.iter().rev().map(|name| tensor(name)).collect();
        tensors.sort_by(canonical_order);
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        // experts in tensors of their own share the place of the dense projection of that name
        let expected_moe_last = [
            "blk.2.ffn_up_shexp.weight",
            "blk.2.ffn_up.2.weight",
            "blk.2.ffn_up.10.weight",
        ];
        let mut expected = expected.to_vec();
        expected.splice(16..19, expected_moe_last);
        assert_eq!(names, expected);
    }

    #[test]
    fn encoder_comes_before_decoder() {
        let mut tensors: Vec<_> = [
            "dec.output_norm.weight",
            "dec.blk.0.attn_q.weight",
            "enc.output_norm.weight",
            "enc.blk.1.attn_q.weight",
            "token_embd.weight",
        ]
        .iter()
        .map(|name| tensor(name))
        .collect();
        tensors.sort_by(canonical_order);
        assert_eq!(tensors[0].name, "token_embd.weight");
        assert_eq!(tensors[1].name, "enc.blk.1.attn_q.weight");
        assert_eq!(tensors[2].name, "enc.output_norm.weight");
        assert_eq!(tensors[3].name, "dec.blk.0.attn_q.weight");
        assert_eq!(tensors[4].name, "dec.output_norm.weight");
    }
}
