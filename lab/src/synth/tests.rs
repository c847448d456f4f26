//! Whole files: what is written is what ggml's reader finds, and what the same model says when it is loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use pipeshard_gguf::{inventory_of, GgufFile, InventoryError};
use pipeshard_model::inventory::{canonical_order, Inventory, KeyValues, LoadedTensor};
use pipeshard_plan::test_support::priced;

/// What a shape consists of, without its weights.
pub(crate) fn inventory(name: &str) -> Inventory {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let options = WriteOptions {
        header_only: true,
        ..WriteOptions::default()
    };
    write(&shape(name).unwrap(), &path, options, &quiet).unwrap();
    inventory_of(&path).unwrap()
}

/// A model of a few hundred KiB.
fn small(name: &str) -> SynthSpec {
    let mut spec = shape(name).unwrap();
    spec.layers = 4;
    spec.vocabulary = 512;
    spec.embedding = 96;
    spec.feed_forward = 160;
    spec
}

fn quiet(_: u64) {}

fn write_to(spec: &SynthSpec, path: &Path) -> Summary {
    write(spec, path, WriteOptions::default(), &quiet).unwrap()
}

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn what_is_written_is_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for shape in SHAPES
        .iter()
        .filter(|shape| shape.name.starts_with("tiny-"))
        .filter(|shape| shape.spec().architecture.reads_text())
    {
        let spec = shape.spec();
        let path = folder.path().join(shape.name);
        let summary = write_to(&spec, &path);
        let inventory = inventory_of(&path).unwrap();
        assert_eq!(inventory.architecture, spec.architecture.name());
        let name = inventory.name.unwrap();
        assert_eq!(name.replace(' ', ""), shape.name);
        assert_eq!(inventory.layer_count, spec.layers);
        assert_eq!(inventory.vocabulary_size, spec.vocabulary);
        assert_eq!(inventory.embedding_length, spec.embedding);
        assert_eq!(inventory.context_length, spec.context);
        assert_eq!(inventory.expert_count, spec.experts);
        assert_eq!(inventory.expert_used_count, spec.experts_used);
        assert_eq!(inventory.tied_output, spec.tied);
        assert_eq!(inventory.tensors.len(), summary.tensors);
        assert_eq!(inventory.file_bytes, summary.bytes);
        assert_eq!(fs::metadata(&path).unwrap().len(), summary.bytes);
        let elements: u64 = inventory
            .tensors
            .iter()
            .map(|t| t.shape.iter().product::<u64>())
            .sum();
        assert_eq!(elements, summary.parameters);
        check_caches(&spec, &inventory.kv.layers);
    }
}

fn check_caches(spec: &SynthSpec, found: &[pipeshard_model::inventory::KvLayer]) {
    let elements = match spec.latent {
        Some(latent) => (latent.key_rank + latent.rotated, 0),
        None => (spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim),
    };
    let cached: Vec<_> = (0..spec.layers)
        .filter(|&layer| spec.architecture.writes_text() && !spec.layer_is_recurrent(layer))
        .collect();
    let layers: Vec<_> = found.iter().map(|kv| kv.layer).collect();
    assert_eq!(layers, cached, "{}", spec.name);
    for kv in found {
        let full = spec
            .window
            .is_none_or(|window| (kv.layer + 1).is_multiple_of(window.period));
        assert_eq!((kv.k_elements, kv.v_elements), elements, "{}", spec.name);
        assert_eq!(kv.window.is_none(), full, "{}", spec.name);
    }
}

#[test]
fn tensors_are_written_in_order_of_use() {
    for shape in SHAPES
        .iter()
        .filter(|shape| shape.spec().architecture.reads_text())
    {
        let plans = layout::tensors(&shape.spec()).unwrap();
        let infos: Vec<_> = plans
            .iter()
            .map(|plan| pipeshard_model::inventory::TensorInfo {
                layer: pipeshard_model::inventory::layer_of(&plan.name),
                role: pipeshard_model::inventory::role_of(&plan.name),
                name: plan.name.clone(),
                type_name: plan.dtype.name.to_owned(),
                ggml_type: plan.dtype.id,
                shape: [1; 4],
                bytes: plan.bytes,
                device_bytes: plan.bytes,
            })
            .collect();
        assert!(
            infos.is_sorted_by(|a, b| canonical_order(a, b).is_lt()),
            "{}",
            shape.name
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = small("tiny-llama");
    // several chunks in one tensor
    spec.vocabulary = 40_000;
    let bytes = |threads, seed, name: &str| {
        let path = folder.path().join(name);
        let options = WriteOptions {
            threads: Some(threads),
            ..WriteOptions::default()
        };
        write(
            &SynthSpec {
                seed,
                ..spec.clone()
            },
            &path,
            options,
            &quiet,
        )
        .unwrap();
        fs::read(&path).unwrap()
    };
    let one = bytes(1, 7, "one");
    assert!(one.len() > 12 << 20);
    assert!(one == bytes(5, 7, "five"));
    assert!(one != bytes(1, 8, "other"));
}

#[test]
fn layers_and_rows_differ() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let mut spec = small("tiny-llama");
    spec.types = TypeMix::uniform(pipeshard_model::inventory::DType::from_name("f16").unwrap());
    // several chunks in one tensor, each of whole rows
    spec.embedding = 128;
    spec.vocabulary = 40_000;
    let summary = write_to(&spec, &path);
    let data = fs::read(&path).unwrap();
    // every 128 two-byte elements: those of all layers, the embedding and the output head
    let header = summary.bytes - summary.types.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let mut rows: Vec<_> = data[header as usize..].chunks_exact(128 * 2).collect();
    let count = rows.len();
    assert!(count as u64 > summary.parameters / 128);
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), count);
}

