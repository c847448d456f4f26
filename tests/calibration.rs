//! What was predicted is in the report, and beside it what passes took, where that can be compared.

mod common;

use common::{synthetic, Answers, Eval};
use pipeshard::report::NotCalibrated;

const BUDGET: u64 = 256 << 20;

/// A prompt in several passes, and an answer.
fn answers(change: impl Fn(Eval) -> Eval) -> Answers {
    let eval = Eval::searched(&synthetic("tiny-llama", &[]))
        .prompts(&[160])
        .arg("ubatch", 32)
        .generate(40)
        .within(BUDGET, "");
    change(eval).answers()
}

#[test]
fn a_simulated_gpu_has_predictions_that_are_not_compared_with_the_wall_clock() {
    let ours = answers(|eval| eval);
    let report = ours.report();
    assert!(report.passes.prompt > 0 && report.passes.decode > 0);
    let predicted = report.predicted.as_ref().expect("a plan was searched for");
    for (what, value) in [
        ("ttft", predicted.ttft),
        ("tps", predicted.tps),
        ("decode_pass_seconds", predicted.decode_pass_seconds),
        ("prompt_pass_seconds", predicted.prompt_pass_seconds),
    ] {
        assert!(value > 0.0, "{what}: {value}");
    }
    assert!(predicted.e2el > predicted.ttft);
    assert!((predicted.tps * predicted.decode_pass_seconds - 1.0).abs() < 1e-6);
    assert!(predicted.prompt_tokens > 0 && predicted.generated_tokens > 0);
    assert!(matches!(
        predicted.limit.as_str(),
        "link" | "dram" | "gpu" | "cpu"
    ));
    assert_eq!(report.calibration, None);
    assert_eq!(report.not_calibrated, Some(NotCalibrated::Simulated));
    assert!(ours.said.contains("predicted"), "{}", ours.said);
    assert!(!ours.said.contains("than predicted"), "{}", ours.said);
}

#[test]
fn passes_are_compared_where_the_clock_is_the_one_they_take() {
    let ours = answers(|eval| eval.env("PIPESHARD_DEBUG_CALIBRATE", "1"));
    let report = ours.report();
    assert_eq!(report.not_calibrated, None);
    let compared = report.calibration.expect("passes are compared");
    // two passes before the forecast, and one behind it, are not; nor are those behind a pause
    let most = report.passes.decode - 3;
    let (decode, prompt) = (&compared.decode, &compared.prompt);
    assert!(decode.passes > 0 && decode.passes <= most, "{decode:?}");
    assert!(
        prompt.passes > 0 && prompt.passes <= report.passes.prompt - 3,
        "{prompt:?}"
    );
    let predicted = report.predicted.as_ref().expect("a plan was searched for");
    // the conversation that plans are weighed by is not this one, but of its kind
    for (times, pass) in [
        (decode, predicted.decode_pass_seconds),
        (prompt, predicted.prompt_pass_seconds),
    ] {
        let ratio = times.predicted_seconds_per_pass / pass;
        assert!((0.3..3.0).contains(&ratio), "{times:?}, {predicted:?}");
        let off = times.measured_seconds_per_pass / times.predicted_seconds_per_pass - 1.0;
        assert!((times.off_by.expect("passes") - off).abs() < 1e-9);
    }
}

#[test]
fn drift_is_told_and_changes_nothing() {
    // of a machine that is far faster than any
    let fast = "pcie=900G,cpu=9T,membw=90T,flops=9000T,launch=0us";
    let eval = Eval::searched(&synthetic("tiny-llama-768", &[]))
        .prompts(&[40])
        .generate(40)
        .env("PIPESHARD_DEBUG_CALIBRATE", "1");
    let budget = (eval.smallest_budget() + eval.largest_budget()) / 2;
    let eval = eval.within(budget, fast);
    let first = eval.answers();
    let decode = first
        .report()
        .calibration
        .expect("passes are compared")
        .decode;
    assert!(decode.too_far_off, "{decode:?}");
    let told = "slower than predicted; the stated profile is not that of this machine";
    assert!(first.said.contains(told), "{}", first.said);
    let second = eval.answers();
    assert_eq!(first.eval.plans, second.eval.plans);
    assert_eq!(first.outcome(), second.outcome());
}

#[test]
fn where_nothing_is_searched_for_nothing_is_predicted() {
    let ours = answers(|eval| {
        eval.env("PIPESHARD_LIKE_STOCK", "1")
            .env("PIPESHARD_DEBUG_CALIBRATE", "1")
    });
    let report = ours.report();
    assert!(report.engaged);
    assert_eq!(report.predicted, None);
    assert_eq!(report.calibration, None);
    assert_eq!(report.not_calibrated, Some(NotCalibrated::NothingPredicted));
}
