//! A device that refuses memory, events, copies or page-locking, or disappears.

use crate::common::{Eval, Finished};
use crate::driver::{lines, Play};
use crate::{all, check, dense, models, Ending, KV_ON_HOST, STREAMED};

/// Plays `rounds` with a fault at each of `points`, in order, until one comes too late to matter. Says how many mattered.
fn sweep(
    play: &Play,
    budget: u64,
    points: impl Iterator<Item = u64>,
    fault: impl Fn(u64) -> String,
    mark: &str,
) -> usize {
    let stock = play.lines();
    let mut hits = 0;
    for point in points {
        let fault = fault(point);
        let what = format!("{budget} bytes, {fault}");
        let finished = play.clone().within(budget, &fault).run();
        let ending = check(&finished, &stock, &what);
        if !finished.said().contains(mark) {
            assert_eq!(ending, Ending::Answers, "{what}");
            return hits;
        }
        if ending == Ending::Answers {
            // what was done without is said, and stays in the report
            let errors = |l: &String| l.contains(" errors ") && !l.ends_with(" errors ");
            let reported = lines(&finished).iter().any(errors);
            assert!(
                reported || finished.said().contains("pipeshard: "),
                "{what}: {}",
                finished.stderr
            );
        }
        hits += 1;
    }
    hits
}

fn budgets() -> &'static [u64] {
    if all() {
        &[KV_ON_HOST, STREAMED, 64 << 20]
    } else {
        &[STREAMED]
    }
}

/// 1, 2, 3, 5, 8, 13 and so on.
fn spreading() -> impl Iterator<Item = u64> {
    std::iter::successors(Some((1, 2)), |&(a, b)| Some((b, a + b))).map(|(a, _)| a)
}

#[test]
fn every_allocation_is_refused_once() {
    for model in models() {
        for &budget in budgets() {
            let hits = sweep(
                &Play::new("rounds", &model),
                budget,
                1..,
                |n| format!("failalloc={n}"),
                "(failalloc)",
            );
            assert!(hits >= 8, "{hits} allocations in two rounds");
        }
    }
}

/// Compute buffers that grow in mid-run and are refused: the batch fails, the next one works.
#[test]
fn every_allocation_of_a_shift_is_refused_once() {
    let play = Play::new("shifted", &dense());
    let whole = play.clone().within(STREAMED, "").lines();
    let grown = |l: &String| l.starts_with("grown ") && !l.starts_with("grown 0 ");
    assert!(whole.iter().any(grown), "{whole:?}");
    let stock = play.lines();
    let mut refused_in_mid_run = 0;
    for point in 1.. {
        let fault = format!("failalloc={point}");
        let finished = play.clone().within(STREAMED, &fault).run();
        check(&finished, &stock, &fault);
        if !finished.said().contains("(failalloc)") {
            break;
        }
        let ours = lines(&finished);
        let failed = ours.iter().any(|l| l.starts_with("shifted.0 failed"));
        let then = ours.iter().any(|l| l.starts_with("shifted.2 logits"));
        assert!(!failed || then, "{fault}: {ours:?}");
        refused_in_mid_run += usize::from(failed);
    }
    assert!(refused_in_mid_run > 0);
}

#[test]
fn what_is_kept_on_the_device_is_in_the_budget() {
    for model in models() {
        let play = Play::new("kept", &model);
        let stock = play.lines();
        for budget in [STREAMED, 32 << 20] {
            let finished = play.clone().within_all(budget).run();
            let ending = check(&finished, &stock, &format!("{budget} bytes"));
            assert_eq!(ending, Ending::Answers);
            let ours = lines(&finished);
            assert!(ours.iter().any(|l| l == "report errors "), "{ours:?}");
        }
    }
}

#[test]
fn no_allocation_works_from_one_on() {
    for &budget in budgets() {
        let play = Play::new("rounds", &dense());
        let hits = sweep(
            &play,
            budget,
            spreading(),
            |n| format!("failalloc={n}+"),
            "(failalloc)",
        );
        assert!(hits >= 4, "{hits}");
    }
}

#[test]
fn events_are_refused() {
    for fault in ["failevent=", "failevent_all="] {
        let lasting = if fault == "failevent=" { "" } else { "+" };
        let play = Play::new("rounds", &dense());
        let hits = sweep(
            &play,
            STREAMED,
            spreading(),
            |n| format!("failevent={n}{lasting}"),
            "(failevent)",
        );
        assert!(hits >= 4, "{hits}");
    }
}

