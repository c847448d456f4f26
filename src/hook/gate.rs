//! One lock around a state, and who may do what with it when. Knows nothing of the state; the callbacks of the table lock it.
//!
//! Between `epoch` (may the last graph be reused?) and `pass_end` a thread *prepares*: it has a graph that refers to places in
//! the arena. So it does while a graph is measured, from `graph_begin` to `graph_dropped`. Several threads may do so at once. Between `pass_begin` and `pass_end` one scheduler's pass is *being submitted*.
//! Between `ubatch` and `context_made` a thread *makes* a context: what was given up for it is not filled again meanwhile. None of
//! these holds the lock. A guard says what cannot happen as long as it is held:
//!
//! | guard | waits until | so its holder may |
//! |---|---|---|
//! | [`Plain`] | nothing | look, and count |
//! | [`InTurn`] | no thread waits for an [`Alone`] | begin to prepare |
//! | [`Idle`] | no pass is being submitted | change what a pass reads: the plan, schedulers, what is held |
//! | [`Alone`] | also, no other thread prepares, or makes a context | change the arena's shape: no graph finds its weights moved |
//!
//! [`Idle::parts`] and [`Alone::parts`] hand out the state together with a proof, [`NoPass`] or [`NewShape`]. Functions that may
//! only run then take the proof as an argument, and there is no other way to get one. [`GUARDS`] lists which callback takes which.
//!
//! A pass counts as being submitted only where it uses what there is one of: the ring, the lanes around it, the memory of fetched
//! experts. Others prepare until their end, which keeps the arena's shape, and any number of them goes on side by side.
//!
//! Who waits for [`Alone`] goes before threads that want to begin to prepare later: so neither starves, and no thread that waits
//! holds up another.

use super::sync::{current_thread, Condvar, Mutex, MutexGuard, ThreadId};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// How long a thread that has not begun to split its graph may do nothing before it counts as one that has given up without saying
/// so. From there on ggml says how it ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// The kinds of guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// [`Plain`]
    Plain,
    /// [`InTurn`]
    InTurn,
    /// [`Idle`]
    Idle,
    /// [`Alone`]
    Alone,
    /// [`Idle`], and [`Alone`] where the arena has to take another shape first.
    IdleThenAlone,
    /// [`Alone`] for what is only measured, else [`Idle`].
    IdleOrAlone,
    /// [`Idle`] for a pass that uses what there is one of, else [`Plain`].
    PlainOrIdle,
    /// The state is not looked at.
    Nothing,
}

/// Which guard each callback takes.
pub const GUARDS: &[(&str, Guard)] = &[
    ("epoch", Guard::InTurn),
    ("device", Guard::Alone),
    ("weights_ready", Guard::Alone),
    ("weights_gone", Guard::Alone),
    ("ubatch", Guard::Idle),
    ("kv_on_host", Guard::Alone),
    ("kv_gone", Guard::Idle),
    ("layer_on_host", Guard::Plain),
    ("in_parts", Guard::Nothing),
    ("context_made", Guard::Plain),
    ("context_failed", Guard::Idle),
    ("encoder_expected", Guard::Alone),
    ("encoder_wanted", Guard::Alone),
    ("encode_done", Guard::Plain),
    ("encoder_gone", Guard::Alone),
    ("sched_freed", Guard::Idle),
    // Plain where the graph finds all in place
    ("graph_begin", Guard::IdleThenAlone),
    ("cut", Guard::Plain),
    ("split_made", Guard::Plain),
    // while running, the arena keeps its shape until the graph is split again
    ("scratch_wanted", Guard::IdleOrAlone),
    ("scratch_failed", Guard::Idle),
    ("graph_dropped", Guard::Idle),
    ("input_copy", Guard::Plain),
    ("pass_begin", Guard::PlainOrIdle),
    ("split_before", Guard::Plain),
    ("split_after", Guard::Plain),
    ("pass_end", Guard::Plain),
];

