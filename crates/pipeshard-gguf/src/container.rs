//! The GGUF container, version 3, little-endian: header, metadata, tensor list; the data follows in place.

/// Alignment of the data section and of every tensor in it: GGUF's default, so that it need not be stated.
pub const ALIGNMENT: u64 = 32;

const VERSION: u32 = 3;

/// Numbers of the value types.
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

/// What the tensor list says about a tensor.
pub struct Entry<'a> {
    pub name: &'a str,
    pub shape: &'a [u64],
    pub ggml_type: u32,
    /// Bytes from the start of the data section.
    pub offset: u64,
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn array(&mut self, kind: u32, count: usize) {
        self.u32(ARRAY);
        self.u32(kind);
        self.u64(count as u64);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::U32(number) => {
                self.u32(UINT32);
                self.u32(*number);
            }
            Value::F32(number) => {
                self.u32(FLOAT32);
                self.u32(number.to_bits());
            }
            Value::Bool(truth) => {
                self.u32(BOOL);
                self.0.push(u8::from(*truth));
            }
            Value::Text(text) => {
                self.u32(STRING);
                self.text(text);
            }
            Value::Texts(texts) => {
                self.array(STRING, texts.len());
                texts.iter().for_each(|text| self.text(text));
            }
            Value::F32s(numbers) => {
                self.array(FLOAT32, numbers.len());
                numbers.iter().for_each(|number| self.u32(number.to_bits()));
            }
            Value::I32s(numbers) => {
                self.array(INT32, numbers.len());
                numbers
                    .iter()
                    .for_each(|number| self.u32(number.cast_unsigned()));
            }
        }
    }
}

/// Everything before the data section, padded so that the data begins aligned.
pub fn header(metadata: &[(String, Value)], tensors: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    bytes.0.extend_from_slice(b"GGUF");
    bytes.u32(VERSION);
    bytes.u64(tensors.len() as u64);
    bytes.u64(metadata.len() as u64);
    for (key, value) in metadata {
        bytes.text(key);
        bytes.value(value);
    }
    for tensor in tensors {
        bytes.text(tensor.name);
        bytes.u32(tensor.shape.len() as u32);
        tensor.shape.iter().for_each(|&n| bytes.u64(n));
        bytes.u32(tensor.ggml_type);
        bytes.u64(tensor.offset);
    }
    let end = bytes.0.len().next_multiple_of(ALIGNMENT as usize);
    bytes.0.resize(end, 0);
    bytes.0
}
