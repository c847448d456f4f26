//! The same command has the same plan, until the user says otherwise.

mod common;

use common::{finish, scratch, smollm2, synthetic, tool, Answers, Eval, Finished, LAB};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const BUDGET: u64 = 36 << 20;
const MACHINE: &str = "pcie=4G,cpu=20G";

fn empty(name: &str) -> PathBuf {
    let folder = scratch("plan_cache").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A run that keeps its plan, and whose passes are compared by the wall clock.
fn eval(place: &Path) -> Eval {
    Eval::searched(&synthetic("tiny-llama", &[]))
        .prompts(&[40])
        .generate(40)
        .env("PIPESHARD_PLAN_CACHE", &text(place))
        .env("PIPESHARD_DEBUG_CALIBRATE", "1")
        .within(BUDGET, MACHINE)
}

fn plans(answers: &Answers) -> &Value {
    answers.eval.plans.as_ref().expect("a plan was decided for")
}

/// Both plans, as they are written.
fn both(answers: &Answers) -> String {
    let plans = plans(answers);
    format!("{}\n{}", plans["planned"], plans["running"])
}

fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(begin)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn the_same_command_has_the_same_plan_whatever_passes_took() {
    let place = empty("twice");
    let first = eval(&place).answers();
    assert_eq!(plans(&first)["source"], "searched");
    let compared = first.report().calibration.expect("passes are compared");
    assert!(compared.decode.passes >= 8, "{compared:?}");
    // what the run has seen is written down, and used by nobody
    assert_eq!(files(&place, "observed-").len(), 1);
    let kept = files(&place, "plan-");
    assert_eq!(kept.len(), 1);
    let written = std::fs::read(&kept[0]).expect("a kept plan");
    let second = eval(&place).answers();
    assert_eq!(plans(&second)["source"], "kept");
    assert_eq!(both(&first), both(&second));
    assert_eq!(first.outcome(), second.outcome());
    assert_eq!(std::fs::read(&kept[0]).expect("a kept plan"), written);
    // another command has another plan
    let other = eval(&place).within(BUDGET + (1 << 20), MACHINE).answers();
    assert_eq!(plans(&other)["source"], "searched");
    assert_eq!(files(&place, "plan-").len(), 2);
}

#[test]
fn a_kept_plan_is_followed_where_a_search_finds_another() {
    let place = empty("followed");
    let first = eval(&place).answers();
    let kept = files(&place, "plan-");
    let before = std::fs::read_to_string(&kept[0]).expect("a kept plan");
    // decisions that no search would make
    let mut changed: Value = serde_json::from_str(&before).expect("JSON");
    changed["decided"]["decisions"]["ring_target"] = (8 << 20).into();
    changed["decided"]["decisions"]["order"] = Value::Array(Vec::new());
    changed["adapted"] = Value::Null;
    std::fs::write(&kept[0], changed.to_string()).expect("room");
    let second = eval(&place).answers();
    assert_eq!(plans(&second)["source"], "kept");
    assert_ne!(plans(&first)["planned"], plans(&second)["planned"]);
    // what became of it is added, and no more
    let after = std::fs::read_to_string(&kept[0]).expect("a kept plan");
    let after: Value = serde_json::from_str(&after).expect("JSON");
    assert_eq!(after["decided"], changed["decided"]);
    assert!(after["adapted"].is_object());
    let third = eval(&place).answers();
    assert_eq!(both(&second), both(&third));
}

#[test]
fn two_that_start_at_once_have_one_plan() {
    let place = empty("race");
    let racers: Vec<Answers> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| eval(&place).answers()))
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("a run"))
            .collect()
    });
    assert_eq!(files(&place, "plan-").len(), 1);
    for racer in &racers[1..] {
        assert_eq!(both(racer), both(&racers[0]));
    }
    // files that were begun are gone
    let left = files(&place, "").len();
    assert_eq!(left, 1 + files(&place, "observed-").len());
}

/// Warnings are lines of the tool's log.
fn warned(finished: &Finished, part: &str) -> usize {
    let lines = finished.stderr.lines();
    lines.filter(|line| line.contains(part)).count()
}

fn completion(place: &[(&str, &str)]) -> Command {
    let mut command = tool("llama-completion");
    command
        .args(["-m", &text(&smollm2()), "-t", "1", "-n", "4", "-c", "512"])
        .args(["-p", "Paris is", "--temp", "0", "-no-cnv"])
        .args(["--pipeshard-vram", "60M", "--pipeshard-sim", "vram=1G"])
        .env_remove("PIPESHARD_PLAN_CACHE");
    for (name, value) in place {
        match value.is_empty() {
            true => command.env_remove(name),
            false => command.env(name, value),
        };
    }
    command
}