/// A thread between the choice of a graph and the end of its pass.
#[derive(Debug, Clone, Copy)]
struct Prepares {
    thread: ThreadId,
    sched: usize,
    /// The graph is being split or was: it runs, or ggml says that it will not.
    split: bool,
}

/// All such threads, and those that wait for them.
#[derive(Debug, Default)]
struct Preparing {
    threads: Vec<Prepares>,
    /// The thread that makes a context.
    maker: Option<ThreadId>,
    /// Threads that wait to change the arena's shape.
    waiting: usize,
    /// Threads that wait after those.
    held_back: usize,
    /// Grows whenever a thread begins or ends to prepare, or a pass ends.
    steps: u64,
}

impl Preparing {
    fn begin(&mut self, sched: usize, split: bool) {
        self.steps += 1;
        let thread = current_thread();
        let begun = Prepares {
            thread,
            sched,
            split,
        };
        match self.threads.iter_mut().find(|of| of.thread == thread) {
            Some(known) => *known = begun,
            None => self.threads.push(begun),
        }
    }

    /// True if there were such.
    fn end(&mut self, over: impl Fn(&Prepares) -> bool) -> bool {
        let before = self.threads.len();
        self.threads.retain(|of| !over(of));
        let ended = self.threads.len() < before;
        self.steps += u64::from(ended);
        ended
    }
}

/// What is behind the lock.
struct Held<S> {
    state: S,
    preparing: Preparing,
    /// The scheduler whose pass is being submitted.
    pass: Option<usize>,
    /// A callback panicked: nothing that is known can be relied on, and nothing is computed.
    broken: bool,
}

/// A state behind a lock.
pub struct Gate<S> {
    held: Mutex<Held<S>>,
    /// A pass was submitted, or a graph run or given up.
    step: Condvar,
    /// Told when a thread that prepares is not waited for any longer.
    abandoned: fn(),
}

/// Proof that no pass is being submitted.
#[derive(Debug, Clone, Copy)]
pub struct NoPass<'g>(PhantomData<&'g ()>);

/// Proof that no pass is being submitted and that no other thread has a graph that refers to the arena.
#[derive(Debug, Clone, Copy)]
pub struct NewShape<'g>(PhantomData<&'g ()>);

impl<'g> NewShape<'g> {
    /// That no pass is being submitted is a part of it.
    pub fn no_pass(self) -> NoPass<'g> {
        NoPass(PhantomData)
    }
}

/// What tests look at.
#[cfg(test)]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Threads that prepare.
    pub preparing: usize,
    /// Threads that wait to be alone.
    pub waiting: usize,
    /// Threads that wait after those.
    pub held_back: usize,
    /// The scheduler whose pass is being submitted.
    pub pass: Option<usize>,
}

#[cfg(test)]
impl<S> Gate<S> {
    pub(super) fn watched(&self) -> Watched {
        let held = self.held.lock();
        Watched {
            preparing: held.preparing.threads.len(),
            waiting: held.preparing.waiting,
            held_back: held.preparing.held_back,
            pass: held.pass,
        }
    }
}

#[cfg(test)]
impl NewShape<'static> {
    /// For tests of one thread, which have no gate.
    pub(super) fn of_test() -> Self {
        NewShape(PhantomData)
    }
}

struct Locked<'a, S> {
    gate: &'a Gate<S>,
    held: MutexGuard<'a, Held<S>>,
}

macro_rules! guards {
    ($($(#[$text:meta])* $name:ident)*) => {$(
        $(#[$text])*
        pub struct $name<'a, S>(Locked<'a, S>);

        impl<S> Deref for $name<'_, S> {
            type Target = S;
            fn deref(&self) -> &S {
                &self.0.held.state
            }
        }

        impl<S> DerefMut for $name<'_, S> {
            fn deref_mut(&mut self) -> &mut S {
                &mut self.0.held.state
            }
        }

        impl<S> $name<'_, S> {
            /// Reports whether a callback panicked before.
            pub fn is_broken(&self) -> bool {
                self.0.held.broken
            }

            /// The calling thread has no graph that refers to the arena any more: it has run, or never will.
            pub fn end_preparing(&mut self) {
                self.0.end_preparing();
            }
        }
    )*};
}

