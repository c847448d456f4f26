//! What happened, and when. Everybody tells it; nobody decides by it.

pub mod counters;
pub mod pass_clock;

use crate::hook::config::Config;
use crate::trace::record::WaitReason;
use crate::trace::Recorder;
use counters::Counters;
use pass_clock::PassClock;
use pipeshard_sys as ffi;

/// What happened.
#[derive(Default)]
pub struct Telemetry {
    /// How often.
    pub counters: Counters,
    /// How long passes took.
    pub clock: PassClock,
    /// When, if a trace was asked for.
    pub trace: Recorder,
}

impl Telemetry {
    /// Nothing happened yet.
    pub fn new(config: &Config) -> Self {
        let trace = match &config.trace {
            Some(_) => Recorder::on(config.trace_passes, config.debug.trace_events),
            None => Recorder::default(),
        };
        Telemetry {
            trace,
            ..Telemetry::default()
        }
    }

    /// The host is about to wait for the device.
    pub fn host_waits(&mut self, why: ffi::ggml_sched_host_wait) {
        self.counters.count_host_wait(why);
        self.trace.host_waits(match why {
            ffi::GGML_SCHED_WAIT_USER_INPUT => WaitReason::UserInput,
            _ => WaitReason::HandOver,
        });
    }
}
