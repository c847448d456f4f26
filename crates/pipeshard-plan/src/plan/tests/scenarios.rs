//! Cases that a person would draw.

use super::super::*;
use pipeshard_model::test_support as models;

const MIB: u64 = 1 << 20;

fn input(inventory: &pipeshard_model::inventory::Inventory, budget: u64) -> PlanInput {
    let units = units_from_inventory(inventory, 64 << 10);
    let kv = (0..inventory.layer_count).map(|layer| KvLayer { layer, bytes: MIB });
    PlanInput {
        scratch: 4 * MIB,
        reserve: MIB,
        chunk_target: 4 * MIB,
        granularity: 64 << 10,
        ..PlanInput::new(units, kv.collect(), budget)
    }
}

fn resident(plan: &Plan, class: UnitClass) -> Vec<u32> {
    let found = plan.residents.iter().map(|id| &plan.units[id.index()]);
    let mut layers: Vec<u32> = found
        .filter(|unit| unit.class == class)
        .map(|unit| unit.layer.unwrap_or(u32::MAX))
        .collect();
    layers.dedup();
    layers
}

#[test]
fn attention_first_then_feed_forward_spread_over_the_depth_then_the_head() {
    let model = models::dense();
    let attention = [0, 4, 2, 6, 1, 5, 3, 7];
    let at = |budget| plan(&input(&model, budget)).unwrap();
    let some = at(52 * MIB);
    assert_eq!(resident(&some, UnitClass::Attention), attention);
    let ffn = resident(&some, UnitClass::FeedForward);
    assert!(!ffn.is_empty() && ffn.len() < 8, "{ffn:?}");
    assert!(attention.starts_with(&ffn), "{ffn:?}");
    assert!(resident(&some, UnitClass::Output).is_empty());
    assert!(!some.ring.groups.is_empty());

    let full = at(some.full_budget);
    assert_eq!(resident(&full, UnitClass::Output), [u32::MAX]);
    // One byte less: the head is computed on the CPU, nothing is streamed, no ring is needed.
    let headless = at(some.full_budget - 1);
    assert_eq!(headless.ring, Ring::default());
    assert!(headless.tiers.iter().all(|tier| {
        let placements = headless.units.iter().zip(&tier.placements);
        let hosted = placements.filter(|(_, &placement)| placement == Placement::Host);
        hosted
            .map(|(unit, _)| unit.name.as_str())
            .eq(["token_embd.weight"])
    }));
}

#[test]
fn kv_moves_to_the_host_before_planning_fails() {
    let model = models::dense();
    let minimum = plan(&input(&model, 60 * MIB)).unwrap().minimum_budget;
    for extra in 0..=8 {
        let placed = place_kv(&input(&model, minimum + extra * MIB)).unwrap();
        let device = placed.iter().filter(|layer| layer.device).count() as u64;
        assert_eq!(device, extra, "one layer of KV per MiB");
    }
    let tight = plan(&input(&model, minimum)).unwrap();
    assert_eq!(tight.ledger.kv, 0);
    assert_eq!(tight.ledger.total(), minimum);
}

#[test]
fn the_error_names_what_to_lower() {
    let model = models::moe();
    let error = plan(&input(&model, MIB)).unwrap_err().to_string();
    assert!(error.contains("a budget of 1 MiB is too small"), "{error}");
    assert!(error.contains("(-ub)"), "{error}");
    assert!(error.contains("KV cache is not counted"), "{error}");

    let device = |layer| KvPlacement {
        layer,
        device: true,
        bytes: 64 * MIB,
    };
    let fixed = PlanInput {
        kv_fixed: Some((0..4).map(device).collect()),
        ..input(&model, 100 * MIB)
    };
    let error = plan(&fixed).unwrap_err().to_string();
    assert!(error.contains("256 MiB KV cache"), "{error}");
    assert!(error.contains("a shorter context (-c)"), "{error}");
}

