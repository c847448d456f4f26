//! What a synthetic model looks like.

use super::{Architecture, SynthError, TypeMix};
use pipeshard_model::inventory::DType;

/// A window that most layers look back over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Tokens.
    pub tokens: u32,
    /// The last of every so many layers sees the whole context.
    pub period: u32,
}

/// Attention whose keys and values are made from a short vector per token, which is what the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Elements of the vector that queries are made from.
    pub query_rank: u32,
    /// Elements of the vector that keys and values are made from.
    pub key_rank: u32,
    /// Elements per head that are rotated by position.
    pub rotated: u32,
    /// Elements per head of a query or key, the rotated ones included.
    pub key: u32,
    /// Elements per head of a value.
    pub value: u32,
}

/// A state-space block, or a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateSpace {
    /// Width of the block.
    pub inner: u32,
    /// Elements of state for each of them.
    pub state: u32,
    /// Tokens that the convolution sees.
    pub kernel: u32,
    /// Heads that share a time step.
    pub heads: u32,
    /// Groups that share inputs and outputs of the state.
    pub groups: u32,
}

/// What an encoder makes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// One number for how well two texts go together.
    Rank,
}

/// What a vision tower adds to the shape of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vision {
    /// Pixels along the side of a patch.
    pub patch: u32,
    /// Pixels along the side of the picture that it says it was trained for.
    pub image: u32,
    /// The last of every so many layers sees the whole picture, the others windows of it.
    pub window_period: u32,
    /// Width of the language model.
    pub projection: u32,
    /// Which of the small encoders for tests it is; Qwen2.5-VL's where it is none of them.
    pub projector: Option<&'static str>,
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
    /// Width of the shared expert, which every token uses; 0 without one.
    pub shared_feed_forward: u32,
    /// Layers at the start that have no experts though the others have.
    pub leading_dense: u32,
    /// Tokens of context that the model claims to be trained for.
    pub context: u32,
    /// Sliding window, where the architecture has one.
    pub window: Option<Window>,
    /// Latent attention, where the architecture has it.
    pub latent: Option<Latent>,
    /// State-space blocks, where the architecture has them.
    pub state_space: Option<StateSpace>,
    /// In a hybrid, the last of every so many layers is attention.
    pub attention_period: u32,
    /// What an encoder makes of a text.
    pub pooling: Option<Pooling>,
    /// Whether the vocabulary has the tokens that go around images and their tiles, and there is a form for conversations.
    pub image_tokens: bool,
    /// What makes it a vision tower.
    pub vision: Option<Vision>,
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

/// Tokens that llama.cpp's multimodal library looks for, to put them around images and their tiles.
pub(super) const IMAGE_TOKENS: [&str; 15] = [
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "\n\n",
    "<fake_token_around_image>",
    "<global-img>",
    "<|IMG_LINE_BREAK|>",
    "<|img_thumbnail|>",
    "<im_start>",
    "<im_end>",
    "<patch_start>",
    "<patch_end>",
    "<patch_newline>",
    "<|image_start|>",
];

/// llama.cpp's own limits.
const MAX_LAYERS: u32 = 512;
const MAX_EXPERTS: u32 = 512;

fn fail(reason: String) -> Result<(), SynthError> {
    Err(SynthError::Shape { reason })
}

impl SynthSpec {
    /// Reports whether there are experts.
    pub fn is_mixture(&self) -> bool {
        self.experts > 0
    }

