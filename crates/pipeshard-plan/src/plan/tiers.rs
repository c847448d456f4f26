//! What happens to every unit in a range of rows.
//!
//! Long batches stream what is not resident. Short ones are computed by the CPU where the weights lie, except for what the
//! ring can do for them: part of it keeps the groups that lie there first, and through the rest, groups are streamed while the
//! CPU computes those in between, so that the link and the CPU read host memory at the same time.

use super::types::{Placement, PlanInput, Ring, StreamGroup, StreamShare, Tier, UnitClass, UnitId};

pub(super) fn tiers(input: &PlanInput, residents: &[UnitId], ring: &Ring) -> Vec<Tier> {
    let mut resident = vec![Placement::Host; input.units.len()];
    for id in residents {
        resident[id.index()] = Placement::Resident;
    }
    let groups: Vec<(&StreamGroup, u32)> = ring
        .groups
        .iter()
        .filter_map(|group| Some((group, min_rows(input, group.units.first()?.0))))
        .collect();
    let mut starts: Vec<u32> = groups.iter().map(|&(_, rows)| rows).collect();
    // the tiers are the same ones where nothing is streamed
    starts.extend([1, input.stream_min_rows.max(1)]);
    let shares = input.short_streams.iter().map(|share| share.min_rows);
    let short = |&rows: &u32| rows > 1 && rows < input.stream_min_rows;
    starts.extend(shares.filter(short));
    starts.sort_unstable();
    starts.dedup();
    let last = starts.len() - 1;
    let first_lap = ring.first_lap().len();
    let tier = |(index, &start): (usize, &u32)| {
        let mut placements = resident.clone();
        let mut place = |group: &StreamGroup, placement| {
            for (id, _) in &group.units {
                placements[id.index()] = placement;
            }
        };
        let from = streams_from(input, ring, start);
        let streams = |at: usize, group: &StreamGroup, rows: u32| {
            let is_dense = !is_experts(input, group);
            rows <= start || (is_dense && at >= first_lap && group.offset >= from)
        };
        let (mut streamed, mut kept) = (Vec::new(), Vec::new());
        for (at, &(group, rows)) in groups.iter().enumerate() {
            if streams(at, group, rows) {
                streamed.push(group);
            } else if at < first_lap && input.keep_in_ring {
                kept.push(group);
            }
        }
        for group in &streamed {
            place(group, Placement::Streamed);
        }
        // what is streamed takes turns with nothing that is to stay
        for group in kept {
            if streamed.iter().all(|other| !group.overlaps(other)) {
                place(group, Placement::Kept);
            }
        }
        Tier {
            name: match index {
                _ if index == last => "prompt",
                0 => "decode",
                _ => "batch",
            }
            .to_owned(),
            min_rows: start,
            max_rows: starts.get(index + 1).map(|next| next - 1),
            placements,
            chosen_percent: input.chosen_percent,
        }
    };
    starts.iter().enumerate().map(tier).collect()
}

fn is_experts(input: &PlanInput, group: &StreamGroup) -> bool {
    let mut units = group.units.iter();
    units.any(|(id, _)| input.units[id.index()].class == UnitClass::Experts)
}

/// The fewest rows from which on a unit is streamed whatever the ring has room for.
fn min_rows(input: &PlanInput, id: UnitId) -> u32 {
    let own = match input.units[id.index()].class {
        UnitClass::Experts => input.expert_min_rows,
        _ => None,
    };
    own.unwrap_or(input.stream_min_rows).max(1)
}

/// Where the part of the ring begins that batches of `rows` rows stream through.
fn streams_from(input: &PlanInput, ring: &Ring, rows: u32) -> u64 {
    let reached = |share: &&StreamShare| share.min_rows <= rows;
    let share = input.short_streams.iter().filter(reached);
    let percent = share
        .max_by_key(|share| share.min_rows)
        .map_or(0, |share| u64::from(share.percent.min(100)));
    match percent {
        0 => u64::MAX,
        _ => ring.bytes - ring.bytes / 100 * percent,
    }
}
