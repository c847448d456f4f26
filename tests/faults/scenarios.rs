//! What a player does. Without pipeshard the same lines come from stock llama.cpp.

use crate::common;
use crate::driver::{
    ask, device_bytes, load_backends, model_path, report, say, set_budget, Batch, Context, Model,
};
use pipeshard_sys as ffi;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn play(scenario: &str) {
    match scenario {
        "rounds" => rounds(),
        "threads" => threads(),
        "file" => file(),
        "handshake" => handshake(),
        "two-copies" => two_copies(),
        "shifted" => shifted(),
        "kept" => kept(),
        other => panic!("no scenario '{other}'"),
    }
}

/// Two rounds of: load, a context, a prompt, some tokens, another prompt, and all freed. A batch that fails is tried once more;
/// a round ends where that fails too.
fn rounds() {
    load_backends();
    for round in 0..2 {
        let Some(model) = Model::load(&model_path()) else {
            say(&format!("{round} no-model"));
            continue;
        };
        let Some(context) = model.context() else {
            say(&format!("{round} no-context"));
            continue;
        };
        one_round(round, &context);
        if let Some(report) = report() {
            say(&format!("{round} errors {}", report.errors.join("; ")));
        }
    }
    say("end");
}

fn one_round(round: u32, context: &Context) {
    for (seed, count) in [(1, 33), (2, 40)] {
        context.clear();
        let mut tokens = context.prompt(seed, count);
        for step in 0..3 {
            let mut batch = context.decode(&tokens);
            if let Batch::Failed(code) = batch {
                say(&format!("{round} {seed}.{step} failed {code}"));
                batch = context.decode(&tokens);
            }
            match batch {
                Batch::Logits(hash, next) => {
                    say(&format!("{round} {seed}.{step} logits {hash:016x}"));
                    tokens = vec![next];
                }
                Batch::NotANumber => {
                    say(&format!("{round} {seed}.{step} nan"));
                    return;
                }
                Batch::Failed(code) => {
                    say(&format!("{round} {seed}.{step} failed {code}"));
                    return;
                }
            }
        }
    }
}

/// One batch, and once more where it fails.
fn twice(context: &Context, what: &str, tokens: &[i32]) -> Option<i32> {
    let mut batch = context.decode(tokens);
    if let Batch::Failed(code) = batch {
        say(&format!("{what} failed {code}"));
        batch = context.decode(tokens);
    }
    match batch {
        Batch::Logits(hash, next) => {
            say(&format!("{what} logits {hash:016x}"));
            Some(next)
        }
        Batch::NotANumber => {
            say(&format!("{what} nan"));
            None
        }
        Batch::Failed(code) => {
            say(&format!("{what} failed {code}"));
            None
        }
    }
}

/// Cells of a quantised cache change their positions, which takes more memory than ubatches of this size do.
fn shifted() {
    load_backends();
    let model = Model::load(&model_path());
    let context = model.as_ref().and_then(|model| {
        model.context_with(|params| {
            (params.n_ctx, params.n_batch, params.n_ubatch) = (1024, 64, 64);
            (params.type_k, params.type_v) = (ffi::GGML_TYPE_Q8_0, ffi::GGML_TYPE_Q8_0);
        })
    });
    if let Some(context) = &context {
        one_shift(context);
    } else {
        say("no-context");
    }
    if let Some(report) = report() {
        let grown = report.reallocations_after_reserve;
        say(&format!(
            "grown {grown} errors {}",
            report.errors.join("; ")
        ));
    }
    drop(context);
    drop(model);
    say("end");
}

fn one_shift(context: &Context) {
    let Some(next) = twice(context, "prompt", &context.prompt(3, 60)) else {
        return;
    };
    context.shift(8, 20);
    let mut tokens = vec![next];
    for step in 0..3 {
        match twice(context, &format!("shifted.{step}"), &tokens) {
            Some(next) => tokens = vec![next],
            None => return,
        }
    }
}

/// A sequence is kept on the device, goes on, and is taken back to where it was.
fn kept() {
    load_backends();
    let model = Model::load(&model_path()).expect("a model");
    let context = model.context().expect("a context");
    let more = context.prompt(5, 20);
    twice(&context, "prompt", &context.prompt(4, 100)).expect("logits");
    let kept = context.keep();
    let on = twice(&context, "on", &more);
    context.take_back(&kept);
    assert_eq!(twice(&context, "on again", &more), on);
    if let Some(report) = report() {
        common::assert_accounted(&report);
        say(&format!("report errors {}", report.errors.join("; ")));
    }
    drop(context);
    drop(model);
    say("end");
}

