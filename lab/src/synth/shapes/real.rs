//! The shapes of real models.

use super::small::{tiny_llama, tower};
use super::{all, mix};
use crate::synth::{Architecture, SynthSpec, Vision};

pub(super) fn smollm2_135m() -> SynthSpec {
    SynthSpec {
        layers: 30,
        embedding: 576,
        heads: 9,
        kv_heads: 3,
        feed_forward: 1536,
        vocabulary: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        tied: true,
        types: mix("q4_1,embedding=q8_0"),
        ..tiny_llama()
    }
}

pub(super) fn llama3_8b() -> SynthSpec {
    SynthSpec {
        layers: 32,
        embedding: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 14_336,
        vocabulary: 128_256,
        context: 131_072,
        rope_base: 500_000.0,
        types: all("f16"),
        ..tiny_llama()
    }
}

pub(super) fn minitron_4b() -> SynthSpec {
    SynthSpec {
        embedding: 3072,
        feed_forward: 9216,
        ..llama3_8b()
    }
}

pub(super) fn minitron_8b() -> SynthSpec {
    SynthSpec {
        layers: 40,
        feed_forward: 11_520,
        vocabulary: 131_072,
        rope_base: 1_000_000.0,
        ..llama3_8b()
    }
}

pub(super) fn qwen3_30b_a3b() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3Moe,
        layers: 48,
        embedding: 2048,
        heads: 32,
        kv_heads: 4,
        feed_forward: 6144,
        vocabulary: 151_936,
        experts: 128,
        experts_used: 8,
        expert_feed_forward: 768,
        context: 40_960,
        rope_base: 1_000_000.0,
        types: all("q4_0"),
        ..llama3_8b()
    }
}

pub(super) fn qwen3_32b() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3,
        layers: 64,
        embedding: 5120,
        heads: 64,
        feed_forward: 25_600,
        vocabulary: 151_936,
        context: 40_960,
        rope_base: 1_000_000.0,
        types: all("q4_K"),
        ..llama3_8b()
    }
}

pub(super) fn qwen3_235b_a22b() -> SynthSpec {
    SynthSpec {
        layers: 94,
        embedding: 4096,
        heads: 64,
        feed_forward: 12_288,
        expert_feed_forward: 1536,
        types: all("q2_K"),
        ..qwen3_30b_a3b()
    }
}

pub(super) fn cosmos_reason1_7b() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen2Vl,
        layers: 28,
        embedding: 3584,
        heads: 28,
        kv_heads: 4,
        feed_forward: 18_944,
        vocabulary: 152_064,
        context: 128_000,
        rope_base: 1_000_000.0,
        ..llama3_8b()
    }
}

pub(super) fn cosmos_reason1_7b_mmproj() -> SynthSpec {
    SynthSpec {
        layers: 32,
        embedding: 1280,
        heads: 16,
        kv_heads: 16,
        head_dim: 80,
        feed_forward: 3420,
        vision: tower(&cosmos_reason1_7b()).vision.map(|vision| Vision {
            window_period: 8,
            ..vision
        }),
        ..tower(&cosmos_reason1_7b())
    }
}
