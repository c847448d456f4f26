//! A panic in every callback of the hook's table.

use crate::common::Finished;
use crate::driver::{lines, Play};
use crate::{all, check, dense, Ending, KV_ON_HOST, STREAMED};
use pipeshard::hook::table::CALLBACKS;

/// Called only where something did not fit or was refused: the tests below see to that.
const AFTER_REFUSALS: [&str; 3] = ["context_failed", "scratch_failed", "graph_dropped"];
/// Called where there is an encoder of images or sound (tests/vision.rs).
const OF_ENCODERS: [&str; 4] = [
    "encoder_expected",
    "encoder_wanted",
    "encode_done",
    "encoder_gone",
];

fn internal_errors(finished: &Finished) -> usize {
    finished
        .stderr
        .matches("pipeshard: internal error (")
        .count()
}

#[test]
fn in_every_callback() {
    let play = Play::new("rounds", &dense());
    let stock = play.lines();
    let sound = play.clone().within(STREAMED, "").run();
    assert_eq!(check(&sound, &stock, "no panic"), Ending::Answers);
    let numbers: &[u32] = if all() {
        &[1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 500, 2000]
    } else {
        &[1, 3, 40]
    };
    for callback in CALLBACKS.iter().filter(|c| !OF_ENCODERS.contains(c)) {
        let mut hit = false;
        for number in numbers {
            let what = format!("{callback}:{number}");
            let streamed = play.clone().within(STREAMED, "");
            let finished = streamed.env("PIPESHARD_DEBUG_PANIC", &what).run();
            let ending = check(&finished, &stock, &what);
            let errors = internal_errors(&finished);
            assert!(errors <= 1, "{what}: {}", finished.stderr);
            if errors == 0 {
                assert_eq!(ending, Ending::Answers, "{what}");
                break;
            }
            hit = true;
            // the model is loaded again, and the second round is as if nothing had happened
            let second = |lines: &[String]| {
                lines
                    .iter()
                    .filter(|l| l.starts_with("1 ") && l.contains(" logits "))
                    .count()
            };
            let ours = lines(&finished);
            let in_first = ours
                .iter()
                .any(|l| l.starts_with("0 ") && !l.contains(" logits ") && !l.contains(" errors "));
            if in_first || *number == 1 {
                assert_eq!(
                    second(&ours),
                    second(&stock),
                    "{what}: {ours:?}\n{}",
                    finished.stderr
                );
            }
        }
        // a context is made at the first go here, and the device refuses nothing
        assert!(
            hit || AFTER_REFUSALS.contains(callback),
            "{callback} was never called"
        );
    }
}

#[test]
fn while_buffers_are_refused_in_mid_run() {
    let play = Play::new("shifted", &dense());
    let stock = play.lines();
    for callback in ["scratch_failed", "graph_dropped"] {
        let mut hits = 0;
        for point in 1.. {
            let fault = format!("failalloc={point}");
            let refused = play.clone().within(STREAMED, &fault);
            let finished = refused.env("PIPESHARD_DEBUG_PANIC", callback).run();
            check(&finished, &stock, &format!("{callback}, {fault}"));
            hits += internal_errors(&finished);
            if !finished.said().contains("(failalloc)") {
                break;
            }
        }
        assert!(hits > 0, "{callback} was never called");
    }
}

#[test]
fn while_a_context_is_tried_again() {
    // too small a budget: every try fails, and the answer to whether there is another panics
    let play = Play::new("rounds", &dense()).within(1 << 20, "");
    for number in 1..=3 {
        let finished = play
            .clone()
            .env("PIPESHARD_DEBUG_PANIC", format!("context_failed:{number}"))
            .run();
        assert_eq!(check(&finished, &[], "context_failed"), Ending::Failures);
        assert_eq!(internal_errors(&finished), 1, "{}", finished.stderr);
    }
}

#[test]
fn while_a_context_that_would_fit_in_the_end_is_tried_again() {
    let play = Play::new("rounds", &dense());
    let stock = play.lines();
    let play = play.within(KV_ON_HOST, "");
    assert_eq!(check(&play.run(), &stock, "no panic"), Ending::Answers);
    let finished = play.env("PIPESHARD_DEBUG_PANIC", "context_failed").run();
    assert_eq!(check(&finished, &stock, "context_failed"), Ending::Failures);
    assert_eq!(internal_errors(&finished), 1, "{}", finished.stderr);
}
