//! Streaming is a pipeline and not a sequence of waits; slots are used over and over; contexts share one arena.

mod common;

use common::{synthetic, Answers, Eval};

/// The smallest budget beside which all KV is on the device and hardly a weight is: what must be resident, and a ring.
fn all_streamed(eval: &Eval) -> u64 {
    let roomy = eval.clone().within(2 << 30, "").answers();
    let budget = roomy.report().minimum_budget;
    let streamed = eval.clone().within(budget, "").answers();
    assert_eq!(streamed.report().peak.kv, roomy.report().peak.kv);
    budget
}

/// Slots in the ring, rounded up, if they are as large as groups are on average.
fn slots(answers: &Answers) -> u64 {
    let report = answers.report();
    (report.peak.slots * report.copies).div_ceil(report.bytes_streamed)
}

#[test]
fn slots_are_filled_over_and_over() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[96, 96])
        .arg("ubatch", 32)
        .generate(6);
    let stock = eval.answers();
    let budget = all_streamed(&eval);
    for seed in 1..=3 {
        let ours = eval
            .clone()
            .within(budget, &format!("delay=1000,seed={seed}"))
            .answers();
        assert_eq!(stock.outcome(), ours.outcome());
        ours.assert_healthy(budget);
        let report = ours.report();
        // three ubatches a prompt
        assert_eq!((report.passes.prompt, report.passes.decode), (6, 12));
        let copies_in_a_pass = report.copies / report.passes.prompt;
        let slots = slots(&ours);
        assert!(slots >= 2);
        assert!(
            copies_in_a_pass >= 3 * slots,
            "{copies_in_a_pass} copies into {slots} slots"
        );
        let streamed_in_a_pass = report.bytes_streamed / report.passes.prompt;
        assert!(streamed_in_a_pass >= 3 * report.peak.slots);
        assert!(report.graph_reuses > 0);
        assert_eq!(report.graph_reuses as i64, ours.eval.graphs_reused);
        assert_eq!(report.recarvings, 0);
    }
}

#[test]
fn what_the_backend_takes_is_found_once() {
    const TAKEN: u64 = 8 << 20;
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[96])
        .arg("ubatch", 32)
        .generate(8);
    let stock = eval.answers();
    let budget = all_streamed(&eval) + 2 * TAKEN;
    let eval = eval.within(budget, "").env("PIPESHARD_RESERVE", "16M");
    let other = |answers: &Answers| answers.report().peak.other;
    let without = eval.answers();
    let ours = eval.env("PIPESHARD_DEBUG_POOLS", "8").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    // behind passes 2, 4 and 8 the driver is asked, and says the same
    assert!(ours.report().passes.prompt + ours.report().passes.decode >= 8);
    assert_eq!(other(&ours), other(&without) + TAKEN);
}

#[test]
fn what_another_program_took_and_gave_back_is_used_again() {
    const TAKEN: u64 = 8 << 20;
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[96])
        .arg("ubatch", 32)
        .generate(64);
    let stock = eval.answers();
    let budget = all_streamed(&eval) + 2 * TAKEN;
    // the card has room for the other program beside the budget
    let eval = eval.arg("vram", budget).arg("sim", "vram=1G");
    let without = eval.answers();
    let ours = eval.env("PIPESHARD_DEBUG_OTHERS", "8").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    let (without, ours) = (without.report(), ours.report());
    assert_eq!(ours.peak.other, without.peak.other + TAKEN);
    // residents made room, and came back
    assert!(ours.recarvings >= 2, "{}", ours.recarvings);
    assert_eq!(ours.held.resident, without.held.resident);
    assert_eq!(ours.held.other, without.held.other);
}

