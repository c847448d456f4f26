//! The ring against a model of the device.

use super::*;
use proptest::prelude::*;

/// How many experts stacked groups have here.
const EXPERTS: u32 = 8;

/// A device that runs each lane in order and checks that no read ever sees a place that is being overwritten.
#[derive(Default)]
struct Model {
    places: Vec<Place>,
    /// Number of reads of each group submitted; number of those that copies so far have waited for.
    reads: Vec<u32>,
    covered: Vec<u32>,
    recorded: Vec<u32>,
    filled_by: Vec<Option<u64>>,
    content: Vec<Option<GroupId>>,
    copies: u64,
    expert_copies: u32,
    log: Vec<String>,
}

impl Model {
    fn new(places: &[Place]) -> Self {
        let n = places.len();
        let end = places.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0) as usize;
        Model {
            places: places.to_vec(),
            reads: vec![0; n],
            covered: vec![0; n],
            recorded: vec![0; n],
            filled_by: vec![None; n],
            content: vec![None; end],
            ..Default::default()
        }
    }
    fn span(&self, g: GroupId) -> std::ops::Range<usize> {
        let p = self.places[g];
        p.offset as usize..(p.offset + p.bytes) as usize
    }
    /// The bytes of one of the [`EXPERTS`] of a group.
    fn slice(&self, g: GroupId, expert: u32) -> std::ops::Range<usize> {
        let (span, expert) = (self.span(g), expert as usize);
        let bytes = span.len() / EXPERTS as usize;
        span.start + expert * bytes..span.start + (expert + 1) * bytes
    }
    /// Everything whose bytes may still be read from this place must have been waited for.
    fn assert_readers_are_waited_for(&self, group: GroupId) {
        for o in 0..self.places.len() {
            if self.places[o].overlaps(&self.places[group]) {
                assert_eq!(
                    self.covered[o], self.reads[o],
                    "copy of {group} does not wait for the readers of {o}"
                );
            }
        }
    }
    fn read_experts(&mut self, g: GroupId, experts: &ExpertSet) {
        for expert in (0..EXPERTS).filter(|&e| experts.contains(e)) {
            assert!(
                self.slice(g, expert).all(|i| self.content[i] == Some(g)),
                "expert {expert} of group {g} was read but is not in place"
            );
        }
        self.reads[g] += 1;
    }
    fn read(&mut self, g: GroupId) {
        assert!(
            self.span(g).all(|i| self.content[i] == Some(g)),
            "group {g} was read but is not in place"
        );
        self.reads[g] += 1;
    }
}

impl CopyLane for Model {
    fn wait_until_read(&mut self, group: GroupId) {
        self.covered[group] = self.recorded[group];
    }
    fn copy(&mut self, group: GroupId) -> bool {
        self.assert_readers_are_waited_for(group);
        for i in self.span(group) {
            self.content[i] = Some(group);
        }
        self.copies += 1;
        self.filled_by[group] = Some(self.copies);
        self.log.push(format!("copy {group}"));
        true
    }
    fn copy_experts(&mut self, group: GroupId, experts: &Experts) -> bool {
        self.assert_readers_are_waited_for(group);
        if experts.in_place.is_empty() {
            // the content of an earlier stay may be right, but that is not known
            for i in self.span(group) {
                self.content[i] = None;
            }
        }
        for run in experts.wanted.missing(&experts.in_place) {
            for expert in run {
                for i in self.slice(group, expert) {
                    assert_ne!(self.content[i], Some(group), "{expert} is in place already");
                    self.content[i] = Some(group);
                }
                self.expert_copies += 1;
            }
        }
        self.filled_by[group] = Some(self.copies);
        true
    }
    fn compute_waits_until_filled(&mut self, group: GroupId) {
        assert!(self.filled_by[group].is_some());
    }
    fn record_read(&mut self, group: GroupId) {
        self.recorded[group] = self.reads[group];
    }
}

fn sequential(sizes: &[u64], capacity: u64) -> Vec<Place> {
    let mut at = 0;
    sizes
        .iter()
        .map(|&bytes| {
            if at + bytes > capacity {
                at = 0;
            }
            let place = Place { offset: at, bytes };
            at += bytes;
            place
        })
        .collect()
}

fn run_pass(ring: &mut Ring, model: &mut Model, uses: &[(GroupId, u32)]) {
    ring.begin_pass(uses);
    ring.fill_ahead(model).unwrap();
    for &(g, n) in uses {
        for _ in 0..n {
            ring.before_split(&[g], model).unwrap();
            model.read(g);
            ring.after_split(&[g], model);
            ring.fill_ahead(model).unwrap();
        }
    }
    ring.begin_pass(uses);
    ring.fill_ahead(model).unwrap();
}

