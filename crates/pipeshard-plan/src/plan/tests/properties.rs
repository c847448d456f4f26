//! Properties over random inputs.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::super::*;

/// A model of some layers, each with a few tensors of every class, in order of use.
fn units() -> impl Strategy<Value = Vec<Unit>> {
    let size = || prop_oneof![1u64..200, 1u64..4000];
    let tensors = |most: usize| prop::collection::vec(size(), 0..most);
    let layer = (tensors(5), tensors(4), tensors(3), prop::bool::ANY);
    let layers = prop::collection::vec(layer, 0..8);
    (layers, tensors(3), tensors(2)).prop_map(|(layers, embeddings, heads)| {
        let mut units = Vec::new();
        let mut add = |layer, class, sizes: &[u64]| {
            for &bytes in sizes {
                units.push(Unit {
                    name: format!("{layer:?}.{class:?}.{}", units.len()),
                    layer,
                    class,
                    bytes,
                    device_bytes: bytes + bytes / 7,
                    expert_count: 0,
                });
            }
        };
        add(None, UnitClass::HostOnly, &embeddings);
        for (layer, (attention, ffn, experts, small)) in (0..).zip(layers) {
            let layer = Some(layer);
            if small {
                add(layer, UnitClass::Small, &[3]);
            }
            add(layer, UnitClass::Attention, &attention);
            add(layer, UnitClass::Small, &[5]);
            add(layer, UnitClass::FeedForward, &ffn);
            add(layer, UnitClass::Experts, &experts);
        }
        add(None, UnitClass::Output, &heads);
        units
    })
}

fn kv() -> impl Strategy<Value = Vec<KvLayer>> {
    let bytes = prop::collection::vec(0u64..3000, 0..8);
    bytes.prop_map(|bytes| {
        let layers = (0..).zip(bytes);
        layers
            .map(|(layer, bytes)| KvLayer { layer, bytes })
            .collect()
    })
}

/// Everything but the budget.
fn inputs() -> impl Strategy<Value = PlanInput> {
    let sizes = (
        0u64..5000,
        0u64..500,
        (0u32..7).prop_map(|shift| 1u64 << shift),
        prop_oneof![Just(1u64), Just(64), Just(100), Just(1024)],
    );
    let targets = (
        1u64..6000,
        1u64..10_000,
        prop::option::of(0u64..20_000),
        (0u32..40, prop::option::of(0u32..60)),
        (prop::bool::ANY, prop::bool::weighted(0.2)),
    );
    (units(), kv(), sizes, targets).prop_map(|(units, kv, sizes, targets)| {
        let (scratch, reserve, alignment, granularity) = sizes;
        let (group_target, chunk_target, ring_target, min_rows, output) = targets;
        PlanInput {
            scratch,
            reserve,
            encoders: reserve / 2,
            in_turn: reserve * 3,
            alignment,
            granularity,
            group_target,
            chunk_target,
            ring_target,
            stream_min_rows: min_rows.0,
            expert_min_rows: min_rows.1,
            output_streams: output.0,
            output_on_host: output.1,
            ..PlanInput::new(units, kv, 0)
        }
    })
}

fn with_budget(input: &PlanInput, budget: u64) -> PlanInput {
    PlanInput {
        budget,
        ..input.clone()
    }
}

fn minimum_of(input: &PlanInput) -> u64 {
    match plan(&with_budget(input, 0)) {
        Ok(plan) => plan.minimum_budget,
        Err(PlanError::BudgetTooSmall { minimum, .. }) => minimum,
        Err(other) => panic!("{other}"),
    }
}

/// An input with a budget that works: the minimum and up to somewhat more than everything.
pub(super) fn workable() -> impl Strategy<Value = PlanInput> {
    (inputs(), 0u64..60_000).prop_map(|(input, more)| {
        let minimum = minimum_of(&input);
        with_budget(&input, minimum + more)
    })
}

