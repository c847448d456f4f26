//! A timeline of the lanes: what each was doing when, and what the link was waiting for.
//!
//! While a run goes on, [`Recorder`] writes fixed-size records into memory that was allocated up front; switched off it is
//! an empty option that is tested per callback. At the end [`timeline`] makes slices on tracks of them, [`summary`] figures
//! for the report, [`chrome`] a file that Perfetto and Chrome show.

mod builder;
pub mod chrome;
pub mod clock;
pub mod record;
pub mod slice;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod timeline;

use crate::lanes::device::Device;
use clock::Clock;
use parking_lot::Mutex;
use pipeshard_sys as ffi;
use record::{
    DeviceLane, GroupName, HostWork, Log, Names, Record, Stamp, Stretch, WaitReason, What,
};
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
use timeline::Timeline;

/// Names of first nodes that are told apart.
const MOST_NODES: usize = 1 << 16;

/// What is known of a split of a scheduler's graph.
#[derive(Debug, Clone, Copy)]
struct SplitInfo {
    /// Its first node's name, in [`Names::nodes`].
    node: u32,
    nodes: u32,
}

/// The graph that a scheduler split last.
#[derive(Default)]
struct SchedInfo {
    splits: Vec<SplitInfo>,
    /// Its compute stream, once it has run a pass.
    lane: Option<u8>,
}

struct Tracing {
    clock: Clock,
    log: Log,
    names: Names,
    node_numbers: HashMap<Box<CStr>, u32>,
    scheds: HashMap<usize, SchedInfo>,
    /// Where the groups of the arena's present shape begin among the names.
    first_group: u32,
    /// The end of what was submitted last, a split or inputs: what the host waits for when it waits for the device.
    latest_point: Option<Stamp>,
    /// Where the split that is being submitted begins on the device.
    open_split: Option<Stamp>,
    /// Where the inputs that are being submitted begin, on the host and on the device.
    open_inputs: Option<(u64, Stamp)>,
    passes: u64,
    most_passes: usize,
}

/// Writes down what happens, if a trace was asked for. Copies of it write into the same trace.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Mutex<Tracing>>>);

// SAFETY: raw pointers in the clock (events) are those of `lanes::device`, which are `Send`; all else is behind the mutex.
unsafe impl Send for Tracing {}

/// When a call of the runtime began, in nanoseconds of the trace.
#[derive(Debug, Clone, Copy)]
pub struct Since(u64);

impl Recorder {
    /// A recorder that writes down what happens; its trace has the first and the last `most_passes` passes.
    /// `events_only`: virtual clocks are not looked at.
    pub fn on(most_passes: usize, events_only: bool) -> Self {
        Recorder(Some(Arc::new(Mutex::new(Tracing {
            clock: Clock::start(events_only),
            log: Log::default(),
            names: Names::default(),
            node_numbers: HashMap::new(),
            scheds: HashMap::new(),
            first_group: 0,
            latest_point: None,
            open_split: None,
            open_inputs: None,
            passes: 0,
            most_passes,
        }))))
    }

