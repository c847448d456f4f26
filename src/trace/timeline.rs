//! From records to slices: who did what from when to when. Pure; times are nanoseconds since the trace began.

use super::builder::Builder;
use super::record::{HostWork, Names, Record, Stamp, WaitReason, What};
use super::slice::{Kind, Slice, Track};
use crate::report::PROMPT_ROWS;
use std::collections::HashMap;

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
        let mut slices = Builder::new(time, 0, 0).slices_of(&pieces[0]);
        if !pieces[1].is_empty() {
            slices.retain(|s| s.pass <= 1);
            // it may begin in the middle of a pass
            let ends = |r: &Record| matches!(r.what, What::PassEnd);
            let from = pieces[1].iter().position(ends).map_or(0, |at| at + 1);
            let rest = &pieces[1][from..];
            let begins = |r: &&Record| matches!(r.what, What::PassBegin { .. });
            let before = passes - rest.iter().filter(begins).count() as u64;
            slices.extend(Builder::new(time, before, slices.len()).slices_of(rest));
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
            Kind::Fetch { .. } => "chosen experts".to_string(),
            Kind::HandOver => "inputs of a split".to_string(),
            Kind::WaitForCopies { split } => format!("split {split} waits for weights"),
            Kind::Split { split, node, .. } => {
                let node = self.names.nodes.get(*node as usize);
                format!("{split}: {}", node.map_or("", |name| name.as_str()))
            }
            Kind::HostWait(WaitReason::UserInput) => "wait before an input is copied".to_string(),
            Kind::HostWait(WaitReason::HandOver) => "wait for a hand-over".to_string(),
            Kind::Inputs => "inputs, submission".to_string(),
            Kind::Submit => "submission".to_string(),
            Kind::Encode { rows, .. } => format!("encode, {rows} rows"),
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
