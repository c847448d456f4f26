//! Named shapes: small models for tests, and the shapes of real ones for measurements.

use super::spec::{Architecture, SynthSpec, TypeMix, Window};
use super::SynthError;
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
        context: 4096,
        window: None,
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
