//! What a person reads.

use super::super::*;
use pipeshard_model::test_support as models;

const MIB: u64 = 1 << 20;

#[test]
fn a_plan_reads_well() {
    let model = models::moe();
    let kv = (0..4).map(|layer| KvLayer {
        layer,
        bytes: 2 * MIB,
    });
    let input = PlanInput {
        scratch: 4 * MIB,
        scratch_estimated: true,
        granularity: 64 << 10,
        group_target: 4 * MIB,
        ..PlanInput::new(units_from_inventory(&model, 4096), kv.collect(), 40 * MIB)
    };
    insta::assert_snapshot!(plan(&input).unwrap().explain());
}

#[test]
fn a_tight_plan_shows_the_cache_on_the_host() {
    let model = models::dense();
    let kv = (0..8).map(|layer| KvLayer {
        layer,
        bytes: 2 * MIB,
    });
    let input = PlanInput {
        granularity: 64 << 10,
        ..PlanInput::new(units_from_inventory(&model, 4096), kv.collect(), 16 * MIB)
    };
    insta::assert_snapshot!(plan(&input).unwrap().explain());
}
