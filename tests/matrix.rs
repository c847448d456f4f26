//! The matrix: the same answers as stock llama.cpp, whatever pipeshard is combined with.
//!
//! The quick part always, and a tenth of the rest: another one whenever a source changes. All of it with `PIPESHARD_TEST_FULL=1`.
//! `pipeshard-lab matrix` runs the same lists.

mod common;

use pipeshard_lab::matrix::cases::{self, Group};
use pipeshard_lab::matrix::document;
use pipeshard_lab::matrix::run::{line, run};
use pipeshard_lab::matrix::seed;
use pipeshard_lab::matrix::verdict::CaseResult;
use pipeshard_lab::matrix::work::{Device, Workbench};
use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

#[test]
fn same_answers() {
    let full = std::env::var("PIPESHARD_TEST_FULL").is_ok_and(|v| v == "1");
    // what the processes are started with
    std::env::set_var("PIPESHARD_LIBRARY", common::library());
    let groups = match full {
        true => cases::groups(true),
        false => cases::quick_and_tenth(seed()),
    };
    let cases = all_pass(&groups, &bench("matrix", Device::Sim));
    let quick: usize = cases::groups(false).iter().map(|g| g.cases().len()).sum();
    assert!(cases.len() > quick);
}

/// Which tenth of the matrix is run: by the sources, or by what the user wants to see again.
fn seed() -> u64 {
    let seed = match std::env::var("PIPESHARD_TEST_SEED") {
        Ok(given) => given.parse().expect("PIPESHARD_TEST_SEED is a number"),
        Err(_) => seed::of_sources(&common::repository()).expect("the sources can be read"),
    };
    // not through eprintln, which cargo shows of failed tests only
    let _ = writeln!(
        std::io::stderr(),
        "matrix: the quick part and a tenth of all cases, seed {seed}; once more: pipeshard-lab matrix --tenth {seed}"
    );
    seed
}

#[test]
fn a_tenth_is_another_one_for_each_seed_and_all_are_in_one() {
    let names =
        |groups: Vec<Group>| -> BTreeSet<String> { groups.iter().flat_map(Group::cases).collect() };
    let all = names(cases::groups(true));
    let quick = names(cases::groups(false));
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let tenth = names(cases::tenth(seed));
        assert!(
            (all.len() / 20..all.len() / 6).contains(&tenth.len()),
            "{}",
            tenth.len()
        );
        let both = names(cases::quick_and_tenth(seed));
        assert!(tenth.is_subset(&both) && quick.is_subset(&both) && both.is_subset(&all));
        seen.extend(tenth);
    }
    // (9/10)^100 of the groups are in none
    assert_eq!(seen.len(), all.len());
    assert_ne!(names(cases::tenth(1)), names(cases::tenth(2)));
}

/// The path that a real GPU takes, with a simulated one in its place: stock llama.cpp on the device, with `-ot`.
#[test]
fn same_placement() {
    let mut groups = cases::groups_on_gpu(false);
    groups
        .retain(|g| ["llama", "qwen3moe"].contains(&g.model.name) && g.feature.name == "generate");
    let mut bench = bench("matrix-gpu", Device::Gpu);
    bench.in_place_of_gpu = Some("vram=4G".to_string());
    assert_eq!(all_pass(&groups, &bench).len(), 6);
}

fn bench(name: &str, device: Device) -> Workbench {
    // what the processes are started with
    std::env::set_var("PIPESHARD_LIBRARY", common::library());
    Workbench {
        program: common::tools().join(common::LAB),
        folder: common::scratch(&format!("{name}-{}", std::process::id())),
        device,
        delay: 100,
        patience: Duration::from_secs(240),
        in_place_of_gpu: None,
    }
}

/// Runs all cases and returns what became of them.
fn all_pass(groups: &[Group], bench: &Workbench) -> Vec<CaseResult> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let outcome = run(groups, bench, jobs, &|case| println!("{}", line(case)));
    // best effort: the folder lies in cargo's
    let _ = std::fs::remove_dir_all(&bench.folder);
    // not through eprintln, which cargo shows of failed tests only
    let _ = writeln!(std::io::stderr(), "matrix: {}", outcome.told());
    let failed: Vec<String> = outcome.failed().map(line).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let expected: usize = groups.iter().map(|g| g.cases().len()).sum();
    assert_eq!(outcome.cases.len(), expected);
    outcome.cases
}

#[test]
fn the_page_for_users_lists_all_cases() {
    let path = common::repository().join("docs/compatibility.md");
    let page = std::fs::read_to_string(&path).expect("docs/compatibility.md");
    let groups: Vec<Group> = cases::groups(true);
    assert_eq!(
        document::listed(&page),
        document::expected(&groups),
        "write it anew: pipeshard-lab matrix --full --write-doc docs/compatibility.md"
    );
}
