//! Contexts: batches in, logits and embeddings out, and the memory between them.

use super::{Batch, LlamaError, Lora, Model};
use pipeshard_sys as ffi;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, Ordering};

/// When attention is computed by one fused operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlashAttention {
    /// Where the device can.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How a context is made. The defaults are llama.cpp's, but for its sizes.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    /// Tokens, of all sequences together.
    pub ctx: u32,
    /// Tokens per batch.
    pub batch: u32,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// Sequences.
    pub sequences: u32,
    /// Rows of logits that one ubatch may ask for; 0: as many as a batch has tokens.
    pub outputs: u32,
    /// Threads of the CPU.
    pub threads: i32,
    /// Flash attention.
    pub flash_attention: FlashAttention,
    /// ggml's types of the K and V cache.
    pub kv_types: (ffi::ggml_type, ffi::ggml_type),
    /// Embeddings in place of logits.
    pub embeddings: bool,
    /// How embeddings are pooled.
    pub pooling: ffi::llama_pooling_type,
    /// KV cache and attention on the device.
    pub offload_kqv: bool,
    /// Products with weights in host memory may go to the device.
    pub op_offload: bool,
    /// Layers with a sliding window keep the KV cache of the whole context.
    pub swa_full: bool,
    /// All sequences share one stream of the KV cache.
    pub kv_unified: bool,
}

impl ContextOptions {
    /// Default options for a context of so many tokens.
    pub fn new(ctx: u32, batch: u32, ubatch: u32, threads: i32) -> Self {
        // SAFETY: no preconditions.
        let params = unsafe { ffi::llama_context_default_params() };
        ContextOptions {
            ctx,
            batch,
            ubatch,
            sequences: params.n_seq_max,
            outputs: params.n_outputs_max,
            threads,
            flash_attention: FlashAttention::Auto,
            kv_types: (params.type_k, params.type_v),
            embeddings: params.embeddings,
            pooling: params.pooling_type,
            offload_kqv: params.offload_kqv,
            op_offload: params.op_offload,
            swa_full: params.swa_full,
            kv_unified: params.kv_unified,
        }
    }

    fn raw(&self) -> ffi::llama_context_params {
        // SAFETY: no preconditions.
        let mut params = unsafe { ffi::llama_context_default_params() };
        params.n_ctx = self.ctx;
        params.n_batch = self.batch;
        params.n_ubatch = self.ubatch;
        params.n_seq_max = self.sequences;
        params.n_outputs_max = self.outputs;
        params.n_threads = self.threads;
        params.n_threads_batch = self.threads;
        params.no_perf = false;
        params.flash_attn_type = match self.flash_attention {
            FlashAttention::Auto => ffi::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => ffi::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => ffi::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        (params.type_k, params.type_v) = self.kv_types;
        params.embeddings = self.embeddings;
        params.pooling_type = self.pooling;
        params.offload_kqv = self.offload_kqv;
        params.op_offload = self.op_offload;
        params.swa_full = self.swa_full;
        params.kv_unified = self.kv_unified;
        params
    }
}

/// Ends an evaluation from within, after so many of its checks.
#[derive(Debug)]
pub struct Stop {
    checks_left: AtomicI64,
}

impl Stop {
    /// Never, until [`Stop::after`].
    pub fn never() -> Self {
        Stop {
            checks_left: AtomicI64::new(i64::MAX),
        }
    }

    /// At the check after `checks` more.
    pub fn after(&self, checks: i64) {
        self.checks_left.store(checks, Ordering::Relaxed);
    }
}

unsafe extern "C" fn asked_to_stop(stop: *mut c_void) -> bool {
    let stop = &*stop.cast::<Stop>();
    stop.checks_left.fetch_sub(1, Ordering::Relaxed) <= 0
}

/// A context on a model.
pub struct Context<'m> {
    raw: *mut ffi::llama_context,
    vocabulary: usize,
    embedding: usize,
    model: PhantomData<&'m Model>,
}

// SAFETY: a context may be used from any thread, by one at a time, which `&mut self` sees to.
unsafe impl Send for Context<'_> {}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::llama_free(self.raw) }
    }
}

