//! From records to slices: who did what from when to when. Pure; times are nanoseconds since the trace began.

use super::record::{DeviceLane, HostWork, Names, Record, Stamp, Stretch, WaitReason, What};
use crate::report::PROMPT_ROWS;
use std::collections::HashMap;

/// One row of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// Passes as a whole.
    Passes,
    /// The copy lane.
    Copy,
    /// A compute stream, by number.
    Compute(u8),
    /// Splits that the CPU computes.
    Cpu,
    /// The thread that drives the scheduler.
    Host,
}

/// What a slice is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A pass, from its begin on the host until the device was through with it.
    Pass {
        /// Most rows that an operation saw.
        rows: u32,
    },
    /// The copy of a streamed group.
    Copy {
        /// In the names' groups.
        group: u32,
        /// Weights, in bytes.
        bytes: u64,
        /// When it was submitted.
        submitted: u64,
    },
    /// Uploads of residents.
    Residents {
        /// Weights, in bytes.
        bytes: u64,
    },
    /// A compute stream waits until groups are filled.
    WaitForCopies {
        /// Of this split.
        split: u32,
    },
    /// A split.
    Split {
        /// Its number in the graph.
        split: u32,
        /// Its first node, in the names' nodes.
        node: u32,
        /// How many nodes it has.
        nodes: u32,
        /// The copies that it read, as indices of slices.
        reads: Vec<usize>,
        /// Groups that it read whose copies are no longer in the records.
        reads_forgotten: u32,
    },
    /// The host waits for the device.
    HostWait(WaitReason),
    /// The host copies inputs of a split to the device and submits it.
    Inputs,
    /// The host submits a split.
    Submit,
    /// The host is busy in the runtime.
    Work(HostWork),
    /// llama.cpp between two passes: results, sampling, other work of the program.
    Between,
    /// llama.cpp builds and allocates the graph of the next pass, or finds that it may use the last one again.
    Graph,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The row it is in.
    pub track: Track,
    /// Begin.
    pub start: u64,
    /// End.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
    /// The number of the pass it belongs to; what lies between two passes belongs to the later one.
    pub pass: u64,
}

impl Slice {
    /// Its length.
    pub fn duration(&self) -> u64 {
        self.end - self.start
    }
}

/// A whole trace.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// In order of submission.
    pub slices: Vec<Slice>,
    /// What slices refer to by number.
    pub names: Names,
    /// Times are those of the simulated GPU.
    pub virtual_time: bool,
    /// Points in the lanes whose time was not taken.
    pub untimed: u64,
    /// Passes that happened and are not in the slices.
    pub passes_left_out: u64,
}

impl Timeline {
    /// Makes slices of records. `time` says when a stamp was passed, `passes` how many were begun. Of these the first and
    /// the last `most_passes` stay.
    pub fn of(
        pieces: &[Vec<Record>; 2],
        names: &Names,
        time: &dyn Fn(Stamp) -> Option<u64>,
        passes: u64,
        most_passes: usize,
    ) -> Self {
        let mut builder = Builder::new(time);
        pieces[0].iter().for_each(|r| builder.add(r));
        let mut slices = builder.slices;
        if !pieces[1].is_empty() {
            slices.retain(|s| s.pass <= 1);
            // it may begin in the middle of a pass
            let ends = |r: &Record| matches!(r.what, What::PassEnd);
            let from = pieces[1].iter().position(ends).map_or(0, |at| at + 1);
            let rest = &pieces[1][from..];
            let begins = |r: &&Record| matches!(r.what, What::PassBegin { .. });
            let mut builder = Builder::new(time);
            builder.pass = passes - rest.iter().filter(begins).count() as u64;
            builder.base = slices.len();
            rest.iter().for_each(|r| builder.add(r));
            slices.extend(builder.slices);
        }
        let mut timeline = Timeline {
            slices,
            names: names.clone(),
            ..Timeline::default()
        };
        timeline.keep(passes.saturating_sub(most_passes as u64));
        let kept = timeline.on(Track::Passes).count() as u64;
        timeline.passes_left_out = passes.saturating_sub(kept);
        timeline
    }

    /// Leaves out the passes between the first and those after `last_left_out`.
    fn keep(&mut self, last_left_out: u64) {
        if last_left_out <= 1 {
            return;
        }
        let kept = |s: &Slice| s.pass <= 1 || s.pass > last_left_out;
        let mut renumbered = HashMap::new();
        let mut slices = Vec::with_capacity(self.slices.len());
        for (index, slice) in std::mem::take(&mut self.slices).into_iter().enumerate() {
            if kept(&slice) {
                renumbered.insert(index, slices.len());
                slices.push(slice);
            }
        }
        for slice in &mut slices {
            if let Kind::Split {
                reads,
                reads_forgotten,
                ..
            } = &mut slice.kind
            {
                let before = reads.len();
                *reads = reads
                    .iter()
                    .filter_map(|r| renumbered.get(r).copied())
                    .collect();
                *reads_forgotten += (before - reads.len()) as u32;
            }
        }
        self.slices = slices;
    }

