//! What is noted while a run goes on: fixed-size records in memory that was allocated up front.

use pipeshard_plan::plan::{Plan, StreamGroup};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records of the beginning that are kept whatever follows: loading and the first pass.
const FIRST: usize = 1 << 14;
/// Records of the end that are kept; the oldest make room.
const LATEST: usize = 1 << 18;

/// A lane whose times come from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceLane {
    /// The copy stream.
    Copy,
    /// The stream on which single tokens' experts are fetched.
    Fetch,
    /// A compute stream, by number.
    Compute(u8),
}

impl DeviceLane {
    /// Lanes that have times of their own.
    pub const COUNT: usize = 2 + Self::COMPUTE;
    /// Compute streams that are told apart; those beyond share the last.
    pub const COMPUTE: usize = 4;

    /// Its number, below [`Self::COUNT`].
    pub fn index(self) -> usize {
        match self {
            DeviceLane::Copy => 0,
            DeviceLane::Fetch => 1,
            DeviceLane::Compute(number) => 2 + usize::from(number).min(Self::COMPUTE - 1),
        }
    }
}

/// A point in a lane of the device; its time is known once the device has got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The lane.
    pub lane: DeviceLane,
    /// Which of its points, counted from 1; or [`Self::NONE`].
    pub number: u64,
}

impl Stamp {
    /// The number of no point.
    pub const NONE: u64 = 0;
}

/// From one point of a lane to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Something begins.
    pub begin: Stamp,
    /// It ends.
    pub end: Stamp,
}

/// A time that is not known (yet).
const UNKNOWN: u64 = u64::MAX;

/// The times of one lane's stamps, in nanoseconds. Written by the lane's watcher.
#[derive(Debug)]
pub struct StampTimes(Box<[AtomicU64]>);

impl Default for StampTimes {
    fn default() -> Self {
        StampTimes(
            (0..FIRST + LATEST)
                .map(|_| AtomicU64::new(UNKNOWN))
                .collect(),
        )
    }
}

impl StampTimes {
    /// Notes when the device passed a stamp.
    pub fn set(&self, number: u64, ns: u64) {
        self.0[slot(number)].store(ns, Ordering::Release);
    }

    /// Forgets what an older stamp left where this one's time will be.
    pub fn clear(&self, number: u64) {
        self.set(number, UNKNOWN);
    }

    /// When the device passed a stamp; `None` if it is not known.
    pub fn get(&self, number: u64) -> Option<u64> {
        let time = self.0[slot(number)].load(Ordering::Acquire);
        (number != Stamp::NONE && time != UNKNOWN).then_some(time)
    }
}

/// Where the item with this number is kept: the first for good, the rest in a ring.
fn slot(number: u64) -> usize {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    match number < FIRST {
        true => number,
        false => FIRST + (number - FIRST) % LATEST,
    }
}

/// Why the host blocks in the middle of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// Something that the user wrote is copied to the device.
    UserInput,
    /// A result goes from one backend to another.
    HandOver,
}

/// What the host is busy with in the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostWork {
    /// Placing the nodes of a new graph.
    GraphBegin,
    /// Beginning a pass.
    PassBegin,
    /// Before a split: making its waits.
    SplitBefore,
    /// After a split: copies ahead.
    SplitAfter,
    /// Ending a pass: copies for the next.
    PassEnd,
    /// Making a model's weights known and page-locking them.
    WeightsReady,
    /// Giving the arena another shape.
    Carve,
    /// Uploading residents.
    Upload,
    /// Waiting for both lanes to be empty.
    Drain,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// llama.cpp asked whether it may use the last graph again: the work for a new pass begins.
    EpochAsked,
    /// The first split of a pass is about to be submitted.
    PassBegin {
        /// Most rows that an operation sees.
        rows: u32,
    },
    /// The last split was submitted, or the pass failed.
    PassEnd,
    /// A group was submitted to the copy lane.
    Copy {
        /// In [`Names::groups`].
        group: u32,
        /// Weights, in bytes.
        bytes: u64,
        /// When its bytes are on their way.
        on_link: Stretch,
    },
    /// Experts for a single token were submitted.
    Fetch {
        /// Weights, in bytes.
        bytes: u64,
        /// When they are on their way.
        on_link: Stretch,
    },
    /// Residents were submitted to the copy lane.
    Residents {
        /// Weights, in bytes.
        bytes: u64,
        /// When they are on their way.
        on_link: Stretch,
    },
    /// Inputs of a split were submitted to a compute stream: to the device, or back to the host.
    HandOver {
        /// When they are on their way.
        on_link: Stretch,
    },
    /// The split that begins next waits for a group.
    Read {
        /// In [`Names::groups`].
        group: u32,
    },
    /// A split is about to be submitted.
    SplitBegin {
        /// Its number in the graph.
        split: u32,
        /// Its first node, in [`Names::nodes`].
        node: u32,
        /// How many nodes it has.
        nodes: u32,
    },
    /// A split was submitted; one of the CPU was computed.
    SplitEnd {
        /// When the device computes it; none for one that the CPU computes.
        on_device: Option<Stretch>,
    },
    /// The host is about to wait until the device gets to a point.
    HostWait {
        /// What for.
        why: WaitReason,
        /// The point, if there is anything to wait for.
        until: Option<Stamp>,
    },
    /// The host was busy in the runtime.
    Work(HostWork),
    /// Something was encoded, from the first split of its graph until the result was read.
    Encode {
        /// Rows of activations (patches of an image).
        rows: u64,
        /// Weights that were copied for it, in bytes.
        weights: u64,
        /// Compute buffers, in bytes.
        scratch: u64,
    },
}