#[test]
fn where_plans_cannot_be_kept_a_line_says_so_and_the_run_goes_on() {
    let missing = finish(&mut completion(&[("XDG_CACHE_HOME", ""), ("HOME", "")]));
    assert!(missing.succeeded(), "{}", missing.stderr);
    assert_eq!(
        warned(&missing, "there is no place to keep the plan"),
        1,
        "{}",
        missing.stderr
    );

    // a folder that nobody can write to, not even the superuser: below a file
    let file = scratch("plan_cache").join("no folder");
    std::fs::write(&file, "").expect("room");
    let home = text(&file);
    let refused = finish(&mut completion(&[("XDG_CACHE_HOME", ""), ("HOME", &home)]));
    assert!(refused.succeeded(), "{}", refused.stderr);
    assert_eq!(
        warned(&refused, "the plan cannot be kept as"),
        1,
        "{}",
        refused.stderr
    );

    let home = empty("read-only");
    std::fs::create_dir_all(&home).expect("room");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&home, mode(0o555)).expect("it is ours");
    let read_only = finish(&mut completion(&[("XDG_CACHE_HOME", &text(&home))]));
    std::fs::set_permissions(&home, mode(0o755)).expect("it is ours");
    assert!(read_only.succeeded(), "{}", read_only.stderr);
    // the superuser may write all the same
    let kept = files(&home.join("pipeshard/plans"), "plan-").len();
    let told = warned(&read_only, "the plan cannot be kept as");
    assert_eq!(kept + told, 1, "{}", read_only.stderr);

    assert_eq!(missing.stdout, refused.stdout);
    assert_eq!(missing.stdout, read_only.stdout);
}

#[test]
fn a_full_disk_leaves_no_half_of_a_plan() {
    let place = empty("full");
    std::fs::create_dir_all(&place).expect("room");
    let command = completion(&[("PIPESHARD_PLAN_CACHE", &text(&place))]);
    // no file may grow beyond 512 bytes
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let finished = finish(&mut limited);
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert_eq!(
        warned(&finished, "the plan cannot be kept as"),
        1,
        "{}",
        finished.stderr
    );
    assert_eq!(files(&place, ""), Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_file_is_told_and_replaced() {
    let place = empty("damaged");
    let first = eval(&place).answers();
    let kept = files(&place, "plan-");
    let whole = std::fs::read(&kept[0]).expect("a kept plan");
    let run = |said: &str| {
        let mut command = tool(LAB);
        command
            .args([
                "eval",
                "--threads=1",
                "--prompt-tokens=40",
                "--generate=2",
                "--verbose",
            ])
            .arg(format!("--vram={BUDGET}"))
            .arg(format!("--sim=vram={BUDGET},{MACHINE}"))
            .arg(synthetic("tiny-llama", &[]))
            .env("PIPESHARD_PLAN_CACHE", &place);
        let finished = finish(&mut command);
        assert!(finished.succeeded(), "{}", finished.stderr);
        assert_eq!(warned(&finished, said), 1, "{}", finished.stderr);
    };
    for damage in [&whole[..whole.len() / 2], b"{}", b"\0\0"] {
        std::fs::write(&kept[0], damage).expect("room");
        run("is damaged");
        let kept: Value =
            serde_json::from_slice(&std::fs::read(&kept[0]).expect("a plan")).expect("JSON");
        assert_eq!(kept["decided"]["ubatch"], 512);
    }
    let again = eval(&place).answers();
    assert_eq!(plans(&again)["source"], "kept");
    assert_eq!(both(&first), both(&again));
}

#[test]
fn tune_replaces_the_plan_that_runs_follow() {
    let place = empty("tune");
    let first = eval(&place).answers();
    assert_eq!(plans(&first)["source"], "searched");
    // of a machine whose CPU was far slower than stated, more than once
    let observed = files(&place, "observed-");
    let mut slow: Value =
        serde_json::from_slice(&std::fs::read(&observed[0]).expect("a file")).expect("JSON");
    let of_cpu = slow["cpu_seconds"].as_f64().expect("a time");
    assert!(of_cpu > 0.0, "the CPU computed nothing");
    // by what was predicted, or it would depend on what else this machine does
    let predicted = slow["predicted_seconds"].as_f64().expect("a time");
    slow["passes"] = 1000.into();
    slow["seconds"] = (predicted * 20.0).into();
    slow["cpu_seconds"] = (predicted * 19.0).into();
    std::fs::write(&observed[0], slow.to_string()).expect("room");
    let mut tune = tool(LAB);
    tune.args(["tune", "--ctx=1024", "--ubatch=512", "--batch=512"])
        .args(["--threads=1", "--outputs=1"])
        .arg(format!("--vram={BUDGET}"))
        .arg(format!("--sim=vram={BUDGET},{MACHINE}"))
        .arg(synthetic("tiny-llama", &[]))
        .env("PIPESHARD_PLAN_CACHE", &place);
    let tuned = finish(&mut tune);
    assert!(tuned.succeeded(), "{}", tuned.stderr);
    for part in [
        "before",
        "first token",
        "generation",
        "One run of this model observed",
    ] {
        assert!(tuned.stdout.contains(part), "{}", tuned.stdout);
    }
    assert!(
        tuned.stdout.contains("The plan is another one"),
        "{}",
        tuned.stdout
    );
    assert_eq!(files(&place, "observed-"), Vec::<PathBuf>::new());
    assert_eq!(files(&place, "plan-").len(), 1);
    let second = eval(&place).answers();
    assert_eq!(plans(&second)["source"], "tuned");
    assert_ne!(plans(&first)["planned"], plans(&second)["planned"]);
    let third = eval(&place).answers();
    assert_eq!(both(&second), both(&third));
    // with nowhere to keep plans there is nothing to tune
    tune.env("PIPESHARD_PLAN_CACHE", "off");
    let refused = finish(&mut tune);
    assert!(refused.failed_cleanly());
    assert!(refused.said().contains("there is no plan to replace"));
}
