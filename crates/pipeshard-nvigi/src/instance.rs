//! Instances: what a host holds as `InferenceInstance`, and whose turn it is to do something with it.

use crate::abi::{result, Context, InferenceInstance};
use crate::chain::{field, View};
use crate::inputs::Settings;
use crate::locks::locked;
use crate::poll::Poll;
use crate::refusal::{call, Refusal};
use crate::session::exports::{pipeshard_cancel, pipeshard_session_close, CSession};
use crate::shared::Share;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a cancellation is repeated: one that comes just before a generation begins is not seen by it.
const AGAIN: Duration = Duration::from_millis(5);

/// What goes on.
#[derive(Default)]
pub struct Running {
    /// The thread that evaluates, until the host has been told of the end.
    pub by: Option<libc::pthread_t>,
    /// A thread of ours: joined by who comes next.
    pub thread: Option<JoinHandle<()>>,
    /// What the host fetches with getResults.
    pub poll: Option<Poll>,
    closed: bool,
}

/// An instance. Members are dropped in their order.
pub struct Instance {
    pub session: OpenSession,
    pub share: Share,
    pub settings: Settings,
    running: Mutex<Running>,
    pub changed: Condvar,
    /// The evaluation is to end.
    pub cancelled: AtomicBool,
    /// The state of the session, from asking for its size to fetching it.
    pub saved: Mutex<Option<Vec<u8>>>,
    face: *mut InferenceInstance,
}

// SAFETY: handles may be used on any thread; the struct of the host's is never written.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// A session of the library's.
pub struct OpenSession(pub *mut CSession);

impl Drop for OpenSession {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { pipeshard_session_close(self.0) };
    }
}

static INSTANCES: Mutex<Option<HashMap<usize, Arc<Instance>>>> = Mutex::new(None);

fn instances() -> MutexGuard<'static, Option<HashMap<usize, Arc<Instance>>>> {
    locked(&INSTANCES)
}

/// Instances are made one after the other.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static MAKING: Mutex<()> = Mutex::new(());
    locked(&MAKING)
}

/// The right to do something with an instance.
pub struct Turn(pub Arc<Instance>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.running().by = None;
        self.0.changed.notify_all();
    }
}

fn this_thread() -> libc::pthread_t {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: made by `open`, freed once; the host knows that it is destroyed.
        drop(unsafe { Box::from_raw(self.face) });
    }
}

impl Instance {
    /// A new one, which owns what the host holds.
    pub fn open(
        face: Box<InferenceInstance>,
        session: *mut CSession,
        share: Share,
        settings: Settings,
    ) -> *mut InferenceInstance {
        let face = Box::into_raw(face);
        let instance = Arc::new(Instance {
            session: OpenSession(session),
            share,
            settings,
            running: Mutex::default(),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            saved: Mutex::new(None),
            face,
        });
        instances()
            .get_or_insert_with(HashMap::new)
            .insert(face.addr(), instance);
        face
    }

    /// The instance that a host names.
    pub fn of(face: *const InferenceInstance) -> Result<Arc<Self>, Refusal> {
        let known = instances();
        let found = known.as_ref().and_then(|all| all.get(&face.addr()));
        found.cloned().ok_or_else(|| {
            Refusal::invalid("the instance is null, was destroyed, or is of another plug-in")
        })
    }

    /// The instance of an evaluation.
    ///
    /// # Safety
    /// Null, or a context of a host's.
    pub unsafe fn in_context(context: *const Context) -> Result<Arc<Self>, Refusal> {
        let view = View::<Context>::of(context)
            .ok_or_else(|| Refusal::invalid("this is not an InferenceExecutionContext"))?;
        let null = std::ptr::null();
        Self::of(field!(Some(view), Context.instance, 1, null))
    }

    pub fn running(&self) -> MutexGuard<'_, Running> {
        locked(&self.running)
    }

    /// Ends what is done with it, and waits until it has ended. Not where this thread does it: it is told to end, and goes on.
    fn end<'i>(&'i self, mut running: MutexGuard<'i, Running>) -> MutexGuard<'i, Running> {
        while running.by.is_some_and(|by| by != this_thread()) {
            self.cancelled.store(true, Ordering::Relaxed);
            // SAFETY: the handle is open as long as the instance is.
            unsafe { pipeshard_cancel(self.session.0) };
            let woken = self.changed.wait_timeout(running, AGAIN);
            running = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        running
    }

    /// Begins to do something. What another thread does is ended first, as hosts expect.
    pub fn take_turn(self: &Arc<Self>) -> Result<Turn, Refusal> {
        let mut running = self.end(self.running());
        if running.closed {
            return Err(Refusal::invalid("the instance was destroyed"));
        }
        if running.by.is_some() {
            return Err(Refusal::new(
                result::NOT_READY,
                "an evaluation of this instance calls back on this thread: begin another when the callback has returned",
            ));
        }
        running.by = Some(this_thread());
        running.poll = None;
        let ended = running.thread.take();
        drop(running);
        join(ended);
        self.cancelled.store(false, Ordering::Relaxed);
        *locked(&self.saved) = None;
        Ok(Turn(Arc::clone(self)))
    }

    /// The same, where nothing else is done: nothing is ended.
    pub fn take_turn_if_idle(self: &Arc<Self>) -> Option<Turn> {
        let mut running = self.running();
        if running.closed || running.by.is_some() {
            return None;
        }
        running.by = Some(this_thread());
        Some(Turn(Arc::clone(self)))
    }

    /// Ends the evaluation. Returns when it is over, unless it calls back on this thread.
    pub fn cancel(&self) -> Result<(), Refusal> {
        let running = self.running();
        if running.by.is_none() {
            return Err(Refusal::not_implemented(
                "cancelAsyncEvaluation: nothing is being evaluated",
            ));
        }
        self.cancelled.store(true, Ordering::Relaxed);
        let running = self.end(running);
        // of this thread
        if running.by.is_some() {
            // SAFETY: as above.
            unsafe { pipeshard_cancel(self.session.0) };
        }
        Ok(())
    }

    /// Ends everything.
    fn destroy(self: Arc<Self>) -> Result<(), Refusal> {
        let mut running = self.end(self.running());
        if running.by.is_some() {
            return Err(Refusal::new(
                result::INVALID_STATE,
                "destroyInstance: an evaluation of this instance calls back on this thread; destroy it when that is over",
            ));
        }
        running.closed = true;
        running.poll = None;
        let ended = running.thread.take();
        drop(running);
        self.changed.notify_all();
        join(ended);
        let known = &mut *instances();
        if let Some(all) = known {
            all.remove(&self.face.addr());
            if all.is_empty() {
                *known = None;
            }
        }
        Ok(())
    }
}

/// Waits for a thread that has given back its turn.
fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        // what it does is caught, and told
        let _ = thread.join();
    }
}

/// Destroys all instances that are left.
pub fn destroy_all() {
    let left: Vec<Arc<Instance>> = match &*instances() {
        Some(all) => all.values().cloned().collect(),
        None => Vec::new(),
    };
    for instance in left {
        call(|| instance.destroy());
    }
}

pub unsafe extern "C" fn destroy_instance(face: *const InferenceInstance) -> u32 {
    call(|| match face.is_null() {
        true => Ok(()),
        false => Instance::of(face)?.destroy(),
    })
}
