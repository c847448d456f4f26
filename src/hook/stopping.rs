//! Ending a pass between two of its splits: because nobody wants its result any more, or because memory is wanted before it is over.
//!
//! The thread that computes says so itself: what is asked for during [`watching`] holds for the passes that this thread submits
//! meanwhile, whichever scheduler they are of. llama.cpp then takes the ubatch out of the context, so that it can be computed again.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many wait for memory that passes use.
#[derive(Debug, Default)]
pub struct MemoryWanted(AtomicU32);

/// Somebody waits for memory, until this is dropped.
pub struct Waiting<'w>(&'w MemoryWanted);

impl MemoryWanted {
    /// Somebody begins to wait.
    pub fn wait(&self) -> Waiting<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0 .0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the thread that computes looks at.
#[derive(Clone, Copy)]
struct Watched {
    stop: *const AtomicBool,
    may_be_repeated: bool,
}

thread_local! {
    /// A pass of what this thread watches was ended.
    static ENDED: Cell<bool> = const { Cell::new(false) };
    static WATCHED: Cell<Option<Watched>> = const { Cell::new(None) };
}

/// Does `work`, whose passes end early once `stop` is set; where they may be repeated, also when memory is wanted.
pub fn watching<T>(stop: &AtomicBool, may_be_repeated: bool, work: impl FnOnce() -> T) -> T {
    /// Also where `work` panics.
    struct Restore(Option<Watched>);
    impl Drop for Restore {
        fn drop(&mut self) {
            WATCHED.set(self.0);
            // what fails later on this thread is a failure
            ENDED.set(false);
        }
    }
    let watched = Watched {
        stop,
        may_be_repeated,
    };
    ENDED.set(false);
    let _restore = Restore(WATCHED.replace(Some(watched)));
    work()
}

/// Reports whether a pass was ended since this thread began to watch: what llama.cpp says of it then is no failure.
pub fn has_ended() -> bool {
    ENDED.get()
}

/// Reports whether passes of this thread may have to end early.
pub fn is_possible() -> bool {
    WATCHED.get().is_some()
}

/// Reports whether the pass that this thread submits has to end. `memory`: somebody waits for memory that it uses.
pub fn is_wanted(memory: &MemoryWanted) -> bool {
    let wanted = WATCHED.get().is_some_and(|watched| {
        // SAFETY: `watching` is on this thread's stack below, and its caller keeps the flag alive.
        let stop = unsafe { &*watched.stop };
        stop.load(Ordering::Relaxed) || (watched.may_be_repeated && memory.is_wanted())
    });
    if wanted {
        ENDED.set(true);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_watches_is_stopped() {
        let (stop, memory) = (AtomicBool::new(true), MemoryWanted::default());
        let waiting = memory.wait();
        assert!(!is_wanted(&memory) && !is_possible());
        watching(&stop, false, || {
            assert!(is_wanted(&memory) && is_possible())
        });
        stop.store(false, Ordering::Relaxed);
        watching(&stop, false, || {
            assert!(!is_wanted(&memory));
            watching(&stop, true, || assert!(is_wanted(&memory)));
            assert!(!is_wanted(&memory), "the inner one is over");
        });
        assert!(!is_wanted(&memory));
        watching(&stop, false, || assert!(!has_ended()));
        watching(&stop, true, || assert!(is_wanted(&memory) && has_ended()));
        assert!(!has_ended(), "nothing is watched any more");
        // another waits as well, and has what it wants first
        drop(memory.wait());
        watching(&stop, true, || assert!(is_wanted(&memory)));
        drop(waiting);
        watching(&stop, true, || assert!(!is_wanted(&memory)));
    }
}
