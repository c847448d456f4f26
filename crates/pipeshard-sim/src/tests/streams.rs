//! Streams, events, and when memory is read and written.

use super::super::{counters, failure, revive, timeline, EntryKind, SimCounters};
use super::*;

const COUNT: i64 = 1000;

fn values(from: f32) -> Vec<f32> {
    (0..COUNT).map(|i| from + i as f32).collect()
}

#[test]
fn pageable_sources_are_read_at_once() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    let gate = lane.close();
    let mut source = values(1.0);
    lane.set(tensors.all[0], &source);
    source.fill(-1.0);
    assert!(
        peek(tensors.all[0])[0].is_nan(),
        "a copy that is not waited for is not there yet"
    );
    gate.open();
    lane.synchronize();
    assert_eq!(peek(tensors.all[0]), values(1.0));
}

#[test]
fn page_locked_sources_are_read_when_the_stream_gets_there() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    let mut source = values(1.0);
    card.device
        .pin(address(&source), 4000)
        .expect("nothing else is locked");
    let gate = lane.close();
    lane.set(tensors.all[0], &source);
    source.fill(-1.0);
    gate.open();
    lane.synchronize();
    assert_eq!(peek(tensors.all[0])[0], -1.0);
    card.device
        .unpin(address(&source), 4000)
        .expect("locked above");
    let counters = counters(card.handle);
    assert_eq!(
        (counters.bytes_h2d_pinned, counters.bytes_h2d_pageable),
        (4000, 0)
    );
}

#[test]
fn reads_into_page_locked_memory_are_late_and_others_block() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    poke(tensors.all[0], &values(5.0));
    let mut target = vec![0f32; 1000];
    card.device
        .pin(address(&target), 4000)
        .expect("nothing else is locked");
    let gate = lane.close();
    lane.get(tensors.all[0], &mut target);
    gate.reached();
    assert_eq!(
        target[0], 0.0,
        "the stream is held, so nothing can have been read"
    );
    gate.open();
    lane.synchronize();
    assert_eq!(target, values(5.0));
    card.device
        .unpin(address(&target), 4000)
        .expect("locked above");

    let gate = lane.close();
    let opener = lane.open_when_waited_for(gate);
    target.fill(0.0);
    lane.get(tensors.all[0], &mut target);
    assert_eq!(
        target,
        values(5.0),
        "the call comes back when the data is there"
    );
    opener.join().expect("it only waits");
    assert_eq!(counters(card.handle).pageable_waits, 1);
}

#[test]
fn memory_that_is_locked_in_part_cannot_be_copied() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    let source = values(1.0);
    card.device
        .pin(address(&source), 2000)
        .expect("nothing else is locked");
    lane.set(tensors.all[0], &source);
    let reason = failure(card.handle).expect("CUDA refuses this");
    assert!(reason.contains("page-locked in part only"), "{reason}");
}

#[test]
fn a_stream_waits_for_the_latest_recording_before_the_wait() {
    let card = Card::new("vram=1M");
    let (first, second) = (card.stream(), card.stream());
    let tensors = card.floats::<1>(COUNT);
    let mark = card.event();

    second.wait(&mark);
    second.set(tensors.all[0], &values(1.0));
    second.synchronize();
    assert_eq!(
        peek(tensors.all[0])[0],
        1.0,
        "an event that was never recorded holds nobody"
    );

    let gate = first.close();
    first.record(&mark);
    second.wait(&mark);
    second.set(tensors.all[0], &values(2.0));
    gate.reached();
    second.reaches(&mark);
    assert_eq!(
        peek(tensors.all[0])[0],
        1.0,
        "the event has not happened yet"
    );
    gate.open();
    second.synchronize();
    assert_eq!(peek(tensors.all[0])[0], 2.0);

    second.wait(&mark);
    let gate = first.close();
    first.record(&mark);
    second.set(tensors.all[0], &values(3.0));
    second.synchronize();
    assert_eq!(
        peek(tensors.all[0])[0],
        3.0,
        "a later recording holds nobody who waited before"
    );
    gate.open();
    // SAFETY: the event is alive.
    unsafe { ffi::ggml_backend_event_synchronize(mark.event) };
    let counters = counters(card.handle);
    assert_eq!((counters.events_recorded, counters.events_waited), (2, 2));
    assert_eq!(counters.events_never_recorded, 1);
}

#[test]
fn copies_between_streams_hold_the_second_until_they_are_done() {
    let card = Card::new("vram=1M");
    let (first, second) = (card.stream(), card.stream());
    let tensors = card.floats::<3>(COUNT);
    let [a, b, c] = tensors.all;
    let gate = first.close();
    first.set(a, &values(7.0));
    // SAFETY: all are alive, and the tensors are alike.
    unsafe {
        ffi::ggml_backend_tensor_copy_async(first.backend, second.backend, a, b);
        ffi::ggml_backend_tensor_copy_async(second.backend, second.backend, b, c);
    }
    gate.reached();
    assert!(peek(c)[0].is_nan());
    let copies = timeline(card.handle);
    let spans: Vec<(u64, u64)> = copies.iter().map(|e| (e.start_ns, e.end_ns)).collect();
    assert_eq!(spans[1].0, spans[0].1);
    assert_eq!(spans[2].0, spans[1].1, "on the virtual clock too");
    gate.open();
    second.synchronize();
    assert_eq!(peek(c), values(7.0));
    assert_eq!(counters(card.handle).copies, 3);
}

