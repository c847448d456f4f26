//! Attention over KV cache for which the budget has no room: it stays in host memory, and batches attend on the device.

mod common;

use common::{synthetic, Eval, MIB};

/// Prompts of one token, of some, and of more than an ubatch, in a context whose KV cache is larger than the model.
fn long_context(shape: &str) -> Eval {
    Eval::of(&synthetic(shape, &[]))
        .prompts(&[1, 40, 600])
        .generate(4)
        .arg("ctx", 8192)
}

fn attends_on_the_device(shape: &str) {
    let eval = long_context(shape);
    let stock = eval.answers();
    let smallest = eval.smallest_budget();
    let mut over = Vec::new();
    for (more, seed) in [(0, 1), (16, 2), (24, 3), (40, 4)] {
        let budget = smallest + more * MIB;
        let delays = format!("delay=500,seed={seed}");
        let ours = eval.clone().within(budget, &delays).answers();
        assert_eq!(stock.outcome(), ours.outcome(), "at {budget} bytes");
        let report = ours.report();
        assert!(report.engaged && report.errors.is_empty(), "{report:?}");
        assert!(report.peak.total <= budget, "{:?}", report.peak);
        assert_eq!(report.reallocations_after_reserve, 0);
        assert_eq!(report.host_waits.staging, 0);
        over.push(report.attentions_over_host_kv);
    }
    // the smallest budget has no room for the copy of a layer's KV cache
    assert_eq!(over[0], 0, "{over:?}");
    assert!(over[2] > 0 && over[3] > 0, "{over:?}");
    // with more room the KV cache of fewer layers is in host memory
    assert!(over[3] <= over[2], "{over:?}");
}

#[test]
fn dense() {
    attends_on_the_device("tiny-llama");
}

#[test]
fn experts() {
    attends_on_the_device("tiny-qwen3moe");
}

#[test]
fn sliding_windows() {
    attends_on_the_device("tiny-gemma3");
}