impl<'m> Context<'m> {
    /// Makes a context.
    ///
    /// # Errors
    /// [`LlamaError::Context`] when llama.cpp or pipeshard refuses it.
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Self, LlamaError> {
        // SAFETY: the model is alive, and outlives the context, which borrows it.
        let raw = unsafe { ffi::llama_init_from_model(model.raw(), options.raw()) };
        match raw.is_null() {
            true => Err(LlamaError::Context),
            false => Ok(Context {
                raw,
                vocabulary: model.vocabulary().max(0) as usize,
                embedding: model.embedding(),
                model: PhantomData,
            }),
        }
    }

    /// Evaluates a batch.
    ///
    /// # Errors
    /// [`LlamaError::Decode`].
    pub fn decode(&mut self, batch: &mut Batch) -> Result<(), LlamaError> {
        let tokens = batch.len() as i32;
        // SAFETY: the batch is valid during the call.
        let code = batch.with_raw(|raw| unsafe { ffi::llama_decode(self.raw, raw) });
        match code {
            0 => Ok(()),
            code => Err(LlamaError::Decode { tokens, code }),
        }
    }

    /// Evaluates tokens after those that the first sequence holds; logits are wanted for the last one.
    ///
    /// # Errors
    /// [`LlamaError::Decode`].
    pub fn decode_next(&mut self, tokens: &mut [i32]) -> Result<(), LlamaError> {
        let count = tokens.len() as i32;
        // SAFETY: the tokens are valid during the call.
        let code = unsafe {
            ffi::llama_decode(
                self.raw,
                ffi::llama_batch_get_one(tokens.as_mut_ptr(), count),
            )
        };
        match code {
            0 => Ok(()),
            code => Err(LlamaError::Decode {
                tokens: count,
                code,
            }),
        }
    }

    fn floats(
        &self,
        pointer: *const f32,
        count: usize,
        what: &'static str,
        plural: &'static str,
    ) -> Result<&[f32], LlamaError> {
        if pointer.is_null() {
            return Err(LlamaError::Missing(plural));
        }
        // SAFETY: llama.cpp's results are that long, and stay until the next batch, for which the context must be free.
        let floats = unsafe { std::slice::from_raw_parts(pointer, count) };
        match floats.iter().find(|f| f.is_nan()) {
            Some(&value) => Err(LlamaError::NotANumber { what, value }),
            None => Ok(floats),
        }
    }

    /// The logits of the token at `index` of the latest batch; -1: of the last one that has any. Waits for them.
    ///
    /// # Errors
    /// [`LlamaError::Missing`]; [`LlamaError::NotANumber`].
    pub fn logits(&self, index: i32) -> Result<&[f32], LlamaError> {
        // SAFETY: the context is alive; llama.cpp checks the index.
        let pointer = unsafe { ffi::llama_get_logits_ith(self.raw, index) };
        self.floats(pointer, self.vocabulary, "logit", "logits")
    }

    /// The embedding of the token at `index`.
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn token_embedding(&self, index: i32) -> Result<&[f32], LlamaError> {
        // SAFETY: as above.
        let pointer = unsafe { ffi::llama_get_embeddings_ith(self.raw, index) };
        self.floats(pointer, self.embedding, "embedding", "embeddings")
    }

    /// The pooled embedding of a sequence, or, of the pooling type rank, the scores of its `count` classes.
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn sequence_embedding(
        &self,
        sequence: i32,
        count: Option<usize>,
    ) -> Result<&[f32], LlamaError> {
        // SAFETY: as above.
        let pointer = unsafe { ffi::llama_get_embeddings_seq(self.raw, sequence) };
        let count = count.unwrap_or(self.embedding);
        self.floats(pointer, count, "embedding", "embeddings")
    }

