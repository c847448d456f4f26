//! `pipeshard-lab grids`, on the simulated GPU with the real `llama-bench`, and with recorded output in its place.

mod common;

use common::{finish, scratch, synthetic, tool, Finished, LAB, MIB};
use pipeshard_lab::bench::types::{Approach, Measurement, Outcome, Work};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = scratch(name);
    std::fs::remove_dir_all(&folder).expect("an old folder goes");
    scratch(name)
}

fn bench(out: &Path, args: &[&str]) -> Command {
    let mut command = tool(LAB);
    command.args(["grids", "--sim", "vram=1G", "--threads", "1"]);
    command.arg("--out").arg(out).args(args);
    command
}

fn results(out: &Path) -> Vec<Measurement> {
    let text = std::fs::read_to_string(out.join("results.jsonl")).expect("results");
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).expect("a measurement"))
        .collect()
}

fn summary(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join("summary.json")).expect("a summary");
    serde_json::from_str(&text).expect("JSON")
}

fn expect_success(finished: &Finished, out: &Path) {
    let log = std::fs::read_to_string(out.join("log.txt")).unwrap_or_default();
    assert!(finished.succeeded(), "{}\n{log}", finished.stderr);
}

#[test]
fn every_row_is_measured_on_the_simulated_gpu_and_kept() {
    let out = folder("bench-rows");
    let model = synthetic("tiny-llama", &[]);
    let model = format!("tiny={}", model.display());
    let args = [
        "--model",
        &model,
        "--vram",
        "30M",
        "--prompt-tokens",
        "8,64",
        "--ubatch",
        "64",
        "--fit-ubatch",
        "64",
        "--our-ubatch",
        "64",
        "--generate",
        "2",
        "-r",
        "1",
        "--rounds",
        "2",
        "--search",
        "full",
    ];
    let finished = finish(&mut bench(&out, &args));
    expect_success(&finished, &out);
    let measured = results(&out);
    for approach in [
        Approach::AllInVram,
        Approach::PipeshardAll,
        Approach::Pipeshard,
        Approach::FitMapped,
        Approach::FitLocked,
        Approach::Search,
    ] {
        // the first finds the settings, and the best of them, or all of them, are measured again
        let rounds: Vec<u32> = measured
            .iter()
            .filter(|m| m.approach == approach)
            .map(|m| m.round)
            .collect();
        let again = approach.is_ours() || approach == Approach::AllInVram;
        assert!(
            rounds.contains(&1) && (!again || rounds.contains(&2)),
            "{approach:?}"
        );
        for work in [Work::Prompt, Work::Decode] {
            let of = |m: &&Measurement| m.approach == approach && m.test.work == work;
            let valid = measured.iter().filter(of).filter(|m| m.is_valid());
            assert!(
                valid.count() > 0,
                "{approach:?} {work:?}: {}",
                finished.stdout
            );
        }
    }
    let ours = measured
        .iter()
        .filter(|m| m.approach == Approach::Pipeshard);
    for m in ours {
        // by the device's own counter
        assert!(
            m.peak.is_some_and(|peak| peak > 0 && peak <= 30 * MIB),
            "{m:?}"
        );
        let streamed = m.counted.as_ref().map(|c| c.bytes_streamed);
        let streams = m.test.work == Work::Prompt && m.test.tokens == 64;
        // what shorter ones use in slots is copied there once
        if streams || m.test.work == Work::FirstToken {
            assert!(streamed > Some(0), "{m:?}");
        } else {
            assert!(streamed < Some(30 * MIB), "{m:?}");
        }
    }
    let duelled = measured
        .iter()
        .filter(|m| m.approach.is_baseline() && m.round == 2);
    assert!(duelled.filter(|m| m.test.work != Work::FirstToken).count() > 0);
    let same = measured
        .iter()
        .find(|m| m.approach == Approach::SamePlacement);
    assert!(same.is_some_and(Measurement::is_valid), "{same:?}");
    let held = measured
        .iter()
        .filter(|m| m.budget.is_some() && m.is_valid());
    for m in held.filter(|m| m.approach.is_baseline()) {
        assert!(m.peak.is_some_and(|peak| peak <= 30 * MIB), "{m:?}");
    }
    for file in [
        "tables.txt",
        "results.csv",
        "ttft.svg",
        "speedup.svg",
        "log.txt",
    ] {
        assert!(out.join(file).exists(), "{file}");
    }
    let summary = summary(&out);
    assert!(summary["machine"]["link_pinned"].as_f64() > Some(0.0));
    assert!(summary["machine"]["link_registered"].as_f64() >= Some(0.0));
    let bounds = summary["cells"].as_array().expect("cells").iter();
    assert!(
        bounds
            .filter(|cell| cell["bound"]["link"].as_f64() > Some(0.0))
            .count()
            > 0
    );
    assert!(finished.stdout.contains("Targets"), "{}", finished.stdout);

    // the same again finds everything measured
    let before = measured.len();
    let again = finish(&mut bench(&out, &args));
    expect_success(&again, &out);
    let fresh = results(&out).split_off(before);
    let fresh: Vec<_> = fresh.iter().filter(|m| m.is_valid()).collect();
    assert!(fresh.is_empty(), "{fresh:?}");
}

