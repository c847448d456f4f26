//! Bad input gets a clear message and a non-zero exit; what can be done without is done without, and said.

mod common;

use common::{finish, scratch, synthetic, tool, Eval, Finished, LAB, MIB};
use pipeshard_sys::BUILD_ID;
use std::path::{Path, PathBuf};

fn model() -> PathBuf {
    synthetic("tiny-llama", &[])
}

/// One of llama.cpp's tools, asked for a few tokens, has to refuse and to say all of this.
///
/// Its logger, upstream's, sometimes loses the last lines when the process ends, which is no reason to fail.
fn assert_tool_refuses(model: &Path, flags: &[&str], env: &[(&str, &str)], parts: &[&str]) {
    let mut finished = completion(model, flags, env);
    for _ in 0..3 {
        if parts.iter().all(|part| finished.said().contains(part)) {
            break;
        }
        finished = completion(model, flags, env);
    }
    assert_refused(&finished, parts);
}

fn completion(model: &Path, flags: &[&str], env: &[(&str, &str)]) -> Finished {
    let mut command = tool("llama-completion");
    command.args([
        "-p", "x", "-n", "2", "-t", "1", "-c", "512", "-no-cnv", "-m",
    ]);
    command.arg(model).args(flags).envs(env.iter().copied());
    finish(&mut command)
}

/// It ended with a code, said all of this, and gave no answer.
fn assert_refused(finished: &Finished, parts: &[&str]) {
    let said = finished.said();
    assert!(finished.failed_cleanly(), "{:?}: {said}", finished.status);
    for part in parts {
        assert!(said.contains(part), "no '{part}' in: {said}");
    }
    assert_eq!(finished.stdout.trim(), "");
}

const SIM: [&str; 2] = ["--pipeshard-sim", "vram=1G"];

fn with_budget(budget: &str) -> Vec<&str> {
    [&["--pipeshard", "--pipeshard-vram", budget][..], &SIM[..]].concat()
}

#[test]
fn a_budget_that_is_no_size() {
    for budget in ["lots", "-1", "4X", "0x10"] {
        assert_tool_refuses(
            &model(),
            &with_budget(budget),
            &[],
            &["--pipeshard-vram", &format!("invalid size '{budget}'")],
        );
    }
    let eval = Eval::of(&model()).prompts(&[7, 1100]).generate(3);
    assert_refused(
        &eval.run(),
        &["1100 tokens", "context of 1024", "--ctx 1102"],
    );
    let eval = Eval::of(&model()).arg("vram", "lots").arg("sim", "vram=1G");
    assert_refused(&eval.run(), &["invalid size 'lots'"]);
}

#[test]
fn a_budget_below_the_minimum() {
    assert_tool_refuses(
        &model(),
        &with_budget("1M"),
        &[],
        &[
            "a budget of 1 MiB is too small: the smallest that works is",
            "slots",
            "Raise it to",
        ],
    );
    let mut plan = tool(LAB);
    plan.arg("plan").arg(model()).args(["--vram", "1M"]);
    assert_refused(
        &finish(&mut plan),
        &["a budget of 1 MiB is too small: the smallest that works is"],
    );
}

#[test]
fn a_report_that_would_replace_a_model() {
    let copy = scratch("bad-input").join("own.gguf");
    std::fs::copy(model(), &copy).expect("a copy");
    let path = copy.display().to_string();
    let flags = [with_budget("60M"), vec!["--pipeshard-report", &path]].concat();
    let parts = ["--pipeshard-report", "would be overwritten"];
    assert_tool_refuses(&copy, &flags, &[], &parts);
    let (before, after) = (std::fs::read(model()), std::fs::read(&copy));
    assert!(before.expect("the model") == after.expect("the copy"));
}

#[test]
fn a_simulated_gpu_that_has_no_address_space() {
    let finished = finish(
        std::process::Command::new("sh")
            .args(["-c", "ulimit -v 800000; exec \"$@\"", "sh"])
            .arg(common::tools().join("llama-completion"))
            .args(["-p", "x", "-n", "1", "-no-cnv", "-m"])
            .arg(model())
            .args(with_budget("60M")),
    );
    assert_refused(&finished, &["cannot reserve", "ulimit -v"]);
}

