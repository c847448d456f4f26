//! What a synthetic model says about itself: hyperparameters as llama.cpp reads them, and a minimal tokenizer.
//!
//! The tokenizer is of SentencePiece's kind with one token for each byte, one for the blank, and fillers that no text
//! matches, so that ASCII text of n characters is exactly n tokens, after the begin token. Fillers print as short words.

use super::layout::{EXPERT_WEIGHTS_SCALE, TOKEN_TYPES};
use super::spec::{Pooling, SynthSpec, Vision, FIXED_TOKENS, IMAGE_TOKENS};
use super::{encoders, Architecture};
use pipeshard_gguf::container::Value;

/// Numbers of token kinds in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// What SentencePiece writes for a blank.
const BLANK: &str = "\u{2581}";

/// Base of the rotary embedding in layers with a sliding window.
const WINDOW_ROPE_BASE: f32 = 10_000.0;

/// How a conversation becomes text. Multimodal tools insist on knowing; other models are better without, because tools
/// start a chat with a model that has one.
const CHAT: &str =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}\
     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What norms add to the variance before they divide by its root.
const NORM_EPSILON: f32 = 1e-6;

/// Numbers of llama.cpp's pooling types.
const POOLING_MEAN: u32 = 1;
const POOLING_RANK: u32 = 4;

/// llama.cpp's number for experts whose scores are squashed one by one.
const GATING_SIGMOID: u32 = 2;

/// llama.cpp's number for "mostly this type", by the type of the weights that there are most of.
fn file_type(spec: &SynthSpec) -> u32 {
    match spec.main_type().name {
        "q4_K" if spec.types.finer.is_some() => 15,
        "q5_K" if spec.types.finer.is_some() => 17,
        "f32" => 0,
        "f16" => 1,
        "q4_0" => 2,
        "q4_1" => 3,
        "q8_0" => 7,
        "q5_0" => 8,
        "q5_1" => 9,
        "q2_K" => 10,
        "q3_K" => 11,
        "q4_K" => 14,
        "q5_K" => 16,
        "q6_K" => 18,
        "iq4_nl" => 25,
        "iq4_xs" => 30,
        "bf16" => 32,
        "mxfp4" => 38,
        // guessed
        _ => 1024,
    }
}

/// All metadata of a model.
pub(super) fn metadata(spec: &SynthSpec) -> Vec<(String, Value)> {
    let text = |text: &str| Value::Text(text.to_owned());
    let kind = match spec.architecture {
        Architecture::Clip => "mmproj",
        _ => "model",
    };
    let description = format!(
        "random weights, seed {}, made by pipeshard synth",
        spec.seed
    );
    let mut pairs: Vec<(String, Value)> = [
        ("architecture", text(spec.architecture.name())),
        ("type", text(kind)),
        // a name with phi3 in it makes llama.cpp look for tokens that the vocabulary has not
        ("name", Value::Text(spec.name.replace("phi3", "phi 3"))),
        ("description", Value::Text(description)),
        ("file_type", Value::U32(file_type(spec))),
        ("quantization_version", Value::U32(2)),
    ]
    .map(|(key, value)| (format!("general.{key}"), value))
    .into();
    let mut keys = Keys {
        architecture: spec.architecture.name(),
        pairs: &mut pairs,
    };
    if let Some(own) = encoders::keys(spec) {
        pairs.extend(own);
    } else if let Some(vision) = spec.vision {
        keys.vision(spec, vision);
    } else {
        keys.layers(spec);
        keys.attention(spec);
        keys.mixture(spec);
        keys.recurrence(spec);
        keys.encoder(spec);
        pairs.extend(tokenizer(spec));
    }
    pairs
}

/// Collects the keys of one architecture.
struct Keys<'a> {
    architecture: &'static str,
    pairs: &'a mut Vec<(String, Value)>,
}

