//! Slots for streamed groups: how small a ring may be, and where each group goes in it.
//!
//! A pass uses the groups in order, and the next pass starts over, so the order is a cycle. A
//! group's slot may be refilled once the last earlier group that overlaps it has been used. The
//! layout must keep neighbours on the cycle apart, or a copy could never run ahead of the
//! computation; beyond that it should keep a group apart from as many before it as it can.

use super::types::{Unit, UnitClass};

/// Splits the streamable units into groups: consecutive ones of a layer and class, up to `target`
/// bytes; a larger unit is a group of its own, and so is every tensor of experts, so that the next
/// one is copied while one is used. `sizes` are the aligned sizes of all units.
///
/// The split does not look at residency. A resident unit leaves its group, and the rest stays
/// together, so no group ever grows when the budget does.
pub(super) fn group(units: &[Unit], sizes: &[u64], target: u64, output: bool) -> Vec<Vec<usize>> {
    let streams = |class| match class {
        UnitClass::Attention | UnitClass::FeedForward | UnitClass::Experts => true,
        UnitClass::Output => output,
        UnitClass::Small | UnitClass::HostOnly => false,
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    let mut current = None;
    for (index, unit) in units.iter().enumerate() {
        if !streams(unit.class) {
            continue;
        }
        let kind = Some((unit.layer, unit.class));
        match groups.last_mut() {
            Some(last)
                if current == kind
                    && unit.class != UnitClass::Experts
                    && filled + sizes[index] <= target =>
            {
                last.push(index);
                filled += sizes[index];
            }
            _ => {
                groups.push(vec![index]);
                filled = sizes[index];
                current = kind;
            }
        }
    }
    groups
}

/// The smallest ring in which neighbours on the cycle can be kept apart.
///
/// An even number of groups alternates between the two ends of the ring, so the largest pair of
/// neighbours decides; an odd number needs one place where three stand side by side.
pub(super) fn minimum(sizes: &[u64]) -> u64 {
    match sizes.len() {
        0 => 0,
        1 => sizes[0],
        n => {
            let pair = |i: usize| sizes[i] + sizes[(i + 1) % n];
            let pairs = (0..n).map(pair).max().unwrap_or(0);
            if n % 2 == 0 {
                pairs
            } else {
                pairs.max(triple(sizes, smallest_triple(sizes)))
            }
        }
    }
}

/// A group with both its neighbours.
fn triple(sizes: &[u64], middle: usize) -> u64 {
    let n = sizes.len();
    sizes[(middle + n - 1) % n] + sizes[middle] + sizes[(middle + 1) % n]
}

fn smallest_triple(sizes: &[u64]) -> usize {
    let middles = 0..sizes.len();
    middles.min_by_key(|&i| triple(sizes, i)).unwrap_or(0)
}

/// Offsets for groups of these sizes in a ring of `capacity` bytes, which is at least
/// [`minimum`], and how many bytes of the ring they need.
pub(super) fn layout(sizes: &[u64], capacity: u64) -> (Vec<u64>, u64) {
    let total: u64 = sizes.iter().sum();
    if total <= capacity {
        return (in_a_row(sizes), total);
    }
    // In equal laps a group meets the one a lap before it; fewer laps look further ahead.
    let laps = total.div_ceil(capacity.max(1));
    let equal_laps = (laps..laps + 4).map(|count| in_laps(sizes, total, count));
    let mut best = alternating(sizes);
    let mut best_tightness = tightness(sizes, &best).unwrap_or(u128::MAX);
    for offsets in equal_laps.chain([wrapping(sizes, capacity)]) {
        if extent(sizes, &offsets) > capacity {
            continue;
        }
        let found = tightness(sizes, &offsets);
        if let Some(found) = found.filter(|&found| found < best_tightness) {
            best = offsets;
            best_tightness = found;
        }
    }
    let used = extent(sizes, &best);
    (best, used)
}

fn extent(sizes: &[u64], offsets: &[u64]) -> u64 {
    let ends = sizes
        .iter()
        .zip(offsets)
        .map(|(size, offset)| size + offset);
    ends.max().unwrap_or(0)
}

fn in_a_row(sizes: &[u64]) -> Vec<u64> {
    let mut next = 0;
    let place = |size: &u64| {
        let offset = next;
        next += size;
        offset
    };
    sizes.iter().map(place).collect()
}

/// One after the other, back to the start where the end would be passed.
fn wrapping(sizes: &[u64], capacity: u64) -> Vec<u64> {
    let mut next = 0;
    let place = |&size: &u64| {
        let offset = if next + size > capacity { 0 } else { next };
        next = offset + size;
        offset
    };
    sizes.iter().map(place).collect()
}

/// Cuts the cycle into `count` laps of about the same number of bytes.
fn in_laps(sizes: &[u64], total: u64, count: u64) -> Vec<u64> {
    let mut before: u64 = 0;
    let mut lap = 0;
    let mut next = 0;
    let place = |&size: &u64| {
        let middle = u128::from(before) + u128::from(size / 2);
        let this = middle * u128::from(count) / u128::from(total.max(1));
        if this != lap {
            lap = this;
            next = 0;
        }
        let offset = next;
        next += size;
        before += size;
        offset
    };
    sizes.iter().map(place).collect()
}

/// Turn and turn about at both ends of the smallest ring there is.
fn alternating(sizes: &[u64]) -> Vec<u64> {
    let n = sizes.len();
    let capacity = minimum(sizes);
    let mut offsets = vec![0; n];
    let mut start = 0;
    if n % 2 == 1 && n > 1 {
        start = smallest_triple(sizes);
        offsets[start] = sizes[(start + n - 1) % n];
    }
    for step in 1..n {
        let index = (start + step) % n;
        if step % 2 == 1 {
            offsets[index] = capacity - sizes[index];
        }
    }
    offsets
}

/// For each group the bytes that lie between it and the last one before it, on the cycle, that
/// overlaps it: how far copies can run ahead of it. None if neighbours overlap.
fn lookaheads(sizes: &[u64], offsets: &[u64]) -> Option<Vec<u64>> {
    let n = sizes.len();
    let overlaps = |a: usize, b: usize| {
        offsets[a] < offsets[b] + sizes[b] && offsets[b] < offsets[a] + sizes[a]
    };
    let ahead = |index: usize| {
        let earlier = (1..n).map(|back| (index + n - back) % n);
        let clear = earlier.take_while(|&other| !overlaps(index, other));
        let bytes: u64 = clear.map(|other| sizes[other]).sum();
        (bytes > 0 || n == 1).then_some(bytes)
    };
    (0..n).map(ahead).collect()
}

/// How much a layout holds copies back: a short lookahead counts for more than a long one makes
/// up for, and one tight place for less than many. None if neighbours overlap.
fn tightness(sizes: &[u64], offsets: &[u64]) -> Option<u128> {
    let lookaheads = lookaheads(sizes, offsets)?;
    let inverse = |&bytes: &u64| (1u128 << 100) / u128::from(bytes.max(1));
    Some(lookaheads.iter().map(inverse).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(sizes: &[u64], capacity: u64) -> Result<(), TestCaseError> {
        let (offsets, used) = layout(sizes, capacity);
        prop_assert!(used <= capacity);
        prop_assert_eq!(used, extent(sizes, &offsets));
        prop_assert!(lookaheads(sizes, &offsets).is_some(), "neighbours overlap");
        Ok(())
    }

    proptest! {
        #[test]
        fn neighbours_are_apart_at_the_minimum_and_above(
            sizes in prop::collection::vec(1u64..50, 1..24),
            more in 0u64..400,
        ) {
            check(&sizes, minimum(&sizes))?;
            check(&sizes, minimum(&sizes) + more)?;
        }

        #[test]
        fn the_minimum_never_exceeds_the_total_nor_undercuts_a_pair(
            sizes in prop::collection::vec(1u64..50, 2..24),
        ) {
            let n = sizes.len();
            let pairs = (0..n).map(|i| sizes[i] + sizes[(i + 1) % n]).max().unwrap();
            prop_assert!(minimum(&sizes) <= sizes.iter().sum());
            prop_assert!(minimum(&sizes) >= pairs);
        }
    }

    #[test]
    fn minimum_by_hand() {
        assert_eq!(minimum(&[]), 0);
        assert_eq!(minimum(&[7]), 7);
        assert_eq!(minimum(&[7, 3]), 10);
        assert_eq!(minimum(&[5, 10, 10]), 25);
        assert_eq!(minimum(&[5, 10, 10, 1]), 20);
        assert_eq!(minimum(&[10, 1, 10, 1, 1]), 12);
    }

    fn sorted_lookaheads(sizes: &[u64], capacity: u64) -> Vec<u64> {
        let (offsets, _) = layout(sizes, capacity);
        let mut found = lookaheads(sizes, &offsets).unwrap();
        found.sort_unstable();
        found
    }

    #[test]
    fn equal_groups_look_ahead_by_a_whole_lap() {
        let sizes = [10u64; 40];
        // Five laps of eight: each slot is free again after the seven groups in between.
        assert_eq!(layout(&sizes, 87).1, 80);
        assert_eq!(sorted_lookaheads(&sizes, 87), [70; 40]);
        assert_eq!(layout(&sizes, 400).1, 400);
        assert_eq!(sorted_lookaheads(&sizes, 400), [390; 40]);
    }

    #[test]
    fn a_short_last_lap_is_evened_out() {
        // 41 groups in a ring of 8: five full laps and one group would leave the seam shut.
        let found = sorted_lookaheads(&[10; 41], 80);
        assert!(found[0] >= 50, "{found:?}");
    }

    #[test]
    fn one_tight_place_is_better_than_many() {
        // 65 groups in a ring of 3: turns at two ends would do, but look ahead by one only.
        let found = sorted_lookaheads(&[10; 65], 30);
        assert!(found[2..].iter().all(|&bytes| bytes >= 20), "{found:?}");
    }

    #[test]
    fn groups_follow_layers_classes_and_the_target() {
        let unit = |layer, class| Unit {
            name: String::new(),
            layer: Some(layer),
            class,
            bytes: 0,
            device_bytes: 0,
            expert_count: 0,
        };
        let units = [
            unit(0, UnitClass::Small),
            unit(0, UnitClass::Attention),
            unit(0, UnitClass::Small),
            unit(0, UnitClass::Attention),
            unit(0, UnitClass::FeedForward),
            unit(0, UnitClass::FeedForward),
            unit(0, UnitClass::FeedForward),
            unit(1, UnitClass::FeedForward),
            unit(1, UnitClass::Output),
        ];
        let sizes = [1, 10, 1, 10, 8, 8, 40, 8, 8];
        let groups = group(&units, &sizes, 20, false);
        assert_eq!(groups, [vec![1, 3], vec![4, 5], vec![6], vec![7]]);
        assert_eq!(group(&units, &sizes, 20, true).len(), 5);
        let experts = [unit(0, UnitClass::Experts), unit(0, UnitClass::Experts)];
        assert_eq!(group(&experts, &[1, 1], 20, false), [vec![0], vec![1]]);
    }
}
