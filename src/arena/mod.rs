//! Device memory: what is resident, and the ring that streamed weights take turns in.
//!
//! All weights live in host memory; the arena holds copies. It is made of chunks, allocated in the order in which the plan
//! ranks residents, so that giving memory back means freeing the last chunks and nothing else moves. The arena belongs to
//! one tenant of the device: schedulers come and go. Owns chunks, ring and their events; called by `hook::residency`.

pub mod ledger;
pub mod unit;

use crate::lanes::copy::{Copier, CopyTask, DroppedWait};
use crate::lanes::device::{Buffer, Device, Event};
use crate::lanes::experts::run_bytes;
use crate::lanes::purpose::{during, Purpose};
use crate::lanes::ring::{CopyLane, Experts, GroupId, Place, Ring};
use crate::trace::record::{GroupName, HostWork};
use crate::trace::Recorder;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{Chunk, Location, Plan, StreamGroup};
use unit::LoadedUnit;

/// Why the arena could not take the plan's shape.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The device refused memory that the budget allows: another program holds it.
    #[error("{device} refused {wanted} although the budget allows them: another program holds the memory")]
    Refused {
        /// The device.
        device: String,
        /// Size of the refused allocation.
        wanted: ByteSize,
    },
    /// The device has no events left.
    #[error("{device} refused an event; restart the program")]
    NoEvents {
        /// The device.
        device: String,
    },
}

struct ResidentChunk {
    plan: Chunk,
    buffer: Buffer,
}

/// A streamed group with the events of its place in the ring.
struct Group {
    /// Its tensors, as ready-made copy commands, in order of use.
    tasks: Vec<CopyTask>,
    filled: Event,
    read: Event,
    /// Bytes that a copy of the group moves.
    bytes: u64,
}

// SAFETY: the pointers in the copy tasks are to host weights and to tensors of loaded units, which outlive the arena's
// shape: `Arena::release` comes before either goes. Used under the runtime's lock.
unsafe impl Send for Group {}

/// What became of experts that batches have chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpertCounters {
    /// Experts copied, counted per tensor.
    pub copied: u64,
    /// Experts that were still in place.
    pub reused: u64,
    /// Bytes that copies of the whole tensors would have moved in addition.
    pub bytes_saved: u64,
}

/// The ring of slots: one allocation, the streamed groups with their places and events.
struct RingMemory {
    buffer: Buffer,
    groups: Vec<Group>,
    ring: Ring,
}

/// Device memory of one device, carved up as a plan says.
pub struct Arena {
    device: Device,
    chunks: Vec<ResidentChunk>,
    ring: Option<RingMemory>,
    fill_on_carve: bool,
    /// It is an encoder's.
    pub of_encoder: bool,
    uploaded_bytes: u64,
    streamed_bytes: u64,
    group_copies: u64,
    experts: ExpertCounters,
    /// Stalls of rings that are gone.
    past_stalls: u64,
    /// Writes down what the copy lane is given.
    pub trace: Recorder,
}

impl Arena {
    /// An empty arena. `fill_on_carve`: new device memory is filled with 0xFF first, which no token may depend on.
    pub fn new(device: Device, fill_on_carve: bool) -> Self {
        Arena {
            device,
            chunks: Vec::new(),
            ring: None,
            fill_on_carve,
            of_encoder: false,
            uploaded_bytes: 0,
            streamed_bytes: 0,
            group_copies: 0,
            experts: ExpertCounters::default(),
            past_stalls: 0,
            trace: Recorder::default(),
        }
    }