#[test]
fn a_copy_fails() {
    let model = dense();
    let play = Play::new("rounds", &model);
    // with delays a copy ahead for the next batch fails while this one is being computed
    for (step, delay) in [
        (if all() { 1 } else { 7 }, ""),
        (if all() { 1 } else { 5 }, ",delay=1000"),
    ] {
        let points = (1..).step_by(step);
        let fault = |n| format!("failcopy={n}{delay}");
        let hits = sweep(&play, STREAMED, points, fault, "(failcopy)");
        assert!(hits >= 8, "{hits}");
    }
}

#[test]
fn the_device_disappears() {
    let points = || -> Box<dyn Iterator<Item = u64>> {
        match all() {
            true => Box::new((0..).map(|n| n * 3)),
            false => Box::new(std::iter::once(0).chain(spreading())),
        }
    };
    let play = Play::new("rounds", &dense());
    let resident = 64 << 20;
    let runs: &[(u64, &str)] = match all() {
        true => &[
            (STREAMED, ""),
            (STREAMED, ",delay=300"),
            (KV_ON_HOST, ""),
            (resident, ""),
        ],
        false => &[(STREAMED, ""), (resident, "")],
    };
    for &(budget, delay) in runs {
        let hits = sweep(
            &play,
            budget,
            points(),
            |n| format!("lost={n}{delay}"),
            "(lost)",
        );
        assert!(hits >= 8, "{hits}");
    }
}

#[test]
fn a_device_that_disappeared_is_in_the_report() {
    let finished = Play::new("rounds", &dense())
        .within(STREAMED, "lost=100")
        .run();
    let ours = lines(&finished);
    let told =
        |l: &&String| l.contains(" errors ") && l.contains("SIM0 failed: the device disappeared");
    assert_eq!(
        ours.iter().filter(told).count(),
        1,
        "{ours:?}\n{}",
        finished.stderr
    );
    assert!(ours.iter().any(|l| l.contains(" failed ")), "{ours:?}");
}

#[test]
fn page_locking_is_refused_at_every_size() {
    let play = Play::new("rounds", &dense()).env("PIPESHARD_DEBUG_LOCK_STEP", 4 << 20);
    let stock = play.lines();
    let limits: &[&str] = match all() {
        true => &[
            "0", "100K", "4M", "5M", "8M", "12M", "16M", "20M", "21M", "off",
        ],
        false => &["0", "5M", "12M", "off"],
    };
    for limit in limits {
        let what = format!("pin={limit}");
        let finished = play.clone().within(STREAMED, &what).run();
        assert_eq!(check(&finished, &stock, &what), Ending::Answers);
        assert!(
            finished.said().contains("refused to page-lock"),
            "{what}: {}",
            finished.stderr
        );
        assert!(
            finished.said().contains("through staging"),
            "{what}: {}",
            finished.stderr
        );
    }
    let finished = play.within(STREAMED, "").run();
    assert!(!finished.said().contains("refused to page-lock"));
}

#[test]
fn page_locked_memory_is_not_released() {
    // the second round's weights may lie where something is still locked
    let play = Play::new("rounds", &dense());
    let stock = play.lines();
    for properties in ["unpin=off", "unpin=off,pin=30M"] {
        let finished = play.clone().within(STREAMED, properties).run();
        check(&finished, &stock, properties);
        assert!(
            finished.said().contains("does not release"),
            "{}",
            finished.stderr
        );
    }
}

/// Of `pipeshard eval`, which ends with the first failure.
fn same_or_refused(finished: &Finished, stock: &crate::common::Answers, what: &str) -> bool {
    if finished.succeeded() {
        assert!(stock.given_by(finished), "{what}: other answers");
        return true;
    }
    let said = finished.said();
    assert!(
        finished.failed_cleanly(),
        "{what}: {:?}: {said}",
        finished.status
    );
    assert!(
        said.contains("error: ") && !said.contains("is NaN"),
        "{what}: {said}"
    );
    false
}

#[test]
fn allocations_are_refused_to_two_contexts_and_a_budget_that_changes() {
    let eval = Eval::of(&dense())
        .arg("ctx", 256)
        .prompts(&[33])
        .generate(4)
        .arg("contexts", 2);
    let stock = eval.answers();
    let report = eval.clone().within(1 << 30, "").answers();
    let (least, most) = (report.report().minimum_budget, report.report().peak.total);
    let mut refusals = 0;
    for point in 1.. {
        let what = format!("failalloc={point}");
        let changes = format!("1={least},3={most}");
        let finished = eval.clone().arg("vram", most).arg("budget-at", changes);
        let finished = finished.arg("sim", format!("vram=1G,{what}")).run();
        let same = same_or_refused(&finished, &stock, &what);
        if !finished.said().contains("(failalloc)") {
            assert!(same, "{what}");
            break;
        }
        refusals += 1;
    }
    assert!(refusals >= 8, "{refusals}");
}
