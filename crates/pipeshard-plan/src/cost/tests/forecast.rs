//! Passes over a growing cache: priced for some sizes, interpolated between.

use crate::cost::{Costs, Forecast, PassShape};
use crate::plan::{Placement, Plan};
use crate::test_support::{all_resident, place, planned, shape, Machine};
use pipeshard_model::test_support::SMALL;

const CONTEXT: u64 = 16384;

fn passes_of(rows: u32) -> PassShape {
    PassShape {
        rows,
        sequences: 1,
        kv_tokens: 0,
        outputs: 1,
    }
}

#[test]
fn a_forecast_is_near_the_price_of_each_pass() {
    let model = SMALL.inventory();
    let profile = Machine::measured().profile();
    let costs = Costs::new(shape(&model), &profile);
    let resident = all_resident(&model);
    let mut mixed = planned(&model, 1 << 42, 512, 64);
    place(&mut mixed, Placement::Host, |name| name.contains("ffn"));
    let check = |plan: &Plan, rows: u32| {
        let forecast = Forecast::of(&costs, plan, passes_of(rows), CONTEXT);
        assert_eq!(forecast.rows(), rows);
        for kv_tokens in [0, 1, 100, 256, 700, 5000, 16000, CONTEXT] {
            let pass = PassShape {
                kv_tokens,
                ..passes_of(rows)
            };
            let (found, priced) = (forecast.seconds(kv_tokens), costs.pass(plan, pass));
            for (found, priced) in [(found.all, priced.seconds), (found.cpu, priced.cpu)] {
                assert!(
                    (found - priced).abs() <= 0.02 * priced,
                    "{rows} rows, {kv_tokens} kv_tokens: {found}, {priced}"
                );
            }
        }
        // a cache cannot have more than its context
        let (full, beyond) = (
            forecast.seconds(CONTEXT).all,
            forecast.seconds(2 * CONTEXT).all,
        );
        assert!((full - beyond).abs() < 1e-12 * full, "{full}, {beyond}");
        assert!(full > forecast.seconds(0).all);
    };
    for plan in [&resident, &mixed] {
        check(plan, 1);
        check(plan, 512);
    }
}

#[test]
fn a_model_without_a_cache_has_one_price() {
    let model = SMALL.inventory();
    let profile = Machine::measured().profile();
    let costs = Costs::new(shape(&model), &profile);
    let plan = all_resident(&model);
    let forecast = Forecast::of(&costs, &plan, passes_of(1), 0);
    let priced = costs.pass(&plan, passes_of(1)).seconds;
    assert!(priced > 0.0);
    assert_eq!(forecast.seconds(0).all, priced);
    assert_eq!(forecast.seconds(1000).all, priced);
}
