//! How contexts are made that do not fit at first.
//!
//! Compute buffers are only known once a context has tried to reserve them; KV is placed before that. So a failed attempt teaches the
//! next one. An attempt belongs to the thread that makes a context, between `ubatch` and the context's first pass: what other
//! threads compute meanwhile neither ends it nor teaches it. Owned by [`super::planner::Planner`]; written by
//! [`super::super::answers::context`].

use crate::hook::refusal::Refusal;
use pipeshard_plan::plan::PlanError;
use std::collections::HashMap;
use std::thread::ThreadId;

/// The first try, one with the output head on the host, some with what they taught about compute buffers, one with llama.cpp's own
/// ubatch, and the smallest.
const TRIES: u32 = 7;

/// One context that is being made.
#[derive(Debug, Default, Clone)]
pub struct Attempt {
    /// llama.cpp's address of its model; 0 if only buffers of a context are made anew.
    model: usize,
    /// Schedulers that were made meanwhile.
    scheds: Vec<usize>,
    /// llama.cpp was told to try again, so that its next question is about the same context.
    again: bool,
    /// The output head stays on the host: its logits need no device memory then.
    output_on_host: bool,
    /// Compute buffers to expect, in bytes: those that a try wanted.
    expected_scratch: u64,
    /// The least that compute buffers are thought to become, in bytes, while no try has said it.
    pub estimated_scratch: u64,
    /// Not all of the KV cache fits even without compute buffers, so it is placed with that estimate in mind. Otherwise the first
    /// try finds out whether all of it may stay.
    pub kv_gives_way: bool,
    /// Tokens per ubatch that were decided for the first try, and hold for the next ones.
    pub ubatch: Option<u32>,
    /// Only llama.cpp's own ubatch, or the user's, is left to decide for.
    pub own_ubatch: bool,
    /// Compute buffers before a scheduler was freed whose context may be about to make another, in bytes.
    freed_scratch: u64,
    /// The smallest plan there is, with all KV on the host: what the smallest budget that works is named for.
    smallest: bool,
    tries: u32,
    wanted_scratch: u64,
    error: Option<Refusal>,
    /// Bytes of device memory that were missing where the error came from, where they are known.
    missing: Option<u64>,
}

/// Under which conditions contexts that live were made.
#[derive(Debug, Default, Clone, Copy)]
struct Kept {
    output_on_host: bool,
    smallest: bool,
}

/// What becomes of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// Nothing that pipeshard answers for failed.
    NotHere,
    /// Another try will go another way.
    Again,
    /// There is none left.
    ForGood {
        /// Why.
        error: Refusal,
        /// Bytes of device memory that the last try lacked, where that is why.
        missing: Option<u64>,
    },
}

/// All contexts that are being made.
#[derive(Debug, Default)]
pub struct Attempts {
    of_threads: HashMap<ThreadId, Attempt>,
    kept: Kept,
}

impl Attempt {
    /// Reports whether an earlier try of the same context failed.
    pub fn tried(&self) -> bool {
        self.tries > 0
    }

    /// The plan has the output head on the host: its logits are not reserved on the device then.
    pub fn keep_head_on_host(&mut self) {
        self.output_on_host = true;
    }

    /// Nothing is made, but a scheduler was freed.
    fn only_frees(&self) -> bool {
        self.model == 0 && self.tries == 0 && self.error.is_none()
    }

    fn learn(&mut self, may_learn: bool, output_is_on_host: bool) -> bool {
        self.tries += 1;
        let may_learn = may_learn && self.tries < TRIES;
        let knows_more = self.wanted_scratch > self.expected_scratch;
        // much more than was estimated for the layers is wanted for logits
        let wants_logits = self.wanted_scratch / 2 > self.estimated_scratch;
        if may_learn && !output_is_on_host && (wants_logits || !knows_more) {
            self.output_on_host = true;
        } else if may_learn && knows_more && self.tries + 2 < TRIES {
            self.expected_scratch = self.wanted_scratch;
            self.estimated_scratch = 0;
        } else if may_learn && self.ubatch.take().is_some() {
            self.own_ubatch = true;
            self.expected_scratch = 0;
            self.wanted_scratch = 0;
            self.estimated_scratch = 0;
        } else if may_learn && !self.smallest {
            self.smallest = true;
            self.expected_scratch = 0;
            self.estimated_scratch = 0;
        } else {
            return false;
        }
        self.again = true;
        true
    }
}