/// The fewest rows for which a unit is streamed.
fn streams_from(input: &PlanInput, unit: &Unit) -> u32 {
    match (unit.class, input.expert_min_rows) {
        (UnitClass::Experts, Some(rows)) => rows.max(1),
        _ => input.stream_min_rows.max(1),
    }
}

/// Reports whether a tier streams something through the place of this unit's group.
fn in_the_way(plan: &Plan, tier: &Tier, unit: usize) -> bool {
    let holds = |group: &&StreamGroup| group.units.iter().any(|(id, _)| id.index() == unit);
    let Some(own) = plan.ring.groups.iter().find(holds) else {
        return false;
    };
    let streamed = |group: &&StreamGroup| {
        let mut units = group.units.iter();
        units.any(|(id, _)| tier.placements[id.index()] == Placement::Streamed)
    };
    let mut streamed = plan.ring.groups.iter().filter(streamed);
    streamed.any(|other| {
        other.offset < own.offset + own.bytes && own.offset < other.offset + other.bytes
    })
}

fn disjoint(mut ranges: Vec<Range<u64>>) -> bool {
    ranges.sort_by_key(|range| (range.start, range.end));
    ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// Ranges lie apart, within `bytes`, at aligned offsets.
fn check_ranges(
    input: &PlanInput,
    units: &[(UnitId, u64)],
    bytes: u64,
) -> Result<(), TestCaseError> {
    let mut ranges = Vec::new();
    for &(id, offset) in units {
        let end = offset + input.units[id.index()].device_bytes;
        prop_assert_eq!(offset % input.alignment, 0);
        prop_assert!(end <= bytes);
        ranges.push(offset..end);
    }
    prop_assert!(disjoint(ranges), "units overlap");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_total_is_within_the_budget(input in workable()) {
        let plan = plan(&input).unwrap();
        let chunks: u64 = plan.chunks.iter().map(|chunk| chunk.bytes).sum();
        let kv: u64 = plan.kv.iter().filter(|kv| kv.device).map(|kv| kv.bytes).sum();
        prop_assert_eq!(plan.ledger.resident, chunks);
        prop_assert_eq!(plan.ledger.slots, plan.ring.bytes);
        prop_assert!(plan.ledger.kv >= kv);
        prop_assert_eq!(plan.ledger.scratch, input.scratch);
        prop_assert_eq!(plan.ledger.reserve, input.reserve);
        prop_assert_eq!(plan.ledger.encoders, input.encoders);
        prop_assert!(plan.ledger.total() <= input.budget);
        for bytes in plan.chunks.iter().map(|c| c.bytes).chain([plan.ring.bytes, plan.ledger.kv]) {
            prop_assert_eq!(bytes % input.granularity, 0);
        }
    }

    #[test]
    fn nothing_overlaps_in_chunks_or_groups(input in workable()) {
        let plan = plan(&input).unwrap();
        for chunk in &plan.chunks {
            check_ranges(&input, &chunk.units, chunk.bytes)?;
            prop_assert!(!chunk.units.is_empty());
        }
        for group in &plan.ring.groups {
            check_ranges(&input, &group.units, group.offset + group.bytes)?;
            prop_assert!(group.units.iter().all(|&(_, offset)| offset >= group.offset));
            prop_assert!(group.offset + group.bytes <= plan.ring.bytes);
        }
    }

    #[test]
    fn groups_that_follow_each_other_are_apart(input in workable()) {
        let groups = plan(&input).unwrap().ring.groups;
        for (index, group) in groups.iter().enumerate() {
            let next = &groups[(index + 1) % groups.len()];
            prop_assert!(
                groups.len() == 1
                    || group.offset + group.bytes <= next.offset
                    || next.offset + next.bytes <= group.offset
            );
        }
    }

    #[test]
    fn groups_follow_the_order_of_use_within_a_layer_and_class(input in workable()) {
        let plan = plan(&input).unwrap();
        let order: Vec<u32> = plan.ring.groups.iter().flat_map(|g| &g.units).map(|u| u.0.0).collect();
        prop_assert!(order.windows(2).all(|pair| pair[0] < pair[1]));
        for group in &plan.ring.groups {
            let kind = |id: UnitId| (input.units[id.index()].layer, input.units[id.index()].class);
            let first = group.units[0].0;
            prop_assert!(group.units.iter().all(|&(id, _)| kind(id) == kind(first)));
            prop_assert!(group.units.len() == 1 || group.bytes <= input.group_target);
        }
    }

    #[test]
    fn the_first_lap_lies_side_by_side_and_is_followed_by_what_takes_its_place(input in workable()) {
        let ring = plan(&input).unwrap().ring;
        let lap = ring.first_lap();
        let apart = |a: &StreamGroup, b: &StreamGroup| {
            a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset
        };
        for (index, group) in lap.iter().enumerate() {
            prop_assert!(lap[..index].iter().all(|other| apart(group, other)));
        }
        prop_assert!(ring.groups.is_empty() || lap.len() >= ring.groups.len().min(2));
        if let Some(next) = ring.groups.get(lap.len()) {
            prop_assert!(lap.iter().any(|group| !apart(group, next)));
        }
    }

    #[test]
    fn every_unit_is_in_one_place(input in workable()) {
        let plan = plan(&input).unwrap();
        let mut places: HashMap<UnitId, Placement> = HashMap::new();
        let chunked = plan.chunks.iter().flat_map(|chunk| &chunk.units);
        let order: Vec<UnitId> = chunked.map(|&(id, _)| id).collect();
        prop_assert_eq!(&order, &plan.residents);
        for id in order {
            prop_assert!(places.insert(id, Placement::Resident).is_none());
        }
        for &(id, _) in plan.ring.groups.iter().flat_map(|group| &group.units) {
            prop_assert!(places.insert(id, Placement::Streamed).is_none());
        }
        let first_lap: Vec<UnitId> = plan.ring.first_lap().iter().flat_map(|g| &g.units).map(|u| u.0).collect();
        let locations = plan.locations();
        let decode = plan.tier(1).unwrap();
        let prompt = plan.tier(u32::MAX).unwrap();
        for (index, unit) in input.units.iter().enumerate() {
            let place = places.get(&UnitId(index as u32)).copied().unwrap_or(Placement::Host);
            match unit.class {
                UnitClass::Small => prop_assert_eq!(place, Placement::Resident),
                UnitClass::HostOnly => prop_assert_eq!(place, Placement::Host),
                UnitClass::Output if input.output_on_host => prop_assert_eq!(place, Placement::Host),
                UnitClass::Output if input.output_streams => prop_assert!(place != Placement::Host),
                UnitClass::Output => prop_assert!(place != Placement::Streamed),
                _ => prop_assert!(place != Placement::Host),
            }
            prop_assert_eq!(prompt.placements[index], place);
            let kept = first_lap.contains(&UnitId(index as u32)) && !in_the_way(&plan, decode, index);
            let expected = match place {
                Placement::Streamed if streams_from(&input, unit) <= 1 => Placement::Streamed,
                Placement::Streamed if kept => Placement::Kept,
                Placement::Streamed => Placement::Host,
                other => other,
            };
            prop_assert_eq!(decode.placements[index], expected);
            let matches = match locations[index] {
                Location::Chunk { .. } => place == Placement::Resident,
                Location::Ring { .. } => place == Placement::Streamed,
                Location::Host => place == Placement::Host,
            };
            prop_assert!(matches);
        }
    }

    #[test]
    fn short_batches_stream_through_their_share_alone(input in workable(), percent in 1u32..101, rows in 1u32..8) {
        let input = PlanInput {
            short_streams: vec![StreamShare { min_rows: 1, percent: percent / 2 }, StreamShare { min_rows: 4, percent }],
            ..input
        };
        let plan = plan(&input).unwrap();
        let tier = plan.tier(rows).unwrap();
        let percent = u64::from(if rows < 4 { percent / 2 } else { percent });
        let first_lap = plan.ring.first_lap().len();
        for (at, group) in plan.ring.groups.iter().enumerate() {
            for &(id, _) in &group.units {
                let unit = &input.units[id.index()];
                let through = percent > 0
                    && unit.class != UnitClass::Experts
                    && at >= first_lap
                    && group.offset >= plan.ring.bytes - plan.ring.bytes / 100 * percent;
                let expected = match rows >= streams_from(&input, unit) || through {
                    true => Placement::Streamed,
                    false if at < first_lap && !in_the_way(&plan, tier, id.index()) => Placement::Kept,
                    false => Placement::Host,
                };
                prop_assert_eq!(tier.placements[id.index()], expected);
            }
        }
    }

    #[test]
    fn tiers_cover_all_rows_once(input in workable(), rows in 1u32..100) {
        let plan = plan(&input).unwrap();
        prop_assert_eq!(plan.tiers.iter().filter(|tier| tier.contains(rows)).count(), 1);
        let tier = plan.tier(rows).unwrap();
        prop_assert_eq!(plan.tier(input.stream_min_rows.max(1)).unwrap().min_rows, input.stream_min_rows.max(1));
        for (index, unit) in plan.units.iter().enumerate() {
            let streams = plan.tiers[plan.tiers.len() - 1].placements[index] == Placement::Streamed;
            let now = tier.placements[index] == Placement::Streamed;
            prop_assert_eq!(now, streams && rows >= streams_from(&input, unit));
        }
        if input.expert_min_rows.is_none() {
            let streams = rows >= input.stream_min_rows;
            prop_assert_eq!(&tier.name, if streams { "prompt" } else { "decode" });
        }
    }

    #[test]
    fn the_minimum_is_exact(input in inputs()) {
        let minimum = minimum_of(&input);
        let made = plan(&with_budget(&input, minimum)).unwrap();
        prop_assert_eq!(made.minimum_budget, minimum);
        place_kv(&with_budget(&input, minimum)).unwrap();
        if minimum > 0 {
            let small = with_budget(&input, minimum - 1);
            let error = plan(&small).unwrap_err();
            prop_assert_eq!(&error, &place_kv(&small).unwrap_err());
            let PlanError::BudgetTooSmall { budget, minimum: named, contributors } = error else {
                panic!("{error}");
            };
            prop_assert_eq!((budget, named), (minimum - 1, minimum));
            prop_assert_eq!(contributors.iter().map(|share| share.bytes).sum::<u64>(), minimum);
        }
    }

    #[test]
    fn all_is_resident_from_the_full_budget_on(input in inputs(), more in 0u64..5000) {
        let full = plan(&with_budget(&input, minimum_of(&input))).unwrap().full_budget;
        let made = plan(&with_budget(&input, full + more)).unwrap();
        prop_assert_eq!(made.full_budget, full);
        prop_assert!(made.ring.groups.is_empty());
        let may = input.units.iter().filter(|unit| match unit.class {
            UnitClass::HostOnly => false,
            UnitClass::Output => !input.output_on_host,
            _ => true,
        });
        prop_assert_eq!(made.residents.len(), may.count());
        prop_assert!(made.kv.iter().all(|layer| layer.device));
        if full > made.minimum_budget {
            let less = plan(&with_budget(&input, full - 1)).unwrap();
            let host_kv = less.kv.iter().any(|layer| !layer.device);
            prop_assert!(host_kv || less.residents.len() < made.residents.len());
        }
    }

    #[test]
    fn more_budget_adds_residents_and_keeps_chunks(input in workable(), more in 0u64..10_000) {
        let less = plan(&input).unwrap();
        let more = plan(&with_budget(&input, input.budget + more)).unwrap();
        prop_assert!(more.residents.starts_with(&less.residents));
        // All but the last chunk stay as they are.
        prop_assert!(less.shared_chunks(&more) + 1 >= less.chunks.len());
        let largest = |plan: &Plan| plan.ring.groups.iter().map(|group| group.bytes).max();
        prop_assert!(largest(&more) <= largest(&less));
    }

    #[test]
    fn residents_never_make_way_for_kv(
        input in inputs(), kv in prop::collection::vec(1u64..3000, 1..6), more in 0u64..3000,
    ) {
        // From the minimum on, every layer of KV comes to the device while residents only grow.
        let layers = (0..).zip(kv.iter().copied());
        let kv = layers.map(|(layer, bytes)| KvLayer { layer, bytes }).collect();
        let input = PlanInput { kv, granularity: 1, ..input };
        let minimum = minimum_of(&input);
        let mut before = plan(&with_budget(&input, minimum)).unwrap();
        for step in 0..40 {
            let now = plan(&with_budget(&input, minimum + more + step * 300)).unwrap();
            prop_assert!(now.residents.starts_with(&before.residents));
            before = now;
        }
    }

    #[test]
    fn kv_that_is_fixed_stays(
        input in workable(), devices in prop::collection::vec(prop::bool::ANY, 8), more in 0u64..10_000,
    ) {
        let fix = |(layer, device): (&KvLayer, bool)| KvPlacement {
            layer: layer.layer,
            device,
            bytes: layer.bytes,
        };
        let fixed: Vec<KvPlacement> = input.kv.iter().zip(devices).map(fix).collect();
        let input = PlanInput { kv_fixed: Some(fixed.clone()), ..input };
        let input = with_budget(&input, minimum_of(&input) + more / 2);
        let less = plan(&input).unwrap();
        prop_assert_eq!(&less.kv, &fixed);
        prop_assert!(less.ledger.total() <= input.budget);
        let more = plan(&with_budget(&input, input.budget + more)).unwrap();
        prop_assert!(more.residents.starts_with(&less.residents));
        prop_assert_eq!(less.ledger.kv, more.ledger.kv);
    }

    #[test]
    fn kv_is_placed_in_layer_order_and_as_planned(input in workable()) {
        let placed = place_kv(&input).unwrap();
        prop_assert_eq!(&placed, &plan(&input).unwrap().kv);
        prop_assert!(placed.windows(2).all(|pair| pair[0].device || !pair[1].device));
        let layers = placed.iter().map(|kv| KvLayer { layer: kv.layer, bytes: kv.bytes });
        prop_assert!(layers.eq(input.kv.iter().copied()));
    }

    #[test]
    fn the_ring_is_as_large_as_asked_or_useful(input in workable()) {
        let plan = plan(&input).unwrap();
        let streamed: u64 = plan.ring.groups.iter().map(|group| group.bytes).sum();
        prop_assert!(plan.ring.bytes < streamed + input.granularity || streamed == 0);
        prop_assert_eq!(plan.ring.bytes == 0, streamed == 0);
    }

    #[test]
    fn plans_are_deterministic_and_survive_json(input in workable()) {
        let made = plan(&input).unwrap();
        prop_assert_eq!(&made, &plan(&input).unwrap());
        let text = serde_json::to_string(&made).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Plan>(&text).unwrap(), &made);
        let lines = made.explain();
        prop_assert!(lines.lines().all(|line| line.chars().count() <= 80), "{}", lines);
    }

    #[test]
    fn no_sizes_whatever_make_it_overflow(
        sizes in prop::collection::vec(any::<u64>(), 1..4), scratch in any::<u64>(),
        budget in any::<u64>(), shift in 0u32..64, granularity in any::<u64>(),
    ) {
        let unit = |(index, &device_bytes): (usize, &u64)| Unit {
            name: String::new(),
            layer: Some(index as u32),
            class: UnitClass::ALL[index % 4],
            bytes: device_bytes,
            device_bytes,
            expert_count: 0,
        };
        let units = sizes.iter().enumerate().map(unit).collect();
        let kv = vec![KvLayer { layer: 0, bytes: sizes[0] }];
        let input = PlanInput {
            scratch,
            alignment: 1 << shift,
            granularity,
            ..PlanInput::new(units, kv, budget)
        };
        if let Ok(plan) = plan(&input) {
            prop_assert!(plan.ledger.total() <= budget);
        }
    }
}
