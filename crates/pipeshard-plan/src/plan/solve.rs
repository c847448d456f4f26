//! Dividing the budget.

use super::chunks::{round_up, Packer};
use super::error::{Contribution, Contributor, PlanError};
use super::fetching::FetchShape;
use super::memory::DeviceMemory;
use super::types::{KvLayer, KvPlacement, Plan, PlanInput, Ring, UnitId, PLAN_SCHEMA_VERSION};
use super::{order, ring, tiers};
use crate::constants::ring::{RING_GROUPS, RING_MAX, RING_SHARE};

/// Plans as [`plan`](super::plan) does, whatever an earlier plan decided.
pub(super) fn plan_freely(input: &PlanInput) -> Result<Plan, PlanError> {
    let problem = Problem::new(input)?;
    let (kv, room) = problem.place_kv()?;
    // While part of the KV cache is still on the host, more budget goes to it first: residents
    // wait, or they would have to make way again for the next layer of KV.
    let unwanted = |layer: &KvPlacement| !layer.device && !input.kv_on_host.contains(&layer.layer);
    let waits = input.kv_fixed.is_none() && kv.iter().any(unwanted);
    let count = if waits {
        problem.anchor
    } else {
        problem.choose(room)
    };
    Ok(problem.build(kv, room, count))
}

/// Places the KV cache: in layer order on the device for as long as what must be there fits
/// next to it, the rest on the host. This is the placement that [`plan`](super::plan) makes.
///
/// # Errors
///
/// As [`plan`](super::plan).
pub fn place_kv(input: &PlanInput) -> Result<Vec<KvPlacement>, PlanError> {
    Ok(Problem::new(input)?.place_kv()?.0)
}

/// What follows if the first so many units of the priority list are resident.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// Bytes of their chunks.
    chunks: u64,
    /// The smallest ring for the rest, a multiple of the granularity.
    ring_min: u64,
    /// The largest group of the rest.
    largest: u64,
    /// All groups of the rest.
    streamed: u64,
}

/// An input with everything about it that does not depend on the budget.
struct Problem<'a> {
    input: &'a PlanInput,
    memory: DeviceMemory<'a>,
    /// Device memory for fetched experts; none where the budget has no room for it.
    fetch_bytes: u64,
    /// Indices of units, first choice first.
    priority: Vec<usize>,
    groups: Vec<Vec<usize>>,
    /// The group of each unit that can be streamed.
    group_of: Vec<Option<usize>>,
    /// Bytes of each group while nothing of it is resident.
    group_bytes: Vec<u64>,
    /// Bytes of the residents' chunks, per length of the prefix of `priority`, from 0 to all.
    chunks: Vec<u64>,
    /// Bytes of all groups without what is resident, per length of the prefix.
    streamed: Vec<u64>,
    /// The length of the prefix that needs the least room, the longest of these.
    anchor: usize,
    /// What follows from that one.
    at_anchor: Step,
}

impl<'a> Problem<'a> {
    fn new(input: &'a PlanInput) -> Result<Self, PlanError> {
        check(input)?;
        let memory = DeviceMemory::new(input);
        let priority = match input.all_in_ring {
            true => Vec::new(),
            false => order::priority(&input.units, &input.order, !input.output_on_host),
        };
        let output = input.output_streams && !input.output_on_host;
        let groups = ring::group(&input.units, &memory.sizes, input.group_target, output);
        let mut problem = Self {
            input,
            memory,
            fetch_bytes: input.fetch_bytes(),
            priority,
            groups,
            group_of: vec![None; input.units.len()],
            group_bytes: Vec::new(),
            chunks: vec![0],
            streamed: Vec::new(),
            anchor: 0,
            at_anchor: Step::default(),
        };
        problem.count_bytes();
        (problem.anchor, problem.at_anchor) = problem.find_anchor();
        if problem.minimum() + problem.fetch_bytes > input.budget {
            problem.fetch_bytes = 0;
        }
        Ok(problem)
    }

    /// Bytes of groups, and of every prefix of the priority list.
    fn count_bytes(&mut self) {
        for (group, units) in self.groups.iter().enumerate() {
            let sizes = units.iter().map(|&unit| self.memory.sizes[unit]);
            self.group_bytes.push(sizes.sum());
            for &unit in units {
                self.group_of[unit] = Some(group);
            }
        }
        let mut streamed = self.group_bytes.iter().sum();
        self.streamed.push(streamed);
        let mut packer = Packer::new(self.input.chunk_target, self.input.granularity);
        for &unit in &self.priority {
            if self.group_of[unit].is_some() {
                streamed -= self.memory.sizes[unit];
            }
            self.streamed.push(streamed);
            packer.push(UnitId(unit as u32), self.memory.sizes[unit]);
            self.chunks.push(packer.bytes());
        }
    }

