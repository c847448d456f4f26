//! Sessions: conversations with a context of their own.

mod conversation;
mod evaluate;
mod events;
mod generate;
mod saved;

use crate::boundary::{call, optional, read, required, to_c, write};
use crate::failure::{CError, Code, Failure};
use crate::handles::Table;
use crate::media::{Bitmap, Encoder};
use crate::model::{said, CModel, Model, MODELS};
use crate::process::with_errors;
use crate::types::{Event, GenerateConfig, Media, PieceFn, SessionConfig, State, WakeupFn};
use conversation::Conversation;
use evaluate::{Place, Work};
use events::Events;
use generate::Wish;
use pipeshard_llama::{Context, ContextOptions};
use pipeshard_sys as ffi;
use runtime::hook::stopping::is_wanted;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// C's name for a handle.
pub enum CSession {}

/// All that are open.
static SESSIONS: Table<Session> = Table::new();

/// Tokens of a batch, as llama.cpp's tools have it. The ubatch is chosen by the plan.
const BATCH: u32 = 2048;

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

/// Who does something with a session.
#[derive(Default)]
struct Doing {
    /// The thread that does.
    thread: Option<libc::pthread_t>,
    /// A thread of our own: it is joined by who closes.
    own: Option<JoinHandle<()>>,
    closed: bool,
}

/// A session that is open. Members are dropped in their order.
pub struct Session {
    work: Mutex<Work>,
    threads: Option<Threads>,
    /// What its context is made with.
    options: ContextOptions,
    pub model: Arc<Model>,
    /// Ends what is being done.
    pub stop: AtomicBool,
    state: Mutex<State>,
    doing: Mutex<Doing>,
    /// Nothing is done any more, or the session was cancelled.
    changed: Condvar,
    events: Events,
}

/// The right to do something with a session; others get `PIPESHARD_E_BUSY`.
pub struct Busy<'s>(&'s Session);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.noted(|state| state.busy = 0);
        self.0.doing().thread = None;
        self.0.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// ggml's type of that name, as llama.cpp's tools call it.
fn kv_type(name: Option<&str>, member: &str) -> Result<ffi::ggml_type, Failure> {
    let known = [
        ("f32", ffi::GGML_TYPE_F32),
        ("f16", ffi::GGML_TYPE_F16),
        ("bf16", ffi::GGML_TYPE_BF16),
        ("q8_0", ffi::GGML_TYPE_Q8_0),
        ("q4_0", ffi::GGML_TYPE_Q4_0),
        ("q4_1", ffi::GGML_TYPE_Q4_1),
        ("iq4_nl", ffi::GGML_TYPE_IQ4_NL),
        ("q5_0", ffi::GGML_TYPE_Q5_0),
        ("q5_1", ffi::GGML_TYPE_Q5_1),
    ];
    let Some(name) = name else {
        return Ok(ffi::GGML_TYPE_F16);
    };
    let found = known.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let names = known.map(|(name, _)| name).join(", ");
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
    let refused = |text: &str| device.refused(Code::NoMemory, text.to_owned());
    if let Some(projector) = &model.projector {
        if locked(&projector.encoder).is_none() {
            Encoder::announce(&projector.path, projector.image_max_tokens);
        }
    }
    let (made, errors) = device.make_context(ubatch_is_free, || {
        with_errors(|| Context::new(&model.llama, options))
    });
    let context = made.map_err(|_| refused(&said(&errors, "the context cannot be made")))?;
    if let Some(projector) = &model.projector {
        let mut encoder = locked(&projector.encoder);
        if encoder.is_none() {
            let opened = Encoder::open(
                &projector.path,
                &model.llama,
                device.threads,
                projector.image_max_tokens,
            );
            *encoder = Some(opened.map_err(|errors| {
                refused(&said(&errors, "the encoder of images cannot be loaded"))
            })?);
        }
    }
    // SAFETY: whoever has it keeps the model, and drops the context first.
    Ok(unsafe { std::mem::transmute::<Context<'_>, Context<'static>>(context) })
}

/// Asked between operations of the CPU, on the thread that submits the pass.
unsafe extern "C" fn wants_to_stop(memory_is_wanted: *mut c_void) -> bool {
    is_wanted(&*memory_is_wanted.cast::<AtomicBool>())
}

