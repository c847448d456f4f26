//! Small shapes for tests.

use super::{all, mix};
use crate::synth::{Architecture, Latent, Pooling, StateSpace, SynthSpec, Vision, Window};

pub(super) fn tiny_llama() -> SynthSpec {
    SynthSpec {
        name: String::new(),
        architecture: Architecture::Llama,
        layers: 6,
        embedding: 512,
        heads: 18,
        kv_heads: 6,
        head_dim: 64,
        feed_forward: 2048,
        vocabulary: 2048,
        experts: 0,
        experts_used: 0,
        expert_feed_forward: 0,
        shared_feed_forward: 0,
        leading_dense: 0,
        context: 4096,
        window: None,
        latent: None,
        state_space: None,
        attention_period: 1,
        pooling: None,
        image_tokens: false,
        vision: None,
        rope_base: 10_000.0,
        tied: false,
        types: mix("q8_0,attention=f16,embedding=f16"),
        seed: 0,
    }
}

pub(super) fn tiny_llama_576() -> SynthSpec {
    SynthSpec {
        embedding: 576,
        heads: 9,
        kv_heads: 3,
        feed_forward: 2304,
        types: all("q8_0"),
        ..tiny_llama()
    }
}

pub(super) fn tiny_llama_768() -> SynthSpec {
    SynthSpec {
        embedding: 768,
        heads: 12,
        kv_heads: 4,
        feed_forward: 2816,
        types: mix("q5_0,embedding=q8_0,output=q8_0"),
        ..tiny_llama()
    }
}

pub(super) fn tiny_qwen3moe() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3Moe,
        heads: 16,
        kv_heads: 4,
        feed_forward: 512,
        experts: 32,
        experts_used: 4,
        expert_feed_forward: 128,
        rope_base: 1_000_000.0,
        types: mix("q8_0,experts=q4_0"),
        ..tiny_llama()
    }
}

pub(super) fn tiny_gemma3() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Gemma3,
        embedding: 576,
        heads: 8,
        kv_heads: 2,
        head_dim: 128,
        feed_forward: 1920,
        window: Some(Window {
            tokens: 64,
            period: 3,
        }),
        rope_base: 1_000_000.0,
        tied: true,
        types: mix("q8_0,attention=f16"),
        ..tiny_llama()
    }
}

/// A few MB, with rows that fill the blocks of every type.
fn small() -> SynthSpec {
    SynthSpec {
        embedding: 256,
        heads: 4,
        kv_heads: 2,
        feed_forward: 1024,
        vocabulary: 1024,
        ..tiny_llama()
    }
}

fn small_mixture() -> SynthSpec {
    SynthSpec {
        layers: 4,
        experts: 16,
        experts_used: 4,
        expert_feed_forward: 256,
        types: mix("q8_0,experts=q4_K"),
        ..small()
    }
}

pub(super) fn tiny_qwen2() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen2,
        rope_base: 1_000_000.0,
        types: all("q4_K"),
        ..small()
    }
}

pub(super) fn tiny_qwen2_images() -> SynthSpec {
    SynthSpec {
        image_tokens: true,
        ..tiny_qwen2()
    }
}

pub(super) fn tiny_qwen3() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3,
        heads: 8,
        rope_base: 1_000_000.0,
        tied: true,
        types: mix("bf16,feed-forward=q6_K"),
        ..small()
    }
}

pub(super) fn tiny_mixtral() -> SynthSpec {
    SynthSpec {
        experts: 8,
        experts_used: 2,
        expert_feed_forward: 512,
        rope_base: 1_000_000.0,
        ..small_mixture()
    }
}

pub(super) fn tiny_phi3() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Phi3,
        kv_heads: 4,
        types: mix("q5_K,attention=f16"),
        ..small()
    }
}

pub(super) fn tiny_gpt_oss() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::GptOss,
        heads: 8,
        window: Some(Window {
            tokens: 64,
            period: 2,
        }),
        rope_base: 150_000.0,
        types: mix("q8_0,experts=mxfp4"),
        ..small_mixture()
    }
}

pub(super) fn tiny_deepseek2() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Deepseek2,
        kv_heads: 1,
        leading_dense: 1,
        shared_feed_forward: 256,
        latent: Some(Latent {
            query_rank: 256,
            key_rank: 128,
            rotated: 32,
            key: 96,
            value: 64,
        }),
        types: mix("q8_0,experts=iq4_nl"),
        ..small_mixture()
    }
}

pub(super) fn tiny_mamba2() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Mamba2,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        feed_forward: 0,
        state_space: Some(StateSpace {
            inner: 512,
            state: 64,
            kernel: 4,
            heads: 8,
            groups: 1,
        }),
        types: all("q8_0"),
        ..small()
    }
}

pub(super) fn tiny_granite_hybrid() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::GraniteHybrid,
        layers: 6,
        shared_feed_forward: 256,
        attention_period: 3,
        state_space: tiny_mamba2().state_space,
        ..small_mixture()
    }
}

pub(super) fn tiny_qwen3next() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3Next,
        layers: 4,
        shared_feed_forward: 256,
        attention_period: 4,
        state_space: Some(StateSpace {
            inner: 256,
            state: 64,
            kernel: 4,
            heads: 4,
            groups: 2,
        }),
        rope_base: 1_000_000.0,
        ..small_mixture()
    }
}

pub(super) fn tiny_bert() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Bert,
        kv_heads: 4,
        context: 512,
        pooling: Some(Pooling::Mean),
        types: all("f16"),
        ..small()
    }
}

pub(super) fn tiny_bert_rank() -> SynthSpec {
    SynthSpec {
        pooling: Some(Pooling::Rank),
        types: all("q8_0"),
        ..tiny_bert()
    }
}

pub(super) fn tiny_qwen2vl() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen2Vl,
        ..tiny_qwen2()
    }
}

pub(super) fn tiny_qwen2vl_mmproj() -> SynthSpec {
    SynthSpec {
        feed_forward: 512,
        ..tower(&tiny_qwen2vl())
    }
}

/// A small vision tower for a language model.
pub(super) fn tower(language: &SynthSpec) -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Clip,
        layers: 4,
        kv_heads: 4,
        vocabulary: 0,
        vision: Some(Vision {
            patch: 14,
            image: 560,
            window_period: 2,
            projection: language.embedding,
            projector: None,
        }),
        types: all("f16"),
        ..small()
    }
}
