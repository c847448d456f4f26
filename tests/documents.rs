//! The commands that README.md and docs/ show work: each runs on the simulated GPU, with small models of random weights under the
//! names that the documents use. What does not run is in [`EXCLUDED`], with the reason.

mod common;

use common::media::bitmap;
use common::server::Server;
use common::{finish, repository, scratch, synthetic, tool};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Commands that do not run here: how they begin, and why.
const EXCLUDED: &[(&str, &str)] = &[
    (
        "make ",
        "builds, tests or fetches; .ci/run runs setup, check, test and demo",
    ),
    ("PIPESHARD_CMAKE_ARGS=", "builds llama.cpp with CUDA"),
    (
        "pipeshard tune ",
        "measures a real GPU; tests/plan_cache.rs",
    ),
    (
        "pipeshard profile",
        "measures a real GPU, or shows what was measured",
    ),
    ("pipeshard bench ", "takes minutes; tests/bench.rs"),
    ("pipeshard top ", "watches servers; tests/top.rs"),
    (
        "CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install ",
        "installs a package; tests/host_library/python.rs",
    ),
    (
        "llama-server --models-preset ",
        "its models are the user's; tests/control.rs has a router",
    ),
    (
        "pipeshard-lab grids ",
        "needs a real GPU and minutes; tests/bench.rs",
    ),
    ("pipeshard-lab synth --shape llama3-8b ", "writes gigabytes"),
    (
        "pipeshard-lab synth --shape qwen3-235b-a22b ",
        "writes gigabytes",
    ),
    ("curl ", "asks a server; tests/control.rs asks the same"),
    ("export PYTHONPATH=", "fetches packages from the network"),
    (
        "sudo make install",
        "writes into the system; tests/host_library.rs installs into a folder",
    ),
    (
        "cc -std=c99 chat.c",
        "tests/host_library.rs compiles the examples",
    ),
    (
        "pip install ./python",
        "tests/host_library.rs installs into a folder",
    ),
    ("export PIPESHARD_LIBRARY=", "tests/host_library.rs sets it"),
    ("PIPESHARD_TEST_TOOLS=", "tests/server.rs runs these"),
    (
        "PIPESHARD_LIBRARY=",
        "is a pattern: the arguments are left out",
    ),
];

/// The programs that users run.
const PROGRAMS: &[&str] = &[
    "llama-server",
    "llama-completion",
    "llama-cli",
    "llama-mtmd-cli",
    "llama-bench",
    "pipeshard",
    "pipeshard-lab",
];

/// The simulated GPU of commands that do not name one. It takes host memory only for what is used.
const SIM: &str = "vram=16G";

/// The lines of the fenced shell blocks of a page, continued lines joined, comments removed.
fn fenced(text: &str) -> Vec<String> {
    let (mut commands, mut shell, mut open) = (Vec::new(), false, false);
    let mut pending = String::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            open = !open;
            shell = open && ["sh", "bash", "shell", "console"].contains(&language.trim());
            continue;
        }
        if !shell {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(begin) => pending.push_str(begin),
            None => {
                let command = without_comment(&(std::mem::take(&mut pending) + line));
                let command = command.trim().trim_start_matches("$ ").to_owned();
                commands.extend((!command.is_empty()).then_some(command));
            }
        }
    }
    commands
}

/// Commands within lines that name a model: `pipeshard bench model.gguf --vram 8G`.
fn inline(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let spans = spans.filter(|span| !span.contains('\n') && span.contains("model.gguf"));
    let command = |span: &&str| PROGRAMS.contains(&span.split(' ').next().unwrap_or(""));
    spans.filter(command).map(str::to_owned).collect()
}

fn without_comment(line: &str) -> String {
    let mut quoted = false;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        quoted ^= c == '"';
        if c == '#' && !quoted && before.is_whitespace() {
            return line[..at].to_owned();
        }
        before = c;
    }
    line.to_owned()
}

/// The words of a command, as a shell divides them.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(end), _) if c == end => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quotation without an end: {command}");
    words.extend(word);
    words
}

/// The file of that name in the documents, as a path of one that is there, or that a command will write.
fn file(folder: &Path, name: &str, images: bool) -> Option<PathBuf> {
    let made = match (name, images) {
        ("model.gguf", false) => synthetic("tiny-llama", &[]),
        ("model.gguf", true) => synthetic("tiny-qwen2vl", &[]),
        ("mmproj.gguf", _) => synthetic("tiny-qwen2vl-mmproj", &[]),
        ("photo.jpg", _) => {
            let path = folder.join("photo.bmp");
            std::fs::write(&path, bitmap(224, 224)).expect("a picture");
            path
        }
        _ if name.ends_with(".json") && !name.contains('/') => folder.join(name),
        _ => return None,
    };
    Some(made)
}