    /// Waits until nothing is being computed.
    pub fn synchronize(&mut self) {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_synchronize(self.raw) }
    }

    /// Graphs that were used again.
    pub fn graphs_reused(&self) -> i64 {
        // SAFETY: the context is alive.
        i64::from(unsafe { ffi::llama_perf_context(self.raw) }.n_reused)
    }

    /// Starts the performance counters afresh.
    pub fn reset_performance(&mut self) {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_perf_context_reset(self.raw) }
    }

    /// Changes the numbers of threads.
    pub fn set_threads(&mut self, threads: i32) {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_set_n_threads(self.raw, threads, threads) }
    }

    /// Reports whether tokens attend to later ones.
    pub fn set_causal(&mut self, causal: bool) {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_set_causal_attn(self.raw, causal) }
    }

    /// Embeddings in place of logits from the next batch on, or the other way round.
    pub fn set_embeddings(&mut self, embeddings: bool) {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_set_embeddings(self.raw, embeddings) }
    }

    /// Lets `stop` end evaluations. It has to outlive the context, so it is never freed.
    pub fn stop_on(&mut self, stop: &'static Stop) {
        let data = std::ptr::from_ref(stop).cast_mut().cast();
        // SAFETY: the callback only reads through the pointer, which lives for ever.
        unsafe { ffi::llama_set_abort_callback(self.raw, Some(asked_to_stop), data) }
    }

    /// Uses these adapters, each with its scale, and no others.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn set_loras(&mut self, adapters: &[(Lora<'m>, f32)]) -> Result<(), LlamaError> {
        let mut raw: Vec<_> = adapters.iter().map(|(lora, _)| lora.raw()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: both lists have that many elements; the adapters are alive, and borrowed as long as the context is.
        let code = unsafe {
            ffi::llama_set_adapters_lora(self.raw, raw.as_mut_ptr(), raw.len(), scales.as_mut_ptr())
        };
        refused_unless(code == 0, || "a LoRA adapter".to_string())
    }

    /// Adds `values`, one row of the model's width per layer from layer 1 on, to layers `first` to `last`; none clears.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn set_control_vector(
        &mut self,
        values: &[f32],
        first: i32,
        last: i32,
    ) -> Result<(), LlamaError> {
        let data = match values.is_empty() {
            true => std::ptr::null(),
            false => values.as_ptr(),
        };
        let width = self.embedding as i32;
        // SAFETY: the values are valid during the call, in which they are copied.
        let code = unsafe {
            ffi::llama_set_adapter_cvec(self.raw, data, values.len(), width, first, last)
        };
        refused_unless(code == 0, || "a control vector".to_string())
    }

    /// llama.cpp's own, for functions that have no wrapper here. It lives as long as this does.
    pub fn raw(&self) -> *mut ffi::llama_context {
        self.raw
    }

    fn memory(&self) -> ffi::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { ffi::llama_get_memory(self.raw) }
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        // SAFETY: the memory is the live context's; null, where a model has none, is allowed for.
        unsafe { ffi::llama_memory_clear(self.memory(), true) }
    }

    /// Removes positions `from..to` of a sequence (negative: no bound). False: such a part cannot be removed.
    pub fn remove(&mut self, sequence: i32, from: i32, to: i32) -> bool {
        // SAFETY: as above.
        unsafe { ffi::llama_memory_seq_rm(self.memory(), sequence, from, to) }
    }

    /// Copies positions of a sequence to another one.
    pub fn copy(&mut self, from: i32, to: i32, first: i32, end: i32) {
        // SAFETY: as above.
        unsafe { ffi::llama_memory_seq_cp(self.memory(), from, to, first, end) }
    }

    /// Removes all other sequences.
    pub fn keep(&mut self, sequence: i32) {
        // SAFETY: as above.
        unsafe { ffi::llama_memory_seq_keep(self.memory(), sequence) }
    }

    /// Reports whether positions can be changed.
    pub fn can_shift(&self) -> bool {
        // SAFETY: as above.
        unsafe { ffi::llama_memory_can_shift(self.memory()) }
    }

    /// Adds `delta` to positions `from..to` of a sequence.
    pub fn shift(&mut self, sequence: i32, from: i32, to: i32, delta: i32) {
        // SAFETY: as above; callers have asked can_shift.
        unsafe { ffi::llama_memory_seq_add(self.memory(), sequence, from, to, delta) }
    }

    /// Divides positions `from..to` of a sequence.
    pub fn divide(&mut self, sequence: i32, from: i32, to: i32, by: i32) {
        // SAFETY: as above; callers have asked can_shift.
        unsafe { ffi::llama_memory_seq_div(self.memory(), sequence, from, to, by) }
    }

    /// The largest position of a sequence; -1 when it is empty.
    pub fn last_position(&self, sequence: i32) -> i32 {
        // SAFETY: as above.
        unsafe { ffi::llama_memory_seq_pos_max(self.memory(), sequence) }
    }
}

pub(super) fn refused_unless(ok: bool, what: impl FnOnce() -> String) -> Result<(), LlamaError> {
    match ok {
        true => Ok(()),
        false => Err(LlamaError::Refused { what: what() }),
    }
}
