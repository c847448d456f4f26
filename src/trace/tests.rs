//! From records to a file, without a device.

use super::record::{
    DeviceLane, GroupName, HostWork, Names, Record, Stamp, Stretch, WaitReason, What,
};
use super::slice::{Kind, Slice, Track};
use super::summary::{merged, overlap, summary};
use super::timeline::Timeline;

const COMPUTE: DeviceLane = DeviceLane::Compute(0);

/// A stamp that is passed at the time that is its number.
fn at(lane: DeviceLane, ns: u64) -> Stamp {
    Stamp { lane, number: ns }
}

fn time(stamp: Stamp) -> Option<u64> {
    (stamp.number != Stamp::NONE).then_some(stamp.number)
}

fn record(start: u64, end: u64, what: What) -> Record {
    Record { start, end, what }
}

fn copy(submitted: u64, group: u32, on_link: std::ops::Range<u64>) -> Record {
    let on_link = Stretch {
        begin: at(DeviceLane::Copy, on_link.start),
        end: at(DeviceLane::Copy, on_link.end),
    };
    let bytes = 1000;
    let what = What::Copy {
        group,
        bytes,
        on_link,
    };
    record(submitted, submitted + 1, what)
}

fn split_begin(now: u64, split: u32) -> Record {
    let what = What::SplitBegin {
        split,
        node: split,
        nodes: 3,
    };
    record(now, now, what)
}

/// As a real device has it: nothing is known of the begin.
fn split_end(now: u64, done: Option<u64>) -> Record {
    let on_device = done.map(|done| Stretch {
        begin: at(COMPUTE, Stamp::NONE),
        end: at(COMPUTE, done),
    });
    record(now, now, What::SplitEnd { on_device })
}

/// Two groups for two splits. The second split also takes an input from the CPU, which computes the third split.
fn one_pass(from: u64, rows: u32) -> Vec<Record> {
    let records = [
        record(0, 0, What::EpochAsked),
        record(10, 10, What::PassBegin { rows }),
        copy(11, 0, 20..40),
        copy(12, 1, 40..70),
        record(11, 15, What::Work(HostWork::PassBegin)),
        record(16, 16, What::Read { group: 0 }),
        split_begin(17, 0),
        split_end(19, Some(60)),
        record(20, 20, What::Read { group: 1 }),
        split_begin(21, 1),
        record(
            22,
            22,
            What::HostWait {
                why: WaitReason::HandOver,
                until: Some(at(COMPUTE, 60)),
            },
        ),
        split_end(75, Some(90)),
        split_begin(76, 2),
        record(
            77,
            77,
            What::HostWait {
                why: WaitReason::HandOver,
                until: Some(at(COMPUTE, 90)),
            },
        ),
        split_end(98, None),
        record(99, 99, What::PassEnd),
    ];
    let shift = |stamp: &mut Stamp| {
        if stamp.number != Stamp::NONE {
            stamp.number += from;
        }
    };
    let mut records = records.to_vec();
    for record in &mut records {
        record.start += from;
        record.end += from;
        match &mut record.what {
            What::Copy { on_link, .. }
            | What::SplitEnd {
                on_device: Some(on_link),
            } => {
                shift(&mut on_link.begin);
                shift(&mut on_link.end);
            }
            What::HostWait {
                until: Some(until), ..
            } => shift(until),
            _ => {}
        }
    }
    records
}

fn names() -> Names {
    let group = |name: &str| GroupName {
        name: name.to_string(),
        layer: Some(0),
    };
    Names {
        groups: vec![group("first"), group("second")],
        nodes: ["norm", "up", "down"].map(String::from).to_vec(),
    }
}

fn timeline_of(records: Vec<Record>, passes: u64, most_passes: usize) -> Timeline {
    Timeline::of(&[records, Vec::new()], &names(), &time, passes, most_passes)
}

fn spans(timeline: &Timeline, track: Track) -> Vec<(u64, u64)> {
    timeline.on(track).map(|s| (s.start, s.end)).collect()
}

#[test]
fn a_split_begins_when_all_that_it_waits_for_is_over() {
    let timeline = timeline_of(one_pass(0, 64), 1, 9);
    assert_eq!(spans(&timeline, Track::Copy), [(20, 40), (40, 70)]);
    // a wait for weights, the split, a wait, the split
    let compute = spans(&timeline, Track::Compute(0));
    assert_eq!(compute, [(17, 40), (40, 60), (60, 70), (70, 90)]);
    // the CPU begins when the device is through
    assert_eq!(spans(&timeline, Track::Cpu), [(90, 98)]);
    assert_eq!(spans(&timeline, Track::Passes), [(10, 99)]);
    let waits = timeline
        .on(Track::Host)
        .filter(|s| matches!(s.kind, Kind::HostWait(_)));
    let waits: Vec<_> = waits.map(|s| (s.start, s.end)).collect();
    assert_eq!(waits, [(22, 70), (77, 90)]);
    let second = timeline.on(Track::Compute(0)).nth(3).unwrap();
    assert_eq!(timeline.title(second), "1: up");
    let Kind::Split { reads, .. } = &second.kind else {
        panic!("{second:?}");
    };
    assert_eq!(timeline.title(&timeline.slices[reads[0]]), "second");
}

