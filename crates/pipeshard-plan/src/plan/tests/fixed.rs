//! Plans that are bound to an earlier one, and plans in files.

use proptest::prelude::*;

use super::super::*;
use super::properties::workable;
use pipeshard_model::test_support as models;

const MIB: u64 = 1 << 20;

fn bound(input: &PlanInput, made: &Plan, percent: u32) -> PlanInput {
    let fixed = FixedPlan::from_plan(made, input.units.len(), Some);
    PlanInput {
        fixed: Some(FixedPlan {
            dropped_percent: percent,
            ..fixed
        }),
        ..input.clone()
    }
}

/// Within the budget, every unit in one place, neighbours on the ring apart.
fn check_plan(input: &PlanInput, made: &Plan) -> Result<(), TestCaseError> {
    prop_assert!(made.ledger.total() <= input.budget);
    let resident = made.chunks.iter().flat_map(|chunk| &chunk.units);
    let streamed = made.ring.groups.iter().flat_map(|group| &group.units);
    let mut ids: Vec<UnitId> = resident.chain(streamed).map(|&(id, _)| id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    prop_assert_eq!(ids.len(), count);
    let groups = &made.ring.groups;
    for (index, group) in groups.iter().enumerate() {
        let next = &groups[(index + 1) % groups.len()];
        prop_assert!(groups.len() == 1 || !group.overlaps(next));
        prop_assert!(group.offset + group.bytes <= made.ring.bytes);
    }
    let locations = made.locations();
    for tier in &made.tiers {
        for (placement, location) in tier.placements.iter().zip(&locations) {
            let fits = match placement {
                Placement::Resident => matches!(location, Location::Chunk { .. }),
                Placement::Kept | Placement::Streamed => matches!(location, Location::Ring { .. }),
                Placement::Host => !matches!(location, Location::Chunk { .. }),
            };
            prop_assert!(fits);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_plan_can_be_followed_to_the_letter(input in workable()) {
        let made = plan(&input).unwrap();
        prop_assert_eq!(plan(&bound(&input, &made, 0)).unwrap(), made);
    }

    #[test]
    fn where_the_device_memory_shrinks_the_last_residents_give_way(input in workable(), less in 0u64..20_000) {
        let made = plan(&input).unwrap();
        let mut smaller = bound(&input, &made, 100);
        smaller.budget = input.budget.saturating_sub(less);
        match plan(&smaller) {
            Ok(followed) => {
                check_plan(&smaller, &followed)?;
                let kept = followed.residents.len();
                prop_assert_eq!(&followed.residents[..], &made.residents[..kept]);
                prop_assert_eq!(&followed.kv, &made.kv);
            }
            Err(PlanError::FixedDoesNotFit { needed, .. }) => prop_assert!(needed > smaller.budget),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn more_than_the_allowed_share_is_not_dropped(input in workable(), less in 0u64..20_000) {
        let made = plan(&input).unwrap();
        let mut smaller = bound(&input, &made, 5);
        smaller.budget = input.budget.saturating_sub(less);
        if let Ok(followed) = plan(&smaller) {
            let large = |plan: &Plan| {
                let ids = plan.residents.iter().map(|id| &plan.units[id.index()]);
                let large = ids.filter(|unit| unit.class != UnitClass::Small);
                // alignment aside
                large.map(|unit| unit.device_bytes).sum::<u64>() as f64
            };
            let slack = 64.0 * made.residents.len() as f64;
            prop_assert!(large(&followed) + slack >= 0.95 * large(&made));
        }
    }
}

fn saved() -> (PlanInput, SavedPlan) {
    let model = models::moe();
    let units = units_from_inventory(&model, 1024);
    let input = PlanInput::new(units, Vec::new(), 30 * MIB);
    let made = plan(&input).unwrap();
    let settings = PlanSettings {
        context: 1024,
        ubatch: 64,
        parallel: 1,
        cache_type_k: "f16".to_owned(),
        cache_type_v: "q8_0".to_owned(),
    };
    (input, SavedPlan::new(&model, settings, made))
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut value = serde_json::to_value(saved().1).unwrap();
    change(&mut value);
    let text = serde_json::to_vec(&value).unwrap();
    SavedPlan::from_json(&text).unwrap_err().to_string()
}

#[test]
fn what_was_saved_is_read() {
    let (input, saved) = saved();
    let text = saved.to_json().unwrap();
    assert_eq!(SavedPlan::from_json(text.as_bytes()).unwrap(), saved);
    let fixed = saved.fixed(&input.units).unwrap();
    let followed = PlanInput {
        fixed: Some(fixed),
        ..input
    };
    assert_eq!(plan(&followed).unwrap(), saved.plan);
}

#[test]
fn what_is_no_saved_plan_is_refused() {
    for (said, part) in [
        (refusal(|v| v["kind"] = "report".into()), "but 'report'"),
        (refusal(|v| v["schema"] = 9.into()), "form 9"),
        (
            refusal(|v| v["plan"]["schema_version"] = 1.into()),
            "form 1,",
        ),
        (
            refusal(|v| v["plan"]["residents"][0] = 999_999.into()),
            "contradicts",
        ),
        (refusal(|v| v["plan"]["units"] = 3.into()), "damaged"),
        (
            refusal(|v| v["model"]["tensors"][3]["type"] = "q4_0".into()),
            "does not match its fingerprint",
        ),
    ] {
        assert!(said.contains(part), "{said}");
        assert!(said.contains("pipeshard plan --"), "{said}");
    }
    let text = saved().1.to_json().unwrap();
    let cut = SavedPlan::from_json(&text.as_bytes()[..text.len() / 2]);
    assert!(cut.unwrap_err().to_string().contains("damaged"));
}

#[test]
fn another_model_is_told_by_its_first_difference() {
    let (_, saved) = saved();
    let identities = |model: &pipeshard_model::inventory::Inventory| {
        let tensors: Vec<TensorIdentity> = model.tensors.iter().map(TensorIdentity::from).collect();
        tensors
    };
    let same = identities(&models::moe());
    saved.check_model(same.iter().cloned()).unwrap();
    // llama.cpp does not load every tensor of every file
    saved.check_model(same.iter().skip(5).cloned()).unwrap();
    let said = |tensors: Vec<TensorIdentity>| {
        let result = saved.check_model(tensors.into_iter());
        result.unwrap_err().to_string()
    };
    let other = said(identities(&models::dense()));
    assert!(other.contains("architecture qwen3moe"), "{other}");
    assert!(other.contains("has no blk.0.ffn_gate.weight"), "{other}");
    let mut wider = same.clone();
    wider[2].shape[1] += 1;
    assert!(said(wider).contains("512x512 elements, here it is f16 of 512x513"));
    let mut finer = same;
    finer[2].type_name = "q8_0".to_owned();
    assert!(said(finer).contains("here it is q8_0"));
}

#[test]
fn what_others_placed_cannot_be_placed_by_a_plan() {
    let (input, saved) = saved();
    let resident = saved.plan.residents.last().unwrap();
    let name = input.units[resident.index()].name.clone();
    let mut units = input.units;
    units.retain(|unit| unit.name != name);
    let said = saved.fixed(&units).unwrap_err().to_string();
    assert!(said.contains(&name) && said.contains("-ot"), "{said}");
}

#[test]
fn a_plan_that_fetches_experts_keeps_their_memory_when_it_is_bound() {
    let model = models::moe();
    let units = units_from_inventory(&model, 64 << 10);
    let mut input = PlanInput::new(units, Vec::new(), 48 * MIB);
    input.fetched_experts = 2;
    let (rows, experts) = (4, 1);
    input.fetched_by_batches = vec![BatchFetch { rows, experts }];
    let made = plan(&input).expect("a plan");
    assert!(made.fetched_experts == 2 && made.ledger.reserve > 0);
    // a run that follows the plan decides nothing
    input.fetched_experts = 0;
    input.fetched_by_batches.clear();
    let again = plan(&bound(&input, &made, 0)).expect("the same plan");
    assert_eq!(again.fetched_experts, 2);
    assert_eq!(again.fetched_by_batches, made.fetched_by_batches);
    assert_eq!(again.fetched_for(3), 1);
    assert_eq!(again.ledger, made.ledger);
    assert_eq!(again.shared_with_device(1), made.shared_with_device(1));
}
