//! The experts that a batch has chosen, for groups that fetch only those.
//!
//! The router's choice is computed on the device, in front of the operations that need the experts. When the first split
//! that reads them is about to be submitted, the choice is read back, for which the host waits, and all groups that are
//! read by the same choice learn of it.

use crate::hook::pass_error::PassError;
use crate::lanes::copy::host_buffer;
use crate::lanes::device::{Buffer, Device};
use crate::lanes::experts::ExpertSet;
use crate::lanes::hand_over::HostWait;
use crate::lanes::ring::{GroupId, Ring};
use pipeshard_sys as ffi;
use std::collections::HashMap;

/// The choice that one tensor of indices makes.
#[derive(Debug)]
struct Routing {
    /// As the graph was before it was split: the original, not the copy that another backend reads.
    indices: *mut ffi::ggml_tensor,
    /// The groups whose experts it chooses from.
    groups: Vec<GroupId>,
    chosen: ExpertSet,
}

// SAFETY: a pointer to a tensor of a graph that lives as long as this describes it, used under the runtime's lock.
unsafe impl Send for Routing {}

/// The choices of one graph.
#[derive(Debug, Default)]
pub struct Routings {
    routings: Vec<Routing>,
    /// By group, which choice it is read by; none for a group that is read as a whole.
    of_group: HashMap<GroupId, Option<usize>>,
}

impl Routings {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.routings.clear();
        self.of_group.clear();
    }

    /// A node reads all of `group`.
    pub fn read_whole(&mut self, group: GroupId) {
        if let Some(Some(index)) = self.of_group.insert(group, None) {
            self.routings[index].groups.retain(|&g| g != group);
        }
    }

    /// A node reads those of the `experts` stacked in `group` that `indices` chooses.
    pub fn read_chosen(&mut self, group: GroupId, experts: u32, indices: *mut ffi::ggml_tensor) {
        let same = |r: &Routing| r.indices == indices && r.chosen.of() == experts;
        let found = self.routings.iter().position(same);
        match self.of_group.get(&group) {
            // one group is read by one choice or as a whole
            Some(known) if known.is_none() || *known != found => self.read_whole(group),
            Some(_) => {}
            None => {
                let index = found.unwrap_or(self.routings.len());
                if found.is_none() {
                    self.routings.push(Routing {
                        indices,
                        groups: Vec::new(),
                        chosen: ExpertSet::none(experts),
                    });
                }
                self.routings[index].groups.push(group);
                self.of_group.insert(group, Some(index));
            }
        }
    }

    /// Tells the ring, after a pass has begun, from which groups experts will be chosen.
    pub fn announce(&self, ring: &mut Ring) {
        for &group in self.routings.iter().flat_map(|r| &r.groups) {
            ring.choose_later(group);
        }
    }

    /// What the largest of the tensors takes, in bytes.
    ///
    /// # Safety
    /// The graph's tensors are alive.
    pub unsafe fn bytes(&self) -> u64 {
        let sizes = self.routings.iter().map(|r| ffi::ggml_nbytes(r.indices));
        sizes.max().unwrap_or(0) as u64
    }
}

/// Reads choices back from the device.
#[derive(Debug, Default)]
pub struct ChoiceReader {
    memory: Option<Buffer>,
    /// Which routing of the graph is on its way into that memory, or is there.
    asked: Option<usize>,
}

impl ChoiceReader {
    /// Makes room for tensors of up to `bytes` bytes.
    pub fn reserve(&mut self, device: Device, bytes: u64) -> Result<(), String> {
        if self.memory.as_ref().is_none_or(|m| m.size() < bytes) && bytes > 0 {
            let memory = host_buffer(device, bytes.next_power_of_two())?;
            memory.clear(0);
            self.memory = Some(memory);
        }
        Ok(())
    }

    /// Asks the device for the first choice that a split which reads these groups has to know and does not yet. What the host has to
    /// wait for before [`Self::choose`].
    ///
    /// # Safety
    /// As for [`Self::choose`].
    pub unsafe fn ask(
        &mut self,
        sched: ffi::ggml_backend_sched_t,
        routings: &Routings,
        groups: &[GroupId],
        ring: &Ring,
    ) -> HostWait {
        self.asked = None;
        let routing_of = |group: &GroupId| routings.of_group.get(group).copied().flatten();
        let awaited = groups.iter().filter(|&&group| ring.awaits_choice(group));
        let Some(index) = awaited.filter_map(routing_of).next() else {
            return HostWait::Nothing;
        };
        match self.read_back(sched, routings.routings[index].indices) {
            Some(backend) => {
                self.asked = Some(index);
                HostWait::Lane(backend)
            }
            // told by `choose`
            None => HostWait::Nothing,
        }
    }

    /// Submits the copy of a router's choice to the host. `None`: it has no memory, or there are no tokens.
    unsafe fn read_back(
        &self,
        sched: ffi::ggml_backend_sched_t,
        indices: *mut ffi::ggml_tensor,
    ) -> Option<ffi::ggml_backend_t> {
        let bytes = ffi::ggml_nbytes(indices);
        let memory = self.memory.as_ref().filter(|m| m.size() >= bytes as u64)?;
        let backend = ffi::ggml_backend_sched_get_tensor_backend(sched, indices);
        if ffi::ggml_is_empty(indices) || backend.is_null() || (*indices).data.is_null() {
            return None;
        }
        let target = memory.base().cast();
        ffi::ggml_backend_tensor_get_async(backend, indices, target, 0, bytes);
        Some(backend)
    }