#[test]
fn progress_ends_at_the_size_of_the_file_or_just_below() {
    let folder = tempfile::tempdir().unwrap();
    let seen = AtomicU64::new(0);
    let progress = |bytes: u64| {
        seen.fetch_max(bytes, Ordering::Relaxed);
    };
    let path = folder.path().join("model");
    let summary = write(
        &small("tiny-llama"),
        &path,
        WriteOptions::default(),
        &progress,
    )
    .unwrap();
    let seen = seen.load(Ordering::Relaxed);
    // alignment gaps are not counted
    assert!(seen <= summary.bytes && seen + 32 * summary.tensors as u64 >= summary.bytes);
}

#[test]
fn an_existing_file_is_kept_unless_it_may_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    fs::write(&path, "precious").unwrap();
    let spec = small("tiny-llama");
    let error = write(&spec, &path, WriteOptions::default(), &quiet).unwrap_err();
    assert!(matches!(error, SynthError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let options = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    write(&spec, &path, options, &quiet).unwrap();
    assert!(inventory_of(&path).is_ok());
    assert_eq!(files_in(folder.path()), 1);
}

#[test]
fn failures_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let spec = small("tiny-llama");
    let missing = folder.path().join("no/such/folder/model");
    let error = write(&spec, &missing, WriteOptions::default(), &quiet).unwrap_err();
    assert!(matches!(error, SynthError::Io { .. }), "{error}");

    let mut huge = shape("llama3-8b").unwrap();
    huge.layers = 512;
    huge.feed_forward = 1 << 22;
    let error = write(
        &huge,
        &folder.path().join("huge"),
        WriteOptions::default(),
        &quiet,
    )
    .unwrap_err();
    assert!(matches!(error, SynthError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("TiB"), "{error}");
    assert_eq!(files_in(folder.path()), 0);

    // a folder in the way is noticed at the very end
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "").unwrap();
    let options = WriteOptions {
        replace: true,
        ..WriteOptions::default()
    };
    let error = write(&spec, &taken, options, &quiet).unwrap_err();
    assert!(matches!(error, SynthError::Io { .. }), "{error}");
    assert_eq!(files_in(folder.path()), 1);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_to(&small("tiny-qwen3moe"), &path);
    let whole = fs::read(&path).unwrap();
    let cut = folder.path().join("cut");
    for length in [
        1,
        3,
        4,
        7,
        8,
        23,
        24,
        100,
        1000,
        5000,
        whole.len() / 2,
        whole.len() - 64,
    ] {
        fs::write(&cut, &whole[..length]).unwrap();
        let error = inventory_of(&cut).unwrap_err();
        assert!(
            matches!(error, InventoryError::Truncated { .. }),
            "{length}: {error}"
        );
    }
    fs::write(&cut, "").unwrap();
    assert!(matches!(
        inventory_of(&cut),
        Err(InventoryError::Empty { .. })
    ));
}

/// What llama.cpp keeps of a file's metadata: scalars, as text.
fn as_loaded(path: &Path) -> (Vec<LoadedTensor>, BTreeMap<String, String>) {
    let file = GgufFile::open(path).unwrap();
    let mut keys = BTreeMap::new();
    let architecture = file.architecture().unwrap();
    for key in ["general.architecture", "general.name"] {
        keys.extend(file.string(key).map(|value| (key.to_owned(), value)));
    }
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
    ] {
        let key = format!("{architecture}.{key}");
        keys.extend(file.number(&key).map(|value| (key, value.to_string())));
    }
    (file.tensors().collect(), keys)
}

#[test]
fn a_loaded_model_gives_the_same_inventory() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny-llama", "tiny-qwen3moe", "tiny-gemma3"] {
        let mut spec = shape(name).unwrap();
        spec.layers = 3;
        spec.vocabulary = 300;
        let path = folder.path().join(name);
        write(&spec, &path, WriteOptions::default(), &|_| {}).unwrap();
        let from_file = inventory_of(&path).unwrap();
        let (mut tensors, keys) = as_loaded(&path);
        // any order, and the tied output head a second time
        tensors.reverse();
        tensors.push(tensors[tensors.len() - 1].clone());
        let mut from_memory = Inventory::from_loaded(tensors.into_iter(), &keys).unwrap();
        assert!(from_memory.file_bytes < from_file.file_bytes);
        from_memory.file_bytes = from_file.file_bytes;
        assert_eq!(from_memory, from_file);
        let json = serde_json::to_string(&from_file).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&json).unwrap(), from_file);
    }
}

#[test]
fn what_is_measured_for_a_shape_is_what_is_looked_up() {
    let shapes = SHAPES.iter();
    let text = shapes.filter(|shape| shape.spec().architecture.reads_text());
    let mut looked_up = 0;
    for model in text.map(|shape| inventory(shape.name)) {
        priced::products(&model);
        looked_up += priced::attention(&model);
    }
    assert!(looked_up > 100, "{looked_up}");
}
