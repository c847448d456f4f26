//! Work of the host that a few threads share while the device has nothing to do: the mask of a long prompt, its embeddings.
//!
//! A thread that slept may take milliseconds to wake up, so the caller does not wait for one. It begins at once; a helper that
//! is awake takes the next part, and a late one finds nothing left.

use parking_lot::{Condvar, Mutex};
use pipeshard_model::threads::named;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Helpers at most: what they do is bound by memory soon.
const MOST: usize = 3;
/// Of so many processors one helps.
const OF_PROCESSORS: usize = 4;

/// Those of the process.
static HELPERS: Helpers = Helpers::new();

/// Threads that wait for work to help with.
pub struct Helpers {
    board: Board,
    running: Mutex<Vec<JoinHandle<()>>>,
    threads: AtomicUsize,
}

struct Board {
    posted: Mutex<Posted>,
    changed: Condvar,
}

/// What is on the board.
struct Posted {
    work: Option<Arc<Work>>,
    /// The threads end.
    over: bool,
}

/// The parts of one call.
struct Work {
    /// Borrowed from the caller, who stays until all parts are over.
    part: *const (dyn Fn(usize) + Sync),
    parts: usize,
    /// The first part that is not taken.
    next: AtomicUsize,
    /// Parts that are over.
    over: AtomicUsize,
}

// SAFETY: `part` is called only for parts that were taken, and the caller waits for each of them; it is `Sync`.
unsafe impl Send for Work {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Work {}

/// Ends the process where a part panics: the caller would wait for ever, or go on without what is missing.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Work {
    /// Does parts until none is left to take.
    fn help(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            let abort = AbortOnPanic;
            // SAFETY: this part was taken and is not over, so the caller has not returned.
            unsafe { (*self.part)(part) };
            drop(abort);
            self.over.fetch_add(1, Ordering::Release);
        }
    }
}

impl Helpers {
    const fn new() -> Self {
        Helpers {
            board: Board {
                posted: Mutex::new(Posted {
                    work: None,
                    over: false,
                }),
                changed: Condvar::new(),
            },
            running: Mutex::new(Vec::new()),
            threads: AtomicUsize::new(0),
        }
    }

    /// Those of the process. Before they are started the caller does everything alone.
    pub fn of_process() -> &'static Helpers {
        &HELPERS
    }

    /// As many as suit this machine.
    pub fn usual() -> usize {
        let wanted = std::env::var("PIPESHARD_DEBUG_HELPERS").ok();
        let wanted = wanted.filter(|_| cfg!(any(test, feature = "test-hooks")));
        let wanted = wanted.and_then(|count| count.parse().ok());
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        wanted.unwrap_or(processors / OF_PROCESSORS).min(MOST)
    }

    /// Starts as many threads as can be had, up to `most`, unless there are some. They run until [`Helpers::stop`].
    pub fn start(&'static self, most: usize) {
        let mut running = self.running.lock();
        if !running.is_empty() {
            return;
        }
        self.board.posted.lock().over = false;
        let one = || {
            let named = named("pipeshard-help");
            named.spawn(|| self.board.wait_and_help()).ok()
        };
        running.extend((0..most).map_while(|_| one()));
        self.threads.store(running.len(), Ordering::Release);
    }

    /// Ends the threads, and returns when they have ended. Calls in progress are finished by the threads that made them.
    pub fn stop(&self) {
        let mut running = self.running.lock();
        self.threads.store(0, Ordering::Release);
        let mut posted = self.board.posted.lock();
        posted.over = true;
        posted.work = None;
        drop(posted);
        self.board.changed.notify_all();
        for thread in running.drain(..) {
            let _ = thread.join();
        }
    }

    /// Calls `part` once with each number below `parts`, on this thread and on those that are awake. All is over on return.
    pub fn share(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        if self.threads.load(Ordering::Acquire) == 0 || parts < 2 {
            (0..parts).for_each(part);
            return;
        }
        // SAFETY: only the lifetime is erased; it is not called after this returns, see `Work`.
        let part = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(part)
        };
        let work = Arc::new(Work {
            part,
            parts,
            next: AtomicUsize::new(0),
            over: AtomicUsize::new(0),
        });
        self.board.posted.lock().work = Some(Arc::clone(&work));
        self.board.changed.notify_all();
        work.help();
        while work.over.load(Ordering::Acquire) < parts {
            std::thread::yield_now();
        }
    }
}

