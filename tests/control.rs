//! llama-server's budget is changed while it answers (`--pipeshard-control`).

mod common;

use common::server::Server;
use common::{finish, synthetic, tool, Eval, MIB};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const USUAL: [&str; 8] = ["-c", "512", "-np", "2", "-t", "1", "-ub", "128"];

fn model() -> PathBuf {
    synthetic("tiny-llama", &["--layers=12"])
}

fn question(number: usize) -> Value {
    let prompt = format!("What is the answer to question number {number}, and why?");
    json!({"prompt": prompt, "n_predict": 48, "temperature": 0, "cache_prompt": false, "ignore_eos": true})
}

fn answers(server: &Server) -> Vec<String> {
    let one = |number| {
        server.complete(&question(number))["content"]
            .as_str()
            .map(str::to_owned)
    };
    (0..4).map(|number| one(number).expect("a text")).collect()
}

fn server(model: &Path, flags: &[&str]) -> Server {
    Server::start(model, &[&USUAL[..], flags].concat())
}

#[test]
fn budgets_change_while_answers_are_written() {
    let model = model();
    let expected = answers(&server(
        &model,
        &["--pipeshard-sim", "vram=1G", "-dev", "none", "-ngl", "0"],
    ));
    let roomy = Eval::of(&model).largest_budget();
    let budget = roomy.to_string();
    let device = format!("vram={roomy},delay=100,seed=5");
    let ours = server(
        &model,
        &[
            "--pipeshard-vram",
            &budget,
            "--pipeshard-sim",
            &device,
            "--pipeshard-control",
        ],
    );
    let first = answers(&ours);
    assert_eq!(first, expected);
    let (status, limits) = ours.get("/pipeshard");
    assert!(status.contains("200"), "{status} {limits}");
    let size = |value: &Value| value.as_u64().expect("a size");
    let (least, most) = (size(&limits["minimum"]), size(&limits["budget"]));
    assert!(most == roomy && least < most / 2, "{limits}");
    assert!(size(&limits["held_total"]) > most / 2);

    let over = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut changes = 0;
            while !over.load(Ordering::SeqCst) {
                let size = [least, most, (least + most) / 2][changes % 3];
                let (status, now) = ours.post("/pipeshard/budget", &json!({ "size": size }));
                assert!(status.contains("200"), "{status} {now}");
                assert!(now["held_total"].as_u64() <= Some(size), "{now}");
                changes += 1;
            }
            changes
        });
        assert_eq!(answers(&ours), expected);
        over.store(true, Ordering::SeqCst);
        changer.join().expect("a changer")
    });
    assert!(changes > 8, "{changes}");
    let (_, props) = ours.get("/props");
    assert_eq!(props["pipeshard"]["errors"], 0);

    // a size as on the command line; one that is too small says what works, and it does
    let named = format!("{}M", most / MIB - 1);
    let (status, now) = ours.post(
        "/pipeshard/budget",
        &json!({"size": named, "deadline_ms": 5000}),
    );
    assert!(
        status.contains("200") && now["budget"] == (most / MIB - 1) * MIB,
        "{status} {now}"
    );
    let (status, refused) = ours.post("/pipeshard/budget", &json!({"size": "1M"}));
    assert!(status.contains("409"), "{status} {refused}");
    let minimum = size(&refused["error"]["minimum"]);
    assert_eq!(ours.get("/pipeshard").1["budget"], now["budget"]);
    let (status, now) = ours.post("/pipeshard/budget", &json!({ "size": "minimum" }));
    assert_eq!(now["budget"], minimum);
    assert!(status.contains("200"), "{status} {now}");
    assert_eq!(answers(&ours), expected);
}