#[test]
fn freeing_memory_waits_for_those_who_use_it() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    let gate = lane.close();
    lane.set(tensors.all[0], &values(1.0));
    let opener = lane.open_when_waited_for(gate);
    drop(tensors);
    opener.join().expect("it only waits");
    let counters = counters(card.handle);
    assert_eq!((counters.current_bytes, counters.host_syncs), (0, 1));
}

#[test]
fn a_failed_copy_takes_the_device_down_until_it_is_revived() {
    let card = Card::new("vram=1M,failcopy=2");
    let lane = card.stream();
    let tensors = card.floats::<1>(COUNT);
    lane.set(tensors.all[0], &values(1.0));
    assert_eq!(failure(card.handle), None);
    lane.synchronize();
    lane.set(tensors.all[0], &values(2.0));
    let reason = failure(card.handle).expect("the second copy fails");
    assert!(reason.contains("failcopy"), "{reason}");
    lane.set(tensors.all[0], &values(3.0));
    lane.synchronize();
    assert!(
        peek(tensors.all[0])[0].is_nan(),
        "a dead device tells nothing"
    );
    let mut read = values(5.0);
    lane.get(tensors.all[0], &mut read);
    lane.synchronize();
    assert!(read[0].is_nan());
    revive(card.handle);
    assert_eq!(peek(tensors.all[0])[0], 1.0, "a dead device does nothing");
    lane.set(tensors.all[0], &values(4.0));
    lane.synchronize();
    assert_eq!(peek(tensors.all[0])[0], 4.0);
}

/// One lane copies ahead, the other uses: the virtual clocks overlap them, the same in every run.
#[test]
fn the_timeline_is_that_of_a_pipeline_and_never_changes() {
    let run = || {
        let card = Card::new("vram=1M,pcie=1G,membw=2G,delay=100,seed=3");
        let (copies, uses) = (card.stream(), card.stream());
        let tensors = card.floats::<4>(COUNT);
        let source = values(0.0);
        card.device
            .pin(address(&source), 4000)
            .expect("nothing else is locked");
        let (ready, used) = ([card.event(), card.event()], [card.event(), card.event()]);
        for turn in 0..4 {
            let slot = turn % 2;
            copies.wait(&used[slot]);
            copies.set(tensors.all[slot], &source);
            copies.record(&ready[slot]);
            uses.wait(&ready[slot]);
            // SAFETY: all are alive, and the tensors are alike.
            unsafe {
                let (from, to) = (tensors.all[slot], tensors.all[2 + slot]);
                ffi::ggml_backend_tensor_copy_async(uses.backend, uses.backend, from, to);
            }
            uses.record(&used[slot]);
        }
        uses.synchronize();
        card.device
            .unpin(address(&source), 4000)
            .expect("locked above");
        let counters = SimCounters {
            // and what other tests lock in place
            pinned_bytes: 0,
            ..counters(card.handle)
        };
        (timeline(card.handle), counters)
    };
    let (entries, counters) = run();
    let spans = |kind| -> Vec<(u64, u64)> {
        let of_kind = entries.iter().filter(|e| e.kind == kind);
        of_kind.map(|e| (e.start_ns, e.end_ns)).collect()
    };
    // A copy takes 4 µs of the link; using it, which reads and writes it, 4 µs of the memory.
    assert_eq!(
        spans(EntryKind::H2d),
        [(0, 4000), (4000, 8000), (8000, 12000), (12000, 16000)]
    );
    assert_eq!(
        spans(EntryKind::D2d),
        [(4000, 8000), (8000, 12000), (12000, 16000), (16000, 20000)]
    );
    assert_eq!(counters.link_busy_h2d_ns, 16_000);
    assert_eq!(counters.elapsed_ns, 20_000);
    assert_eq!((counters.host_syncs, counters.host_wait_ns), (1, 20_000));
    assert_eq!(run(), (entries, counters));
}

#[test]
fn a_missing_wait_is_a_wrong_answer() {
    let run = |wait: bool| {
        let card = Card::new("vram=1M,delay=300,seed=1");
        let (copies, uses) = (card.stream(), card.stream());
        let tensors = card.floats::<2>(COUNT);
        let mark = card.event();
        for turn in 0..20 {
            copies.set(tensors.all[0], &values(turn as f32));
            copies.record(&mark);
            if wait {
                uses.wait(&mark);
            }
            // SAFETY: all are alive, and the tensors are alike.
            unsafe {
                ffi::ggml_backend_tensor_copy_async(
                    uses.backend,
                    uses.backend,
                    tensors.all[0],
                    tensors.all[1],
                );
            }
            uses.synchronize();
            copies.synchronize();
            if peek(tensors.all[1]) != values(turn as f32) {
                return false;
            }
        }
        true
    };
    assert!(run(true));
    assert!(!run(false));
}
