//! Sessions: conversations with a context of their own.
//!
//! | file | |
//! |---|---|
//! | [`activity`] | what a session does now, and how that is ended |
//! | [`context`] | its contexts |
//! | [`conversation`] | what was said |
//! | [`evaluate`] | what a context holds, and bringing it to what it should hold |
//! | [`generate`] | answers |
//! | [`saved`] | a conversation as bytes |
//! | [`events`] | what hosts hear of a generation that they do not wait for |
//! | [`exports`] | the header's functions |

mod activity;
mod context;
mod conversation;
mod evaluate;
mod events;
pub mod exports;
mod generate;
mod saved;

use crate::device::{Claimed, Sleeper};
use crate::failure::{Code, Failure};
use crate::locks::locked;
use crate::model::Model;
use crate::orders::{Follower, Order};
use crate::types::{SessionConfig, State};
use activity::{Activity, Busy, Joined};
use context::Settings;
use conversation::Conversation;
use evaluate::{Place, Work};
use events::Events;
use generate::Wish;
use pipeshard_model::threads::named;
use pipeshard_sys as ffi;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub use context::{kv_type, BATCH};

/// A session that is open. Members are dropped in their order.
pub struct Session {
    work: Mutex<Work>,
    pub activity: Activity,
    pub events: Events,
}

impl Session {
    /// # Safety
    /// As for [`Settings::read`].
    ///
    /// # Errors
    /// A member makes no sense, or there is no room.
    pub unsafe fn open(model: Arc<Model>, config: &SessionConfig) -> Result<Arc<Self>, Failure> {
        let mut settings = Settings::read(config, model.device.threads)?;
        let budget = model.device.gate().plain().accounts.budget();
        let context = settings.make_first(&model)?;
        let raw = context.raw();
        let (room, batch) = (ffi::llama_n_ctx_seq(raw), ffi::llama_n_batch(raw));
        let state = State {
            size: 0,
            context: room,
            used: 0,
            ubatch: ffi::llama_n_ubatch(raw),
            messages: 0,
            busy: 0,
            prompt_tokens: 0,
            reused_tokens: 0,
            generated_tokens: 0,
            evaluated_again: 0,
            prompt_ms: 0.0,
            generate_ms: 0.0,
        };
        let session = Arc::new(Session {
            work: Mutex::new(Work {
                place: Place::Awake(context),
                settings,
                held: Vec::new(),
                conversation: Conversation::default(),
                room,
                batch,
            }),
            activity: Activity::new(model, state),
            events: Events::default(),
        });
        let made_within = &session.activity.made_within;
        made_within.store(budget, Ordering::Relaxed);
        let sleeper: Arc<dyn Sleeper> = Arc::clone(&session) as _;
        session.activity.model.device.opened(&sleeper);
        Ok(session)
    }

    /// Does `work`, alone, and notes what the session holds then.
    pub fn alone<T>(
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
        self.activity
            .noted(|state| (state.used, state.messages) = (used, messages));
        done
    }

    /// Answers.
    pub fn generate(
        &self,
        busy: &Busy<'_>,
        wish: &Wish,
        piece: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(), Failure> {
        self.activity.noted(|state| state.busy = 1);
        self.alone(busy, |work| {
            work.wake(&self.activity)?;
            self.activity.answer(work, wish, piece)
        })
    }

    /// Answers on a thread of the session's own.
    ///
    /// # Errors
    /// The session does something already, or there is no thread.
    pub fn submit(self: &Arc<Self>, wish: Wish) -> Result<(), Failure> {
        // the right to do it is handed to the thread
        std::mem::forget(self.activity.begin()?);
        let ended = self.activity.doing().own.take();
        if let Some(ended) = ended {
            let _ = ended.join();
        }
        self.events.begin();
        let session = Arc::clone(self);
        let work = move || {
            // begins once it is noted
            drop(session.activity.doing());
            let busy = Busy(&session.activity);
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
        // noted here, not by the thread itself: it would still be this one where this one closes at once, and closing would wait for
        // nobody
        let mut doing = self.activity.doing();
        let started = named("pipeshard-chat").spawn(work);
        match started {
            Ok(thread) => {
                doing.thread = Some(thread.as_pthread_t());
                doing.own = Some(thread);
                Ok(())
            }
            Err(why) => {
                drop(doing);
                drop(Busy(&self.activity));
                Err(Failure::new(
                    Code::NoMemory,
                    format!("no thread could be started: {why}"),
                ))
            }
        }
    }
}

/// A session that does nothing else.
struct Idle<'s>(&'s Session, Busy<'s>);

impl Claimed for Idle<'_> {
    fn sleep(&self) -> Result<(), Failure> {
        let Idle(session, busy) = self;
        session.alone(busy, |work| work.follow(&session.activity, Order::Sleep))
    }
}

/// A session that follows orders: by who gives them where it does nothing else.
struct Following<'s> {
    session: &'s Session,
    joined: Joined<'s>,
    slept: bool,
}

impl Follower for Following<'_> {
    fn slept(&self) -> bool {
        self.slept
    }

    fn follow(&self, number: u64, order: Order) -> Result<(), Failure> {
        let activity = &self.session.activity;
        match &self.joined {
            Joined::Idle(busy) => self
                .session
                .alone(busy, |work| work.follow(activity, order)),
            Joined::Followed => activity.wait_for(number, None).map(drop),
        }
    }
}

impl Sleeper for Session {
    fn claim(&self) -> Result<Box<dyn Claimed + '_>, Failure> {
        Ok(Box::new(Idle(self, self.activity.begin_to_move()?)))
    }

    fn follow(
        &self,
        number: u64,
        until: Option<Instant>,
    ) -> Result<Box<dyn Follower + '_>, Failure> {
        let joined = self.activity.wait_for(number, until)?;
        let slept = match joined {
            Joined::Idle(_) => self.is_asleep(),
            Joined::Followed => false,
        };
        Ok(Box::new(Following {
            session: self,
            joined,
            slept,
        }))
    }

    fn is_used_here(&self) -> bool {
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        self.activity.doing().thread == Some(this)
    }

    fn made_within(&self) -> u64 {
        self.activity.made_within.load(Ordering::Relaxed)
    }

    fn wake(&self) -> Result<(), Failure> {
        match self.activity.begin() {
            Ok(busy) => self.alone(&busy, |work| work.wake(&self.activity)),
            // who uses it wakes it
            Err(_) => Ok(()),
        }
    }

    fn is_asleep(&self) -> bool {
        let work = self.work.try_lock();
        work.is_ok_and(|work| matches!(work.place, Place::Asleep(_)))
    }
}
