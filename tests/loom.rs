//! The protocols between threads, in every order in which threads can run (up to two switches that nothing forces): the
//! queue of a stream, events, the lanes with the ring between them, the staging ring, and the gate in front of the runtime. What is
//! tried is the source that runs; only the locks are loom's.
//!
//! A test that expects a panic leaves something out on purpose: it shows that the models would notice.
#![allow(
    clippy::arc_with_non_send_sync,
    reason = "loom runs all its threads on one, and its cells say themselves who may share them"
)]

#[path = "../crates/pipeshard-sim/src/fence.rs"]
#[allow(dead_code)]
mod fence;
#[path = "../src/hook/gate.rs"]
#[allow(dead_code)]
mod gate;
#[path = "../crates/pipeshard-sim/src/queue.rs"]
#[allow(dead_code)]
mod queue;

use std::sync::Arc;

use fence::{Event, Fence};
use gate::{Gate, Guard, GUARDS};
use loom::cell::UnsafeCell;
use loom::thread;
use pipeshard::lanes::ring::{CopyLane, Experts, GroupId, Place, Ring};
use pipeshard::lanes::staging::StagingRing;
use queue::{CommandQueue, Queued};

/// What `crate::sync` and `crate::hook::sync` have, made of loom's.
mod sync {
    pub use loom::thread::ThreadId;
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub fn current_thread() -> ThreadId {
        loom::thread::current().id()
    }

    /// Time does not pass here.
    pub struct Waited;

    impl Waited {
        pub fn timed_out(&self) -> bool {
            false
        }
    }

    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(self.0.lock().ok())
        }

        pub fn try_lock_for(&self, _: Duration) -> Option<MutexGuard<'_, T>> {
            Some(self.lock())
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("locked")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("locked")
        }
    }

    #[derive(Debug)]
    pub struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("locked");
            guard.0 = self.0.wait(held).ok();
        }

        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> Waited {
            self.wait(guard);
            Waited
        }

        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

/// Every order of threads with at most two switches that nothing forces.
fn every_order(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

/// Memory that streams work on: loom ends a run in which two threads use a byte without an order between them.
type Memory = Arc<Vec<UnsafeCell<usize>>>;

fn memory(bytes: usize) -> Memory {
    Arc::new((0..bytes).map(|_| UnsafeCell::new(usize::MAX)).collect())
}

fn write(memory: &Memory, at: usize, value: usize) {
    // SAFETY: loom checks that nobody else uses the cell meanwhile.
    memory[at].with_mut(|cell| unsafe { *cell = value });
}

fn read(memory: &Memory, at: usize) -> usize {
    // SAFETY: as above.
    memory[at].with(|cell| unsafe { *cell })
}

enum Command {
    Write(Memory, usize, usize),
    Expect(Memory, usize, usize),
    /// From one memory to the other.
    Copy(Memory, Memory),
    Staged(usize),
    Signal(Arc<Fence>),
    Wait(Arc<Fence>),
}

impl Queued for Command {
    fn staged(&self) -> usize {
        match self {
            Command::Staged(bytes) => *bytes,
            _ => 0,
        }
    }

    fn only_waits(&self) -> bool {
        matches!(self, Command::Wait(_))
    }
}

/// A stream: a queue and the thread that carries it out.
struct Stream {
    queue: Arc<CommandQueue<Command>>,
    worker: thread::JoinHandle<()>,
}

const STAGING_LIMIT: usize = 4;

impl Stream {
    fn start() -> Self {
        let queue = Arc::new(CommandQueue::new(STAGING_LIMIT));
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                while let Some(command) = queue.next(|| false) {
                    match command {
                        Command::Write(memory, at, value) => write(&memory, at, value),
                        Command::Expect(memory, at, value) => assert_eq!(read(&memory, at), value),
                        Command::Copy(to, from) => write(&to, 0, read(&from, 0)),
                        Command::Staged(_) => {}
                        Command::Signal(fence) => fence.signal(),
                        Command::Wait(fence) => fence.wait(),
                    }
                    queue.complete();
                }
            })
        };
        Self { queue, worker }
    }

    fn record(&self, event: &Event) {
        event.record(|fence| {
            self.queue.submit(Command::Signal(fence));
            0
        });
    }

    fn hold(&self, event: &Event) {
        if let Some(recording) = event.latest() {
            self.queue.submit(Command::Wait(recording.fence));
        }
    }

    fn stop(self) {
        self.queue.close();
        self.worker.join().expect("a stream ends by itself");
    }
}

fn synchronize(event: &Event) {
    if let Some(recording) = event.latest() {
        recording.fence.wait();
    }
}

