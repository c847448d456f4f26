//! What an evaluation is asked for: texts in slots, and how the answer is made.

use crate::abi::{Base, Context, GptRuntimeParameters, GptSamplerParameters, Slot};
use crate::boundary::c_text;
use crate::chain::{check, field, text, View};
use crate::images::{with_mark, Image};
use crate::outputs::{memory_of, slots};
use crate::refusal::{tell, Kind, Refusal};
use crate::request::Request;
use crate::types::GenerateConfig;
use std::ffi::{c_char, CStr, CString};
use std::mem::size_of;

/// Tokens that the library's penalty for repetitions looks back.
const PENALTY_LOOKS_BACK: i32 = 64;

/// How tokens are chosen.
#[derive(Clone)]
pub struct Sampling {
    top_k: i32,
    min_p: f32,
    repeat_penalty: f32,
    grammar: Option<String>,
    pub keeps_session: bool,
}

impl Sampling {
    /// From GPTSamplerParameters; its defaults where there is none.
    ///
    /// # Safety
    /// A chain of a host's.
    pub unsafe fn read(chain: *const Base) -> Result<Self, Refusal> {
        type S = GptSamplerParameters;
        let given = View::<S>::find(chain);
        let usual = S::usual();
        let unsupported = [
            (
                "xtcProbability",
                field!(given, S.xtc_probability, 1, 0.0) > 0.0,
            ),
            ("typP", field!(given, S.typical_p, 1, 1.0) != 1.0),
            (
                "dynatempRange",
                field!(given, S.dynamic_range, 1, 0.0) != 0.0,
            ),
            (
                "penaltyFreq",
                field!(given, S.penalty_frequency, 1, 0.0) != 0.0,
            ),
            (
                "penaltyPresent",
                field!(given, S.penalty_presence, 1, 0.0) != 0.0,
            ),
            ("mirostat", field!(given, S.mirostat, 1, 0) != 0),
            ("numProbs", field!(given, S.probabilities, 1, 0) != 0),
            ("minKeep", field!(given, S.min_keep, 1, 0) > 1),
            ("ignoreEOS", field!(given, S.ignore_eos, 1, 0) != 0),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, is_set)| *is_set) {
            return Err(Refusal::not_implemented(format!(
                "GPTSamplerParameters.{name} is set, which pipeshard does not have: leave it at its default"
            )));
        }
        let cache = field!(given, S.session_cache, 2, std::ptr::null());
        if text(cache, "utf8PathToSessionCache")?.is_some() {
            return Err(Refusal::not_implemented(
                "GPTSamplerParameters.utf8PathToSessionCache: use IGPTSessionState to keep a session",
            ));
        }
        let repeat_penalty = field!(given, S.penalty_repeat, 1, usual.penalty_repeat);
        let last = field!(given, S.penalty_last, 1, usual.penalty_last);
        if repeat_penalty != 1.0 && last != PENALTY_LOOKS_BACK {
            return Err(Refusal::not_implemented(format!(
                "GPTSamplerParameters.penaltyLastN is {last}; the penalty for repetitions looks {PENALTY_LOOKS_BACK} tokens back"
            )));
        }
        let grammar = field!(given, S.grammar, 2, std::ptr::null());
        Ok(Sampling {
            // all of them, for both
            top_k: field!(given, S.top_k, 1, usual.top_k).max(0),
            min_p: field!(given, S.min_p, 1, usual.min_p),
            // 1 is none
            repeat_penalty: if repeat_penalty == 1.0 {
                0.0
            } else {
                repeat_penalty
            },
            grammar: text(grammar, "grammar")?,
            keeps_session: field!(given, S.persistent_kv, 2, 0) != 0,
        })
    }
}

/// What an instance was created with that evaluations ask for.
pub struct Settings {
    pub max_tokens: i32,
    pub seed: i32,
    pub sampling: Sampling,
    pub streams: bool,
    pub chat_template: Option<String>,
}

/// LoRAs cannot be used.
pub fn refuse_loras(count: usize) -> Result<(), Refusal> {
    match count {
        0 => Ok(()),
        _ => Err(Refusal::not_implemented(
            "LoRAs cannot be used: leave numLoras 0",
        )),
    }
}

