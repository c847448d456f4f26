//! Figures for the report: where the time of a pass goes.

use super::slice::{Kind, Slice, Track};
use super::timeline::{tier, Timeline};
use crate::report::{LaneDuringGap, LinkGap, TierTimeline, TimelineSummary};
use std::ops::Range;

/// Gaps of the link that are listed per tier.
const LONGEST: usize = 5;

/// From when to when.
type Span = Range<u64>;

/// The figures of a timeline.
pub fn summary(timeline: &Timeline) -> TimelineSummary {
    let passes: Vec<&Slice> = timeline.on(Track::Passes).collect();
    let mut tiers = Vec::new();
    for name in ["prompt", "decode", "other"] {
        let all: Vec<&Slice> = passes
            .iter()
            .copied()
            .filter(|p| matches!(p.kind, Kind::Pass { rows } if tier(rows) == name))
            .collect();
        let later: Vec<&Slice> = all.iter().copied().filter(|p| p.pass > 1).collect();
        let looked_at = if later.is_empty() { all } else { later };
        if !looked_at.is_empty() {
            tiers.push(summarize(timeline, name, &looked_at, &passes));
        }
    }
    TimelineSummary {
        virtual_time: timeline.virtual_time,
        untimed: timeline.untimed,
        passes_left_out: timeline.passes_left_out,
        tiers,
    }
}

fn summarize(timeline: &Timeline, name: &str, passes: &[&Slice], all: &[&Slice]) -> TierTimeline {
    let windows: Vec<Span> = passes.iter().map(|p| p.start..p.end).collect();
    let total: u64 = windows.iter().map(|w| w.end - w.start).sum();
    let count = passes.len() as u64;
    let busy = |select: &dyn Fn(&Slice) -> bool| {
        let spans = merged(timeline.slices.iter().filter(|s| select(s)));
        share(overlap(&spans, &windows), total)
    };
    let copies: Vec<Span> = merged(timeline.on(Track::Copy));
    let copying = overlap(&copies, &windows);
    let arrived = |s: &Slice| windows.iter().any(|w| w.contains(&s.end));
    let bytes: u64 = timeline
        .on(Track::Copy)
        .filter(|s| arrived(s))
        .map(|s| match s.kind {
            Kind::Copy { bytes, .. } | Kind::Residents { bytes } => bytes,
            _ => 0,
        })
        .sum();
    let between: Vec<u64> = all
        .windows(2)
        .filter(|pair| passes.iter().any(|p| p.pass == pair[1].pass))
        .filter(|pair| pair[1].pass == pair[0].pass + 1)
        .map(|pair| pair[1].start - pair[0].end)
        .collect();
    let mut lengths: Vec<u64> = passes.iter().map(|p| p.duration()).collect();
    lengths.sort_unstable();
    TierTimeline {
        name: name.to_string(),
        passes: count,
        pass_ns: total / count.max(1),
        pass_ns_median: lengths[lengths.len() / 2],
        between_ns: between.iter().sum::<u64>() / (between.len() as u64).max(1),
        bytes_per_pass: bytes / count.max(1),
        link_rate: rate(bytes, copying),
        link_busy: share(copying, total),
        compute_busy: busy(&|s| {
            matches!(s.track, Track::Compute(_)) && matches!(s.kind, Kind::Split { .. })
        }),
        compute_waits: busy(&|s| matches!(s.kind, Kind::WaitForCopies { .. })),
        cpu_busy: busy(&|s| s.track == Track::Cpu),
        host_waits: busy(&|s| matches!(s.kind, Kind::HostWait(_))),
        host_callbacks: busy(&|s| matches!(s.kind, Kind::Work(_))),
        host_submits: busy(&|s| matches!(s.kind, Kind::Inputs | Kind::Submit)),
        gaps: longest_gaps(timeline, passes, &copies),
    }
}

/// The longest times within passes that stream in which no copy was on its way.
fn longest_gaps(timeline: &Timeline, passes: &[&Slice], copies: &[Span]) -> Vec<LinkGap> {
    let streams = |pass: &Slice| {
        let reads = |s: &Slice| matches!(&s.kind, Kind::Split { reads, .. } if !reads.is_empty());
        let of_pass = |s: &&Slice| s.pass == pass.pass;
        timeline.slices.iter().filter(of_pass).any(reads)
    };
    let mut gaps: Vec<(u64, Span)> = Vec::new();
    for pass in passes.iter().filter(|p| streams(p)) {
        let mut from = pass.start;
        let first = copies.partition_point(|c| c.end <= pass.start);
        for copy in copies[first..].iter().take_while(|c| c.start < pass.end) {
            gaps.push((pass.pass, from..copy.start.max(from)));
            from = copy.end;
        }
        gaps.push((pass.pass, from.min(pass.end)..pass.end));
    }
    gaps.retain(|(_, gap)| gap.end > gap.start);
    gaps.sort_by_key(|(pass, gap)| (std::cmp::Reverse(gap.end - gap.start), *pass));
    gaps.truncate(LONGEST);
    gaps.into_iter()
        .map(|(pass, gap)| describe(timeline, pass, gap))
        .collect()
}

fn describe(timeline: &Timeline, pass: u64, gap: Span) -> LinkGap {
    let next = timeline
        .on(Track::Copy)
        .find(|s| s.start == gap.end && s.duration() > 0);
    let submitted = match next.map(|s| &s.kind) {
        Some(&Kind::Copy { submitted, .. }) => submitted,
        _ => gap.start,
    };
    LinkGap {
        pass,
        at_ns: gap.start,
        ns: gap.end - gap.start,
        next: next.map(|s| timeline.title(s)),
        not_submitted_ns: submitted.clamp(gap.start, gap.end) - gap.start,
        lanes: lanes_during(timeline, &gap),
    }
}

fn lanes_during(timeline: &Timeline, gap: &Span) -> Vec<LaneDuringGap> {
    let others = timeline
        .tracks()
        .into_iter()
        .filter(|t| !matches!(t, Track::Passes | Track::Copy));
    others
        .map(|track| {
            let within = |s: &&Slice| s.start < gap.end && s.end > gap.start;
            let slices: Vec<&Slice> = timeline.on(track).filter(within).collect();
            let part = |s: &&&Slice| s.end.min(gap.end) - s.start.max(gap.start);
            let spans = merged(slices.iter().copied());
            let busy = overlap(&spans, std::slice::from_ref(gap));
            let most = slices.iter().max_by_key(part);
            LaneDuringGap {
                lane: super::chrome::track_name(track),
                busy: share(busy, gap.end - gap.start),
                with: most.map(|s| timeline.title(s)).unwrap_or_default(),
            }
        })
        .collect()
}

/// The time that slices cover, as spans in order that do not touch.
pub fn merged<'a>(slices: impl Iterator<Item = &'a Slice>) -> Vec<Span> {
    let mut spans: Vec<Span> = slices
        .filter(|s| s.end > s.start)
        .map(|s| s.start..s.end)
        .collect();
    spans.sort_unstable_by_key(|s| s.start);
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

/// How much of `windows` the merged `spans` cover, in nanoseconds.
pub fn overlap(spans: &[Span], windows: &[Span]) -> u64 {
    let mut covered = 0;
    for window in windows {
        let first = spans.partition_point(|s| s.end <= window.start);
        let within = spans[first..].iter().take_while(|s| s.start < window.end);
        covered += within
            .map(|s| s.end.min(window.end) - s.start.max(window.start))
            .sum::<u64>();
    }
    covered
}

fn share(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => part as f64 / whole as f64,
    }
}

/// Bytes per second.
fn rate(bytes: u64, ns: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}