    /// Finds out what the batch has chosen, where a split that reads these groups has to know and does not yet. Returns how
    /// often the host waited for the device, none if there was nothing to find out. `wait`: as it must; false leaves the wait
    /// out.
    ///
    /// # Safety
    /// `sched` is the live scheduler whose graph `routings` was made from; what is before the split has been submitted.
    pub unsafe fn choose(
        &mut self,
        sched: ffi::ggml_backend_sched_t,
        routings: &mut Routings,
        groups: &[GroupId],
        ring: &mut Ring,
        wait: bool,
    ) -> Result<Option<u64>, PassError> {
        let mut waits = None;
        for &group in groups {
            let Some(&Some(index)) = routings.of_group.get(&group) else {
                continue;
            };
            if ring.awaits_choice(group) {
                let asked = self.asked.take() == Some(index);
                let routing = &mut routings.routings[index];
                let waited = self.read(sched, routing, (asked, wait))?;
                waits = Some(waits.unwrap_or(0) + u64::from(waited));
                for &group in &routing.groups {
                    ring.choose(group, &routing.chosen);
                }
            }
        }
        Ok(waits)
    }

    /// Reports whether the host waits for a device. `asked`: what was chosen is there.
    unsafe fn read(
        &mut self,
        sched: ffi::ggml_backend_sched_t,
        routing: &mut Routing,
        (asked, wait): (bool, bool),
    ) -> Result<bool, PassError> {
        let indices = routing.indices;
        if ffi::ggml_is_empty(indices) {
            // the last layer of a batch without wanted results
            routing.chosen.clear();
            return Ok(false);
        }
        let backend = ffi::ggml_backend_sched_get_tensor_backend(sched, indices);
        // a split that reads what two routers chose: the second one is waited for here
        if !asked && self.read_back(sched, indices).is_some() && wait {
            ffi::ggml_backend_synchronize(backend);
        }
        let bytes = ffi::ggml_nbytes(indices);
        let room = self.memory.as_ref().filter(|m| m.size() >= bytes as u64);
        let (Some(memory), false, false) = (room, backend.is_null(), (*indices).data.is_null())
        else {
            return Err(PassError::NoChoice);
        };
        let target = memory.base();
        routing.chosen.clear();
        let (ne, nb) = ((*indices).ne, (*indices).nb);
        for row in 0..ne[1] as usize {
            for column in 0..ne[0] as usize {
                let at = target.add(row * nb[1] + column * nb[0]);
                let expert = at.cast::<i32>().read_unaligned();
                if !u32::try_from(expert).is_ok_and(|e| routing.chosen.insert(e)) {
                    return Err(PassError::NoSuchExpert {
                        expert,
                        experts: routing.chosen.of(),
                    });
                }
            }
        }
        let device = ffi::ggml_backend_get_device(backend);
        Ok(ffi::ggml_backend_dev_type(device) != ffi::GGML_BACKEND_DEVICE_TYPE_CPU)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::ring::Place;

    fn tensor(address: usize) -> *mut ffi::ggml_tensor {
        std::ptr::without_provenance_mut(address)
    }

    /// Which of four stacked groups wait for a choice.
    fn announced(routings: &Routings) -> Vec<GroupId> {
        let places: Vec<Place> = (0..4)
            .map(|g| Place {
                offset: g * 8,
                bytes: 8,
            })
            .collect();
        let mut ring = Ring::new(&places);
        (0..4).for_each(|g| ring.stack(g, 8));
        ring.begin_pass(&[(0, 1), (1, 1), (2, 1), (3, 1)]);
        routings.announce(&mut ring);
        (0..4).filter(|&g| ring.awaits_choice(g)).collect()
    }

    #[test]
    fn groups_of_one_choice_are_kept_together() {
        let mut routings = Routings::default();
        for group in [0, 1, 1] {
            routings.read_chosen(group, 8, tensor(16));
        }
        routings.read_chosen(2, 8, tensor(32));
        assert_eq!(announced(&routings), [0, 1, 2]);
        let groups: Vec<_> = routings.routings.iter().map(|r| &r.groups[..]).collect();
        assert_eq!(groups, [&[0, 1][..], &[2][..]]);
        routings.clear();
        assert_eq!(announced(&routings), Vec::<GroupId>::new());
    }

    #[test]
    fn a_group_that_is_read_in_two_ways_is_read_as_a_whole() {
        let mut routings = Routings::default();
        routings.read_chosen(0, 8, tensor(16));
        routings.read_whole(0);
        routings.read_whole(1);
        routings.read_chosen(1, 8, tensor(16));
        routings.read_chosen(2, 8, tensor(16));
        routings.read_chosen(2, 8, tensor(32));
        routings.read_chosen(3, 8, tensor(16));
        assert_eq!(announced(&routings), [3]);
        routings.read_chosen(0, 8, tensor(16));
        assert_eq!(announced(&routings), [3]);
    }
}