#[test]
fn nobody_changes_what_was_not_opened() {
    let model = model();
    let closed = server(
        &model,
        &["--pipeshard-vram", "200M", "--pipeshard-sim", "vram=1G"],
    );
    assert!(closed.get("/pipeshard").0.contains("404"));
    assert!(closed
        .post("/pipeshard/budget", &json!({"size": "100M"}))
        .0
        .contains("404"));
    drop(closed);
    let keyed = [
        "--pipeshard-vram",
        "200M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-control",
        "--api-key",
        "secret",
    ];
    let keyed = server(&model, &keyed);
    assert!(keyed.get("/pipeshard").0.contains("401"));
    assert!(keyed
        .post("/pipeshard/budget", &json!({"size": "100M"}))
        .0
        .contains("401"));
    drop(keyed);
    let off = server(
        &model,
        &["--pipeshard-control", "-dev", "none", "-ngl", "0"],
    );
    let (status, says) = off.get("/pipeshard");
    assert!(status.contains("501"), "{status}");
    let message = says["error"]["message"].as_str().expect("a sentence");
    assert!(message.contains("--pipeshard-vram"), "{message}");
}

/// Budgets of a router's models, which are never more than the total.
fn shares(router: &Server, total: u64) -> (u64, u64) {
    let of = |name: &str| {
        let (status, says) = router.get(&format!("/pipeshard?model={name}"));
        assert!(status.contains("200"), "{status} {says}");
        assert_eq!(says["share"]["total"], total, "{says}");
        says
    };
    let (one, two) = (of("one"), of("two"));
    let budget = |of: &Value| of["budget"].as_u64().expect("a budget");
    let others = |of: &Value| of["share"]["others"][0]["budget"].as_u64();
    // each as the other sees it
    assert_eq!(others(&one), Some(budget(&two)), "{one} {two}");
    assert_eq!(others(&two), Some(budget(&one)), "{one} {two}");
    assert!(budget(&one) + budget(&two) <= total, "{one} {two}");
    (budget(&one), budget(&two))
}

