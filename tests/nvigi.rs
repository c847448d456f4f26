//! The NVIGI-shaped plug-in as a host uses it: one in C++ that declares NVIGI's structs for itself, on the simulated GPU, with the
//! tokens of stock llama.cpp. tests/nvigi/host.cpp has what each test does.

mod common;

use common::{built, done, finish, finish_text, repository, scratch, synthetic, tool};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const PROMPT: &str = "What is the answer to question number 1, and why?";
const TOKENS: u32 = 40;

/// All of the model fits, and a part of it, in MiB.
const BUDGET: u32 = 120;
const SMALL: u32 = 32;

/// Models of the test, the second without a card.
const GUID: &str = "{01234567-89AB-CDEF-0123-456789ABCDEF}";
const OTHER: &str = "{76543210-89AB-CDEF-0123-456789ABCDEF}";

fn folder() -> PathBuf {
    scratch("nvigi")
}

/// The plug-in, under its name.
fn plugin() -> PathBuf {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let built = built("pipeshard-nvigi", "host-library", &[]).join("libpipeshard_nvigi.so");
    let library = folder().join("nvigi.plugin.gpt.ggml.pipeshard.so");
    // not into a file that another process has open
    let unfinished = library.with_extension("part");
    std::fs::copy(&built, &unfinished).expect("a copy");
    std::fs::rename(&unfinished, &library).expect("a name");
    library
}

fn host() -> PathBuf {
    static HOST: OnceLock<PathBuf> = OnceLock::new();
    let compile = || {
        let program = folder().join("host");
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let mut cxx = Command::new(compiler);
        cxx.args([
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-g",
            "-pthread",
        ]);
        for crate_ in ["pipeshard-capi", "pipeshard-nvigi"] {
            let include = repository().join("crates").join(crate_).join("include");
            cxx.arg("-I").arg(include);
        }
        cxx.arg(repository().join("tests/nvigi/host.cpp"));
        done(cxx.arg("-o").arg(&program).arg("-ldl"));
        program
    };
    HOST.get_or_init(compile).clone()
}

fn model() -> PathBuf {
    synthetic("tiny-llama", &[])
}

/// Folders as hosts of NVIGI keep their models.
fn models() -> PathBuf {
    static MODELS: OnceLock<PathBuf> = OnceLock::new();
    let lay_out = || {
        let root = folder().join("models");
        let _ = std::fs::remove_dir_all(&root);
        for guid in [GUID, OTHER] {
            let folder = root.join("nvigi.plugin.gpt.ggml").join(guid).join("files");
            std::fs::create_dir_all(&folder).expect("a folder");
            std::os::unix::fs::symlink(model(), folder.join("tiny.gguf")).expect("a link");
            std::fs::write(folder.join("tiny-mmproj.gguf"), "").expect("a file");
        }
        // a template that adds nothing: the tokens are those of the text
        let card = serde_json::json!({
            "name": "tiny",
            "guid": GUID,
            "vram": 100_000,
            "chat_template": ["{% for message in messages %}", "{{ message['content'] }}", "{% endfor %}"],
        });
        let folder = root.join("nvigi.plugin.gpt.ggml").join(GUID);
        let card_file = folder.join("nvigi.model.config.json");
        std::fs::write(card_file, card.to_string()).expect("a card");
        root
    };
    MODELS.get_or_init(lay_out).clone()
}

/// A folder like it, with a model that sees.
fn vision() -> PathBuf {
    static MODELS: OnceLock<PathBuf> = OnceLock::new();
    let lay_out = || {
        let root = folder().join("vision");
        let _ = std::fs::remove_dir_all(&root);
        let folder = root.join("nvigi.plugin.gpt.ggml").join(GUID);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, shape) in [
            ("tiny.gguf", "tiny-qwen2vl"),
            ("tiny-mmproj.gguf", "tiny-qwen2vl-mmproj"),
        ] {
            let file = synthetic(shape, &[]);
            std::os::unix::fs::symlink(file, folder.join(name)).expect("a link");
        }
        let card = serde_json::json!({
            "name": "tiny, with an encoder",
            "mmproj_weights": "mmproj.gguf",
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        });
        std::fs::write(folder.join("nvigi.model.config.json"), card.to_string()).expect("a card");
        root
    };
    MODELS.get_or_init(lay_out).clone()
}