#[test]
fn who_drained_a_stream_sees_what_it_did() {
    every_order(|| {
        let (stream, memory) = (Stream::start(), memory(2));
        for at in 0..2 {
            stream
                .queue
                .submit(Command::Write(Arc::clone(&memory), at, at));
        }
        stream.queue.drain();
        assert_eq!((read(&memory, 0), read(&memory, 1)), (0, 1));
        assert!(!stream.queue.is_busy());
        stream.stop();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_missing_drain_is_noticed() {
    every_order(|| {
        let (stream, memory) = (Stream::start(), memory(1));
        stream
            .queue
            .submit(Command::Write(Arc::clone(&memory), 0, 0));
        read(&memory, 0);
        stream.stop();
    });
}

#[test]
fn submitters_that_wait_for_room_do_not_wait_for_each_other() {
    every_order(|| {
        let stream = Stream::start();
        stream.queue.submit(Command::Staged(3));
        let other = {
            let queue = Arc::clone(&stream.queue);
            thread::spawn(move || queue.submit(Command::Staged(3)))
        };
        // more than the limit on its own
        stream.queue.submit(Command::Staged(STAGING_LIMIT + 1));
        other.join().expect("it only submits");
        stream.queue.drain();
        stream.stop();
    });
}

#[test]
fn a_stream_that_is_closed_carries_out_what_it_has() {
    every_order(|| {
        let (stream, memory) = (Stream::start(), memory(1));
        stream
            .queue
            .submit(Command::Write(Arc::clone(&memory), 0, 7));
        stream.stop();
        assert_eq!(read(&memory, 0), 7);
    });
}

#[test]
fn streams_and_the_host_are_ordered_by_an_event() {
    every_order(|| {
        let (first, second, memory) = (Stream::start(), Stream::start(), memory(1));
        let event = Event::default();
        first
            .queue
            .submit(Command::Write(Arc::clone(&memory), 0, 5));
        first.record(&event);
        second.hold(&event);
        second
            .queue
            .submit(Command::Expect(Arc::clone(&memory), 0, 5));
        synchronize(&event);
        assert_eq!(read(&memory, 0), 5);
        first.stop();
        second.stop();
    });
}

/// Which wait is left out.
#[derive(Clone, Copy, PartialEq)]
enum Dropped {
    Nothing,
    Filled,
    Read,
}

/// The lanes as the arena drives them: one place per group, and all groups in the same byte.
struct Lanes<'a> {
    copy: &'a Stream,
    compute: &'a Stream,
    slot: Memory,
    filled: Vec<Event>,
    read: Vec<Event>,
    dropped: Dropped,
}

impl CopyLane for Lanes<'_> {
    fn wait_until_read(&mut self, group: GroupId) {
        if self.dropped != Dropped::Read {
            self.copy.hold(&self.read[group]);
        }
    }

    fn copy(&mut self, group: GroupId) -> bool {
        let slot = Arc::clone(&self.slot);
        self.copy.queue.submit(Command::Write(slot, 0, group));
        self.copy.record(&self.filled[group]);
        true
    }

    fn copy_experts(&mut self, group: GroupId, _: &Experts) -> bool {
        panic!("group {group} is no stack of experts")
    }

    fn compute_waits_until_filled(&mut self, group: GroupId) {
        if self.dropped != Dropped::Filled {
            self.compute.hold(&self.filled[group]);
        }
    }

    fn record_read(&mut self, group: GroupId) {
        self.compute.record(&self.read[group]);
    }
}

/// A pass over two groups that take turns in one place, and what is copied ahead for the next.
fn pass(dropped: Dropped) {
    let (copy, compute) = (Stream::start(), Stream::start());
    let mut lanes = Lanes {
        copy: &copy,
        compute: &compute,
        slot: memory(1),
        filled: vec![Event::default(), Event::default()],
        read: vec![Event::default(), Event::default()],
        dropped,
    };
    let place = Place {
        offset: 0,
        bytes: 1,
    };
    let mut ring = Ring::new(&[place, place]);
    let uses = [(0, 1), (1, 1)];
    ring.begin_pass(&uses);
    ring.fill_ahead(&mut lanes).expect("it has places");
    for (group, _) in uses {
        ring.before_split(&[group], &mut lanes)
            .expect("it has places");
        let slot = Arc::clone(&lanes.slot);
        compute.queue.submit(Command::Expect(slot, 0, group));
        ring.after_split(&[group], &mut lanes);
        ring.fill_ahead(&mut lanes).expect("it has places");
    }
    ring.begin_pass(&uses);
    ring.fill_ahead(&mut lanes).expect("it has places");
    assert_eq!(ring.stalls(), 0);
    copy.stop();
    compute.stop();
}

#[test]
fn no_split_reads_a_place_before_it_is_filled_or_while_it_is_overwritten() {
    every_order(|| pass(Dropped::Nothing));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_compute_lane_that_does_not_wait_is_noticed() {
    every_order(|| pass(Dropped::Filled));
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn a_copy_lane_that_does_not_wait_is_noticed() {
    every_order(|| pass(Dropped::Read));
}

/// Three copies through a staging ring of two blocks.
fn stage(waits: bool) {
    let (stream, target) = (Stream::start(), memory(1));
    let mut ring = StagingRing::default();
    for _ in 0..2 {
        ring.push((memory(1), Event::default()));
    }
    for value in 0..3 {
        let block = ring.take(|(_, copied)| {
            if waits {
                synchronize(copied);
            }
        });
        let (block, copied) = block.expect("it has blocks");
        write(block, 0, value);
        let (to, from) = (Arc::clone(&target), Arc::clone(block));
        stream.queue.submit(Command::Copy(to, from));
        stream.record(copied);
        let target = Arc::clone(&target);
        stream.queue.submit(Command::Expect(target, 0, value));
    }
    stream.stop();
}

#[test]
fn no_staging_block_is_overwritten_while_it_is_read() {
    every_order(|| stage(true));
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn a_staging_block_that_is_not_waited_for_is_noticed() {
    every_order(|| stage(false));
}

fn gate() -> Arc<Gate<()>> {
    Arc::new(Gate::new((), || panic!("nobody is given up on")))
}

/// Does something under a guard.
fn under(gate: &Gate<()>, guard: Guard, work: impl FnOnce()) {
    match guard {
        Guard::Nothing | Guard::IdleOrAlone | Guard::PlainOrIdle => panic!("this is no guard"),
        Guard::Plain => {
            let _held = gate.plain();
            work();
        }
        Guard::InTurn => {
            let _held = gate.in_turn();
            work();
        }
        Guard::Idle => {
            let _held = gate.idle();
            work();
        }
        Guard::Alone => {
            let _held = gate.alone();
            work();
        }
        Guard::IdleThenAlone => {
            let _held = gate.idle().alone();
            work();
        }
    }
}

/// The guards that a callback may find itself under.
fn kinds(guard: Guard) -> Vec<Guard> {
    match guard {
        Guard::Nothing => Vec::new(),
        Guard::IdleOrAlone => vec![Guard::Idle, Guard::Alone],
        Guard::PlainOrIdle => vec![Guard::Plain, Guard::Idle],
        guard => vec![guard],
    }
}

/// Another thread writes under `guard` what a pass reads that holds no lock meanwhile.
fn beside_a_pass(guard: Guard) {
    let (gate, graph) = (gate(), memory(1));
    let other = {
        let (gate, graph) = (Arc::clone(&gate), Arc::clone(&graph));
        thread::spawn(move || under(&gate, guard, || write(&graph, 0, 7)))
    };
    gate.idle().begin_pass(1);
    let before = read(&graph, 0);
    assert_eq!(read(&graph, 0), before);
    gate.plain().end_pass(1);
    other.join().expect("it only waits");
}

/// Another thread writes under `guard` where weights are, while this one has a graph that refers to them and computes it.
fn beside_a_graph(guard: Guard) {
    let (gate, arena) = (gate(), memory(1));
    let other = {
        let (gate, arena) = (Arc::clone(&gate), Arc::clone(&arena));
        thread::spawn(move || under(&gate, guard, || write(&arena, 0, 7)))
    };
    gate.in_turn().begin_preparing(1);
    let before = read(&arena, 0);
    gate.idle().begin_pass(1);
    assert_eq!(read(&arena, 0), before);
    let mut over = gate.plain();
    over.end_pass(1);
    over.end_preparing();
    drop(over);
    other.join().expect("it only waits");
}

/// The same where that graph uses nothing of which there is one, so that its pass is not submitted alone.
fn beside_a_shared_pass(guard: Guard) {
    let (gate, arena) = (gate(), memory(1));
    let other = {
        let (gate, arena) = (Arc::clone(&gate), Arc::clone(&arena));
        thread::spawn(move || under(&gate, guard, || write(&arena, 0, 7)))
    };
    gate.in_turn().begin_preparing(1);
    gate.plain().begin_preparing(1);
    let before = read(&arena, 0);
    assert_eq!(read(&arena, 0), before);
    gate.plain().end_preparing();
    other.join().expect("it only waits");
}

/// Another thread writes under `guard` where weights are, while this one makes a context and measures graphs that refer to them.
fn beside_a_maker(guard: Guard) {
    let (gate, arena) = (gate(), memory(1));
    let other = {
        let (gate, arena) = (Arc::clone(&gate), Arc::clone(&arena));
        thread::spawn(move || under(&gate, guard, || write(&arena, 0, 7)))
    };
    drop(gate.making());
    let before = read(&arena, 0);
    // what the context itself needs does not wait for it
    drop(gate.alone());
    gate.in_turn().begin_preparing(1);
    gate.plain().end_preparing();
    assert_eq!(read(&arena, 0), before);
    gate.plain().end_making();
    other.join().expect("it only waits");
}

/// The same while this one measures a graph of a context that it has, and asks for room for it.
fn beside_a_measurement(guard: Guard) {
    let (gate, arena) = (gate(), memory(1));
    let other = {
        let (gate, arena) = (Arc::clone(&gate), Arc::clone(&arena));
        thread::spawn(move || under(&gate, guard, || write(&arena, 0, 7)))
    };
    gate.idle().begin_preparing(1);
    let before = read(&arena, 0);
    assert_eq!(read(&arena, 0), before);
    // who waits to be alone lets others go first
    gate.alone().begin_preparing(1);
    let before = read(&arena, 0);
    assert_eq!(read(&arena, 0), before);
    gate.plain().end_preparing();
    other.join().expect("it only waits");
}

/// Two threads write under `guard` what else is behind the lock.
fn beside_each_other(guard: Guard) {
    let (gate, counters) = (gate(), memory(1));
    let count = move |gate: &Gate<()>, counters: &Memory| {
        under(gate, guard, || {
            let counted = read(counters, 0).wrapping_add(1);
            write(counters, 0, counted);
        });
    };
    let other = {
        let (gate, counters) = (Arc::clone(&gate), Arc::clone(&counters));
        thread::spawn(move || count(&gate, &counters))
    };
    count(&gate, &counters);
    other.join().expect("it only waits");
    assert_eq!(read(&counters, 0), 1);
}

/// What a callback may do under its guard.
fn promises(guard: Guard) -> &'static [fn(Guard)] {
    match guard {
        Guard::Nothing | Guard::IdleOrAlone | Guard::PlainOrIdle => &[],
        Guard::Plain | Guard::InTurn => &[beside_each_other],
        Guard::Idle => &[beside_each_other, beside_a_pass],
        Guard::Alone | Guard::IdleThenAlone => &[
            beside_each_other,
            beside_a_pass,
            beside_a_graph,
            beside_a_shared_pass,
            beside_a_maker,
            beside_a_measurement,
        ],
    }
}

#[test]
fn every_callback_finds_what_its_guard_promises() {
    let mut tried = Vec::new();
    for guard in GUARDS.iter().flat_map(|&(_, guard)| kinds(guard)) {
        if !tried.contains(&guard) {
            tried.push(guard);
            for &promise in promises(guard) {
                every_order(move || promise(guard));
            }
        }
    }
    assert_eq!(tried.len(), 5, "{tried:?}");
}

#[test]
#[should_panic(expected = "Causality violation")]
fn what_a_pass_reads_is_not_guarded_by_the_lock_alone() {
    every_order(|| beside_a_pass(Guard::Plain));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn where_weights_are_is_not_guarded_by_waiting_for_passes() {
    every_order(|| beside_a_graph(Guard::Idle));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn what_a_maker_measures_is_not_guarded_by_waiting_for_passes() {
    every_order(|| beside_a_maker(Guard::Idle));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn what_is_measured_is_not_guarded_by_waiting_for_passes() {
    every_order(|| beside_a_measurement(Guard::Idle));
}

#[test]
fn contexts_are_made_one_after_the_other() {
    every_order(|| {
        let (gate, given_up) = (gate(), memory(1));
        let make = |gate: &Gate<()>, given_up: &Memory, value| {
            drop(gate.making());
            write(given_up, 0, value);
            assert_eq!(read(given_up, 0), value);
            gate.plain().end_making();
        };
        let other = {
            let (gate, given_up) = (Arc::clone(&gate), Arc::clone(&given_up));
            thread::spawn(move || make(&gate, &given_up, 1))
        };
        make(&gate, &given_up, 2);
        other.join().expect("it only waits");
    });
}

#[test]
fn threads_that_all_want_another_shape_do_not_wait_for_each_other() {
    every_order(|| {
        let gate = gate();
        let turn = |gate: &Gate<()>| {
            gate.in_turn().begin_preparing(1);
            // it gives up its own graph, and makes another
            let mut idle = gate.alone().into_idle();
            idle.begin_preparing(1);
            idle.begin_pass(1);
            drop(idle);
            let mut over = gate.plain();
            over.end_pass(1);
            over.end_preparing();
        };
        let other = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || turn(&gate))
        };
        turn(&gate);
        other.join().expect("it only waits");
    });
}

#[test]
fn a_scheduler_that_is_freed_ends_a_pass_that_nobody_ended() {
    every_order(|| {
        let gate = gate();
        gate.idle().begin_pass(1);
        let other = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || drop(gate.alone()))
        };
        // an exception has left the pass; freeing the scheduler is all that follows
        gate.plain().end_pass(1);
        drop(gate.idle());
        other.join().expect("it only waits");
    });
}