#[test]
fn a_simulated_gpu_that_makes_no_sense() {
    for (spec, part) in [
        ("vrom=1G", "'vrom' is not a property of a simulated GPU"),
        ("vram=", "vram of the simulated GPU"),
        ("pcie=25G", "needs to know its memory"),
        ("vram=1G,pcie=fast", "invalid rate 'fast'"),
        ("vram=1G,vram=2G", "given twice"),
    ] {
        let flags = ["--pipeshard", "--pipeshard-sim", spec];
        assert_tool_refuses(
            &model(),
            &flags,
            &[],
            &["--pipeshard-sim", part, "see the message above"],
        );
        let eval = Eval::of(&model()).arg("vram", "60M").arg("sim", spec);
        assert_refused(&eval.run(), &["--pipeshard-sim", part]);
    }
}

#[test]
fn files_that_are_no_models() {
    let folder = scratch("bad-models");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file in a folder of ours");
        path
    };
    let whole = std::fs::read(model()).expect("a model that was just made");
    for (path, planned, loaded) in [
        (
            write("cut-in-data.gguf", &whole[..whole.len() / 2]),
            "is cut short",
            "not within the file bounds",
        ),
        (
            write("cut-in-header.gguf", &whole[..1000]),
            "is cut short",
            "failed to load",
        ),
        (
            write("foreign.gguf", b"PK\x03\x04 this is no model"),
            "is not a GGUF model",
            "invalid magic",
        ),
        (write("empty.gguf", b""), "", "failed to load"),
        (
            folder.join("missing.gguf"),
            "cannot read the model",
            "failed to open",
        ),
    ] {
        let name = path.display().to_string();
        let mut plan = tool(LAB);
        plan.arg("plan").arg(&path).args(["--vram", "1G"]);
        assert_refused(&finish(&mut plan), &[&name, planned]);
        // llama.cpp's own words are lost with its log thread where a file is refused at once; `eval` has no such thread
        assert_tool_refuses(&path, &with_budget("60M"), &[], &["pipeshard: off"]);
        let eval = Eval::of(&path).within(60 * MIB, "");
        assert_refused(&eval.run(), &[loaded, &name]);
    }
}

#[test]
fn the_library_is_missing() {
    let missing = [("PIPESHARD_LIBRARY", "/nonexistent/libpipeshard.so")];
    assert_tool_refuses(
        &model(),
        &["--pipeshard"],
        &missing,
        &[
            "failed to load /nonexistent/libpipeshard.so",
            "libpipeshard is not attached",
            "leave out --pipeshard",
        ],
    );
    assert_tool_refuses(
        &model(),
        &with_budget("60M"),
        &missing,
        &["failed to load /nonexistent/libpipeshard.so"],
    );
    let eval = Eval::of(&model()).within(60 * MIB, "");
    let eval = eval.env(missing[0].0, missing[0].1);
    assert_refused(&eval.run(), &["libpipeshard is not attached"]);
}

#[test]
fn the_library_is_of_another_build() {
    let bytes = std::fs::read(common::library()).expect("the library under test");
    let id = BUILD_ID.as_bytes();
    let mut other = bytes.clone();
    let mut found = 0;
    for at in 0..bytes.len().saturating_sub(id.len()) {
        if bytes[at..].starts_with(id) {
            other[at] = if id[0] == b'f' { b'e' } else { b'f' };
            found += 1;
        }
    }
    assert!(found > 0, "no build id in the library");
    let path = scratch("other-build").join("libpipeshard.so");
    std::fs::write(&path, other).expect("a file in a folder of ours");
    let library = path.display().to_string();
    let env = [("PIPESHARD_LIBRARY", library.as_str())];
    assert_tool_refuses(
        &model(),
        &with_budget("60M"),
        &env,
        &["built for llama.cpp", BUILD_ID],
    );
    let eval = Eval::of(&model()).within(60 * MIB, "");
    let eval = eval.env("PIPESHARD_LIBRARY", &library);
    assert_refused(&eval.run(), &["built for llama.cpp", BUILD_ID]);
}

#[test]
fn no_gpu_and_none_simulated() {
    let without_gpus = [
        ("CUDA_VISIBLE_DEVICES", ""),
        ("GGML_VK_VISIBLE_DEVICES", ""),
    ];
    let flags = ["--pipeshard-vram=64M"];
    let finished = completion(&model(), &flags, &without_gpus);
    assert_refused(&finished, &["pipeshard: off, because no GPU was found"]);
    // the whole of it once, with what works; the report at the end is short
    let said = finished.said();
    assert_eq!(said.matches("no GPU was found").count(), 2, "{said}");
    assert_eq!(said.matches("runs on the CPU").count(), 1, "{said}");
    let as_it_says = completion(&model(), &[], &without_gpus);
    assert!(as_it_says.succeeded(), "{}", as_it_says.said());
}

