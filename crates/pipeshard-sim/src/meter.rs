//! Counts what the simulated device does along with its virtual clocks, and keeps their timeline.

use std::collections::VecDeque;

use super::clock::{transfer_ns, Clocks, Direction, Span};
use super::counters::{EntryKind, SimCounters, TimelineEntry};
use super::spec::SimSpec;

/// Timeline entries that are kept; the oldest make room.
const TIMELINE_LEN: usize = 1 << 16;

/// The driver takes pageable copies up to this size into its own buffers without making the host wait.
pub(super) const STAGED_AT_ONCE: u64 = 64 << 10;

/// What a graph costs, as counted from its nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GraphCost {
    pub kernels: u64,
    pub bytes: u64,
    pub duration_ns: u64,
}

/// The clocks and everything that is counted along with them. Kept behind one lock, so that they agree.
#[derive(Debug)]
pub(super) struct Meter {
    clocks: Clocks,
    counters: SimCounters,
    timeline: VecDeque<TimelineEntry>,
    /// Asynchronous copies since the device was made.
    copies_ever: u64,
    window_start: u64,
    /// Per stream, when the first thing that it was given since its mark begins.
    begun_since_mark: Vec<Option<u64>>,
}

impl Meter {
    pub fn new() -> Self {
        Self {
            clocks: Clocks::default(),
            counters: SimCounters::default(),
            timeline: VecDeque::new(),
            copies_ever: 0,
            window_start: 0,
            begun_since_mark: Vec::new(),
        }
    }

    pub fn add_stream(&mut self) -> usize {
        self.begun_since_mark.push(None);
        self.clocks.add_stream()
    }

    /// Counts an async copy; whether it is the one that shall fail.
    pub fn next_copy_fails(&mut self, spec: &SimSpec) -> bool {
        self.counters.copies += 1;
        self.copies_ever += 1;
        spec.fail_copy == Some(self.copies_ever)
    }

    /// An async copy over the link.
    pub fn link_copy(&mut self, spec: &SimSpec, copy: &LinkCopy, stream: usize) {
        let span = self
            .clocks
            .copy(stream, copy.direction, copy.duration(spec));
        self.note_link(copy, span, Some(stream));
        let held = match copy.direction {
            Direction::Up => copy.bytes > STAGED_AT_ONCE,
            Direction::Down => true,
        };
        if !copy.pinned && held {
            self.counters.pageable_waits += 1;
            self.host_waits(span.end, copy.label);
        }
    }

    /// A copy through a buffer, for which the host waits.
    pub fn sync_link_copy(&mut self, spec: &SimSpec, copy: &LinkCopy) {
        self.counters.sync_copies += 1;
        let before = self.clocks.host();
        let span = self.clocks.host_copy(copy.direction, copy.duration(spec));
        self.counters.host_wait_ns += span.end - before;
        self.note_link(copy, span, None);
    }

    /// A copy within the device: read once, written once. Without a stream, the host waits for it.
    pub fn device_copy(&mut self, spec: &SimSpec, stream: Option<usize>, bytes: u64, label: &str) {
        let duration = transfer_ns(bytes.saturating_mul(2), spec.membw);
        let span = match stream {
            Some(stream) => self.clocks.work(stream, duration),
            None => {
                self.counters.sync_copies += 1;
                self.counters.host_wait_ns += duration;
                let start = self.clocks.host();
                self.clocks.advance_host(duration);
                let end = self.clocks.host();
                Span { start, end }
            }
        };
        self.counters.bytes_d2d += bytes;
        self.counters.gpu_busy_ns += span.duration();
        self.note(stream, EntryKind::D2d, span, bytes, label);
    }

    pub fn graph(&mut self, stream: usize, cost: GraphCost, label: &str) {
        let span = self.clocks.work(stream, cost.duration_ns);
        self.counters.graphs += 1;
        self.counters.kernels += cost.kernels;
        self.counters.gpu_busy_ns += span.duration();
        self.note(Some(stream), EntryKind::Graph, span, cost.bytes, label);
    }

    /// The moment that an event stands for.
    pub fn record_event(&mut self, stream: usize) -> u64 {
        self.counters.events_recorded += 1;
        self.clocks.record(stream)
    }

    /// A stream waits for an event; `moment` is nothing if it was never recorded.
    pub fn wait_event(&mut self, stream: usize, moment: Option<u64>) {
        match moment {
            Some(moment) => {
                self.counters.events_waited += 1;
                self.clocks.wait(stream, moment);
            }
            None => self.counters.events_never_recorded += 1,
        }
    }

    /// One stream goes on where another will be; no event of anyone's is counted.
    pub fn join(&mut self, waiting: usize, awaited: usize) {
        let moment = self.clocks.record(awaited);
        self.clocks.wait(waiting, moment);
    }