#[test]
fn a_time_that_is_known_counts_even_if_weights_were_not_waited_for() {
    let mut records = one_pass(0, 64);
    for record in &mut records {
        if let What::SplitEnd {
            on_device: Some(stretch),
        } = &mut record.what
        {
            stretch.begin.number = stretch.end.number - 15;
        }
    }
    let timeline = timeline_of(records, 1, 9);
    let splits = timeline
        .on(Track::Compute(0))
        .filter(|s| matches!(s.kind, Kind::Split { .. }));
    let splits: Vec<_> = splits.map(|s| (s.start, s.end)).collect();
    assert_eq!(splits, [(45, 60), (75, 90)]);
}

#[test]
fn figures_say_where_the_time_went() {
    let records = [one_pass(0, 64), one_pass(200, 64), one_pass(400, 1)].concat();
    let summary = summary(&timeline_of(records, 3, 9));
    let names: Vec<&str> = summary.tiers.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["prompt", "decode"]);
    let prompt = &summary.tiers[0];
    // the first pass of the process is left out
    assert_eq!((prompt.passes, prompt.pass_ns), (1, 89));
    assert_eq!(prompt.between_ns, 200 + 10 - 99);
    assert_eq!(prompt.bytes_per_pass, 2000);
    assert_eq!(prompt.link_rate, 2000 * 1_000_000_000 / 50);
    let near = |share: f64, ns: f64| assert!((share * 89.0 - ns).abs() < 1e-6, "{share} {ns}");
    near(prompt.link_busy, 50.0);
    near(prompt.compute_busy, 40.0);
    near(prompt.compute_waits, 33.0);
    near(prompt.cpu_busy, 8.0);
    near(prompt.host_waits, 48.0 + 13.0);
    let gaps = &prompt.gaps;
    assert_eq!((gaps[0].ns, gaps[0].next.as_deref()), (29, None));
    assert_eq!((gaps[1].ns, gaps[1].next.as_deref()), (10, Some("first")));
    assert_eq!(gaps[1].not_submitted_ns, 1);
    let compute = gaps[0].lanes.iter().find(|l| l.lane == "compute stream");
    let compute = compute.unwrap();
    assert_eq!(compute.with, "1: up");
    assert!((compute.busy * 29.0 - 20.0).abs() < 1e-6);
}

#[test]
fn the_first_and_the_last_passes_stay() {
    let records: Vec<Record> = (0..6).flat_map(|n| one_pass(n * 200, 64)).collect();
    let timeline = timeline_of(records, 6, 2);
    let passes: Vec<u64> = timeline.on(Track::Passes).map(|p| p.pass).collect();
    assert_eq!(passes, [1, 5, 6]);
    assert_eq!(timeline.passes_left_out, 3);
    for slice in &timeline.slices {
        if let Kind::Split { reads, .. } = &slice.kind {
            for &read in reads {
                assert_eq!(timeline.slices[read].pass, slice.pass);
            }
        }
    }
    let numbered = summary(&timeline);
    assert_eq!(numbered.passes_left_out, 3);
    // the time from the first to the fifth is not a time between passes
    assert_eq!(numbered.tiers[0].between_ns, 200 + 10 - 99);
}

#[test]
fn a_second_piece_begins_with_its_first_whole_pass() {
    let first = one_pass(0, 64);
    let second: Vec<Record> = (6..9).flat_map(|n| one_pass(n * 200, 64)).collect();
    let pieces = [first, second[5..].to_vec()];
    let timeline = Timeline::of(&pieces, &names(), &time, 9, 100);
    let passes: Vec<u64> = timeline.on(Track::Passes).map(|p| p.pass).collect();
    assert_eq!(passes, [1, 8, 9]);
    assert_eq!(timeline.passes_left_out, 6);
    let copies = timeline.on(Track::Copy).count();
    assert_eq!(copies, 6);
    let splits = timeline.slices.iter().filter_map(|s| match &s.kind {
        Kind::Split { reads, .. } if s.track == Track::Compute(0) => Some((s, reads)),
        _ => None,
    });
    for (split, reads) in splits {
        let copy = &timeline.slices[reads[0]];
        assert_eq!((copy.track, copy.pass), (Track::Copy, split.pass));
    }
}

#[test]
fn what_was_not_timed_has_no_length_and_disturbs_nothing() {
    let records = one_pass(0, 64);
    let timeline = Timeline::of(&[records, Vec::new()], &names(), &|_| None, 1, 9);
    assert!(timeline.on(Track::Copy).all(|s| s.duration() == 0));
    let mut json = Vec::new();
    timeline.write_to(&mut json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(json["traceEvents"].is_array());
}

#[test]
fn spans_are_merged_and_counted_once() {
    let slice = |start, end| Slice {
        track: Track::Host,
        start,
        end,
        kind: Kind::Submit,
        pass: 1,
    };
    let slices = [
        slice(5, 9),
        slice(0, 3),
        slice(8, 12),
        slice(3, 4),
        slice(7, 7),
    ];
    let spans = merged(slices.iter());
    assert_eq!(spans, [0..4, 5..12]);
    assert_eq!(overlap(&spans, &[2..6, 11..20]), 2 + 1 + 1);
}