/// Something that happened, and when on the host: in nanoseconds since the trace began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Begin.
    pub start: u64,
    /// End; the same for what has no length on the host.
    pub end: u64,
    /// What.
    pub what: What,
}

/// All records that are kept.
#[derive(Debug)]
pub struct Log {
    records: Vec<Record>,
    made: u64,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            records: Vec::with_capacity(FIRST + LATEST),
            made: 0,
        }
    }
}

impl Log {
    /// Adds a record; allocates nothing.
    pub fn push(&mut self, record: Record) {
        let slot = slot(self.made);
        match self.records.get_mut(slot) {
            Some(old) => *old = record,
            None => self.records.push(record),
        }
        self.made += 1;
    }

    /// The records in order, in one piece or, when some were dropped, two.
    pub fn pieces(&self) -> [Vec<Record>; 2] {
        let kept = self.numbers();
        let piece = |numbers: Range<u64>| -> Vec<Record> {
            numbers.map(|n| self.records[slot(n)]).collect()
        };
        match kept.start > FIRST as u64 {
            true => [piece(0..FIRST as u64), piece(kept)],
            false => [piece(0..kept.end), Vec::new()],
        }
    }

    /// The numbers of the latest records that are kept.
    fn numbers(&self) -> Range<u64> {
        self.made.saturating_sub(LATEST as u64)..self.made
    }
}

/// A streamed group, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupName {
    /// The names of its weights.
    pub name: String,
    /// The layer it belongs to.
    pub layer: Option<u32>,
}

impl GroupName {
    /// The name of a plan's group: `blk.3.ffn_up, ffn_gate`.
    pub fn of(group: &StreamGroup, plan: &Plan) -> Self {
        let units: Vec<_> = group
            .units
            .iter()
            .map(|u| &plan.units[u.0.index()])
            .collect();
        let layer = units.first().and_then(|u| u.layer);
        let prefix = layer.map_or(String::new(), |layer| format!("blk.{layer}."));
        let short = units.iter().map(|u| {
            let name = u.name.strip_suffix(".weight").unwrap_or(&u.name);
            name.strip_prefix(&prefix).unwrap_or(name)
        });
        GroupName {
            name: prefix.clone() + &short.collect::<Vec<_>>().join(", "),
            layer,
        }
    }
}

/// What records refer to by number.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Streamed groups, those of earlier shapes of the arena included.
    pub groups: Vec<GroupName>,
    /// First nodes of splits.
    pub nodes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: u64) -> Record {
        Record {
            start: n,
            end: n,
            what: What::PassEnd,
        }
    }

    fn starts(piece: &[Record]) -> Vec<u64> {
        piece.iter().map(|r| r.start).collect()
    }

    #[test]
    fn few_records_are_one_piece() {
        let mut log = Log::default();
        let count = (FIRST + LATEST) as u64;
        (0..count).for_each(|n| log.push(numbered(n)));
        let [first, rest] = log.pieces();
        assert_eq!(starts(&first), (0..count).collect::<Vec<_>>());
        assert!(rest.is_empty());
    }

    #[test]
    fn of_many_the_first_and_the_latest_are_kept_without_another_allocation() {
        let mut log = Log::default();
        let room = log.records.capacity();
        let count = 2 * (FIRST + LATEST) as u64 + 77;
        (0..count).for_each(|n| log.push(numbered(n)));
        let [first, rest] = log.pieces();
        assert_eq!(starts(&first), (0..FIRST as u64).collect::<Vec<_>>());
        let latest: Vec<u64> = (count - LATEST as u64..count).collect();
        assert_eq!(starts(&rest), latest);
        assert_eq!(log.records.capacity(), room);
    }

    #[test]
    fn a_stamp_is_unknown_until_the_device_gets_there() {
        let times = StampTimes::default();
        assert_eq!(times.get(5), None);
        times.set(5, 700);
        assert_eq!(times.get(5), Some(700));
        times.clear(5);
        assert_eq!(times.get(5), None);
        times.set(0, 3);
        assert_eq!(times.get(0), None, "0 is no stamp");
    }
}
