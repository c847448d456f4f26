//! `pipeshard top` looks at llama-servers that run.

mod common;

use common::server::Server;
use common::{synthetic, tool, LAB, MIB};
use serde_json::{json, Value};
use std::process::Output;

fn server(flags: &[&str]) -> Server {
    let model = synthetic("tiny-llama", &["--layers=12"]);
    let usual = ["-c", "512", "-np", "1", "-t", "1", "-ub", "128"];
    let device = ["--pipeshard-vram", "200M", "--pipeshard-sim", "vram=1G"];
    Server::start(&model, &[&usual[..], &device, flags].concat())
}

fn top(flags: &[&str]) -> Output {
    let mut tool = tool(LAB);
    let output = tool.arg("top").args(flags).output();
    output.expect("the tool starts")
}

/// What `--json` prints of one server.
fn look(server: &Server) -> Value {
    let output = top(&["--json", "--url", &server.url()]);
    assert!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(all["servers"].as_array().map(Vec::len), Some(1), "{all}");
    all["servers"][0].clone()
}

#[test]
fn a_look_shows_the_budget_that_there_is_and_what_was_done_since() {
    let server = server(&["--pipeshard-control", "--metrics"]);
    let answer = server.complete(&json!({"prompt": "a", "n_predict": 8, "ignore_eos": true}));
    assert!(answer["content"].is_string(), "{answer}");
    let before = look(&server);
    assert_eq!(before["state"], "awake", "{before}");
    assert_eq!(before["url"], server.url());
    assert_eq!(before["remarks"], json!([]));
    assert_eq!(before["limits"]["budget"], 200 * MIB);
    assert_eq!(before["limits"], server.get("/pipeshard").1);
    assert_eq!(before["counters"]["answered_tokens"], 8.0);
    let (status, now) = server.post("/pipeshard/budget", &json!({"size": "minimum"}));
    assert!(status.contains("200"), "{status} {now}");
    server.complete(&json!({"prompt": "b", "n_predict": 4, "ignore_eos": true}));
    let after = look(&server);
    assert_eq!(after["limits"]["budget"], before["limits"]["minimum"]);
    assert_eq!(after["counters"]["budget_changes"], 1);
    assert_eq!(after["counters"]["answered_tokens"], 12.0);
    for rises in ["decode_passes", "streamed_bytes"] {
        let count = |look: &Value| look["counters"][rises].as_u64();
        assert!(count(&after) > count(&before), "{rises}: {before} {after}");
    }
    for (path, state) in [("/pipeshard/sleep", "asleep"), ("/pipeshard/wake", "awake")] {
        let (status, now) = server.post(path, &json!({"deadline_ms": 10_000}));
        assert!(status.contains("200"), "{path}: {status} {now}");
        assert_eq!(look(&server)["state"], state, "after {path}");
    }
}

#[test]
fn a_server_without_the_flags_is_told_which_are_missing() {
    let server = server(&[]);
    let output = top(&["--once", "--url", &server.url()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("awake") && text.contains("SIM0"), "{text}");
    for flag in ["add --pipeshard-control", "add --metrics"] {
        assert!(text.contains(flag), "{flag}: {text}");
    }
    drop(server);
    let gone = top(&["--once", "--url", "http://127.0.0.1:1"]);
    assert!(!gone.status.success());
    let text = String::from_utf8_lossy(&gone.stdout);
    assert!(
        text.contains("unreachable") && text.contains("nothing listens"),
        "{text}"
    );
    // the test's output is a pipe
    let screenless = top(&[]);
    assert!(!screenless.status.success());
    let why = String::from_utf8_lossy(&screenless.stderr);
    assert!(why.contains("pipeshard top --once"), "{why}");
}