    /// Bytes uploaded to residents since the arena was made.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes
    }

    /// Bytes copied into the ring since the arena was made.
    pub fn streamed_bytes(&self) -> u64 {
        self.streamed_bytes
    }

    /// Copies of streamed groups since the arena was made.
    pub fn group_copies(&self) -> u64 {
        self.group_copies
    }

    /// What was fetched of chosen experts since the arena was made.
    pub fn experts(&self) -> ExpertCounters {
        self.experts
    }

    /// Bytes of residents' chunks.
    pub fn resident_bytes(&self) -> u64 {
        self.chunks.iter().map(|c| c.buffer.size()).sum()
    }

    /// Bytes of the ring.
    pub fn slot_bytes(&self) -> u64 {
        self.ring.as_ref().map_or(0, |r| r.buffer.size())
    }

    /// Frees everything. The caller has drained the lanes.
    pub fn release(&mut self) {
        self.chunks.clear();
        self.free_ring();
    }

    /// Frees the ring, and chunks from the end until the others take no more than `keep` bytes. The caller has drained the lanes.
    /// Bytes of the chunks that are gone.
    pub fn shrink(&mut self, keep: u64) -> u64 {
        self.free_ring();
        let before = self.resident_bytes();
        while self.resident_bytes() > keep {
            self.chunks.pop();
        }
        before - self.resident_bytes()
    }

    /// The chunks that there are, in the order of the plan that they are of.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|chunk| &chunk.plan)
    }

    fn free_ring(&mut self) {
        self.past_stalls = self.stalls();
        self.ring = None;
    }

    /// Takes the shape of `plan`: frees what it has too much of, allocates what is missing, uploads new residents, and points
    /// the units' device tensors to their places. Chunks that both shapes share stay where they are.
    ///
    /// The caller has drained the lanes. On error the arena is empty.
    pub fn carve(
        &mut self,
        plan: &Plan,
        units: &mut [LoadedUnit],
        copier: &mut Copier,
    ) -> Result<(), ArenaError> {
        let shared = self
            .chunks
            .iter()
            .zip(&plan.chunks)
            .take_while(|(have, want)| have.plan == **want)
            .count();
        self.chunks.truncate(shared);
        self.free_ring();
        let result = self.allocate(plan, units, copier, shared);
        if result.is_err() {
            self.release();
        }
        result
    }

    fn allocate(
        &mut self,
        plan: &Plan,
        units: &mut [LoadedUnit],
        copier: &mut Copier,
        shared: usize,
    ) -> Result<(), ArenaError> {
        for chunk in &plan.chunks[shared..] {
            let buffer = self.buffer(chunk.bytes, Purpose::Weights)?;
            self.chunks.push(ResidentChunk {
                plan: chunk.clone(),
                buffer,
            });
        }
        let ring_buffer = (plan.ring.bytes > 0)
            .then(|| self.buffer(plan.ring.bytes, Purpose::Ring))
            .transpose()?;
        let mut group_tasks = vec![Vec::new(); plan.ring.groups.len()];
        for (index, location) in plan.locations().into_iter().enumerate() {
            let unit = &mut units[index];
            match location {
                Location::Chunk { chunk, offset } => unit.place(&self.chunks[chunk].buffer, offset),
                Location::Ring { group, offset } => {
                    if let Some(buffer) = &ring_buffer {
                        unit.place(buffer, offset);
                        group_tasks[group].push(index);
                    }
                }
                Location::Host => unit.unplace(),
            }
        }
        let (since, before) = (self.trace.since(), self.uploaded_bytes);
        // SAFETY: the copy lane's stream is a live backend of the device that is traced.
        let begin = unsafe { self.trace.copies_begin(copier.stream().raw()) };
        for chunk in &self.chunks[shared..] {
            for &(id, _) in &chunk.plan.units {
                let task = units[id.index()].copy_task();
                // SAFETY: the unit's weights are loaded and its device tensor lies in a chunk that lives until the lanes
                // are drained.
                unsafe { copier.submit(&task) };
                self.uploaded_bytes += task.bytes as u64;
            }
        }
        let uploaded = self.uploaded_bytes - before;
        // SAFETY: as above.
        unsafe {
            self.trace
                .residents_copied(begin, copier.stream().raw(), uploaded)
        };
        if copier.dropped != Some(DroppedWait::Upload) {
            copier.stream().synchronize();
        }
        self.trace.worked(since, HostWork::Upload);
        self.trace.carved(
            plan.ring
                .groups
                .iter()
                .map(|group| GroupName::of(group, plan)),
        );
        if let Some(buffer) = ring_buffer {
            self.ring = Some(self.make_ring(plan, units, buffer, group_tasks)?);
        }
        Ok(())
    }

    fn make_ring(
        &self,
        plan: &Plan,
        units: &[LoadedUnit],
        buffer: Buffer,
        members: Vec<Vec<usize>>,
    ) -> Result<RingMemory, ArenaError> {
        let event = || {
            Event::new(self.device).ok_or_else(|| ArenaError::NoEvents {
                device: self.device.name(),
            })
        };
        let mut groups = Vec::with_capacity(members.len());
        for members in members {
            let tasks: Vec<CopyTask> = members.iter().map(|&i| units[i].copy_task()).collect();
            let bytes = tasks.iter().map(|t| t.bytes as u64).sum();
            groups.push(Group {
                tasks,
                filled: event()?,
                read: event()?,
                bytes,
            });
        }
        let places: Vec<Place> = plan
            .ring
            .groups
            .iter()
            .map(|g| Place {
                offset: g.offset,
                bytes: g.bytes,
            })
            .collect();
        let mut ring = Ring::new(&places);
        for (index, group) in plan.ring.groups.iter().enumerate() {
            if let Some(experts) = stacked_experts(group, units) {
                ring.stack(index, experts);
            }
        }
        Ok(RingMemory {
            buffer,
            groups,
            ring,
        })
    }

    fn buffer(&self, bytes: u64, purpose: Purpose) -> Result<Buffer, ArenaError> {
        let purpose = match self.of_encoder {
            true => Purpose::Vision,
            false => purpose,
        };
        let buffer = during(purpose, || {
            Buffer::allocate(self.device.memory_type(), bytes)
        });
        let buffer = buffer
            .ok_or_else(|| ArenaError::Refused {
                device: self.device.name(),
                wanted: ByteSize(bytes),
            })?
            .holds_weights();
        if self.fill_on_carve {
            buffer.clear(0xff);
        }
        Ok(buffer)
    }

    /// The ring and the lanes around it, for the splits that `compute` runs; `None` when nothing is streamed.
    pub fn pipeline<'a>(
        &'a mut self,
        copier: &'a mut Copier,
        compute: pipeshard_sys::ggml_backend_t,
    ) -> Option<(&'a mut Ring, Lanes<'a>)> {
        let memory = self.ring.as_mut()?;
        let lanes = Lanes {
            groups: &memory.groups,
            trace: &self.trace,
            copier,
            compute,
            streamed: &mut self.streamed_bytes,
            copies: &mut self.group_copies,
            experts: &mut self.experts,
        };
        Some((&mut memory.ring, lanes))
    }

    /// Copies that a split had to ask for because they had not been submitted ahead.
    pub fn stalls(&self) -> u64 {
        self.past_stalls + self.ring.as_ref().map_or(0, |r| r.ring.stalls())
    }
}

