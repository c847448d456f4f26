//! Each wait between the lanes is needed: without it, answers change or the run fails.
//!
//! One wait is left out at a time, in a configuration where the lanes would run into each other. The configuration itself is
//! sound: with all waits in place it gives the answers of stock llama.cpp. Pauses of the simulated streams are random, so a few
//! seeds are tried, of which one has to show it.

mod common;

use common::{released_library, synthetic, Eval, MANY_EXPERTS, MIB};

/// Seeds that are tried until the loss of a wait shows.
const SEEDS: u64 = 5;

/// Runs `configuration` with and without the wait that `dropped` names.
fn assert_needed(dropped: &str, stock: &Eval, configuration: impl Fn(u64) -> Eval) {
    let stock = stock.answers();
    let mut shown = false;
    for seed in 1..=SEEDS {
        let sound = configuration(seed).answers();
        assert_eq!(
            stock.outcome(),
            sound.outcome(),
            "with all waits, seed {seed}"
        );
        assert!(sound.report().engaged);
        let mutated = configuration(seed)
            .env("PIPESHARD_DEBUG_DROP_WAIT", dropped)
            .run();
        shown |= !mutated.succeeded() || !stock.given_by(&mutated);
        if shown {
            break;
        }
    }
    assert!(
        shown,
        "without the wait '{dropped}' all answers were the same"
    );
}

fn prompt(tokens: u32) -> Eval {
    Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[tokens])
        .generate(1)
}

/// Nearly all weights are streamed, and all KV is on the device.
fn streamed(eval: &Eval) -> u64 {
    let roomy = eval.clone().within(2 << 30, "").answers();
    roomy.report().minimum_budget
}

#[test]
fn compute_waits_until_a_group_is_filled() {
    // copies take longer than kernels
    let eval = prompt(32);
    let budget = streamed(&eval);
    assert_needed("filled", &eval, |seed| {
        let delays = format!("delay=3000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

#[test]
fn a_group_is_not_overwritten_before_it_was_read() {
    // kernels take longer than copies
    let eval = prompt(256);
    let budget = streamed(&eval);
    assert_needed("read", &eval, |seed| {
        let delays = format!("delay=200,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

fn chosen_experts(tokens: u32) -> Eval {
    Eval::of(&synthetic("tiny-qwen3moe", MANY_EXPERTS))
        .prompts(&[tokens])
        .generate(1)
}

#[test]
fn compute_waits_until_chosen_experts_are_there() {
    let eval = chosen_experts(32);
    let budget = streamed(&eval);
    assert_needed("filled", &eval, |seed| {
        let delays = format!("delay=3000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

#[test]
fn the_host_waits_until_it_knows_which_experts_were_chosen() {
    let eval = chosen_experts(32);
    let budget = streamed(&eval);
    assert_needed("choice", &eval, |seed| {
        let delays = format!("delay=1000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

#[test]
fn residents_are_used_when_their_upload_is_complete() {
    let eval = prompt(32);
    let budget = eval.largest_budget();
    assert_needed("upload", &eval, |seed| {
        let delays = format!("delay=3000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

/// A token's experts, of which the device fetches some.
fn divided_experts() -> (Eval, u64) {
    let eval = chosen_experts(3).generate(6);
    // nothing else is copied for a token that a wait could be about
    let eval = eval.env("PIPESHARD_DEBUG_DECODE_STREAM", "0");
    let budget = streamed(&eval) + 2 * MIB;
    (eval, budget)
}

#[test]
fn the_device_waits_until_its_experts_are_fetched() {
    let (eval, budget) = divided_experts();
    assert_needed("filled", &eval, |seed| {
        let delays = format!("delay=1000,seed={seed}");
        let ours = eval.clone().within(budget, &delays);
        ours.env("PIPESHARD_DEBUG_FETCHED_EXPERTS", "2")
    });
}

#[test]
fn the_device_waits_until_the_experts_of_a_batch_are_fetched() {
    let eval = chosen_experts(6).generate(0);
    let eval = eval.env("PIPESHARD_DEBUG_DECODE_STREAM", "0");
    let budget = streamed(&eval) + 2 * MIB;
    assert_needed("filled", &eval, |seed| {
        let delays = format!("delay=1000,seed={seed}");
        let ours = eval.clone().within(budget, &delays);
        let ours = ours.env("PIPESHARD_DEBUG_FETCHED_EXPERTS", "2");
        ours.env("PIPESHARD_DEBUG_FETCHED_ROWS", "8")
    });
}

#[test]
fn the_cpu_waits_for_the_results_that_it_reads() {
    // of a token the CPU computes what is not resident
    let eval = prompt(32).generate(2);
    let budget = streamed(&eval);
    assert_needed("results", &eval, |seed| {
        let delays = format!("delay=1000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

#[test]
fn what_the_device_still_reads_from_host_memory_is_not_overwritten() {
    // the inputs of the next ubatch are written while the device is busy with the one before
    let eval = prompt(256).arg("ubatch", 32);
    let budget = eval.largest_budget();
    assert_needed("sources", &eval, |seed| {
        let delays = format!("delay=3000,seed={seed}");
        eval.clone().within(budget, &delays)
    });
}

#[test]
fn a_staging_slot_is_used_again_when_its_copy_was_made() {
    // the ring itself is page-locked, the weights are not
    let eval = prompt(128);
    let budget = streamed(&eval) + MIB;
    assert_needed("staging", &eval, |seed| {
        let delays = format!("delay=1000,seed={seed}");
        let staged = eval.clone().within(budget, &delays);
        staged.env("PIPESHARD_PAGE_LOCK", "off")
    });
}

#[test]
fn memory_is_given_back_when_nobody_uses_it_any_more() {
    // everything is resident, and the budget shrinks while the first context's batch is being computed
    let plain = prompt(32).arg("contexts", 2).generate(2);
    let budget = plain.largest_budget();
    let shrinking = format!("1={}", budget - 16 * MIB);
    assert_needed("drain", &plain, |seed| {
        let delays = format!("freewait=off,delay=3000,seed={seed}");
        let eval = plain.clone().within(budget, &delays);
        eval.arg("budget-at", &shrinking)
    });
}

#[test]
fn a_wait_that_does_not_exist_cannot_be_left_out() {
    let eval = prompt(32).env("PIPESHARD_DEBUG_DROP_WAIT", "all");
    let refused = eval.within(64 * MIB, "").run();
    assert!(refused.failed_cleanly());
    let said = refused.said();
    assert!(
        said.contains("PIPESHARD_DEBUG_DROP_WAIT: invalid value 'all'"),
        "{said}"
    );
}

#[test]
fn a_release_has_no_switches() {
    let library = released_library().display().to_string();
    let eval = Eval::searched(&synthetic("tiny-llama", &[])).prompts(&[8]);
    let eval = eval.generate(1).within(64 * MIB, "");
    let eval = eval.env("PIPESHARD_LIBRARY", &library);
    assert!(eval.answers().report().engaged, "without a switch");
    let finished = eval.env("PIPESHARD_DEBUG_FILL", "1").run();
    assert!(finished.failed_cleanly(), "{}", finished.stderr);
    let said = finished.said();
    let sentence =
        "PIPESHARD_DEBUG_FILL is a switch for tests, which this build of pipeshard does not have";
    assert!(said.contains(sentence), "{said}");
}