    /// Reports whether anything is written down.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn with<T: Default>(&self, note: impl FnOnce(&mut Tracing) -> T) -> T {
        match &self.0 {
            Some(tracing) => note(&mut tracing.lock()),
            None => T::default(),
        }
    }

    /// The device whose streams are the lanes.
    pub fn attach(&self, device: Device) {
        self.with(|t| t.clock.attach(device))
    }

    /// The host begins something; [`Self::worked`] ends it.
    pub fn since(&self) -> Since {
        Since(self.with(|t| t.clock.now()))
    }

    /// The host was busy with something.
    pub fn worked(&self, since: Since, work: HostWork) {
        self.with(|t| t.note(since.0, What::Work(work)))
    }

    /// Something was encoded since then: so many rows, for which so many bytes of weights were copied, with compute buffers of so many.
    pub fn encoded(&self, since: Since, rows: u64, weights: u64, scratch: u64) {
        let what = What::Encode {
            rows,
            weights,
            scratch,
        };
        self.with(|t| t.note(since.0, what))
    }

    /// llama.cpp begins the work for another pass.
    pub fn epoch_asked(&self) {
        self.with(|t| t.note_now(What::EpochAsked))
    }

    /// The arena has taken a shape with these groups.
    pub fn carved(&self, groups: impl Iterator<Item = GroupName>) {
        self.with(|t| {
            t.first_group = t.names.groups.len() as u32;
            t.names.groups.extend(groups);
        })
    }

    /// A split of `sched`'s graph was made, the first one first.
    ///
    /// # Safety
    /// `nodes` are valid.
    pub unsafe fn split_made(&self, sched: usize, split: i32, nodes: &[*mut ffi::ggml_tensor]) {
        self.with(|t| {
            let node = nodes.first().map_or(0, |&node| {
                t.number_of(CStr::from_ptr((*node).name.as_ptr()))
            });
            let splits = &mut t.scheds.entry(sched).or_default().splits;
            splits.truncate(usize::try_from(split).unwrap_or(0));
            splits.push(SplitInfo {
                node,
                nodes: nodes.len() as u32,
            });
        })
    }

    /// A scheduler is gone.
    pub fn sched_freed(&self, sched: usize) {
        self.with(|t| t.scheds.remove(&sched).map(|_| ()));
    }

    /// The first split of a graph is about to be submitted; its operations see at most `rows` rows.
    pub fn pass_begins(&self, rows: u32) {
        self.with(|t| {
            t.passes += 1;
            t.note_now(What::PassBegin { rows });
        })
    }

    /// The last split of a graph was submitted.
    pub fn pass_ends(&self) {
        self.with(|t| t.note_now(What::PassEnd))
    }

    /// An input of a split of `sched`'s is about to be submitted to `stream`.
    ///
    /// # Safety
    /// `stream` is a live backend of the attached device.
    pub unsafe fn inputs_begin(&self, sched: usize, stream: ffi::ggml_backend_t) {
        self.with(|t| {
            if t.open_inputs.is_none() {
                let lane = t.compute_lane(sched);
                t.open_inputs = Some((t.clock.now(), t.clock.begin(lane, stream)));
            }
        })
    }

    /// All inputs of a split were.
    ///
    /// # Safety
    /// As for [`Self::inputs_begin`].
    pub unsafe fn inputs_end(&self, stream: ffi::ggml_backend_t) {
        self.with(|t| {
            let Some((since, begin)) = t.open_inputs.take() else {
                return;
            };
            let on_link = t.clock.end(begin, stream);
            t.latest_point = Some(on_link.end);
            t.note(since, What::HandOver { on_link });
        })
    }

    /// All that a split waits for was submitted; `device`: the stream that computes it, if the CPU does not.
    ///
    /// # Safety
    /// `device` is a live backend of the attached device.
    pub unsafe fn split_begins(
        &self,
        sched: usize,
        split: usize,
        device: Option<ffi::ggml_backend_t>,
    ) {
        self.with(|t| {
            let ready = device.map(|stream| {
                let lane = t.compute_lane(sched);
                t.clock.begin(lane, stream)
            });
            t.open_split = ready;
            let info = t.scheds.get(&sched).and_then(|s| s.splits.get(split));
            let (node, nodes) = info.map_or((0, 0), |info| (info.node, info.nodes));
            let split = split as u32;
            t.note_now(What::SplitBegin { split, node, nodes });
        })
    }

    /// The split that began last was submitted to this device stream, or computed by the CPU.
    ///
    /// # Safety
    /// As for [`Self::split_begins`].
    pub unsafe fn split_ends(&self, device: Option<ffi::ggml_backend_t>) {
        self.with(|t| {
            let on_device = match (t.open_split.take(), device) {
                (Some(ready), Some(stream)) => Some(t.clock.end(ready, stream)),
                _ => None,
            };
            if let Some(stretch) = on_device {
                t.latest_point = Some(stretch.end);
            }
            t.note_now(What::SplitEnd { on_device });
        })
    }

    /// The host is about to block.
    pub fn host_waits(&self, why: WaitReason) {
        self.with(|t| {
            // what the user wrote is there for the CPU at once
            let at_once = why == WaitReason::UserInput && t.open_split.is_none();
            let until = t.latest_point.filter(|_| !at_once);
            t.note_now(What::HostWait { why, until });
        })
    }

    /// The split that begins next waits for a group of the arena's present shape.
    pub fn reads(&self, group: usize) {
        self.with(|t| {
            let group = t.first_group + group as u32;
            t.note_now(What::Read { group });
        })
    }

    /// Copies begin after everything submitted to the copy lane so far.
    ///
    /// # Safety
    /// `stream` is a live backend of the attached device.
    pub unsafe fn copies_begin(&self, stream: ffi::ggml_backend_t) -> CopyBegin {
        self.begin_on(DeviceLane::Copy, stream)
    }

    /// A token's experts are about to be submitted to `stream`.
    ///
    /// # Safety
    /// As for [`Self::copies_begin`].
    pub unsafe fn fetch_begins(&self, stream: ffi::ggml_backend_t) -> CopyBegin {
        self.begin_on(DeviceLane::Fetch, stream)
    }

    unsafe fn begin_on(&self, lane: DeviceLane, stream: ffi::ggml_backend_t) -> CopyBegin {
        CopyBegin(self.with(|t| Some((t.clock.now(), t.clock.begin(lane, stream)))))
    }

    /// A group of the arena's present shape was submitted since `begin`.
    ///
    /// # Safety
    /// As for [`Self::copies_begin`].
    pub unsafe fn group_copied(
        &self,
        begin: CopyBegin,
        stream: ffi::ggml_backend_t,
        group: usize,
        bytes: u64,
    ) {
        self.note_since(begin, stream, |t, on_link| What::Copy {
            group: t.first_group + group as u32,
            bytes,
            on_link,
        })
    }

    /// A token's experts were submitted since `begin`.
    ///
    /// # Safety
    /// As for [`Self::copies_begin`].
    pub unsafe fn fetched(&self, begin: CopyBegin, stream: ffi::ggml_backend_t, bytes: u64) {
        self.note_since(begin, stream, |_, on_link| What::Fetch { bytes, on_link })
    }

    /// Residents were submitted since `begin`.
    ///
    /// # Safety
    /// As for [`Self::copies_begin`].
    pub unsafe fn residents_copied(
        &self,
        begin: CopyBegin,
        stream: ffi::ggml_backend_t,
        bytes: u64,
    ) {
        self.note_since(begin, stream, |_, on_link| What::Residents {
            bytes,
            on_link,
        })
    }

    unsafe fn note_since(
        &self,
        begin: CopyBegin,
        stream: ffi::ggml_backend_t,
        what: impl FnOnce(&Tracing, Stretch) -> What,
    ) {
        self.with(|t| {
            if let Some((since, begin)) = begin.0 {
                let on_link = t.clock.end(begin, stream);
                let what = what(t, on_link);
                t.note(since, what);
            }
        })
    }

    /// What the lanes have done, once they have done what was submitted; `None` when nothing is traced.
    pub fn timeline(&self) -> Option<Timeline> {
        self.with(|t| {
            t.clock.settle();
            let time = |stamp| t.clock.time(stamp);
            let pieces = t.log.pieces();
            let mut timeline = Timeline::of(&pieces, &t.names, &time, t.passes, t.most_passes);
            timeline.virtual_time = t.clock.is_virtual();
            timeline.untimed = t.clock.untimed();
            Some(timeline)
        })
    }
}