/// What a host said, in the order in which the model gets it.
#[derive(Default)]
pub struct Said {
    pub system: Option<String>,
    pub user: Option<String>,
    pub assistant: Option<String>,
    pub image: Option<Image>,
    request: Request,
}

/// Of the memory of a text what is ahead of its zero byte, if it has one.
unsafe fn read_text(data: *const Base, key: &str) -> Result<String, Refusal> {
    let (buffer, bytes) = memory_of(data, key)?;
    if buffer.is_null() {
        return Ok(String::new());
    }
    let length = libc::strnlen(buffer.cast(), bytes);
    let bytes = std::slice::from_raw_parts(buffer, length);
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Refusal::invalid(format!("slot '{key}' is not UTF-8")))?;
    Ok(text.to_owned())
}

impl Said {
    unsafe fn read(context: View<Context>) -> Result<Self, Refusal> {
        let inputs = field!(Some(context), Context.inputs, 1, std::ptr::null());
        let mut said = Said::default();
        for slot in slots(inputs)? {
            let key = field!(Some(slot), Slot.key, 1, std::ptr::null());
            let data = field!(Some(slot), Slot.data, 1, std::ptr::null());
            if key.is_null() || data.is_null() {
                continue;
            }
            let key = CStr::from_ptr(key).to_string_lossy();
            let place = match &*key {
                "system" => &mut said.system,
                "text" => &mut said.user,
                "assistant" => &mut said.assistant,
                "image" => {
                    said.image = Some(Image::read(data)?);
                    continue;
                }
                "json" => {
                    said.request = Request::read(&read_text(data, &key)?)?;
                    continue;
                }
                _ => {
                    tell(
                        Kind::Warning,
                        &format!("slot '{key}' is not known, and not used"),
                    );
                    continue;
                }
            };
            *place = Some(read_text(data, &key)?);
        }
        if let Some(text) = said
            .image
            .as_ref()
            .map(|_| said.user.as_deref().unwrap_or(""))
        {
            said.user = Some(with_mark(text));
        }
        match said.system.is_none() && said.user.is_none() && said.assistant.is_none() {
            true => Err(Refusal::invalid(
                "there is no slot 'system', 'text' or 'assistant'",
            )),
            false => Ok(said),
        }
    }
}

/// An evaluation.
pub struct Wish {
    pub said: Said,
    /// The texts are the whole prompt, with the template's marks in it.
    pub is_templated: bool,
    /// What was said before is forgotten.
    pub begins_anew: bool,
    /// For getResults.
    pub most_seconds: f32,
    max_tokens: u32,
    temperature: f32,
    top_p: f32,
    seed: u32,
    tokens_per_second: f32,
    sampling: Sampling,
    json_schema: Option<String>,
    stop: Vec<String>,
}

/// A seed where none is stated.
fn any_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.finish() as u32
}

