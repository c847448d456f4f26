//! evaluate, evaluateAsync, cancelAsyncEvaluation. Each evaluation that has begun has one terminal state: done, cancel or invalid.

use crate::abi::{execution, result, CallbackFn, Context, SlotArray};
use crate::boundary::c_text;
use crate::chain::{field, View};
use crate::inputs::Wish;
use crate::instance::{Instance, Turn};
use crate::locks::locked;
use crate::outputs::{fill, nothing, of_host, set, Outputs};
use crate::poll::Poll;
use crate::refusal::{call, library, note, tell, Kind, Refusal};
use crate::session::exports::{
    pipeshard_generate, pipeshard_session_add, pipeshard_session_clear,
    pipeshard_session_get_state, pipeshard_session_truncate, CSession,
};
use crate::types::State;
use pipeshard_model::threads::named;
use std::ffi::{c_char, c_int, c_void};
use std::mem::{size_of, zeroed};
use std::os::unix::thread::JoinHandleExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// `PIPESHARD_E_CONTEXT_FULL`
const CONTEXT_FULL: c_int = -10;

/// How the host gets the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One callback with all of it.
    Whole,
    /// One callback with each piece, and one without text at the end.
    Pieces,
    /// It fetches it.
    Polled,
}

/// An evaluation that has begun.
struct Job {
    turn: Turn,
    context: *mut Context,
    callback: Option<CallbackFn>,
    user: *mut c_void,
    /// The host's own.
    outputs: *const SlotArray,
    way: Way,
    wish: Wish,
}

// SAFETY: the host leaves the context alone, and alive, until the evaluation has ended.
unsafe impl Send for Job {}

/// What the session holds and does.
pub fn state_of(session: *mut CSession) -> Result<State, Refusal> {
    // SAFETY: valid with all bits zero.
    let mut state: State = unsafe { zeroed() };
    state.size = size_of::<State>() as u32;
    // SAFETY: its size is set.
    library(|error| unsafe { pipeshard_session_get_state(session, &mut state, error) })?;
    Ok(state)
}

/// What of a session was said before an evaluation, to go back to.
fn go_back(session: *mut CSession, messages: u32) {
    // SAFETY: no preconditions.
    let done = library(|error| unsafe { pipeshard_session_truncate(session, messages, error) });
    if let Err(refusal) = done {
        note(&refusal);
    }
}

impl Job {
    /// # Safety
    /// A context of a host's, with what it points to.
    unsafe fn begin(context: *mut Context, is_async: bool) -> Result<Self, Refusal> {
        let instance = Instance::in_context(context)?;
        let view = View::<Context>::of(context);
        let callback = field!(view, Context.callback, 1, None);
        let streams = instance.settings.streams;
        let way = match (callback, is_async) {
            (None, false) => return Err(Refusal::invalid(
                "evaluate: the context has no callback, so there is no way to hand over the answer",
            )),
            (None, true) => Way::Polled,
            (Some(_), true) => Way::Pieces,
            (Some(_), false) if streams => Way::Pieces,
            (Some(_), false) => Way::Whole,
        };
        // before anything else is ended for it
        let wish = Wish::read(context, &instance.settings)?;
        let turn = instance.take_turn()?;
        let job = Job {
            turn,
            context,
            callback,
            user: field!(view, Context.callback_user, 1, std::ptr::null_mut()),
            outputs: of_host(context),
            way,
            wish,
        };
        job.prepare()?;
        Ok(job)
    }

    fn instance(&self) -> &Arc<Instance> {
        &self.turn.0
    }

    fn session(&self) -> *mut CSession {
        self.instance().session.0
    }

    fn add(&self, role: Option<&str>, text: &str) -> Result<(), Refusal> {
        let (role, text) = (role.map(c_text), c_text(text));
        let role = role.as_ref().map_or(std::ptr::null(), |role| role.as_ptr());
        // SAFETY: texts live through the call.
        library(|error| unsafe {
            pipeshard_session_add(self.session(), role, text.as_ptr(), error)
        })
    }

    /// Adds what was said to the conversation.
    fn prepare(&self) -> Result<(), Refusal> {
        let (session, wish) = (self.session(), &self.wish);
        if wish.begins_anew {
            // SAFETY: no preconditions.
            library(|error| unsafe { pipeshard_session_clear(session, error) })?;
        }
        let said = [
            ("system", &wish.said.system),
            ("user", &wish.said.user),
            ("assistant", &wish.said.assistant),
        ];
        let said = said
            .iter()
            .filter_map(|(role, text)| Some((*role, text.as_deref()?)));
        if wish.is_templated && wish.said.image.is_some() {
            return Err(Refusal::not_implemented(
                "slot 'image' with promptPretemplatized: an image belongs to a message; leave promptPretemplatized false",
            ));
        }
        if wish.is_templated {
            let text: String = said.map(|(_, text)| text).collect();
            return self.add(None, &text);
        }
        let before = state_of(session)?.messages;
        for (role, text) in said {
            if let Some(image) = wish.said.image.as_ref().filter(|_| role == "user") {
                image.add(session)?;
            }
            self.add(Some(role), text)
                .inspect_err(|_| go_back(session, before))?;
        }
        Ok(())
    }

    /// Tells the host that it is over, in a callback without text. The context is not touched afterwards: the host may have let go of
    /// it, for nothing else tells it that an asynchronous evaluation has ended.
    fn call_back_at_last(&self, state: u32) {
        let Some(callback) = self.callback else {
            return;
        };
        // SAFETY: the host's context and functions, while it waits for them.
        unsafe {
            match self.outputs.is_null() {
                true => set(self.context, nothing()),
                false => {
                    if let Err(why) = fill(self.outputs, "") {
                        tell(Kind::Warning, &why.text);
                    }
                }
            }
            callback(self.context, state, self.user);
        }
    }

