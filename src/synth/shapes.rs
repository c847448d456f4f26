//! Named shapes: small models for tests, and the shapes of real ones for measurements.

use super::{
    Architecture, Latent, Pooling, StateSpace, SynthError, SynthSpec, TypeMix, Vision, Window,
};
use crate::inventory::DType;

/// A shape on offer.
pub struct Shape {
    /// The name to ask for.
    pub name: &'static str,
    /// What it is good for.
    pub about: &'static str,
    make: fn() -> SynthSpec,
}

impl Shape {
    /// The specification, with the shape's own types and seed 0.
    pub fn spec(&self) -> SynthSpec {
        SynthSpec {
            name: self.name.to_owned(),
            ..(self.make)()
        }
    }
}

/// All shapes, small ones first.
pub static SHAPES: &[Shape] = &[
    Shape {
        name: "tiny-llama",
        about: "test model, dense; every layer has weights above and below 1 MiB",
        make: tiny_llama,
    },
    Shape {
        name: "tiny-llama-576",
        about: "the same with quantised rows of 576, which CUDA pads",
        make: tiny_llama_576,
    },
    Shape {
        name: "tiny-llama-768",
        about: "the same with quantised rows of 768",
        make: tiny_llama_768,
    },
    Shape {
        name: "tiny-qwen3moe",
        about: "test model, 32 experts of which a token uses 4",
        make: tiny_qwen3moe,
    },
    Shape {
        name: "tiny-gemma3",
        about: "test model, windows of 64 tokens in two of three layers, tied",
        make: tiny_gemma3,
    },
    Shape {
        name: "tiny-qwen2",
        about: "test model, biases on queries, keys and values",
        make: tiny_qwen2,
    },
    Shape {
        name: "tiny-qwen3",
        about: "test model, normalised queries and keys, tied",
        make: tiny_qwen3,
    },
    Shape {
        name: "tiny-mixtral",
        about: "test model, 8 experts of which a token uses 2",
        make: tiny_mixtral,
    },
    Shape {
        name: "tiny-phi3",
        about: "test model, fused projections, rope factors",
        make: tiny_phi3,
    },
    Shape {
        name: "tiny-gpt-oss",
        about: "test model, sinks, biases, windows of 64, MXFP4 experts",
        make: tiny_gpt_oss,
    },
    Shape {
        name: "tiny-deepseek2",
        about: "test model, latent attention, shared and grouped experts",
        make: tiny_deepseek2,
    },
    Shape {
        name: "tiny-mamba2",
        about: "test model, recurrent",
        make: tiny_mamba2,
    },
    Shape {
        name: "tiny-granite-hybrid",
        about: "test model, attention in one of three layers, experts",
        make: tiny_granite_hybrid,
    },
    Shape {
        name: "tiny-qwen3next",
        about: "test model, delta nets, gated attention in one of four layers, experts",
        make: tiny_qwen3next,
    },
    Shape {
        name: "tiny-bert",
        about: "test model for embeddings, mean pooling",
        make: tiny_bert,
    },
    Shape {
        name: "tiny-bert-rank",
        about: "test model for reranking",
        make: tiny_bert_rank,
    },
    Shape {
        name: "tiny-qwen2vl",
        about: "test model, the language half of a vision model",
        make: tiny_qwen2vl,
    },
    Shape {
        name: "tiny-qwen2vl-mmproj",
        about: "its vision tower",
        make: tiny_qwen2vl_mmproj,
    },
    Shape {
        name: "smollm2-135m",
        about: "SmolLM2 135M",
        make: smollm2_135m,
    },
    Shape {
        name: "minitron-4b",
        about: "Llama 3.1 Minitron 4B Width",
        make: minitron_4b,
    },
    Shape {
        name: "llama3-8b",
        about: "Llama 3.1 8B",
        make: llama3_8b,
    },
    Shape {
        name: "minitron-8b",
        about: "Mistral NeMo Minitron 8B",
        make: minitron_8b,
    },
    Shape {
        name: "qwen3-30b-a3b",
        about: "Qwen3 30B A3B, 128 experts of which a token uses 8",
        make: qwen3_30b_a3b,
    },
    Shape {
        name: "qwen3-32b",
        about: "Qwen3 32B",
        make: qwen3_32b,
    },
    Shape {
        name: "qwen3-235b-a22b",
        about: "Qwen3 235B A22B; --layers makes it fit",
        make: qwen3_235b_a22b,
    },
    Shape {
        name: "cosmos-reason1-7b",
        about: "Cosmos Reason1 7B, the language half",
        make: cosmos_reason1_7b,
    },
    Shape {
        name: "cosmos-reason1-7b-mmproj",
        about: "its vision tower",
        make: cosmos_reason1_7b_mmproj,
    },
];