    /// The host waits for a stream.
    pub fn sync_stream(&mut self, stream: usize, why: &str) {
        self.sync_until(self.clocks.stream(stream), why);
    }

    /// The host waits for a moment.
    pub fn sync_until(&mut self, moment: u64, why: &str) {
        if moment > self.clocks.host() {
            self.counters.host_syncs += 1;
            self.host_waits(moment, why);
        } else {
            self.counters.host_syncs_idle += 1;
        }
    }

    /// The host waits for everything, as it does when memory is freed. Counted if there was something to wait for.
    pub fn sync_all(&mut self, why: &str) {
        let end = self.clocks.end();
        if end > self.clocks.host() {
            self.sync_until(end, why);
        }
    }

    pub fn advance_host(&mut self, ns: u64) {
        let start = self.clocks.host();
        self.clocks.advance_host(ns);
        let span = Span {
            start,
            end: self.clocks.host(),
        };
        self.note(None, EntryKind::HostWork, span, 0, "");
    }

    pub fn reset(&mut self) {
        self.counters = SimCounters::default();
        self.timeline.clear();
        self.window_start = self.clocks.end();
    }

    pub fn counters(&self) -> SimCounters {
        let host_clock_ns = self.clocks.host();
        let elapsed_ns = self.clocks.end().saturating_sub(self.window_start);
        SimCounters {
            host_clock_ns,
            elapsed_ns,
            ..self.counters.clone()
        }
    }

    pub fn host_clock(&self) -> u64 {
        self.clocks.host()
    }

    /// Forgets what a stream was given so far, for [`Self::since_mark`].
    pub fn mark(&mut self, stream: usize) {
        self.begun_since_mark[stream] = None;
    }

    /// From the begin of the first to the end of the last thing that a stream was given since its mark.
    pub fn since_mark(&self, stream: usize) -> Span {
        match self.begun_since_mark[stream] {
            Some(start) => Span {
                start,
                end: self.clocks.stream(stream),
            },
            None => {
                let now = self.clocks.record(stream);
                Span {
                    start: now,
                    end: now,
                }
            }
        }
    }

    pub fn timeline(&self) -> Vec<TimelineEntry> {
        self.timeline.iter().cloned().collect()
    }

    fn host_waits(&mut self, moment: u64, why: &str) {
        let start = self.clocks.host();
        let waited = self.clocks.host_until(moment);
        self.counters.host_wait_ns += waited;
        let end = start + waited;
        self.note(None, EntryKind::HostWait, Span { start, end }, 0, why);
    }

    fn note_link(&mut self, copy: &LinkCopy, span: Span, stream: Option<usize>) {
        let c = &mut self.counters;
        let (kind, total, part, busy) = match (copy.direction, copy.pinned) {
            (Direction::Up, true) => (
                EntryKind::H2d,
                &mut c.bytes_h2d,
                &mut c.bytes_h2d_pinned,
                &mut c.link_busy_h2d_ns,
            ),
            (Direction::Up, false) => (
                EntryKind::H2d,
                &mut c.bytes_h2d,
                &mut c.bytes_h2d_pageable,
                &mut c.link_busy_h2d_ns,
            ),
            (Direction::Down, true) => (
                EntryKind::D2h,
                &mut c.bytes_d2h,
                &mut c.bytes_d2h_pinned,
                &mut c.link_busy_d2h_ns,
            ),
            (Direction::Down, false) => (
                EntryKind::D2h,
                &mut c.bytes_d2h,
                &mut c.bytes_d2h_pageable,
                &mut c.link_busy_d2h_ns,
            ),
        };
        *total += copy.bytes;
        *part += copy.bytes;
        *busy += span.duration();
        c.link_busy_ns += span.duration();
        self.note(stream, kind, span, copy.bytes, copy.label);
    }

    fn note(
        &mut self,
        stream: Option<usize>,
        kind: EntryKind,
        span: Span,
        bytes: u64,
        label: &str,
    ) {
        if let Some(stream) = stream {
            self.begun_since_mark[stream].get_or_insert(span.start);
        }
        if self.timeline.len() == TIMELINE_LEN {
            self.timeline.pop_front();
            self.counters.timeline_dropped += 1;
        }
        self.timeline.push_back(TimelineEntry {
            stream,
            kind,
            start_ns: span.start,
            end_ns: span.end,
            bytes,
            label: label.to_owned(),
        });
    }
}

/// A copy over the link.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkCopy<'a> {
    pub direction: Direction,
    pub bytes: u64,
    pub pinned: bool,
    pub label: &'a str,
}