#[test]
fn two_contexts_in_one_arena() {
    for shape in ["tiny-llama", "tiny-qwen3moe"] {
        let eval = Eval::of(&synthetic(shape, &[]))
            .prompts(&[96, 33])
            .arg("ubatch", 32)
            .arg("contexts", 2)
            .generate(4);
        let stock = eval.answers();
        let budget = all_streamed(&eval);
        for (budget, seed) in [(budget, 1), (budget * 5 / 4, 2)] {
            let ours = eval
                .clone()
                .within(budget, &format!("delay=1000,seed={seed}"))
                .answers();
            assert_eq!(stock.outcome(), ours.outcome());
            ours.assert_healthy(budget);
            let report = ours.report();
            assert_eq!(report.contexts, 2);
            assert!(report.copies > 0 && report.graph_reuses > 0);
            // two contexts, three and two ubatches
            assert_eq!(report.passes.prompt, 8);
        }
    }
}

#[test]
fn contexts_do_not_disturb_each_other() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[33])
        .generate(4);
    let together = eval.clone().arg("contexts", 2);
    let budget = all_streamed(&together);
    let together = together.within(budget, "delay=500").answers();
    let alone = eval.answers();
    assert_eq!(together.outcome()[0], alone.outcome()[0]);
    assert_eq!(together.report().contexts, 2);
}

/// A device whose link is what a prompt waits for.
const SLOW_LINK: &str = "pcie=1G";

fn long_prompts(tokens: u32) -> Eval {
    Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[tokens, tokens])
        .arg("ubatch", tokens)
        .arg("ctx", tokens + 256)
        .generate(0)
}

#[test]
fn the_link_is_busy() {
    let eval = long_prompts(2048);
    // measured with prompts of one token, which take no time: what is on the device does not depend on them
    let budget = all_streamed(&eval.clone().prompts(&[1]));
    let ours = eval.within(budget, SLOW_LINK).answers();
    ours.assert_healthy(budget);
    let report = ours.report();
    let units = report.units.prompt;
    assert!(units.streamed > 30 && units.host < 5, "{units:?}");
    assert_eq!(report.stalls, 0);
    let streamed_in_a_pass = report.bytes_streamed / 2;
    assert!(streamed_in_a_pass > 30_000_000);

    // the second prompt: its graph exists, and its first weights were fetched when the first prompt ended
    let busy = ours.device_in(1, "link_busy_h2d_ns");
    let elapsed = ours.device_in(1, "elapsed_ns");
    assert!(
        busy * 100 >= elapsed * 80,
        "the link was busy for {busy} of {elapsed} ns"
    );
    // and most of the time with weights, a byte of which takes a nanosecond; the rest are inputs
    assert!(streamed_in_a_pass * 100 >= elapsed * 75);

    // Both passes have the same splits, so they wait equally often. The device cannot have seen more waits than were
    // announced, but for one; nor did a copy ever hold the host.
    let waits = report.host_waits;
    let announced = (waits.user_inputs + waits.hand_overs) / 2;
    let seen = ours.device_in(1, "host_syncs");
    assert!(seen <= announced + 1, "{seen} waits, {announced} announced");
    assert_eq!(ours.device_in(1, "pageable_waits"), 0);
    let splits = report.copies / 2;
    assert!(
        seen < splits / 2,
        "{seen} waits in a pass of {splits} copies"
    );
}

#[test]
fn virtual_time_is_the_same_every_time() {
    let eval = long_prompts(128);
    let budget = all_streamed(&eval);
    let counters = |delays: &str| {
        let ours = eval
            .clone()
            .within(budget, &format!("{SLOW_LINK}{delays}"))
            .answers();
        let devices = ours.eval.results.iter().map(|r| r.device.clone());
        let devices: Vec<_> = devices.map(|d| d.expect("a simulated GPU")).collect();
        assert!(devices[1]["elapsed_ns"].as_u64() > Some(30_000_000));
        devices
    };
    let first = counters("");
    assert_eq!(first, counters(""));
    // delays are in real time
    assert_eq!(first, counters(",delay=2000,seed=5"));
    assert_eq!(first, counters(",delay=2000,seed=6"));
}