impl Board {
    fn wait_and_help(&self) {
        loop {
            let mut posted = self.posted.lock();
            let work = loop {
                if posted.over {
                    return;
                }
                match posted.work.take() {
                    Some(work) if work.next.load(Ordering::Relaxed) < work.parts => break work,
                    _ => self.changed.wait(&mut posted),
                }
            };
            // the others may help as well
            posted.work = Some(Arc::clone(&work));
            drop(posted);
            work.help();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;

    fn started(threads: usize) -> &'static Helpers {
        let helpers: &'static Helpers = Box::leak(Box::new(Helpers::new()));
        helpers.start(threads);
        helpers
    }

    #[test]
    fn threads_that_were_stopped_can_be_started_again() {
        let helpers = started(2);
        for _ in 0..3 {
            helpers.stop();
            assert!(helpers.running.lock().is_empty());
            let done = AtomicUsize::new(0);
            let count = |_| {
                done.fetch_add(1, Ordering::Relaxed);
            };
            helpers.share(5, &count);
            helpers.start(2);
            helpers.share(5, &count);
            assert_eq!(done.load(Ordering::Relaxed), 10);
            assert_eq!(helpers.running.lock().len(), 2);
        }
    }

    #[test]
    fn each_part_is_done_once() {
        for threads in [0, 1, 3] {
            let helpers = started(threads);
            for parts in [0, 1, 2, 7, 1000] {
                let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                helpers.share(parts, &|part| {
                    done[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
            }
        }
    }

    /// Counts those who have come, and lets them go together.
    #[derive(Default)]
    struct Meeting {
        come: Mutex<usize>,
        changed: Condvar,
    }

    impl Meeting {
        /// Waits until `others` more have come, or for much longer than a thread may take to wake up. False for the latter.
        fn wait_for(&self, others: usize) -> bool {
            let mut come = self.come.lock();
            *come += 1;
            self.changed.notify_all();
            let missing = |come: &mut usize| *come <= others;
            let patience = std::time::Duration::from_secs(60);
            let waited = self.changed.wait_while_for(&mut come, missing, patience);
            !waited.timed_out()
        }
    }

    #[test]
    fn others_help() {
        let helpers = started(2);
        let (meeting, seen) = (Meeting::default(), Mutex::new(HashSet::new()));
        // no part is over before each has a thread of its own
        helpers.share(3, &|_| {
            meeting.wait_for(2);
            seen.lock().insert(std::thread::current().id());
        });
        assert_eq!(seen.lock().len(), 3);
    }

    #[test]
    fn nobody_waits_for_helpers_that_are_busy() {
        let helpers = started(2);
        let (busy, done) = (Meeting::default(), Meeting::default());
        let late = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // all helpers are at this until the other call has returned
            scope.spawn(|| {
                helpers.share(3, &|_| {
                    busy.wait_for(3);
                    let met = done.wait_for(3);
                    late.fetch_or(!met, Ordering::Relaxed);
                });
            });
            assert!(busy.wait_for(3), "the helpers do not come");
            let here = std::thread::current().id();
            let by_others = AtomicUsize::new(0);
            helpers.share(10, &|_| {
                by_others.fetch_add(
                    usize::from(std::thread::current().id() != here),
                    Ordering::Relaxed,
                );
            });
            assert_eq!(by_others.load(Ordering::Relaxed), 0);
            done.wait_for(3);
        });
        assert!(!late.into_inner(), "the call waited for them");
    }

    #[test]
    fn callers_on_several_threads_each_get_all_their_parts() {
        let helpers = started(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        helpers.share(10, &|part| {
                            sum.fetch_add(part, Ordering::Relaxed);
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 45);
                    }
                });
            }
        });
    }
}
