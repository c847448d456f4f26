//! The architectures that can be written, and what tells them apart.

/// An architecture under llama.cpp's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Grouped queries, SwiGLU; with experts it is what Mixtral is.
    Llama,
    /// As `Llama`, with biases on queries, keys and values.
    Qwen2,
    /// As `Qwen2`, with positions of several dimensions for pictures.
    Qwen2Vl,
    /// As `Llama`, with normalised queries and keys.
    Qwen3,
    /// As `Qwen3`, with a mixture of experts in every layer.
    Qwen3Moe,
    /// Three of four layers a gated delta net, the others gated attention; experts, one of them shared.
    Qwen3Next,
    /// Sliding windows in most layers, norms before and after each block, GeGLU.
    Gemma3,
    /// Fused queries, keys and values, fused gate and up projections.
    Phi3,
    /// Attention sinks, biases everywhere, experts, windows in every other layer.
    GptOss,
    /// Latent attention, experts in groups, shared experts, leading dense layers.
    Deepseek2,
    /// State-space blocks and nothing else.
    Mamba2,
    /// State-space blocks with attention between them; experts and a shared one.
    GraniteHybrid,
    /// An encoder for embeddings, or with a head for ranking.
    Bert,
    /// A vision tower in the shape of Qwen2.5-VL's, a separate file next to the language model's.
    Clip,
}

impl Architecture {
    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen2Vl => "qwen2vl",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Qwen3Next => "qwen3next",
            Architecture::Gemma3 => "gemma3",
            Architecture::Phi3 => "phi3",
            Architecture::GptOss => "gpt-oss",
            Architecture::Deepseek2 => "deepseek2",
            Architecture::Mamba2 => "mamba2",
            Architecture::GraniteHybrid => "granitehybrid",
            Architecture::Bert => "bert",
            Architecture::Clip => "clip",
        }
    }

    /// Reports whether queries and keys are normalised per head.
    pub(super) fn normalises_queries(self) -> bool {
        use Architecture::{Gemma3, Qwen3, Qwen3Moe, Qwen3Next};
        matches!(self, Qwen3 | Qwen3Moe | Qwen3Next | Gemma3)
    }

    /// Reports whether each block's output is normalised before it joins the residual stream.
    pub(super) fn normalises_outputs(self) -> bool {
        matches!(self, Architecture::Gemma3)
    }

    /// Reports whether queries, keys and values have biases.
    pub(super) fn biases_queries(self) -> bool {
        use Architecture::{Bert, GptOss, Qwen2, Qwen2Vl};
        matches!(self, Qwen2 | Qwen2Vl | GptOss | Bert)
    }

    /// Reports whether the norm before the feed-forward network goes by the name of the one after attention.
    pub(super) fn names_norm_after_attention(self) -> bool {
        matches!(self, Architecture::GptOss | Architecture::Qwen3Next)
    }

    /// Reports whether heads times elements per head must be the width of the residual stream.
    pub(super) fn heads_fill_width(self) -> bool {
        use Architecture::{Bert, Clip, Phi3, Qwen2, Qwen2Vl};
        matches!(self, Qwen2 | Qwen2Vl | Phi3 | Bert | Clip)
    }

    /// Reports whether there may be experts.
    pub(super) fn may_mix(self) -> bool {
        self == Architecture::Llama || self == Architecture::GraniteHybrid || self.must_mix()
    }

    /// Reports whether there have to be experts.
    pub(super) fn must_mix(self) -> bool {
        use Architecture::{Deepseek2, GptOss, Qwen3Moe, Qwen3Next};
        matches!(self, Qwen3Moe | Qwen3Next | GptOss | Deepseek2)
    }

    /// Reports whether there may be experts that every token uses.
    pub(super) fn may_share_experts(self) -> bool {
        use Architecture::{Deepseek2, GraniteHybrid, Qwen3Next};
        matches!(self, Deepseek2 | GraniteHybrid | Qwen3Next)
    }

    /// Reports whether layers may look back over a window.
    pub(super) fn may_slide(self) -> bool {
        matches!(self, Architecture::Gemma3 | Architecture::GptOss)
    }

    /// Reports whether some layers, or all, are state-space blocks.
    pub(super) fn is_recurrent(self) -> bool {
        use Architecture::{GraniteHybrid, Mamba2, Qwen3Next};
        matches!(self, Mamba2 | GraniteHybrid | Qwen3Next)
    }

    /// Reports whether it reads text.
    pub fn reads_text(self) -> bool {
        self != Architecture::Clip
    }

    /// Reports whether it writes text, which takes an output head.
    pub fn writes_text(self) -> bool {
        !matches!(self, Architecture::Clip | Architecture::Bert)
    }
}
