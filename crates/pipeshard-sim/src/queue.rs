//! A queue of commands: anyone submits, one thread carries them out in order, and anyone waits until it has.

use std::collections::VecDeque;

use crate::sync::{Condvar, Mutex};

/// What a queue needs to know of a command.
pub trait Queued {
    /// Bytes that it holds on to until it is carried out.
    fn staged(&self) -> usize;
    /// Reports whether it does nothing but wait for another thread.
    fn only_waits(&self) -> bool;
}

struct State<C> {
    commands: VecDeque<C>,
    submitted: u64,
    completed: u64,
    /// Held by the commands that are not completed, in bytes.
    staged: usize,
    /// The part of `staged` that the command has which is being carried out.
    staged_by_current: usize,
    /// A command is being carried out, and it is not one that waits.
    busy: bool,
    closed: bool,
    /// Threads that wait until all is completed.
    draining: usize,
}

/// Commands in the order in which they were submitted.
pub struct CommandQueue<C> {
    staging_limit: usize,
    state: Mutex<State<C>>,
    /// There is something new in the queue.
    work: Condvar,
    /// A command was completed.
    progress: Condvar,
}

impl<C: Queued> CommandQueue<C> {
    /// An empty queue. A command with staged bytes is held back while that many bytes wait already; one that has more
    /// on its own waits until no other has any.
    pub fn new(staging_limit: usize) -> Self {
        Self {
            staging_limit,
            state: Mutex::new(State {
                commands: VecDeque::new(),
                submitted: 0,
                completed: 0,
                staged: 0,
                staged_by_current: 0,
                busy: false,
                closed: false,
                draining: 0,
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    /// Appends a command, as soon as there is room for what it has staged.
    pub fn submit(&self, command: C) {
        let mut state = self.state.lock();
        let staged = command.staged();
        // counted only once there is room: two that wait must not each be in the other's way
        while staged > 0 && state.staged > 0 && state.staged + staged > self.staging_limit {
            self.progress.wait(&mut state);
        }
        state.staged += staged;
        state.commands.push_back(command);
        state.submitted += 1;
        self.work.notify_one();
    }

    /// Blocks until all that was submitted before is completed.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        let target = state.submitted;
        state.draining += 1;
        while state.completed < target {
            self.progress.wait(&mut state);
        }
        state.draining -= 1;
    }

    /// For the thread that carries commands out: the next one, as soon as there is one. Nothing once the queue was closed
    /// and is empty, or `given_up` says so.
    pub fn next(&self, given_up: impl Fn() -> bool) -> Option<C> {
        let mut state = self.state.lock();
        loop {
            if given_up() {
                return None;
            }
            if let Some(command) = state.commands.pop_front() {
                state.busy = !command.only_waits();
                state.staged_by_current = command.staged();
                return Some(command);
            }
            if state.closed {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// For the same thread: the command that [`CommandQueue::next`] gave is completed.
    pub fn complete(&self) {
        let mut state = self.state.lock();
        state.busy = false;
        state.staged -= std::mem::take(&mut state.staged_by_current);
        state.completed += 1;
        drop(state);
        self.progress.notify_all();
    }

    /// Nothing will be submitted any more.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_one();
    }

    /// Reports whether a thread waits until all is completed: for tests.
    #[cfg(test)]
    pub fn is_waited_for(&self) -> bool {
        self.state.lock().draining > 0
    }

    /// Reports whether a command is being carried out that does not just wait.
    pub fn is_busy(&self) -> bool {
        self.state.lock().busy
    }
}
