//! What holds for every plan and every machine.

use crate::cost::{Costs, PassShape, Workload};
use crate::plan::{self, Placement, Plan, PlanError};
use crate::test_support::{all_resident, plan_input, shape, Machine};
use pipeshard_model::test_support::Decoder;
use proptest::prelude::*;

fn rate(range: std::ops::Range<f64>) -> impl Strategy<Value = f64> {
    range.prop_map(|log: f64| 10f64.powf(log))
}

fn machines() -> impl Strategy<Value = Machine> {
    let links = (rate(9.0..11.0), 0.3f64..1.0);
    let cpus = (rate(9.5..11.5), 0.3f64..1.0, rate(10.5..12.5));
    let gpus = (rate(11.5..12.7), rate(12.5..15.0));
    let overheads = (rate(-5.0..-3.5), rate(-6.5..-5.0), rate(-4.5..-3.0));
    (links, cpus, gpus, overheads).prop_map(|(link, cpu, gpu, overheads)| Machine {
        link: link.0,
        link_cpu_busy: link.0 * link.1,
        cpu: cpu.0,
        cpu_copy_busy: cpu.0 * cpu.1,
        cpu_flops: cpu.2,
        gpu: gpu.0,
        gpu_flops: gpu.1,
        hand_over: overheads.0,
        launch: overheads.1,
        pass: overheads.2,
    })
}

fn models() -> impl Strategy<Value = Decoder> {
    let mixture = prop_oneof![Just((0, 0)), Just((16, 2)), Just((64, 8))];
    (1u32..7, 1u64..4, 1u64..5, mixture).prop_map(|(layers, width, feed_forward, experts)| {
        Decoder {
            type_name: "f16",
            layers,
            width: width * 512,
            queries: width * 512,
            keys: 256,
            feed_forward: feed_forward * 512,
            experts,
            vocabulary: 4096,
        }
    })
}

fn passes() -> impl Strategy<Value = PassShape> {
    let rows = prop_oneof![1u32..40, 32u32..3000];
    (rows, 1u32..9, 0u64..30_000, any::<bool>()).prop_map(|(rows, sequences, kv_tokens, all)| {
        PassShape {
            rows,
            sequences: sequences.min(rows),
            kv_tokens,
            outputs: if all { rows } else { 1 },
        }
    })
}

