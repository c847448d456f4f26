//! Batches that leave some experts alone fetch only those that they have chosen, and give the answers of stock llama.cpp.

mod common;

use common::{synthetic, Answers, Eval, MANY_EXPERTS, MIB};

/// Batches that the CPU computes, that choose some of 128 experts, nearly all, and all: in part, whole and in part again.
const BATCHES: &[u32] = &[31, 32, 33, 600, 48, 64, 100, 32];

fn many_experts(prompts: &[u32]) -> Eval {
    Eval::of(&synthetic("tiny-qwen3moe", MANY_EXPERTS))
        .prompts(prompts)
        .generate(1)
}

fn assert_chosen(ours: &Answers) {
    let report = ours.report();
    assert!(report.experts.copied > 0, "{report:?}");
    assert!(report.experts.bytes_saved > 0, "{report:?}");
    assert!(report.host_waits.expert_choices > 0, "{report:?}");
}

/// A budget into which all but a few tensors of experts fit.
fn nearly_all(eval: &Eval) -> u64 {
    eval.largest_budget() - 4 * MIB
}

/// The same with all experts, however few are chosen.
fn whole(eval: &Eval) -> Eval {
    eval.clone().env("PIPESHARD_DEBUG_CHOSEN_PERCENT", "0")
}

#[test]
fn same_answers_whatever_was_in_place_before() {
    let eval = many_experts(BATCHES);
    let stock = eval.answers();
    let (smallest, largest) = (eval.smallest_budget(), nearly_all(&eval));
    for (budget, seed) in [(smallest, 1), ((smallest + largest) / 2, 2), (largest, 3)] {
        let delays = format!("delay=300,seed={seed}");
        let ours = eval.clone().within(budget, &delays).answers();
        assert_eq!(stock.outcome(), ours.outcome(), "at {budget} bytes");
        ours.assert_healthy(budget);
        assert_chosen(&ours);
        assert_eq!(ours.report().stalls, 0);
    }
}

#[test]
fn only_what_was_chosen_crosses_the_link() {
    let eval = many_experts(&[1, 32, 600]).generate(0);
    let budget = eval.smallest_budget();
    let eval = eval.within(budget, "");
    let (ours, whole) = (eval.answers(), whole(&eval).answers());
    assert_eq!(ours.outcome(), whole.outcome());
    let counts = whole.report().experts;
    // but for the last layer of an ubatch whose results nobody wants, which reads nothing
    assert_eq!((counts.copied, counts.reused), (0, 0));
    assert!(counts.bytes_saved < ours.report().experts.bytes_saved);
    assert_eq!(whole.report().host_waits.expert_choices, 0);
    let crossed = |a: &Answers, result| a.device_in(result, "bytes_h2d");
    let experts = ours.report().experts;
    // 32 rows choose at most 64 % of 128 experts
    assert!(crossed(&ours, 1) + 5 * MIB < crossed(&whole, 1));
    assert!(crossed(&ours, 2) > 5 * MIB);
    // counted by the device, and by the arena
    assert!(ours.device_in(1, "bytes_h2d") + experts.bytes_saved >= 10 * MIB);
    // one wait per layer that has experts in the ring, and one for the last layer of the long prompt, which sees one row
    let waits = ours.report().host_waits.expert_choices;
    assert!((6..=7).contains(&waits), "{waits}");
}

#[test]
fn experts_that_are_still_in_place_are_used_again() {
    // most of what is streamed has a place of its own, the rest takes turns
    let eval = many_experts(&[32, 32, 40]).generate(0);
    let stock = eval.answers();
    let budget = nearly_all(&eval);
    let ours = eval.clone().within(budget, "delay=300").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    let experts = ours.report().experts;
    // the second prompt is the first one again, and begins the third
    assert!(experts.reused > experts.copied / 5, "{experts:?}");
    let (first, again) = (
        ours.device_in(0, "bytes_h2d"),
        ours.device_in(1, "bytes_h2d"),
    );
    // the first prompt uploads the residents as well
    let resident = ours.report().bytes_uploaded;
    assert!(again < first - resident, "{again} after {first}");
}

