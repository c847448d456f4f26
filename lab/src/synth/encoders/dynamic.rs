//! Encoders that take an image at the size that it has.

use super::draft::{Draft, Layer, FUSED, GATED, PLAIN};

/// The smallest and the largest image, in pixels, of models that have to say so.
const PIXELS: [u32; 2] = [56 * 56, 1120 * 1120];

/// Pixels along a side of a window.
const WINDOW: u32 = 112;

/// Layers of Qwen2.5-VL and those made after it.
const QWEN25: Layer = Layer {
    biased: true,
    biased_keys: true,
    ..GATED
};

fn limits(draft: &mut Draft<'_>) {
    draft.number("vision.image_min_pixels", PIXELS[0]);
    draft.number("vision.image_max_pixels", PIXELS[1]);
}

/// Two matrices over four neighbouring patches.
fn merger(draft: &mut Draft<'_>) {
    let (merged, out) = (4 * draft.width(), draft.out());
    draft.two_layers(["mm.0", "mm.2"], [merged, merged, out]);
}

/// No windows.
pub(super) fn qwen2vl(draft: &mut Draft<'_>) {
    draft.images("qwen2vl_merger");
    draft.patches_from_frames();
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
    merger(draft);
}

fn qwen25_tensors(draft: &mut Draft<'_>) {
    draft.flag("use_silu");
    draft.number("vision.n_wa_pattern", 2);
    draft.patches_from_frames();
    draft.layers(QWEN25);
    draft.scale("v.post_ln", draft.width());
    merger(draft);
}

/// Images as Qwen2.5-VL, and sound as Qwen2-Audio.
pub(super) fn qwen25_omni(draft: &mut Draft<'_>) {
    draft.images("qwen2.5vl_merger");
    qwen25_tensors(draft);
    super::sound::qwen2a(draft);
}

/// The features of a middle layer are concatenated with those of the last.
pub(super) fn qwen3vl(draft: &mut Draft<'_>) {
    let (merged, out) = (4 * draft.width(), draft.out() / 2);
    draft.images("qwen3vl_merger");
    draft.flag("use_gelu");
    draft.patches_from_frames();
    draft.bias("v.patch_embd", draft.width());
    draft.positions(draft.patches());
    draft.layers(FUSED);
    draft.norm("v.deepstack.0.norm", merged);
    let bases = ["v.deepstack.0.fc1", "v.deepstack.0.fc2"];
    draft.two_layers(bases, [merged, merged, out]);
    draft.norm("v.post_ln", draft.width());
    draft.two_layers(["mm.0", "mm.2"], [merged, merged, out]);
}

pub(super) fn ling3vl(draft: &mut Draft<'_>) {
    draft.images("ling3vl");
    draft.flag("use_gelu");
    draft.patches_from_frames();
    draft.bias("v.patch_embd", draft.width());
    draft.positions(draft.patches());
    draft.layers(FUSED);
    draft.norm("mm.input_norm", draft.width());
    merger(draft);
}

/// Windows, and fewer heads of keys than of queries.
pub(super) fn exaone(draft: &mut Draft<'_>) {
    draft.images("exaone4_5");
    limits(draft);
    draft.flag("use_silu");
    draft.number("vision.n_wa_pattern", 2);
    draft.patches_from_frames();
    draft.layers(Layer {
        fused: true,
        ..QWEN25
    });
    draft.scale("v.post_ln", draft.width());
    merger(draft);
}

/// Windows; patches are cut out by copies.
pub(super) fn youtuvl(draft: &mut Draft<'_>) {
    draft.images("youtuvl");
    draft.flag("use_gelu");
    draft.number("vision.window_size", WINDOW);
    draft.numbers("vision.wa_layer_indexes", &[1]);
    draft.matrix("v.patch_embd.weight", &[draft.pixels(), draft.width()]);
    draft.bias("v.patch_embd", draft.width());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
    draft.scale("mm.input_norm", draft.width());
    merger(draft);
}

/// Windows of 32 by 32 patches in all but the last layer.
pub(super) fn muse_glimmer(draft: &mut Draft<'_>) {
    let (merged, out) = (4 * draft.width(), draft.out());
    draft.images("muse-glimmer");
    draft.patches_from_pixels();
    draft.positions(draft.patches());
    draft.norm("v.pre_ln", draft.width());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
    for (name, shape) in [
        (0, [merged, merged]),
        (1, [merged, merged]),
        (2, [merged, out]),
    ] {
        draft.matrix(&format!("mm.{name}.weight"), &shape);
    }
}