guards! {
    /// The state, whatever else goes on.
    Plain
    /// Returns the state once no thread waits to change the arena's shape.
    InTurn
    /// The state, when no pass is being submitted.
    Idle
    /// Returns the state once, in addition, no other thread has a graph that refers to the arena.
    Alone
}

impl<S> Locked<'_, S> {
    fn end_preparing(&mut self) {
        let thread = current_thread();
        self.end_where(|of| of.thread == thread);
    }

    fn end_where(&mut self, over: impl Fn(&Prepares) -> bool) {
        if self.held.preparing.end(over) {
            self.gate.step.notify_all();
        }
    }

    /// Another thread makes a context.
    fn others_make(&self) -> bool {
        let maker = self.held.preparing.maker;
        maker.is_some_and(|maker| maker != current_thread())
    }
}

impl<S> Plain<'_, S> {
    /// The calling thread has a graph of `sched` that refers to the arena as it is now.
    pub fn begin_preparing(&mut self, sched: usize) {
        self.0.held.preparing.begin(sched, true);
    }

    /// No graph of `sched` will run any more, whichever thread prepared it.
    pub fn end_preparing_of(&mut self, sched: usize) {
        self.0.end_where(|of| of.sched == sched);
    }

    /// The context that the calling thread makes is made, or will not be.
    pub fn end_making(&mut self) {
        if !self.0.others_make() {
            self.0.held.preparing.maker = None;
            self.0.gate.step.notify_all();
        }
    }

    /// The pass of `sched` was submitted, or failed.
    pub fn end_pass(&mut self, sched: usize) {
        let held = &mut self.0.held;
        if held.pass == Some(sched) {
            held.pass = None;
        }
        held.preparing.steps += 1;
        self.0.gate.step.notify_all();
    }

    /// A callback has panicked. True for the first one.
    pub fn break_off(&mut self) -> bool {
        self.0.held.preparing.maker = None;
        self.0.gate.step.notify_all();
        !std::mem::replace(&mut self.0.held.broken, true)
    }
}

impl<S> InTurn<'_, S> {
    /// The calling thread has a graph of `sched` that may run as it is, or another will be built.
    pub fn begin_preparing(&mut self, sched: usize) {
        self.0.held.preparing.begin(sched, false);
    }
}

impl<'a, S> Idle<'a, S> {
    /// The state, and the proof.
    pub fn parts(&mut self) -> (&mut S, NoPass<'_>) {
        (&mut self.0.held.state, NoPass(PhantomData))
    }

    /// The calling thread has a graph of `sched` that refers to the arena as it is now.
    pub fn begin_preparing(&mut self, sched: usize) {
        self.0.held.preparing.begin(sched, true);
    }

    /// The pass of `sched` is being submitted from here on.
    pub fn begin_pass(&mut self, sched: usize) {
        self.0.held.pass = Some(sched);
    }

    /// Waits for what [`Gate::alone`] waits for. The lock is let go of meanwhile.
    pub fn alone(self) -> Alone<'a, S> {
        let gate = self.0.gate;
        drop(self);
        gate.alone()
    }
}

impl<'a, S> Alone<'a, S> {
    /// The state, and the proof.
    pub fn parts(&mut self) -> (&mut S, NewShape<'_>) {
        (&mut self.0.held.state, NewShape(PhantomData))
    }

    /// The calling thread has a graph of `sched` that refers to the arena as it is now.
    pub fn begin_preparing(&mut self, sched: usize) {
        self.0.held.preparing.begin(sched, true);
    }

    /// What was broken was made anew.
    pub fn repaired(&mut self) {
        self.0.held.broken = false;
    }

    /// Goes on with less, without letting go of the lock.
    pub fn into_idle(self) -> Idle<'a, S> {
        Idle(self.0)
    }
}

