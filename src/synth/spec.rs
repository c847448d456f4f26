//! What a synthetic model looks like.

use super::{SynthError, WRITABLE};
use crate::inventory::DType;

/// The architectures that can be written, under llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Dense, grouped queries, SwiGLU.
    Llama,
    /// As `Llama`, with normalised queries and keys.
    Qwen3,
    /// As `Qwen3`, with a mixture of experts in every layer.
    Qwen3Moe,
    /// Sliding windows in most layers, norms before and after each block, GeGLU.
    Gemma3,
}

impl Architecture {
    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Gemma3 => "gemma3",
        }
    }

    /// Whether queries and keys are normalised per head.
    pub(super) fn normalises_queries(self) -> bool {
        !matches!(self, Architecture::Llama)
    }

    /// Whether each block's output is normalised before it joins the residual stream.
    pub(super) fn normalises_outputs(self) -> bool {
        matches!(self, Architecture::Gemma3)
    }

    /// Whether the feed-forward network is a mixture of experts.
    pub fn is_mixture(self) -> bool {
        matches!(self, Architecture::Qwen3Moe)
    }
}

/// A window that most layers look back over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Tokens.
    pub tokens: u32,
    /// The last of every so many layers sees the whole context.
    pub period: u32,
}

/// The element type of each kind of weight. Norms and routers are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeMix {
    /// Token embedding, and the output head where it is tied.
    pub embedding: &'static DType,
    /// Projections of attention.
    pub attention: &'static DType,
    /// Dense feed-forward networks.
    pub feed_forward: &'static DType,
    /// Routed experts.
    pub experts: &'static DType,
    /// The output head.
    pub output: &'static DType,
}

impl TypeMix {
    /// The names that [`TypeMix::with`] understands on the left of a `=`.
    pub const KEYS: &'static [&'static str] = &[
        "embedding",
        "attention",
        "feed-forward",
        "experts",
        "output",
    ];

    /// One type for all.
    pub fn uniform(dtype: &'static DType) -> Self {
        TypeMix {
            embedding: dtype,
            attention: dtype,
            feed_forward: dtype,
            experts: dtype,
            output: dtype,
        }
    }

    /// This mix changed by a text such as `q4_0`, `attention=f16` or `q4_0,attention=f16,output=q8_0`.
    ///
    /// # Errors
    /// [`SynthError::UnknownType`] where the text names a type that cannot be written or a weight that is none.
    pub fn with(mut self, text: &str) -> Result<Self, SynthError> {
        let wrong = |reason: String| SynthError::UnknownType {
            text: text.to_owned(),
            reason,
        };
        for item in text.split(',') {
            let (key, name) = match item.split_once('=') {
                Some((key, name)) => (Some(key.trim()), name.trim()),
                None => (None, item.trim()),
            };
            let dtype = DType::from_name(name)
                .filter(|dtype| WRITABLE.contains(&dtype.name))
                .ok_or_else(|| wrong(format!("'{name}' is none of the types")))?;
            match key {
                None => self = TypeMix::uniform(dtype),
                Some("embedding") => self.embedding = dtype,
                Some("attention") => self.attention = dtype,
                Some("feed-forward") => self.feed_forward = dtype,
                Some("experts") => self.experts = dtype,
                Some("output") => self.output = dtype,
                Some(key) => return Err(wrong(format!("'{key}' is none of the weights"))),
            }
        }
        Ok(self)
    }
}

/// A model of random weights: its shape, its types and its seed.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthSpec {
    /// The name that the model gives itself.
    pub name: String,
    /// llama.cpp's architecture.
    pub architecture: Architecture,
    /// Number of layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub embedding: u32,
    /// Attention heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Width of the dense feed-forward network.
    pub feed_forward: u32,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Routed experts per layer; 0 for dense models.
    pub experts: u32,
    /// Experts that one token uses.
    pub experts_used: u32,
    /// Width of one expert.
    pub expert_feed_forward: u32,
    /// Tokens of context that the model claims to be trained for.
    pub context: u32,
    /// Sliding window, where the architecture has one.
    pub window: Option<Window>,
    /// Base of the rotary embedding.
    pub rope_base: f32,
    /// Whether the output head uses the token embedding.
    pub tied: bool,
    /// Element types.
    pub types: TypeMix,
    /// The weights follow from the specification and this.
    pub seed: u64,
}

