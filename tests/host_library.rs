//! libpipeshard.so.0 as programs use it: small hosts in C, on the simulated GPU, with the tokens of stock llama.cpp.

mod common;
#[path = "host_library/file.rs"]
mod file;
#[path = "host_library/installed.rs"]
mod installed;
#[path = "host_library/python.rs"]
mod python;
#[path = "host_library/split.rs"]
mod split;

use common::media::bitmap;
use common::server::Server;
use common::{
    built, done, finish, finish_text, repository, scratch, smollm2, synthetic, tool, tools,
    Finished,
};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

const PROMPT: &str = "What is the answer to question number 1, and why?";
const OTHER_PROMPT: &str = "Count from one to nine, and do not leave out a number.";

/// Tokens of an answer.
const TOKENS: u32 = 40;

/// All of the model fits, and a part of it, in MiB.
const BUDGET: u32 = 120;
const SMALL: u32 = 32;

/// The library as it is installed, in a folder of this test: header, library, and what tells compilers where they are.
fn prefix() -> PathBuf {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(install).clone()
}

fn install() -> PathBuf {
    let library = built("pipeshard-capi", "host-library", &[]);
    let target = library.parent().expect("a folder");
    let prefix = scratch("host_library").join("prefix");
    let mut install = Command::new(repository().join("scripts/install-host-library.sh"));
    install
        .env("CARGO_TARGET_DIR", target)
        .env("PREFIX", &prefix);
    done(install.env_remove("DESTDIR"));
    prefix
}

fn sources() -> PathBuf {
    repository().join("tests/host_library")
}

fn compiler() -> OsString {
    std::env::var_os("CC").unwrap_or_else(|| "cc".into())
}

/// A C compiler that takes everything seriously, and finds the header.
fn cc() -> Command {
    let mut cc = Command::new(compiler());
    cc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread"]);
    cc.arg("-I").arg(prefix().join("include"));
    cc
}

/// Where libraries are, for linking and for running.
fn linked(cc: &mut Command, folder: &Path) {
    cc.arg("-L").arg(folder);
    cc.arg(format!("-Wl,-rpath,{}", folder.display()));
}

/// A host.
fn compiled(name: &str, flags: &[&str]) -> PathBuf {
    compiled_as(name, name, flags)
}

/// The same, where one source becomes several programs.
fn compiled_as(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let path = scratch("host_library").join(name);
    let mut cc = cc();
    cc.arg("-std=gnu11")
        .arg(sources().join(format!("{source}.c")));
    cc.arg("-o").arg(&path).args(flags);
    if !flags.contains(&"-DBY_NAME") {
        // by its name: the folder of the tools has a libpipeshard.so as well, the plug-in
        let lib = prefix().join("lib");
        cc.arg(lib.join("libpipeshard.so.0"));
        linked(&mut cc, &lib);
    }
    done(cc.arg("-ldl"));
    path
}

fn model() -> PathBuf {
    synthetic("tiny-llama", &[])
}

/// What stock llama.cpp says behind a prompt, on the CPU, always with the likeliest token.
fn stock(model: &Path, prompt: &str, tokens: u32) -> String {
    let said = finish_text(|| {
        let mut command = tool("llama-completion");
        command.env_remove("PIPESHARD_LIBRARY").arg("-m").arg(model);
        command.args(["-p", prompt, "-n", &tokens.to_string(), "--temp", "0"]);
        command.args(["-c", "512", "-t", "1", "-no-cnv", "--no-repack"]);
        command.args(["-dev", "none", "--no-display-prompt"]);
        command
    });
    assert!(said.succeeded(), "{}", said.stderr);
    let text = said.stdout.strip_suffix("\n\n").unwrap_or(&said.stdout);
    assert!(text.len() > tokens as usize / 2, "{text:?}");
    text.to_owned()
}

fn expected() -> String {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| stock(&model(), PROMPT, TOKENS)).clone()
}

/// Without what is said about pipeshard, llama.cpp or ggml.
fn host_environment(command: &mut Command) {
    for (variable, _) in std::env::vars() {
        if ["LLAMA_", "PIPESHARD_", "GGML_"]
            .iter()
            .any(|p| variable.starts_with(p))
        {
            command.env_remove(variable);
        }
    }
}

