//! Encoders that cut an image into tiles and see an overview, too.

use super::draft::{Draft, Layer, FUSED, GATED, PLAIN};
use super::square::siglip;

/// Positions of the learned table of models that select by a patch's place, not by its number.
const PICKED: u64 = 70 * 70;

/// Neighbouring patches are merged by a shuffle, then one matrix.
pub(super) fn idefics(draft: &mut Draft<'_>) {
    siglip(draft, "idefics3");
    draft.number("vision.projector.scale_factor", 2);
    draft.number("vision.preproc_image_size", 2 * draft.side());
    let shape = [4 * draft.width(), draft.out()];
    draft.matrix("mm.model.fc.weight", &shape);
}

pub(super) fn cohere(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    siglip(draft, "cohere2v");
    draft.number("vision.projector.scale_factor", 2);
    draft.number("vision.preproc_max_tiles", 4);
    draft.linear("mm.1", 4 * width, 2 * out);
    draft.linear("mm.2", out, out);
}

fn lfm(draft: &mut Draft<'_>, projector: &str) {
    let (width, out) = (draft.width(), draft.out());
    siglip(draft, projector);
    draft.number("vision.projector.scale_factor", 2);
    draft.norm("mm.input_norm", 4 * width);
    draft.two_layers(["mm.1", "mm.2"], [4 * width, out, out]);
}

/// Positions that are resized.
pub(super) fn lfm2(draft: &mut Draft<'_>) {
    lfm(draft, "lfm2");
}

pub(super) fn d1omni(draft: &mut Draft<'_>) {
    lfm(draft, "d1omni_v");
}

/// Several tiles in one graph, a class token, scaled layers.
pub(super) fn internvl(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("internvl");
    draft.flag("use_gelu");
    draft.number("vision.projector.scale_factor", 2);
    draft.table("v.class_embd", &[width]);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches() + 1);
    draft.layers(PLAIN);
    for layer in 0..draft.count() {
        draft.scale(&format!("v.blk.{layer}.ls1"), width);
        draft.scale(&format!("v.blk.{layer}.ls2"), width);
    }
    draft.norm("mm.model.mlp.0", 4 * width);
    let bases = ["mm.model.mlp.1", "mm.model.mlp.3"];
    draft.two_layers(bases, [4 * width, out, out]);
}

/// Heads of 88 elements, which no fused attention of CUDA takes; positions as rotations.
pub(super) fn llama4(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("llama4");
    draft.flag("use_gelu");
    draft.number("vision.projector.scale_factor", 2);
    draft.table("v.class_embd", &[width]);
    draft.matrix("v.patch_embd.weight", &[draft.pixels(), width]);
    draft.positions(draft.patches() + 1);
    draft.norm("v.pre_ln", width);
    draft.layers(PLAIN);
    draft.norm("v.post_ln", width);
    draft.matrix("mm.model.mlp.1.weight", &[4 * width, out]);
    draft.matrix("mm.model.mlp.2.weight", &[out, out]);
    draft.matrix("mm.model.fc.weight", &[out, out]);
}

/// A transformer with few queries over each tile.
pub(super) fn minicpm(draft: &mut Draft<'_>) {
    let (width, out, queries) = (draft.width(), draft.out(), 16);
    draft.images("resampler");
    draft.flag("use_gelu");
    draft.number("minicpmv_query_num", queries);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(PICKED);
    draft.layers(PLAIN);
    draft.norm("v.post_ln", width);
    draft.table("resampler.query", &[out, u64::from(queries)]);
    draft.table("resampler.pos_embed_k", &[out, draft.patches()]);
    draft.matrix("resampler.kv.weight", &[width, out]);
    for name in ["q", "k", "v", "out"] {
        draft.linear(&format!("resampler.attn.{name}"), out, out);
    }
    for name in ["q", "kv", "post"] {
        draft.norm(&format!("resampler.ln_{name}"), out);
    }
    draft.matrix("resampler.proj.weight", &[out, out]);
}

/// Windows of four patches in one layer in the middle, which merges them.
pub(super) fn minicpm_4_6(draft: &mut Draft<'_>) {
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.images("minicpmv4_6");
    draft.flag("use_gelu");
    draft.numbers("vision.wa_layer_indexes", &[0]);
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(PICKED);
    draft.layers(PLAIN);
    draft.norm("v.post_ln", width);
    draft.norm("v.vit_merger.ln1", width);
    for name in ["q", "k", "v", "out"] {
        draft.linear(&format!("v.vit_merger.attn_{name}"), width, width);
    }
    draft.norm("v.vit_merger.ds_ln", 4 * width);
    let bases = ["v.vit_merger.ds_ffn_up", "v.vit_merger.ds_ffn_down"];
    draft.two_layers(bases, [4 * width, inner, width]);
    draft.norm("mm.input_norm", 4 * width);
    draft.two_layers(["mm.up", "mm.down"], [4 * width, inner, out]);
}

/// Two convolutions that halve the image.
pub(super) fn step3(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("step3vl");
    draft.patches_from_pixels();
    draft.bias("v.patch_embd", width);
    draft.positions(draft.patches());
    draft.norm("v.pre_ln", width);
    draft.layers(FUSED);
    draft.convolution("mm.0.weight", &[3, 3, width, 2 * width]);
    draft.bias("mm.0", 2 * width);
    draft.convolution("mm.1.weight", &[3, 3, 2 * width, 2 * width]);
    draft.bias("mm.1", 2 * width);
    draft.matrix("mm.model.fc.weight", &[2 * width, out]);
}