#[test]
fn a_profile_that_the_user_names_is_planned_by_or_named_as_the_reason() {
    let folder = scratch("named-profile");
    let mut command = tool(LAB);
    command.args(["profile", "--json", "--sim", "vram=1G,pcie=50M,cpu=500M"]);
    let slow = finish(&mut command);
    assert!(slow.succeeded(), "{}", slow.said());
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let eval = Eval::searched(&model()).prompts(&[40]).generate(2);
    let eval = eval.within(64 * MIB, "");
    let named = |path: &str| eval.clone().env("LLAMA_ARG_PIPESHARD_PROFILE", path);
    let rate = |eval: &Eval| {
        let answers = eval.answers();
        answers.report().predicted.as_ref().expect("a search").tps
    };
    let (usual, by_it) = (rate(&eval), rate(&named(&write("slow.json", &slow.stdout))));
    assert!(by_it < usual / 4.0, "{by_it} of {usual}");
    let half = write("half.json", &slow.stdout[..slow.stdout.len() / 2]);
    for (path, why) in [
        (&*half, "half.json is not a profile of this version"),
        ("no/such.json", "no/such.json cannot be read"),
    ] {
        // no other profile takes its place, and nothing runs without one
        let finished = named(path).run();
        let said = finished.said();
        assert!(finished.failed_cleanly() && said.contains(why), "{said}");
    }
    // its flag turns pipeshard on
    let whole = write("whole.json", &slow.stdout);
    let flags = [&["--pipeshard-profile", &whole][..], &SIM].concat();
    let finished = completion(&model(), &flags, &[]);
    let said = finished.said();
    assert!(
        finished.succeeded() && said.contains("pipeshard: engaged"),
        "{said}"
    );
}

/// `pipeshard` on a machine without a GPU, and without anything that was measured there.
fn without_gpu(words: &[&str]) -> Finished {
    let home = scratch("no-gpu");
    let mut command = tool("pipeshard-lab");
    command.args(words).env("XDG_CACHE_HOME", &home);
    command.env("PIPESHARD_PLAN_CACHE", home.join("plans"));
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.env("GGML_VK_VISIBLE_DEVICES", "");
    finish(&mut command)
}

#[test]
fn commands_without_a_gpu_name_one_that_works() {
    let model = model();
    let model = model.to_str().expect("a path of the tests");
    for (command, words) in [
        ("profile", &["-m", model][..]),
        ("tune", &["-m", model, "--vram", "200M"]),
        (
            "verify",
            &[
                "-m",
                model,
                "--vram",
                "200M",
                "--prompt-tokens",
                "7",
                "-n",
                "1",
            ],
        ),
        (
            "bench",
            &[
                "-m", model, "--vram", "200M", "-p", "8", "-n", "1", "-r", "1",
            ],
        ),
    ] {
        let finished = without_gpu(&[&[command], words].concat());
        let said = finished.said();
        assert!(finished.failed_cleanly(), "{command}: {said}");
        assert_eq!(said.matches("no GPU").count(), 1, "{command}: {said}");
        assert!(
            said.contains("error: no GPU was found"),
            "{command}: {said}"
        );
        let named = finished.stderr.lines();
        let named = named
            .clone()
            .find_map(|line| line.strip_prefix("  pipeshard "));
        let named: Vec<&str> = named
            .unwrap_or_else(|| panic!("{said}"))
            .split(' ')
            .collect();
        assert!(named.contains(&model), "{command}: {named:?}");
        // bench takes long, and its figures are those of this CPU
        if command != "bench" {
            let works = without_gpu(&named);
            assert!(works.succeeded(), "{named:?}: {}", works.said());
        }
    }
    let plan = without_gpu(&["plan", model, "--vram", "60M"]);
    assert!(
        plan.succeeded() && plan.stdout.contains("No GPU was found"),
        "{}",
        plan.stdout
    );
}