    /// What follows if the first `count` units of the priority list are resident.
    fn step(&self, count: usize) -> Step {
        let mut left = self.group_bytes.clone();
        for &unit in &self.priority[..count] {
            if let Some(group) = self.group_of[unit] {
                left[group] -= self.memory.sizes[unit];
            }
        }
        left.retain(|&bytes| bytes > 0);
        Step {
            chunks: self.chunks[count],
            ring_min: round_up(ring::minimum(&left), self.input.granularity),
            largest: left.iter().copied().max().unwrap_or(0),
            streamed: left.iter().sum(),
        }
    }

    /// The longest of the prefixes that need the least room. Chunks only grow: those that are larger by themselves than what a
    /// shorter prefix needs in all are not looked at.
    fn find_anchor(&self) -> (usize, Step) {
        let (mut anchor, mut least) = ((0, Step::default()), u64::MAX);
        for (count, &chunks) in self.chunks.iter().enumerate() {
            if chunks > least {
                break;
            }
            let step = self.step(count);
            let need = chunks + step.ring_min;
            if need <= least {
                (anchor, least) = ((count, step), need);
            }
        }
        anchor
    }

    /// The least that large weights need: the anchor's residents and its smallest ring.
    fn weights_min(&self) -> u64 {
        self.at_anchor.chunks + self.at_anchor.ring_min
    }

    /// The least room that is left to large weights, and to who takes turns with all weights.
    fn room_min(&self) -> u64 {
        let beside_small = self.input.in_turn.saturating_sub(self.memory.small_bytes);
        self.weights_min().max(beside_small)
    }

    /// What is needed whatever the plan, large weights and KV aside.
    fn fixed(&self) -> u64 {
        let beside = self.input.reserve + self.input.encoders;
        self.input.scratch + beside + self.memory.small_bytes
    }

    /// Bytes of KV that are on the device whatever the plan.
    fn kv_fixed(&self) -> u64 {
        let fixed = self.input.kv_fixed.as_deref();
        self.memory.kv_on_device(fixed.unwrap_or_default())
    }

    fn minimum(&self) -> u64 {
        self.fixed() + self.kv_fixed() + self.room_min()
    }

    /// Where the KV cache goes, and the room that is left for large weights.
    fn place_kv(&self) -> Result<(Vec<KvPlacement>, u64), PlanError> {
        let budget = self.input.budget;
        let spare = budget
            .checked_sub(self.minimum() + self.fetch_bytes)
            .ok_or_else(|| self.too_small())?;
        if let Some(fixed) = &self.input.kv_fixed {
            return Ok((fixed.clone(), spare + self.room_min()));
        }
        let may = |layer: &KvLayer| !self.input.kv_on_host.contains(&layer.layer);
        let layers = self.input.kv.iter().filter(|layer| may(layer));
        let layers: Vec<u64> = layers.map(|layer| layer.bytes).collect();
        let taken = (0..=layers.len())
            .rev()
            .find(|&count| self.memory.kv_bytes(layers[..count].iter().copied()) <= spare)
            .unwrap_or(0);
        let mut left = taken;
        let place = |layer: &KvLayer| {
            let device = may(layer) && left > 0;
            left -= usize::from(device);
            KvPlacement {
                layer: layer.layer,
                device,
                bytes: layer.bytes,
            }
        };
        let placed = self.input.kv.iter().map(place).collect();
        let used = self.memory.kv_bytes(layers[..taken].iter().copied());
        Ok((placed, spare - used + self.room_min()))
    }

    /// Returns the ring that is wanted next to this many residents in this much room; at least the smallest ring.
    /// Grows by no more than the room does, so that more room never makes a prefix too long.
    fn ring_wanted(&self, step: Step, room: u64) -> u64 {
        let wanted = match self.input.ring_target {
            Some(target) => target,
            None => {
                let depth = step.largest * RING_GROUPS;
                (room / RING_SHARE).clamp(depth, depth.max(RING_MAX))
            }
        };
        wanted.min(step.streamed).max(step.ring_min)
    }

    /// Returns a lower bound of [`Problem::ring_wanted`] for this many residents, without looking at every group.
    fn ring_at_least(&self, count: usize, room: u64) -> u64 {
        let wanted = match self.input.ring_target {
            Some(target) => target,
            None => (room / RING_SHARE).min(RING_MAX),
        };
        wanted.min(self.streamed[count])
    }

    /// The most that the ring may take of what residents leave.
    fn ring_max(&self, step: Step) -> u64 {
        let most = match self.input.ring_target {
            Some(target) => target,
            None => RING_MAX.max(step.largest * RING_GROUPS),
        };
        let most = most.min(step.streamed).max(step.ring_min);
        round_up(most, self.input.granularity)
    }

    /// Returns the longest prefix that fits together with its ring; never shorter than the anchor.
    fn choose(&self, room: u64) -> usize {
        let fits = |&count: &usize| {
            self.chunks[count] + self.ring_at_least(count, room) <= room && {
                let step = self.step(count);
                step.chunks + self.ring_wanted(step, room) <= room
            }
        };
        let longer = self.anchor..self.chunks.len();
        longer.rev().find(fits).unwrap_or(self.anchor)
    }