#[test]
fn copies_run_ahead_and_across_the_end_of_a_pass() {
    let places = sequential(&[10, 10, 10, 10, 10], 20);
    let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
    let uses: Vec<_> = (0..5).map(|g| (g, 1)).collect();
    run_pass(&mut ring, &mut model, &uses);
    assert_eq!(ring.stalls(), 0);
    // five groups, and the first of the next pass already again where the ring allows
    assert!(model.log.len() > 5, "{:?}", model.log);
    run_pass(&mut ring, &mut model, &uses);
    assert_eq!(ring.stalls(), 0);
}

#[test]
fn what_an_earlier_pass_left_behind_gives_way() {
    let places = sequential(&[10, 10, 10], 20);
    let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
    // group 2 lies where group 0 belongs, and is in place when the pass begins
    run_pass(&mut ring, &mut model, &[(2, 1)]);
    run_pass(&mut ring, &mut model, &[(0, 1), (1, 1), (2, 1)]);
    assert_eq!(ring.stalls(), 0);
}

#[test]
fn another_stream_reads_what_is_in_place_and_later_copies_wait_for_both() {
    let places = sequential(&[10, 10, 10, 10], 30);
    let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
    let uses = [(0, 1), (1, 1), (2, 1)];
    run_pass(&mut ring, &mut model, &uses);
    assert_eq!(model.copies, 3);
    run_pass(&mut ring, &mut model, &uses);
    assert_eq!(model.copies, 3, "everything fits and stays");
    ring.change_reader(&mut model);
    assert!((0..3).all(|g| model.covered[g] == model.reads[g]));
    run_pass(&mut ring, &mut model, &uses);
    assert_eq!(
        model.copies, 3,
        "nothing has to be copied for the other stream"
    );
    // the model checks that this copy waits for the readers of what lay there
    run_pass(&mut ring, &mut model, &[(3, 1)]);
    assert_eq!(ring.stalls(), 0);
}

#[test]
fn a_group_that_no_copy_was_issued_for_is_a_stall_not_an_error() {
    let places = sequential(&[10, 10], 10);
    let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
    // group 1 is not announced
    ring.begin_pass(&[(0, 1)]);
    ring.fill_ahead(&mut model).unwrap();
    ring.before_split(&[1], &mut model).unwrap();
    model.read(1);
    ring.after_split(&[1], &mut model);
    assert_eq!(ring.stalls(), 1);
    ring.before_split(&[0], &mut model).unwrap();
    assert_eq!(ring.stalls(), 2);
}

#[test]
fn two_overlapping_groups_in_one_split_are_refused() {
    let places = sequential(&[10, 10], 10);
    let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
    ring.begin_pass(&[(0, 1), (1, 1)]);
    assert_eq!(
        ring.before_split(&[0, 1], &mut model),
        Err(RingError::Conflict(0))
    );
}

fn some_experts(experts: &[u32]) -> ExpertSet {
    let mut set = ExpertSet::none(EXPERTS);
    assert!(experts.iter().all(|&e| set.insert(e)));
    set
}

/// A pass that reads, per group, all of it or only these experts.
fn run_choosing(ring: &mut Ring, model: &mut Model, pass: &[(GroupId, Option<ExpertSet>)]) {
    let uses: Vec<(GroupId, u32)> = pass.iter().map(|&(g, _)| (g, 1)).collect();
    let begin = |ring: &mut Ring, model: &mut Model| {
        ring.begin_pass(&uses);
        for (g, _) in pass.iter().filter(|(_, chosen)| chosen.is_some()) {
            ring.choose_later(*g);
        }
        ring.fill_ahead(model).unwrap();
    };
    begin(ring, model);
    for (g, chosen) in pass {
        if let (Some(chosen), true) = (chosen, ring.awaits_choice(*g)) {
            assert_eq!(
                ring.before_split(&[*g], model),
                Err(RingError::NotChosen(*g))
            );
            ring.choose(*g, chosen);
            ring.fill_ahead(model).unwrap();
        }
        ring.before_split(&[*g], model).unwrap();
        match chosen {
            Some(chosen) => model.read_experts(*g, chosen),
            None => model.read(*g),
        }
        ring.after_split(&[*g], model);
        ring.fill_ahead(model).unwrap();
    }
    begin(ring, model);
}

fn stacked(places: &[Place]) -> (Ring, Model) {
    let (mut ring, model) = (Ring::new(places), Model::new(places));
    (0..places.len()).for_each(|g| ring.stack(g, EXPERTS));
    (ring, model)
}

