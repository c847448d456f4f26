//! Encoders of sound.

use super::draft::Layer;
use super::draft::{Draft, GATED, PLAIN};

/// Positions of Whisper: 30 seconds.
const POSITIONS: u64 = 1500;

/// Bands that sound is cut into.
const BANDS: u32 = 80;

/// Whisper: convolutions along time, then a transformer.
fn whisper(draft: &mut Draft<'_>, projector: &str) {
    let width = draft.width();
    draft.sound(projector, BANDS);
    for (number, inputs) in [(1, u64::from(BANDS)), (2, width)] {
        let at = |part: &str| format!("a.conv1d.{number}.{part}");
        draft.convolution(&at("weight"), &[3, inputs, width]);
        draft.table(&at("bias"), &[1, width]);
    }
    draft.positions(POSITIONS);
    draft.layers(Layer {
        biased_keys: false,
        ..PLAIN
    });
    draft.norm("a.post_ln", width);
}

/// Four frames side by side, a gate, norms.
pub(super) fn ultravox(draft: &mut Draft<'_>) {
    let (stacked, out) = (4 * draft.width(), draft.out());
    whisper(draft, "ultravox");
    draft.number("audio.projector.stack_factor", 4);
    draft.scale("mm.a.norm_pre", stacked);
    draft.matrix("mm.a.mlp.1.weight", &[stacked, 2 * out]);
    draft.scale("mm.a.norm_mid", out);
    draft.matrix("mm.a.mlp.2.weight", &[out, out]);
}

/// Pairs of frames are averaged.
pub(super) fn qwen2a(draft: &mut Draft<'_>) {
    whisper(draft, "qwen2a");
    draft.linear("mm.a.fc", draft.width(), draft.out());
}

pub(super) fn voxtral(draft: &mut Draft<'_>) {
    let (stacked, out) = (2 * draft.width(), draft.out());
    whisper(draft, "voxtral");
    draft.number("audio.projector.stack_factor", 2);
    draft.matrix("mm.a.mlp.1.weight", &[stacked, out]);
    draft.matrix("mm.a.mlp.2.weight", &[out, out]);
}

pub(super) fn music_flamingo(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    whisper(draft, "musicflamingo");
    draft.two_layers(["mm.a.mlp.1", "mm.a.mlp.2"], [width, out, out]);
}

pub(super) fn meralion(draft: &mut Draft<'_>) {
    let (stacked, out) = (15 * draft.width(), draft.out());
    whisper(draft, "meralion");
    draft.number("audio.projector.stack_factor", 15);
    draft.norm("mm.a.norm_pre", stacked);
    draft.linear("mm.a.mlp.0", stacked, out);
    for number in 1..4 {
        draft.linear(&format!("mm.a.mlp.{number}"), out, out);
    }
}

pub(super) fn glm_asr(draft: &mut Draft<'_>) {
    let (width, out) = (draft.width(), draft.out());
    whisper(draft, "glma");
    draft.number("audio.projector.stack_factor", 4);
    draft.norm("mm.a.norm_pre", width);
    draft.two_layers(["mm.a.mlp.1", "mm.a.mlp.2"], [4 * width, out, out]);
    draft.table("v.boi", &[out]);
    draft.table("v.eoi", &[out]);
}

/// Three convolutions over time and bands, which leave an eighth of each.
fn convolutions(draft: &mut Draft<'_>, bands: u32) {
    let (width, channels) = (draft.width(), 16);
    for (number, inputs) in [(1, 1), (2, channels), (3, channels)] {
        let at = format!("a.conv2d.{number}");
        draft.convolution(&format!("{at}.weight"), &[3, 3, inputs, channels]);
        draft.bias(&at, channels);
    }
    let left = u64::from(bands.div_ceil(8)) * channels;
    draft.matrix("a.conv_out.weight", &[left, width]);
}

/// Pieces of a hundred frames.
pub(super) fn qwen3a(draft: &mut Draft<'_>) {
    const BANDS: u32 = 128;
    let (width, out) = (draft.width(), draft.out());
    draft.sound("qwen3a", BANDS);
    convolutions(draft, BANDS);
    draft.positions(POSITIONS);
    draft.layers(PLAIN);
    draft.norm("a.post_ln", width);
    draft.two_layers(["mm.a.mlp.1", "mm.a.mlp.2"], [width, out, out]);
}

/// Positions as rotations of half of each head.
pub(super) fn dots3note(draft: &mut Draft<'_>) {
    const BANDS: u32 = 128;
    let (width, out) = (draft.width(), draft.out());
    draft.sound("dots3note_a", BANDS);
    draft.flag("use_silu");
    convolutions(draft, BANDS);
    draft.layers(GATED);
    draft.scale("a.post_ln", width);
    draft.norm("mm.a.norm_pre", width);
    draft.two_layers(["mm.a.mlp.1", "mm.a.mlp.3"], [width, out, out]);
}

/// The waveform itself, and one matrix.
pub(super) fn gemma4_unified(draft: &mut Draft<'_>) {
    const FRAME: u32 = 640;
    draft.without_layers();
    draft.sound("gemma4ua", FRAME);
    let shape = [u64::from(FRAME), draft.out()];
    draft.matrix("mm.a.input_projection.weight", &shape);
}

/// Masks for layers that see all and layers that see a window, a codebook, a second transformer over groups.
pub(super) fn mimo(draft: &mut Draft<'_>) {
    const GROUP: u64 = 4;
    const BINS: u64 = 64;
    let (width, inner, out) = (draft.width(), draft.inner(), draft.out());
    draft.sound("mimo_audio", BANDS);
    draft.number("audio.window_size", 32);
    let modes: Vec<i32> = (0..draft.count().cast_signed())
        .map(|layer| layer % 2 - 1)
        .collect();
    draft.numbers("audio.wa_pattern_mode", &modes);
    draft.number("audio.rvq.num_quantizers", 2);
    draft.numbers("audio.rvq.codebook_size", &[BINS as i32; 2]);
    draft.number("audio.local_block_count", 1);
    draft.number("audio.local_group_size", GROUP as u32);
    for (number, inputs) in [(1, u64::from(BANDS)), (2, width)] {
        let at = |part: &str| format!("a.conv1d.{number}.{part}");
        draft.convolution(&at("weight"), &[3, inputs, width]);
        draft.table(&at("bias"), &[1, width]);
    }
    draft.layers(PLAIN);
    draft.norm("a.post_ln", width);
    draft.convolution("a.downsample.conv.weight", &[2, width, width]);
    draft.norm("a.downsample.norm", width);
    draft.table("a.rvq.codebook.weight", &[width, BINS, 2]);
    draft.table("mm.a.code_embd.weight", &[width, BINS, 2]);
    let at = |part: &str| format!("mm.a.local_blk.0.{part}");
    for name in ["attn_q", "attn_k", "attn_v"] {
        draft.linear(&at(name), width, width);
    }
    draft.matrix(&at("attn_out.weight"), &[width, width]);
    draft.matrix(&at("ffn_gate.weight"), &[width, inner]);
    draft.matrix(&at("ffn_up.weight"), &[width, inner]);
    draft.matrix(&at("ffn_down.weight"), &[inner, width]);
    draft.scale(&at("ln1"), width);
    draft.scale(&at("ln2"), width);
    draft.scale("mm.a.local_norm", width);
    draft.matrix("mm.a.mlp.1.weight", &[GROUP * width, out]);
    draft.matrix("mm.a.mlp.2.weight", &[out, out]);
}
