//! What the planner works from is the same whether it comes from a model's file or from the tensors that llama.cpp loaded.

mod common;

use common::{smollm2, synthetic, Eval, MIB};
use pipeshard_gguf::inventory_of;
use pipeshard_plan::plan::{default_small_threshold, units_from_inventory, Unit};
use std::path::Path;

fn same_from_file_and_memory(model: &Path) {
    let inventory = inventory_of(model).expect("a model that can be read");
    let mut from_file = units_from_inventory(&inventory, default_small_threshold(&inventory));
    assert!(from_file.len() > 50);
    let loaded = Eval::of(model)
        .prompts(&[1])
        .generate(0)
        .within(256 * MIB, "")
        .answers();
    assert!(loaded.report().engaged);
    let units = loaded.eval.units.clone().expect("units");
    let mut from_memory: Vec<Unit> = serde_json::from_value(units).expect("units");
    let by_name = |a: &Unit, b: &Unit| a.name.cmp(&b.name);
    from_file.sort_by(by_name);
    from_memory.sort_by(by_name);
    let names = |units: &[Unit]| units.iter().map(|u| u.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&from_file), names(&from_memory));
    for (file, memory) in from_file.iter().zip(&from_memory) {
        assert_eq!(file, memory);
    }
}

/// The order in which a pass uses the units decides what is streamed after what.
fn same_order(model: &Path) {
    let inventory = inventory_of(model).expect("a model that can be read");
    let from_file = units_from_inventory(&inventory, default_small_threshold(&inventory));
    let loaded = Eval::of(model)
        .prompts(&[1])
        .generate(0)
        .within(256 * MIB, "")
        .answers();
    let units = loaded.eval.units.clone().expect("units");
    let from_memory: Vec<Unit> = serde_json::from_value(units).expect("units");
    let names = |units: &[Unit]| units.iter().map(|u| u.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&from_file), names(&from_memory));
}

#[test]
fn demo_model() {
    same_from_file_and_memory(&smollm2());
    same_order(&smollm2());
}

#[test]
fn small_models() {
    for (shape, options) in [
        ("tiny-llama", &[][..]),
        ("tiny-llama", &["--tied"]),
        ("tiny-llama-576", &[]),
        ("tiny-llama-768", &[]),
        ("tiny-qwen3moe", &[]),
        ("tiny-gemma3", &[]),
        ("tiny-gemma3", &["--untied"]),
    ] {
        let model = synthetic(shape, options);
        same_from_file_and_memory(&model);
        same_order(&model);
    }
}
