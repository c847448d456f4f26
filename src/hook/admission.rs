//! Who may take how much device memory: KV, compute buffers, and what happens when it does not fit.

use super::log;
use super::runtime::Runtime;
use pipeshard_plan::plan::{plan, KvPlacement};

/// How a context that did not fit is tried again. Compute buffers are only known once a context has tried to reserve them;
/// KV is placed before that. So a failed try teaches the next one.
#[derive(Debug, Default, Clone)]
pub struct Retry {
    /// The output head stays on the host: its logits need no device memory then.
    pub output_on_host: bool,
    /// Compute buffers to expect, in bytes: those that a try wanted.
    pub expected_scratch: u64,
    /// The least that compute buffers are thought to become, in bytes, while no try has said it.
    pub estimated_scratch: u64,
    /// Not all cells fit even without compute buffers, so they are placed with that estimate in mind. Else the first try finds
    /// out whether all cells may stay.
    pub cells_give_way: bool,
    /// Tokens per ubatch that were decided for the first try, and hold for the next ones.
    pub ubatch: Option<u32>,
    /// Only llama.cpp's own ubatch, or the user's, is left to decide for.
    pub own_ubatch: bool,
    /// Compute buffers before a scheduler was freed whose context may be about to make another, in bytes.
    pub freed_scratch: u64,
    /// The smallest plan there is, with all KV on the host: what the smallest budget that works is named for.
    pub smallest: bool,
    tries: u32,
    wanted_scratch: u64,
    error: Option<String>,
}

/// The context that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct ContextSize {
    /// Tokens in all.
    pub context: u32,
    /// Tokens that are handed over at a time.
    pub batch: u32,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// Experts that a token uses; 0 for a dense model.
    pub experts_used: u32,
    /// Sequences that share it.
    pub sequences: u32,
    /// Threads of the CPU.
    pub threads: u32,
    /// ggml's number of the type of the keys.
    pub type_k: u32,
    /// ggml's number of the type of the values.
    pub type_v: u32,
}

/// The first try, one with the output head on the host, some with what they taught about compute buffers, one with llama.cpp's own
/// ubatch, and the smallest.
const TRIES: u32 = 7;

impl Retry {
    /// Why the current try fails.
    pub fn fail(&mut self, why: String) {
        self.error = Some(why);
    }

    /// Whether an earlier try of the same context failed.
    pub fn tried(&self) -> bool {
        self.tries > 0
    }

    /// The context works: the next one starts afresh.
    pub fn succeeded(&mut self) {
        *self = Retry {
            output_on_host: self.output_on_host,
            smallest: self.smallest,
            ..Retry::default()
        };
    }
}

impl Runtime {
    /// Where this layer's KV goes: on the device as long as all that must be there fits beside it.
    pub fn kv_on_host(&mut self, model: usize, owner: usize, layer: u32, bytes: u64) -> bool {
        if !self.models.iter().any(|m| m.key == model) {
            return false;
        }
        let mut input = self.plan_input(0);
        if self.retry.cells_give_way {
            // the buffers come after the cells, which cannot make room for them any more
            input.scratch = input.scratch.max(self.retry.estimated_scratch);
        }
        let mut placement = KvPlacement {
            layer,
            device: true,
            bytes,
        };
        if let Some(kv) = &mut input.kv_fixed {
            kv.push(placement);
        }
        placement.device = match self.saved_kv_on_host(layer, bytes) {
            Some(on_host) => !on_host,
            None => {
                let wanted = self.retry.tried() || !self.decisions.kv_on_host.contains(&layer);
                wanted && !self.retry.smallest && plan(&input).is_ok()
            }
        };
        // what stays where it is need not be copied again; the next plan takes it over or frees it
        let taken = if placement.device { bytes } else { 0 };
        let held = (self.ledger.now().total() + taken).next_multiple_of(self.granularity());
        if held > self.budget {
            self.release_arena();
        }
        self.ledger.add_kv(owner, model, placement);
        self.replan();
        !placement.device
    }

    /// A scheduler was freed. As a rule its context makes another at once (an adapter was set), with the KV cache that it has:
    /// so the next plan expects the same compute buffers, or it would give the room to residents, and another choice of
    /// residents wants other buffers.
    pub fn sched_gone(&mut self, sched: usize) {
        let freed = self.ledger.scratch_of(sched);
        self.ledger.remove_scratch(sched);
        let expected = self.ledger.scratch() + freed;
        self.retry.freed_scratch = self.retry.freed_scratch.max(expected);
        self.replan();
    }

    /// The KV of `owner` was freed, after its context's scheduler: that one will not come again.
    pub fn kv_gone(&mut self, owner: usize) {
        self.retry.freed_scratch = 0;
        if self.ledger.has_kv(owner) {
            self.ledger.remove_kv(owner);
            self.replan();
        }
    }

