//! Where pipeshard is told to place operations as stock llama.cpp does, it does: node by node. The matrix compares bits on a real
//! GPU, whose kernels round in other ways than the CPU's, with stock in this placement.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{finish, synthetic, tool, LAB, MIB};
use regex::Regex;

const SIM: &str = "--sim=vram=4G,granularity=2M";

/// The backend of each node, by operation and name, one map for each graph that was divided.
type Graphs = Vec<BTreeMap<(String, String), String>>;

fn scenario(feature: &str, model: &Path) -> Command {
    let folder = common::scratch("like-stock");
    let mut command = tool(LAB);
    command.args(["scenario", feature, "--verbose", "--threads=1", SIM]);
    command
        .arg("--model")
        .arg(model)
        .arg("--folder")
        .arg(folder);
    command.env("GGML_SCHED_DEBUG", "2");
    command
}

fn ours(feature: &str, model: &Path, budget: u64) -> Command {
    let mut command = scenario(feature, model);
    command.arg(format!("--vram={budget}"));
    command.env("PIPESHARD_RESERVE", "0");
    command.env("PIPESHARD_LIKE_STOCK", "1");
    command
}

/// What a run said as JSON, and how its graphs were divided.
fn run(command: &mut Command) -> (serde_json::Value, Graphs, String) {
    let finished = finish(command);
    let said = finished.stderr;
    let result = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let node =
        Regex::new(r"^node #\s*\d+ \(\s*(\S+)\):\s+(.+?) \(\s*[\d.]+\w\) \[\s*(\S+)").unwrap();
    let mut graphs = Graphs::new();
    for line in said.lines() {
        if line.starts_with("## SPLIT #0:") {
            graphs.push(BTreeMap::new());
        }
        if let (Some(found), Some(graph)) = (node.captures(line), graphs.last_mut()) {
            graph.insert(
                (found[1].to_owned(), found[2].to_owned()),
                found[3].to_owned(),
            );
        }
    }
    (result, graphs, said)
}

fn same_placement(feature: &str, shape: &str) {
    let model = synthetic(shape, &["--layers", "4"]);
    // stock has no flag for cells of single layers in host memory
    let (roomy, _, _) = run(&mut ours(feature, &model, 2048 * MIB));
    let cells = roomy["report"]["peak"]["kv"].as_u64().expect("a cache");
    let (_, _, said) = run(&mut ours(feature, &model, 1));
    let smallest = Regex::new(r"\((\d+) bytes\)").unwrap();
    let smallest: u64 = smallest.captures(&said).expect(&said)[1].parse().unwrap();
    let (mut on_host, mut compared) = (0, 0);
    for more in [2, 8, 16, 24] {
        let budget = smallest + cells + more * MIB;
        let (result, ours, said) = run(&mut ours(feature, &model, budget));
        let held = result["report"]["peak"]["kv"].as_u64().expect(&said);
        if held < cells {
            continue;
        }
        compared += 1;
        let names = result["not_resident"]
            .as_array()
            .expect("weights on the host");
        let names = names.iter().filter_map(|name| name.as_str());
        let pattern: Vec<String> = names.map(regex::escape).collect();
        let pattern = format!("--on-cpu=^({})$", pattern.join("|"));
        let (_, stock, said) = run(scenario(feature, &model).args(["--ngl=999", &pattern]));
        // contexts are reserved in different ways; the graphs that run come last
        let running = 3;
        assert!(ours.len() >= running && stock.len() >= running, "{said}");
        for (ours, stock) in ours.iter().rev().zip(stock.iter().rev()).take(running) {
            assert!(!ours.is_empty());
            assert_eq!(ours, stock, "{shape} {feature} within {budget}");
            on_host += ours.values().filter(|backend| *backend == "CPU").count();
        }
    }
    assert!(
        compared > 1 && on_host > 0,
        "{compared} budgets, {on_host} nodes on the host"
    );
}

#[test]
fn generation() {
    for shape in [
        "tiny-llama",
        "tiny-qwen2",
        "tiny-qwen3moe",
        "tiny-deepseek2",
    ] {
        same_placement("generate", shape);
    }
}

#[test]
fn embeddings() {
    same_placement("embed-mean", "tiny-llama");
}