#[test]
fn ubatches_and_contexts_take_turns() {
    let eval = many_experts(&[96, 33])
        .arg("ubatch", 32)
        .arg("contexts", 2)
        .generate(2);
    let stock = eval.answers();
    let (smallest, largest) = (eval.smallest_budget(), nearly_all(&eval));
    for (budget, seed) in [(smallest, 1), (largest, 2)] {
        let delays = format!("delay=500,seed={seed}");
        let ours = eval.clone().within(budget, &delays).answers();
        assert_eq!(stock.outcome(), ours.outcome(), "at {budget} bytes");
        ours.assert_healthy(budget);
        assert_chosen(&ours);
    }
}

#[test]
fn another_budget_in_mid_run() {
    let eval = many_experts(&[32, 600, 48]).generate(3);
    let stock = eval.answers();
    let (smallest, largest) = (eval.smallest_budget(), nearly_all(&eval));
    let less = (smallest + largest) / 2;
    let ours = eval
        .within(largest, "delay=300")
        .arg("budget-at", format!("0={less},2={}", largest))
        .answers();
    assert_eq!(stock.outcome(), ours.outcome());
    ours.assert_healthy(largest);
    assert_chosen(&ours);
    assert!(ours.report().recarvings > 0);
}

#[test]
fn sources_that_are_not_page_locked_in_one_piece() {
    let eval = many_experts(&[32, 64]);
    let stock = eval.answers();
    let budget = eval.smallest_budget();
    for (variable, value) in [
        ("PIPESHARD_PAGE_LOCK", "off"),
        ("PIPESHARD_DEBUG_LOCK_STEP", "64K"),
    ] {
        let ours = eval
            .clone()
            .within(budget, "delay=300")
            .env(variable, value)
            .answers();
        assert_eq!(stock.outcome(), ours.outcome(), "{variable}={value}");
        assert_chosen(&ours);
    }
}

#[test]
fn fewer_rows_with_the_router_on_the_cpu() {
    // 8 to 31 rows: the CPU computes attention and router, the device experts
    let eval = Eval::of(&synthetic("tiny-qwen3moe", &[]))
        .prompts(&[7, 8, 12, 33, 9])
        .generate(1);
    let stock = eval.answers();
    let streamed = eval.env("PIPESHARD_DEBUG_EXPERT_ROWS", "8");
    let budget = streamed.smallest_budget();
    let ours = streamed.within(budget, "delay=300").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    let elsewhere = ours.report().not_resident.iter();
    let routers = elsewhere.filter(|name| name.contains("ffn_gate_inp"));
    assert!(routers.count() > 1);
    assert_chosen(&ours);
}

#[test]
fn a_choice_that_the_cpu_has_made() {
    let eval = many_experts(&[32, 600, 48]);
    let stock = eval.answers();
    let budget = eval.smallest_budget() + MIB;
    let ours = eval
        .within(budget, "delay=300")
        .env("PIPESHARD_DEBUG_CPU_CHOICE", "1")
        .answers();
    assert_eq!(stock.outcome(), ours.outcome());
    let report = ours.report();
    assert!(report.experts.copied > 0 && report.experts.bytes_saved > 0);
    // it is there before the split is submitted
    assert_eq!(report.host_waits.expert_choices, 0);
}

/// Single tokens, whose experts are on the host; of those that each chooses the device fetches some.
fn single_tokens(fetched: u32) -> Eval {
    let eval = many_experts(&[1, 3]).generate(8);
    let eval = eval.env("PIPESHARD_DEBUG_DECODE_STREAM", "0");
    eval.env("PIPESHARD_DEBUG_FETCHED_EXPERTS", &fetched.to_string())
}

/// The smallest budget beside which all KV is on the device, and a little more for fetched experts.
fn hardly_any(eval: &Eval) -> u64 {
    let roomy = eval.clone().within(2 << 30, "").answers();
    roomy.report().minimum_budget + 2 * MIB
}

/// Answers within the budget that has hardly any room for experts and one with room for some, which are those of stock.
fn as_stock(eval: &Eval, stock: &Answers) -> [Answers; 2] {
    let smallest = hardly_any(eval);
    [(smallest, 1), (smallest + 6 * MIB, 2)].map(|(budget, seed)| {
        let delays = format!("delay=300,seed={seed}");
        let ours = eval.clone().within(budget, &delays).answers();
        assert_eq!(
            stock.outcome(),
            ours.outcome(),
            "{:?} at {budget} bytes",
            ours.report()
        );
        ours.assert_healthy(budget);
        ours
    })
}