/// The two lanes, for one call of the hook.
pub struct Lanes<'a> {
    groups: &'a [Group],
    trace: &'a Recorder,
    copier: &'a mut Copier,
    compute: pipeshard_sys::ggml_backend_t,
    streamed: &'a mut u64,
    copies: &'a mut u64,
    experts: &'a mut ExpertCounters,
}

/// How many experts a group consists of, if it is a tensor of stacked experts and nothing else.
pub fn stacked_experts(group: &StreamGroup, units: &[LoadedUnit]) -> Option<u32> {
    match group.units[..] {
        [(id, _)] => units[id.index()].experts(),
        _ => None,
    }
}

// SAFETY of the calls below: `compute` is the backend that the scheduler passed to the hook for the split being submitted,
// alive during the call; the copy lane's stream and the events belong to the same device and to live values.
impl CopyLane for Lanes<'_> {
    fn wait_until_read(&mut self, group: GroupId) {
        if self.copier.dropped != Some(DroppedWait::Read) {
            // SAFETY: see above.
            unsafe { self.groups[group].read.hold(self.copier.stream().raw()) }
        }
    }

    fn copy(&mut self, id: GroupId) -> bool {
        let group = &self.groups[id];
        // SAFETY: see above.
        let begin = unsafe { self.trace.copies_begin(self.copier.stream().raw()) };
        for task in &group.tasks {
            // SAFETY: tasks point to loaded weights and to tensors in the ring, both alive while the arena has this shape.
            unsafe { self.copier.submit(task) };
        }
        *self.streamed += group.bytes;
        *self.copies += 1;
        let stream = self.copier.stream().raw();
        // SAFETY: see above.
        unsafe {
            group.filled.record(stream);
            self.trace.group_copied(begin, stream, id, group.bytes);
        }
        true
    }

    fn copy_experts(&mut self, group: GroupId, experts: &Experts) -> bool {
        let group = &self.groups[group];
        let Some(task) = group.tasks.first() else {
            return false;
        };
        let slice = task.bytes / experts.wanted.of().max(1) as usize;
        let (mut copied, mut bytes) = (0, 0);
        for run in experts.wanted.missing(&experts.in_place) {
            copied += u64::from(run.end - run.start);
            let range = run_bytes(&run, slice, experts.in_place.contains(run.end), task.bytes);
            bytes += range.len() as u64;
            // SAFETY: as in `copy`.
            unsafe { self.copier.submit_range(task, range) };
        }
        *self.streamed += bytes;
        *self.copies += u64::from(copied > 0);
        self.experts.copied += copied;
        self.experts.reused += u64::from(experts.wanted.len()) - copied;
        self.experts.bytes_saved += group.bytes.saturating_sub(bytes);
        // SAFETY: see above.
        unsafe { group.filled.record(self.copier.stream().raw()) };
        true
    }

    fn compute_waits_until_filled(&mut self, group: GroupId) {
        self.trace.reads(group);
        // SAFETY: see above.
        unsafe {
            self.copier.disturb(self.compute);
            if self.copier.dropped != Some(DroppedWait::Filled) {
                self.groups[group].filled.hold(self.compute);
            }
        }
    }

    fn record_read(&mut self, group: GroupId) {
        // SAFETY: see above.
        unsafe { self.groups[group].read.record(self.compute) }
    }
}
