//! llama.cpp's own tools with the flags, and without.

mod common;

use common::server::Server;
use common::{assert_accounted, finish, finish_text, scratch, smollm2, synthetic, tool, Finished};
use pipeshard::report::Report;
use serde_json::Value;
use std::path::Path;

fn completion(flags: &[&str]) -> Finished {
    let finished = finish_text(|| {
        let mut command = tool("llama-completion");
        command.arg("-m").arg(smollm2());
        command.args(["-p", "The capital of France is", "-n", "32", "--temp", "0"]);
        command
            .args(["-c", "512", "-t", "1", "-no-cnv"])
            .args(flags);
        command
    });
    assert!(finished.succeeded(), "{}", finished.stderr);
    finished
}

fn report_in(path: &Path) -> Report {
    let text = std::fs::read_to_string(path).expect("a report");
    let report = serde_json::from_str(&text).expect("a report of this build");
    assert_accounted(&report);
    report
}

#[test]
fn a_completion_is_the_same_as_without() {
    let stock = completion(&["--no-repack"]);
    assert!(stock.stdout.contains("Paris"), "{}", stock.stdout);
    assert!(!stock.stderr.contains("pipeshard"));
    let file = scratch("tools").join("completion.json");
    let path = file.display().to_string();
    let ours = completion(&[
        "--pipeshard",
        "--pipeshard-vram",
        "40M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-report",
        &path,
    ]);
    assert_eq!(stock.stdout, ours.stdout);
    assert!(ours.said().contains("pipeshard: engaged on SIM0"));
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty());
    let model = smollm2().metadata().expect("the demo model").len();
    assert!(report.peak.total <= 40 << 20 && 40 << 20 < model);
    // 31 tokens after the first, which comes with the prompt
    assert!(report.passes.decode >= 31 && report.graph_reuses > 0);
    assert!(report.units.decode.host > 0);
}

#[test]
fn the_environment_is_as_good_as_flags() {
    let file = scratch("tools").join("environment.json");
    let mut command = tool("llama-completion");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args([
        "-p", "abcdefgh", "-n", "4", "-c", "512", "-t", "1", "-no-cnv",
    ]);
    command.env("LLAMA_ARG_PIPESHARD", "1");
    command.env("LLAMA_ARG_PIPESHARD_VRAM", "48M");
    command.env("LLAMA_ARG_PIPESHARD_SIM", "vram=48M");
    command.env("LLAMA_ARG_PIPESHARD_REPORT", &file);
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let report = report_in(&file);
    assert!(report.engaged);
    assert_eq!(report.budget, 48 << 20);
}

/// A short run on the simulated GPU with these flags and variables more: its report, and what was said.
fn written_as(name: &str, flags: &[&str], env: &[(&str, &str)]) -> (Report, String) {
    let file = scratch("tools").join(format!("{name}.json"));
    let mut command = tool("llama-completion");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args([
        "-p", "abcdefgh", "-n", "2", "-c", "4096", "-t", "1", "-no-cnv",
    ]);
    command
        .args(["-v", "--pipeshard-sim", "vram=1G"])
        .args(flags);
    command.env("LLAMA_ARG_PIPESHARD_REPORT", &file);
    let finished = finish(command.envs(env.iter().copied()));
    assert!(finished.succeeded(), "{name}: {}", finished.stderr);
    (report_in(&file), finished.said())
}

#[test]
fn flags_and_variables_are_understood_as_people_write_them() {
    let budget = |name, flags: &[&str], env: &[(&str, &str)]| {
        let (report, _) = written_as(name, flags, env);
        assert!(report.engaged, "{name}: {report:?}");
        report.budget
    };
    assert_eq!(
        budget("underscore", &["--pipeshard_vram", "48M"], &[]),
        48 << 20
    );
    assert_eq!(budget("equals", &["--pipeshard-vram=48M"], &[]), 48 << 20);
    let vram = ("LLAMA_ARG_PIPESHARD_VRAM", "48M");
    assert_eq!(budget("variable", &[], &[vram]), 48 << 20);
    for value in ["True", "yes", "ON"] {
        let env = [("LLAMA_ARG_PIPESHARD", value), vram];
        assert_eq!(budget("truth", &[], &env), 48 << 20, "{value}");
    }
    let ubatch = |name, flags: &[&str], env: &[(&str, &str)]| {
        let (_, said) = written_as(name, &[&["--pipeshard-vram", "60M"], flags].concat(), env);
        let (_, behind) = said.rsplit_once("n_ubatch").expect("the context's sizes");
        let digits = behind.trim_start_matches([' ', '=']).chars();
        digits.take_while(char::is_ascii_digit).collect::<String>()
    };
    assert_eq!(ubatch("ub", &["--ubatch_size", "64"], &[]), "64");
    // as the child of a router that was given none
    let inherited = [
        ("LLAMA_ARG_PIPESHARD_UBATCH", "auto"),
        ("LLAMA_ARG_UBATCH", "64"),
    ];
    assert_eq!(ubatch("inherited", &[], &inherited), "64");
    assert_ne!(ubatch("free", &[], &[]), "64");
}

