//! Runs that follow a saved plan (`pipeshard plan --save`, `--pipeshard-plan`), and those that are refused.

mod common;

use common::{finish, finish_text, scratch, synthetic, tool, Answers, Eval, Finished, LAB, MIB};
use pipeshard_plan::plan::{SavedPlan, UnitClass};
use std::path::{Path, PathBuf};

const PROMPTS: &[u32] = &[1, 33, 600];

fn plan_command(model: &Path, options: &[&str]) -> std::process::Command {
    let mut command = tool(LAB);
    command.arg("plan").arg(model);
    command.args(["--ctx", "1024", "--granularity", "64K"]);
    // not what was measured on the machine that runs the tests
    command.args(["--profile", "assumed"]);
    if !options.contains(&"--ubatch") {
        command.args(["--ubatch", "512"]);
    }
    command.args(options);
    command
}

/// So many percent of the way from the smallest budget that works to that for everything, in bytes.
fn budget(model: &Path, percent: u64, options: &[&str]) -> u64 {
    let planned = finish(plan_command(model, options).args(["--vram", "1T", "--json"]));
    assert!(planned.succeeded(), "{}", planned.stderr);
    let json: serde_json::Value = serde_json::from_str(&planned.stdout).expect("JSON");
    let of = |field: &str| json["plan"][field].as_u64().expect("a size");
    let (least, most) = (of("minimum_budget"), of("full_budget"));
    (least + (most - least) * percent / 100).next_multiple_of(MIB)
}

/// A plan for `model` under `budget` bytes, in a file of that name.
fn planned(model: &Path, name: &str, budget: u64, options: &[&str]) -> (PathBuf, SavedPlan) {
    let file = scratch("saved-plans").join(name);
    let mut command = plan_command(model, options);
    command.arg("--vram").arg(budget.to_string());
    command.arg("--save").arg(&file);
    let made = finish(&mut command);
    assert!(made.succeeded(), "{}", made.stderr);
    let text = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let saved = SavedPlan::from_json(&text).expect("a saved plan");
    (file, saved)
}

fn evaluation(model: &Path) -> Eval {
    let eval = Eval::of(model).prompts(PROMPTS).generate(4);
    eval.arg("ctx", 1024).arg("ubatch", 512)
}

/// Under the plan's budget, on a simulated GPU of that size.
fn following(model: &Path, file: &Path, budget: u64) -> Eval {
    let eval = evaluation(model).within(budget, "granularity=64K");
    eval.env("LLAMA_ARG_PIPESHARD_PLAN", &file.display().to_string())
}

/// Names of the plan's residents.
fn residents(saved: &SavedPlan) -> Vec<&str> {
    let ids = saved.plan.residents.iter();
    ids.map(|id| saved.plan.units[id.index()].name.as_str())
        .collect()
}

fn follows(answers: &Answers, saved: &SavedPlan, dropped: u64) {
    let report = answers.report();
    let used = report.saved_plan.as_ref().expect("the plan's line");
    assert_eq!(used.residents, saved.plan.residents.len() as u64);
    assert_eq!(used.dropped, dropped);
    let resident = residents(saved);
    let kept = &resident[..resident.len() - dropped as usize];
    for name in &report.not_resident {
        assert!(!kept.contains(&name.as_str()), "{name} is not resident");
    }
    let all = saved.plan.units.len();
    assert_eq!(report.not_resident.len(), all - kept.len());
}

