//! Encoders of sound with convolutions in every layer.

use super::draft::{Draft, Layer, PLAIN};

/// The parts of such a layer other than attention.
#[derive(Clone, Copy)]
struct Block {
    /// Projections have biases.
    biased: bool,
    /// Norms have biases.
    centred: bool,
    /// Frames that a convolution sees.
    kernel: u64,
}

/// Both feed-forward networks, the convolution and its norms.
fn blocks(draft: &mut Draft<'_>, block: Block) {
    let (width, inner) = (draft.width(), draft.inner());
    for layer in 0..draft.count() {
        let at = |name: &str| format!("a.blk.{layer}.{name}");
        for name in ["ffn_norm", "ffn_norm_1", "norm_conv", "conv_norm"] {
            draft.scale(&at(name), width);
            if block.centred {
                draft.bias(&at(name), width);
            }
        }
        for number in ["", "_1"] {
            let (up, down) = (format!("ffn_up{number}"), format!("ffn_down{number}"));
            draft.projection(&at(&up), width, inner, block.biased);
            draft.projection(&at(&down), inner, width, block.biased);
        }
        draft.projection(&at("conv_pw1"), width, 2 * width, block.biased);
        draft.projection(&at("conv_pw2"), width, width, block.biased);
        draft.table(&at("conv_dw.weight"), &[block.kernel, width]);
        if block.biased {
            draft.bias(&at("conv_dw"), width);
        }
    }
}

/// Positions relative to a frame.
fn relative(draft: &mut Draft<'_>, positions: u64) {
    let (width, heads) = (draft.width(), draft.heads());
    for layer in 0..draft.count() {
        let at = |name: &str| format!("a.blk.{layer}.{name}");
        draft.matrix(&at("linear_pos.weight"), &[positions, width]);
        draft.table(&at("pos_bias_u"), &[width / heads, heads]);
        draft.table(&at("pos_bias_v"), &[width / heads, heads]);
    }
}

/// Convolutions that leave an eighth of the frames and of the bands.
fn subsampling(draft: &mut Draft<'_>, bands: u32) {
    const CHANNELS: u64 = 16;
    let shapes = [
        (0, [3, 3, 1, CHANNELS]),
        (2, [3, 3, 1, CHANNELS]),
        (3, [1, 1, CHANNELS, CHANNELS]),
        (5, [3, 3, 1, CHANNELS]),
        (6, [1, 1, CHANNELS, CHANNELS]),
    ];
    for (number, shape) in shapes {
        draft.convolution(&format!("a.conv1d.{number}.weight"), &shape);
        draft.table(&format!("a.conv1d.{number}.bias"), &[1, 1, CHANNELS]);
    }
    let left = u64::from(bands / 8) * CHANNELS;
    draft.linear("a.pre_encode.out", left, draft.width());
}

fn lfm(draft: &mut Draft<'_>, projector: &str) {
    const BANDS: u32 = 128;
    /// Width of positions, which llama.cpp fixes.
    const POSITIONS: u64 = 512;
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.sound(projector, BANDS);
    subsampling(draft, BANDS);
    draft.attentions(PLAIN);
    blocks(
        draft,
        Block {
            biased: true,
            centred: true,
            kernel: 9,
        },
    );
    relative(draft, POSITIONS);
    draft.norm("mm.a.mlp.0", width);
    draft.linear("mm.a.mlp.1", width, inner);
    draft.linear("mm.a.mlp.3", inner, out);
}

pub(super) fn lfm2a(draft: &mut Draft<'_>) {
    lfm(draft, "lfm2a");
    // its width is how llama.cpp knows that of the output
    draft.table("a.position_embd.weight", &[draft.out(), 1500]);
}

/// A further network after the projector.
pub(super) fn d1omni(draft: &mut Draft<'_>) {
    let (inner, out) = (draft.inner(), draft.out());
    lfm(draft, "d1omni_a");
    draft.norm("mm.a.mlp.4", out);
    draft.two_layers(["mm.a.mlp.5", "mm.a.mlp.6"], [out, inner, out]);
}