/// The specification of a named shape.
///
/// # Errors
/// [`SynthError::UnknownShape`].
pub fn shape(name: &str) -> Result<SynthSpec, SynthError> {
    SHAPES
        .iter()
        .find(|shape| shape.name.eq_ignore_ascii_case(name))
        .map(Shape::spec)
        .ok_or_else(|| SynthError::UnknownShape {
            name: name.to_owned(),
        })
}

fn all(type_name: &str) -> TypeMix {
    match DType::from_name(type_name) {
        Some(dtype) => TypeMix::uniform(dtype),
        None => unreachable!("{type_name} is one of ggml's types"),
    }
}

fn mix(text: &str) -> TypeMix {
    match all("f16").with(text) {
        Ok(mix) => mix,
        Err(error) => unreachable!("a shape's own types are valid: {error}"),
    }
}

fn tiny_llama() -> SynthSpec {
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
        vision: None,
        rope_base: 10_000.0,
        tied: false,
        types: mix("q8_0,attention=f16,embedding=f16"),
        seed: 0,
    }
}

fn tiny_llama_576() -> SynthSpec {
    SynthSpec {
        embedding: 576,
        heads: 9,
        kv_heads: 3,
        feed_forward: 2304,
        types: all("q8_0"),
        ..tiny_llama()
    }
}

fn tiny_llama_768() -> SynthSpec {
    SynthSpec {
        embedding: 768,
        heads: 12,
        kv_heads: 4,
        feed_forward: 2816,
        types: mix("q5_0,embedding=q8_0,output=q8_0"),
        ..tiny_llama()
    }
}

fn tiny_qwen3moe() -> SynthSpec {
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

fn tiny_gemma3() -> SynthSpec {
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

fn tiny_qwen2() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen2,
        rope_base: 1_000_000.0,
        types: all("q4_K"),
        ..small()
    }
}

fn tiny_qwen3() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen3,
        heads: 8,
        rope_base: 1_000_000.0,
        tied: true,
        types: mix("bf16,feed-forward=q6_K"),
        ..small()
    }
}

fn tiny_mixtral() -> SynthSpec {
    SynthSpec {
        experts: 8,
        experts_used: 2,
        expert_feed_forward: 512,
        rope_base: 1_000_000.0,
        ..small_mixture()
    }
}

fn tiny_phi3() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Phi3,
        kv_heads: 4,
        types: mix("q5_K,attention=f16"),
        ..small()
    }
}

fn tiny_gpt_oss() -> SynthSpec {
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

fn tiny_deepseek2() -> SynthSpec {
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

fn tiny_mamba2() -> SynthSpec {
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

fn tiny_granite_hybrid() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::GraniteHybrid,
        layers: 6,
        shared_feed_forward: 256,
        attention_period: 3,
        state_space: tiny_mamba2().state_space,
        ..small_mixture()
    }
}

fn tiny_qwen3next() -> SynthSpec {
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

fn tiny_bert() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Bert,
        kv_heads: 4,
        context: 512,
        pooling: Some(Pooling::Mean),
        types: all("f16"),
        ..small()
    }
}

fn tiny_bert_rank() -> SynthSpec {
    SynthSpec {
        pooling: Some(Pooling::Rank),
        types: all("q8_0"),
        ..tiny_bert()
    }
}

fn tiny_qwen2vl() -> SynthSpec {
    SynthSpec {
        architecture: Architecture::Qwen2Vl,
        ..tiny_qwen2()
    }
}

fn tiny_qwen2vl_mmproj() -> SynthSpec {
    SynthSpec {
        feed_forward: 512,
        ..tower(&tiny_qwen2vl())
    }
}

/// A small vision tower for a language model.
fn tower(language: &SynthSpec) -> SynthSpec {
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
        }),
        types: all("f16"),
        ..small()
    }
}

fn cosmos_reason1_7b() -> SynthSpec {
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

fn cosmos_reason1_7b_mmproj() -> SynthSpec {
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

fn smollm2_135m() -> SynthSpec {
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

fn llama3_8b() -> SynthSpec {
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

fn minitron_4b() -> SynthSpec {
    SynthSpec {
        embedding: 3072,
        feed_forward: 9216,
        ..llama3_8b()
    }
}

fn minitron_8b() -> SynthSpec {
    SynthSpec {
        layers: 40,
        feed_forward: 11_520,
        vocabulary: 131_072,
        rope_base: 1_000_000.0,
        ..llama3_8b()
    }
}

fn qwen3_30b_a3b() -> SynthSpec {
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

fn qwen3_32b() -> SynthSpec {
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

fn qwen3_235b_a22b() -> SynthSpec {
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