fn this_thread() -> ThreadId {
    std::thread::current().id()
}

impl Attempts {
    /// The calling thread is about to make a context of `model`, for the first time or again.
    pub fn begin(&mut self, model: usize) {
        let attempt = self.of_threads.entry(this_thread()).or_default();
        if std::mem::take(&mut attempt.again) && attempt.model == model {
            return;
        }
        let before = std::mem::take(attempt);
        attempt.model = model;
        attempt.freed_scratch = before.freed_scratch;
        // whatever it was, it worked
        self.keep(&before);
    }

    /// What the calling thread makes; nothing of it is known if it makes nothing.
    pub fn current(&self) -> Attempt {
        let attempt = self.of_threads.get(&this_thread());
        attempt.cloned().unwrap_or_default()
    }

    /// Reports whether the calling thread makes a context, or has not used it yet.
    pub fn makes_here(&self) -> bool {
        let attempt = self.of_threads.get(&this_thread());
        attempt.is_some_and(|attempt| !attempt.only_frees())
    }

    /// The same, to note in.
    pub fn current_mut(&mut self) -> &mut Attempt {
        self.of_threads.entry(this_thread()).or_default()
    }

    /// Why what the calling thread makes fails.
    pub fn fail(&mut self, why: Refusal) {
        let attempt = self.current_mut();
        attempt.error = Some(why);
        attempt.missing = None;
    }

    /// Why what the calling thread does last failed.
    pub fn error_here(&self) -> Option<&Refusal> {
        self.of_threads.get(&this_thread())?.error.as_ref()
    }

    /// Compute buffers of so many bytes, those of others included, have no room.
    pub fn fail_for_scratch(&mut self, wanted: u64, why: &PlanError) {
        let attempt = self.current_mut();
        attempt.wanted_scratch = wanted;
        attempt.missing = match why {
            PlanError::BudgetTooSmall {
                budget, minimum, ..
            } => minimum.checked_sub(*budget),
            _ => None,
        };
        attempt.error = Some(why.into());
    }

    /// The calling thread has made a scheduler.
    pub fn sched_made(&mut self, sched: usize) {
        if let Some(attempt) = self.of_threads.get_mut(&this_thread()) {
            attempt.scheds.push(sched);
        }
    }

    /// The calling thread has freed a scheduler. As a rule its context makes another at once (an adapter was set), with the KV cache
    /// that it has: so the next plan expects the same compute buffers, or it would give the room to residents, and another choice
    /// of residents wants other buffers. `before`: those of all schedulers before this one went.
    pub fn sched_gone(&mut self, sched: usize, before: u64) {
        let thread = this_thread();
        self.of_threads.retain(|maker, attempt| {
            let made = attempt.scheds.len();
            attempt.scheds.retain(|&made| made != sched);
            // the maker itself may be on its way to another try; who else frees a context's last scheduler has no use for it
            let over = attempt.scheds.is_empty() && attempt.scheds.len() < made;
            *maker == thread || !over
        });
        let attempt = self.current_mut();
        attempt.freed_scratch = attempt.freed_scratch.max(before);
    }

    /// The calling thread has freed KV, after its context's scheduler: that one will not come again.
    pub fn kv_gone(&mut self) {
        if let Some(attempt) = self.of_threads.get_mut(&this_thread()) {
            attempt.freed_scratch = 0;
        }
    }

    /// A pass of `sched` was submitted by the calling thread: the context works, whichever thread made it.
    pub fn succeeded(&mut self, sched: usize) {
        if self.of_threads.is_empty() {
            return;
        }
        let thread = this_thread();
        let mut kept = self.kept;
        self.of_threads.retain(|maker, attempt| {
            let its_own = *maker == thread || attempt.scheds.contains(&sched);
            let over = its_own || attempt.only_frees();
            if over {
                kept = kept.and(attempt);
            }
            !over
        });
        self.kept = kept;
    }