#[test]
fn single_tokens_share_their_experts_between_device_and_cpu() {
    let stock = many_experts(&[1, 3]).generate(8).answers();
    for fetched in [1, 2, 3] {
        let eval = single_tokens(fetched);
        for ours in as_stock(&eval, &stock) {
            let report = ours.report();
            let experts = report.experts;
            // 17 single tokens, three tensors for each layer that is divided
            let layers = experts.fetched / (17 * 3 * u64::from(fetched));
            assert_eq!(
                experts.fetched % (17 * 3 * u64::from(fetched)),
                0,
                "{report:?}"
            );
            assert!((2..=6).contains(&layers), "{layers} layers, {report:?}");
            assert!(report.rewritten_nodes > 0);
            assert_eq!(report.host_waits.expert_choices, 0);
            // one of a tensor
            let each = experts.bytes_fetched / experts.fetched;
            assert!((5_000..20_000).contains(&each), "{each} bytes");
        }
    }
}

/// Batches of `rows` tokens, whose experts are divided like those of single tokens.
fn small_batches(prompts: &[u32], fetched: u32, rows: u32) -> Eval {
    let eval = single_tokens(fetched).prompts(prompts);
    eval.env("PIPESHARD_DEBUG_FETCHED_ROWS", &rows.to_string())
}

#[test]
fn small_batches_share_their_experts_between_device_and_cpu() {
    for (prompts, fetched, rows) in [
        (&[2, 5, 8][..], 2, 8),
        (&[3, 16, 4], 3, 16),
        (&[12, 2], 1, 12),
    ] {
        let eval = small_batches(prompts, fetched, rows).generate(0);
        let stock = many_experts(prompts).generate(0).answers();
        for ours in as_stock(&eval, &stock) {
            let report = ours.report();
            let experts = report.experts;
            // three tensors for each of at least two layers; what tokens choose alike is fetched once
            let tokens: u32 = prompts.iter().sum();
            let most = u64::from(tokens * fetched) * 3 * 6;
            assert!(experts.fetched >= 3 * 2 * u64::from(fetched), "{report:?}");
            assert!(experts.fetched < most, "{report:?}");
            assert_eq!(report.host_waits.expert_choices, 0);
        }
    }
}

#[test]
fn small_batches_single_tokens_and_prompts_take_turns() {
    let prompts = [5, 1, 40, 8, 9, 2];
    let stock = many_experts(&prompts).generate(3).answers();
    let eval = small_batches(&prompts, 2, 8).generate(3);
    let budget = hardly_any(&eval);
    for choice in ["0", "1"] {
        let ours = eval.clone().within(budget, "delay=300");
        let ours = ours.env("PIPESHARD_DEBUG_CPU_CHOICE", choice).answers();
        assert_eq!(stock.outcome(), ours.outcome());
        ours.assert_healthy(budget);
        assert!(ours.report().experts.fetched > 0);
    }
}

#[test]
fn batches_that_are_larger_than_there_is_memory_for_are_not_divided() {
    let stock = many_experts(&[9]).generate(0).answers();
    let eval = small_batches(&[9], 2, 8).generate(0);
    let budget = hardly_any(&eval);
    let ours = eval.within(budget, "delay=300").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    assert_eq!(ours.report().experts.fetched, 0);
}

