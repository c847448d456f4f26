//! Named shapes: small models for tests, and the shapes of real ones for measurements.

mod real;
mod small;

use super::{encoders, SynthError, SynthSpec, TypeMix};
use pipeshard_model::inventory::DType;

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
        make: small::tiny_llama,
    },
    Shape {
        name: "tiny-llama-576",
        about: "the same with quantised rows of 576, which CUDA pads",
        make: small::tiny_llama_576,
    },
    Shape {
        name: "tiny-llama-768",
        about: "the same with quantised rows of 768",
        make: small::tiny_llama_768,
    },
    Shape {
        name: "tiny-qwen3moe",
        about: "test model, 32 experts of which a token uses 4",
        make: small::tiny_qwen3moe,
    },
    Shape {
        name: "tiny-gemma3",
        about: "test model, windows of 64 tokens in two of three layers, tied",
        make: small::tiny_gemma3,
    },
    Shape {
        name: "tiny-qwen2",
        about: "test model, biases on queries, keys and values",
        make: small::tiny_qwen2,
    },
    Shape {
        name: "tiny-qwen2-images",
        about: "the same with tokens around images and their tiles",
        make: small::tiny_qwen2_images,
    },
    Shape {
        name: "tiny-qwen3",
        about: "test model, normalised queries and keys, tied",
        make: small::tiny_qwen3,
    },
    Shape {
        name: "tiny-mixtral",
        about: "test model, 8 experts of which a token uses 2",
        make: small::tiny_mixtral,
    },
    Shape {
        name: "tiny-phi3",
        about: "test model, fused projections, rope factors",
        make: small::tiny_phi3,
    },
    Shape {
        name: "tiny-gpt-oss",
        about: "test model, sinks, biases, windows of 64, MXFP4 experts",
        make: small::tiny_gpt_oss,
    },
    Shape {
        name: "tiny-deepseek2",
        about: "test model, latent attention, shared and grouped experts",
        make: small::tiny_deepseek2,
    },
    Shape {
        name: "tiny-mamba2",
        about: "test model, recurrent",
        make: small::tiny_mamba2,
    },
    Shape {
        name: "tiny-granite-hybrid",
        about: "test model, attention in one of three layers, experts",
        make: small::tiny_granite_hybrid,
    },
    Shape {
        name: "tiny-qwen3next",
        about: "test model, delta nets, gated attention in one of four layers, experts",
        make: small::tiny_qwen3next,
    },
    Shape {
        name: "tiny-bert",
        about: "test model for embeddings, mean pooling",
        make: small::tiny_bert,
    },
    Shape {
        name: "tiny-bert-rank",
        about: "test model for reranking",
        make: small::tiny_bert_rank,
    },
    Shape {
        name: "tiny-qwen2vl",
        about: "test model, the language half of a vision model",
        make: small::tiny_qwen2vl,
    },
    Shape {
        name: "tiny-qwen2vl-mmproj",
        about: "its vision tower",
        make: small::tiny_qwen2vl_mmproj,
    },
    Shape {
        name: "smollm2-135m",
        about: "SmolLM2 135M",
        make: real::smollm2_135m,
    },
    Shape {
        name: "minitron-4b",
        about: "Llama 3.1 Minitron 4B Width",
        make: real::minitron_4b,
    },
    Shape {
        name: "llama3-8b",
        about: "Llama 3.1 8B",
        make: real::llama3_8b,
    },
    Shape {
        name: "minitron-8b",
        about: "Mistral NeMo Minitron 8B",
        make: real::minitron_8b,
    },
    Shape {
        name: "qwen3-30b-a3b",
        about: "Qwen3 30B A3B, 128 experts of which a token uses 8",
        make: real::qwen3_30b_a3b,
    },
    Shape {
        name: "qwen3-32b",
        about: "Qwen3 32B",
        make: real::qwen3_32b,
    },
    Shape {
        name: "qwen3-235b-a22b",
        about: "Qwen3 235B A22B; --layers makes it fit",
        make: real::qwen3_235b_a22b,
    },
    Shape {
        name: "cosmos-reason1-7b",
        about: "Cosmos Reason1 7B, the language half",
        make: real::cosmos_reason1_7b,
    },
    Shape {
        name: "cosmos-reason1-7b-mmproj",
        about: "its vision tower",
        make: real::cosmos_reason1_7b_mmproj,
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
        .or_else(|| encoders::shape(name, small::tower(&small::tiny_qwen2vl())))
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