impl Wish {
    /// # Safety
    /// A context of a host's, with what it points to.
    pub unsafe fn read(context: *const Context, settings: &Settings) -> Result<Self, Refusal> {
        type R = GptRuntimeParameters;
        let view = View::<Context>::of(context)
            .ok_or_else(|| Refusal::invalid("this is not an InferenceExecutionContext"))?;
        let chain = field!(Some(view), Context.runtime_parameters, 1, std::ptr::null());
        check(chain, "runtimeParameters")?;
        let given = View::<R>::find(chain);
        refuse_loras(field!(given, R.lora_count, 4, 0))?;
        let none = std::ptr::null();
        if field!(given, R.use_jinja, 5, 1) == 0 {
            return Err(Refusal::not_implemented(
                "useJinja is false: chat templates are Jinja; use promptPretemplatized for texts that are prepared already",
            ));
        }
        let template = text(field!(given, R.chat_template, 5, none), "chatTemplate")?;
        if template.is_some() && template != settings.chat_template {
            return Err(Refusal::not_implemented(
                "chatTemplate is another than at creation: chain GPTRuntimeParameters with it to createInstance",
            ));
        }
        let mut sampling = match View::<GptSamplerParameters>::find(chain) {
            Some(_) => Sampling::read(chain)?,
            None => settings.sampling.clone(),
        };
        let mut said = Said::read(view)?;
        let prefix = text(field!(given, R.prefix, 1, none), "prefix")?;
        let suffix = text(field!(given, R.suffix, 1, none), "suffix")?;
        if let Some(user) = &mut said.user {
            let (ahead, behind) = (prefix.unwrap_or_default(), suffix.unwrap_or_default());
            *user = format!("{ahead}{user}{behind}");
        }
        let max_tokens = match field!(given, R.max_tokens, 1, -1) {
            1.. => field!(given, R.max_tokens, 1, -1),
            _ => settings.max_tokens,
        };
        let seed = match (field!(given, R.seed, 1, u32::MAX), settings.seed) {
            (u32::MAX, 0..) => settings.seed as u32,
            (u32::MAX, _) => any_seed(),
            (seed, _) => seed,
        };
        // what the slot says counts for more than the struct
        let request = std::mem::take(&mut said.request);
        sampling.top_k = request.top_k.map_or(sampling.top_k, |top_k| top_k.max(0));
        sampling.min_p = request.min_p.unwrap_or(sampling.min_p);
        sampling.repeat_penalty = match request.repeat_penalty {
            Some(1.0) => 0.0,
            Some(penalty) => penalty,
            None => sampling.repeat_penalty,
        };
        sampling.grammar = request.grammar.or(sampling.grammar);
        let max_tokens = request
            .max_tokens
            .filter(|&most| most > 0)
            .unwrap_or(max_tokens);
        let seed = match request.seed {
            Some(u32::MAX) => any_seed(),
            given => given.unwrap_or(seed),
        };
        let temperature = request
            .temperature
            .unwrap_or(field!(given, R.temperature, 1, 0.2));
        let reverse = text(field!(given, R.reverse_prompt, 1, none), "reversePrompt")?;
        let is_interactive = field!(given, R.interactive, 1, 1) != 0;
        Ok(Wish {
            begins_anew: !is_interactive || said.system.is_some() && !sampling.keeps_session,
            is_templated: field!(given, R.is_templated, 3, 0) != 0,
            most_seconds: field!(given, R.most_seconds, 6, 60.0),
            max_tokens: u32::try_from(max_tokens).unwrap_or(0),
            temperature: temperature.max(0.0),
            top_p: request.top_p.unwrap_or(field!(given, R.top_p, 1, 0.7)),
            seed,
            tokens_per_second: field!(given, R.tokens_per_second, 2, -1).max(0) as f32,
            json_schema: request.json_schema,
            stop: reverse.into_iter().chain(request.stop).collect(),
            sampling,
            said,
        })
    }

    /// Whether there is something to answer: a system prompt alone is kept for what comes.
    pub fn generates(&self) -> bool {
        self.said.user.is_some() || self.said.assistant.is_some()
    }

    /// Texts that the library reads.
    pub fn texts(&self) -> Texts {
        let stop: Vec<CString> = self.stop.iter().map(|stop| c_text(stop)).collect();
        Texts {
            grammar: self.sampling.grammar.as_deref().map(c_text),
            json_schema: self.json_schema.as_deref().map(c_text),
            stops: stop.iter().map(|stop| stop.as_ptr()).collect(),
            _stop: stop,
        }
    }

    /// For the library; `texts` has to live as long.
    pub fn config(&self, texts: &Texts) -> GenerateConfig {
        GenerateConfig {
            size: size_of::<GenerateConfig>() as u32,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.sampling.top_k,
            top_p: self.top_p,
            min_p: self.sampling.min_p,
            repeat_penalty: self.sampling.repeat_penalty,
            seed: self.seed,
            grammar: texts
                .grammar
                .as_ref()
                .map_or(std::ptr::null(), |g| g.as_ptr()),
            json_schema: texts
                .json_schema
                .as_ref()
                .map_or(std::ptr::null(), |schema| schema.as_ptr()),
            stop: texts.stops.as_ptr(),
            stop_count: texts.stops.len(),
            tokens_per_second: self.tokens_per_second,
            reserved: 0,
        }
    }
}

/// Texts of a [`GenerateConfig`].
pub struct Texts {
    grammar: Option<CString>,
    json_schema: Option<CString>,
    stops: Vec<*const c_char>,
    _stop: Vec<CString>,
}
