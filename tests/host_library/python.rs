//! The package for Python (python/), from the checkout and as pip installs it.

use super::{
    expected, finish, host_environment, model, prefix, repository, scratch, tools, PROMPT, TOKENS,
};
use std::path::Path;
use std::process::Command;

/// Python with the library, and the package from a folder.
fn python(package: &Path) -> Command {
    let mut python = Command::new("python3");
    host_environment(&mut python);
    python
        .env("PIPESHARD_LIBRARY", prefix().join("lib/libpipeshard.so.0"))
        .env("PYTHONPATH", package)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

#[test]
fn the_tests_of_the_package_pass() {
    let package = repository().join("python");
    let mut tests = python(&package);
    tests
        .current_dir(&package)
        .args(["-m", "unittest", "discover", "-s", "tests", "-t", "."])
        .env("TEST_HEADER", prefix().join("include/pipeshard.h"))
        .env("TEST_MODEL", model())
        .env("TEST_PROMPT", PROMPT)
        .env("TEST_TOKENS", TOKENS.to_string())
        .env("TEST_EXPECTED", expected());
    let finished = finish(&mut tests);
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert!(!finished.stderr.contains("skipped"), "{}", finished.stderr);
}

#[test]
fn pip_installs_it_and_it_finds_the_library_next_to_it() {
    let can = Command::new("python3")
        .args(["-c", "import pip, setuptools"])
        .output();
    if !can.is_ok_and(|can| can.status.success()) {
        eprintln!("there is no pip with setuptools: installing was not tested");
        return;
    }
    // a copy: setuptools leaves files where it builds
    let (copy, into) = (
        scratch("host_library").join("python"),
        scratch("host_library").join("site"),
    );
    let _ = std::fs::remove_dir_all(&copy);
    let _ = std::fs::remove_dir_all(&into);
    super::done(
        Command::new("cp")
            .arg("-r")
            .arg(repository().join("python"))
            .arg(&copy),
    );
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]);
    super::done(pip.arg("--target").arg(&into).arg(&copy));
    let there = "import pipeshard; print(pipeshard.version())";
    let ask = |command: &mut Command| finish(command.current_dir(&into).args(["-c", there]));
    // from where PIPESHARD_LIBRARY says; from nowhere, which says what to do; from next to the package
    assert_eq!(ask(&mut python(&into)).stdout.trim(), "0.2");
    let missing = ask(python(&into).env("PIPESHARD_LIBRARY", "/nowhere.so"));
    assert!(
        missing.stderr.contains("make host-library install"),
        "{}",
        missing.stderr
    );
    let other = ask(python(&into).env("PIPESHARD_LIBRARY", tools().join("libpipeshard.so")));
    assert!(other.stderr.contains("another library"), "{}", other.stderr);
    std::fs::copy(
        prefix().join("lib/libpipeshard.so.0"),
        into.join("pipeshard/libpipeshard.so.0"),
    )
    .expect("a copy");
    let found = ask(python(&into).env_remove("PIPESHARD_LIBRARY"));
    assert_eq!(found.stdout.trim(), "0.2", "{}", found.stderr);
}

#[test]
fn the_plug_in_set_is_attached_in_python() {
    let package = repository().join("python");
    let mut attach = python(&package);
    attach.env_remove("PIPESHARD_LIBRARY");
    attach
        .arg(package.join("tests/attach.py"))
        .arg(tools())
        .arg(model())
        .arg("vram=1G");
    let finished = finish(&mut attach);
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert!(finished.stdout.contains("attached"), "{}", finished.stdout);
    eprint!("{}", finished.stdout);
}

/// A Python with llama-cpp-python: the one that is named, else the system's.
const WITH_LLAMA_CPP: &str = "PIPESHARD_TEST_PYTHON";

#[test]
fn llama_cpp_python_answers_as_stock_llama_cpp_does() {
    let named = std::env::var_os(WITH_LLAMA_CPP);
    let program = named.clone().unwrap_or_else(|| "python3".into());
    // without importing it: it would load libraries of its own
    let there = "import importlib.metadata; print(importlib.metadata.version('llama_cpp_python'))";
    let found = Command::new(&program).args(["-c", there]).output();
    if !found.is_ok_and(|found| found.status.success()) {
        assert!(
            named.is_none(),
            "{WITH_LLAMA_CPP} has no llama-cpp-python: docs/development.md says how to install it"
        );
        eprintln!(
            "skipped: python3 has no llama-cpp-python; docs/development.md says how to install it, and {WITH_LLAMA_CPP} names a Python \
             that has it"
        );
        return;
    }
    macro_rules! sizes {
        ($($name:ident),*) => {
            [$(format!("{}={}", stringify!($name), size_of::<pipeshard_sys::$name>())),*]
        };
    }
    let sizes = sizes![
        llama_model_params,
        llama_context_params,
        llama_batch,
        llama_sampler_chain_params,
        llama_chat_message,
        llama_token_data,
        llama_token_data_array,
        llama_logit_bias
    ];
    let package = repository().join("python");
    let mut generate = Command::new(program);
    host_environment(&mut generate);
    generate
        .env("PYTHONPATH", &package)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TEST_PROMPT", PROMPT)
        .env("TEST_TOKENS", TOKENS.to_string())
        .env("TEST_EXPECTED", expected())
        .env("TEST_SIZES", sizes.join(" "))
        .arg(package.join("tests/llama_cpp_python.py"))
        .arg(tools())
        .arg(model())
        .arg("vram=1G");
    let finished = finish(&mut generate);
    assert!(finished.succeeded(), "{}", finished.stderr);
    eprint!("{}", finished.stdout);
}