#[test]
fn a_tensor_that_is_larger_than_the_target_is_a_group_of_its_own() {
    let model = models::moe();
    let few = PlanInput {
        group_target: 3 * MIB,
        ..input(&model, 46 * MIB)
    };
    let made = plan(&few).unwrap();
    for group in &made.ring.groups {
        let unit = &made.units[group.units[0].0.index()];
        assert_eq!((group.units.len(), unit.class), (1, UnitClass::Experts));
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let model = models::dense();
    let good = input(&model, 60 * MIB);
    let bad = [
        PlanInput {
            alignment: 3,
            ..good.clone()
        },
        PlanInput {
            alignment: 0,
            ..good.clone()
        },
        PlanInput {
            granularity: 0,
            ..good.clone()
        },
    ];
    for input in bad {
        let error = plan(&input).unwrap_err();
        assert!(matches!(error, PlanError::InvalidInput(_)), "{error}");
    }
    let overflow = PlanInput {
        scratch: u64::MAX,
        ..good
    };
    assert_eq!(plan(&overflow).unwrap_err(), PlanError::Overflow);
}

#[test]
fn an_empty_model_needs_nothing() {
    let empty = plan(&PlanInput::new(Vec::new(), Vec::new(), 0)).unwrap();
    assert_eq!((empty.minimum_budget, empty.full_budget), (0, 0));
    assert_eq!(empty.ledger, Ledger::default());
    assert!(!empty.explain().is_empty());
}

#[test]
fn shrinking_and_growing_again_gives_the_same_plan() {
    let model = models::dense();
    let large = plan(&input(&model, 52 * MIB)).unwrap();
    let small = plan(&input(&model, 44 * MIB)).unwrap();
    assert!(small.shared_chunks(&large) >= 2);
    assert!(small.residents.len() < large.residents.len());
    assert_eq!(plan(&input(&model, 52 * MIB)).unwrap(), large);
}

#[test]
fn what_would_fill_the_ring_alone_is_resident_instead() {
    let unit = Unit {
        name: "blk.0.attn_q.weight".to_owned(),
        layer: Some(0),
        class: UnitClass::Attention,
        bytes: MIB,
        device_bytes: MIB,
        expert_count: 0,
    };
    let input = PlanInput {
        granularity: MIB,
        ..PlanInput::new(
            vec![unit],
            vec![KvLayer {
                layer: 0,
                bytes: MIB,
            }],
            MIB,
        )
    };
    let made = plan(&input).unwrap();
    assert!(!made.kv[0].device);
    assert_eq!((made.residents.len(), made.minimum_budget), (1, MIB));
    assert_eq!(made.ring, Ring::default());
}

#[test]
fn who_takes_turns_with_weights_needs_room_but_takes_none() {
    let model = models::dense();
    let alone = plan(&input(&model, 60 * MIB)).unwrap();
    let with = |in_turn: u64, budget: u64| {
        plan(&PlanInput {
            in_turn,
            ..input(&model, budget)
        })
    };
    // what weights need at least is enough for it
    let little = with(MIB, 60 * MIB).unwrap();
    assert_eq!(little, alone);
    // more than weights need, less than they use
    let much = with(30 * MIB, 60 * MIB).unwrap();
    assert_eq!((&much.chunks, &much.ring), (&alone.chunks, &alone.ring));
    assert!(much.minimum_budget > alone.minimum_budget + 10 * MIB);
    let kv_and_the_rest = much.minimum_budget;
    assert!(with(30 * MIB, kv_and_the_rest).is_ok());
    let refused = with(30 * MIB, kv_and_the_rest - 1).unwrap_err();
    assert!(refused.to_string().contains("encoder"), "{refused}");
    // the KV cache makes room for it, as for weights
    let on_device = |plan: &Plan| plan.kv.iter().filter(|layer| layer.device).count();
    assert_eq!((on_device(&alone), on_device(&much)), (8, 8));
    assert!(on_device(&with(30 * MIB, kv_and_the_rest + 2 * MIB).unwrap()) < 8);
}