    /// Making a context failed, or it has no room for the graphs that it wants to run from now on. `may_learn`: another try can go
    /// another way; `in_use`: other graphs have run.
    pub fn failed(&mut self, may_learn: bool, in_use: bool) -> Failed {
        let output_is_on_host = self.output_on_host();
        let Some(attempt) = self.of_threads.get_mut(&this_thread()) else {
            return Failed::NotHere;
        };
        let Some(error) = attempt.error.take() else {
            return Failed::NotHere;
        };
        if attempt.learn(may_learn, output_is_on_host) {
            return Failed::Again;
        }
        let (freed_scratch, missing) = (attempt.freed_scratch, attempt.missing);
        self.of_threads.remove(&this_thread());
        self.kept = Kept::default();
        if in_use {
            // a context that has computed goes on as before, with the KV cache that was placed under these conditions
            self.kept.output_on_host = output_is_on_host;
            self.current_mut().freed_scratch = freed_scratch;
        }
        Failed::ForGood { error, missing }
    }

    /// No context is left, and none is being made: the next one is made as if it were the first.
    pub fn contexts_gone(&mut self) {
        self.of_threads.clear();
        self.kept = Kept::default();
    }

    /// A model is gone, and so are its contexts.
    pub fn forget_model(&mut self, model: usize) {
        self.of_threads
            .retain(|_, attempt| attempt.model != model && attempt.model != 0);
        self.kept = Kept::default();
    }

    fn keep(&mut self, attempt: &Attempt) {
        self.kept = self.kept.and(attempt);
    }

    fn any(&self, of: impl Fn(&Attempt) -> bool) -> bool {
        self.of_threads.values().any(of)
    }

    fn most(&self, of: impl Fn(&Attempt) -> u64) -> u64 {
        self.of_threads.values().map(of).max().unwrap_or(0)
    }

    /// Reports whether plans keep the output head on the host: while one context is made like that, and for those that were.
    pub fn output_on_host(&self) -> bool {
        self.kept.output_on_host || self.any(|attempt| attempt.output_on_host)
    }

    /// Reports whether plans are the smallest there are.
    pub fn smallest(&self) -> bool {
        self.kept.smallest || self.any(|attempt| attempt.smallest)
    }

    /// The least room for compute buffers in every plan, in bytes, so that a context that is being made finds its room.
    pub fn expected_scratch(&self) -> u64 {
        self.most(|attempt| attempt.expected_scratch.max(attempt.freed_scratch))
    }
}

