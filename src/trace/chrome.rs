//! The trace as a file in Chrome's format, which Perfetto (ui.perfetto.dev) and `chrome://tracing` show.

use super::record::WaitReason;
use super::slice::{Kind, Slice, Track};
use super::summary::summary;
use super::timeline::Timeline;
use crate::report::TimelineSummary;
use serde_json::{json, Map, Value};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is said in the file about its times.
const RESOLUTION: &str = "a thread per stream waits for ggml's events and then looks at the host's clock: times of the \
    device are late by some 10 to 20 us, and a copy or split that is shorter than that may seem to have no length";

/// Why a trace could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be written.
    #[error("cannot write the trace to {}: {source}. The run itself is not affected; check that the folder exists and that \
             you may write to it.", path.display())]
    Write {
        /// Where it should have gone.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read the trace {}: {source}", path.display())]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a pipeshard trace: {why}. A trace is written with --pipeshard-trace FILE.", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What a row is called.
pub fn track_name(track: Track) -> String {
    match track {
        Track::Passes => "passes".to_string(),
        Track::Copy => "copy lane".to_string(),
        Track::Fetch => "fetched experts".to_string(),
        Track::Compute(0) => "compute stream".to_string(),
        Track::Compute(number) => format!("compute stream {}", number + 1),
        Track::Encodes => "encodes".to_string(),
        Track::Cpu => "CPU splits".to_string(),
        Track::Host => "host".to_string(),
    }
}

fn row(track: Track) -> u32 {
    match track {
        Track::Passes => 1,
        Track::Copy => 2,
        Track::Fetch => 15,
        Track::Compute(number) => 3 + u32::from(number),
        Track::Encodes => 19,
        Track::Cpu => 20,
        Track::Host => 21,
    }
}

/// Chrome's unit.
fn microseconds(ns: u64) -> Value {
    json!(ns as f64 / 1e3)
}

impl Timeline {
    /// Writes the file.
    ///
    /// # Errors
    /// [`TraceError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), TraceError> {
        let failed = |source| TraceError::Write {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::create(path).map_err(failed)?;
        let mut out = io::BufWriter::new(file);
        self.write_to(&mut out)
            .and_then(|()| out.flush())
            .map_err(failed)
    }

    /// Writes what is in the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let clock = match self.virtual_time {
            true => "the simulated GPU's virtual clocks; the CPU takes no time in them",
            false => RESOLUTION,
        };
        let about = json!({
            "tool": "pipeshard",
            "times": clock,
            "untimed": self.untimed,
            "passes_left_out": self.passes_left_out,
        });
        let summary = serde_json::to_value(summary(self)).map_err(io::Error::other)?;
        write!(
            out,
            "{{\"displayTimeUnit\":\"ms\",\n\"otherData\":{about},\n\"pipeshard\":{summary},\n\"traceEvents\":["
        )?;
        let mut separator = "\n";
        let mut event = |event: Value| {
            write!(out, "{separator}{event}")?;
            separator = ",\n";
            Ok::<(), io::Error>(())
        };
        event(json!({"ph":"M","pid":1,"name":"process_name","args":{"name":"pipeshard"}}))?;
        for track in self.tracks() {
            let (tid, name) = (row(track), track_name(track));
            event(json!({"ph":"M","pid":1,"tid":tid,"name":"thread_name","args":{"name":name}}))?;
            event(
                json!({"ph":"M","pid":1,"tid":tid,"name":"thread_sort_index","args":{"sort_index":tid}}),
            )?;
        }
        for slice in &self.slices {
            // callbacks take no time on virtual clocks
            if slice.duration() > 0 || !matches!(slice.kind, Kind::Work(_)) {
                event(self.slice_event(slice))?;
            }
            if let Kind::Split { reads, .. } = &slice.kind {
                for &read in reads {
                    let copy = &self.slices[read];
                    event(arrow("s", read, slice, copy.track, copy.start))?;
                    event(arrow("f", read, slice, slice.track, slice.start))?;
                }
            }
        }
        for (at, in_flight, streamed) in self.counters() {
            let ts = microseconds(at);
            event(
                json!({"ph":"C","pid":1,"name":"bytes in flight to the ring","ts":ts,"args":{"bytes":in_flight}}),
            )?;
            event(
                json!({"ph":"C","pid":1,"name":"bytes streamed","ts":ts,"args":{"bytes":streamed}}),
            )?;
        }
        writeln!(out, "\n]}}")
    }

    fn slice_event(&self, slice: &Slice) -> Value {
        json!({
            "ph": "X",
            "pid": 1,
            "tid": row(slice.track),
            "cat": category(&slice.kind),
            "name": self.title(slice),
            "ts": microseconds(slice.start),
            "dur": microseconds(slice.duration()),
            "args": self.details(slice),
        })
    }

    fn details(&self, slice: &Slice) -> Map<String, Value> {
        let mut details = Map::new();
        let mut set = |name: &str, value: Value| {
            details.insert(name.to_string(), value);
        };
        set("pass", json!(slice.pass));
        match &slice.kind {
            Kind::Pass { rows } => {
                set("rows", json!(rows));
                set("tier", json!(super::timeline::tier(*rows)));
            }
            Kind::Copy {
                group,
                bytes,
                submitted,
            } => {
                let layer = self.names.groups.get(*group as usize).and_then(|g| g.layer);
                set("group", json!(group));
                set("layer", json!(layer));
                set("bytes", json!(bytes));
                set("submitted_us", microseconds(*submitted));
            }
            Kind::Residents { bytes } | Kind::Fetch { bytes } => set("bytes", json!(bytes)),
            Kind::Encode {
                rows,
                weights,
                scratch,
            } => {
                set("rows", json!(rows));
                set("weights_bytes", json!(weights));
                set("scratch_bytes", json!(scratch));
            }
            Kind::Split {
                split,
                nodes,
                reads,
                reads_forgotten,
                ..
            } => {
                set("split", json!(split));
                set("nodes", json!(nodes));
                let names = reads.iter().map(|&r| self.title(&self.slices[r]));
                set("reads", json!(names.collect::<Vec<_>>()));
                let filled = reads.iter().map(|&r| self.slices[r].end).max();
                set("filled_us", json!(filled.map(microseconds)));
                if *reads_forgotten > 0 {
                    set("reads_forgotten", json!(reads_forgotten));
                }
            }
            _ => {}
        }
        details
    }

    /// How many bytes had been submitted and not arrived, and how many had arrived, whenever one of the two changed.
    fn counters(&self) -> Vec<(u64, u64, u64)> {
        let mut changes: Vec<(u64, bool, u64)> = Vec::new();
        for slice in self.on(Track::Copy) {
            if let Kind::Copy {
                bytes, submitted, ..
            } = slice.kind
            {
                changes.push((submitted, false, bytes));
                changes.push((slice.end, true, bytes));
            }
        }
        changes.sort_unstable();
        let (mut submitted, mut arrived) = (0, 0);
        changes
            .into_iter()
            .map(|(at, has_arrived, bytes)| {
                match has_arrived {
                    true => arrived += bytes,
                    false => submitted += bytes,
                }
                (at, submitted - arrived, arrived)
            })
            .collect()
    }
}