/// A router with a budget for two models, and its reports behind it.
fn routed(report: &str) -> Vec<Value> {
    let folder = common::scratch("control").join(report.replace('%', ""));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(report).display().to_string();
    let other = synthetic("tiny-qwen3moe", &[]);
    let preset = folder.join("models.ini");
    let text = format!(
        "version = 1\n[*]\nctx-size = 512\nthreads = 1\nparallel = 1\n[one]\nmodel = {}\n[two]\nmodel = {}\n",
        model().display(),
        other.display()
    );
    std::fs::write(&preset, text).expect("a preset");
    let preset = preset.display().to_string();
    let mut router = Server::start_with(&[
        "--models-preset",
        &preset,
        "--models-max",
        "2",
        "--pipeshard-vram",
        "60M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-control",
        "--pipeshard-report",
        &path,
    ]);
    let complete = |name: &str| {
        let body = json!({"model": name, "prompt": "a", "n_predict": 4, "temperature": 0});
        let answer = router.complete(&body);
        let text = answer["content"].as_str();
        text.unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let total = 60 * MIB;
    let alone = complete("one");
    // the one that was first has half of the total left, or what it needs
    complete("two");
    let (one, two) = shares(&router, total);
    assert!(one >= total / 2 && two > 0, "{one} {two}");
    assert_eq!(complete("one"), alone);
    // by hand: no more than the others leave
    let body = json!({"model": "one", "size": total});
    let (status, now) = router.post("/pipeshard/budget", &body);
    assert!(status.contains("200"), "{status} {now}");
    shares(&router, total);
    let body = json!({"model": "one", "size": "minimum"});
    let (status, least) = router.post("/pipeshard/budget", &body);
    assert!(status.contains("200"), "{status} {least}");
    assert_eq!(complete("one"), alone);
    // the other takes what it leaves
    let least = least["budget"].as_u64().expect("a budget");
    while shares(&router, total).1 != total - least {
        complete("two");
    }
    assert!(router.stop().success());
    let files = std::fs::read_dir(&folder).expect("a folder");
    let files = files.map(|file| file.expect("a file").path());
    let reports = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("a text");
    reports
        .map(|path| serde_json::from_str(&read(path)).expect("JSON"))
        .collect()
}

#[test]
fn a_routers_children_share_its_budget_and_have_reports_of_their_own() {
    let each = routed("report-%p.json");
    let engaged = |reports: &[Value]| reports.iter().filter(|r| r["engaged"] == true).count();
    assert_eq!((each.len(), engaged(&each)), (3, 2), "{each:?}");
    let changes: u64 = each
        .iter()
        .filter_map(|r| r["budget_changes"].as_u64())
        .sum();
    assert!(changes >= 3, "{changes}");
    // the router ends last, and leaves what a child wrote
    let last = routed("report.json");
    assert_eq!((last.len(), engaged(&last)), (1, 1), "{last:?}");
}

fn held(limits: &Value, class: &str) -> u64 {
    limits["held"][class].as_u64().expect("a class")
}

#[test]
fn a_server_that_sleeps_holds_no_weights_and_goes_on() {
    let model = model();
    let budget = Eval::of(&model).largest_budget().to_string();
    let flags = [
        "--pipeshard-vram",
        &budget,
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-control",
        "--metrics",
        "--sleep-idle-seconds",
        "1",
    ];
    let server = server(&model, &flags);
    let told = |tokens: u32, prompt: &str| {
        let asked =
            json!({"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": true});
        server.complete(&asked)
    };
    let whole = told(24, "Once upon a time");
    let text = |answer: &Value| answer["content"].as_str().expect("a text").to_owned();
    // asked for: at once, and taken again at once
    let (status, asleep) = server.post("/pipeshard/sleep", &json!({}));
    assert!(status.contains("200"), "{status} {asleep}");
    assert_eq!((held(&asleep, "resident"), held(&asleep, "slots")), (0, 0));
    assert!(held(&asleep, "kv") > 0, "{asleep}");
    let (status, awake) = server.post("/pipeshard/wake", &json!({}));
    assert!(status.contains("200"), "{status} {awake}");
    assert!(held(&awake, "resident") > 0, "{awake}");
    // by itself: the conversation is there when somebody comes again
    told(8, "Once upon a time");
    while server.get("/props").1["is_sleeping"] != json!(true) {
        std::thread::yield_now();
    }
    let (_, limits) = server.get("/pipeshard");
    assert_eq!(held(&limits, "resident"), 0, "{limits}");
    assert!(held(&limits, "kv") > 0, "{limits}");
    let again = told(24, "Once upon a time");
    assert_eq!(text(&again), text(&whole));
    assert!(again["timings"]["cache_n"].as_u64() > Some(0), "{again}");
}

/// The budget, and those of the others that share the total.
fn shared(server: &Server) -> (u64, Vec<u64>) {
    let (_, says) = server.get("/pipeshard");
    let others = says["share"]["others"].as_array().expect("others");
    let others = others.iter().filter_map(|other| other["budget"].as_u64());
    (says["budget"].as_u64().expect("a budget"), others.collect())
}

#[test]
fn servers_that_share_a_budget_leave_it_to_each_other() {
    let folder = common::scratch("shared");
    let variables = [
        ("XDG_RUNTIME_DIR", folder.to_str().expect("a path")),
        ("PIPESHARD_SHARE", "desk"),
    ];
    let model = model().display().to_string();
    let device = [
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-vram",
        "60M",
        "--pipeshard-control",
    ];
    let flags = [&["-m", &model], &USUAL[..], &device].concat();
    let begin = || Server::start_in(&variables, &flags);
    let body = json!({"prompt": "a", "n_predict": 4, "temperature": 0});
    let total = 60 * MIB;
    let one = begin();
    assert_eq!(shared(&one), (total, vec![]));
    let expected = one.complete(&body)["content"].clone();
    let two = begin();
    assert_eq!(two.complete(&body)["content"], expected);
    let (of_two, others) = shared(&two);
    assert!(
        others.len() == 1 && of_two + others[0] <= total && of_two > 0,
        "{of_two} {others:?}"
    );
    assert_eq!(one.complete(&body)["content"], expected);
    // one that is killed leaves its share to the other, which takes it when it computes
    drop(two);
    while shared(&one).0 < total {
        assert_eq!(one.complete(&body)["content"], expected);
    }
    assert!(shared(&one).1.is_empty());
    // who names no total has nothing to share
    let mut tool = tool("llama-completion");
    tool.args([
        "-m",
        &model,
        "--pipeshard",
        "--pipeshard-sim",
        "vram=1G",
        "-n",
        "1",
        "-p",
        "a",
    ]);
    let refused = finish(tool.envs(variables));
    assert!(!refused.succeeded());
    assert!(
        refused.said().contains("PIPESHARD_SHARE"),
        "{}",
        refused.said()
    );
}