#[test]
fn the_answers_are_those_of_stock_and_everything_lies_where_the_plan_says() {
    for (shape, share) in [
        ("tiny-llama", 50),
        ("tiny-llama", 15),
        ("tiny-qwen3moe", 60),
    ] {
        let model = synthetic(shape, &[]);
        let budget = budget(&model, share, &[]);
        let (file, saved) = planned(&model, &format!("{shape}-{share}.json"), budget, &[]);
        let kv_split = saved.plan.kv.iter().any(|kv| !kv.device);
        assert_eq!(
            kv_split,
            share < 20,
            "{shape}: part of the KV is on the host"
        );
        let units = saved.plan.units.iter();
        let small = units.filter(|unit| unit.class == UnitClass::Small).count();
        assert!(
            kv_split || saved.plan.residents.len() > small,
            "{shape}: some are resident"
        );
        assert!(!saved.plan.ring.groups.is_empty(), "{shape}: some are not");
        let stock = evaluation(&model).answers();
        let run = following(&model, &file, budget).answers();
        assert_eq!(run.outcome(), stock.outcome(), "{shape}");
        run.assert_healthy(budget);
        follows(&run, &saved, 0);
        assert_eq!(run.report().held.slots, saved.plan.ring.bytes);
        let on_device = saved.plan.kv.iter().filter(|kv| kv.device);
        let kv: u64 = on_device.map(|kv| kv.bytes).sum();
        assert!(run.report().peak.kv >= kv);
    }
}

#[test]
fn another_placement_than_todays_is_followed() {
    // the residents of a smaller budget, under a larger one
    let model = synthetic("tiny-llama", &[]);
    let (less, more) = (budget(&model, 40, &[]), budget(&model, 90, &[]));
    let (file, saved) = planned(&model, "smaller.json", less, &[]);
    let run = following(&model, &file, more).answers();
    follows(&run, &saved, 0);
    run.assert_healthy(more);
    assert_eq!(run.outcome(), evaluation(&model).answers().outcome());
}

#[test]
fn residents_that_have_no_room_any_more_are_dropped_and_counted() {
    let model = synthetic("tiny-llama", &["--layers=24"]);
    let budget = budget(&model, 80, &[]);
    let (file, saved) = planned(&model, "full.json", budget, &[]);
    let mut needs = saved.plan.ledger.total();
    let run = following(&model, &file, budget).answers();
    follows(&run, &saved, 0);
    // what the run took less for its compute buffers than was planned for is left over
    needs -= saved.plan.ledger.scratch - run.report().peak.scratch;
    let unit = saved
        .plan
        .residents
        .last()
        .map(|id| &saved.plan.units[id.index()]);
    let least = unit.map_or(0, |unit| unit.device_bytes) / 2;
    let squeezed = following(&model, &file, budget);
    let squeezed = squeezed.env("PIPESHARD_RESERVE", &(budget - needs + least).to_string());
    let squeezed = squeezed.answers();
    let dropped = squeezed
        .report()
        .saved_plan
        .as_ref()
        .map_or(0, |used| used.dropped);
    assert!(dropped > 0);
    follows(&squeezed, &saved, dropped);
    assert!(squeezed.said.contains("have no room"), "{}", squeezed.said);
    assert_eq!(squeezed.outcome(), run.outcome());
    let much = following(&model, &file, budget)
        .env(
            "PIPESHARD_RESERVE",
            &(budget - needs + needs / 8).to_string(),
        )
        .run();
    refused(&much, &["does not fit", "pipeshard plan"]);
}

/// Ended by itself and said why, in a sentence with these parts.
fn refused(run: &Finished, parts: &[&str]) {
    assert!(run.failed_cleanly(), "{:?} {}", run.status, run.stderr);
    let said = run.said();
    for part in parts {
        assert!(said.contains(part), "no '{part}' in: {said}");
    }
}

#[test]
fn plans_for_something_else_are_refused() {
    let model = synthetic("tiny-llama", &[]);
    let budget = budget(&model, 50, &[]);
    let (file, _) = planned(&model, "refused.json", budget, &[]);
    let other = synthetic("tiny-qwen3moe", &[]);
    refused(
        &following(&other, &file, budget).run(),
        &["not followed", "another model", "pipeshard plan --save"],
    );
    let deeper = synthetic("tiny-llama", &["--layers=24"]);
    refused(
        &following(&deeper, &file, budget).run(),
        &["another model", "that one has no blk."],
    );
    refused(
        &following(&model, &file, budget).arg("ctx", 2048).run(),
        &["context of 1024 tokens", "-c 2048", "another"],
    );
    let (quantised, _) = planned(&model, "q8.json", budget, &["--cache-type-k", "q8_0"]);
    refused(
        &following(&model, &quantised, budget).run(),
        &["q8_0 keys", "the KV cache of layer 0 takes"],
    );
    refused(
        &following(&model, &file, 4 * MIB).run(),
        &["--pipeshard-vram allows 4 MiB", "not followed"],
    );
}