impl<S> Gate<S> {
    /// A gate in front of `state`. `abandoned` is called, under the lock, when a thread that prepares is not waited for any longer.
    pub fn new(state: S, abandoned: fn()) -> Self {
        Gate {
            held: Mutex::new(Held {
                state,
                preparing: Preparing::default(),
                pass: None,
                broken: false,
            }),
            step: Condvar::new(),
            abandoned,
        }
    }

    fn lock(&self) -> Locked<'_, S> {
        Locked {
            gate: self,
            held: self.held.lock(),
        }
    }

    /// Locks the state.
    pub fn plain(&self) -> Plain<'_, S> {
        Plain(self.lock())
    }

    /// The same if it can be had soon: for who may have stopped its holder, as the handler of a signal has.
    pub fn plain_within(&self, patience: Duration) -> Option<Plain<'_, S>> {
        let held = self.held.try_lock_for(patience)?;
        Some(Plain(Locked { gate: self, held }))
    }

    /// Locks the state when no other thread wants to change the arena's shape.
    pub fn in_turn(&self) -> InTurn<'_, S> {
        let mut locked = self.lock();
        locked.end_preparing();
        let thread = current_thread();
        // who makes a context is what others wait for
        let waits = |of: &Preparing| of.waiting > 0 && of.maker != Some(thread);
        locked.held.preparing.held_back += 1;
        while waits(&locked.held.preparing) {
            self.step.wait(&mut locked.held);
        }
        locked.held.preparing.held_back -= 1;
        InTurn(locked)
    }

    /// Locks the state when no pass is being submitted by another thread.
    pub fn idle(&self) -> Idle<'_, S> {
        let mut locked = self.lock();
        while locked.held.pass.is_some() {
            self.step.wait(&mut locked.held);
        }
        Idle(locked)
    }

    /// The same once, in addition, no other thread makes a context. The calling thread makes one from here on, until it
    /// reports the end.
    pub fn making(&self) -> Idle<'_, S> {
        let mut locked = self.lock();
        while locked.held.pass.is_some() || locked.others_make() {
            self.step.wait(&mut locked.held);
        }
        locked.held.preparing.maker = Some(current_thread());
        Idle(locked)
    }

    /// Locks the state when no pass is being submitted and no other thread has a graph that refers to the arena, or makes a context:
    /// its shape may change. What the calling thread had prepared is given up.
    pub fn alone(&self) -> Alone<'_, S> {
        Alone(self.wait_alone(None).0)
    }

    /// The same, if it can be had by then.
    pub fn alone_by(&self, deadline: Instant) -> Option<Alone<'_, S>> {
        let (locked, in_time) = self.wait_alone(Some(deadline));
        in_time.then(|| Alone(locked))
    }

    /// The lock, and whether it is alone: not so where the deadline has passed.
    fn wait_alone(&self, deadline: Option<Instant>) -> (Locked<'_, S>, bool) {
        let mut locked = self.lock();
        locked.end_preparing();
        let busy = |locked: &Locked<'_, S>| {
            let held = &locked.held;
            held.pass.is_some() || !held.preparing.threads.is_empty() || locked.others_make()
        };
        if !busy(&locked) {
            return (locked, true);
        }
        locked.held.preparing.waiting += 1;
        let mut in_time = true;
        while busy(&locked) {
            let seen = locked.held.preparing.steps;
            let left = deadline.map(|by| by.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                in_time = false;
                break;
            }
            let patience = left.map_or(PATIENCE, |left| left.min(PATIENCE));
            let late = self.step.wait_for(&mut locked.held, patience).timed_out();
            let late = late && patience == PATIENCE;
            let stands_still = locked.held.pass.is_none() && locked.held.preparing.steps == seen;
            // a graph that llama.cpp could not build, say: should it run after all, its pass fails
            if late && stands_still && locked.held.preparing.end(|of| !of.split) {
                (self.abandoned)();
            }
        }
        locked.held.preparing.waiting -= 1;
        self.step.notify_all();
        (locked, in_time)
    }
}