#[test]
fn a_model_that_the_user_put_on_the_device_runs_there() {
    let flags = ["--pipeshard-vram", "100M", "-ot", ".*=SIM0"];
    let (report, _) = written_as("all-by-user", &flags, &[]);
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(report.bytes_streamed + report.bytes_uploaded, 0);
}

fn bench(flags: &[&str]) -> Finished {
    let mut command = tool("llama-bench");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args(["-p", "64", "-n", "4", "-r", "1", "-t", "1", "-o", "csv"]);
    let finished = finish(command.args(flags));
    assert!(finished.succeeded(), "{}", finished.stderr);
    finished
}

#[test]
fn a_benchmark_runs() {
    let stock = bench(&[]);
    assert!(!stock.stderr.contains("pipeshard:"), "{}", stock.stderr);
    let file = scratch("tools").join("bench.json");
    let path = file.display().to_string();
    let ours = bench(&[
        "--pipeshard",
        "--pipeshard-vram",
        "16M",
        "--pipeshard-sim",
        "vram=16M",
        "--pipeshard-report",
        &path,
    ]);
    // a header, a prompt and a generation
    for finished in [&stock, &ours] {
        assert_eq!(finished.stdout.lines().count(), 3, "{}", finished.stdout);
    }
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty(), "{report:?}");
    assert!(report.passes.prompt > 0 && report.passes.decode > 0);
    assert!(report.bytes_streamed > 0);
    assert!(report.peak.total <= 16 << 20);
}

#[test]
fn another_context_finds_residents_where_they_were() {
    let file = scratch("tools").join("contexts.json");
    let path = file.display().to_string();
    bench(&[
        "--pipeshard",
        "--pipeshard-vram",
        "1G",
        "--pipeshard-sim",
        "vram=2G",
        "--pipeshard-report",
        &path,
    ]);
    let report = report_in(&file);
    // one context for the prompt, another for the generation
    assert!(report.engaged && report.contexts >= 2, "{report:?}");
    assert_eq!(report.bytes_streamed, 0);
    assert!(report.bytes_uploaded > 0 && report.bytes_uploaded <= report.peak.resident);
}

#[test]
fn kv_leaves_room_for_the_ubatch_that_was_chosen() {
    let mut command = tool("llama-completion");
    let model = synthetic("tiny-llama", &["--layers", "12"]);
    command.arg("-m").arg(model);
    command.args([
        "-p", "a", "-n", "1", "-c", "16000", "-b", "16000", "-t", "1",
    ]);
    command.args(["-v", "-no-cnv", "--no-warmup", "--pipeshard-vram", "110M"]);
    command.args(["--pipeshard-sim", "vram=1G,pcie=1G,flops=200T,cpu=20G"]);
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let lines = || finished.stderr.lines();
    assert!(lines().any(|line| line.contains("the plan uses ubatches of 1024 tokens")));
    // all cells take 284 MiB: those in VRAM leave room for the compute buffers of such an ubatch at the first try
    assert!(!lines().any(|line| line.contains("did not fit")));
    let ubatch = lines().rfind(|line| line.contains("n_ubatch"));
    assert!(
        ubatch.is_some_and(|line| line.ends_with("= 1024")),
        "{ubatch:?}"
    );
    assert!(lines().any(|line| line.contains("SIM0_Host KV buffer size")));
}

#[test]
fn the_flags_are_explained() {
    for name in [
        "llama-completion",
        "llama-cli",
        "llama-server",
        "llama-bench",
    ] {
        let help = finish(tool(name).arg("--help"));
        for flag in [
            "--pipeshard ",
            "--pipeshard-vram SIZE",
            "--pipeshard-sim SPEC",
            "--pipeshard-report FILE",
            "LLAMA_ARG_PIPESHARD_VRAM",
        ] {
            // in columns, whose width is the tool's own business
            let text = help.stdout.clone() + &help.stderr;
            let words: Vec<&str> = text.split_whitespace().collect();
            assert!(
                words.join(" ").contains(flag),
                "{name} --help says nothing of {flag}"
            );
        }
    }
}

