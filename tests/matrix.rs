//! The matrix: the same answers as stock llama.cpp, whatever pipeshard is combined with.
//!
//! The quick part always, all of it with `PIPESHARD_TEST_FULL=1`. `pipeshard-lab matrix` runs the same list.

mod common;

use pipeshard_lab::matrix::cases::{self, Group};
use pipeshard_lab::matrix::document;
use pipeshard_lab::matrix::run::{line, run};
use pipeshard_lab::matrix::verdict::CaseResult;
use pipeshard_lab::matrix::work::{Device, Workbench};
use std::io::Write;
use std::time::Duration;

#[test]
fn same_answers() {
    let full = std::env::var("PIPESHARD_TEST_FULL").is_ok_and(|v| v == "1");
    // what the processes are started with
    std::env::set_var("PIPESHARD_LIBRARY", common::library());
    let groups = cases::groups(full);
    let cases = all_pass(&groups, &bench("matrix", Device::Sim));
    assert!(cases.len() > 50);
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
