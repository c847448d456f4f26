//! `pipeshard top` looks at llama-servers that run.

mod common;

use common::server::Server;
use common::{synthetic, tool, LAB, MIB};
use serde_json::{json, Value};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
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

/// Asks a process through its socket, in words that may be none; its answer, or nothing.
fn ask(socket: &Path, words: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    // who does not understand does not read to the end
    let _ = stream.write_all(format!("{words}\n").as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn processes_of_this_user_are_found_by_themselves() {
    // names of sockets are short
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_owned();
    let runtime = place.display().to_string();
    let start = |more: &[(&str, &str)]| {
        let model = synthetic("tiny-llama", &["--layers=12"]);
        let model = model.display().to_string();
        let usual = [
            "-m", &model, "-c", "512", "-np", "1", "-t", "1", "-ub", "128",
        ];
        let device = ["--pipeshard-vram", "200M", "--pipeshard-sim", "vram=1G"];
        let variables = [&[("XDG_RUNTIME_DIR", runtime.as_str())], more].concat();
        Server::start_in(&variables, &[&usual[..], &device].concat())
    };
    let seen = || {
        let output = tool(LAB)
            .env("XDG_RUNTIME_DIR", &place)
            .args(["top", "--json"])
            .output()
            .expect("the tool starts");
        let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        all["servers"].as_array().cloned().unwrap_or_default()
    };
    let (first, second) = (start(&[]), start(&[]));
    let hidden = start(&[("PIPESHARD_SOCKET", "off")]);
    first.complete(&json!({"prompt": "a", "n_predict": 8, "ignore_eos": true}));
    let both = seen();
    assert_eq!(both.len(), 2, "{both:?}");
    for process in &both {
        let program = process["program"].as_str().unwrap_or_default();
        assert!(
            program.starts_with("llama-server ") && program.ends_with(".gguf"),
            "{process}"
        );
        assert_eq!(process["limits"]["budget"], 200 * MIB, "{process}");
        assert_eq!(process["remarks"], json!([]), "{process}");
    }
    let passes = |process: &Value| process["counters"]["decode_passes"].as_u64();
    assert!(
        both.iter().any(|process| passes(process) >= Some(7)),
        "{both:?}"
    );
    let folder = place.join("pipeshard");
    let mode = std::fs::metadata(&folder)
        .expect("a folder")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    // each is asked by itself
    let name = both[0]["url"].as_str().unwrap_or_default();
    let number = name.strip_prefix("process ").expect("a number");
    let socket = folder.join(format!("{number}.process"));
    for rubbish in ["", "x", "{\"path\": 1}", &"9".repeat(3 << 20)] {
        assert_eq!(ask(&socket, rubbish), "");
    }
    assert!(ask(&socket, r#"{"path": "/nothing"}"#).contains("404"));
    let answer = ask(
        &socket,
        r#"{"path": "/pipeshard/budget", "body": "{\"size\": 1}"}"#,
    );
    assert!(
        answer.contains("409") && answer.contains("minimum"),
        "{answer}"
    );
    let answer = ask(
        &socket,
        r#"{"path": "/pipeshard/budget", "body": "{\"size\": \"minimum\"}"}"#,
    );
    assert!(answer.starts_with("{\"status\":200"), "{answer}");
    let now = seen();
    assert_eq!(now[0]["limits"]["budget"], both[0]["limits"]["minimum"]);
    assert_eq!(now[1]["limits"]["budget"], 200 * MIB);
    // it is killed, and has no time to remove anything
    drop(first);
    assert_eq!(seen().len(), 1);
    drop((second, hidden));
    // none is left: the usual address is asked
    assert!(seen()[0]["url"]
        .as_str()
        .is_some_and(|url| url.starts_with("http")));
    let left = std::fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(left, 0);
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