fn arrow(phase: &str, copy: usize, split: &Slice, track: Track, at: u64) -> Value {
    // a group that stayed in place is read by several splits
    let id = format!("{copy}.{}", split.start);
    json!({
        "ph": phase,
        "bp": "e",
        "pid": 1,
        "tid": row(track),
        "cat": "weights",
        "name": "weights",
        "id": id,
        "ts": microseconds(at),
    })
}

fn category(kind: &Kind) -> &'static str {
    match kind {
        Kind::Pass { .. } => "pass",
        Kind::Copy { .. } => "copy",
        Kind::Residents { .. } => "upload",
        Kind::Fetch { .. } => "fetch",
        Kind::HandOver => "hand_over",
        Kind::WaitForCopies { .. } => "wait",
        Kind::Split { .. } => "split",
        Kind::HostWait(WaitReason::UserInput) => "host_wait_user_input",
        Kind::HostWait(WaitReason::HandOver) => "host_wait_hand_over",
        Kind::Inputs => "inputs",
        Kind::Submit => "submit",
        Kind::Work(_) => "runtime",
        Kind::Encode { .. } => "encode",
        Kind::Between => "between",
        Kind::Graph => "graph",
    }
}

/// The figures in a trace file.
///
/// # Errors
/// [`TraceError::Read`], or [`TraceError::Foreign`] for a file without such figures.
pub fn read_summary(path: &Path) -> Result<TimelineSummary, TraceError> {
    let text = std::fs::read_to_string(path).map_err(|source| TraceError::Read {
        path: path.to_owned(),
        source,
    })?;
    let foreign = |why: String| TraceError::Foreign {
        path: path.to_owned(),
        why,
    };
    #[derive(serde::Deserialize)]
    struct File {
        pipeshard: TimelineSummary,
    }
    serde_json::from_str::<File>(&text)
        .map(|file| file.pipeshard)
        .map_err(|e| foreign(e.to_string()))
}