impl Keys<'_> {
    fn add(&mut self, key: &str, value: Value) {
        self.pairs
            .push((format!("{}.{key}", self.architecture), value));
    }

    fn number(&mut self, key: &str, number: u32) {
        self.add(key, Value::U32(number));
    }

    fn layers(&mut self, spec: &SynthSpec) {
        self.number("block_count", spec.layers);
        self.number("context_length", spec.context);
        self.number("embedding_length", spec.embedding);
        self.number("vocab_size", spec.vocabulary);
        let width = match spec.architecture {
            // the width of an expert goes by this name where there is no dense network
            Architecture::Llama | Architecture::GraniteHybrid if spec.is_mixture() => {
                spec.expert_feed_forward
            }
            _ => spec.feed_forward,
        };
        self.number("feed_forward_length", width);
        let norm = match spec.architecture {
            Architecture::Bert => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        self.add(norm, Value::F32(NORM_EPSILON));
    }

    fn attention(&mut self, spec: &SynthSpec) {
        self.number("attention.head_count", spec.heads);
        if spec.architecture == Architecture::Mamba2 {
            return;
        }
        if spec.architecture == Architecture::GraniteHybrid {
            // no key and value heads is how it says that a layer is recurrent
            let heads = (0..spec.layers).map(|layer| match spec.layer_is_recurrent(layer) {
                true => 0,
                false => spec.kv_heads.cast_signed(),
            });
            self.add("attention.head_count_kv", Value::I32s(heads.collect()));
            self.add("rope.scaling.finetuned", Value::Bool(false));
        } else {
            self.number("attention.head_count_kv", spec.kv_heads);
        }
        let (key, value, rotated) = match spec.latent {
            Some(latent) => {
                self.number("attention.q_lora_rank", latent.query_rank);
                self.number("attention.kv_lora_rank", latent.key_rank);
                self.number("attention.key_length_mla", latent.key);
                self.number("attention.value_length_mla", latent.value);
                let cached = latent.key_rank + latent.rotated;
                (cached, latent.key_rank, latent.rotated)
            }
            None => (spec.head_dim, spec.head_dim, spec.head_dim),
        };
        self.number("attention.key_length", key);
        self.number("attention.value_length", value);
        self.number("rope.dimension_count", rotated);
        self.add("rope.freq_base", Value::F32(spec.rope_base));
        if spec.architecture == Architecture::Phi3 {
            // beyond it the long rope factors are used
            self.number("rope.scaling.original_context_length", spec.context / 2);
        }
        if spec.architecture == Architecture::Qwen2Vl {
            // time, height and width share the pairs of a head as 2 : 3 : 3
            let eighth = (spec.head_dim / 16).cast_signed();
            let sections = vec![2 * eighth, 3 * eighth, 3 * eighth, 0];
            self.add("rope.dimension_sections", Value::I32s(sections));
        }
        if let Some(window) = spec.window {
            self.number("attention.sliding_window", window.tokens);
            self.number("attention.sliding_window_pattern", window.period);
            self.add("rope.freq_base_swa", Value::F32(WINDOW_ROPE_BASE));
        }
    }

    fn mixture(&mut self, spec: &SynthSpec) {
        if !spec.is_mixture() {
            return;
        }
        self.number("expert_count", spec.experts);
        self.number("expert_used_count", spec.experts_used);
        self.number("expert_feed_forward_length", spec.expert_feed_forward);
        if spec.architecture == Architecture::Deepseek2 {
            self.number("leading_dense_block_count", spec.leading_dense);
            let shared = spec.shared_feed_forward / spec.expert_feed_forward;
            self.number("expert_shared_count", shared);
            self.number("expert_gating_func", GATING_SIGMOID);
            self.add("expert_weights_norm", Value::Bool(true));
            self.add("expert_weights_scale", Value::F32(EXPERT_WEIGHTS_SCALE));
            if spec.experts.is_multiple_of(4) && spec.experts > 4 {
                self.number("expert_group_count", 4);
                self.number("expert_group_used_count", 2);
            }
        } else if spec.shared_feed_forward > 0 {
            let width = spec.shared_feed_forward;
            self.number("expert_shared_feed_forward_length", width);
        }
    }

    fn recurrence(&mut self, spec: &SynthSpec) {
        let Some(state) = spec.state_space else {
            return;
        };
        self.number("ssm.conv_kernel", state.kernel);
        self.number("ssm.inner_size", state.inner);
        self.number("ssm.state_size", state.state);
        self.number("ssm.time_step_rank", state.heads);
        self.number("ssm.group_count", state.groups);
        if spec.architecture == Architecture::Qwen3Next {
            self.number("full_attention_interval", spec.attention_period);
        }
    }

    fn encoder(&mut self, spec: &SynthSpec) {
        let Some(pooling) = spec.pooling else {
            return;
        };
        self.add("attention.causal", Value::Bool(false));
        let pooling = match pooling {
            Pooling::Mean => POOLING_MEAN,
            Pooling::Rank => POOLING_RANK,
        };
        self.number("pooling_type", pooling);
    }

    fn vision(&mut self, spec: &SynthSpec, vision: Vision) {
        self.add("has_vision_encoder", Value::Bool(true));
        self.add("use_silu", Value::Bool(true));
        self.add("projector_type", Value::Text("qwen2.5vl_merger".to_owned()));
        for (key, number) in [
            ("image_size", vision.image),
            ("patch_size", vision.patch),
            ("embedding_length", spec.embedding),
            ("feed_forward_length", spec.feed_forward),
            ("projection_dim", vision.projection),
            ("block_count", spec.layers),
            ("attention.head_count", spec.heads),
            ("n_wa_pattern", vision.window_period),
        ] {
            self.number(&format!("vision.{key}"), number);
        }
        let epsilon = Value::F32(NORM_EPSILON);
        self.add("vision.attention.layer_norm_epsilon", epsilon);
        let colours = |value: [f32; 3]| Value::F32s(value.to_vec());
        self.add("vision.image_mean", colours([0.48, 0.46, 0.41]));
        self.add("vision.image_std", colours([0.27, 0.26, 0.28]));
    }
}