    /// Compute buffers of a scheduler are about to become `bytes` on the device. Makes room, or says no.
    pub fn scratch_wanted(&mut self, sched: usize, bytes: u64, measuring: bool) -> bool {
        if let Some(why) = self.saved_plan_refusal() {
            self.retry.fail(why);
            return false;
        }
        let bytes = bytes.next_multiple_of(self.granularity());
        let before = self.ledger.scratch_of(sched);
        if bytes <= before {
            return true;
        }
        if !measuring {
            self.outcome.reallocations += 1;
        }
        let made = match self.make_plan(bytes - before) {
            Ok(made) => made,
            Err(error) => {
                self.retry.wanted_scratch = self.ledger.scratch() - before + bytes;
                self.retry.fail(error.to_string());
                self.replan();
                return false;
            }
        };
        let room = self.ledger.now().total() - before + bytes <= self.budget;
        if !room && !measuring {
            // The graph that wants them already refers to the arena. The scheduler divides it once more, and the arena makes
            // room for the larger buffers before that.
            self.ledger.expect_scratch(sched, bytes);
            self.replan();
            self.void_graphs();
            return false;
        }
        if !room {
            self.release_arena();
            // the graph is only measured, and refers to tensors that have lost their places
            self.place_for_measuring();
        }
        self.ledger.set_scratch(sched, bytes);
        self.plan = Some(made);
        true
    }

    /// A context could not be made, or has no room for the graphs that it wants to run from now on. True: try again, the answers will differ.
    pub fn context_failed(&mut self) -> bool {
        let Some(error) = self.retry.error.take() else {
            return false;
        };
        let in_use = self.outcome.total_passes() > 0;
        self.retry.tries += 1;
        // a saved plan says where everything goes: another try would go the same way
        let may_learn = self.retry.tries < TRIES && self.config.plan.is_none();
        let knows_more = self.retry.wanted_scratch > self.retry.expected_scratch;
        // much more than was estimated for the layers is wanted for logits
        let wants_logits = self.retry.wanted_scratch / 2 > self.retry.estimated_scratch;
        if may_learn && !self.retry.output_on_host && (wants_logits || !knows_more) {
            self.retry.output_on_host = true;
        } else if may_learn && knows_more && self.retry.tries + 2 < TRIES {
            self.retry.expected_scratch = self.retry.wanted_scratch;
            self.retry.estimated_scratch = 0;
        } else if may_learn && self.retry.ubatch.take().is_some() {
            self.retry.own_ubatch = true;
            self.retry.expected_scratch = 0;
            self.retry.wanted_scratch = 0;
            self.retry.estimated_scratch = 0;
        } else if may_learn && !self.retry.smallest {
            self.retry.smallest = true;
            self.retry.expected_scratch = 0;
            self.retry.estimated_scratch = 0;
        } else {
            log::error(&error);
            if in_use {
                // whoever computed goes on as before, with the KV cache that was placed under these conditions
                self.retry = Retry {
                    output_on_host: self.retry.output_on_host,
                    freed_scratch: self.retry.freed_scratch,
                    ..Retry::default()
                };
                self.outcome.errors.push(error);
            } else {
                self.retry = Retry::default();
                self.outcome.off(&error);
            }
            return false;
        }
        if !in_use {
            self.ledger.forget_class_peaks();
        }
        log::info("the context did not fit as planned; planning it again with what is known now");
        self.replan();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::config::Config;

    /// A context whose layers' buffers are thought to need 300 bytes at least, with the ubatch that was chosen.
    fn estimated() -> Runtime {
        let mut runtime = Runtime::new(Config::default());
        runtime.retry.estimated_scratch = 300;
        runtime.retry.ubatch = Some(2048);
        runtime
    }

    fn fails(runtime: &mut Runtime, wanted: u64) -> bool {
        runtime.retry.wanted_scratch = wanted;
        runtime.retry.fail("no room".to_owned());
        runtime.context_failed()
    }

    #[test]
    fn a_further_try_gives_up_one_thing_after_the_other() {
        let mut runtime = estimated();
        assert!(fails(&mut runtime, 370));
        let retry = &runtime.retry;
        assert_eq!((retry.expected_scratch, retry.output_on_host), (370, false));
        assert!(fails(&mut runtime, 380));
        assert!(runtime.retry.output_on_host);
        assert!(fails(&mut runtime, 390));
        assert_eq!(runtime.retry.expected_scratch, 390);
        // nothing new was learned: the ubatch goes, and what was learned about it
        assert!(!runtime.retry.own_ubatch);
        assert!(fails(&mut runtime, 390));
        assert!(runtime.retry.own_ubatch && !runtime.retry.smallest);
        assert_eq!(runtime.retry.expected_scratch, 0);
        assert!(fails(&mut runtime, 200));
        assert!(runtime.retry.smallest);
        // the end: the next context starts afresh
        assert!(!fails(&mut runtime, 200));
        assert!(!runtime.retry.tried() && !runtime.retry.smallest);
    }

    #[test]
    fn logits_go_before_anything_is_learned_from_them() {
        let mut runtime = estimated();
        assert!(fails(&mut runtime, 1000));
        let retry = &runtime.retry;
        assert_eq!((retry.expected_scratch, retry.output_on_host), (0, true));
    }

    #[test]
    fn a_context_that_works_leaves_nothing_behind() {
        let mut runtime = estimated();
        fails(&mut runtime, 370);
        runtime.retry.succeeded();
        let retry = &runtime.retry;
        assert_eq!((retry.estimated_scratch, retry.expected_scratch), (0, 0));
        assert!(!retry.tried() && retry.ubatch.is_none());
    }
}
