//! llama-server, driven by a real client: the OpenAI package, through pytest. What the tests are is in `tests/server/`.

mod common;

use common::{library, repository, scratch, tools};
use std::path::Path;
use std::process::{Command, Stdio};

/// The folder with pytest, the OpenAI package and what they need, fetched if need be.
fn packages() -> String {
    let mut fetch = Command::new("python3");
    fetch.args(["scripts/fetch.py", "server-tests"]);
    let output = fetch.current_dir(repository()).output();
    let output = output.expect("python3 can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command
        .current_dir(repository())
        .stdin(Stdio::null())
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        .env("PIPESHARD_TEST_TOOLS", tools())
        .env("PIPESHARD_LIBRARY", library());
    command
}

/// The end of what a process printed on both streams, and whether it succeeded.
fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("python3 can be started");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

/// The number before `word` in pytest's last line: `3 failed, 40 passed in 50.12s`.
fn counted(text: &str, word: &str) -> u32 {
    let last = text
        .lines()
        .rfind(|line| line.contains(" in "))
        .unwrap_or("");
    let words: Vec<&str> = last
        .split([' ', ',', '='])
        .filter(|w| !w.is_empty())
        .collect();
    let at = words.iter().position(|&w| w == word);
    at.and_then(|at| words[at.checked_sub(1)?].parse().ok())
        .unwrap_or(0)
}

#[test]
fn the_summary_is_understood() {
    let text = "====\n= 3 failed, 40 passed, 1 skipped in 50.12s =\n";
    assert_eq!((counted(text, "failed"), counted(text, "passed")), (3, 40));
    assert_eq!(counted("no tests ran in 0.01s", "passed"), 0);
}

#[test]
fn a_client_hears_from_the_server_what_stock_says() {
    let mut command = python();
    command.args(["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]);
    command
        .arg("--basetemp")
        .arg(scratch("server").join("client"));
    command.arg("tests/server/client");
    let (succeeded, text) = outcome(&mut command);
    println!("{text}");
    let passed = counted(&text, "passed");
    assert!(
        succeeded && counted(&text, "skipped") == 0,
        "pytest failed, or left something out"
    );
    assert!(passed >= 40, "only {passed} tests of the server ran");
}

/// Runs upstream's own tests of llama-server twice, stock and with pipeshard.
fn upstream(selection: &[&str]) {
    let mut command = python();
    command
        .arg("scripts/upstream-server-tests.py")
        .args(selection);
    command
        .arg("--work")
        .arg(scratch("server").join(Path::new("upstream").join(selection.join("-"))));
    let (succeeded, text) = outcome(&mut command);
    println!("{text}");
    assert!(
        succeeded,
        "upstream's tests of llama-server differ with pipeshard"
    );
}

#[test]
fn upstreams_quick_tests_pass_as_in_stock() {
    upstream(&["--quick"]);
}

#[test]
#[ignore = "takes long: cargo test --release --test server -- --ignored"]
fn all_of_upstreams_tests_pass_as_in_stock() {
    upstream(&[]);
}
