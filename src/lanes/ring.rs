//! Which streamed groups are in the ring, and when the next one may be copied.
//!
//! The ring is a piece of device memory that the streamed groups take turns in. Every group has one fixed place, so
//! addresses repeat from pass to pass; groups whose places overlap evict each other. This module is the bookkeeping alone:
//! it says what to do through [`CopyLane`], and does nothing to a device itself.
//!
//! Order of events for one group, on the lanes:
//!
//! ```text
//! copy lane:     wait(readers of what lay here) → copy → record filled
//! compute lane:  wait(filled) → split that reads it → record read
//! ```

/// Index of a streamed group in the plan's ring.
pub type GroupId = usize;

/// What the ring asks of the lanes. Calls come in submission order and return without waiting for the device.
pub trait CopyLane {
    /// The copy lane waits until the split that last read `group` has finished.
    fn wait_until_read(&mut self, group: GroupId);
    /// Submits the copy of `group` into its place and records that it is filled. False when the copy could not be submitted.
    fn copy(&mut self, group: GroupId) -> bool;
    /// The compute lane waits until `group` is filled.
    fn compute_waits_until_filled(&mut self, group: GroupId);
    /// Records that the splits submitted so far have read `group`.
    fn record_read(&mut self, group: GroupId);
}

/// A group's place in the ring, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

/// Why a split cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// The group would have to overwrite one that the same split reads.
    Conflict(GroupId),
    /// The copy lane refused the copy.
    CopyFailed(GroupId),
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The group's bytes are in its place, or on their way there.
    filled: bool,
    /// A split has read it since it was filled.
    read: bool,
    /// Splits of the current pass that have not been submitted yet and read it.
    uses_left: u32,
    /// Where it stands in the current pass's order.
    position: usize,
}

/// The ring's state across passes.
#[derive(Debug, Default)]
pub struct Ring {
    conflicts: Vec<Vec<GroupId>>,
    states: Vec<State>,
    /// The current pass's groups in order of first use.
    sequence: Vec<GroupId>,
    next: usize,
    /// Copies that had not been submitted when the first split that needed them was.
    stalls: u64,
}

impl Ring {
    /// A ring with these places, all empty.
    pub fn new(places: &[Place]) -> Self {
        let conflicts = places
            .iter()
            .enumerate()
            .map(|(g, place)| {
                (0..places.len())
                    .filter(|&o| o != g && place.overlaps(&places[o]))
                    .collect()
            })
            .collect();
        Ring {
            conflicts,
            states: vec![State::default(); places.len()],
            sequence: Vec::with_capacity(places.len()),
            next: 0,
            stalls: 0,
        }
    }

    /// Copies that had to be submitted only when a split asked for them, since the ring was made.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Starts a pass (or announces the next one): `uses` names each group in order of first use, with the number of
    /// splits that read it. Groups that are still in place are kept.
    pub fn begin_pass(&mut self, uses: &[(GroupId, u32)]) {
        for state in &mut self.states {
            state.uses_left = 0;
        }
        self.sequence.clear();
        for (position, &(group, count)) in uses.iter().enumerate() {
            self.sequence.push(group);
            self.states[group].uses_left = count;
            self.states[group].position = position;
        }
        self.next = 0;
    }

    /// Another compute stream reads from now on. An event tells of one stream only, so the copy lane waits at once for what the
    /// stream before has read; what is in place stays.
    pub fn change_reader<L: CopyLane>(&mut self, lane: &mut L) {
        for group in 0..self.states.len() {
            let state = &mut self.states[group];
            if state.filled && state.read {
                state.read = false;
                lane.wait_until_read(group);
            }
        }
    }

    /// Submits copies in the pass's order, as far ahead as places are free.
    pub fn fill_ahead<L: CopyLane>(&mut self, lane: &mut L) -> Result<(), RingError> {
        while let Some(&group) = self.sequence.get(self.next) {
            if !self.states[group].filled && self.states[group].uses_left > 0 {
                // what is left of an earlier pass and is needed only later gives way
                let needed_before = |o: &State| {
                    o.filled && o.uses_left > 0 && o.position < self.states[group].position
                };
                let blocked = self.conflicts[group]
                    .iter()
                    .any(|&o| needed_before(&self.states[o]));
                if blocked {
                    return Ok(());
                }
                self.fill(group, lane)?;
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Before a split that reads these groups is submitted: they are filled (at once if they were not) and waited for.
    pub fn before_split<L: CopyLane>(
        &mut self,
        groups: &[GroupId],
        lane: &mut L,
    ) -> Result<(), RingError> {
        for &group in groups {
            if !self.states[group].filled {
                if self.conflicts[group].iter().any(|o| groups.contains(o)) {
                    return Err(RingError::Conflict(group));
                }
                self.stalls += 1;
                self.fill(group, lane)?;
            }
            lane.compute_waits_until_filled(group);
        }
        Ok(())
    }

    /// After a split that reads these groups was submitted.
    pub fn after_split<L: CopyLane>(&mut self, groups: &[GroupId], lane: &mut L) {
        for &group in groups {
            let state = &mut self.states[group];
            state.read = true;
            state.uses_left = state.uses_left.saturating_sub(1);
            lane.record_read(group);
        }
    }

    fn fill<L: CopyLane>(&mut self, group: GroupId, lane: &mut L) -> Result<(), RingError> {
        for i in 0..self.conflicts[group].len() {
            let other = self.conflicts[group][i];
            let state = &mut self.states[other];
            if state.filled {
                state.filled = false;
                if state.read {
                    lane.wait_until_read(other);
                }
            }
        }
        // The reader of an occupant that was itself evicted by a neighbour is covered: that neighbour's copy waited for
        // it, and copies run in order.
        if !lane.copy(group) {
            return Err(RingError::CopyFailed(group));
        }
        self.states[group].filled = true;
        self.states[group].read = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            // everything whose bytes may still be read from this place must have been waited for
            for o in 0..self.places.len() {
                if self.places[o].overlaps(&self.places[group]) {
                    assert_eq!(
                        self.covered[o], self.reads[o],
                        "copy of {group} does not wait for the readers of {o}"
                    );
                }
            }
            for i in self.span(group) {
                self.content[i] = Some(group);
            }
            self.copies += 1;
            self.filled_by[group] = Some(self.copies);
            self.log.push(format!("copy {group}"));
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
    }
}