/// A `llama-bench` that says what was recorded, and what it took of the simulated GPU.
fn recorded(folder: &Path, script: &str) {
    let path = folder.join("llama-bench");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

/// A grid of one prompt with the `llama-bench` that lies in `out`.
fn with_recorded(out: &Path) -> Finished {
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let tools = out.display().to_string();
    let grid = "--vram 60M --prompt-tokens 64 --ubatch 64 --fit-ubatch 64 --generate 0 --rows 0 --rounds 1 --first-token 0 --no-ceiling";
    let mut args: Vec<&str> = grid.split(' ').collect();
    args.extend(["--model", &model, "--tools", &tools]);
    finish(&mut bench(out, &args))
}

const LINE: &str =
    r#"{"n_prompt": 64, "n_gen": 0, "n_depth": 0, "samples_ns": [ 2000000, 2100000 ]}"#;

#[test]
fn a_baseline_over_the_budget_is_thrown_out_and_fit_tries_again_below_it() {
    let out = folder("bench-over");
    // --fit overruns its target by 5 MiB; the search takes 1 byte too many, whatever it is told
    recorded(
        &out,
        &format!(
            "peak=1000; for arg; do [ \"$last\" = -fitt ] && peak=$(( (1024 - arg + 5) << 20 )); last=$arg; done\n\
             case \"$*\" in *-ngl*) peak={};; esac\n\
             echo \"{{\\\"peak_bytes\\\": $peak}}\" > \"$PIPESHARD_SIM_COUNTERS\"\n\
             echo '{LINE}'",
            60 * MIB + 1
        ),
    );
    let finished = with_recorded(&out);
    expect_success(&finished, &out);
    let measured = results(&out);
    let fit: Vec<&Measurement> = measured
        .iter()
        .filter(|m| m.approach == Approach::FitMapped)
        .collect();
    assert_eq!(fit[0].outcome, Outcome::OverBudget { bytes: 5 * MIB });
    assert_eq!(fit[0].setting, "");
    assert_eq!(fit[1].outcome, Outcome::Valid, "{fit:?}");
    assert_eq!(fit[1].setting, "-16 MiB");
    // what was found out about the mapped file is used for the page-locked one
    let locked = measured
        .iter()
        .filter(|m| m.approach == Approach::FitLocked);
    assert!(locked.clone().count() == 1 && locked.clone().all(Measurement::is_valid));
    let search = measured.iter().filter(|m| m.approach == Approach::Search);
    assert!(search.clone().count() > 0);
    for m in search {
        assert_eq!(m.outcome, Outcome::OverBudget { bytes: 1 });
    }
    assert!(
        finished.stdout.contains("thrown out"),
        "{}",
        finished.stdout
    );
    // without a report pipeshard was not at work, whatever was printed
    let ours = measured.iter().find(|m| m.approach == Approach::Pipeshard);
    assert!(
        matches!(&ours.expect("a row").outcome, Outcome::Failed { reason } if reason.contains("not engaged"))
    );
    let cells = summary(&out)["cells"].clone();
    let rows = cells[0]["rows"].to_string();
    assert!(
        rows.contains("fit-mapped") && !rows.contains("search"),
        "{rows}"
    );
}

#[test]
fn a_failure_is_a_row_and_the_grid_goes_on() {
    let out = folder("bench-failure");
    recorded(
        &out,
        &format!(
            "case \"$*\" in *none*) echo 'error: no such luck' >&2; exit 7;; esac\n\
             case \"$*\" in *fitt*) echo '{{\"peak_bytes\": 1000}}' > \"$PIPESHARD_SIM_COUNTERS\";; esac\necho '{LINE}'"
        ),
    );
    let finished = with_recorded(&out);
    expect_success(&finished, &out);
    let measured = results(&out);
    let failed = measured
        .iter()
        .filter(|m| m.approach == Approach::FitLocked);
    let reasons: Vec<String> = failed.map(|m| format!("{:?}", m.outcome)).collect();
    assert!(
        reasons.iter().any(|r| r.contains("no such luck")),
        "{reasons:?}"
    );
    let mapped = measured.iter().find(|m| m.approach == Approach::FitMapped);
    assert!(mapped.is_some_and(Measurement::is_valid));
    assert!(
        finished.stdout.contains("no such luck"),
        "{}",
        finished.stdout
    );
}

#[test]
fn a_baseline_whose_memory_nobody_measured_does_not_count() {
    let out = folder("bench-unmeasured");
    recorded(&out, &format!("echo '{LINE}'"));
    let finished = with_recorded(&out);
    expect_success(&finished, &out);
    let measured = results(&out);
    assert!(measured.iter().any(|m| m.approach == Approach::FitMapped));
    assert!(!measured.iter().any(Measurement::is_valid), "{measured:?}");
    assert!(
        finished.stdout.contains("could not be measured"),
        "{}",
        finished.stdout
    );
}

#[test]
fn when_time_is_up_there_is_a_table_of_what_there_is() {
    let out = folder("bench-time");
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let finished = finish(&mut bench(
        &out,
        &["--model", &model, "--minutes", "0.0001"],
    ));
    expect_success(&finished, &out);
    assert!(results(&out).is_empty());
    assert!(
        finished.stdout.contains("time was up"),
        "{}",
        finished.stdout
    );
    assert!(
        finished.stdout.contains("not measured"),
        "{}",
        finished.stdout
    );
}

#[test]
fn a_deep_context_is_filled_and_what_was_measured_is_not_measured_again() {
    let out = folder("bench-contexts");
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let grid = "--grid contexts --vram 24M --contexts 256 --generate 2 -r 1";
    let mut args: Vec<&str> = grid.split(' ').collect();
    args.extend(["--model", &model]);
    let finished = finish(&mut bench(&out, &args));
    expect_success(&finished, &out);
    let measured = results(&out);
    // a prompt and the generation behind it, from one load
    let ours: Vec<&Measurement> = measured
        .iter()
        .filter(|m| m.approach == Approach::Pipeshard)
        .collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    assert!(ours.iter().all(|m| m.is_valid()), "{ours:?}");
    assert_eq!((ours[0].test.tokens, ours[1].test.depth), (192, 192));
    assert!(
        ours[0].seconds[0] > ours[1].seconds[0],
        "192 tokens against two: {ours:?}"
    );
    let layers = measured.iter().filter(|m| m.approach == Approach::Layers);
    assert!(layers.clone().any(Measurement::is_valid), "{measured:?}");
    assert!(layers.clone().all(|m| m.test.depth == 192));
    // with all its feed-forward weights on the CPU this model still takes more
    let part: Vec<_> = measured
        .iter()
        .filter(|m| m.approach == Approach::Part)
        .collect();
    assert!(!part.is_empty() && part.iter().all(|m| !m.is_valid()));
    assert!(
        finished.stdout.contains("thrown out") && finished.stdout.contains("at least"),
        "{}",
        finished.stdout
    );
    assert!(
        finished.stdout.contains("generation behind a prompt"),
        "{}",
        finished.stdout
    );
    let again = finish(&mut bench(&out, &args));
    expect_success(&again, &out);
    assert_eq!(results(&out).len(), measured.len(), "{}", again.stderr);
}

#[test]
fn sequences_are_generated_side_by_side() {
    let out = folder("bench-batches");
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let grid = "--grid batches --vram 40M --contexts 64 --batches 3 --generate 2 -r 1";
    let mut args: Vec<&str> = grid.split(' ').collect();
    args.extend(["--model", &model]);
    let finished = finish(&mut bench(&out, &args));
    expect_success(&finished, &out);
    let measured = results(&out);
    for approach in [Approach::Pipeshard, Approach::Layers] {
        let of = |m: &&Measurement| m.approach == approach && m.is_valid();
        let valid: Vec<_> = measured.iter().filter(of).collect();
        assert!(!valid.is_empty(), "{approach:?}: {}", finished.stdout);
        assert!(valid.iter().all(|m| m.test.sequences == 3));
        assert!(valid
            .iter()
            .all(|m| m.peak.is_some_and(|peak| peak <= 40 * MIB)));
    }
    assert!(
        finished.stdout.contains("decode×3@48"),
        "{}",
        finished.stdout
    );
}

#[test]
fn the_chosen_placement_is_behind_one_that_is_forced() {
    let out = folder("bench-placements");
    // kv-first is the fastest; a name that is unheard of gets the default, and the report says so
    recorded(
        &out,
        r#"
say() { echo "llama-bench: benchmark 1/1: $*" >&2; }
while [ $# -gt 0 ]; do case "$1" in --pipeshard-report) report=$2; shift;; esac; shift; done
case "${PIPESHARD_DEBUG_CANDIDATE-}" in kv-first) wait=0.1;; *) wait=0.3;; esac
predicted=', "predicted": {"ttft": 0.36, "tps": 12, "e2el": 1, "decode_pass_seconds": 1, "prompt_pass_seconds": 1, "prompt_tokens": 192, "generated_tokens": 64, "limit": "cpu", "prompt_limit": "link", "profile": "measured"}'
[ "${PIPESHARD_DEBUG_CANDIDATE-}" = not-searched ] && predicted=
echo '{"peak_bytes": 1000}' > "$PIPESHARD_SIM_COUNTERS"
echo "{\"engaged\": true $predicted}" > "$report"
say starting; say "prompt run 1/1"; sleep $wait; say "generation run 1/1"; sleep $wait
case $wait in 0.1) both=1200000000;; *) both=2600000000;; esac
echo "{\"n_prompt\": 192, \"n_gen\": 2, \"n_depth\": 0, \"samples_ns\": [ $both ]}"
"#,
    );
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let tools = out.display().to_string();
    let grid = "--grid placements --vram 24M --contexts 256 --generate 2 -r 1 --candidates kv-first,not-searched";
    let mut args: Vec<&str> = grid.split(' ').collect();
    args.extend(["--model", &model, "--tools", &tools]);
    let finished = finish(&mut bench(&out, &args));
    expect_success(&finished, &out);
    let measured = results(&out);
    let of = |name: &str| measured.iter().filter(|m| m.setting == name).count();
    assert_eq!((of(""), of("kv-first"), of("not-searched")), (2, 2, 2));
    for m in &measured {
        assert_eq!(m.is_valid(), m.setting != "not-searched", "{m:?}");
    }
    let text = &finished.stdout;
    assert!(text.contains("no placement was forced"), "{text}");
    assert!(text.contains("at 0 of 1 points"), "{text}");
    assert!(text.contains("Predicted TTFT: off by"), "{text}");
    let csv = std::fs::read_to_string(out.join("placements.csv")).expect("a CSV");
    assert_eq!(csv.lines().count(), 3, "{csv}");
}

#[test]
fn the_planner_is_told_which_placement_to_take() {
    let out = folder("bench-forced");
    let model = format!("tiny={}", synthetic("tiny-llama", &[]).display());
    let grid = "--grid placements --vram 24M --contexts 256 --generate 2 -r 1 --candidates usual,unheard-of";
    let mut args: Vec<&str> = grid.split(' ').collect();
    args.extend(["--model", &model]);
    let finished = finish(&mut bench(&out, &args));
    expect_success(&finished, &out);
    let measured = results(&out);
    let valid = |name: &str| {
        let of = |m: &&Measurement| m.setting == name && m.is_valid();
        measured.iter().filter(of).count()
    };
    assert_eq!(
        (valid(""), valid("usual"), valid("unheard-of")),
        (2, 2, 0),
        "{measured:?}"
    );
    assert!(
        finished.stdout.contains("of 1 points"),
        "{}",
        finished.stdout
    );
}