/// Two small transformers with windows, over two of the layers; all tiles in one graph.
pub(super) fn granite(draft: &mut Draft<'_>) {
    const WINDOW: u64 = 4;
    const QUERIES: u64 = 2;
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    siglip(draft, "granite4_vision");
    draft.numbers("vision.feature_layer", &[0, 1]);
    draft.numbers("vision.projector.spatial_offsets", &[-1, 0]);
    draft.number("vision.projector.query_side", QUERIES as u32);
    draft.number("vision.projector.window_side", WINDOW as u32);
    let side = draft.side().cast_signed();
    let points = [[1, 2], [2, 1], [2, 2]].map(|[x, y]| [x * side, y * side]);
    draft.numbers("vision.image_grid_pinpoints", points.as_flattened());
    draft.table("v.image_newline", &[out]);
    for block in 0..2 {
        let at = |part: &str| format!("v.proj_blk.{block}.{part}");
        draft.table(&at("img_pos"), &[width, WINDOW * WINDOW]);
        draft.table(&at("query"), &[width, QUERIES * QUERIES]);
        draft.linear(&at("linear"), width, out);
        for name in ["norm", "post_norm", "self_attn_norm", "cross_attn_norm"] {
            draft.norm(&at(name), width);
        }
        for attention in ["self", "cross"] {
            for name in ["q", "k", "v", "out"] {
                draft.linear(&at(&format!("{attention}_attn_{name}")), width, width);
            }
        }
        draft.linear(&at("ffn_up"), width, inner);
        draft.linear(&at("ffn_down"), inner, width);
        draft.norm(&at("ffn_norm"), width);
    }
}

/// SAM: windows as a batch, and two layers over all patches; a bias for each head, which is given as a mask.
fn sam(draft: &mut Draft<'_>) {
    /// Layers, heads, width, window; patches along a side of the image, and of what is left of them.
    const LAYERS: u32 = 3;
    const HEADS: u32 = 2;
    const WIDTH: u64 = 64;
    const WINDOW: u32 = 14;
    const SIDE: u64 = 64;
    draft.number("vision.sam.block_count", LAYERS);
    draft.number("vision.sam.head_count", HEADS);
    draft.number("vision.sam.embedding_length", WIDTH as u32);
    draft.number("vision.window_size", WINDOW);
    draft.table("v.sam.pos_embd.weight", &[WIDTH, SIDE, SIDE]);
    draft.convolution("v.sam.patch_embd.weight", &[16, 16, 3, WIDTH]);
    draft.bias("v.sam.patch_embd", WIDTH);
    for layer in 0..LAYERS {
        let at = |part: &str| format!("v.sam.blk.{layer}.{part}");
        // the third layer sees everything
        let seen = match layer {
            2 => 2 * SIDE - 1,
            _ => 2 * u64::from(WINDOW) - 1,
        };
        draft.norm(&at("pre_ln"), WIDTH);
        draft.linear(&at("attn.qkv"), WIDTH, 3 * WIDTH);
        draft.linear(&at("attn.out"), WIDTH, WIDTH);
        for side in ["pos_h", "pos_w"] {
            let shape = [WIDTH / u64::from(HEADS), seen];
            draft.table(&at(&format!("attn.{side}.weight")), &shape);
        }
        draft.norm(&at("post_ln"), WIDTH);
        draft.linear(&at("mlp.lin1"), WIDTH, 2 * WIDTH);
        draft.linear(&at("mlp.lin2"), 2 * WIDTH, WIDTH);
    }
    draft.convolution("v.sam.neck.0.weight", &[1, 1, WIDTH, WIDTH]);
    draft.norm("v.sam.neck.1", WIDTH);
    draft.convolution("v.sam.neck.2.weight", &[3, 3, WIDTH, WIDTH]);
    draft.norm("v.sam.neck.3", WIDTH);
    draft.convolution("v.sam.net_2.weight", &[3, 3, WIDTH, WIDTH]);
    draft.convolution("v.sam.net_3.weight", &[3, 3, WIDTH, draft.width()]);
}

/// SAM, then CLIP over what it found.
pub(super) fn deepseek_ocr(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("deepseekocr");
    sam(draft);
    draft.table("v.class_embd", &[width]);
    draft.positions(16 * 16 + 1);
    draft.norm("v.pre_ln", width);
    draft.layers(FUSED);
    draft.table("v.image_newline", &[out]);
    draft.table("v.view_seperator", &[out]);
    draft.linear("mm.model.fc", 2 * width, out);
}

/// SAM, then learned queries that look back only.
pub(super) fn deepseek_ocr_2(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    draft.images("deepseekocr2");
    sam(draft);
    draft.layers(Layer {
        biased: true,
        biased_keys: true,
        ..GATED
    });
    draft.scale("v.post_ln", width);
    draft.table("v.resample_query_768.weight", &[width, 12 * 12]);
    draft.table("v.resample_query_1024.weight", &[width, 16 * 16]);
    draft.table("v.view_seperator", &[out]);
    draft.linear("mm.model.fc", width, out);
}
