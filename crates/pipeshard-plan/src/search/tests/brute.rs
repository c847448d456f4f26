//! What a search finds against the best of everything that could be resident.

use super::*;
use crate::constants::tried::RINGS;
use crate::constants::tried::SHARES;
use crate::cost::Costs;
use crate::plan::StreamShare;

/// Large units by layer and class.
fn blocks(plan: &Plan) -> Vec<Vec<UnitId>> {
    let mut blocks: Vec<(Option<u32>, UnitClass, Vec<UnitId>)> = Vec::new();
    for (index, unit) in plan.units.iter().enumerate() {
        if matches!(unit.class, UnitClass::Small | UnitClass::HostOnly) {
            continue;
        }
        let id = UnitId(index as u32);
        match blocks
            .iter_mut()
            .find(|b| (b.0, b.1) == (unit.layer, unit.class))
        {
            Some(block) => block.2.push(id),
            None => blocks.push((unit.layer, unit.class, vec![id])),
        }
    }
    blocks.into_iter().map(|block| block.2).collect()
}

/// The best score of all choices of blocks, for the other decisions of `found`, and for all sizes of the ring and shares of it that
/// generation streams through with the best choices.
fn best_of_all(found: &Found, costs: &Costs, input: &PlanInput, workload: Workload) -> f64 {
    let blocks = blocks(&found.plan);
    assert!((10..=14).contains(&blocks.len()), "{}", blocks.len());
    let score = |decisions: &Decisions| {
        let made = plan(&input.with(decisions)).ok()?;
        Some(weigh(costs, &made, workload).score)
    };
    let mut choices: Vec<(f64, Decisions)> = Vec::new();
    for subset in 0..1u32 << blocks.len() {
        let chosen = (0..blocks.len()).filter(|at| subset >> at & 1 == 1);
        let decisions = Decisions {
            order: chosen.flat_map(|at| blocks[at].clone()).collect(),
            ..found.decisions.clone()
        };
        choices.extend(score(&decisions).map(|score| (score, decisions)));
    }
    choices.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = choices[0].0;
    for (_, decisions) in &choices[..4] {
        for ring_target in RINGS.map(Some).into_iter().chain([None]) {
            for percent in SHARES {
                let decisions = Decisions {
                    ring_target: ring_target.map(|mib| mib * MIB),
                    short_streams: vec![StreamShare {
                        min_rows: 1,
                        percent,
                    }],
                    ..decisions.clone()
                };
                best = best.min(score(&decisions).unwrap_or(f64::INFINITY));
            }
        }
    }
    best
}

#[test]
fn finds_what_is_hardly_worse_than_the_best_choice_of_blocks() {
    // two blocks a layer and the head
    for (model, budget, workload, pcie, cpu) in [
        (repeat(&models::moe(), 5), 30 * MIB, talk(64, 64), 500, 1000),
        (cut(models::dense(), 5), 22 * MIB, talk(700, 8), 500, 1000),
        (cut(models::dense(), 6), 20 * MIB, talk(64, 64), 1000, 500),
    ] {
        let profile = slow(pcie, cpu);
        let input = PlanInput {
            scratch: MIB,
            ..input(&model, 1024, budget)
        };
        let found = run(&model, &profile, &input, workload);
        assert!(found.plan.full_budget > budget && found.priced > 50);
        let costs = Costs::new(shape(&model), &profile);
        let best = best_of_all(&found, &costs, &input, workload);
        assert!(
            found.score <= best * 1.02,
            "{} for {best}, {} MiB",
            found.score,
            budget >> 20
        );
    }
}