    fn too_small(&self) -> PlanError {
        let anchor = self.at_anchor;
        let mut contributors: Vec<Contributor> = [
            (
                Contribution::Resident,
                self.memory.small_bytes + anchor.chunks,
            ),
            (Contribution::Slots, anchor.ring_min),
            (Contribution::Kv, self.kv_fixed()),
            (Contribution::Scratch, self.input.scratch),
            (Contribution::Reserve, self.input.reserve),
            (
                Contribution::Encoders,
                self.input.encoders + self.room_min() - self.weights_min(),
            ),
        ]
        .into_iter()
        .filter(|&(_, bytes)| bytes > 0)
        .map(|(what, bytes)| Contributor { what, bytes })
        .collect();
        contributors.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        PlanError::BudgetTooSmall {
            budget: self.input.budget,
            minimum: self.minimum(),
            contributors,
        }
    }

    fn build(&self, kv: Vec<KvPlacement>, room: u64, count: usize) -> Plan {
        let input = self.input;
        let step = self.step(count);
        let large = self.priority[..count].iter();
        let large: Vec<UnitId> = large.map(|&unit| UnitId(unit as u32)).collect();
        let chunks = self.memory.resident_chunks(&large);
        let left = room - step.chunks;
        let capacity = (left - left % input.granularity).min(self.ring_max(step));
        let ring = self.ring(count, capacity);

        let kv_all = match &input.kv_fixed {
            Some(_) => self.memory.kv_on_device(&kv),
            None => self
                .memory
                .kv_bytes(input.kv.iter().map(|layer| layer.bytes)),
        };
        let ledger = self.memory.ledger(&chunks, &ring, &kv, self.fetch_bytes);
        let residents = self.memory.residents(&large);
        let all = self.chunks.last().copied().unwrap_or(0);
        let fetched = match self.fetch_bytes {
            0 => FetchShape::default(),
            _ => input.fetch_shape(),
        };
        Plan {
            schema_version: PLAN_SCHEMA_VERSION,
            budget: input.budget,
            minimum_budget: self.minimum(),
            full_budget: self.fixed() + kv_all + all.max(self.room_min()),
            scratch_estimated: input.scratch_estimated,
            units: input.units.clone(),
            tiers: tiers::tiers(input, &residents, &ring),
            residents,
            chunks,
            ring,
            kv,
            fetched_experts: fetched.single,
            fetched_by_batches: fetched.batches,
            host_kv_min_rows: input.host_kv_min_rows,
            ledger,
        }
    }

    fn ring(&self, residents: usize, capacity: u64) -> Ring {
        let mut resident = vec![false; self.input.units.len()];
        for &unit in &self.priority[..residents] {
            resident[unit] = true;
        }
        let rest = self.groups.iter().map(|units| {
            let streamed = units.iter().filter(|&&unit| !resident[unit]);
            streamed.map(|&unit| UnitId(unit as u32)).collect()
        });
        let rest: Vec<Vec<UnitId>> = rest.filter(|ids: &Vec<UnitId>| !ids.is_empty()).collect();
        let sizes: Vec<u64> = rest.iter().map(|ids| self.memory.bytes_of(ids)).collect();
        let (offsets, used) = ring::layout(&sizes, capacity);
        self.memory.ring(&rest, &offsets, used)
    }
}

/// Refuses settings that make no sense, and sizes whose sums might not fit 64 bits: no sum that
/// the planner forms exceeds four times the one that is tried here.
fn check(input: &PlanInput) -> Result<(), PlanError> {
    let invalid = |what: String| Err(PlanError::InvalidInput(what));
    if !input.alignment.is_power_of_two() {
        return invalid(format!(
            "the alignment of {} bytes is not a power of two",
            input.alignment
        ));
    }
    if input.granularity == 0 {
        return invalid("the allocation granularity is zero".to_owned());
    }
    if u32::try_from(input.units.len()).is_err() {
        return invalid(format!("{} tensors are too many", input.units.len()));
    }
    let units = input.units.iter().map(|unit| unit.device_bytes);
    let kv = input.kv.iter().map(|layer| layer.bytes);
    let fixed = input.kv_fixed.iter().flatten().map(|layer| layer.bytes);
    let padding = input.alignment.checked_add(input.granularity);
    let mut sum = input.scratch.checked_add(input.reserve);
    sum = sum.and_then(|sum| sum.checked_add(input.encoders)?.checked_add(input.in_turn));
    sum = sum.and_then(|sum| sum.checked_add(input.fetch_bytes()));
    for bytes in units.chain(kv).chain(fixed) {
        sum = sum.and_then(|sum| sum.checked_add(bytes)?.checked_add(padding?));
    }
    let sum = sum.and_then(|sum| sum.checked_add(padding?)?.checked_mul(8));
    sum.map(|_| ()).ok_or(PlanError::Overflow)
}
