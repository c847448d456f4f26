//! Encoders that scale every image to one square.

use super::draft::{Draft, FUSED, PLAIN};

/// CLIP: a class token, learned positions.
fn clip(draft: &mut Draft<'_>, projector: &str) {
    draft.images(projector);
    draft.table("v.class_embd", &[draft.width()]);
    draft.patches_from_pixels();
    draft.positions(draft.patches() + 1);
    draft.norm("v.pre_ln", draft.width());
    draft.layers(PLAIN);
}

/// SigLIP: no class token.
pub(super) fn siglip(draft: &mut Draft<'_>, projector: &str) {
    draft.images(projector);
    draft.flag("use_gelu");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", draft.width());
    draft.positions(draft.patches());
    draft.layers(PLAIN);
    draft.norm("v.post_ln", draft.width());
}

/// LLaVA 1.5.
pub(super) fn llava(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    clip(draft, "mlp");
    draft.two_layers(["mm.0", "mm.2"], [width, out, out]);
}

/// LLaVA 1.6: an overview and tiles.
pub(super) fn llava_tiled(draft: &mut Draft<'_>) {
    llava(draft);
    let side = draft.side().cast_signed();
    let points = [[1, 2], [2, 1], [2, 2]].map(|[x, y]| [x * side, y * side]);
    draft.numbers("vision.image_grid_pinpoints", points.as_flattened());
    draft.table("v.image_newline", &[draft.out()]);
}

/// Yi: norms between the matrices.
pub(super) fn llava_normed(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    clip(draft, "mlp");
    draft.linear("mm.0", width, out);
    draft.norm("mm.1", out);
    draft.linear("mm.3", out, out);
    draft.norm("mm.4", out);
}

/// MobileVLM: depthwise convolutions.
pub(super) fn mobile(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    clip(draft, "ldp");
    draft.two_layers(["mm.model.mlp.1", "mm.model.mlp.3"], [width, out, out]);
    for block in [1, 2] {
        let at = |part: &str| format!("mm.model.mb_block.{block}.block.{part}");
        draft.convolution(&at("0.0.weight"), &[3, 3, 1, out]);
        draft.norm(&at("0.1"), out);
        draft.linear(&at("1.fc1"), out, out / 4);
        draft.linear(&at("1.fc2"), out / 4, out);
        draft.matrix(&at("2.0.weight"), &[out, out]);
        draft.norm(&at("2.1"), out);
    }
}

pub(super) fn mobile_2(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    clip(draft, "ldpv2");
    draft.two_layers(["mm.model.mlp.0", "mm.model.mlp.2"], [width, out, out]);
    draft.convolution("mm.model.peg.0.weight", &[3, 3, 1, out]);
    draft.bias("mm.model.peg.0", out);
}

/// GLM-Edge: a convolution, a gated projector, learned tokens around the image.
pub(super) fn glm_edge(draft: &mut Draft<'_>) {
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    siglip(draft, "adapter");
    draft.convolution("adapter.conv.weight", &[2, 2, width, width]);
    draft.bias("adapter.conv", width);
    draft.matrix("adapter.linear.linear.weight", &[width, out]);
    draft.norm("adapter.linear.norm1", out);
    draft.matrix("adapter.linear.dense_h_to_4h.weight", &[out, inner]);
    draft.matrix("adapter.linear.gate.weight", &[out, inner]);
    draft.matrix("adapter.linear.dense_4h_to_h.weight", &[inner, out]);
    draft.table("adapter.boi", &[out]);
    draft.table("adapter.eoi", &[out]);
}

/// Pooling, and a weight that is transposed in the graph.
pub(super) fn gemma3(draft: &mut Draft<'_>) {
    siglip(draft, "gemma3");
    draft.scale("mm.soft_emb_norm", draft.width());
    draft.matrix("mm.input_projection.weight", &[draft.out(), draft.width()]);
}

pub(super) fn janus(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    siglip(draft, "janus_pro");
    draft.two_layers(["mm.0", "mm.1"], [width, out, out]);
}

/// Norms after attention, a gated projector, learned tokens around the image.
pub(super) fn cogvlm(draft: &mut Draft<'_>) {
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.images("cogvlm");
    draft.flag("use_gelu");
    draft.table("v.class_embd", &[width]);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches() + 1);
    draft.layers(FUSED);
    draft.matrix("mm.model.fc.weight", &[width, out]);
    draft.norm("mm.post_fc_norm", out);
    draft.matrix("mm.up.weight", &[out, inner]);
    draft.matrix("mm.gate.weight", &[out, inner]);
    draft.matrix("mm.down.weight", &[inner, out]);
    draft.table("v.boi", &[out]);
    draft.table("v.eoi", &[out]);
}

/// Registers before the patches, squared activations.
pub(super) fn nemotron(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("nemotron_v2_vl");
    draft.flag("use_gelu");
    draft.number("vision.projector.scale_factor", 2);
    draft.table("v.class_embd", &[width, 4]);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches());
    draft.layers(FUSED);
    draft.scale("mm.model.mlp.0", 4 * width);
    draft.matrix("mm.model.mlp.1.weight", &[4 * width, out]);
    draft.matrix("mm.model.mlp.3.weight", &[out, out]);
}

/// ConvNeXt: convolutions only.
pub(super) fn yasa(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.without_layers();
    draft.images("yasa2");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.norm("v.patch_ln", width);
    for stage in 0..draft.count() {
        let wide = width << stage;
        let at = |part: &str| format!("v.stage.{stage}.{part}");
        if stage > 0 {
            draft.norm(&at("down.ln"), wide / 2);
            draft.convolution(&at("down.conv.weight"), &[2, 2, wide / 2, wide]);
            draft.bias(&at("down.conv"), wide);
        }
        draft.convolution(&at("blk.0.dw.weight"), &[7, 7, 1, wide]);
        draft.bias(&at("blk.0.dw"), wide);
        draft.norm(&at("blk.0.ln"), wide);
        draft.linear(&at("blk.0.pw1"), wide, 4 * wide);
        draft.norm(&at("blk.0.grn"), 4 * wide);
        draft.linear(&at("blk.0.pw2"), 4 * wide, wide);
    }
    let last = width << (draft.count() - 1);
    draft.two_layers(["mm.0", "mm.2"], [last, out, out]);
}
