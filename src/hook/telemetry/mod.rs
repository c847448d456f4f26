//! What happened, and when. All parts write to it; none decides by it.

pub mod counters;
pub mod pass_clock;

use crate::hook::config::Config;
use crate::trace::record::WaitReason;
use crate::trace::Recorder;
use counters::Counters;
use pass_clock::PassClock;
use std::time::SystemTime;

/// What happened.
pub struct Telemetry {
    /// When the runtime was made.
    pub began: SystemTime,
    /// The report was published, and nothing was loaded since.
    pub published: bool,
    /// How often.
    pub counters: Counters,
    /// How long passes took.
    pub clock: PassClock,
    /// When, if a trace was asked for.
    pub trace: Recorder,
    /// The scheduler whose pass is timed: others, of models that are resident, may go on side by side with it.
    timed: Option<usize>,
    /// For their passes.
    no_trace: Recorder,
}

impl Telemetry {
    /// Nothing happened yet.
    pub fn new(config: &Config) -> Self {
        let trace = match &config.trace {
            Some(_) => Recorder::on(config.trace_passes, config.debug.trace_events),
            None => Recorder::default(),
        };
        Telemetry {
            began: SystemTime::now(),
            published: false,
            counters: Counters::default(),
            clock: PassClock::default(),
            trace,
            timed: None,
            no_trace: Recorder::default(),
        }
    }

    /// The host is about to wait for the device, in a pass of `sched`.
    pub fn host_waits(&mut self, sched: usize, why: WaitReason) {
        self.counters.count_host_wait(why);
        self.trace_of(sched).host_waits(why);
    }

    /// A pass of `sched` begins. It is timed unless another is; one that uses the `lanes` always is.
    pub fn pass_begins(&mut self, sched: usize, lanes: bool) {
        if lanes || self.timed.is_none() {
            self.timed = Some(sched);
        }
    }

    /// It has ended, or will not run.
    pub fn pass_over(&mut self, sched: usize) {
        if self.timed == Some(sched) {
            self.timed = None;
        }
    }

    /// Where the steps of a pass are noted.
    pub fn trace_of(&self, sched: usize) -> &Recorder {
        match self.timed == Some(sched) {
            true => &self.trace,
            false => &self.no_trace,
        }
    }

    /// What times the steps of a pass, if it is timed.
    pub fn clock_of(&mut self, sched: usize) -> Option<&mut PassClock> {
        (self.timed == Some(sched)).then_some(&mut self.clock)
    }
}
