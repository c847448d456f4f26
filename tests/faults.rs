//! Faults on purpose, each of which ends in the answers of stock llama.cpp or in a clean failure: never in other answers, a
//! crash or a hang.
//!
//! A quick sample by default; everything with `PIPESHARD_TEST_FULL=1`.

mod common;
#[path = "faults/device.rs"]
mod device;
#[path = "faults/driver.rs"]
mod driver;
#[path = "faults/files.rs"]
mod files;
#[path = "faults/panics.rs"]
mod panics;
#[path = "faults/scenarios.rs"]
mod scenarios;

use common::{synthetic, Finished};
use driver::lines;
use std::path::PathBuf;

/// Not a test: what the processes that play a scenario run.
#[test]
fn plays_a_scenario() {
    if let Some(scenario) = driver::scenario() {
        scenarios::play(&scenario);
    }
}

/// Whether everything is to be tried.
fn all() -> bool {
    std::env::var_os("PIPESHARD_TEST_FULL").is_some_and(|v| v == "1")
}

/// Two architectures; the second has experts.
fn models() -> Vec<PathBuf> {
    ["tiny-llama", "tiny-qwen3moe"]
        .map(|shape| synthetic(shape, &["--layers=3"]))
        .to_vec()
}

fn dense() -> PathBuf {
    synthetic("tiny-llama", &["--layers=3"])
}

/// A budget for these models under which most weights are streamed.
const STREAMED: u64 = 17 << 20;
/// One under which KV has to move to host memory.
const KV_ON_HOST: u64 = 21 << 19;

/// What a process with a fault in it left behind.
#[derive(Debug, PartialEq)]
enum Ending {
    /// All answers, and all those of stock llama.cpp.
    Answers,
    /// Some batches, contexts or models failed; what was answered is right.
    Failures,
}

/// Every answer is stock's, nothing is silent, and the process ended by itself.
fn check(finished: &Finished, stock: &[String], what: &str) -> Ending {
    let said = finished.said();
    assert!(
        finished.succeeded(),
        "{what}: {:?}\n{}\n{}",
        finished.status,
        finished.stdout,
        finished.stderr
    );
    let ours = lines(finished);
    assert_eq!(
        ours.last().map(String::as_str),
        Some("end"),
        "{what}: {said}"
    );
    let mut failures = 0;
    for line in ours
        .iter()
        .filter(|l| !l.contains(" errors ") && *l != "end")
    {
        if line.contains(" logits ") {
            assert!(
                stock.contains(line),
                "{what}: another answer: {line}\n{said}"
            );
        } else {
            failures += 1;
            let nan = line.ends_with(" nan");
            assert!(
                !nan || said.contains("the simulated GPU failed"),
                "{what}: {line}: {said}"
            );
        }
    }
    if failures > 0 {
        assert!(
            said.contains("pipeshard: ") || said.contains("failed"),
            "{what}: nothing was said"
        );
        return Ending::Failures;
    }
    let answers = |lines: &[String]| lines.iter().filter(|l| l.contains(" logits ")).count();
    assert_eq!(answers(&ours), answers(stock), "{what}: {ours:?}");
    Ending::Answers
}

/// Changes that were made, and those that were too late.
fn changed(line: &str) -> (u64, u64) {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse().expect("a number");
    assert_eq!((words[0], words[2]), ("changes", "late"), "{line}");
    (number(1), number(3))
}

#[test]
fn a_thousand_budgets_while_two_threads_generate() {
    for model in models() {
        let play = driver::Play::new("threads", &model);
        let stock = play.lines();
        let mut ours = (play.clone().env("FAULTS_CHANGES", 1000))
            .within(256 << 20, "")
            .lines();
        let report = ours.pop().expect("the last line");
        assert!(report.ends_with("errors "), "{report}");
        let changes = ours.pop().expect("a line before");
        let (made, late) = changed(&changes);
        assert!(made + late == 1000 && made > 250, "{changes}");
        assert_eq!(ours, stock);
    }
}

#[test]
fn two_threads_and_a_budget_that_changes_all_the_time() {
    let play = driver::Play::new("threads", &dense());
    let stock = play.lines();
    assert!(stock.len() == 72 && stock.iter().all(|l| l.contains("Logits")));
    let seeds = if all() { 1..=12 } else { 1..=3 };
    for seed in seeds {
        let delays = format!("delay=200,seed={seed}");
        let mut ours = play.clone().within(256 << 20, &delays).lines();
        let report = ours.pop().expect("the last line");
        let changes = ours.pop().expect("a line before");
        assert_eq!(changed(&changes).0 + changed(&changes).1, 20, "{changes}");
        assert!(
            report.starts_with("report recarvings ") && report.ends_with("errors "),
            "{report}"
        );
        assert!(!report.starts_with("report recarvings 0 "), "{report}");
        assert_eq!(ours, stock, "seed {seed}");
    }
}
