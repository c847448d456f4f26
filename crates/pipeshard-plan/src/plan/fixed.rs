//! Planning under a plan that was made before: what it says is resident, streamed, kept or left to the CPU stays so, and only
//! what the sizes of this run do not allow any more gives way.
//!
//! Compute buffers are measured in a run and estimated before, so a saved plan may turn out a little too large. Then residents
//! are dropped from the end of its list, up to a share that the caller allows.

use super::chunks::round_up;
use super::error::PlanError;
use super::memory::DeviceMemory;
use super::ring;
use super::solve::plan_freely;
use super::types::{
    FixedPlan, KvLayer, KvPlacement, Placement, Plan, PlanInput, Ring, StreamGroup, Tier,
    UnitClass, UnitId, PLAN_SCHEMA_VERSION,
};

impl FixedPlan {
    /// What `plan` decided, for an input with other numbers for the same units: `id_of` translates them. Units without a number
    /// there are left out, and those that `plan` does not know (`unit_count` in all) stay in host memory.
    pub fn from_plan(
        plan: &Plan,
        unit_count: usize,
        id_of: impl Fn(UnitId) -> Option<UnitId>,
    ) -> Self {
        let group = |group: &StreamGroup| {
            let units = group.units.iter();
            let units = units.filter_map(|&(id, offset)| Some((id_of(id)?, offset)));
            StreamGroup {
                units: units.collect(),
                ..*group
            }
        };
        let tier = |tier: &Tier| {
            let mut placements = vec![Placement::Host; unit_count];
            for (index, &placement) in tier.placements.iter().enumerate() {
                let id = id_of(UnitId(index as u32));
                if let Some(known) = id.and_then(|id| placements.get_mut(id.index())) {
                    *known = placement;
                }
            }
            Tier {
                placements,
                ..tier.clone()
            }
        };
        FixedPlan {
            residents: plan.residents.iter().copied().filter_map(&id_of).collect(),
            ring: Ring {
                bytes: plan.ring.bytes,
                groups: plan.ring.groups.iter().map(group).collect(),
            },
            kv_on_device: (plan.kv.iter().filter(|kv| kv.device))
                .map(|kv| kv.layer)
                .collect(),
            tiers: plan.tiers.iter().map(tier).collect(),
            fetched_experts: plan.fetched_experts,
            fetched_by_batches: plan.fetched_by_batches.clone(),
            host_kv_min_rows: plan.host_kv_min_rows,
            dropped_percent: 0,
        }
    }
}

/// Plans as `fixed` says.
///
/// # Errors
/// [`PlanError::FixedDoesNotFit`] where too much of it would have to go, [`PlanError::InvalidInput`] where it contradicts
/// itself, and the errors of [`plan_freely`] where nothing could be planned at all.
pub(super) fn plan_as(input: &PlanInput, fixed: &FixedPlan) -> Result<Plan, PlanError> {
    check(input, fixed)?;
    let free = PlanInput {
        fixed: None,
        budget: u64::MAX,
        fetched_experts: 0,
        fetched_by_batches: Vec::new(),
        ..input.clone()
    };
    let free = plan_freely(&free)?;
    let work = &Work::new(input, fixed);
    let kv = work.kv();
    let kv_bytes = work.memory.kv_on_device(&kv);
    let beside = input.reserve + input.encoders + input.fetch_bytes();
    let taken = input.scratch + beside + work.memory.small_bytes + kv_bytes;
    let bytes_of = |ids: &[UnitId]| u128::from(work.memory.bytes_of(ids));
    let share = |ids: &[UnitId], percent| bytes_of(ids) * u128::from(percent);
    let most = share(&work.large, fixed.dropped_percent.min(100));
    let enough = |&kept: &usize| share(&work.large[kept..], 100_u32) <= most;
    let full_ring = work.need(work.large.len(), fixed.ring.bytes);
    let room = input.budget.saturating_sub(taken);
    let in_turn = input.in_turn.saturating_sub(work.memory.small_bytes);
    // slots first: it is they that the link needs in order to be busy
    let kept_beside = |ring: u64| {
        let fits =
            |&kept: &usize| taken <= input.budget && work.need(kept, ring).max(in_turn) <= room;
        let longest = (0..=work.large.len()).rev().find(fits);
        longest.filter(enough)
    };
    let found = kept_beside(fixed.ring.bytes);
    // better than nothing
    let found = found.or_else(|| kept_beside(0).filter(|_| fixed.dropped_percent >= 100));
    let Some(kept) = found else {
        return Err(PlanError::FixedDoesNotFit {
            budget: input.budget,
            needed: taken + full_ring.max(in_turn),
            scratch: input.scratch,
            reserve: beside,
            kv: kv_bytes,
        });
    };
    Ok(work.build(kv, room, kept, &free))
}