/// What stock llama.cpp says behind the prompt, on the CPU, always with the likeliest token.
fn stock(tokens: u32) -> String {
    let said = finish_text(|| {
        let mut command = tool("llama-completion");
        command
            .env_remove("PIPESHARD_LIBRARY")
            .arg("-m")
            .arg(model());
        command.args(["-p", PROMPT, "-n", &tokens.to_string(), "--temp", "0"]);
        command.args(["-c", "512", "-t", "1", "-no-cnv", "--no-repack"]);
        command.args(["-dev", "none", "--no-display-prompt"]);
        command
    });
    assert!(said.succeeded(), "{}", said.stderr);
    let text = said.stdout.strip_suffix("\n\n").unwrap_or(&said.stdout);
    assert!(text.len() > tokens as usize / 2, "{text:?}");
    text.to_owned()
}

fn expected() -> (String, String) {
    static TEXTS: OnceLock<(String, String)> = OnceLock::new();
    TEXTS
        .get_or_init(|| (stock(TOKENS), stock(TOKENS / 2)))
        .clone()
}

/// Runs the host, which prints nothing, and neither does the plug-in.
fn passes(test: &str) {
    let (expected, half) = expected();
    let mut command = Command::new(host());
    for (variable, _) in std::env::vars() {
        let prefixes = ["LLAMA_", "PIPESHARD_", "GGML_"];
        if prefixes.iter().any(|p| variable.starts_with(p)) {
            command.env_remove(variable);
        }
    }
    command
        .arg(format!("test={test}"))
        .arg(format!("library={}", plugin().display()))
        .arg(format!("models={}", models().display()))
        .arg(format!("file={}", model().display()))
        .arg(format!("vision={}", vision().display()))
        .arg(format!("guid={GUID}"))
        .arg(format!("other={OTHER}"))
        .arg(format!("budget={BUDGET}"))
        .arg(format!("small={SMALL}"))
        .arg(format!("tokens={TOKENS}"))
        .arg(format!("prompt={PROMPT}"))
        .arg(format!("expected={expected}"))
        .arg(format!("half={half}"));
    let finished = finish(&mut command);
    assert!(
        finished.succeeded() && finished.stdout.is_empty() && finished.stderr.is_empty(),
        "{:?}: {}\n{}",
        finished.status,
        finished.stdout,
        finished.stderr
    );
}

#[test]
fn a_host_loads_asks_creates_evaluates_and_unloads() {
    passes("all");
}

#[test]
fn nothing_behind_an_older_version_is_read() {
    passes("versions");
}

#[test]
fn chains_are_read_to_their_end_and_others_structs_are_overlooked() {
    passes("chains");
}

#[test]
fn the_budget_is_kept_and_changed() {
    passes("budget");
}

#[test]
fn what_cannot_be_done_is_refused() {
    passes("refusals");
}

#[test]
fn files_are_read_by_the_host() {
    passes("files");
}

#[test]
fn parameters_come_as_json() {
    passes("requests");
}

#[test]
fn memory_comes_from_the_host() {
    passes("memory");
}

#[test]
fn images_are_seen() {
    passes("images");
}

#[test]
fn one_function_is_visible() {
    let nm = |flag: &str| {
        let mut nm = Command::new("nm");
        let said = finish(nm.args(["-D", flag]).arg(plugin()));
        assert!(said.succeeded(), "{}", said.stderr);
        said.stdout
    };
    let visible = nm("--defined-only");
    let names: Vec<&str> = visible
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert_eq!(names, ["nvigiPluginGetFunction"]);
    // nor is anything of llama.cpp's taken from elsewhere
    let needed = nm("--undefined-only");
    for other in ["ggml_", "llama_", "pipeshard_", "_ZSt"] {
        assert!(!needed.contains(other), "{other}");
    }
}