impl Kept {
    fn and(self, attempt: &Attempt) -> Kept {
        Kept {
            output_on_host: self.output_on_host || attempt.output_on_host,
            smallest: self.smallest || attempt.smallest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_room() -> PlanError {
        PlanError::BudgetTooSmall {
            budget: 10,
            minimum: 13,
            contributors: Vec::new(),
        }
    }

    const MODEL: usize = 1;

    /// A context whose layers' buffers are thought to need 300 bytes at least, with the ubatch that was chosen.
    fn estimated() -> Attempts {
        let mut attempts = Attempts::default();
        attempts.begin(MODEL);
        attempts.current_mut().estimated_scratch = 300;
        attempts.current_mut().ubatch = Some(2048);
        attempts
    }

    fn fails(attempts: &mut Attempts, wanted: u64) -> bool {
        attempts.fail_for_scratch(wanted, &no_room());
        let again = attempts.failed(true, false) == Failed::Again;
        if again {
            attempts.begin(MODEL);
        }
        again
    }

    #[test]
    fn a_further_try_gives_up_one_thing_after_the_other() {
        let mut attempts = estimated();
        assert!(fails(&mut attempts, 370));
        let now = (attempts.expected_scratch(), attempts.output_on_host());
        assert_eq!(now, (370, false));
        assert!(fails(&mut attempts, 380));
        assert!(attempts.output_on_host());
        assert!(fails(&mut attempts, 390));
        assert_eq!(attempts.expected_scratch(), 390);
        // nothing new was learned: the ubatch goes, and what was learned about it
        assert!(!attempts.current().own_ubatch);
        assert!(fails(&mut attempts, 390));
        assert!(attempts.current().own_ubatch && !attempts.smallest());
        assert_eq!(attempts.expected_scratch(), 0);
        assert!(fails(&mut attempts, 200));
        assert!(attempts.smallest());
        // the end: the next context starts afresh
        assert!(!fails(&mut attempts, 200));
        assert!(!attempts.current().tried() && !attempts.smallest());
    }

    #[test]
    fn logits_go_before_anything_is_learned_from_them() {
        let mut attempts = estimated();
        assert!(fails(&mut attempts, 1000));
        let now = (attempts.expected_scratch(), attempts.output_on_host());
        assert_eq!(now, (0, true));
    }

    #[test]
    fn a_context_that_works_leaves_nothing_behind() {
        let mut attempts = estimated();
        fails(&mut attempts, 370);
        attempts.succeeded(7);
        let attempt = attempts.current();
        assert_eq!(
            (attempt.estimated_scratch, attempts.expected_scratch()),
            (0, 0)
        );
        assert!(!attempt.tried() && attempt.ubatch.is_none());
    }

    /// What another thread does meanwhile.
    fn elsewhere<T: Send>(
        attempts: &mut Attempts,
        work: impl FnOnce(&mut Attempts) -> T + Send,
    ) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || work(attempts));
            thread.join().expect("it only notes")
        })
    }

    #[test]
    fn a_pass_beside_it_does_not_end_an_attempt() {
        let mut attempts = estimated();
        attempts.sched_made(1);
        attempts.fail_for_scratch(370, &no_room());
        // another thread's pass ends before llama.cpp asks whether to try again, and one after that
        elsewhere(&mut attempts, |attempts| attempts.succeeded(2));
        assert_eq!(attempts.failed(true, true), Failed::Again);
        elsewhere(&mut attempts, |attempts| attempts.succeeded(2));
        attempts.begin(MODEL);
        assert!(attempts.current().tried());
        assert_eq!(attempts.expected_scratch(), 370);
    }

    #[test]
    fn only_its_own_thread_makes_a_context() {
        let mut attempts = estimated();
        assert!(attempts.makes_here());
        elsewhere(&mut attempts, |attempts| {
            assert!(!attempts.makes_here());
            attempts.sched_gone(9, 100);
            assert!(!attempts.makes_here());
        });
    }

    #[test]
    fn another_threads_failure_is_not_this_ones() {
        let mut attempts = estimated();
        elsewhere(&mut attempts, |attempts| {
            attempts.fail("no room for an image".into())
        });
        assert_eq!(attempts.failed(true, false), Failed::NotHere);
    }

    #[test]
    fn an_attempt_ends_with_the_first_pass_of_its_context_on_whichever_thread() {
        let mut attempts = estimated();
        assert!(fails(&mut attempts, 1000));
        attempts.sched_made(1);
        elsewhere(&mut attempts, |attempts| attempts.succeeded(1));
        assert!(!attempts.current().tried());
        // the context that lives was made under this condition
        assert!(attempts.output_on_host());
    }

    #[test]
    fn the_next_context_does_not_inherit_what_a_retry_left() {
        let mut attempts = estimated();
        assert!(fails(&mut attempts, 370));
        // it worked then, and before it computes anything another one is made
        attempts.begin(MODEL);
        let next = attempts.current();
        assert!(!next.tried() && next.ubatch.is_none());
        assert_eq!(attempts.expected_scratch(), 0);
    }

    #[test]
    fn a_model_takes_its_attempts_along() {
        let mut attempts = estimated();
        assert!(fails(&mut attempts, 370));
        elsewhere(&mut attempts, |attempts| {
            attempts.begin(MODEL + 1);
            attempts.fail_for_scratch(500, &no_room());
            attempts.failed(true, false)
        });
        attempts.forget_model(MODEL);
        assert!(!attempts.current().tried());
        assert_eq!(attempts.of_threads.len(), 1);
    }
}