/// A band around each patch, along rows and along columns, and sinks.
pub(super) fn mimovl(draft: &mut Draft<'_>) {
    let (merged, out) = (4 * draft.width(), draft.out());
    draft.images("mimovl");
    limits(draft);
    draft.flag("use_silu");
    draft.number("vision.window_size", 32);
    let modes: Vec<i32> = (0..draft.count().cast_signed())
        .map(|layer| layer % 3 - 1)
        .collect();
    draft.numbers("vision.wa_pattern_mode", &modes);
    draft.patches_from_frames();
    draft.layers(Layer {
        fused: true,
        ..QWEN25
    });
    for layer in 0..draft.count() {
        draft.table(&format!("v.blk.{layer}.attn_sinks"), &[draft.heads()]);
    }
    draft.norm("v.post_ln", draft.width());
    draft.matrix("mm.0.weight", &[merged, merged]);
    draft.matrix("mm.2.weight", &[merged, out]);
}

/// Positions as rotations, a merger that unfolds, a token at the end of each row.
pub(super) fn pixtral(draft: &mut Draft<'_>) {
    draft.images("pixtral");
    pixtral_tensors(draft);
    draft.table("v.token_embd.img_break", &[draft.out()]);
}

pub(super) fn lightonocr(draft: &mut Draft<'_>) {
    draft.images("lightonocr");
    pixtral_tensors(draft);
}

fn pixtral_tensors(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.flag("use_silu");
    draft.number("vision.spatial_merge_size", 2);
    draft.patches_from_pixels();
    draft.scale("v.pre_ln", width);
    draft.layers(GATED);
    draft.scale("mm.input_norm", width);
    draft.matrix("mm.patch_merger.weight", &[4 * width, width]);
    draft.two_layers(["mm.1", "mm.2"], [width, out, out]);
}

/// A norm, and two matrices over merged patches.
fn normed_merger(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.number("vision.projector.scale_factor", 2);
    draft.norm("mm.input_norm", width);
    draft.two_layers(["mm.1", "mm.2"], [4 * width, 4 * width, out]);
}

pub(super) fn kimivl(draft: &mut Draft<'_>) {
    draft.images("kimivl");
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", draft.width());
    draft.positions(draft.patches());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
    normed_merger(draft);
}

pub(super) fn kimik25(draft: &mut Draft<'_>) {
    draft.images("kimik25");
    limits(draft);
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", draft.width());
    draft.table("v.position_embd.weight", &[draft.width(), 8, 8]);
    draft.layers(FUSED);
    draft.norm("v.post_ln", draft.width());
    normed_merger(draft);
}

pub(super) fn paddleocr(draft: &mut Draft<'_>) {
    draft.images("paddleocr");
    limits(draft);
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", draft.width());
    draft.positions(draft.patches());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
    normed_merger(draft);
}

fn glm_tensors(draft: &mut Draft<'_>) {
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.flag("use_silu");
    draft.patches_from_frames();
    draft.bias("v.patch_embd", width);
    draft.scale("v.norm_embd", width);
    draft.positions(draft.patches());
    draft.layers(Layer {
        fused: true,
        ..GATED
    });
    draft.scale("v.post_ln", width);
    draft.convolution("mm.patch_merger.weight", &[2, 2, width, out]);
    draft.bias("mm.patch_merger", out);
    draft.matrix("mm.model.fc.weight", &[out, out]);
    draft.norm("mm.post_norm", out);
    draft.matrix("mm.up.weight", &[out, inner]);
    draft.matrix("mm.gate.weight", &[out, inner]);
    draft.matrix("mm.down.weight", &[inner, out]);
}

/// Positions that are resized, a merger that is a convolution, a gated projector.
pub(super) fn glm4v(draft: &mut Draft<'_>) {
    draft.images("glm4v");
    glm_tensors(draft);
}

pub(super) fn glm5v(draft: &mut Draft<'_>) {
    draft.images("glm5v");
    limits(draft);
    draft.add(
        "vision.swiglu_clamp",
        pipeshard_gguf::container::Value::F32(7.0),
    );
    glm_tensors(draft);
}