/// Two threads drive two contexts each, while a third changes the budget as often as `FAULTS_CHANGES` says. Whenever a change has
/// returned, the device has handed out no more than that.
fn threads() {
    load_backends();
    let model = Model::load(&model_path()).expect("a model");
    let contexts: Vec<Context> = (0..4)
        .map(|_| model.context().expect("a context"))
        .collect();
    // once each, so that all compute buffers are there and the smallest budget is known
    for context in &contexts {
        assert!(matches!(
            context.decode(&context.prompt(9, 33)),
            Batch::Logits(..)
        ));
    }
    let range = report().map(|report| {
        let (least, most) = (report.minimum_budget, report.peak.total);
        assert!(least < most);
        (least, most)
    });
    let done = AtomicBool::new(range.is_none());
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let (least, most) = range?;
            let changed = change_budgets(least, most);
            done.store(true, Ordering::SeqCst);
            Some(changed)
        });
        let drivers: Vec<_> = contexts
            .chunks(2)
            .enumerate()
            .map(|(thread, pair)| {
                let pair: Vec<&Context> = pair.iter().collect();
                let done = &done;
                scope.spawn(move || {
                    let lines = drive(thread, &pair);
                    while !done.load(Ordering::SeqCst) {
                        assert_eq!(drive(thread, &pair), lines);
                    }
                    lines
                })
            })
            .collect();
        for driver in drivers {
            let lines: Vec<String> = driver.join().expect("a driver");
            lines.iter().for_each(|line| say(line));
        }
        if let Some((changed, late)) = changer.join().expect("a changer") {
            say(&format!("changes {changed} late {late}"));
        }
    });
    if let Some(report) = report() {
        common::assert_accounted(&report);
        say(&format!(
            "report recarvings {} errors {}",
            report.recarvings,
            report.errors.join("; ")
        ));
    }
}