/// Where copies began, if anyone wants to know.
#[derive(Debug, Clone, Copy)]
pub struct CopyBegin(Option<(u64, Stamp)>);

impl Tracing {
    fn note(&mut self, start: u64, what: What) {
        let end = self.clock.now();
        self.log.push(Record { start, end, what });
    }

    fn note_now(&mut self, what: What) {
        let now = self.clock.now();
        self.note(now, what);
    }

    /// The number of a node's name; a new one is remembered.
    fn number_of(&mut self, name: &CStr) -> u32 {
        if let Some(&number) = self.node_numbers.get(name) {
            return number;
        }
        let number = self.names.nodes.len().min(MOST_NODES) as u32;
        if self.names.nodes.len() < MOST_NODES {
            self.names.nodes.push(name.to_string_lossy().into_owned());
            self.node_numbers.insert(name.into(), number);
        }
        number
    }

    /// The stream of a scheduler, by a number that no other living scheduler has.
    fn compute_lane(&mut self, sched: usize) -> DeviceLane {
        let lane = self.scheds.get(&sched).and_then(|s| s.lane);
        let lane = lane.unwrap_or_else(|| {
            let last = DeviceLane::COMPUTE as u8 - 1;
            let taken = |lane| self.scheds.values().any(|s| s.lane == Some(lane));
            let free = (0..last).find(|&lane| !taken(lane)).unwrap_or(last);
            self.scheds.entry(sched).or_default().lane = Some(free);
            free
        });
        DeviceLane::Compute(lane)
    }
}