/// Tokens that every vocabulary has: unknown, begin, end, one for each byte, and the blank.
pub(super) const FIXED_TOKENS: u32 = 3 + 256 + 1;

/// llama.cpp's own limits.
const MAX_LAYERS: u32 = 512;
const MAX_EXPERTS: u32 = 512;

impl SynthSpec {
    /// Checks that llama.cpp can load such a model.
    ///
    /// # Errors
    /// [`SynthError::Shape`] with the first reason why it cannot.
    pub fn check(&self) -> Result<(), SynthError> {
        let fail = |reason: String| Err(SynthError::Shape { reason });
        for (name, value) in [
            ("layers", self.layers),
            ("embedding", self.embedding),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("head-dim", self.head_dim),
            ("context", self.context),
        ] {
            if value == 0 {
                return fail(format!("{name} is 0"));
            }
        }
        if self.layers > MAX_LAYERS {
            return fail(format!(
                "llama.cpp allows {MAX_LAYERS} layers, not {}",
                self.layers
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!(
                "{} heads cannot share {} key and value heads evenly",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "a head of {} elements cannot be rotated in pairs",
                self.head_dim
            ));
        }
        if self.vocabulary < FIXED_TOKENS {
            return fail(format!(
                "the vocabulary needs at least {FIXED_TOKENS} tokens (one for each byte, and four more), not {}",
                self.vocabulary
            ));
        }
        if self.architecture.is_mixture() {
            if self.experts == 0 || self.experts > MAX_EXPERTS {
                return fail(format!(
                    "llama.cpp allows 1 to {MAX_EXPERTS} experts, not {}",
                    self.experts
                ));
            }
            if self.experts_used == 0 || self.experts_used > self.experts {
                return fail(format!(
                    "a token cannot use {} of {} experts",
                    self.experts_used, self.experts
                ));
            }
            if self.expert_feed_forward == 0 {
                return fail("the experts have no width".to_owned());
            }
        } else if self.experts > 0 {
            return fail(format!("{} has no experts", self.architecture.name()));
        } else if self.feed_forward == 0 {
            return fail("feed-forward is 0".to_owned());
        }
        if self.window.is_some() && self.architecture != Architecture::Gemma3 {
            return fail(format!(
                "{} has no sliding window",
                self.architecture.name()
            ));
        }
        if self
            .window
            .is_some_and(|window| window.tokens == 0 || window.period == 0)
        {
            return fail("the sliding window is empty".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shape;

    #[test]
    fn type_mixes() {
        let q8_0 = DType::from_name("q8_0").unwrap();
        let f16 = DType::from_name("f16").unwrap();
        let mix = TypeMix::uniform(f16).with("q8_0,attention=F16").unwrap();
        assert_eq!((mix.output, mix.attention), (q8_0, f16));
        let mix = TypeMix::uniform(f16).with("experts=q8_0").unwrap();
        assert_eq!((mix.experts, mix.feed_forward), (q8_0, f16));
        for wrong in ["", "q4", "iq1_s", "attention=", "norms=f16", "q4_0,"] {
            let error = TypeMix::uniform(f16).with(wrong).unwrap_err().to_string();
            assert!(error.contains("q4_0"), "{error}");
        }
    }

    #[test]
    fn impossible_shapes_are_named() {
        let changed = |change: fn(&mut SynthSpec), of: &str| {
            let mut spec = shape(of).unwrap();
            change(&mut spec);
            spec.check().unwrap_err().to_string()
        };
        assert!(changed(|s| s.layers = 0, "tiny-llama").contains("layers is 0"));
        assert!(changed(|s| s.kv_heads = 5, "tiny-llama").contains("evenly"));
        assert!(changed(|s| s.head_dim = 63, "tiny-llama").contains("pairs"));
        assert!(changed(|s| s.vocabulary = 259, "tiny-llama").contains("260"));
        assert!(changed(|s| s.experts = 4, "tiny-llama").contains("no experts"));
        assert!(changed(|s| s.experts_used = 99, "tiny-qwen3moe").contains("99"));
        let window = |s: &mut SynthSpec| {
            s.window = Some(Window {
                tokens: 64,
                period: 2,
            });
        };
        assert!(changed(window, "tiny-llama").contains("window"));
    }
}