#[test]
fn page_locking_refused_or_limited() {
    let eval = Eval::of(&model()).prompts(&[7, 33, 96]).generate(2);
    let stock = eval.answers();
    let budget = eval.smallest_budget() + 12 * MIB;
    for (policy, locked) in [("pin=off", 0), ("pin=8M", 8 * MIB), ("pin=30M", 30 * MIB)] {
        let ours = eval
            .clone()
            .within(budget, &format!("{policy},delay=500"))
            .answers();
        assert_eq!(stock.outcome(), ours.outcome(), "{policy}");
        let report = ours.report();
        assert!(report.engaged && report.errors.is_empty(), "{report:?}");
        assert_eq!(report.peak.total, ours.device("peak_bytes"));
        let refused = report.page_lock_refused.as_deref();
        assert!(
            refused.is_some_and(|why| why.contains("refused to page-lock")),
            "{refused:?}"
        );
        assert!(report.page_locked_bytes <= locked);
        assert!(ours.device("pinned_bytes") <= locked);
        // all that was copied went through the staging ring
        assert!(report.bytes_streamed > 0);
        let copied = report.bytes_streamed + report.bytes_uploaded;
        assert_eq!(report.staged_bytes, copied);
        assert!(ours.said.contains("staging"), "{}", ours.said);
    }
    let all = eval.within(budget, "delay=500").answers();
    assert_eq!(all.report().page_lock_refused, None);
    assert_eq!(all.report().staged_bytes, 0);
}

/// Either the answers of stock llama.cpp, or a message and an exit code: never other answers, a crash, or a hang.
fn same_or_refused(finished: &Finished, stock: &common::Answers, what: &str) -> bool {
    if finished.succeeded() {
        assert!(stock.given_by(finished), "{what}: other answers");
        return true;
    }
    let said = finished.said();
    assert!(
        finished.failed_cleanly(),
        "{what}: {:?}: {said}",
        finished.status
    );
    assert!(said.contains("error: "), "{what}: {said}");
    assert!(
        !said.contains("is NaN"),
        "{what}: what was never written was read: {said}"
    );
    false
}

#[test]
fn an_allocation_that_fails() {
    let eval = Eval::of(&model()).prompts(&[33, 7]).generate(2);
    let stock = eval.answers();
    let budget = eval.largest_budget();
    let (mut made_do, mut noticed) = (0, 0);
    for at in 1..=24 {
        let finished = eval
            .clone()
            .arg("vram", budget)
            .arg("sim", format!("vram=1G,failalloc={at}"))
            .run();
        let same = same_or_refused(&finished, &stock, &format!("failalloc={at}"));
        let refused = finished.said().contains("refused");
        made_do += u32::from(same && refused);
        noticed += u32::from(refused || !same);
    }
    // that many allocations there are at least, and one of them the arena makes up for
    assert!(noticed >= 4, "{noticed}");
    assert!(made_do >= 1);
}

#[test]
fn an_allocation_that_fails_in_mid_run() {
    // the arena is carved anew when the budget changes: by then another program may have taken the memory
    let eval = Eval::of(&model()).prompts(&[33]).generate(6);
    let stock = eval.answers();
    let roomy = eval.clone().within(1 << 30, "").answers();
    let (least, most) = (roomy.report().minimum_budget, roomy.report().peak.total);
    let mut made_do = 0;
    for at in 1..=24 {
        let finished = eval
            .clone()
            .arg("vram", least)
            .arg("budget-at", format!("2={most}"))
            .arg("sim", format!("vram=1G,failalloc={at}"))
            .run();
        let same = same_or_refused(&finished, &stock, &format!("failalloc={at}"));
        made_do += u32::from(same && finished.said().contains("continuing with a budget of"));
    }
    assert!(made_do >= 1);
}

#[test]
fn a_copy_that_fails() {
    let eval = Eval::of(&model()).prompts(&[33, 33]).generate(1);
    let stock = eval.answers();
    let budget = eval.smallest_budget() + 12 * MIB;
    let copies = eval
        .clone()
        .within(budget, "")
        .answers()
        .device_in(0, "copies");
    assert!(copies > 20, "{copies}");
    let mut refused = 0;
    for at in (1..=copies).step_by(3) {
        let finished = eval.clone().within(budget, &format!("failcopy={at}")).run();
        let what = format!("failcopy={at}");
        refused += u32::from(!same_or_refused(&finished, &stock, &what));
    }
    assert!(refused > 5, "{refused}");
}