    /// The slices of one row.
    pub fn on(&self, track: Track) -> impl Iterator<Item = &Slice> {
        self.slices.iter().filter(move |s| s.track == track)
    }

    /// The rows that have something in them, from top to bottom.
    pub fn tracks(&self) -> Vec<Track> {
        let mut tracks: Vec<Track> = self.slices.iter().map(|s| s.track).collect();
        tracks.sort_unstable();
        tracks.dedup();
        tracks
    }

    /// What a slice is called.
    pub fn title(&self, slice: &Slice) -> String {
        let group = |number: u32| {
            let group = self.names.groups.get(number as usize);
            group.map_or("weights", |g| g.name.as_str())
        };
        match &slice.kind {
            Kind::Pass { rows } => format!("{} pass, {rows} rows", tier(*rows)),
            Kind::Copy { group: number, .. } => group(*number).to_string(),
            Kind::Residents { .. } => "residents".to_string(),
            Kind::WaitForCopies { split } => format!("split {split} waits for weights"),
            Kind::Split { split, node, .. } => {
                let node = self.names.nodes.get(*node as usize);
                format!("{split}: {}", node.map_or("", |name| name.as_str()))
            }
            Kind::HostWait(WaitReason::UserInput) => "wait before an input is copied".to_string(),
            Kind::HostWait(WaitReason::HandOver) => "wait for a hand-over".to_string(),
            Kind::Inputs => "inputs, submission".to_string(),
            Kind::Submit => "submission".to_string(),
            Kind::Between => "between passes".to_string(),
            Kind::Graph => "graph".to_string(),
            Kind::Work(work) => match work {
                HostWork::GraphBegin => "graph_begin",
                HostWork::PassBegin => "pass_begin",
                HostWork::SplitBefore => "split_before",
                HostWork::SplitAfter => "split_after",
                HostWork::PassEnd => "pass_end",
                HostWork::WeightsReady => "weights_ready",
                HostWork::Carve => "carve",
                HostWork::Upload => "upload residents",
                HostWork::Drain => "drain",
            }
            .to_string(),
        }
    }
}

/// The tier that a pass with so many rows belongs to; `other` for one without weights.
pub fn tier(rows: u32) -> &'static str {
    match rows {
        0 => "other",
        PROMPT_ROWS.. => "prompt",
        _ => "decode",
    }
}

/// A split that was begun and has not been ended.
struct OpenSplit {
    begin: Record,
    reads: Vec<usize>,
    reads_forgotten: u32,
    /// The host is through with the latest thing that it did for the split.
    host: u64,
    waited: bool,
}

struct Builder<'a> {
    time: &'a dyn Fn(Stamp) -> Option<u64>,
    slices: Vec<Slice>,
    /// What the slices' indices begin with.
    base: usize,
    pass: u64,
    open_pass: Option<(u64, u32)>,
    /// When the pass before was submitted.
    last_pass_submitted: Option<u64>,
    open_split: Option<OpenSplit>,
    /// Groups that the next split reads.
    reads: Vec<u32>,
    /// A host wait whose end is known when the host does the next thing.
    open_wait: Option<(Record, WaitReason, Option<Stamp>)>,
    /// The slice of each group's latest copy.
    copies: HashMap<u32, usize>,
    /// The end of the latest slice on each of the device's tracks.
    busy_until: HashMap<Track, u64>,
    epoch_asked: Option<u64>,
}

impl<'a> Builder<'a> {
    fn new(time: &'a dyn Fn(Stamp) -> Option<u64>) -> Self {
        Builder {
            time,
            slices: Vec::new(),
            base: 0,
            pass: 0,
            open_pass: None,
            last_pass_submitted: None,
            open_split: None,
            reads: Vec::new(),
            open_wait: None,
            copies: HashMap::new(),
            busy_until: HashMap::new(),
            epoch_asked: None,
        }
    }

    fn push(&mut self, track: Track, start: u64, end: u64, kind: Kind) -> usize {
        let within = u64::from(self.open_pass.is_none());
        self.slices.push(Slice {
            track,
            start,
            end: end.max(start),
            kind,
            // passes are counted from 1; before and between them is the next one's
            pass: self.pass + within,
        });
        self.base + self.slices.len() - 1
    }

    /// A slice of a lane that does one thing after the other.
    fn push_in_order(&mut self, track: Track, start: u64, end: u64, kind: Kind) -> usize {
        let start = start.max(self.busy_until.get(&track).copied().unwrap_or(0));
        let end = end.max(start);
        self.busy_until.insert(track, end);
        self.push(track, start, end, kind)
    }

    fn slice(&self, index: usize) -> Option<&Slice> {
        index
            .checked_sub(self.base)
            .and_then(|i| self.slices.get(i))
    }