fn tokenizer(spec: &SynthSpec) -> Vec<(String, Value)> {
    let vocabulary = spec.vocabulary;
    let encoder = !spec.architecture.writes_text();
    let special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];
    let mut tokens: Vec<String> = special.iter().map(|(text, _)| (*text).to_owned()).collect();
    let mut kinds: Vec<i32> = special.iter().map(|(_, kind)| *kind).collect();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([BYTE; 256]);
    tokens.push(BLANK.to_owned());
    kinds.push(NORMAL);
    if spec.image_tokens {
        tokens.extend(IMAGE_TOKENS.map(str::to_owned));
        kinds.extend([USER_DEFINED; IMAGE_TOKENS.len()]);
    }
    let first = tokens.len() as u32;
    tokens.extend((first..vocabulary).map(|id| format!("{BLANK}{}", word(id - FIXED_TOKENS))));
    kinds.resize(tokens.len(), NORMAL);
    // Pieces are merged by score; fillers have no parts in the vocabulary and are never merged.
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let pair = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
    let mut pairs = vec![
        pair("model", Value::Text("llama".to_owned())),
        pair("pre", Value::Text("default".to_owned())),
        pair("tokens", Value::Texts(tokens)),
        pair("scores", Value::F32s(scores)),
        pair("token_type", Value::I32s(kinds)),
        pair("unknown_token_id", Value::U32(0)),
        pair("bos_token_id", Value::U32(1)),
        pair("eos_token_id", Value::U32(2)),
        pair("add_bos_token", Value::Bool(true)),
        pair("add_eos_token", Value::Bool(encoder)),
        pair("add_space_prefix", Value::Bool(false)),
    ];
    if spec.image_tokens || spec.architecture == Architecture::Qwen2Vl {
        pairs.push((
            "tokenizer.chat_template".to_owned(),
            Value::Text(CHAT.to_owned()),
        ));
    }
    if encoder {
        pairs.push(pair("token_type_count", Value::U32(TOKEN_TYPES)));
        pairs.push(pair("seperator_token_id", Value::U32(2)));
    }
    pairs
}

/// A pronounceable word for a number: at least two syllables, no two alike.
fn word(mut number: u32) -> String {
    const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8; 4] = b"aeio";
    let mut word = String::new();
    loop {
        word.push(char::from(CONSONANTS[number as usize % 16]));
        word.push(char::from(VOWELS[number as usize / 16 % 4]));
        number /= 64;
        if number == 0 && word.len() >= 4 {
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_unique() {
        let words: HashSet<_> = (0..200_000).map(word).collect();
        assert_eq!(words.len(), 200_000);
        assert_eq!(word(0), "baba");
        assert_eq!(word(64 * 64), "babada");
    }

    #[test]
    fn the_vocabulary_has_the_size_asked_for() {
        let mut spec = crate::synth::shape("tiny-llama").unwrap();
        spec.vocabulary = 300;
        let pairs = tokenizer(&spec);
        let length = |key: &str| match pairs.iter().find(|(k, _)| k.ends_with(key)) {
            Some((_, Value::Texts(texts))) => texts.len(),
            Some((_, Value::F32s(numbers))) => numbers.len(),
            Some((_, Value::I32s(numbers))) => numbers.len(),
            _ => 0,
        };
        assert_eq!(["tokens", "scores", "token_type"].map(length), [300; 3]);
    }
}