    /// The type of the weights that there are most of.
    pub fn main_type(&self) -> &'static DType {
        if self.is_mixture() {
            self.types.experts
        } else if self.architecture == Architecture::Mamba2 {
            self.types.attention
        } else {
            self.types.feed_forward
        }
    }

    /// Reports whether a layer has experts.
    pub(super) fn layer_mixes(&self, layer: u32) -> bool {
        self.is_mixture() && layer >= self.leading_dense
    }

    /// Reports whether a layer is a state-space block instead of attention.
    pub(super) fn layer_is_recurrent(&self, layer: u32) -> bool {
        match self.architecture {
            Architecture::Mamba2 => true,
            _ if self.state_space.is_none() => false,
            _ => !(layer + 1).is_multiple_of(self.attention_period.max(1)),
        }
    }

    /// Checks that llama.cpp can load such a model.
    ///
    /// # Errors
    /// [`SynthError::Shape`] with the first reason why it cannot.
    pub fn check(&self) -> Result<(), SynthError> {
        for (name, value) in [
            ("layers", self.layers),
            ("embedding", self.embedding),
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
        if self.architecture.reads_text() && self.vocabulary < FIXED_TOKENS {
            return fail(format!(
                "the vocabulary needs at least {FIXED_TOKENS} tokens (one for each byte, and four more), not {}",
                self.vocabulary
            ));
        }
        if self.image_tokens && self.vocabulary < FIXED_TOKENS + IMAGE_TOKENS.len() as u32 {
            return fail("the vocabulary has no room for the tokens around images".to_owned());
        }
        self.check_attention()?;
        self.check_feed_forward()?;
        self.check_extras()
    }

    fn check_attention(&self) -> Result<(), SynthError> {
        if self.architecture == Architecture::Mamba2 {
            return Ok(());
        }
        for (name, value) in [
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("head-dim", self.head_dim),
        ] {
            if value == 0 {
                return fail(format!("{name} is 0"));
            }
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
        let width = u64::from(self.heads) * u64::from(self.head_dim);
        let free = self.vision.is_some_and(|vision| vision.projector.is_some());
        if self.architecture.heads_fill_width() && !free && width != u64::from(self.embedding) {
            return fail(format!(
                "in {} the heads together must be as wide as the embedding: {} heads of {} are not {}",
                self.architecture.name(),
                self.heads,
                self.head_dim,
                self.embedding
            ));
        }
        Ok(())
    }

    fn check_feed_forward(&self) -> Result<(), SynthError> {
        let name = self.architecture.name();
        if self.is_mixture() || self.architecture.must_mix() {
            if !self.architecture.may_mix() {
                return fail(format!("{name} has no experts"));
            }
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
            if self.leading_dense > 0 && self.feed_forward == 0 {
                return fail("feed-forward is 0".to_owned());
            }
        } else if self.feed_forward == 0 && self.architecture != Architecture::Mamba2 {
            return fail("feed-forward is 0".to_owned());
        }
        let (shared, expert) = (self.shared_feed_forward, self.expert_feed_forward);
        if self.architecture == Architecture::Deepseek2
            && (shared == 0 || !shared.is_multiple_of(expert))
        {
            return fail(format!(
                "shared experts are whole ones: a width of {shared} is no multiple of {expert}"
            ));
        }
        if self.shared_feed_forward > 0 && !self.architecture.may_share_experts() {
            return fail(format!("{name} has no shared experts"));
        }
        Ok(())
    }

    fn check_extras(&self) -> Result<(), SynthError> {
        let name = self.architecture.name();
        if self.window.is_some() && !self.architecture.may_slide() {
            return fail(format!("{name} has no sliding window"));
        }
        if self
            .window
            .is_some_and(|window| window.tokens == 0 || window.period == 0)
        {
            return fail("the sliding window is empty".to_owned());
        }
        let needs = [
            (
                "latent attention",
                self.latent.is_some(),
                self.architecture == Architecture::Deepseek2,
            ),
            (
                "state-space blocks",
                self.state_space.is_some(),
                self.architecture.is_recurrent(),
            ),
            (
                "a vision tower",
                self.vision.is_some(),
                self.architecture == Architecture::Clip,
            ),
            (
                "pooling",
                self.pooling.is_some(),
                self.architecture == Architecture::Bert,
            ),
        ];
        for (what, has, needs) in needs {
            match (has, needs) {
                (true, false) => return fail(format!("{name} has no {what}")),
                (false, true) => return fail(format!("{name} needs {what}")),
                _ => {}
            }
        }
        if let Some(state) = self.state_space {
            self.check_state_space(state)?;
        }
        match self.latent {
            Some(latent) if latent.key <= latent.rotated || !latent.rotated.is_multiple_of(2) => {
                fail(format!(
                    "of {} elements of a key, {} cannot be rotated",
                    latent.key, latent.rotated
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_state_space(&self, state: StateSpace) -> Result<(), SynthError> {
        let divides = |whole: u32, part: u32| part > 0 && whole.is_multiple_of(part);
        if !divides(state.inner, state.heads) || !divides(state.inner, state.groups) {
            return fail(format!(
                "a state-space block {} wide cannot be shared by {} heads and {} groups",
                state.inner, state.heads, state.groups
            ));
        }
        if state.kernel < 2 || state.state == 0 {
            return fail("the state-space block keeps no state".to_owned());
        }
        if self.architecture == Architecture::GraniteHybrid && state.inner != 2 * self.embedding {
            return fail(format!(
                "llama.cpp wants state-space blocks twice as wide as the embedding: {}, not {}",
                2 * u64::from(self.embedding),
                state.inner
            ));
        }
        if self.architecture == Architecture::Qwen3Next
            && u64::from(state.inner) != u64::from(state.heads) * u64::from(state.state)
        {
            return fail(format!(
                "a delta net of {} heads with {} elements each is not {} wide",
                state.heads, state.state, state.inner
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shape;

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
        assert!(changed(|s| s.experts = 4, "tiny-gemma3").contains("no experts"));
        assert!(changed(|s| s.experts_used = 99, "tiny-qwen3moe").contains("99"));
        let window = |s: &mut SynthSpec| {
            s.window = Some(Window {
                tokens: 64,
                period: 2,
            });
        };
        assert!(changed(window, "tiny-llama").contains("window"));
        assert!(changed(|s| s.latent = None, "tiny-deepseek2").contains("needs latent"));
        assert!(changed(|s| s.experts = 0, "tiny-gpt-oss").contains("experts"));
        assert!(changed(|s| s.embedding = 512, "tiny-qwen2").contains("wide"));
        assert!(changed(|s| s.embedding = 512, "tiny-granite-hybrid").contains("twice"));
        assert!(changed(|s| s.state_space = None, "tiny-mamba2").contains("state-space"));
        assert!(changed(|s| s.vision = None, "tiny-qwen2vl-mmproj").contains("vision"));
        assert!(changed(|s| s.pooling = None, "tiny-bert").contains("pooling"));
        let shared = |s: &mut SynthSpec| s.shared_feed_forward = 64;
        assert!(changed(shared, "tiny-mixtral").contains("shared"));
    }
}
