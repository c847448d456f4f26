//! Answers: sampling, whole characters, texts that end an answer, an even pace.

use super::activity::Activity;
use super::conversation::{Conversation, Message};
use super::evaluate::{taken, Work};
use crate::boundary::{optional, required};
use crate::chat::grammar_of;
use crate::failure::{Code, Failure};
use crate::process::with_errors;
use crate::types::GenerateConfig;
use pipeshard_llama::{Model, Sampler};
use pipeshard_sys as ffi;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Tokens that the penalty for repetitions looks back.
const PENALTY_LOOKS_BACK: i32 = 64;

/// How an answer is made.
pub struct Wish {
    most: u32,
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    seed: u32,
    grammar: Option<String>,
    stop: Vec<String>,
    pause: Option<Duration>,
}

impl Wish {
    /// # Safety
    /// Texts of `config` end with a zero byte, and there are as many as it says.
    ///
    /// # Errors
    /// A member makes no sense.
    pub unsafe fn read(config: &GenerateConfig) -> Result<Self, Failure> {
        let numbers = [
            config.temperature,
            config.top_p,
            config.min_p,
            config.repeat_penalty,
            config.tokens_per_second,
        ];
        if numbers.iter().any(|n| !n.is_finite() || *n < 0.0) || config.top_k < 0 {
            return Err(Failure::invalid(
                "temperature, top_k, top_p, min_p, repeat_penalty and tokens_per_second are not negative",
            ));
        }
        if config.reserved != 0 {
            return Err(Failure::new(Code::Version, "reserved is not zero"));
        }
        let grammar = optional(config.grammar, "grammar")?;
        let schema = optional(config.json_schema, "json_schema")?;
        let grammar =
            match (grammar, schema) {
                (Some(_), Some(_)) => {
                    return Err(Failure::invalid(
                        "give a grammar or a json_schema, not both",
                    ))
                }
                (Some(grammar), None) => Some(grammar.to_owned()),
                (None, Some(schema)) => Some(grammar_of(schema).map_err(|why| {
                    Failure::invalid(format!("json_schema cannot be used: {why}"))
                })?),
                (None, None) => None,
            };
        if config.stop.is_null() && config.stop_count > 0 {
            return Err(Failure::invalid("stop is NULL, and stop_count is not 0"));
        }
        let stop = (0..config.stop_count).map(|i| required(*config.stop.add(i), "stop"));
        let stop = stop.map(|text| text.map(str::to_owned));
        let stop: Vec<String> = stop.collect::<Result<_, _>>()?;
        if stop.iter().any(String::is_empty) {
            return Err(Failure::invalid("a text of stop is empty"));
        }
        Ok(Wish {
            most: match config.max_tokens {
                0 => u32::MAX,
                most => most,
            },
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
            repeat_penalty: config.repeat_penalty,
            seed: config.seed,
            grammar,
            stop,
            pause: (config.tokens_per_second > 0.0)
                .then(|| Duration::from_secs_f32(1.0 / config.tokens_per_second.max(1e-3))),
        })
    }

    fn sampler(&self, model: &Model) -> Result<Sampler, Failure> {
        let mut chain = Sampler::new();
        if let Some(grammar) = &self.grammar {
            let (made, errors) = with_errors(|| chain.grammar(model, grammar));
            chain = made.map_err(|_| {
                let why = errors.text.lines().next().unwrap_or_default();
                Failure::invalid(format!("the grammar cannot be read: {why}"))
            })?;
        }
        if self.repeat_penalty > 0.0 {
            chain = chain.penalties(model, PENALTY_LOOKS_BACK, self.repeat_penalty);
        }
        if self.temperature <= 0.0 {
            return Ok(chain.greedy());
        }
        if self.top_k > 0 {
            chain = chain.top_k(self.top_k);
        }
        if self.top_p > 0.0 {
            chain = chain.top_p(self.top_p);
        }
        if self.min_p > 0.0 {
            chain = chain.min_p(self.min_p);
        }
        Ok(chain.temperature(self.temperature).random(self.seed))
    }
}

/// Bytes of an answer on their way to whole characters, and to texts that end it.
struct Text<'w> {
    stop: &'w [String],
    /// The answer so far, as far as it was handed on.
    all: String,
    /// What is not handed on yet.
    waiting: Vec<u8>,
    /// A text of `stop` came.
    stopped: bool,
}

/// What came with a token.
struct Came {
    piece: String,
    ends: bool,
}

impl<'w> Text<'w> {
    fn new(stop: &'w [String]) -> Self {
        Text {
            stop,
            all: String::new(),
            waiting: Vec::new(),
            stopped: false,
        }
    }

    /// Takes more bytes, and hands on what is certain. Bytes that no character can begin with, or go on with, become U+FFFD.
    fn take(&mut self, bytes: &[u8], is_last: bool) -> Came {
        self.waiting.extend_from_slice(bytes);
        let whole = match is_last {
            true => self.waiting.len(),
            false => whole_characters(&self.waiting),
        };
        let text = String::from_utf8_lossy(&self.waiting[..whole]).into_owned();
        let found = self.stop.iter().filter_map(|stop| text.find(stop.as_str()));
        if let Some(at) = found.min() {
            self.waiting.clear();
            self.stopped = true;
            return self.hand_on(text[..at].to_owned(), true);
        }
        let keep = match is_last {
            true => 0,
            false => self.may_begin(&text),
        };
        let certain = text[..text.len() - keep].to_owned();
        let rest = text.as_bytes()[text.len() - keep..].to_vec();
        let unfinished = self.waiting.split_off(whole);
        self.waiting = rest;
        self.waiting.extend(unfinished);
        self.hand_on(certain, false)
    }

