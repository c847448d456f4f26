//! Files that change under a model, and libraries that are not what they should be.

use crate::common::{self, finish, scratch, Eval};
use crate::driver::{lines, Play};
use crate::{dense, STREAMED};
use std::path::PathBuf;

/// A copy of the model that may be spoilt.
fn spoilable(name: &str) -> PathBuf {
    let path = scratch("faults").join(format!("{name}-{}.gguf", std::process::id()));
    std::fs::copy(dense(), &path).expect("a folder of ours");
    path
}

/// The answers of stock llama.cpp in one round, without the round's number.
fn stock() -> Vec<String> {
    let lines = Play::new("rounds", &dense()).lines();
    let first = lines.iter().filter_map(|l| l.strip_prefix("0 "));
    first
        .filter(|l| l.contains("logits"))
        .map(str::to_string)
        .collect()
}

fn round(lines: &[String], number: u32) -> Vec<String> {
    let prefix = format!("{number} ");
    lines
        .iter()
        .filter_map(|l| l.strip_prefix(&prefix))
        .map(str::to_string)
        .collect()
}

#[test]
fn a_file_is_deleted_or_replaced_while_it_is_mapped() {
    let stock = stock();
    for what in ["delete", "replace"] {
        for properties in ["", "pin=off"] {
            let path = spoilable(what);
            let play = Play::new("file", &path).env("FAULTS_FILE", what);
            let ours = play.within(STREAMED, properties).lines();
            assert_eq!(round(&ours, 0), stock, "{what}");
            assert_eq!(round(&ours, 1), stock, "{what}");
            assert!(ours.contains(&"errors ".to_string()), "{ours:?}");
            // it is gone already, or it is not ours to keep
            let _ = std::fs::remove_file(path);
        }
    }
}

#[test]
fn a_file_becomes_shorter_while_it_is_mapped() {
    let stock = stock();
    for properties in ["", "pin=off", "pin=8M"] {
        let path = spoilable("shrink");
        let play = Play::new("file", &path).env("FAULTS_FILE", "shrink");
        let finished = play.within(STREAMED, properties).run();
        assert!(
            finished.succeeded(),
            "{properties}: {:?}\n{}",
            finished.status,
            finished.stderr
        );
        let ours = lines(&finished);
        assert_eq!(round(&ours, 0), stock);
        // tried twice, refused twice
        assert_eq!(
            round(&ours, 1),
            ["1.0 failed -3", "1.0 failed -3"],
            "{}",
            finished.stderr
        );
        // put back in place, it can be read again
        assert_eq!(round(&ours, 2), stock, "{}", finished.stderr);
        let said = finished.said();
        assert!(said.contains("bytes left of the"), "{said}");
        assert!(said.contains("was written to while it is in use"), "{said}");
        std::fs::remove_file(path).expect("ours");
    }
}

#[test]
fn a_file_becomes_shorter_and_nothing_is_read_from_it() {
    // everything that lies behind the middle is on the device; stock llama.cpp would go on as well
    let stock = stock();
    let path = spoilable("shrink-resident");
    let play = Play::new("file", &path).env("FAULTS_FILE", "shrink");
    let finished = play.within(512 << 20, "").run();
    assert!(
        finished.succeeded(),
        "{:?}\n{}",
        finished.status,
        finished.stderr
    );
    let ours = lines(&finished);
    for number in 0..3 {
        assert_eq!(round(&ours, number), stock, "{number}: {}", finished.stderr);
    }
    std::fs::remove_file(path).expect("ours");
}

#[test]
fn without_a_mapping_a_file_may_do_what_it_likes() {
    let stock = stock();
    let path = spoilable("no-mapping");
    let play = Play::new("file", &path)
        .env("FAULTS_FILE", "shrink")
        .env("FAULTS_NO_MMAP", 1);
    let ours = play.within(STREAMED, "").lines();
    for number in 0..3 {
        assert_eq!(round(&ours, number), stock, "{number}");
    }
    std::fs::remove_file(path).expect("ours");
}