struct Work<'a> {
    input: &'a PlanInput,
    fixed: &'a FixedPlan,
    memory: DeviceMemory<'a>,
    /// Residents, without the small ones.
    large: Vec<UnitId>,
}

impl<'a> Work<'a> {
    fn new(input: &'a PlanInput, fixed: &'a FixedPlan) -> Self {
        let units = &input.units;
        let mut taken = vec![false; units.len()];
        let large = fixed.residents.iter().copied().filter(|id| {
            let may = !matches!(
                units[id.index()].class,
                UnitClass::Small | UnitClass::HostOnly
            );
            may && !std::mem::replace(&mut taken[id.index()], true)
        });
        Work {
            large: large.collect(),
            memory: DeviceMemory::new(input),
            input,
            fixed,
        }
    }

    fn kv(&self) -> Vec<KvPlacement> {
        match &self.input.kv_fixed {
            Some(placed) => placed.clone(),
            None => {
                let place = |kv: &KvLayer| KvPlacement {
                    layer: kv.layer,
                    device: self.fixed.kv_on_device.contains(&kv.layer),
                    bytes: kv.bytes,
                };
                self.input.kv.iter().map(place).collect()
            }
        }
    }

    /// What is streamed if the first `kept` large residents stay: the groups of the plan, and each unit that was dropped and can
    /// be streamed as a group of its own.
    fn groups(&self, kept: usize) -> Vec<Vec<UnitId>> {
        let mut free = vec![true; self.input.units.len()];
        for id in self.memory.small.iter().chain(&self.large[..kept]) {
            free[id.index()] = false;
        }
        let class = |id: UnitId| self.input.units[id.index()].class;
        let mut groups: Vec<Vec<UnitId>> = Vec::new();
        for group in &self.fixed.ring.groups {
            let left = group.units.iter().map(|&(id, _)| id).filter(|&id| {
                class(id) != UnitClass::HostOnly && std::mem::take(&mut free[id.index()])
            });
            groups.push(left.collect());
        }
        for &id in &self.large[kept..] {
            let streams = class(id) != UnitClass::Output || self.input.output_streams;
            if streams && std::mem::take(&mut free[id.index()]) {
                groups.push(vec![id]);
            }
        }
        groups.retain(|group| !group.is_empty());
        groups.sort_by_key(|group| group[0]);
        groups
    }

    fn sizes(&self, groups: &[Vec<UnitId>]) -> Vec<u64> {
        let sizes = groups.iter().map(|group| self.memory.bytes_of(group));
        sizes.collect()
    }

    /// Returns the bytes of `kept` large residents and of a ring, at most `ring` bytes, that the other units use and need.
    fn need(&self, kept: usize, ring: u64) -> u64 {
        let sizes = self.sizes(&self.groups(kept));
        let ring = ring.min(sizes.iter().sum()).max(ring::minimum(&sizes));
        let chunks = self.memory.chunks(&self.large[..kept]);
        let chunks: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
        chunks + round_up(ring, self.input.granularity)
    }

    fn build(&self, kv: Vec<KvPlacement>, room: u64, kept: usize, free: &Plan) -> Plan {
        let input = self.input;
        let large = &self.large[..kept];
        let chunks = self.memory.resident_chunks(large);
        let taken: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
        let left = room + self.memory.small_bytes - taken;
        let ring = self.ring(kept, left - left % input.granularity);
        let residents = self.memory.residents(large);
        let ledger = self.memory.ledger(&chunks, &ring, &kv, input.fetch_bytes());
        let fetched = input.fetch_shape();
        Plan {
            schema_version: PLAN_SCHEMA_VERSION,
            budget: input.budget,
            minimum_budget: free.minimum_budget,
            full_budget: free.full_budget,
            scratch_estimated: input.scratch_estimated,
            units: input.units.clone(),
            tiers: self.tiers(&residents, &ring),
            residents,
            chunks,
            ring,
            kv,
            fetched_experts: fetched.single,
            fetched_by_batches: fetched.batches,
            host_kv_min_rows: self.fixed.host_kv_min_rows,
            ledger,
        }
    }

