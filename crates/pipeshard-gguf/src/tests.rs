//! Files as they come: whole, split, cut, foreign, contradictory.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::container::{header, Entry, Value, ALIGNMENT};
use super::*;
use pipeshard_model::inventory::{DType, DTYPES};
use pipeshard_sys as ffi;

/// A tensor of the files below: its name, shape and type.
type Row<'a> = (&'a str, &'a [u64], &'a str);

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn basics() -> Vec<(String, Value)> {
    [
        ("general.architecture", text("llama")),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(32)),
        ("llama.attention.head_count", Value::U32(2)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The bytes of a GGUF whose weights are zero.
fn gguf(metadata: &[(String, Value)], tensors: &[Row<'_>]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, shape, type_name)| {
            let dtype = DType::from_name(type_name).unwrap();
            let mut padded = [1; 4];
            padded[..shape.len()].copy_from_slice(shape);
            let offset = end;
            end = (end + dtype.bytes(padded)).next_multiple_of(ALIGNMENT);
            Entry {
                name,
                shape,
                ggml_type: dtype.id,
                offset,
            }
        })
        .collect();
    let mut bytes = header(metadata, &entries);
    bytes.resize(bytes.len() + end as usize, 0);
    bytes
}

fn piece(number: u64, count: u64, total: i32, tensors: &[Row<'_>]) -> Vec<u8> {
    let mut metadata = match number {
        0 => basics(),
        _ => Vec::new(),
    };
    metadata.extend([
        ("split.no".to_owned(), Value::U32(number as u32)),
        ("split.count".to_owned(), Value::U32(count as u32)),
        ("split.tensors.count".to_owned(), Value::U32(total as u32)),
    ]);
    gguf(&metadata, tensors)
}

const FIRST: &[Row<'_>] = &[
    ("token_embd.weight", &[32, 100], "f16"),
    ("blk.0.attn_k.weight", &[32, 16], "f16"),
];
const SECOND: &[Row<'_>] = &[
    ("output.weight", &[32, 100], "q8_0"),
    ("blk.1.attn_k.weight", &[32, 16], "q4_0"),
];

fn split_model(folder: &Path, total: i32) -> [PathBuf; 2] {
    let paths = [1, 2].map(|number| folder.join(format!("m-{number:05}-of-00002.gguf")));
    fs::write(&paths[0], piece(0, 2, total, FIRST)).unwrap();
    fs::write(&paths[1], piece(1, 2, total, SECOND)).unwrap();
    paths
}

fn refusal(path: &Path) -> String {
    inventory_of(path).unwrap_err().to_string()
}

#[test]
fn the_table_of_types_is_ggmls() {
    for id in 0..ffi::GGML_TYPE_COUNT {
        // SAFETY: the functions only look the type up; the name is a static text.
        let (name, block, bytes, quantised) = unsafe {
            (
                CStr::from_ptr(ffi::ggml_type_name(id)).to_str().unwrap(),
                ffi::ggml_blck_size(id),
                ffi::ggml_type_size(id),
                ffi::ggml_is_quantized(id),
            )
        };
        match DType::from_id(id) {
            Some(dtype) => {
                assert_eq!(dtype.name, name);
                assert_eq!(i64::from(dtype.block), block, "{name}");
                assert_eq!(dtype.block_bytes as usize, bytes, "{name}");
                assert_eq!(dtype.quantised, quantised, "{name}");
            }
            None => assert_eq!(block, 0, "{name} is missing from the table"),
        }
    }
    assert!(DTYPES.iter().all(|dtype| dtype.id < ffi::GGML_TYPE_COUNT));
}

#[test]
fn pieces_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = split_model(folder.path(), 4);
    let inventory = inventory_of(&first).unwrap();
    let names: Vec<_> = inventory
        .tensors
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "token_embd.weight",
            "blk.0.attn_k.weight",
            "blk.1.attn_k.weight",
            "output.weight"
        ]
    );
    assert!(!inventory.tied_output);
    assert_eq!(inventory.kv.layers.len(), 2);
    let sizes = [&first, &second].map(|path| fs::metadata(path).unwrap().len());
    assert_eq!(inventory.file_bytes, sizes[0] + sizes[1]);
}

