//! What a session does now, who does it, and how it is ended.

use crate::failure::{Code, Failure};
use crate::locks::locked;
use crate::model::Model;
use crate::types::State;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Who does something with a session.
#[derive(Default)]
pub struct Doing {
    /// The thread that does.
    pub thread: Option<libc::pthread_t>,
    /// It is one that moves the session's memory: others wait for it.
    moves: bool,
    /// What became of the last order that it followed, by the order's number, while it waits for others.
    pub followed: Option<(u64, Result<(), Failure>)>,
    /// A thread of our own: it is joined by who closes.
    pub own: Option<JoinHandle<()>>,
    pub closed: bool,
}

/// What a session does.
pub struct Activity {
    pub model: Arc<Model>,
    /// Ends what is being done.
    pub stop: AtomicBool,
    state: Mutex<State>,
    doing: Mutex<Doing>,
    /// Nothing is done any more, an order was followed, or the session was cancelled.
    changed: Condvar,
    /// The budget that its context was made within, in bytes.
    pub made_within: AtomicU64,
}

/// The right to do something with a session; others get `PIPESHARD_E_BUSY`.
pub struct Busy<'a>(pub &'a Activity);

/// What somebody who gives orders has of a session.
pub enum Joined<'a> {
    /// Nobody uses it: who gives the orders follows them.
    Idle(Busy<'a>),
    /// Its thread follows them.
    Followed,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.noted(|state| state.busy = 0);
        let mut doing = self.0.doing();
        (doing.thread, doing.moves) = (None, false);
        drop(doing);
        self.0.changed.notify_all();
    }
}

impl Activity {
    /// Nothing is done.
    pub fn new(model: Arc<Model>, state: State) -> Self {
        Activity {
            model,
            stop: AtomicBool::new(false),
            state: Mutex::new(state),
            doing: Mutex::new(Doing::default()),
            changed: Condvar::new(),
            made_within: AtomicU64::new(0),
        }
    }

    /// Who does something.
    pub fn doing(&self) -> MutexGuard<'_, Doing> {
        locked(&self.doing)
    }

    /// What pipeshard_session_get_state says.
    pub fn state(&self) -> State {
        *locked(&self.state)
    }

    /// Changes what pipeshard_session_get_state says.
    pub fn noted(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
    }

    /// Begins to do something.
    pub fn begin(&self) -> Result<Busy<'_>, Failure> {
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        let mut doing = self.doing();
        while doing.moves && doing.thread != Some(this) {
            let changed = self.changed.wait(doing);
            doing = changed.unwrap_or_else(PoisonError::into_inner);
        }
        if doing.closed {
            return Err(Failure::invalid("session is not open: it was closed"));
        }
        if doing.thread.is_some() {
            return Err(Failure::new(
                Code::Busy,
                "the session does something already: wait for it, or cancel it",
            ));
        }
        doing.thread = Some(this);
        // under the lock, so that it does not undo what somebody cancels or closes from here on
        self.stop.store(false, Ordering::Relaxed);
        Ok(Busy(self))
    }

    /// The same to move its memory: who wants to do something meanwhile waits.
    ///
    /// # Errors
    /// Somebody does something with it.
    pub fn begin_to_move(&self) -> Result<Busy<'_>, Failure> {
        let busy = self.begin()?;
        self.doing().moves = true;
        Ok(busy)
    }

    /// Waits until who uses it has followed the order of that number, or uses it no more.
    ///
    /// # Errors
    /// It was not before `until`, or the order could not be followed.
    pub fn wait_for(&self, number: u64, until: Option<Instant>) -> Result<Joined<'_>, Failure> {
        let mut doing = self.doing();
        loop {
            match &doing.followed {
                Some((followed, done)) if *followed == number => {
                    return done.clone().map(|()| Joined::Followed)
                }
                _ if doing.thread.is_none() => {
                    // SAFETY: no preconditions.
                    doing.thread = Some(unsafe { libc::pthread_self() });
                    doing.moves = true;
                    self.stop.store(false, Ordering::Relaxed);
                    return Ok(Joined::Idle(Busy(self)));
                }
                _ => {}
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            doing = match left {
                Some(Duration::ZERO) => {
                    return Err(Failure::new(
                        Code::Deadline,
                        "the budget was not changed: a session that evaluates did not make way in time; allow more time",
                    ))
                }
                Some(left) => {
                    let woken = self.changed.wait_timeout(doing, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(doing)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// An order was followed, with this result; none: there is none any more.
    pub fn has_followed(&self, followed: Option<(u64, Result<(), Failure>)>) {
        self.doing().followed = followed;
        self.changed.notify_all();
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

    /// Ends what is being done, soon.
    pub fn cancel(&self) {
        // under the lock, so that who is about to wait sees it
        let doing = self.doing();
        if doing.thread.is_some() {
            self.stop.store(true, Ordering::Relaxed);
        }
        drop(doing);
        self.changed.notify_all();
    }

    /// Ends what is being done, and waits for it, but where it is done by this thread.
    pub fn close(&self) {
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
        let own = doing.own.take();
        drop(doing);
        // also where this thread generates, and the session's own one did so before: it may not have ended yet
        if let Some(own) = own.filter(|own| own.as_pthread_t() != this) {
            let _ = own.join();
        }
    }
}