/// Runs a command of a page, and panics where it does not do what the page says.
fn run(page: &str, folder: &Path, command: &str) {
    let mut words = words(command);
    let program = words.remove(0);
    let program = program.trim_start_matches("target/release/");
    assert!(
        PROGRAMS.contains(&program),
        "{page}: `{command}` neither runs nor is excluded: see tests/documents.rs"
    );
    let images = words.iter().any(|word| word == "mmproj.gguf");
    for word in &mut words {
        if let Some(path) = file(folder, word, images) {
            *word = path.display().to_string();
        }
    }
    // more threads than processors wait for each other
    if let Some(at) = words.iter().position(|w| w == "--threads" || w == "-t") {
        words[at + 1] = "1".to_owned();
    }
    let verifies = program == "pipeshard" && words[0] == "verify";
    let asked = verifies || words.iter().any(|w| w.starts_with("--pipeshard"));
    let asked = asked && !words.iter().any(|w| w == "--list-devices");
    if program == "llama-server" {
        return serve(page, folder, command, words);
    }
    let mut tool = tool(program);
    tool.current_dir(folder).stdin(Stdio::null()).args(&words);
    at_home(&mut tool, folder);
    match program {
        "llama-completion" | "llama-cli" => tool.args(["-n", "4", "-no-cnv"]),
        "llama-mtmd-cli" => tool.args(["-n", "4"]),
        "pipeshard" if verifies => tool.args(["--sim", SIM]),
        _ => &mut tool,
    };
    let finished = finish(&mut tool);
    assert!(
        finished.succeeded(),
        "{page}: `{command}` failed:\n{}",
        finished.stderr
    );
    assert_eq!(
        finished.said().contains("pipeshard: engaged on SIM0"),
        asked,
        "{page}: `{command}`:\n{}",
        finished.stderr
    );
}

/// With the simulated GPU, and a cache of the test's own.
fn at_home(command: &mut Command, folder: &Path) {
    command.env("LLAMA_ARG_PIPESHARD_SIM", SIM);
    command.env("XDG_CACHE_HOME", folder);
}

/// Starts a server, asks it for a few tokens, and reads its report.
fn serve(page: &str, folder: &Path, command: &str, mut words: Vec<String>) {
    let at = words.iter().position(|w| w == "-m").expect("a model");
    let model = PathBuf::from(words.drain(at..at + 2).nth(1).expect("its name"));
    let report = folder.join("served.json");
    let _ = std::fs::remove_file(&report);
    words.extend([
        "--pipeshard-report".to_owned(),
        report.display().to_string(),
    ]);
    words.extend(["--pipeshard-sim".to_owned(), SIM.to_owned()]);
    let flags: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut server = Server::start(&model, &flags);
    let answer = server.complete(&serde_json::json!({"prompt": "abcd", "n_predict": 4}));
    assert!(
        answer["content"].is_string(),
        "{page}: `{command}`: {answer}"
    );
    assert!(server.stop().success(), "{page}: `{command}`");
    let text = std::fs::read_to_string(&report).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["engaged"], true, "{page}: `{command}`: {report}");
}

fn pages() -> Vec<PathBuf> {
    let docs = repository().join("docs");
    let docs = std::fs::read_dir(docs).expect("docs").flatten();
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.path()).collect();
    pages.retain(|path| path.extension().is_some_and(|e| e == "md"));
    pages.push(repository().join("README.md"));
    pages.sort();
    pages
}

#[test]
fn commands_of_the_documents_run() {
    let (mut ran, mut failed) = (Vec::new(), Vec::new());
    let mut excluded = vec![0; EXCLUDED.len()];
    for path in pages() {
        let page = path.file_name().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&path).expect("a page");
        let folder = scratch("documents").join(&*page);
        std::fs::create_dir_all(&folder).expect("a folder");
        for command in [fenced(&text), inline(&text)].concat() {
            let begins = |(begin, _): &(&str, &str)| format!("{command} ").starts_with(begin);
            match EXCLUDED.iter().position(begins) {
                Some(reason) => excluded[reason] += 1,
                None => {
                    eprintln!("{page}: {command}");
                    let name = format!("{page}: {command}");
                    match std::panic::catch_unwind(|| run(&page, &folder, &command)) {
                        Ok(()) => ran.push(name),
                        // all of them are tried; the panic has printed what is wrong
                        Err(_) => failed.push(name),
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "these do not work: {failed:#?}");
    for ((begin, _), times) in EXCLUDED.iter().zip(excluded) {
        assert!(
            times > 0,
            "no document has a command that begins with `{begin}`"
        );
    }
    for page in ["README.md", "server.md", "plan.md", "vision.md", "trace.md"] {
        assert!(ran.iter().any(|r| r.starts_with(page)), "{page}: {ran:#?}");
    }
}

#[test]
fn commands_are_read_as_a_shell_does() {
    let page = "```sh\na -p \"x # y\" \\\n  -n 4   # why\n# all\n```\n`pipeshard plan model.gguf`\n```\nb\n```\n";
    assert_eq!(fenced(page), ["a -p \"x # y\"   -n 4"]);
    assert_eq!(words(&fenced(page)[0]), ["a", "-p", "x # y", "-n", "4"]);
    assert_eq!(
        inline("see `pipeshard plan model.gguf` and `b model.gguf`"),
        ["pipeshard plan model.gguf"]
    );
}