impl LinkCopy<'_> {
    fn duration(&self, spec: &SimSpec) -> u64 {
        let rate = if self.pinned {
            spec.pcie
        } else {
            spec.pageable
        };
        transfer_ns(self.bytes, rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(bytes: u64, pinned: bool) -> LinkCopy<'static> {
        LinkCopy {
            direction: Direction::Up,
            bytes,
            pinned,
            label: "weight",
        }
    }

    fn spec() -> SimSpec {
        SimSpec::parse("vram=1M,pcie=1G,pageable=0.5G,membw=2G").expect("a valid specification")
    }

    #[test]
    fn page_locked_copies_leave_the_host_alone() {
        let (spec, mut meter) = (spec(), Meter::new());
        let stream = meter.add_stream();
        meter.link_copy(&spec, &up(100_000, true), stream);
        assert_eq!(meter.counters().host_clock_ns, 0);
        meter.link_copy(&spec, &up(1_000, false), stream);
        assert_eq!(meter.counters().pageable_waits, 0);
        meter.link_copy(&spec, &up(100_000, false), stream);
        let counters = meter.counters();
        assert_eq!(counters.host_clock_ns, 100_000 + 2_000 + 200_000);
        assert_eq!(counters.pageable_waits, 1);
        assert_eq!(counters.host_syncs, 0);
        assert_eq!(
            (counters.bytes_h2d, counters.bytes_h2d_pinned),
            (201_000, 100_000)
        );
        assert_eq!(counters.link_busy_ns, 302_000);
        assert_eq!(counters.elapsed_ns, 302_000);
    }

    #[test]
    fn waits_that_find_nothing_pending_are_counted_apart() {
        let mut meter = Meter::new();
        let stream = meter.add_stream();
        let cost = GraphCost {
            kernels: 3,
            bytes: 5,
            duration_ns: 700,
        };
        meter.graph(stream, cost, "logits");
        meter.sync_stream(stream, "synchronize");
        meter.sync_stream(stream, "synchronize");
        meter.sync_all("free");
        let counters = meter.counters();
        assert_eq!((counters.host_syncs, counters.host_syncs_idle), (1, 1));
        assert_eq!(counters.host_wait_ns, 700);
        let kinds: Vec<EntryKind> = meter.timeline().iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [EntryKind::Graph, EntryKind::HostWait]);
    }

    #[test]
    fn a_mark_finds_what_came_after_it() {
        let (spec, mut meter) = (spec(), Meter::new());
        let (lane, other) = (meter.add_stream(), meter.add_stream());
        meter.link_copy(&spec, &up(100, true), lane);
        meter.mark(lane);
        assert_eq!(
            meter.since_mark(lane),
            Span {
                start: 100,
                end: 100
            }
        );
        // the link is taken by another stream first
        meter.link_copy(&spec, &up(50, true), other);
        meter.link_copy(&spec, &up(10, true), lane);
        meter.link_copy(&spec, &up(20, true), lane);
        assert_eq!(
            meter.since_mark(lane),
            Span {
                start: 150,
                end: 180
            }
        );
    }

    #[test]
    fn a_reset_begins_a_new_window_but_no_new_time() {
        let (spec, mut meter) = (spec(), Meter::new());
        let stream = meter.add_stream();
        meter.device_copy(&spec, Some(stream), 1_000, "kv");
        meter.reset();
        assert_eq!(meter.counters().elapsed_ns, 0);
        assert!(meter.timeline().is_empty());
        meter.sync_link_copy(&spec, &up(10, true));
        let counters = meter.counters();
        assert_eq!((counters.copies, counters.sync_copies), (0, 1));
        assert_eq!(counters.bytes_d2d, 0);
        meter.device_copy(&spec, Some(stream), 500, "kv");
        assert_eq!(meter.counters().elapsed_ns, 500);
    }

    #[test]
    fn the_copy_that_shall_fail_is_counted_over_resets() {
        let spec = SimSpec::parse("vram=1M,failcopy=2").expect("a valid specification");
        let mut meter = Meter::new();
        assert!(!meter.next_copy_fails(&spec));
        meter.reset();
        assert!(meter.next_copy_fails(&spec));
        assert!(!meter.next_copy_fails(&spec));
    }

    #[test]
    fn the_timeline_is_bounded_and_says_what_it_dropped() {
        let mut meter = Meter::new();
        for _ in 0..TIMELINE_LEN + 3 {
            meter.advance_host(1);
        }
        assert_eq!(meter.timeline().len(), TIMELINE_LEN);
        assert_eq!(meter.counters().timeline_dropped, 3);
        assert_eq!(meter.timeline()[0].start_ns, 3);
    }

    #[test]
    fn counters_are_plain_json() {
        let json = serde_json::to_value(SimCounters::default()).expect("plain numbers");
        assert_eq!(json["host_syncs"], 0);
        let entry = serde_json::to_value(EntryKind::HostWait).expect("a name");
        assert_eq!(entry, "host_wait");
    }
}
