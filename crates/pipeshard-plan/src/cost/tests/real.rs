//! Real shapes on the machine that they were measured on (docs/benchmarks.md).

use crate::cost::{Costs, Limit, PassShape, Prediction, Workload};
use crate::plan::Placement;
use crate::test_support::{place, planned, shape, Machine, GIB};
use pipeshard_model::inventory::Inventory;
use pipeshard_model::test_support::{LLAMA_8B, QWEN_235B_A22B, QWEN_30B_A3B};
use std::ops::Range;

fn predicted(model: &Inventory, budget: u64, prompt: u32) -> Prediction {
    let plan = planned(model, budget, u64::from(prompt) + 128, 4096);
    let profile = Machine::measured().profile();
    let workload = Workload {
        prompt,
        generated: 32,
        sequences: 1,
        ubatch: 4096,
    };
    Costs::new(shape(model), &profile).predict(&plan, workload)
}

#[track_caller]
fn within(found: f64, expected: Range<f64>) {
    assert!(expected.contains(&found), "{found}, not in {expected:?}");
}

#[test]
fn a_dense_model_that_does_not_fit() {
    let model = LLAMA_8B.inventory();
    // measured: 7.3 tokens per second, 1980 and 16000 of a prompt; twice the budget: 12.2 and 20100
    let short = predicted(&model, 4 * GIB, 512);
    within(short.tps, 7.0..8.5);
    within(512.0 / short.ttft, 1800.0..2600.0);
    assert_eq!(
        (short.decode.limit, short.prompt.limit),
        (Limit::Cpu, Limit::Link)
    );
    let long = predicted(&model, 4 * GIB, 4096);
    within(4096.0 / long.ttft, 14_000.0..18_000.0);
    let larger = predicted(&model, 8 * GIB, 512);
    within(larger.tps, 11.0..13.0);
}

#[test]
fn a_mixture_that_does_not_fit() {
    let model = QWEN_30B_A3B.inventory();
    // measured: 40 to 48 tokens per second, 9300 to 11000 of a prompt
    let found = predicted(&model, 4 * GIB, 4096);
    within(found.tps, 40.0..50.0);
    // up to a half too fast: that a busy device slows the link is not priced
    within(4096.0 / found.ttft, 9_300.0..15_500.0);
    // to the CPU and back in every layer whose experts are there
    within(f64::from(found.decode.hand_overs), 70.0..97.0);
}

#[test]
fn what_fits_is_the_devices() {
    // measured: 23000, 24200 and 24400 tokens per second of prompts of 4096, 512 and 2048
    let model = LLAMA_8B.inventory();
    for (prompt, expected) in [(4096, 21e3..26e3), (512, 20e3..26e3), (2048, 21e3..26e3)] {
        let found = predicted(&model, 60 * GIB, prompt);
        within(f64::from(prompt) / found.ttft, expected);
        assert_eq!(
            (found.prompt.limit, found.decode.limit),
            (Limit::Gpu, Limit::Gpu)
        );
    }
}

#[test]
fn a_streamed_prompt_takes_as_long_as_its_lane_and_its_ends() {
    let model = LLAMA_8B.inventory();
    let plan = planned(&model, 4 * GIB, 4096, 4096);
    let profile = Machine::measured().profile();
    let costs = Costs::new(shape(&model), &profile);
    for rows in [512, 1024, 2048, 4096] {
        let pass = PassShape {
            rows,
            sequences: 1,
            kv_tokens: 0,
            outputs: 0,
        };
        let cost = costs.pass(&plan, pass);
        let lane = cost.link.max(cost.gpu);
        within(cost.seconds / lane, 0.999..1.04);
        within(cost.bound / cost.seconds, 0.95..1.001);
    }
}

#[test]
fn long_prompts_are_interpolated() {
    let model = LLAMA_8B.inventory();
    let plan = planned(&model, 6 * GIB, 33_000, 512);
    let profile = Machine::measured().profile();
    let costs = Costs::new(shape(&model), &profile);
    let workload = Workload {
        prompt: 32_768,
        generated: 1,
        sequences: 1,
        ubatch: 512,
    };
    let found = costs.predict(&plan, workload).prompt;
    let passes = (1..64).map(|pass| {
        let shape = PassShape {
            rows: 512,
            sequences: 1,
            kv_tokens: pass * 512,
            outputs: u32::from(pass == 63),
        };
        costs.pass(&plan, shape).seconds
    });
    let first = found.seconds - passes.sum::<f64>();
    // what is left is the first pass, or a hundredth of the whole to either side of it
    within(first / found.seconds, 0.0..0.025);
}

/// What pricing a pass takes grows with what is computed and copied in it, and with nothing else.
#[test]
fn a_pass_of_a_large_mixture_has_few_steps() {
    let model = QWEN_235B_A22B.inventory();
    let plan = planned(&model, 16 * GIB, 4096, 2048);
    let units = plan.units.len();
    assert!(units > 1000);
    let profile = Machine::measured().profile();
    for rows in [1, 32, 2048] {
        let pass = PassShape {
            rows,
            sequences: 1,
            kv_tokens: 1024,
            outputs: 1,
        };
        let script = Costs::new(shape(&model), &profile).script(&plan, pass);
        assert!((1..2 * units).contains(&script.acts.len()));
        assert!(script.copies.len() <= plan.ring.groups.len());
    }
}

#[test]
fn a_cpu_that_rested_takes_longer_once() {
    let model = LLAMA_8B.inventory();
    let seconds = |on_host: &str, wake: f64, rows: u32| {
        let mut plan = planned(&model, 60 * GIB, 4096, 4096);
        place(&mut plan, Placement::Host, |name| name.starts_with(on_host));
        let mut profile = Machine::measured().profile();
        profile.overheads.cpu_wake.median = wake;
        let pass = PassShape {
            rows,
            sequences: 1,
            kv_tokens: 0,
            outputs: 1,
        };
        Costs::new(shape(&model), &profile)
            .pass(&plan, pass)
            .seconds
    };
    let later = |on_host, rows| seconds(on_host, 5e-3, rows) - seconds(on_host, 0.0, rows);
    within(later("output.", 4096), 4.9e-3..5.1e-3);
    // it has no time to rest
    within(later("blk.", 1), -1e-9..1e-9);
}