#[test]
fn a_simulated_gpu_is_listed() {
    let mut command = tool("llama-bench");
    command.args(["--list-devices", "--pipeshard-sim", "vram=3G"]);
    let listed = finish(&mut command);
    assert!(listed.succeeded());
    let text = listed.stdout + &listed.stderr;
    assert!(text.contains("SIM0") && text.contains("3 GiB"), "{text}");
}

fn compare(vram: &str, flags: &[&str]) -> Finished {
    let model = synthetic("tiny-llama", &[]);
    let mut command = tool("pipeshard");
    command.arg("bench").arg(&model).args(["--vram", vram]);
    command.args(["--sim", "vram=1G", "-p", "64", "-n", "4", "-t", "1"]);
    finish(command.args(flags))
}

#[test]
fn a_model_is_compared_with_stock_in_the_memory_that_it_took() {
    let finished = compare("40M", &["--json", "--rounds", "2", "--", "-ngl", "1"]);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let result: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let rows = result["rows"].as_array().expect("rows");
    let ours: Vec<bool> = rows.iter().map(|row| row["ours"] == true).collect();
    assert_eq!(ours, [true, false, false, false, false, false]);
    let held_to = result["stock_held_to"].as_u64().expect("bytes");
    assert_eq!(result["measured_memory"], true);
    for row in rows {
        let rounds = row["rounds"].as_array().expect("rounds");
        assert_eq!((rounds.len(), &row["failure"]), (2, &Value::Null), "{row}");
        for round in rounds {
            let peak = round["peak_bytes"].as_u64().expect("the device counts");
            assert!(peak > 0 && peak <= held_to, "{peak} of {held_to}: {row}");
            let speed = round["generated_per_second"].as_f64();
            assert!(speed.is_some_and(|speed| speed > 0.0), "{row}");
        }
    }
}

#[test]
fn a_comparison_that_cannot_be_made_says_why() {
    let finished = compare("4M", &[]);
    assert!(!finished.succeeded());
    let said = "did not run within 4 MiB: a budget of 4 MiB is too small";
    assert!(finished.stderr.contains(said), "{}", finished.stderr);
}

fn serve(flags: &[&str]) -> Server {
    let model = synthetic("tiny-llama", &[]);
    let mut all = vec!["-c", "1024", "-t", "1", "-np", "1", "--temp", "0"];
    all.extend(flags);
    Server::start(&model, &all)
}

fn ask(server: &Server) -> String {
    let prompt = "abcdefgh".repeat(8);
    let body = serde_json::json!({"prompt": prompt, "n_predict": 8, "temperature": 0});
    let answer = server.complete(&body);
    answer["content"].as_str().expect("a text").to_string()
}

#[test]
fn a_server_answers() {
    let stock = serve(&["--no-repack"]);
    let expected = ask(&stock);
    drop(stock);
    assert!(!expected.is_empty());
    let file = scratch("tools").join("server.json");
    let path = file.display().to_string();
    let mut server = serve(&[
        "--pipeshard",
        "--pipeshard-vram",
        "64M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-report",
        &path,
    ]);
    assert_eq!(ask(&server), expected);
    assert_eq!(ask(&server), expected);
    // asked to stop, it writes its report
    server.stop();
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty(), "{report:?}");
    assert!(report.passes.prompt > 0 && report.passes.decode > 0);
    assert!(report.peak.total <= 64 << 20);
}

/// Ends as stock does: with exit code 0, and with its report written.
#[test]
fn a_server_whose_log_nobody_reads_any_more_goes_on() {
    let file = scratch("tools").join("closed.json");
    let path = file.display().to_string();
    let ours = [
        "--pipeshard-vram",
        "64M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-report",
        &path,
    ];
    let codes = [&["--no-repack"][..], &ours].map(|flags| {
        let mut server = serve(flags);
        let before = ask(&server);
        server.close_log();
        assert_eq!(ask(&server), before);
        server.stop().code()
    });
    assert_eq!(codes, [Some(0), Some(0)]);
    assert!(report_in(&file).engaged);
}
