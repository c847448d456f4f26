//! Who may change the arena's shape, and when.
//!
//! A graph refers to places in the arena from the moment that llama.cpp decides to use it (again) until its pass is
//! submitted. In between the thread that drives it *prepares*; several may do so at once. Who wants another shape waits
//! until nobody else prepares, and those who come later wait for him: so neither starves, and no thread that waits
//! holds up another.

use super::log;
use super::runtime::Runtime;
use super::table::Shared;
use parking_lot::MutexGuard;
use std::thread::ThreadId;
use std::time::Duration;

/// How long a thread that prepares may do nothing before it counts as one that has given up without saying so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Threads between the choice of a graph and the end of its pass, and those that wait for them.
#[derive(Debug, Default)]
pub struct Turns {
    preparing: Vec<ThreadId>,
    /// Threads that wait to change the arena's shape.
    waiting: usize,
    /// Grows whenever a thread begins or ends to prepare, or a pass ends.
    steps: u64,
}

impl Turns {
    fn begin(&mut self, thread: ThreadId) {
        self.steps += 1;
        if !self.preparing.contains(&thread) {
            self.preparing.push(thread);
        }
    }

    /// True if it had been preparing.
    fn end(&mut self, thread: ThreadId) -> bool {
        let before = self.preparing.len();
        self.preparing.retain(|&t| t != thread);
        let ended = self.preparing.len() < before;
        self.steps += u64::from(ended);
        ended
    }

    /// A pass was submitted, or failed.
    pub fn pass_ended(&mut self) {
        self.steps += 1;
    }
}

impl Shared {
    /// The calling thread has a graph that refers to the arena as it is now.
    pub fn begin_preparing(&self, runtime: &mut Runtime) {
        runtime.turns.begin(std::thread::current().id());
    }

    /// The calling thread has no such graph any more: it has run, or never will.
    pub fn end_preparing(&self, runtime: &mut Runtime) {
        if runtime.turns.end(std::thread::current().id()) {
            self.step.notify_all();
        }
    }

    /// Locks the runtime when no other thread wants to change the arena's shape.
    pub fn lock_in_turn(&self) -> MutexGuard<'_, Runtime> {
        let mut runtime = self.lock();
        self.end_preparing(&mut runtime);
        while runtime.turns.waiting > 0 {
            self.step.wait(&mut runtime);
        }
        runtime
    }

    /// Locks the runtime when no pass is being submitted and no other thread has a graph that refers to the arena: its
    /// shape may change. What the calling thread had prepared is given up.
    pub fn lock_alone(&self) -> MutexGuard<'_, Runtime> {
        let mut runtime = self.lock();
        self.end_preparing(&mut runtime);
        if runtime.active_pass.is_none() && runtime.turns.preparing.is_empty() {
            return runtime;
        }
        runtime.turns.waiting += 1;
        while runtime.active_pass.is_some() || !runtime.turns.preparing.is_empty() {
            let seen = runtime.turns.steps;
            let late = self.step.wait_for(&mut runtime, PATIENCE).timed_out();
            if late && runtime.active_pass.is_none() && runtime.turns.steps == seen {
                // an allocation that llama.cpp could not make, say: should the graph run after all, its pass fails
                log::warn(
                    "a batch that was begun was neither computed nor given up; going on without it",
                );
                runtime.turns.preparing.clear();
            }
        }
        runtime.turns.waiting -= 1;
        self.step.notify_all();
        runtime
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::Arc;
    use std::thread;

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::new(Config::default()))
    }

    /// Begins to prepare on a thread of its own, which ends with a pass after `pause`.
    fn prepare(shared: &Arc<Shared>, pause: Duration) -> thread::JoinHandle<()> {
        let (shared, begun) = (Arc::clone(shared), Arc::new(AtomicBool::new(false)));
        let begins = Arc::clone(&begun);
        let handle = thread::spawn(move || {
            let mut runtime = shared.lock_in_turn();
            shared.begin_preparing(&mut runtime);
            drop(runtime);
            begins.store(true, Ordering::SeqCst);
            thread::sleep(pause);
            shared.end_preparing(&mut shared.lock());
        });
        while !begun.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        handle
    }

    #[test]
    fn a_shape_changes_when_nobody_else_prepares() {
        let shared = shared();
        let others = [20, 60].map(|ms| prepare(&shared, Duration::from_millis(ms)));
        let runtime = shared.lock_alone();
        assert!(runtime.turns.preparing.is_empty());
        assert_eq!(runtime.turns.waiting, 0);
        drop(runtime);
        for other in others {
            other.join().expect("it only waits");
        }
    }

    #[test]
    fn ones_own_graph_is_no_obstacle() {
        let shared = shared();
        shared.begin_preparing(&mut shared.lock());
        drop(shared.lock_alone());
        // nor is one that was given up without a word, on the way to the next
        shared.begin_preparing(&mut shared.lock());
        drop(shared.lock_in_turn());
        assert!(shared.lock().turns.preparing.is_empty());
    }

    #[test]
    fn who_wants_to_change_the_shape_goes_before_those_who_come_later() {
        let shared = shared();
        let first = prepare(&shared, Duration::from_millis(50));
        let changes = Arc::new(AtomicU32::new(0));
        let changer = {
            let (shared, changes) = (Arc::clone(&shared), Arc::clone(&changes));
            thread::spawn(move || {
                let _runtime = shared.lock_alone();
                changes.fetch_add(1, Ordering::SeqCst);
            })
        };
        while shared.lock().turns.waiting == 0 && !changer.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let later = prepare(&shared, Duration::ZERO);
        assert_eq!(changes.load(Ordering::SeqCst), 1);
        for thread in [first, changer, later] {
            thread.join().expect("it only waits");
        }
    }
}