#[test]
fn damaged_files_are_refused() {
    let model = synthetic("tiny-llama", &[]);
    let budget = budget(&model, 50, &[]);
    let (file, _) = planned(&model, "whole.json", budget, &[]);
    let text = std::fs::read_to_string(&file).expect("the plan");
    let broken = |name: &str, text: &str| {
        let path = file.with_file_name(name);
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        following(&model, &path, budget).run()
    };
    let cut = &text[..text.len() / 3];
    refused(
        &broken("cut.json", cut),
        &["not a saved plan, or is damaged"],
    );
    let edited = text.replacen("blk.0.attn_q", "blk.0.attn_w", 1);
    refused(
        &broken("edited.json", &edited),
        &["does not match its fingerprint"],
    );
    let old = text.replacen("\"schema\":1", "\"schema\":0", 1);
    refused(
        &broken("old.json", &old),
        &["form 0", "pipeshard plan --save"],
    );
    refused(&broken("empty.json", ""), &["not a saved plan"]);
    let missing = following(&model, Path::new("no/such/plan.json"), budget);
    refused(&missing.run(), &["no/such/plan.json", "cannot be read"]);
    let huge = following(&model, &model, budget);
    refused(&huge.run(), &["not a saved plan"]);
}

#[test]
fn the_tools_take_the_flag_and_the_plans_budget_and_ubatch() {
    let model = synthetic("tiny-llama", &[]);
    let options = ["--ubatch", "256"];
    let budget = budget(&model, 50, &options);
    let (file, saved) = planned(&model, "tools.json", budget, &options);
    let report_file = scratch("saved-plans").join("report.json");
    let completion = |more: &[&str]| {
        let mut command = tool("llama-completion");
        command.arg("-m").arg(&model);
        command.args([
            "-p",
            "one two three",
            "-n",
            "4",
            "--temp",
            "0",
            "-t",
            "1",
            "-no-cnv",
        ]);
        command.args(["-c", "1024"]).args(more);
        command
    };
    let (plan, report) = (
        file.display().to_string(),
        report_file.display().to_string(),
    );
    let flags = [
        "--pipeshard-plan",
        &plan,
        "--pipeshard-sim",
        "vram=1G,granularity=64K",
        "--pipeshard-report",
        &report,
    ];
    let run = finish_text(|| completion(&flags));
    assert!(run.succeeded(), "{}", run.stderr);
    assert!(run.said().contains("saved plan"), "{}", run.stderr);
    let stock = finish_text(|| completion(&["--no-repack"]));
    assert_eq!(run.stdout, stock.stdout);
    let text = std::fs::read_to_string(&report_file).expect("a report");
    let report: pipeshard::report::Report = serde_json::from_str(&text).expect("of this build");
    assert_eq!(report.budget, saved.plan.budget);
    assert_eq!(report.saved_plan.map(|used| used.dropped), Some(0));
    let mut resident = saved
        .plan
        .residents
        .iter()
        .map(|id| &saved.plan.units[id.index()]);
    let large = resident.rfind(|unit| unit.class != UnitClass::Small);
    let name = large
        .map(|unit| unit.name.clone())
        .expect("a large resident");
    let rule = format!("^{}$=CPU", name.replace('.', "\\."));
    let overridden = finish(&mut completion(&[&flags[..], &["-ot", &rule]].concat()));
    refused(&overridden, &[&name, "-ot", "not followed"]);
}