#[test]
fn experts_that_are_in_place_are_not_copied_again() {
    let (mut ring, mut model) = stacked(&sequential(&[80, 80], 160));
    let mut pass = |experts: &[u32]| {
        let before = model.expert_copies;
        let chosen = some_experts(experts);
        run_choosing(
            &mut ring,
            &mut model,
            &[(0, Some(chosen.clone())), (1, Some(chosen))],
        );
        (model.expert_copies - before, model.copies)
    };
    assert_eq!(pass(&[0, 1, 5]), (6, 0));
    assert_eq!(pass(&[1, 5]), (0, 0));
    assert_eq!(pass(&[5, 6]), (2, 0));
    assert_eq!(pass(&[0, 1, 2, 3, 4, 5, 6, 7]), (8, 0));
    // complete by now: the choice is not needed
    assert!(!ring.awaits_choice(0));
    run_choosing(&mut ring, &mut model, &[(0, None), (1, None)]);
    assert_eq!((model.expert_copies, model.copies), (16, 0));
    assert_eq!(ring.stalls(), 0);
}

#[test]
fn a_partial_group_is_not_taken_for_a_complete_one() {
    let (mut ring, mut model) = stacked(&sequential(&[80, 80], 160));
    let chosen = Some(some_experts(&[2, 3]));
    run_choosing(&mut ring, &mut model, &[(0, chosen.clone()), (1, chosen)]);
    assert_eq!((model.expert_copies, model.copies), (4, 0));
    run_choosing(&mut ring, &mut model, &[(0, None), (1, None)]);
    assert_eq!((model.expert_copies, model.copies), (16, 0));
}

#[test]
fn what_was_overwritten_is_copied_again() {
    let (mut ring, mut model) = stacked(&sequential(&[80, 80], 80));
    for passes in 1..4 {
        let chosen = Some(some_experts(&[2, 3 + passes]));
        run_choosing(
            &mut ring,
            &mut model,
            &[(0, chosen.clone()), (1, chosen.clone())],
        );
        assert_eq!(model.expert_copies, 4 * passes);
    }
}

#[test]
fn copies_ahead_leave_room_for_experts_that_are_not_chosen_yet() {
    // group 1 is chosen late; 2 may be copied ahead of it, 3 lies where it will
    let places = [(0, 8), (8, 8), (16, 8), (8, 8)];
    let places = places.map(|(offset, bytes)| Place { offset, bytes });
    let (mut ring, mut model) = stacked(&places);
    ring.begin_pass(&[(0, 1), (1, 1), (2, 1), (3, 1)]);
    ring.choose_later(1);
    ring.fill_ahead(&mut model).unwrap();
    assert_eq!(model.log, ["copy 0", "copy 2"]);
    ring.choose(1, &some_experts(&[7]));
    ring.fill_ahead(&mut model).unwrap();
    assert_eq!((model.expert_copies, model.log.len()), (1, 2));
    ring.before_split(&[1], &mut model).unwrap();
    model.read_experts(1, &some_experts(&[7]));
    ring.after_split(&[1], &mut model);
    ring.fill_ahead(&mut model).unwrap();
    assert_eq!(model.log[2..], ["copy 3"]);
    assert_eq!(ring.stalls(), 0);
}

proptest! {
    #[test]
    fn no_read_sees_another_groups_bytes(
        sizes in prop::collection::vec(1u64..40, 1..12),
        slack in 0u64..60,
        passes in prop::collection::vec(prop::collection::vec((0usize..12, 1u32..3), 0..12), 1..5),
    ) {
        let largest = *sizes.iter().max().unwrap();
        let places = sequential(&sizes, largest * 2 + slack);
        let (mut ring, mut model) = (Ring::new(&places), Model::new(&places));
        for pass in passes {
            let mut uses: Vec<(GroupId, u32)> = Vec::new();
            for (g, n) in pass {
                let g = g % sizes.len();
                if uses.iter().all(|u| u.0 != g) {
                    uses.push((g, n));
                }
            }
            run_pass(&mut ring, &mut model, &uses);
        }
    }

    #[test]
    fn no_read_sees_an_expert_that_is_not_in_place(
        sizes in prop::collection::vec(1u64..4, 1..10),
        slack in 0u64..60,
        other_stream in prop::collection::vec(prop::bool::ANY, 5),
        passes in prop::collection::vec(
            prop::collection::vec((0usize..10, prop::option::of(0u8..=255)), 0..10), 1..5),
    ) {
        let sizes: Vec<u64> = sizes.iter().map(|size| size * u64::from(EXPERTS)).collect();
        let largest = *sizes.iter().max().unwrap();
        let (mut ring, mut model) = stacked(&sequential(&sizes, largest * 2 + slack));
        for (pass, changes) in passes.iter().zip(other_stream) {
            let mut reads: Vec<(GroupId, Option<ExpertSet>)> = Vec::new();
            for (g, bits) in pass {
                let g = g % sizes.len();
                let chosen = bits.map(|bits| {
                    let chosen: Vec<u32> = (0..EXPERTS).filter(|e| bits >> e & 1 == 1).collect();
                    some_experts(&chosen)
                });
                if reads.iter().all(|read| read.0 != g) {
                    reads.push((g, chosen));
                }
            }
            if changes {
                ring.change_reader(&mut model);
            }
            run_choosing(&mut ring, &mut model, &reads);
        }
    }
}
