//! The budget changes between two tokens, and the tokens stay the same.

mod common;

use common::{synthetic, Eval, MIB};
use std::path::Path;

/// Layers of a model whose residents fill more than one chunk of device memory.
const MANY_LAYERS: &str = "--layers=24";

/// Between which budgets a change is possible once contexts exist: their KV and compute buffers stay where they are.
fn limits(eval: &Eval) -> (u64, u64) {
    let roomy = eval.clone().within(2 << 30, "").answers();
    let report = roomy.report();
    assert!(report.minimum_budget < report.peak.total);
    (report.minimum_budget, report.peak.total)
}

fn change(eval: &Eval, changes: &[(u32, u64)]) -> Eval {
    let list: Vec<String> = changes
        .iter()
        .map(|(at, size)| format!("{at}={size}"))
        .collect();
    eval.clone().arg("budget-at", list.join(","))
}

fn up_and_down(model: &Path, delay: &str) {
    let eval = Eval::of(model).prompts(&[1, 33]).generate(8);
    let stock = eval.answers();
    let (smallest, largest) = limits(&eval);
    let middle = (smallest + largest) / 2;
    for changes in [
        [(1, smallest), (4, largest)],
        [(2, middle), (3, smallest)],
        [(0, middle), (7, largest)],
    ] {
        let device = format!("vram={largest},{delay}");
        let ours = change(&eval, &changes)
            .arg("vram", largest)
            .arg("sim", device)
            .answers();
        assert_eq!(stock.outcome(), ours.outcome(), "{changes:?}");
        ours.assert_healthy_through(changes[1].1, largest);
        let report = ours.report();
        assert_eq!(report.budget_changes, 4);
        assert!(report.recarvings >= 2, "{report:?}");
        assert!(report.graph_reuses > 0);
    }
}

#[test]
fn dense() {
    up_and_down(&synthetic("tiny-llama", &[]), "delay=500,seed=11");
}

#[test]
fn experts() {
    up_and_down(&synthetic("tiny-qwen3moe", &[]), "delay=500,seed=12");
}

#[test]
fn sliding_windows() {
    up_and_down(&synthetic("tiny-gemma3", &[]), "delay=500,seed=13");
}

#[test]
fn what_stays_is_not_uploaded_again() {
    let eval = Eval::of(&synthetic("tiny-llama", &[MANY_LAYERS]))
        .prompts(&[7])
        .arg("ctx", 256)
        .generate(6);
    let stock = eval.answers();
    let constant = eval.clone().within(1 << 30, "").answers();
    let all = constant.report().bytes_uploaded;
    let largest = constant.report().peak.total;
    assert!(all > 128 * MIB, "{all}");
    let ours = change(&eval, &[(1, largest - 30 * MIB), (3, largest)])
        .within(largest, "")
        .answers();
    assert_eq!(stock.outcome(), ours.outcome());
    ours.assert_healthy(largest);
    let report = ours.report();
    assert_eq!((report.budget_changes, report.recarvings), (2, 2));
    // some weights went and came back, most stayed where they were
    let again = report.bytes_uploaded - all;
    assert!(again > 10 * MIB && again < all, "{again} of {all}");
}

#[test]
fn two_contexts_and_one_of_them_in_mid_pass() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[33])
        .arg("contexts", 2)
        .generate(6);
    let stock = eval.answers();
    let (smallest, largest) = limits(&eval);
    for seed in 1..=3 {
        let device = format!("vram={largest},delay=2000,seed={seed}");
        let ours = change(&eval, &[(1, smallest), (3, largest)])
            .arg("vram", largest)
            .arg("sim", device)
            .answers();
        assert_eq!(stock.outcome(), ours.outcome());
        ours.assert_healthy(largest);
        let report = ours.report();
        assert_eq!((report.contexts, report.budget_changes), (2, 2));
        assert!(report.recarvings >= 2);
    }
}

#[test]
fn a_budget_that_would_be_too_small_is_refused_and_nothing_changes() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[33])
        .generate(4);
    let refused = change(&eval, &[(1, MIB)])
        .within(eval.largest_budget(), "")
        .run();
    assert!(refused.failed_cleanly());
    let said = refused.said();
    assert!(
        said.contains("a budget of 1 MiB is too small: the smallest that works is"),
        "{said}"
    );
}

/// The driver hands out whole pages, so what is asked for takes more.
#[test]
fn large_pages_are_in_the_budget() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[33])
        .generate(2)
        .arg("ctx", 300)
        .arg("contexts", 2);
    let stock = eval.answers();
    // cells of one context are no multiple of a page
    for budget in [52 * MIB, 80 * MIB] {
        let ours = eval.clone().within(budget, "granularity=2M").answers();
        assert_eq!(stock.outcome(), ours.outcome());
        ours.assert_healthy(budget);
        assert!(ours.report().held.kv > 0);
    }
}
