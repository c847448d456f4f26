//! Makes slices of records, one record after the other.

use super::record::{DeviceLane, Record, Stamp, Stretch, WaitReason, What};
use super::slice::{Kind, Slice, Track};
use std::collections::HashMap;

/// A split that was begun and has not been ended.
struct OpenSplit {
    begin: Record,
    reads: Vec<usize>,
    reads_forgotten: u32,
    /// The host is through with the latest thing that it did for the split.
    host: u64,
    waited: bool,
}

/// What is known while the records are gone through.
pub(super) struct Builder<'a> {
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
    /// Begins after so many passes and slices. `time` says when a stamp was passed.
    pub fn new(time: &'a dyn Fn(Stamp) -> Option<u64>, passes: u64, slices: usize) -> Self {
        Builder {
            time,
            slices: Vec::new(),
            base: slices,
            pass: passes,
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

    /// The slices of all these records.
    pub fn slices_of(mut self, records: &[Record]) -> Vec<Slice> {
        records.iter().for_each(|r| self.add(r));
        self.slices
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
            What::HandOver { on_link } => {
                if let DeviceLane::Compute(lane) = on_link.begin.lane {
                    self.device_slice(Track::Compute(lane), start, on_link, Kind::HandOver);
                }
            }
            What::Fetch { bytes, on_link } => {
                self.device_slice(Track::Fetch, start, on_link, Kind::Fetch { bytes });
            }
            What::Read { group } => self.reads.push(group),
            What::SplitBegin { .. } => self.begin_split(record),
            What::SplitEnd { on_device } => self.end_split(start, on_device),
            What::HostWait { why, until } => self.open_wait = Some((*record, why, until)),
            What::Work(work) => {
                self.push(Track::Host, start, end, Kind::Work(work));
            }
            What::Encode {
                rows,
                weights,
                scratch,
            } => {
                let kind = Kind::Encode {
                    rows,
                    weights,
                    scratch,
                };
                self.push_in_order(Track::Encodes, start, end, kind);
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

    /// When the copies have arrived that the open split reads.
    fn filled(&self) -> Option<u64> {
        let reads = self.open_split.iter().flat_map(|open| &open.reads);
        reads.filter_map(|&r| self.slice(r)).map(|s| s.end).max()
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
        // the device waits for weights first, where the split that is being submitted has to
        let until = until.max(self.filled().unwrap_or(0));
        let end = until.clamp(wait.start, next.start.max(wait.start));
        self.push(Track::Host, wait.start, end, Kind::HostWait(why));
        if let Some(open) = &mut self.open_split {
            open.host = end;
            open.waited = true;
        }
    }

    fn end_split(&mut self, at: u64, on_device: Option<Stretch>) {
        let filled = self.filled();
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
        let busy_until = self.busy_until.get(&track).copied().unwrap_or(0);
        let follows = open.host.max(busy_until).max(filled.unwrap_or(0));
        let begin = (self.time)(stretch.begin).unwrap_or(follows).max(open.host);
        let wait = open.begin.start.max(busy_until)..filled.unwrap_or(0).min(begin);
        if !wait.is_empty() {
            self.push_in_order(track, wait.start, wait.end, Kind::WaitForCopies { split });
        }
        let end = (self.time)(stretch.end).unwrap_or(begin);
        self.push_in_order(track, begin, end, kind);
    }
}