#[test]
fn broken_sets_of_pieces_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = split_model(folder.path(), 4);
    assert!(refusal(&second).contains("is not the first"));
    fs::remove_file(&second).unwrap();
    assert!(refusal(&first).contains("m-00002-of-00002.gguf is missing"));
    fs::copy(&first, &second).unwrap();
    assert!(refusal(&first).contains("belongs elsewhere"));
    let renamed = folder.path().join("model.gguf");
    fs::copy(&first, &renamed).unwrap();
    assert!(refusal(&renamed).contains("-00001-of-00002.gguf"));
    let [first, _] = split_model(folder.path(), 5);
    assert!(refusal(&first).contains("hold 4 tensors"));
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (bytes, said) in [
        (&b""[..], "is empty"),
        (b"PK\x03\x04 and so on", "ZIP"),
        (b"\x40\x01\0\0\0\0\0\0{\"__metadata__\":{}}", "safetensors"),
        (b"version https://git-lfs", "Git LFS"),
        (b"<!doctype html><html>", "web page"),
        (b"tjgg\x03\0\0\0", "before GGUF"),
        (b"hello, world, how are you", "does not begin"),
        (b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0", "first version"),
        (b"GGUF\x07\0\0\0\0\0\0\0\0\0\0\0", "version 7"),
        (b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0", "big-endian"),
        (b"GGUF\x03\0", "cut short"),
    ] {
        fs::write(&path, bytes).unwrap();
        let message = refusal(&path);
        assert!(message.contains(said), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
    assert!(refusal(folder.path()).contains("is not a file"));
    assert!(refusal(&folder.path().join("none")).contains("Check the path"));
}

#[test]
fn a_gguf_without_layers_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    fs::write(&path, gguf(&[], &[])).unwrap();
    assert!(refusal(&path).contains("general.architecture"));
    let projector = [("general.architecture".to_owned(), text("clip"))];
    fs::write(&path, gguf(&projector, &[])).unwrap();
    assert!(refusal(&path).contains("'clip'"));
    let mut none = basics();
    for layers in [0, u32::MAX] {
        none[1].1 = Value::U32(layers);
        fs::write(&path, gguf(&none, FIRST)).unwrap();
        assert!(refusal(&path).contains("llama.block_count"));
    }
    // a key of an unexpected type must not abort
    none[1].1 = Value::F32(2.0);
    fs::write(&path, gguf(&none, FIRST)).unwrap();
    assert!(refusal(&path).contains("llama.block_count"));
}

#[test]
fn contradictions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let whole = gguf(&basics(), FIRST);
    // two tensors of one name
    fs::write(&path, gguf(&basics(), &[FIRST[0], FIRST[0]])).unwrap();
    assert!(refusal(&path).contains("damaged"));
    // a tensor whose size does not fit 64 bits
    let mut huge = whole.clone();
    let at = whole
        .windows(16)
        .position(|window| {
            window[..8] == 32_u64.to_le_bytes() && window[8..] == 100_u64.to_le_bytes()
        })
        .unwrap();
    huge[at + 8..at + 16].copy_from_slice(&(i64::MAX as u64).to_le_bytes());
    fs::write(&path, huge).unwrap();
    assert!(refusal(&path).contains("damaged"));
    // a count of metadata that never ends
    let mut endless = whole.clone();
    endless[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, endless).unwrap();
    assert!(refusal(&path).contains("damaged"));
    // every single byte of the header flipped: an answer or a refusal, never a crash
    let header = whole.len() - (100 + 16) * 32 * 2;
    for position in 0..header {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x55;
        fs::write(&path, flipped).unwrap();
        if let Err(error) = inventory_of(&path) {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn per_layer_arrays_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let mut metadata = basics();
    metadata.extend([
        (
            "llama.attention.head_count_kv".to_owned(),
            Value::I32s(vec![1, 0]),
        ),
        (
            "llama.expert_used_count".to_owned(),
            Value::I32s(vec![2, 6]),
        ),
    ]);
    let tensors: &[Row<'_>] = &[
        FIRST[0],
        FIRST[1],
        ("blk.1.attn_k.weight", &[32, 16], "f16"),
    ];
    fs::write(&path, gguf(&metadata, tensors)).unwrap();
    let inventory = inventory_of(&path).unwrap();
    assert_eq!(inventory.kv.layers.len(), 1);
    assert_eq!(inventory.expert_used_count, 6);
}
