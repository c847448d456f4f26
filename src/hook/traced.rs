//! The steps of a pass with what a trace and the calibration want to know around them. Without a trace each note is a test of
//! an empty option.

use super::pass::PassError;
use super::runtime::Runtime;
use crate::trace::record::{HostWork, WaitReason};
use crate::trace::Recorder;
use pipeshard_sys as ffi;

impl Runtime {
    /// [`Runtime::pass_begin`], noted.
    pub fn traced_pass_begin(&mut self, sched: usize) -> Result<(), PassError> {
        self.calibration_begins();
        let trace = self.trace.clone();
        let rows = self.scheds.get(&sched).map_or(0, |s| s.graph.rows);
        trace.pass_begins(rows);
        let since = trace.since();
        let result = self.pass_begin(sched);
        trace.worked(since, HostWork::PassBegin);
        result
    }

    /// [`Runtime::split_before`], noted.
    ///
    /// # Safety
    /// `backend` is a live backend.
    pub unsafe fn traced_split_before(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> Result<(), PassError> {
        if let Some(entry) = self.scheds.get(&sched) {
            self.calibration_split_begins(backend, entry.cpu_backend);
        }
        let trace = self.trace.clone();
        let since = trace.since();
        let result = self.split_before(sched, split, backend);
        trace.worked(since, HostWork::SplitBefore);
        trace.split_begins(sched, split, self.stream(&trace, backend));
        result
    }

    /// [`Runtime::split_after`], noted.
    ///
    /// # Safety
    /// `backend` is a live backend.
    pub unsafe fn traced_split_after(
        &mut self,
        sched: usize,
        split: usize,
        backend: ffi::ggml_backend_t,
    ) -> Result<(), PassError> {
        self.outcome.splits += 1;
        self.calibration_split_ends();
        let trace = self.trace.clone();
        trace.split_ends(self.stream(&trace, backend));
        let since = trace.since();
        let result = self.split_after(sched, split, backend);
        trace.worked(since, HostWork::SplitAfter);
        result
    }

    /// [`Runtime::pass_end`], noted.
    pub fn traced_pass_end(&mut self, sched: usize, result: ffi::ggml_status) {
        let trace = self.trace.clone();
        trace.pass_ends();
        let since = trace.since();
        self.pass_end(sched, result);
        trace.worked(since, HostWork::PassEnd);
    }

    /// The host is about to wait for the device.
    pub fn host_wait(&mut self, why: ffi::ggml_sched_host_wait) {
        self.outcome.count_host_wait(why);
        self.trace.host_waits(match why {
            ffi::GGML_SCHED_WAIT_USER_INPUT => WaitReason::UserInput,
            _ => WaitReason::HandOver,
        });
    }

    /// The backend, if a trace wants to know when it computes: if it is a stream of our device.
    unsafe fn stream(
        &self,
        trace: &Recorder,
        backend: ffi::ggml_backend_t,
    ) -> Option<ffi::ggml_backend_t> {
        (trace.is_on() && self.on_device(backend)).then_some(backend)
    }
}