impl Session {
    unsafe fn open(model: Arc<Model>, config: &SessionConfig) -> Result<Arc<Self>, Failure> {
        if config.flags != 0 {
            return Err(Failure::new(
                Code::Version,
                "flags are set that this library does not know",
            ));
        }
        let types = (
            kv_type(optional(config.type_k, "type_k")?, "type_k")?,
            kv_type(optional(config.type_v, "type_v")?, "type_v")?,
        );
        let device = &model.device;
        let mut options = ContextOptions::new(config.context, BATCH, BATCH, device.threads);
        options.sequences = 1;
        // llama.cpp's own default where the plan decides
        options.ubatch = match config.ubatch {
            0 => ffi::llama_context_default_params().n_ubatch,
            ubatch => ubatch,
        };
        options.outputs = 1;
        options.kv_types = types;
        let threads = (device.threads > 1)
            .then(|| Threads::start(device.threads))
            .flatten();
        let mut context = make_context(&model, &options, config.ubatch == 0)?;
        let raw = context.raw();
        // from here on it is what it is
        (options.ctx, options.ubatch) = (ffi::llama_n_ctx(raw), ffi::llama_n_ubatch(raw));
        let (room, batch) = (ffi::llama_n_ctx_seq(raw), ffi::llama_n_batch(raw));
        let session = Arc::new(Session {
            state: Mutex::new(State {
                size: 0,
                context: room,
                used: 0,
                ubatch: options.ubatch,
                messages: 0,
                busy: 0,
                prompt_tokens: 0,
                reused_tokens: 0,
                generated_tokens: 0,
                evaluated_again: 0,
                prompt_ms: 0.0,
                generate_ms: 0.0,
            }),
            work: Mutex::new(Work {
                place: Place::Asleep(Vec::new()),
                held: Vec::new(),
                conversation: Conversation::default(),
                room,
                batch,
            }),
            options,
            threads,
            model,
            stop: AtomicBool::new(false),
            doing: Mutex::new(Doing::default()),
            changed: Condvar::new(),
            events: Events::default(),
        });
        session.use_context(&mut context);
        locked(&session.work).place = Place::Awake(context);
        locked(&session.model.device.sessions).push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Lets a context compute with the session's threads, and end what the CPU does early as well.
    fn use_context(&self, context: &mut Context<'static>) {
        let memory: *const AtomicBool = self.model.device.memory_is_wanted();
        // SAFETY: the threads are the session's, and the flag the device's, which it keeps: it drops the context first.
        unsafe {
            if let Some(threads) = &self.threads {
                let pool = threads.0.as_ptr();
                ffi::llama_attach_threadpool(context.raw(), pool, pool);
            }
            let memory = memory.cast_mut().cast();
            ffi::llama_set_abort_callback(context.raw(), Some(wants_to_stop), memory);
        }
    }

    /// Keeps the KV cache in host memory, and frees the context and the encoder.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn sleep(&self, _: &Busy<'_>) -> Result<(), Failure> {
        let mut work = locked(&self.work);
        if let Place::Awake(_) = work.place {
            let cache = work.cache();
            if cache.is_empty() && !work.held.is_empty() {
                return Err(Failure::new(
                    Code::NoMemory,
                    "the host has no memory for the KV cache of a session",
                ));
            }
            work.place = Place::Asleep(cache);
        }
        if let Some(projector) = &self.model.projector {
            *locked(&projector.encoder) = None;
        }
        Ok(())
    }

    /// Makes the context again, if the session sleeps.
    ///
    /// # Errors
    /// There is no room for it: it goes on sleeping.
    pub fn awake(&self, work: &mut Work) -> Result<(), Failure> {
        let Place::Asleep(cache) = &work.place else {
            return Ok(());
        };
        let mut context = make_context(&self.model, &self.options, false)?;
        self.use_context(&mut context);
        if !cache.is_empty() {
            let taken = context.set_sequence_state(0, cache);
            taken
                .map_err(|_| Failure::new(Code::Internal, "llama.cpp refuses its own KV cache"))?;
        }
        work.place = Place::Awake(context);
        Ok(())
    }

    /// Wakes the session, unless somebody uses it, who does so.
    pub fn wake(&self) -> Result<(), Failure> {
        match self.begin() {
            Ok(busy) => self.alone(&busy, |work| self.awake(work)),
            Err(_) => Ok(()),
        }
    }