/// Attention over a few frames and some before them.
pub(super) fn gemma4(draft: &mut Draft<'_>) {
    const BANDS: u32 = 128;
    const CHANNELS: u64 = 16;
    let (width, out) = (draft.width(), draft.out());
    draft.sound("gemma4a", BANDS);
    for (number, inputs) in [(0, 1), (1, CHANNELS)] {
        let at = |part: &str| format!("a.conv1d.{number}{part}");
        draft.convolution(&at(".weight"), &[3, 3, inputs, CHANNELS]);
        draft.scale(&at(".norm"), CHANNELS);
    }
    let left = u64::from(BANDS / 4) * CHANNELS;
    draft.matrix("a.input_projection.weight", &[left, width]);
    draft.attentions(Layer {
        biased: false,
        biased_keys: false,
        centred: false,
        ..PLAIN
    });
    blocks(
        draft,
        Block {
            biased: false,
            centred: false,
            kernel: 5,
        },
    );
    for layer in 0..draft.count() {
        let at = |name: &str| format!("a.blk.{layer}.{name}");
        draft.matrix(&at("attn_k_rel.weight"), &[width, width]);
        draft.scale(&at("per_dim_scale"), width / draft.heads());
        for name in ["attn_post_norm", "ffn_post_norm", "ffn_post_norm_1"] {
            draft.scale(&at(name), width);
        }
    }
    draft.linear("a.pre_encode.out", width, width);
    draft.matrix("mm.a.input_projection.weight", &[width, out]);
}

pub(super) fn parakeet(draft: &mut Draft<'_>) {
    const BANDS: u32 = 128;
    const KERNEL: u64 = 9;
    /// Samples of a window, and numbers of its spectrum.
    const WINDOW: u64 = 400;
    const SPECTRUM: u64 = 257;
    let (width, out) = (draft.width(), draft.out());
    draft.sound("parakeet", BANDS);
    draft.number("audio.subsampling_factor", 8);
    draft.number("audio.conv_kernel_size", KERNEL as u32);
    draft.table("a.mel_filters", &[SPECTRUM, u64::from(BANDS)]);
    draft.table("a.window", &[WINDOW]);
    subsampling(draft, BANDS);
    draft.attentions(Layer {
        biased: false,
        biased_keys: false,
        ..PLAIN
    });
    blocks(
        draft,
        Block {
            biased: false,
            centred: true,
            kernel: KERNEL,
        },
    );
    relative(draft, width);
    for layer in 0..draft.count() {
        draft.table(&format!("a.blk.{layer}.conv_norm_mean"), &[width]);
        draft.positive(&format!("a.blk.{layer}.conv_norm_var"), width);
    }
    draft.scale("mm.a.norm_pre", width);
    draft.matrix("mm.a.mlp.1.weight", &[width, out]);
    draft.matrix("mm.a.mlp.2.weight", &[out, out]);
    for (number, inputs) in [(0, width), (1, out), (3, out)] {
        draft.matrix(&format!("mm.model.mlp.{number}.weight"), &[inputs, out]);
    }
}

/// Attention within blocks of frames, a second output in the middle, a transformer with few queries at the end.
pub(super) fn granite(draft: &mut Draft<'_>) {
    const BANDS: u32 = 160;
    const KERNEL: u64 = 15;
    /// Frames of a block; classes of the second output; frames and queries of the transformer at the end.
    const BLOCK: u64 = 40;
    const CLASSES: u64 = 32;
    const FRAMES: u32 = 15;
    const EACH: u32 = 5;
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.sound("granite_speech", BANDS);
    for (key, number) in [
        ("chunk_size", BLOCK as u32),
        ("conv_kernel_size", KERNEL as u32),
        ("max_pos_emb", 64),
        ("projector.window_size", FRAMES),
        ("projector.downsample_rate", EACH),
        ("projector.head_count", 2),
    ] {
        draft.number(&format!("audio.{key}"), number);
    }
    draft.linear("a.input_projection", u64::from(BANDS), width);
    draft.linear("a.enc_ctc_out", width, CLASSES);
    draft.linear("a.enc_ctc_out_mid", CLASSES, width);
    draft.attentions(PLAIN);
    blocks(
        draft,
        Block {
            biased: true,
            centred: true,
            kernel: KERNEL,
        },
    );
    for layer in 0..draft.count() {
        let shape = [width / draft.heads(), 2 * 64 + 1];
        draft.table(&format!("a.blk.{layer}.attn_rel_pos_emb"), &shape);
    }
    draft.table("a.proj_query", &[width, u64::from(FRAMES / EACH)]);
    draft.norm("a.proj_norm", width);
    draft.linear("a.proj_linear", width, out);
    for layer in 0..2 {
        let at = |part: &str| format!("a.proj_blk.{layer}.{part}");
        for attention in ["self", "cross"] {
            for name in ["q", "k", "v", "out"] {
                draft.linear(&at(&format!("{attention}_attn_{name}")), width, width);
            }
            draft.norm(&at(&format!("{attention}_attn_norm")), width);
        }
        draft.linear(&at("ffn_up"), width, inner);
        draft.linear(&at("ffn_down"), inner, width);
        draft.norm(&at("ffn_norm"), width);
    }
}