    /// Tells the host, in a callback; what it returns.
    fn call_back(&self, text: &str, state: u32) -> u32 {
        let Some(callback) = self.callback else {
            return state;
        };
        // SAFETY: the host's context and functions, while it waits for them.
        unsafe {
            let fits = !self.outputs.is_null()
                && fill(self.outputs, text)
                    .inspect_err(|why| tell(Kind::Warning, &why.text))
                    .is_ok();
            // what does not fit is not lost: the host gets it in memory of ours
            let ours = (!fits).then(|| Outputs::of(text));
            if let Some(ours) = &ours {
                set(self.context, ours.array());
            }
            let answer = callback(self.context, state, self.user);
            if ours.is_some() {
                set(self.context, self.outputs);
            }
            answer
        }
    }

    fn generate(&self, all: &mut String) -> Result<(), Refusal> {
        if !self.wish.generates() {
            return Ok(());
        }
        let texts = self.wish.texts();
        let config = self.wish.config(&texts);
        let mut pieces = Pieces { job: self, all };
        let user: *mut Pieces<'_> = &mut pieces;
        // SAFETY: texts and `pieces` live through the call.
        library(|error| unsafe {
            pipeshard_generate(self.session(), &config, Some(piece), user.cast(), error)
        })
    }

    /// Evaluates, and tells the host of the end.
    fn run(&self) -> Result<(), Refusal> {
        let mut all = String::new();
        let before = state_of(self.session())?.messages;
        let done = catch_unwind(AssertUnwindSafe(|| self.generate(&mut all)));
        let done = done.unwrap_or_else(|_| {
            let text = "pipeshard has a bug: it panicked. Please report it, with what is in the log; destroy all instances";
            Err(Refusal::new(result::EXCEPTION, text))
        });
        let (state, done) = match done {
            Ok(()) => (execution::DONE, Ok(())),
            Err(why) if why.code == result::CANCELLED => (execution::CANCEL, Err(why)),
            Err(why) if why.of_library == CONTEXT_FULL && before < self.messages() => {
                tell(Kind::Warning, &why.text);
                (execution::DONE, Ok(()))
            }
            Err(why) => {
                all.clear();
                (execution::INVALID, Err(why))
            }
        };
        match self.way {
            Way::Whole => {
                self.call_back(&all, state);
            }
            Way::Pieces => self.call_back_at_last(state),
            Way::Polled => {
                if let Some(poll) = &mut self.instance().running().poll {
                    poll.end = Some(state);
                }
            }
        }
        done
    }

    fn messages(&self) -> u32 {
        state_of(self.session()).map_or(0, |state| state.messages)
    }
}

/// Where pieces of an answer go.
struct Pieces<'j> {
    job: &'j Job,
    all: &'j mut String,
}

impl Pieces<'_> {
    /// Whether to go on.
    fn take(&mut self, text: &str) -> bool {
        let (job, instance) = (self.job, self.job.instance());
        if instance.cancelled.load(Ordering::Relaxed) {
            return false;
        }
        match job.way {
            Way::Whole => {
                self.all.push_str(text);
                true
            }
            Way::Pieces => {
                text.is_empty() || job.call_back(text, execution::PENDING) != execution::CANCEL
            }
            Way::Polled => {
                if let Some(poll) = &mut instance.running().poll {
                    poll.text.push_str(text);
                }
                instance.changed.notify_all();
                true
            }
        }
    }
}

unsafe extern "C" fn piece(user: *mut c_void, text: *const c_char, length: usize) -> c_int {
    let work = || {
        let bytes = std::slice::from_raw_parts(text.cast::<u8>(), length);
        (*user.cast::<Pieces<'_>>()).take(&String::from_utf8_lossy(bytes))
    };
    let goes_on = catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
    c_int::from(!goes_on)
}

pub unsafe extern "C" fn evaluate(context: *mut Context) -> u32 {
    call(|| Job::begin(context, false)?.run())
}

/// Goes on with it on a thread of its own.
fn start(job: Job) -> Result<(), Refusal> {
    let instance = Arc::clone(job.instance());
    let poll = (job.way == Way::Polled).then(|| Poll::new(job.wish.most_seconds));
    // if no thread can be started it is here still, and not dropped under the lock
    let job = Arc::new(Mutex::new(Some(job)));
    let of_thread = Arc::clone(&job);
    let mut running = instance.running();
    let started = named("pipeshard-gpt").spawn(move || {
        let job = locked(&of_thread).take();
        let Some(job) = job else {
            return;
        };
        // who started it has noted it then
        drop(job.instance().running());
        match job.run() {
            Err(why) if why.code != result::CANCELLED => note(&why),
            _ => {}
        }
    });
    match started {
        Ok(thread) => {
            running.by = Some(thread.as_pthread_t());
            running.thread = Some(thread);
            running.poll = poll;
            Ok(())
        }
        Err(why) => {
            drop(running);
            Err(Refusal::new(
                result::INSUFFICIENT_RESOURCES,
                format!("no thread could be started: {why}"),
            ))
        }
    }
}

pub unsafe extern "C" fn evaluate_async(context: *mut Context) -> u32 {
    call(|| start(Job::begin(context, true)?))
}

pub unsafe extern "C" fn cancel(context: *mut Context) -> u32 {
    call(|| Instance::in_context(context)?.cancel())
}