    fn hand_on(&mut self, piece: String, ends: bool) -> Came {
        self.all.push_str(&piece);
        Came { piece, ends }
    }

    /// Takes the text that ended the answer out of what was said behind text without roles: of the tokens from `begin` on those stay
    /// whose bytes were handed on, and what was handed on of the next one is text again.
    fn leave_out_stop(&self, model: &Model, conversation: &mut Conversation, begin: usize) {
        if !self.stopped {
            return;
        }
        let (mut kept, mut bytes) = (begin, 0);
        for &token in &conversation.tokens[begin..] {
            let length = bytes_of(model, token).len();
            if bytes + length > self.all.len() {
                break;
            }
            (kept, bytes) = (kept + 1, bytes + length);
        }
        conversation.tokens.truncate(kept);
        conversation.text = self.all.get(bytes..).unwrap_or_default().to_owned();
    }

    /// Bytes at the end of `text` that a text which ends the answer may begin with.
    fn may_begin(&self, text: &str) -> usize {
        let begins = |from: &usize| {
            let tail = &text[*from..];
            self.stop.iter().any(|stop| stop.starts_with(tail))
        };
        let starts = text.char_indices().map(|(at, _)| at);
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let near = starts.filter(|at| text.len() - at < longest);
        near.into_iter()
            .find(begins)
            .map_or(0, |at| text.len() - at)
    }
}

/// How many of the bytes are whole characters, or can never become one.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // the end is missing
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // nonsense in the middle: what is behind it counts by itself
        Err(error) => {
            let behind = error.valid_up_to() + error.error_len().unwrap_or(1);
            behind + whole_characters(&bytes[behind..])
        }
    }
}

/// The bytes of a token; of one that is not text, none.
fn bytes_of(model: &Model, token: i32) -> Vec<u8> {
    let mut bytes = vec![0u8; 64];
    loop {
        // SAFETY: the model is alive, the room is as large as said.
        let count = unsafe {
            ffi::llama_token_to_piece(
                model.raw_vocabulary(),
                token,
                bytes.as_mut_ptr().cast(),
                bytes.len() as i32,
                0,
                false,
            )
        };
        match usize::try_from(count) {
            Ok(count) => {
                bytes.truncate(count);
                return bytes;
            }
            Err(_) => bytes.resize(count.unsigned_abs() as usize, 0),
        }
    }
}

impl Activity {
    /// Answers. `piece` gets what comes, and says whether to go on.
    pub fn answer(
        &self,
        work: &mut Work,
        wish: &Wish,
        piece: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), Failure> {
        let model = &self.model.llama;
        let mut sampler = wish.sampler(model)?;
        let begin = Instant::now();
        self.noted(|state| {
            state.generated_tokens = 0;
            state.evaluated_again = 0;
            (state.prompt_ms, state.generate_ms) = (0.0, 0.0);
        });
        let (evaluated, reused) = work.catch_up(self)?;
        let mut text = Text::new(&wish.stop);
        let before = work.conversation.tokens.len();
        let result = self.tokens_of_answer(work, wish, &mut sampler, &mut text, piece, |state| {
            state.prompt_tokens = evaluated;
            state.reused_tokens = reused;
            state.prompt_ms = begin.elapsed().as_secs_f64() * 1e3;
        });
        // what was said stays said, also where it was cut short
        if work.conversation.without_roles {
            text.leave_out_stop(model, &mut work.conversation, before);
        } else {
            work.conversation.messages.push(Message {
                role: "assistant".to_owned(),
                text: text.all,
                media: Vec::new(),
            });
        }
        result
    }

    fn tokens_of_answer(
        &self,
        work: &mut Work,
        wish: &Wish,
        sampler: &mut Sampler,
        text: &mut Text<'_>,
        piece: &mut dyn FnMut(&str) -> bool,
        prompt_is_there: impl FnOnce(&mut crate::types::State),
    ) -> Result<(), Failure> {
        let model = &self.model.llama;
        let cancelled = || Failure::new(Code::Cancelled, "the generation was cancelled");
        let mut prompt_is_there = Some(prompt_is_there);
        let begin = Instant::now();
        let mut made = 0u32;
        loop {
            let token = sampler.sample(work.context()?, -1);
            if let Some(note) = prompt_is_there.take() {
                self.noted(note);
            }
            // SAFETY: the model is alive.
            let ends = unsafe { ffi::llama_vocab_is_eog(model.raw_vocabulary(), token) };
            let used = taken(&work.held);
            let full = used + 1 >= work.room;
            made += u32::from(!ends);
            let is_last = ends || made >= wish.most || full;
            let bytes = match ends {
                true => Vec::new(),
                false => bytes_of(model, token),
            };
            let came = text.take(&bytes, is_last);
            if work.conversation.without_roles && !ends {
                work.conversation.tokens.push(token);
            }
            self.noted(|state| {
                state.generated_tokens = made;
                state.used = used;
                state.generate_ms = begin.elapsed().as_secs_f64() * 1e3;
            });
            let wants_more = came.piece.is_empty() || piece(&came.piece);
            if !wants_more || self.stop.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            if came.ends || is_last {
                return match full && !ends && made < wish.most && !came.ends {
                    true => Err(Failure::new(
                        Code::ContextFull,
                        "the answer was cut short: the session has no room for more tokens",
                    )),
                    false => Ok(()),
                };
            }
            work.tokens(self, &[token], true)?;
            if let Some(pause) = wish.pause {
                let due = begin + pause * made;
                if !self.sleep_until(due) {
                    return Err(cancelled());
                }
            }
        }
    }
}
