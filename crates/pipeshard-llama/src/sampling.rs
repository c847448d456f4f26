//! Chains of samplers.

use super::{Context, LlamaError, Model};
use pipeshard_sys as ffi;
use std::ffi::CString;

/// A chain of samplers.
pub struct Sampler(*mut ffi::llama_sampler);

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the chain frees its members.
        unsafe { ffi::llama_sampler_free(self.0) }
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler::new()
    }
}

impl Sampler {
    /// An empty chain.
    pub fn new() -> Self {
        // SAFETY: no preconditions.
        unsafe {
            Sampler(ffi::llama_sampler_chain_init(
                ffi::llama_sampler_chain_default_params(),
            ))
        }
    }

    fn with(self, member: *mut ffi::llama_sampler) -> Self {
        // SAFETY: the chain is alive and takes ownership of the member.
        unsafe { ffi::llama_sampler_chain_add(self.0, member) }
        self
    }

    /// Allows what a grammar in GBNF allows, from its rule `root`.
    ///
    /// # Errors
    /// [`LlamaError::Refused`] when it is none.
    pub fn grammar(self, model: &Model, rules: &str) -> Result<Self, LlamaError> {
        let text = CString::new(rules).map_err(|_| LlamaError::Text(rules.to_string()))?;
        // SAFETY: the model, whose vocabulary it is, is alive; the texts are valid during the call.
        let member = unsafe {
            ffi::llama_sampler_init_grammar(model.raw_vocabulary(), text.as_ptr(), c"root".as_ptr())
        };
        match member.is_null() {
            true => Err(LlamaError::Refused {
                what: format!("the grammar {rules}"),
            }),
            false => Ok(self.with(member)),
        }
    }

    /// Makes repetitions unlikely.
    pub fn penalties(self, model: &Model, last: i32, repeat: f32) -> Self {
        // SAFETY: numbers are all it takes.
        let member = unsafe {
            ffi::llama_sampler_init_penalties(model.vocabulary(), last, repeat, 0.0, 0.0)
        };
        self.with(member)
    }

    /// Keeps the `k` most likely tokens.
    pub fn top_k(self, k: i32) -> Self {
        // SAFETY: a number is all it takes.
        let member = unsafe { ffi::llama_sampler_init_top_k(k) };
        self.with(member)
    }

    /// Keeps the most likely tokens that together have probability `p`.
    pub fn top_p(self, p: f32) -> Self {
        // SAFETY: numbers are all it takes.
        let member = unsafe { ffi::llama_sampler_init_top_p(p, 1) };
        self.with(member)
    }

    /// Keeps the tokens that are at least `p` times as likely as the likeliest.
    pub fn min_p(self, p: f32) -> Self {
        // SAFETY: numbers are all it takes.
        let member = unsafe { ffi::llama_sampler_init_min_p(p, 1) };
        self.with(member)
    }

    /// Divides logits by a temperature.
    pub fn temperature(self, temperature: f32) -> Self {
        // SAFETY: a number is all it takes.
        let member = unsafe { ffi::llama_sampler_init_temp(temperature) };
        self.with(member)
    }

    /// Draws one of the tokens that are left.
    pub fn random(self, seed: u32) -> Self {
        // SAFETY: a number is all it takes.
        let member = unsafe { ffi::llama_sampler_init_dist(seed) };
        self.with(member)
    }

    /// Takes the most likely token.
    pub fn greedy(self) -> Self {
        // SAFETY: no preconditions.
        let member = unsafe { ffi::llama_sampler_init_greedy() };
        self.with(member)
    }

    /// Samples from the logits of the token at `index` of the latest batch, and takes note of what was chosen.
    pub fn sample(&mut self, context: &Context<'_>, index: i32) -> i32 {
        // SAFETY: both are alive.
        unsafe { ffi::llama_sampler_sample(self.0, context.raw(), index) }
    }

    pub(super) fn raw(&self) -> *mut ffi::llama_sampler {
        self.0
    }
}

impl Context<'_> {
    /// Lets the graph itself sample a sequence's tokens with `sampler`, where the device supports it. Ends with the context, so
    /// the chain is never freed.
    ///
    /// # Errors
    /// [`LlamaError::Refused`] when llama.cpp cannot sample so.
    pub fn sample_in_graph(
        &mut self,
        sequence: i32,
        sampler: &'static Sampler,
    ) -> Result<(), LlamaError> {
        // SAFETY: both are alive, the sampler for ever.
        let set = unsafe { ffi::llama_set_sampler(self.raw(), sequence, sampler.raw()) };
        match set {
            true => Ok(()),
            false => Err(LlamaError::Refused {
                what: "sampling in the graph".to_string(),
            }),
        }
    }

    /// The token that the graph sampled for the token at `index`.
    pub fn sampled_in_graph(&self, index: i32) -> i32 {
        // SAFETY: the context is alive; llama.cpp checks the index.
        unsafe { ffi::llama_get_sampled_token_ith(self.raw(), index) }
    }
}
