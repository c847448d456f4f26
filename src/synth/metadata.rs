//! What a synthetic model says about itself: hyperparameters as llama.cpp reads them, and a minimal tokenizer.
//!
//! The tokenizer is of SentencePiece's kind with one token for each byte, one for the blank, and fillers that no text
//! matches, so that ASCII text of n characters is exactly n tokens, after the begin token. Fillers print as short words.

use super::container::Value;
use super::spec::{SynthSpec, FIXED_TOKENS};
use super::Architecture;

/// Numbers of token kinds in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// What SentencePiece writes for a blank.
const BLANK: &str = "\u{2581}";

/// Base of the rotary embedding in layers with a sliding window.
const WINDOW_ROPE_BASE: f32 = 10_000.0;

/// llama.cpp's number for "mostly this type", by the type of the weights that there are most of.
fn file_type(spec: &SynthSpec) -> u32 {
    let dtype = if spec.architecture.is_mixture() {
        spec.types.experts
    } else {
        spec.types.feed_forward
    };
    match dtype.name {
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
        "bf16" => 32,
        // guessed
        _ => 1024,
    }
}

/// All metadata of a model.
pub(super) fn metadata(spec: &SynthSpec) -> Vec<(String, Value)> {
    let mut pairs = vec![
        (
            "general.architecture".to_owned(),
            Value::Text(spec.architecture.name().to_owned()),
        ),
        ("general.type".to_owned(), Value::Text("model".to_owned())),
        ("general.name".to_owned(), Value::Text(spec.name.clone())),
        (
            "general.description".to_owned(),
            Value::Text(format!(
                "random weights, seed {}, made by pipeshard synth",
                spec.seed
            )),
        ),
        ("general.file_type".to_owned(), Value::U32(file_type(spec))),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let mut own = |key: &str, value: Value| {
        pairs.push((format!("{}.{key}", spec.architecture.name()), value));
    };
    for (key, value) in [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.embedding),
        ("feed_forward_length", spec.feed_forward),
        ("vocab_size", spec.vocabulary),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
        ("rope.dimension_count", spec.head_dim),
    ] {
        own(key, Value::U32(value));
    }
    own("attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    own("rope.freq_base", Value::F32(spec.rope_base));
    if spec.architecture.is_mixture() {
        own("expert_count", Value::U32(spec.experts));
        own("expert_used_count", Value::U32(spec.experts_used));
        own(
            "expert_feed_forward_length",
            Value::U32(spec.expert_feed_forward),
        );
    }
    if let (Architecture::Gemma3, Some(window)) = (spec.architecture, spec.window) {
        own("attention.sliding_window", Value::U32(window.tokens));
        own(
            "attention.sliding_window_pattern",
            Value::U32(window.period),
        );
        own("rope.freq_base_swa", Value::F32(WINDOW_ROPE_BASE));
    }
    pairs.extend(tokenizer(spec.vocabulary));
    pairs
}

fn tokenizer(vocabulary: u32) -> Vec<(String, Value)> {
    let special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];
    let mut tokens: Vec<String> = special.iter().map(|(text, _)| (*text).to_owned()).collect();
    let mut kinds: Vec<i32> = special.iter().map(|(_, kind)| *kind).collect();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([BYTE; 256]);
    tokens.push(BLANK.to_owned());
    tokens
        .extend((FIXED_TOKENS..vocabulary).map(|id| format!("{BLANK}{}", word(id - FIXED_TOKENS))));
    kinds.resize(tokens.len(), NORMAL);
    // Pieces are merged by score; fillers have no parts in the vocabulary and are never merged.
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let pair = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
    vec![
        pair("model", Value::Text("llama".to_owned())),
        pair("pre", Value::Text("default".to_owned())),
        pair("tokens", Value::Texts(tokens)),
        pair("scores", Value::F32s(scores)),
        pair("token_type", Value::I32s(kinds)),
        pair("unknown_token_id", Value::U32(0)),
        pair("bos_token_id", Value::U32(1)),
        pair("eos_token_id", Value::U32(2)),
        pair("add_bos_token", Value::Bool(true)),
        pair("add_eos_token", Value::Bool(false)),
        pair("add_space_prefix", Value::Bool(false)),
    ]
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
        let pairs = tokenizer(300);
        let length = |key: &str| match pairs.iter().find(|(k, _)| k.ends_with(key)) {
            Some((_, Value::Texts(texts))) => texts.len(),
            Some((_, Value::F32s(numbers))) => numbers.len(),
            Some((_, Value::I32s(numbers))) => numbers.len(),
            _ => 0,
        };
        assert_eq!(["tokens", "scores", "token_type"].map(length), [300; 3]);
    }
}
