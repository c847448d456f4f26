//! Contexts of a session: the first, and those that it wakes up with.

use super::activity::Activity;
use crate::boundary::optional;
use crate::failure::{Code, Failure};
use crate::locks::locked;
use crate::media::Encoder;
use crate::model::Model;
use crate::process::{with_errors, Errors};
use crate::types::SessionConfig;
use pipeshard_llama::{Context, ContextOptions};
use pipeshard_model::inventory::DType;
use pipeshard_sys as ffi;
use runtime::hook::stopping::{is_wanted, MemoryWanted};
use runtime::lanes::purpose::{during, Purpose};
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Tokens of a batch, as llama.cpp's tools have it. The ubatch is chosen by the plan.
pub const BATCH: u32 = 2048;

/// Threads that compute on the CPU.
struct Threads(NonNull<ffi::ggml_threadpool>);

// SAFETY: used by the context that it is attached to, and freed after it.
unsafe impl Send for Threads {}
// SAFETY: as above; nothing else is done with it.
unsafe impl Sync for Threads {}

impl Threads {
    fn start(count: i32) -> Option<Self> {
        // SAFETY: no preconditions; the parameters are copied.
        let pool = unsafe {
            let mut params = ffi::ggml_threadpool_params_default(count);
            // between graphs they sleep: the cores are the host's
            params.poll = 0;
            ffi::ggml_threadpool_new(&mut params)
        };
        NonNull::new(pool).map(Threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::ggml_threadpool_free(self.0.as_ptr()) }
    }
}

/// Types of a KV cache, as llama.cpp's tools call them.
const KV_TYPES: [&str; 9] = [
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
];

/// The type of that name; f16 for null.
///
/// # Safety
/// `name` is null or ends with a zero byte.
///
/// # Errors
/// A KV cache cannot have it.
pub unsafe fn kv_type(name: *const c_char, member: &str) -> Result<&'static DType, Failure> {
    let name = optional(name, member)?.unwrap_or("f16");
    let known = KV_TYPES.contains(&name).then(|| DType::from_name(name));
    known.flatten().ok_or_else(|| {
        let names = KV_TYPES.join(", ");
        Failure::invalid(format!("{member} is '{name}'; known are {names}"))
    })
}

/// A context, and the model's encoder if that is not loaded yet.
fn make_context(
    model: &Model,
    options: &ContextOptions,
    ubatch_is_free: bool,
) -> Result<Context<'static>, Failure> {
    let device = &model.device;
    let refused = |errors: Errors| device.refused(Code::NoMemory, errors);
    if let Some(projector) = &model.projector {
        if locked(&projector.encoder).is_none() {
            Encoder::announce(&projector.path, projector.image_max_tokens);
        }
    }
    let (made, errors) = device.make_context(ubatch_is_free, || {
        with_errors(|| during(Purpose::Kv, || Context::new(&model.llama, options)))
    });
    let context = made.map_err(|_| refused(errors.or("the context cannot be made")))?;
    if let Some(projector) = &model.projector {
        let mut encoder = locked(&projector.encoder);
        if encoder.is_none() {
            let opened = Encoder::open(
                &projector.path,
                &model.llama,
                device.threads,
                projector.image_max_tokens,
            );
            *encoder =
                Some(opened.map_err(|errors| {
                    refused(errors.or("the encoder of images cannot be loaded"))
                })?);
        }
    }
    // SAFETY: whoever has it keeps the model, and drops the context first.
    Ok(unsafe { std::mem::transmute::<Context<'_>, Context<'static>>(context) })
}

/// Asked between operations of the CPU, on the thread that submits the pass.
unsafe extern "C" fn wants_to_stop(memory_is_wanted: *mut c_void) -> bool {
    is_wanted(&*memory_is_wanted.cast::<MemoryWanted>())
}

/// What a session's contexts are made with.
pub struct Settings {
    threads: Option<Threads>,
    options: ContextOptions,
    /// The first context: its ubatch is the plan's, those after it have the same.
    ubatch_is_free: bool,
}

impl Settings {
    /// # Safety
    /// Texts of `config` are null or end with a zero byte.
    ///
    /// # Errors
    /// A member makes no sense.
    pub unsafe fn read(config: &SessionConfig, threads: i32) -> Result<Self, Failure> {
        if config.flags != 0 {
            return Err(Failure::new(
                Code::Version,
                "flags are set that this library does not know",
            ));
        }
        let mut options = ContextOptions::new(config.context, BATCH, BATCH, threads);
        options.kv_types = (
            kv_type(config.type_k, "type_k")?.id,
            kv_type(config.type_v, "type_v")?.id,
        );
        options.sequences = 1;
        options.outputs = 1;
        // llama.cpp's own default where the plan decides
        options.ubatch = match config.ubatch {
            0 => ffi::llama_context_default_params().n_ubatch,
            ubatch => ubatch,
        };
        Ok(Settings {
            threads: (threads > 1).then(|| Threads::start(threads)).flatten(),
            options,
            ubatch_is_free: config.ubatch == 0,
        })
    }

    /// A context that computes with these threads, and ends what the CPU does early as well. The ones after it are like it.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn make(&mut self, activity: &Activity) -> Result<Context<'static>, Failure> {
        let model = &activity.model;
        let budget = model.device.gate().plain().accounts.budget();
        let context = self.make_first(model)?;
        activity.made_within.store(budget, Ordering::Relaxed);
        Ok(context)
    }

    /// The same, of a session that is opened.
    ///
    /// # Errors
    /// As [`Settings::make`].
    pub fn make_first(&mut self, model: &Model) -> Result<Context<'static>, Failure> {
        let context = make_context(model, &self.options, self.ubatch_is_free)?;
        let memory: *const MemoryWanted = model.device.memory_is_wanted();
        // SAFETY: the threads are the session's, and the flag the device's, which it keeps: it drops the context first.
        unsafe {
            let raw = context.raw();
            self.ubatch_is_free = false;
            (self.options.ctx, self.options.ubatch) =
                (ffi::llama_n_ctx(raw), ffi::llama_n_ubatch(raw));
            if let Some(threads) = &self.threads {
                let pool = threads.0.as_ptr();
                ffi::llama_attach_threadpool(raw, pool, pool);
            }
            ffi::llama_set_abort_callback(raw, Some(wants_to_stop), memory.cast_mut().cast());
        }
        Ok(context)
    }
}