fn dots_tensors(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    limits(draft);
    draft.flag("use_silu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.scale("v.pre_ln", width);
    draft.norm("mm.input_norm", width);
    draft.scale("mm.post_norm", width);
    draft.two_layers(["mm.0", "mm.2"], [4 * width, 4 * width, out]);
}

pub(super) fn dots_ocr(draft: &mut Draft<'_>) {
    draft.images("dots_ocr");
    draft.number("vision.projector.scale_factor", 2);
    draft.layers(Layer {
        fused: true,
        ..GATED
    });
    dots_tensors(draft);
}

/// A mixture of experts.
pub(super) fn dots3note(draft: &mut Draft<'_>) {
    let (width, inner, experts) = (draft.width(), draft.inner(), 4);
    draft.images("dots3note_v");
    draft.number("vision.spatial_merge_size", 2);
    draft.number("vision.expert_used_count", 2);
    draft.attentions(Layer {
        fused: true,
        ..GATED
    });
    for layer in 0..draft.count() {
        let at = |name: &str| format!("v.blk.{layer}.{name}.weight");
        draft.matrix(&at("ffn_gate_inp"), &[width, experts]);
        draft.matrix(&at("ffn_gate_exps"), &[width, inner, experts]);
        draft.matrix(&at("ffn_up_exps"), &[width, inner, experts]);
        draft.matrix(&at("ffn_down_exps"), &[inner, width, experts]);
        draft.table(&at("exp_probs_b"), &[experts]);
    }
    dots_tensors(draft);
}

pub(super) fn minimax(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("minimax_m3");
    draft.patches_from_frames();
    draft.norm("v.pre_ln", width);
    draft.layers(PLAIN);
    draft.two_layers(["mm.1", "mm.2"], [width, width, out]);
    let bases = ["mm.merger.fc1", "mm.merger.fc2"];
    draft.two_layers(bases, [4 * out, out, out]);
}

/// Positions that are computed on the host, from weights that it reads back.
pub(super) fn hunyuan(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("hunyuanvl");
    limits(draft);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", width);
    draft.scale("mm.pre_norm", width);
    draft.convolution("mm.0.weight", &[2, 2, width, 2 * width]);
    draft.bias("mm.0", 2 * width);
    draft.convolution("mm.2.weight", &[1, 1, 2 * width, 2 * width]);
    draft.bias("mm.2", 2 * width);
    draft.table("v.image_newline", &[2 * width]);
    draft.linear("mm.model.fc", 2 * width, out);
    draft.table("mm.image_begin", &[out]);
    draft.table("mm.image_end", &[out]);
    draft.scale("mm.post_norm", out);
}

/// Tokens in an order of its own, with learned ones between.
pub(super) fn deepseek4(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("deepseek4v");
    draft.number("vision.projector.scale_factor", 3);
    draft.number("vision.image_min_pixels", PIXELS[0]);
    draft.flag("use_silu");
    draft.patches_from_pixels();
    draft.scale("v.pre_ln", width);
    draft.layers(GATED);
    draft.scale("v.post_ln", width);
    draft.two_layers(["mm.1", "mm.2"], [9 * width, out, out]);
    for name in [
        "v.image_newline",
        "v.token_embd.img_start",
        "v.token_embd.img_end",
    ] {
        draft.table(name, &[out]);
    }
    draft.table("v.token_embd.img_pad", &[out]);
}

/// Positions in two tables, normalised values, pooling.
pub(super) fn gemma4(draft: &mut Draft<'_>) {
    let width = draft.width();
    draft.images("gemma4v");
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.table("v.position_embd.weight", &[width, 128, 2]);
    draft.layers(GATED);
    draft.matrix("mm.input_projection.weight", &[width, draft.out()]);
}

/// No layers at all: patches, norms, a matrix.
pub(super) fn gemma4_unified(draft: &mut Draft<'_>) {
    let (width, pixels) = (draft.width(), 9 * draft.pixels());
    draft.without_layers();
    draft.images("gemma4uv");
    draft.matrix("v.patch_embd.weight", &[pixels, width]);
    draft.bias("v.patch_embd", width);
    draft.table("v.position_embd.weight", &[width, 128, 2]);
    for (norm, width) in [(1, pixels), (2, width), (3, width)] {
        draft.norm(&format!("v.patch_norm.{norm}"), width);
    }
    draft.matrix("mm.input_projection.weight", &[width, draft.out()]);
}

/// Positions that are resized, no merging.
pub(super) fn phi4(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("phi4");
    limits(draft);
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches());
    draft.layers(PLAIN);
    draft.two_layers(["mm.0", "mm.2"], [width, out, out]);
}