/// Changes the budget between the smallest and the largest, at random and by turns, some with a deadline. How many were made, and how
/// many were too late.
fn change_budgets(least: u64, most: u64) -> (u64, u64) {
    let changes = std::env::var("FAULTS_CHANGES").ok();
    let changes: u64 = changes.and_then(|n| n.parse().ok()).unwrap_or(20);
    let (mut made, mut late, mut seed, mut now) = (0, 0, 12345_u64, None);
    for number in 0..changes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let size = match number % 4 {
            0 => least,
            1 => most,
            _ => least + (seed >> 16) % (most - least),
        };
        let deadline = [
            "",
            r#","deadline_ms":0"#,
            r#","deadline_ms":1"#,
            r#","deadline_ms":20"#,
        ];
        let body = format!(
            r#"{{"size":{size}{}}}"#,
            deadline[(seed >> 40) as usize % 4]
        );
        let (status, answer) = ask("/pipeshard/budget", &body).expect("pipeshard");
        let held = device_bytes().expect("a simulated GPU");
        match status {
            200 => {
                assert_eq!(answer["budget"], size);
                assert!(answer["held_total"].as_u64() <= Some(size), "{answer}");
                assert!(held <= size, "{held} of {size}: {answer}");
                (made, now) = (made + 1, Some(size));
            }
            409 => {
                assert_eq!(answer["error"]["type"], "deadline", "{answer}");
                assert!(body.contains("deadline"), "{answer}");
                late += 1;
                if let Some(before) = now {
                    let (_, limits) = ask("/pipeshard", "").expect("pipeshard");
                    assert_eq!(limits["budget"], before);
                }
            }
            _ => panic!("{status}: {answer}"),
        }
    }
    let (status, answer) =
        ask("/pipeshard/budget", &format!(r#"{{"size":{}}}"#, least / 2)).expect("pipeshard");
    assert_eq!(
        (status, &answer["error"]["type"]),
        (409, &"budget_too_small".into())
    );
    let smallest = answer["error"]["minimum"].as_u64().expect("a size");
    // what is named works, and a page less does not
    let asked =
        |size: u64| ask("/pipeshard/budget", &format!(r#"{{"size":{size}}}"#)).expect("pipeshard");
    assert_eq!(asked(smallest).0, 200);
    assert_eq!(asked(smallest - 1).0, 409);
    assert!(set_budget(most) && !set_budget(1));
    (made, late)
}

fn drive(thread: usize, contexts: &[&Context]) -> Vec<String> {
    let mut lines = Vec::new();
    for round in 0..3 {
        let mut tokens: Vec<Vec<i32>> = Vec::new();
        for (index, context) in contexts.iter().enumerate() {
            context.clear();
            tokens.push(context.prompt((thread * 10 + index * 3 + round) as u32, 33));
        }
        for step in 0..6 {
            for (index, context) in contexts.iter().enumerate() {
                let batch = context.decode(&tokens[index]);
                lines.push(format!("{thread}.{index}.{round}.{step} {batch:?}"));
                if let Batch::Logits(_, next) = batch {
                    tokens[index] = vec![next];
                }
            }
        }
    }
    lines
}

/// The model's file changes while it is mapped. `FAULTS_FILE` says how.
fn file() {
    load_backends();
    let path = model_path();
    let model = Model::load(&path).expect("a model");
    let context = model.context().expect("a context");
    let bytes = std::fs::metadata(&path).expect("the model").len();
    one_round(0, &context);
    // copies ahead for a batch that never comes are made
    std::thread::sleep(Duration::from_millis(200));
    let what = std::env::var("FAULTS_FILE").expect("what to do with the file");
    let whole = std::fs::read(&path).expect("the model");
    match what.as_str() {
        "delete" => std::fs::remove_file(&path).expect("ours"),
        "replace" => {
            let other = format!("{path}.other");
            std::fs::write(&other, b"something else").expect("ours");
            std::fs::rename(&other, &path).expect("ours");
        }
        "shrink" => {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .expect("ours");
            file.set_len(bytes / 2).expect("ours");
        }
        other => panic!("no way to change a file: '{other}'"),
    }
    say("changed");
    one_round(1, &context);
    if what == "shrink" {
        std::fs::write(&path, whole).expect("ours");
        say("restored");
        one_round(2, &context);
    }
    if let Some(report) = report() {
        say(&format!("errors {}", report.errors.join("; ")));
    }
    drop(context);
    drop(model);
    say("end");
}

/// Tables of callbacks that are not of this build are refused, and what was attached stays so.
fn handshake() {
    load_backends();
    // SAFETY: tables are copies of the one that is attached, and live for the life of the process.
    unsafe {
        let attached = ffi::ggml_sched_hook_get();
        assert!(!attached.is_null());
        let id = CString::new("another build").expect("no NUL");
        let (mut abi, mut table, mut tensor, mut build) =
            (*attached, *attached, *attached, *attached);
        abi.abi += 1;
        table.table_size -= 8;
        tensor.tensor_size += 16;
        build.build_id = id.as_ptr();
        for wrong in [abi, table, tensor, build] {
            assert!(!ffi::ggml_sched_hook_set(Box::leak(Box::new(wrong))));
            assert_eq!(ffi::ggml_sched_hook_get(), attached);
        }
        assert!(ffi::ggml_sched_hook_set(attached));
    }
    let model = Model::load(&model_path()).expect("a model");
    one_round(0, &model.context().expect("a context"));
    say("end");
}

/// The library again, and a copy of it.
fn two_copies() {
    load_backends();
    let library = std::env::var("PIPESHARD_LIBRARY").expect("the library under test");
    let copy = std::env::var("FAULTS_COPY").expect("a copy of it");
    let load = |path: &str| {
        let path = CString::new(path).expect("a path");
        // SAFETY: the path is valid.
        unsafe { ffi::ggml_backend_load(path.as_ptr()) }
    };
    // SAFETY: no preconditions.
    let attached = unsafe { ffi::ggml_sched_hook_get() };
    assert!(!attached.is_null());
    load(&library);
    load_backends();
    assert!(load(&copy).is_null(), "a second provider");
    // SAFETY: no preconditions.
    assert_eq!(unsafe { ffi::ggml_sched_hook_get() }, attached);
    let model = Model::load(&model_path()).expect("a model");
    one_round(0, &model.context().expect("a context"));
    say("end");
}
