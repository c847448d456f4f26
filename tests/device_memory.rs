//! Device memory that llama.cpp asks for behind its reserve: it is within the budget, or the request fails with a sentence.

mod common;

use common::server::Server;
use common::{assert_accounted, scratch, synthetic, MIB};
use pipeshard::report::Report;
use serde_json::{json, Value};
use std::path::Path;

/// Tokens of the server's context.
const CONTEXT: usize = 1024;

/// Tokens of a prompt that looks like nothing in particular.
fn prompt(count: usize) -> Vec<usize> {
    (0..count).map(|i| 60 + i * 7 % 400).collect()
}

/// What a server answers to prompts, one after the other; and how many tokens of each it had in its cache.
fn answers(model: &Path, flags: &[&str], prompts: &[Vec<usize>]) -> Vec<(Value, Value)> {
    let mut all = vec![
        "-c", "1024", "-np", "1", "-t", "1", "-ub", "16", "--temp", "0",
    ];
    all.push("--no-warmup");
    all.extend(flags);
    let mut server = Server::start(model, &all);
    let answers = prompts.iter().map(|prompt| {
        let answer = server.complete(&json!({
            "prompt": prompt, "n_predict": 80, "temperature": 0, "return_tokens": true, "ignore_eos": true,
        }));
        let tokens = answer["tokens"].as_array().map_or(0, Vec::len);
        assert_eq!(tokens, 80, "{answer}");
        (answer["tokens"].clone(), answer["timings"]["cache_n"].clone())
    });
    let answers = answers.collect();
    assert_eq!(server.stop().code(), Some(0));
    answers
}

/// With a quantised cache whose cells change their positions, at budgets at which that needs more than was reserved.
fn kv_moves(name: &str, flags: &[&str], prompts: &[Vec<usize>]) -> Vec<(Value, Value)> {
    let model = synthetic("tiny-llama", &[]);
    let file = scratch("device-memory").join(format!("{name}.json"));
    let path = file.display().to_string();
    let with = |more: &[&str]| answers(&model, &[flags, more].concat(), prompts);
    let stock = with(&["--no-repack"]);
    let mut grown = 0;
    for budget in [22 * MIB, 26 * MIB] {
        for device in [1 << 30, budget] {
            let (vram, device) = (budget.to_string(), format!("vram={device}"));
            let ours = with(&[
                "--pipeshard-vram",
                &vram,
                "--pipeshard-sim",
                &device,
                "--pipeshard-report",
                &path,
            ]);
            let what = format!("{budget} bytes of a device with {device}");
            assert_eq!(ours, stock, "{what}");
            let text = std::fs::read_to_string(&file).expect("a report");
            let report: Report = serde_json::from_str(&text).expect("a report of this build");
            assert!(report.engaged && report.errors.is_empty(), "{report:?}");
            grown += report.reallocations_after_reserve;
            let counters = report.simulated_device.as_ref().expect("a simulated GPU");
            let peak = counters["peak_bytes"].as_u64().expect("a peak");
            assert!(peak <= budget, "{what}: {peak} bytes were taken");
            assert_eq!(counters["failed_allocations"], 0, "{what}");
            assert_accounted(&report);
        }
    }
    // the shift needs more than what was reserved: this is about compute buffers that grow in mid-run
    assert!(grown > 0, "no compute buffers grew");
    stock
}

#[test]
fn a_context_that_is_full_is_shifted() {
    let flags = ["--context-shift", "-ctk", "q8_0", "-ctv", "q8_0"];
    let long = prompt(CONTEXT - 24);
    kv_moves("shift", &flags, &[long]);
}

#[test]
fn chunks_of_a_prompt_are_used_again_elsewhere() {
    let flags = ["--cache-reuse", "8", "-ctk", "q8_0", "-ctv", "q8_0"];
    let long = prompt(260);
    let shorter = [&long[..40], &long[100..]].concat();
    let stock = kv_moves("reuse", &flags, &[long[..250].to_vec(), shorter]);
    // more than what both begin with was in the cache: the rest of it has moved
    let kept = stock[1].1.as_u64().expect("a number");
    assert!(kept > 60, "{kept}");
}