    fn add(&mut self, record: &Record) {
        let (start, end) = (record.start, record.end);
        self.close_wait(record);
        match record.what {
            What::EpochAsked => {
                self.epoch_asked.get_or_insert(start);
            }
            What::PassBegin { rows } => self.begin_pass(start, rows),
            What::PassEnd => self.end_pass(start),
            What::Copy {
                group,
                bytes,
                on_link,
            } => {
                let kind = Kind::Copy {
                    group,
                    bytes,
                    submitted: start,
                };
                let index = self.device_slice(Track::Copy, start, on_link, kind);
                self.copies.insert(group, index);
            }
            What::Residents { bytes, on_link } => {
                let kind = Kind::Residents { bytes };
                self.device_slice(Track::Copy, start, on_link, kind);
            }
            What::Read { group } => self.reads.push(group),
            What::SplitBegin { .. } => self.begin_split(record),
            What::SplitEnd { on_device } => self.end_split(start, on_device),
            What::HostWait { why, until } => self.open_wait = Some((*record, why, until)),
            What::Work(work) => {
                self.push(Track::Host, start, end, Kind::Work(work));
            }
        }
    }

    /// A slice between two stamps; of no length where the second has no time.
    fn device_slice(
        &mut self,
        track: Track,
        submitted: u64,
        stretch: Stretch,
        kind: Kind,
    ) -> usize {
        let start = (self.time)(stretch.begin).unwrap_or(submitted);
        let start = start.max(submitted);
        let end = (self.time)(stretch.end).unwrap_or(start);
        self.push_in_order(track, start, end, kind)
    }

    fn begin_pass(&mut self, at: u64, rows: u32) {
        if let Some(submitted) = self.last_pass_submitted {
            let graph = self.epoch_asked.unwrap_or(at).max(submitted);
            self.push(Track::Host, submitted, graph, Kind::Between);
            self.push(Track::Host, graph, at, Kind::Graph);
        }
        self.pass += 1;
        self.open_pass = Some((at, rows));
        self.epoch_asked = None;
    }

    fn end_pass(&mut self, at: u64) {
        let Some((start, rows)) = self.open_pass else {
            return;
        };
        let on_device = |s: &&Slice| s.pass == self.pass && matches!(s.track, Track::Compute(_));
        let device = self.slices.iter().rev().take_while(|s| s.pass == self.pass);
        let device = device.filter(on_device).map(|s| s.end).max();
        let end = at.max(device.unwrap_or(0));
        self.push_in_order(Track::Passes, start, end, Kind::Pass { rows });
        self.open_pass = None;
        self.open_split = None;
        self.last_pass_submitted = Some(at);
        self.epoch_asked = None;
    }

    fn begin_split(&mut self, record: &Record) {
        let groups = std::mem::take(&mut self.reads);
        let known: Vec<usize> = groups
            .iter()
            .filter_map(|g| self.copies.get(g).copied())
            .collect();
        self.open_split = Some(OpenSplit {
            begin: *record,
            reads_forgotten: (groups.len() - known.len()) as u32,
            reads: known,
            host: record.end,
            waited: false,
        });
    }

    /// The host's wait is over when the device got to the point, at the latest when the host does the next thing.
    fn close_wait(&mut self, next: &Record) {
        let Some((wait, why, until)) = self.open_wait.take() else {
            return;
        };
        if let Some(open) = &mut self.open_split {
            if open.waited {
                let from = open.host;
                self.push(Track::Host, from, wait.start, Kind::Inputs);
            }
        }
        let until = until.map_or(wait.start, |stamp| (self.time)(stamp).unwrap_or(next.start));
        let end = until.clamp(wait.start, next.start.max(wait.start));
        self.push(Track::Host, wait.start, end, Kind::HostWait(why));
        if let Some(open) = &mut self.open_split {
            open.host = end;
            open.waited = true;
        }
    }

    fn end_split(&mut self, at: u64, on_device: Option<Stretch>) {
        let Some(open) = self.open_split.take() else {
            return;
        };
        let What::SplitBegin { split, node, nodes } = open.begin.what else {
            return;
        };
        let kind = Kind::Split {
            split,
            node,
            nodes,
            reads: open.reads.clone(),
            reads_forgotten: open.reads_forgotten,
        };
        let Some(stretch) = on_device else {
            self.push_in_order(Track::Cpu, open.host, at, kind);
            return;
        };
        let submission = match open.waited {
            true => Kind::Inputs,
            false => Kind::Submit,
        };
        self.push(Track::Host, open.host, at, submission);
        let DeviceLane::Compute(lane) = stretch.begin.lane else {
            return;
        };
        let track = Track::Compute(lane);
        let begin = (self.time)(stretch.begin).unwrap_or(open.host);
        let begin = begin.max(open.host);
        let filled = open.reads.iter().filter_map(|&r| self.slice(r));
        if let Some(filled) = filled.map(|s| s.end).max() {
            let busy_until = self.busy_until.get(&track).copied().unwrap_or(0);
            let from = open.begin.start.max(busy_until);
            let until = filled.min(begin);
            if until > from {
                self.push_in_order(track, from, until, Kind::WaitForCopies { split });
            }
        }
        self.device_slice(track, begin, stretch, kind);
    }
}
