//! Graph rewrites: nodes are put into every graph ahead of the scheduler, here such that nothing changes.

mod common;

use common::{synthetic, Eval};

#[test]
fn a_rewrite_that_changes_nothing_changes_nothing() {
    for shape in ["tiny-llama", "tiny-qwen3moe", "tiny-gemma3"] {
        let eval = Eval::of(&synthetic(shape, &[]))
            .prompts(&[1, 33, 96])
            .arg("ubatch", 64)
            .generate(4);
        let stock = eval.answers();
        let rewritten = eval.clone().env("PIPESHARD_DEBUG_REWRITE", "1");
        let (smallest, largest) = (eval.smallest_budget(), eval.largest_budget());
        for budget in [smallest, (smallest + largest) / 2, largest] {
            let plain = eval.clone().within(budget, "").answers();
            assert_eq!(plain.report().rewritten_nodes, 0);
            let ours = rewritten.clone().within(budget, "delay=300").answers();
            assert_eq!(stock.outcome(), ours.outcome(), "{shape} at {budget} bytes");
            ours.assert_healthy(budget);
            let report = ours.report();
            // graphs that are used again are not built again, and not rewritten
            let built = report.passes.prompt + report.passes.decode - report.graph_reuses;
            assert!(report.graph_reuses > 0);
            assert!(
                report.rewritten_nodes >= built,
                "{} nodes in {built} graphs",
                report.rewritten_nodes
            );
            // the node is computed where its surroundings are
            let kernels = |answers: &common::Answers| answers.device_in(2, "kernels");
            if budget == largest {
                assert!(kernels(&ours) > kernels(&plain));
            }
        }
    }
}

#[test]
fn embeddings_that_several_threads_look_up_are_the_same() {
    // below that many tokens a single thread looks them up
    const MANY: u32 = 256;
    for kind in ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"] {
        let eval = Eval::of(&synthetic("tiny-llama-768", &["--type", kind]))
            .prompts(&[1, MANY - 1, MANY, MANY + 85])
            .arg("ubatch", 512)
            .generate(2);
        let stock = eval.answers();
        let within = eval.clone().within(eval.largest_budget(), "");
        // also where this machine has too few processors for helpers
        let ours = within.env("PIPESHARD_DEBUG_HELPERS", "3").answers();
        assert_eq!(stock.outcome(), ours.outcome(), "{kind}");
        let few = eval.clone().prompts(&[1, MANY - 1]);
        let few = few.within(eval.largest_budget(), "").answers();
        assert_eq!(few.report().rewritten_nodes, 0, "{kind}");
        assert!(ours.report().rewritten_nodes >= 2, "{kind}");
    }
}

#[test]
fn masks_that_are_written_in_parts_are_the_same() {
    // layers with and without a window, whose cells are left behind in the middle of a part
    let eval = Eval::of(&synthetic("tiny-gemma3", &[]))
        .prompts(&[1500])
        .arg("ubatch", 1536)
        .arg("ctx", 1536)
        .generate(1);
    let stock = eval.answers();
    let within = eval.clone().within(eval.largest_budget(), "");
    for helpers in ["0", "3"] {
        let ours = within.clone().env("PIPESHARD_DEBUG_HELPERS", helpers);
        assert_eq!(
            stock.outcome(),
            ours.answers().outcome(),
            "{helpers} helpers"
        );
    }
}
