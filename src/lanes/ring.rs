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
//!
//! A group of stacked experts may be filled in part: with the experts that a batch has chosen, once they are known. Then the
//! ring remembers which are in place, and later fills fetch what is missing.

use super::experts::ExpertSet;

/// Index of a streamed group in the plan's ring.
pub type GroupId = usize;

/// What the ring asks of the lanes. Calls come in submission order and return without waiting for the device.
pub trait CopyLane {
    /// The copy lane waits until the split that last read `group` has finished.
    fn wait_until_read(&mut self, group: GroupId);
    /// Submits the copy of `group` into its place and records that it is filled. False when the copy could not be submitted.
    fn copy(&mut self, group: GroupId) -> bool;
    /// Submits the copy of the experts of `group` that are wanted and not in place, and records that it is filled. False when
    /// a copy could not be submitted.
    fn copy_experts(&mut self, group: GroupId, experts: &Experts) -> bool;
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
    /// Nobody has said which of the group's experts the split reads.
    NotChosen(GroupId),
}

/// The experts of a group that is one tensor of stacked experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// Chosen by the current pass.
    pub wanted: ExpertSet,
    /// In place, or on their way there.
    pub in_place: ExpertSet,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The group's bytes are in its place, or on their way there: all of them, unless it is `partial`.
    filled: bool,
    /// Only the experts that are noted as in place are.
    partial: bool,
    /// The current pass wants chosen experts only.
    choosy: bool,
    /// It is known which.
    chosen: bool,
    /// They have been asked for.
    settled: bool,
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
    /// The experts of groups that consist of such; others are always copied as a whole.
    experts: Vec<Option<Experts>>,
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
            experts: vec![None; places.len()],
            sequence: Vec::with_capacity(places.len()),
            next: 0,
            stalls: 0,
        }
    }

    /// States that `group` is a tensor of so many stacked experts.
    pub fn stack(&mut self, group: GroupId, experts: u32) {
        self.experts[group] = Some(Experts {
            wanted: ExpertSet::none(experts),
            in_place: ExpertSet::none(experts),
        });
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
            state.choosy = false;
            state.chosen = false;
            state.settled = false;
        }
        self.sequence.clear();
        for (position, &(group, count)) in uses.iter().enumerate() {
            self.sequence.push(group);
            self.states[group].uses_left = count;
            self.states[group].position = position;
        }
        self.next = 0;
    }

    /// States, after [`Ring::begin_pass`], that the pass reads only some experts of `group` and will say which by
    /// [`Ring::choose`]. The group must have been [stacked](Ring::stack).
    pub fn choose_later(&mut self, group: GroupId) {
        if let Some(experts) = &mut self.experts[group] {
            experts.wanted.clear();
            self.states[group].choosy = true;
        }
    }

    /// Reports whether `group` cannot be filled before its experts are [chosen](Ring::choose).
    pub fn awaits_choice(&self, group: GroupId) -> bool {
        let state = &self.states[group];
        state.choosy && !state.chosen && (state.partial || !state.filled)
    }

    /// The pass has chosen these experts of `group`, and will read no other.
    pub fn choose(&mut self, group: GroupId, chosen: &ExpertSet) {
        if let Some(experts) = &mut self.experts[group] {
            experts.wanted.add(chosen);
            self.states[group].chosen = true;
        }
    }

    /// Reports whether all that the pass reads of `group` is in place, or on its way there.
    fn in_place(&self, group: GroupId) -> bool {
        let state = &self.states[group];
        state.filled && (!state.partial || (state.chosen && state.settled))
    }

    /// What lies in the place of `group` is given up. Whether it has been read.
    fn vacate(&mut self, group: GroupId) -> bool {
        let state = &mut self.states[group];
        let read = state.filled && state.read;
        if state.filled {
            state.filled = false;
            if let Some(experts) = &mut self.experts[group] {
                experts.in_place.clear();
            }
        }
        read
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
        let mut at = self.next;
        while let Some(&group) = self.sequence.get(at) {
            // experts that are not chosen yet are left out, and stay next
            let awaits_choice = self.states[group].uses_left > 0 && self.awaits_choice(group);
            let settled = self.next == at && !awaits_choice;
            if self.states[group].uses_left > 0 && !awaits_choice && !self.in_place(group) {
                // what is left of an earlier pass and is needed only later gives way
                let needed_before = |&other: &GroupId| {
                    let state = &self.states[other];
                    state.uses_left > 0
                        && state.position < self.states[group].position
                        && (state.filled || self.awaits_choice(other))
                };
                if self.conflicts[group].iter().any(needed_before) {
                    return Ok(());
                }
                self.fill(group, lane)?;
            }
            at += 1;
            if settled {
                self.next = at;
            }
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
            if !self.in_place(group) {
                if self.awaits_choice(group) {
                    return Err(RingError::NotChosen(group));
                }
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
            if self.vacate(other) {
                lane.wait_until_read(other);
            }
        }
        // The reader of an occupant that was itself evicted by a neighbour is covered: that neighbour's copy waited for
        // it, and copies run in order.
        let copied = match self.states[group] {
            State { chosen, filled, .. } if chosen || filled => self.fill_missing(group, lane),
            _ => lane.copy(group),
        };
        if !copied {
            self.states[group].filled = true;
            self.vacate(group);
            return Err(RingError::CopyFailed(group));
        }
        let state = &mut self.states[group];
        let all = self.experts[group].as_mut().is_none_or(|experts| {
            if !state.chosen {
                experts.in_place.fill();
            }
            experts.in_place.is_full()
        });
        *state = State {
            filled: true,
            partial: !all,
            settled: true,
            read: false,
            ..*state
        };
        Ok(())
    }

    /// Copies those experts that are wanted (the chosen ones, or else all) and not in place.
    fn fill_missing<L: CopyLane>(&mut self, group: GroupId, lane: &mut L) -> bool {
        let state = &self.states[group];
        let Some(experts) = &mut self.experts[group] else {
            return false;
        };
        // what is in place may still be read
        if state.filled && state.read {
            lane.wait_until_read(group);
        }
        if !state.chosen {
            experts.wanted.fill();
        }
        let copied = lane.copy_experts(group, experts);
        experts.in_place.add(&experts.wanted);
        copied
    }
}

#[cfg(test)]
mod tests;