    /// The places that the plan gave its groups, where these are still the same and fit.
    fn known_offsets(&self, groups: &[Vec<UnitId>], sizes: &[u64], room: u64) -> Option<Vec<u64>> {
        let ring = &self.fixed.ring;
        let known = &ring.groups;
        let same = |(group, (ids, &bytes)): (&StreamGroup, (&Vec<UnitId>, &u64))| {
            let members = group.units.iter().map(|(id, _)| id);
            members.eq(ids.iter())
                && group.bytes == bytes
                && group.offset.is_multiple_of(self.input.alignment)
                && (group.offset.checked_add(bytes)).is_some_and(|end| end <= ring.bytes)
        };
        let all_same =
            known.len() == groups.len() && known.iter().zip(groups.iter().zip(sizes)).all(same);
        let apart = |index: usize| {
            let next = (index + 1) % known.len();
            next == index || !known[index].overlaps(&known[next])
        };
        let usable = ring.bytes <= room && all_same && (0..known.len()).all(apart);
        usable.then(|| known.iter().map(|group| group.offset).collect())
    }

    fn ring(&self, kept: usize, room: u64) -> Ring {
        let groups = self.groups(kept);
        let sizes = self.sizes(&groups);
        let (offsets, used) = match self.known_offsets(&groups, &sizes, room) {
            Some(offsets) => (offsets, self.fixed.ring.bytes),
            None => {
                let wanted = self.fixed.ring.bytes.min(sizes.iter().sum());
                let wanted = wanted.max(ring::minimum(&sizes));
                let wanted = round_up(wanted, self.input.granularity);
                ring::layout(&sizes, wanted.min(room))
            }
        };
        self.memory.ring(&groups, &offsets, used)
    }

    /// As the plan's tiers; what was dropped becomes what never was resident.
    fn tiers(&self, residents: &[UnitId], ring: &Ring) -> Vec<Tier> {
        let kept_at_most = match self.input.keep_in_ring {
            true => ring.first_lap().len(),
            false => 0,
        };
        let tier = |tier: &Tier| {
            let mut placements = vec![Placement::Host; self.input.units.len()];
            for id in residents {
                placements[id.index()] = Placement::Resident;
            }
            let wanted = ring.groups.iter().map(|group| self.wanted(tier, group));
            let wanted: Vec<Placement> = wanted.collect();
            let streamed = |(group, placement): (&StreamGroup, &Placement)| {
                (*placement == Placement::Streamed).then(|| group.clone())
            };
            let streamed: Vec<StreamGroup> = (ring.groups.iter().zip(&wanted))
                .filter_map(streamed)
                .collect();
            for (at, (group, placement)) in ring.groups.iter().zip(&wanted).enumerate() {
                // what stays in its place does so only where nothing else comes
                let stays =
                    at < kept_at_most && !streamed.iter().any(|other| group.overlaps(other));
                let placement = match placement {
                    Placement::Kept if !stays => Placement::Host,
                    other => *other,
                };
                for (id, _) in &group.units {
                    placements[id.index()] = placement;
                }
            }
            Tier {
                placements,
                ..tier.clone()
            }
        };
        self.fixed.tiers.iter().map(tier).collect()
    }

    /// What a tier of the plan does with a group; a group is copied as one, so it does the same with all of it.
    fn wanted(&self, tier: &Tier, group: &StreamGroup) -> Placement {
        let input = self.input;
        let streams_from = |class| match class {
            UnitClass::Experts => input.expert_min_rows.unwrap_or(input.stream_min_rows),
            _ => input.stream_min_rows,
        };
        let of_unit = |id: &UnitId| match tier.placements[id.index()] {
            Placement::Resident if tier.min_rows >= streams_from(input.units[id.index()].class) => {
                Placement::Streamed
            }
            Placement::Resident => Placement::Host,
            other => other,
        };
        let mut placements = group.units.iter().map(|(id, _)| of_unit(id));
        match placements.next() {
            Some(first) if placements.all(|other| other == first) => first,
            _ => Placement::Host,
        }
    }
}

fn check(input: &PlanInput, fixed: &FixedPlan) -> Result<(), PlanError> {
    let invalid = |what: &str| Err(PlanError::InvalidInput(format!("the saved plan {what}")));
    let unknown = |id: &UnitId| id.index() >= input.units.len();
    let streamed = fixed.ring.groups.iter().flat_map(|group| &group.units);
    let mut members = (fixed.residents.iter()).chain(streamed.map(|(id, _)| id));
    if members.any(unknown) {
        return invalid("names a tensor that the model has not");
    }
    let places = |tier: &Tier| tier.placements.len() == input.units.len();
    if !fixed.tiers.iter().all(places) {
        return invalid("does not place every tensor");
    }
    let mut next = Some(1);
    for tier in &fixed.tiers {
        if next != Some(tier.min_rows) || tier.max_rows.is_some_and(|most| most < tier.min_rows) {
            return invalid("has tiers with a gap between them");
        }
        next = tier.max_rows.and_then(|most| most.checked_add(1));
    }
    if fixed
        .tiers
        .last()
        .is_none_or(|last| last.max_rows.is_some())
    {
        return invalid("does not say what happens to long batches");
    }
    Ok(())
}