/// A host with what all of them are told: model, device, budgets, prompt and the answer that they have to get.
fn host(program: &Path) -> Command {
    host_under(&[], program)
}

/// The same under another program.
fn host_under(above: &[&str], program: &Path) -> Command {
    let mut words = above.iter().map(OsString::from).chain([program.into()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    host_environment(&mut command);
    command
        .args(words)
        .arg(format!("model={}", model().display()))
        .arg("simulated=vram=1G")
        .arg(format!("budget={BUDGET}"))
        .arg(format!("small={SMALL}"))
        .arg(format!("tokens={TOKENS}"))
        .arg(format!("prompt={PROMPT}"))
        .arg(format!("expected={}", expected()))
        .arg(format!(
            "library={}",
            prefix().join("lib/libpipeshard.so.0").display()
        ));
    command
}

/// Runs it: it says nothing but what a test program says of itself.
fn succeeds(command: &mut Command) -> Finished {
    let finished = finish(command);
    assert!(
        finished.succeeded() && finished.stdout.is_empty(),
        "{:?}: {}\n{}",
        finished.status,
        finished.stdout,
        finished.stderr
    );
    finished
}

fn silent(command: &mut Command) {
    let finished = succeeds(command);
    assert_eq!(finished.stderr, "");
}

#[test]
fn a_host_opens_generates_changes_the_budget_and_closes() {
    silent(&mut host(&compiled("generate", &[])));
}

#[test]
fn a_hundred_times_leave_nothing() {
    silent(&mut host(&compiled("cycles", &[])));
}

#[test]
fn closing_waits_for_what_was_just_submitted() {
    silent(&mut host(&compiled("closes", &[])));
}

#[test]
fn a_library_that_is_closed_is_not_mapped_any_more() {
    silent(&mut host(&compiled("unload", &["-DBY_NAME"])));
}

#[test]
fn two_llama_cpps_live_in_one_process() {
    let source = tools().parent().map(|target| target.join("native/src"));
    let source = source.expect("a folder").display().to_string();
    let (llama, ggml) = (
        format!("-I{source}/include"),
        format!("-I{source}/ggml/include"),
    );
    let folder = tools().display().to_string();
    let (at, runs) = (format!("-L{folder}"), format!("-Wl,-rpath,{folder}"));
    let with_llama = [
        &*llama,
        &ggml,
        &at,
        &runs,
        "-lllama",
        "-lggml",
        "-lggml-base",
    ];
    let by_name = compiled_as(
        "two",
        "two-by-name",
        &[&["-DBY_NAME"], &with_llama[..]].concat(),
    );
    let linked = compiled_as("two", "two-linked", &with_llama);
    for (program, load) in [
        (&by_name, "local"),
        (&by_name, "global"),
        (&linked, "linked"),
    ] {
        let mut command = host(program);
        command
            .arg(format!("load={load}"))
            .arg(format!("backends={folder}"));
        silent(&mut command);
    }
}

#[test]
fn nothing_is_written_and_nothing_of_the_process_is_changed() {
    let program = compiled("quiet", &["-lm"]);
    silent(&mut host(&program));
    // numbers of files that the host closed, and that something else has
    let files = scratch("host_library").join("descriptor-");
    let mut command = host(&program);
    silent(command.arg(format!("files={}", files.display())));
}

#[test]
fn the_environment_is_not_read() {
    let shim = scratch("host_library").join("watch_env.so");
    let mut cc = cc();
    cc.args(["-std=gnu11", "-shared", "-fPIC", "-o"]).arg(&shim);
    done(cc.arg(sources().join("watch_env.c")).arg("-ldl"));
    let watched = scratch("host_library").join("variables");
    let _ = std::fs::remove_file(&watched);
    let mut command = host(&compiled("generate", &[]));
    command.env("LD_PRELOAD", &shim).env("WATCHED", &watched);
    silent(&mut command);
    let asked = std::fs::read_to_string(&watched).unwrap_or_default();
    assert_eq!(asked, "");
    // the shim works: this program asks for what it is told to ask for
    let mut command = host(&compiled("asks", &["-DBY_NAME"]));
    let asking = scratch("host_library").join("libpipeshard-asks.so");
    let mut cc = self::cc();
    cc.args(["-std=gnu11", "-shared", "-fPIC", "-DASKING", "-o"])
        .arg(&asking);
    done(cc.arg(sources().join("asks.c")));
    command.env("LD_PRELOAD", &shim).env("WATCHED", &watched);
    silent(command.arg(format!("asking={}", asking.display())));
    let asked = std::fs::read_to_string(&watched).unwrap_or_default();
    assert_eq!(asked, "getenv HOME\n");
}

#[test]
fn a_forked_child_is_told_and_ends_silently() {
    silent(&mut host(&compiled("forked", &[])));
}

#[test]
fn bad_input_is_refused_and_does_no_harm() {
    let whole = std::fs::read(model()).expect("a model");
    let cut = scratch("host_library").join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("a file");
    let mut command = host(&compiled("bad_input", &[]));
    silent(command.arg(format!("cut={}", cut.display())));
}

#[test]
fn callbacks_call_back_and_generations_are_ended() {
    silent(&mut host(&compiled("callbacks", &[])));
}

#[test]
fn a_thousand_budgets_change_no_token() {
    let other = stock(&model(), OTHER_PROMPT, TOKENS);
    let mut command = host(&compiled("budgets", &[]));
    command
        .arg(format!("prompt2={OTHER_PROMPT}"))
        .arg(format!("expected2={other}"));
    let finished = succeeds(&mut command);
    eprint!("{}", finished.stderr);
}

#[test]
fn caches_make_way_for_a_budget_and_come_back() {
    let other = stock(&model(), OTHER_PROMPT, TOKENS);
    let mut command = host(&compiled("ladder", &[]));
    command
        .arg(format!("prompt2={OTHER_PROMPT}"))
        .arg(format!("expected2={other}"));
    let finished = succeeds(&mut command);
    eprint!("{}", finished.stderr);
}

#[test]
fn a_host_that_lets_visitors_in_is_seen() {
    // names of sockets are short
    let place = tempfile::tempdir().expect("a folder");
    let mut command = host(&compiled("visited", &[]));
    silent(command.env("XDG_RUNTIME_DIR", place.path()));
}

#[test]
fn a_saved_conversation_goes_on_elsewhere() {
    let half = stock(&model(), PROMPT, TOKENS / 2);
    assert!(expected().starts_with(&half));
    let program = compiled("saved", &[]);
    let file = scratch("host_library")
        .join("conversation")
        .display()
        .to_string();
    for how in ["write", "read"] {
        let mut command = host(&program);
        command
            .arg(format!("half={half}"))
            .arg(format!("{how}={file}"));
        silent(&mut command);
    }
}

#[test]
fn predictions_are_what_is_found() {
    silent(&mut host(&compiled("predicts", &[])));
}

#[test]
fn threads_do_anything_at_once() {
    let finished = succeeds(&mut host(&compiled("stress", &[])));
    eprint!("{}", finished.stderr);
}

#[test]
fn sleep_gives_everything_back_and_loses_nothing() {
    silent(&mut host(&compiled("sleeps", &[])));
}

#[test]
fn a_device_that_fails_is_survived() {
    let finished = succeeds(&mut host(&compiled("faults", &[])));
    eprint!("{}", finished.stderr);
}

#[test]
fn memory_of_the_hosts_is_counted_and_may_be_refused() {
    let mut command = host(&compiled("memory", &[]));
    command
        .arg(format!("chat={}", synthetic("tiny-qwen2vl", &[]).display()))
        .arg(format!(
            "mmproj={}",
            synthetic("tiny-qwen2vl-mmproj", &[]).display()
        ));
    silent(&mut command);
}

#[test]
fn models_come_from_the_hosts_memory() {
    let folder = scratch("host_library").join("pieces");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let count = 3;
    split::split(&model(), &folder, count);
    let mut command = host(&compiled("files", &[]));
    command
        .arg(format!("chat={}", synthetic("tiny-qwen2vl", &[]).display()))
        .arg(format!(
            "mmproj={}",
            synthetic("tiny-qwen2vl-mmproj", &[]).display()
        ))
        .arg(format!("pieces={}", folder.display()))
        .arg(format!("count={count}"));
    silent(&mut command);
}

/// There is no GPU here: CUDA's runtime is a stand-in, and the files of the library are linked as build.rs has it.
#[test]
fn what_ggml_cuda_takes_comes_from_the_host() {
    let build = repository().join("crates/pipeshard-capi/build.rs");
    let build = std::fs::read_to_string(build).expect("build.rs");
    let source = repository().join("crates/pipeshard-capi/src");
    let program = scratch("host_library").join("cuda_calls");
    let mut cc = cc();
    cc.arg("-std=gnu11").arg("-o").arg(&program);
    for file in ["cuda", "memory"] {
        let (_, functions) = build
            .split_once(&format!("\"{file}\",\n"))
            .expect("the file");
        let (functions, _) = functions.split_once(']').expect("a list");
        for function in functions.split('"').skip(1).step_by(2) {
            cc.arg(format!("-Wl,--wrap={function}"));
        }
        cc.arg(source.join(format!("{file}.c")));
    }
    for file in ["cuda_calls.c", "cuda_caller.c"] {
        cc.arg(sources().join(file));
    }
    done(&mut cc);
    silent(&mut Command::new(program));
}

/// There is no GPU here: the driver is a stand-in.
#[test]
fn the_hosts_cuda_context_is_current_in_the_library_and_nowhere_else() {
    let driver = scratch("host_library").join("driver");
    std::fs::create_dir_all(&driver).expect("a folder");
    let driver = driver.join("libcuda.so.1");
    let mut cc = cc();
    cc.args(["-std=gnu11", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]);
    done(cc.arg("-o").arg(&driver).arg(sources().join("libcuda.c")));
    let folder = driver.parent().expect("a folder").display();
    let path = format!("-Wl,-rpath,{folder}");
    let program = compiled("context", &[&driver.display().to_string(), &path]);
    silent(&mut host(&program));
}

#[test]
fn images_are_seen_as_by_llama_mtmd_cli() {
    let picture = scratch("host_library").join("picture.bmp");
    std::fs::write(&picture, bitmap(224, 224)).expect("a picture");
    let (model, encoder) = (
        synthetic("tiny-qwen2vl", &[]),
        synthetic("tiny-qwen2vl-mmproj", &[]),
    );
    let said = finish_text(|| {
        let mut command = tool("llama-mtmd-cli");
        command
            .env_remove("PIPESHARD_LIBRARY")
            .arg("-m")
            .arg(&model);
        command.arg("--mmproj").arg(&encoder);
        command.arg("--image").arg(&picture);
        command.args(["-p", "what is this", "-n", "8", "--temp", "0"]);
        command.args(["-c", "2048", "-t", "1", "--no-repack"]);
        command.args(["-dev", "none", "--no-mmproj-offload"]);
        command
    });
    assert!(said.succeeded(), "{}", said.stderr);
    let answer = said.stdout.trim_start_matches('\n').trim_end_matches('\n');
    let mut command = host(&compiled("sees", &[]));
    command
        .arg(format!("chat={}", model.display()))
        .arg(format!("mmproj={}", encoder.display()))
        .arg(format!("picture={}", picture.display()))
        .arg("question=what is this")
        .arg(format!("answer={answer}"));
    silent(&mut command);
}

#[test]
fn a_chat_is_that_of_llama_server() {
    let model = smollm2();
    let messages = serde_json::json!([{"role": "user", "content": "Name the capital of France."}]);
    let ask = serde_json::json!({"messages": messages, "temperature": 0, "max_tokens": 24, "cache_prompt": false});
    let flags = [
        "--jinja",
        "-c",
        "1024",
        "-np",
        "1",
        "-t",
        "1",
        "--no-repack",
        "-dev",
        "none",
        "-ngl",
        "0",
    ];
    let (status, answer) = Server::start(&model, &flags).post("/v1/chat/completions", &ask);
    let expected = answer["choices"][0]["message"]["content"].as_str();
    let expected = expected.unwrap_or_else(|| panic!("{status} {answer}"));
    assert!(expected.contains("Paris"), "{expected}");
    let mut command = host(&compiled("chats", &[]));
    command
        .arg(format!("chat={}", model.display()))
        .arg("question=Name the capital of France.")
        .arg(format!("answer={expected}"));
    silent(&mut command);
}