    /// Reports whether it sleeps; one that is used does not.
    pub fn is_asleep(&self) -> bool {
        let work = self.work.try_lock();
        work.is_ok_and(|work| matches!(work.place, Place::Asleep(_)))
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        locked(&self.doing)
    }

    /// Changes what pipeshard_session_get_state says.
    pub fn noted(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
    }

    /// Begins to do something.
    pub fn begin(&self) -> Result<Busy<'_>, Failure> {
        let mut doing = self.doing();
        if doing.closed {
            return Err(Failure::invalid("session is not open: it was closed"));
        }
        if doing.thread.is_some() {
            return Err(Failure::new(
                Code::Busy,
                "the session does something already: wait for it, or cancel it",
            ));
        }
        // SAFETY: no preconditions.
        doing.thread = Some(unsafe { libc::pthread_self() });
        drop(doing);
        self.stop.store(false, Ordering::Relaxed);
        Ok(Busy(self))
    }

    /// Does `work`, alone, and notes what the session holds then.
    fn alone<T>(
        &self,
        _busy: &Busy<'_>,
        work: impl FnOnce(&mut Work) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut held = locked(&self.work);
        let done = work(&mut held);
        let (used, messages) = (
            evaluate::taken(&held.held),
            held.conversation.messages.len() as u32,
        );
        self.noted(|state| (state.used, state.messages) = (used, messages));
        done
    }

    fn generate(
        &self,
        busy: &Busy<'_>,
        wish: &Wish,
        piece: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), Failure> {
        self.noted(|state| state.busy = 1);
        self.alone(busy, |work| self.answer(work, wish, piece))
    }

    /// Waits until then. False: the session was cancelled meanwhile.
    pub fn sleep_until(&self, due: Instant) -> bool {
        let mut doing = self.doing();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let woken = self.changed.wait_timeout(doing, left);
            doing = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn cancel(&self) {
        // under the lock, so that who is about to wait sees it
        let doing = self.doing();
        if doing.thread.is_some() {
            self.stop.store(true, Ordering::Relaxed);
        }
        drop(doing);
        self.changed.notify_all();
    }

    /// Ends what is being done, and waits for it, but where it is done by this thread.
    fn close(&self) {
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        self.doing().closed = true;
        self.cancel();
        let mut doing = self.doing();
        while doing.thread.is_some_and(|thread| thread != this) {
            doing = self
                .changed
                .wait(doing)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let by_this = doing.thread == Some(this);
        let own = doing.own.take();
        drop(doing);
        if let Some(own) = own.filter(|_| !by_this) {
            let _ = own.join();
        }
    }

    fn submit(self: &Arc<Self>, wish: Wish) -> Result<(), Failure> {
        // the right to do it is handed to the thread
        std::mem::forget(self.begin()?);
        let ended = self.doing().own.take();
        if let Some(ended) = ended {
            let _ = ended.join();
        }
        self.events.begin();
        let session = Arc::clone(self);
        let work = move || {
            // SAFETY: no preconditions.
            session.doing().thread = Some(unsafe { libc::pthread_self() });
            let busy = Busy(&session);
            let generate = || {
                session.generate(&busy, &wish, &mut |piece| {
                    session.events.text(piece);
                    true
                })
            };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(generate));
            drop(busy);
            session.events.end(done.unwrap_or_else(|_| {
                Err(Failure::new(
                    Code::Internal,
                    "pipeshard has a bug: it panicked",
                ))
            }));
        };
        let started = std::thread::Builder::new()
            .name("pipeshard-chat".to_owned())
            .spawn(work);
        match started {
            Ok(thread) => {
                self.doing().own = Some(thread);
                Ok(())
            }
            Err(why) => {
                drop(Busy(self));
                Err(Failure::new(
                    Code::NoMemory,
                    format!("no thread could be started: {why}"),
                ))
            }
        }
    }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_open(
    model: *mut CModel,
    config: *const SessionConfig,
    session: *mut *mut CSession,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let place = session
            .as_mut()
            .ok_or_else(|| Failure::invalid("session is NULL: there is no place for the handle"))?;
        *place = std::ptr::null_mut();
        let model = MODELS.get(model, "model")?;
        let opened = Session::open(model, &read(config, "pipeshard_session_config")?)?;
        *place = SESSIONS.open(opened);
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_close(session: *mut CSession) {
    call(std::ptr::null_mut(), || {
        if let Some(session) = SESSIONS.close(session) {
            session.close();
        }
        Ok(())
    });
}

/// Does something short with a session that is not busy.
unsafe fn with_session<T>(
    session: *const CSession,
    work: impl FnOnce(&Session, &mut Work) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let session = SESSIONS.get(session, "session")?;
    let busy = session.begin()?;
    session.alone(&busy, |held| work(&session, held))
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_add(
    session: *mut CSession,
    role: *const c_char,
    message: *const c_char,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let (role, message) = (optional(role, "role")?, required(message, "text")?);
        with_session(session, |session, work| {
            work.conversation.add(&session.model, role, message)
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_add_media(
    session: *mut CSession,
    media: *const Media,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if media.is_null() {
            return Err(Failure::invalid("media is NULL"));
        }
        let media = read(media, "pipeshard_media")?;
        with_session(session, |session, work| {
            // files are read by the encoder, which a sleeping session has not
            session.awake(work)?;
            let projector = session.model.projector.as_ref();
            let encoder = projector.map(|projector| locked(&projector.encoder));
            let Some(Some(encoder)) = encoder.as_deref() else {
                return Err(Failure::new(
                    Code::Unsupported,
                    "the model was opened without an encoder of images and sound: state mmproj in pipeshard_model_config",
                ));
            };
            work.conversation.coming.push(Bitmap::of(&media, encoder)?);
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_clear(
    session: *mut CSession,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        with_session(session, |_, work| {
            work.forget();
            work.conversation = Conversation::default();
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_truncate(
    session: *mut CSession,
    count: u32,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        with_session(session, |_, work| {
            // what the KV cache holds of them is taken out when the next answer begins
            work.conversation.messages.truncate(count as usize);
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_save(
    session: *mut CSession,
    data: *mut *mut c_char,
    size: *mut usize,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let (Some(data), Some(size)) = (data.as_mut(), size.as_mut()) else {
            return Err(Failure::invalid("data or size is NULL"));
        };
        (*data, *size) = (std::ptr::null_mut(), 0);
        let bytes = with_session(session, |session, work| Ok(session.saved(work)))?;
        let made = to_c(&bytes);
        if made.is_null() {
            return Err(Failure::new(
                Code::NoMemory,
                "the host has no memory left for the conversation",
            ));
        }
        (*data, *size) = (made, bytes.len());
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_restore(
    session: *mut CSession,
    data: *const c_void,
    size: usize,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if data.is_null() {
            return Err(Failure::invalid("data is NULL"));
        }
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size);
        with_session(session, |session, work| session.restore(work, bytes))
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_get_state(
    session: *mut CSession,
    state: *mut State,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let found = *locked(&session.state);
        write(state, &found, "pipeshard_state")
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_generate(
    session: *mut CSession,
    config: *const GenerateConfig,
    piece: Option<PieceFn>,
    user: *mut c_void,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let wish = Wish::read(&read(config, "pipeshard_generate_config")?)?;
        let busy = session.begin()?;
        session.generate(&busy, &wish, &mut |text| {
            let Some(piece) = piece else {
                return true;
            };
            let bytes = crate::boundary::c_text(text);
            piece(user, bytes.as_ptr(), bytes.as_bytes().len()) == 0
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_submit(
    session: *mut CSession,
    config: *const GenerateConfig,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        session.submit(Wish::read(&read(config, "pipeshard_generate_config")?)?)
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_wait(
    session: *mut CSession,
    timeout_ms: u32,
    event: *mut Event,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let told = session
            .events
            .fetch(Duration::from_millis(timeout_ms.into()));
        let told = match told {
            Ok(told) => told,
            Err(why) => {
                write(event, &Event::NONE, "pipeshard_event")?;
                return Err(why);
            }
        };
        let found = Event {
            size: 0,
            kind: told.kind,
            code: told.code,
            reserved: 0,
            text: told.text,
            length: told.length,
        };
        write(event, &found, "pipeshard_event")
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_set_wakeup(
    session: *mut CSession,
    wakeup: Option<WakeupFn>,
    user: *mut c_void,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        SESSIONS.get(session, "session")?.events.wake(wakeup, user);
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_cancel(session: *mut CSession) -> c_int {
    call(std::ptr::null_mut(), || {
        SESSIONS.get(session, "session")?.cancel();
        Ok(())
    })
}