/// A plan with `share` of the room between the smallest budget and everything.
fn plan_for(model: &Decoder, share: f64) -> Plan {
    let inventory = model.inventory();
    let input = |budget| plan_input(&inventory, budget, 4096, 64);
    let minimum = match plan::plan(&input(0)) {
        Err(PlanError::BudgetTooSmall { minimum, .. }) => minimum,
        other => panic!("{other:?}"),
    };
    let full = all_resident(&inventory).full_budget;
    let room = full.saturating_sub(minimum) as f64 * share;
    plan::plan(&input(minimum + room as u64)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn seconds_are_finite_and_not_below_the_bound(
        machine in machines(), model in models(), share in 0.0f64..1.1, pass in passes(),
    ) {
        let (inventory, profile) = (model.inventory(), machine.profile());
        let plan = plan_for(&model, share);
        let cost = Costs::new(shape(&inventory), &profile).pass(&plan, pass);
        prop_assert!(cost.seconds.is_finite() && cost.seconds > 0.0, "{cost:?}");
        prop_assert!(cost.bound > 0.0 && cost.bound <= cost.seconds, "{cost:?}");
        prop_assert!(cost.gpu + cost.cpu + cost.hand_over_seconds <= cost.seconds * (1.0 + 1e-9), "{cost:?}");
        let link = cost.bytes_streamed as f64 / machine.link;
        prop_assert!(cost.link <= cost.seconds * (1.0 + 1e-9) && cost.bound >= link.min(cost.seconds) * (1.0 - 1e-6), "{cost:?}");
    }

    #[test]
    fn more_bandwidth_is_never_slower(
        machine in machines(), model in models(), share in 0.0f64..1.1, pass in passes(), more in 1.0f64..4.0,
    ) {
        let inventory = model.inventory();
        let plan = plan_for(&model, share);
        let seconds = |machine: Machine| {
            Costs::new(shape(&inventory), &machine.profile()).pass(&plan, pass).seconds
        };
        let before = seconds(machine);
        let faster_link = Machine { link: machine.link * more, link_cpu_busy: machine.link_cpu_busy * more, ..machine };
        let faster_cpu = Machine { cpu: machine.cpu * more, cpu_copy_busy: machine.cpu_copy_busy * more, ..machine };
        let faster_gpu = Machine { gpu: machine.gpu * more, ..machine };
        for faster in [faster_link, faster_cpu, faster_gpu] {
            let after = seconds(faster);
            prop_assert!(after <= before * (1.0 + 1e-9), "{before} {after} {faster:?}");
        }
    }

    #[test]
    fn a_resident_model_has_no_link_and_no_hand_overs(
        machine in machines(), model in models(), pass in passes(),
    ) {
        let inventory = model.inventory();
        let profile = machine.profile();
        let costs = Costs::new(shape(&inventory), &profile);
        let cost = costs.pass(&all_resident(&inventory), pass);
        prop_assert_eq!((cost.hand_overs, cost.bytes_streamed), (0, 0));
        prop_assert_eq!((cost.link, cost.cpu, cost.hand_over_seconds), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_unit_that_moves_to_the_device_is_slower_by_hand_overs_at_most(
        machine in machines(), model in models(), share in 0.0f64..1.0, which in any::<prop::sample::Index>(),
        rows in 1u32..32, kv_tokens in 0u64..5000,
    ) {
        let inventory = model.inventory();
        // the device is faster at everything
        let machine = Machine {
            gpu: machine.gpu.max(machine.cpu), gpu_flops: machine.gpu_flops.max(machine.cpu_flops), ..machine
        };
        let profile = machine.profile();
        let costs = Costs::new(shape(&inventory), &profile);
        let before = plan_for(&model, share);
        let decode = &before.tiers[0].placements;
        let host: Vec<usize> = (0..decode.len()).filter(|&at| decode[at] == Placement::Host).collect();
        let unit = host[which.index(host.len())];
        let mut after = before.clone();
        after.tiers[0].placements[unit] = Placement::Resident;
        let pass = PassShape { rows, sequences: 1, kv_tokens, outputs: 1 };
        let (before, after) = (costs.pass(&before, pass), costs.pass(&after, pass));
        let work = |cost: &crate::cost::PassCost| cost.seconds - cost.hand_over_seconds;
        // what the head computes on the device comes back
        let logits = 4.0 * model.vocabulary as f64 / machine.link;
        prop_assert!(work(&after) <= work(&before) * (1.0 + 1e-9) + logits, "{before:?} {after:?}");
    }

    #[test]
    fn a_longer_prompt_and_answer_take_longer(
        machine in machines(), model in models(), share in 0.0f64..1.1, prompt in 1u32..3000, generated in 1u32..200,
        sequences in 1u32..5, ubatch in 1u32..1024,
    ) {
        let inventory = model.inventory();
        let plan = plan_for(&model, share);
        let profile = machine.profile();
        let costs = Costs::new(shape(&inventory), &profile);
        let workload = Workload { prompt, generated, sequences, ubatch };
        let found = costs.predict(&plan, workload);
        prop_assert!(found.ttft > 0.0 && found.e2el >= found.ttft && found.tps > 0.0, "{found:?}");
        prop_assert!(found.e2el.is_finite() && found.prompt.bound <= found.prompt.seconds * (1.0 + 1e-9), "{found:?}");
        let twice = costs.predict(&plan, Workload { prompt: prompt * 2, generated: generated * 2, ..workload });
        prop_assert!(twice.e2el > found.e2el, "{found:?} {twice:?}");
    }
}