/// ggml's CPU backend computes k-quants another way from eight rows of an expert on.
#[test]
fn batches_are_not_divided_where_that_would_change_a_bit() {
    let shape = [
        "--type=experts=q4_K",
        "--experts=5",
        // sums of enough blocks that their order shows
        "--embedding=2048",
        "--expert-feed-forward=1024",
        "--layers=3",
    ];
    let of = |prompts: &[u32]| {
        let eval = Eval::of(&synthetic("tiny-qwen3moe", &shape));
        eval.prompts(prompts).generate(0)
    };
    let divided = |prompts: &[u32]| {
        let eval = of(prompts).env("PIPESHARD_DEBUG_DECODE_STREAM", "0");
        let eval = eval.env("PIPESHARD_DEBUG_FETCHED_EXPERTS", "2");
        eval.env("PIPESHARD_DEBUG_FETCHED_ROWS", "12")
    };
    let budget = hardly_any(&divided(&[7])) + 20 * MIB;
    for (prompts, shared) in [(&[7, 3], true), (&[12, 8], false)] {
        let ours = divided(prompts).within(budget, "delay=300").answers();
        assert_eq!(of(prompts).answers().outcome(), ours.outcome());
        let of_both = ours.report().experts.fetched;
        // two of each tensor for the one row that the last layer sees
        let last_layer = prompts.len() as u64 * 2 * 3;
        assert_eq!(
            of_both > last_layer,
            shared,
            "{prompts:?}: {:?}",
            ours.report()
        );
    }
}

#[test]
fn where_nothing_can_be_divided_the_cpu_computes_all_experts() {
    let stock = many_experts(&[1, 3]).generate(8).answers();
    let budget = hardly_any(&single_tokens(2));
    for (fetched, variable, value) in [
        // all that are chosen
        (8, "PIPESHARD_DEBUG_COPY_BYTES", "64K"),
        // weights that the device cannot read
        (2, "PIPESHARD_PAGE_LOCK", "off"),
        // as stock places them
        (2, "PIPESHARD_LIKE_STOCK", "1"),
    ] {
        let eval = single_tokens(fetched).within(budget, "delay=300");
        let ours = eval.env(variable, value).answers();
        assert_eq!(stock.outcome(), ours.outcome(), "{variable}={value}");
        assert_eq!(ours.report().experts.fetched, 0, "{variable}={value}");
    }
}

#[test]
fn divided_experts_that_are_page_locked_in_pieces() {
    let stock = many_experts(&[1, 3]).generate(8).answers();
    let eval = single_tokens(3);
    let budget = hardly_any(&eval);
    let eval = eval.within(budget, "delay=300");
    let ours = eval.env("PIPESHARD_DEBUG_LOCK_STEP", "4K").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    assert!(ours.report().experts.fetched > 0);
}

#[test]
fn divided_experts_of_contexts_in_turn_and_of_a_router_on_the_cpu() {
    let stock = many_experts(&[1, 3])
        .arg("contexts", 2)
        .generate(6)
        .answers();
    let eval = single_tokens(2).arg("contexts", 2).generate(6);
    let budget = hardly_any(&eval);
    for choice in ["0", "1"] {
        let ours = eval.clone().within(budget, "delay=300");
        let ours = ours.env("PIPESHARD_DEBUG_CPU_CHOICE", choice).answers();
        assert_eq!(stock.outcome(), ours.outcome());
        ours.assert_healthy(budget);
        assert!(ours.report().experts.fetched > 0);
    }
}

#[test]
fn experts_are_divided_after_the_budget_has_changed() {
    let stock = many_experts(&[1, 3, 2]).generate(4).answers();
    let eval = single_tokens(2).prompts(&[1, 3, 2]).generate(4);
    let budget = hardly_any(&eval);
    let all = eval.largest_budget() + 8 * MIB;
    let ours = eval
        .within(all, "delay=300")
        .arg("budget-at", format!("0={budget},2={all}"))
        .answers();
    assert_eq!(stock.outcome(), ours.outcome());
    assert!(ours.report().experts.fetched > 0);
}

#[test]
fn the_last_layer_of_a_prompt_is_not_left_to_the_cpu_for_its_few_rows() {
    // enough experts that few rows choose only some
    let eval = Eval::of(&synthetic("tiny-qwen3moe", &[])).prompts(&[64, 256]);
    let stock = eval.answers();
    let budget = eval.smallest_budget() + 2 * MIB;
    let ours = eval.within(budget, "delay=300").answers();
    assert_eq!(stock.outcome(), ours.outcome());
    ours.assert_healthy(budget);
    let report = ours.report();
    assert!(report.units.prompt.streamed > 0, "{:?}", report.units);
    // the output head
    assert_eq!(report.units.prompt.host, 1, "{:?}", report.units);
    // the experts of that layer, which one row chose
    assert_eq!(report.host_waits.expert_choices, 2);
    assert!(report.experts.bytes_saved > 0);
}