#[test]
fn tables_of_another_build_are_refused() {
    let play = Play::new("handshake", &dense()).within(STREAMED, "");
    let finished = play.run();
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert_eq!(round(&lines(&finished), 0), stock());
    let said = finished.said();
    assert_eq!(
        said.matches("this library speaks hook version").count(),
        3,
        "{said}"
    );
    assert_eq!(
        said.matches("this library was built for llama.cpp another build")
            .count(),
        1,
        "{said}"
    );
}

#[test]
fn a_second_copy_of_the_library_is_refused() {
    let copy = scratch("second-copy").join("libpipeshard.so");
    std::fs::copy(common::library(), &copy).expect("a folder of ours");
    let play = Play::new("two-copies", &dense()).within(STREAMED, "");
    let finished = play.env("FAULTS_COPY", copy.display()).run();
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert_eq!(round(&lines(&finished), 0), stock());
    let said = finished.said();
    assert!(
        said.contains("another copy of this library is attached"),
        "{said}"
    );
}

#[test]
fn libraries_that_are_not_ours() {
    let folder = scratch("not-ours");
    let text = folder.join("text.so");
    std::fs::write(&text, "this is no library").expect("a folder of ours");
    let foreign = common::tools().join("libggml-base.so.0");
    for (library, part) in [
        (text, "failed to load"),
        (foreign, "failed to find ggml_backend_init"),
    ] {
        let library = library.display().to_string();
        let eval = Eval::of(&dense())
            .arg("vram", STREAMED)
            .arg("sim", "vram=1G");
        let finished = eval.env("PIPESHARD_LIBRARY", &library).run();
        let said = finished.said();
        assert!(finished.failed_cleanly(), "{said}");
        assert!(
            said.contains(part) && said.contains("libpipeshard is not attached"),
            "{said}"
        );
    }
}

#[test]
fn settings_out_of_range() {
    let most = "18446744073709551615";
    for (name, value, part) in [
        ("PIPESHARD_RESERVE", most, "too small"),
        (
            "PIPESHARD_RESERVE",
            "much",
            "PIPESHARD_RESERVE: invalid size 'much'",
        ),
        (
            "PIPESHARD_DEBUG_NOISE",
            "-1",
            "PIPESHARD_DEBUG_NOISE: invalid value '-1'",
        ),
        (
            "PIPESHARD_DEBUG_PANIC",
            "main",
            "PIPESHARD_DEBUG_PANIC: invalid value 'main'",
        ),
        ("PIPESHARD_DEBUG_LOCK_STEP", "0", ""),
        ("PIPESHARD_DEBUG_LOCK_STEP", most, ""),
    ] {
        let eval = Eval::of(&dense()).arg("ctx", 256).prompts(&[7]).generate(1);
        let eval = eval
            .arg("vram", STREAMED)
            .arg("sim", "vram=1G")
            .env(name, value);
        let finished = eval.run();
        let said = finished.said();
        assert!(
            finished.succeeded() == part.is_empty(),
            "{name}={value}: {said}"
        );
        assert!(
            said.contains(part) && !said.contains("internal error"),
            "{name}={value}: {said}"
        );
        assert!(
            finished.succeeded() || finished.failed_cleanly(),
            "{name}={value}: {said}"
        );
    }
    for budget in ["0", most] {
        let eval = Eval::of(&dense()).arg("ctx", 256).prompts(&[7]).generate(1);
        let finished = eval.arg("vram", budget).arg("sim", "vram=1G").run();
        let said = finished.said();
        assert!(finished.succeeded() == (budget == most), "{budget}: {said}");
        assert!(
            finished.succeeded() || finished.failed_cleanly(),
            "{budget}: {said}"
        );
        assert!(!said.contains("internal error"), "{budget}: {said}");
    }
}

#[test]
fn a_report_that_cannot_be_written() {
    let mut command = common::tool(common::LAB);
    command.arg("eval").arg(dense()).args([
        "--threads=1",
        "--ctx=256",
        "--prompt-tokens=7",
        "--generate=1",
    ]);
    command.args(["--vram=64M", "--sim=vram=1G"]);
    command.env(
        "LLAMA_ARG_PIPESHARD_REPORT",
        "/nonexistent/folder/report.json",
    );
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    assert!(
        finished.said().contains("/nonexistent/folder"),
        "{}",
        finished.stderr
    );
}
