//! [`super::gate`] with real threads; `tests/loom.rs` tries every order of them.

use super::gate::{Gate, Watched};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

fn gate() -> Arc<Gate<()>> {
    Arc::new(Gate::new((), || ()))
}

/// Begins to prepare on a thread of its own, which ends when the gate looks like that.
fn prepare(gate: &Arc<Gate<()>>, until: fn(&Watched) -> bool) -> thread::JoinHandle<()> {
    let (gate, begun) = (Arc::clone(gate), Arc::new(AtomicBool::new(false)));
    let begins = Arc::clone(&begun);
    let handle = thread::spawn(move || {
        gate.in_turn().begin_preparing(1);
        begins.store(true, Ordering::SeqCst);
        while !until(&gate.watched()) {
            thread::yield_now();
        }
        gate.plain().end_preparing();
    });
    while !begun.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    handle
}

#[test]
fn a_shape_changes_when_nobody_else_prepares() {
    let gate = gate();
    let others = [
        prepare(&gate, |watched| watched.waiting > 0),
        prepare(&gate, |watched| {
            watched.waiting > 0 && watched.preparing == 1
        }),
    ];
    let alone = gate.alone();
    drop(alone);
    let watched = gate.watched();
    assert_eq!((watched.preparing, watched.waiting), (0, 0));
    for other in others {
        other.join().expect("it only waits");
    }
}

#[test]
fn who_has_no_time_to_wait_does_not() {
    let gate = gate();
    let late = gate.alone_by(Instant::now());
    assert!(late.is_some(), "there is nothing to wait for");
    drop(late);
    let over = Arc::new(AtomicBool::new(false));
    let other = {
        let (gate, over) = (Arc::clone(&gate), Arc::clone(&over));
        thread::spawn(move || {
            gate.in_turn().begin_preparing(1);
            while !over.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            gate.plain().end_preparing();
        })
    };
    while gate.watched().preparing == 0 {
        thread::yield_now();
    }
    assert!(gate.alone_by(Instant::now()).is_none());
    let soon = Instant::now() + Duration::from_millis(1);
    assert!(gate.alone_by(soon).is_none());
    let watched = gate.watched();
    assert_eq!((watched.preparing, watched.waiting), (1, 0));
    over.store(true, Ordering::SeqCst);
    drop(gate.alone());
    other.join().expect("it only waits");
}

#[test]
fn ones_own_graph_is_no_obstacle() {
    let gate = gate();
    gate.in_turn().begin_preparing(1);
    drop(gate.alone());
    // nor is one that was given up without a word, on the way to the next
    gate.in_turn().begin_preparing(1);
    drop(gate.in_turn());
    assert_eq!(gate.watched().preparing, 0);
}

#[test]
fn who_wants_to_change_the_shape_goes_before_those_who_come_later() {
    let gate = gate();
    // goes on until the other two are where they wait, or did not wait
    let first = prepare(&gate, |watched| {
        watched.waiting > 0 && (watched.held_back > 0 || watched.preparing > 1)
    });
    let changes = Arc::new(AtomicU32::new(0));
    let changer = {
        let (gate, changes) = (Arc::clone(&gate), Arc::clone(&changes));
        thread::spawn(move || {
            let _alone = gate.alone();
            changes.fetch_add(1, Ordering::SeqCst);
        })
    };
    while gate.watched().waiting == 0 && !changer.is_finished() {
        thread::yield_now();
    }
    let later = prepare(&gate, |_| true);
    assert_eq!(changes.load(Ordering::SeqCst), 1);
    for thread in [first, changer, later] {
        thread.join().expect("it only waits");
    }
}

#[test]
fn a_pass_keeps_others_from_what_it_reads() {
    let gate = gate();
    gate.idle().begin_pass(7);
    // the end of another scheduler's pass is not the end of this one
    gate.plain().end_pass(8);
    assert_eq!(gate.watched().pass, Some(7));
    gate.plain().end_pass(7);
    drop(gate.idle());
}

#[test]
fn who_ends_the_process_inside_a_callback_does_not_wait_for_itself() {
    let gate = gate();
    let held = gate.plain();
    assert!(gate.plain_within(Duration::from_millis(5)).is_none());
    drop(held);
    assert!(gate.plain_within(Duration::ZERO).is_some());
}
