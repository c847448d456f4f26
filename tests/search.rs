//! Plans that were searched for: the same answers as stock llama.cpp, whatever machine they are made for.

mod common;

use common::{synthetic, Eval, MANY_EXPERTS, MIB, PROMPTS};

/// Machines between which everything that a search decides differs.
const MACHINES: [&str; 3] = [
    // a link that is faster than the CPU: short batches stream
    "pcie=40G,cpu=10G,membw=900G,flops=200T",
    // a CPU that is faster than the link
    "pcie=4G,cpu=80G,membw=900G,flops=200T",
    // a device that hardly computes
    "pcie=20G,cpu=40G,membw=50G,flops=1T",
];

fn compare(shape: &str, options: &[&str], budgets: &[u64]) -> u64 {
    let model = synthetic(shape, options);
    let stock = Eval::searched(&model).prompts(PROMPTS).generate(6);
    let reference = stock.answers();
    let mut streamed_in_decode = 0;
    for machine in MACHINES {
        for budget in budgets {
            let ours = stock.clone().within(*budget, machine).answers();
            assert!(
                ours.outcome() == reference.outcome(),
                "{shape} {machine} {budget}"
            );
            ours.assert_healthy(*budget);
            let units = &ours.report().units;
            streamed_in_decode += units.decode.streamed;
            let predicted = ours.report().predicted.as_ref();
            assert!(predicted.is_some_and(|p| p.tps > 0.0 && p.ttft > 0.0));
        }
    }
    streamed_in_decode
}

#[test]
fn dense() {
    let streamed = compare("tiny-llama", &[], &[30 * MIB, 36 * MIB, 44 * MIB]);
    assert!(streamed > 0, "no token streamed anything");
}

#[test]
fn experts() {
    compare(
        "tiny-qwen3moe",
        MANY_EXPERTS,
        &[22 * MIB, 30 * MIB, 44 * MIB],
    );
}

#[test]
fn sliding_windows() {
    let streamed = compare("tiny-gemma3", &[], &[32 * MIB, 42 * MIB]);
    assert!(streamed > 0, "no token streamed anything");
}

#[test]
fn the_plan_that_runs_is_the_one_that_was_predicted() {
    let model = synthetic("tiny-llama", &["--layers", "12"]);
    let mut streamed = 0;
    for budget in [34 * MIB, 39 * MIB, 47 * MIB] {
        // longer answers differ from shorter ones by their tokens alone
        let answer = |tokens| {
            let eval = Eval::searched(&model).prompts(&[200]).generate(tokens);
            eval.within(budget, MACHINES[0]).answers()
        };
        let (short, long) = (answer(4), answer(20));
        let predicted = long.report().predicted.as_ref().unwrap();
        let (short, long) = (short.report().bytes_streamed, long.report().bytes_streamed);
        assert_eq!(
            long - short,
            16 * predicted.decode_bytes_streamed,
            "{budget}"
        );
        streamed += long - short;
    }
    assert!(streamed > 0, "no token streamed anything");
}
