//! Every input in `fuzz/corpus` goes through the reader that it was made for, as do bytes at random: each gets an
//! answer or a refusal. `make fuzz` looks for more.

#[path = "../fuzz/entries.rs"]
mod entries;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use entries::{Entry, ENTRIES};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

fn inputs(reader: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpus().join(reader);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let with_bytes = paths.into_iter().map(|path| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    });
    with_bytes.collect()
}

#[test]
fn the_corpus_crashes_no_reader() {
    let mut replayed = 0;
    let mut crashed = Vec::new();
    for (reader, entry) in ENTRIES {
        for (path, bytes) in inputs(reader) {
            if catch_unwind(|| entry(&bytes)).is_err() {
                crashed.push(path);
            }
            replayed += 1;
        }
    }
    println!("{replayed} inputs");
    assert!(crashed.is_empty(), "{crashed:#?}");
    assert!(replayed >= 60, "the corpus has gone: {replayed} inputs");
}

#[test]
fn every_folder_of_the_corpus_has_its_reader() {
    for folder in fs::read_dir(corpus()).unwrap() {
        let name = folder.unwrap().file_name();
        assert!(
            ENTRIES.iter().any(|(reader, _)| *reader == name),
            "{name:?}"
        );
    }
}

/// Bytes at random, and an input of the corpus with some of its bytes exchanged or left out.
fn near(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (
        prop::sample::select(seeds),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        prop::option::of(any::<prop::sample::Index>()),
    )
        .prop_map(|(mut bytes, changes, cut)| {
            for (index, byte) in changes {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            if let (Some(cut), false) = (cut, bytes.is_empty()) {
                bytes.remove(cut.index(bytes.len()));
            }
            bytes
        });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..64), damaged]
}

fn survives_damage(reader: &str, entry: Entry) {
    let full = std::env::var_os("PIPESHARD_TEST_FULL").is_some();
    let cases = if full { 50_000 } else { 200 };
    let seeds: Vec<Vec<u8>> = inputs(reader).into_iter().map(|(_, bytes)| bytes).collect();
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let result = runner.run(&near(seeds), |bytes| {
        entry(&bytes);
        Ok(())
    });
    match result {
        Err(TestError::Fail(why, bytes)) => {
            panic!("{reader}: {why}: {:?}", String::from_utf8_lossy(&bytes))
        }
        other => other.unwrap(),
    }
}

#[test]
fn damaged_inputs_crash_no_reader() {
    for (reader, entry) in ENTRIES {
        survives_damage(reader, entry);
    }
}
