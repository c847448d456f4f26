//! A GGUF cut into pieces as llama.cpp's own tool does it, which is not among those that are built here.

use std::path::Path;

const ALIGNMENT: usize = 32;

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> &'b [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut number = [0; 8];
        number[..N].copy_from_slice(self.take(N));
        u64::from_le_bytes(number)
    }

    fn text(&mut self) {
        let length = self.number::<8>();
        self.take(length as usize);
    }

    fn skip_value(&mut self, kind: u64) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => self.text(),
            9 => {
                let (kind, count) = (self.number::<4>(), self.number::<8>());
                (0..count).for_each(|_| self.skip_value(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

/// A tensor: what its entry says ahead of the offset, and its bytes.
struct Tensor<'b> {
    entry: &'b [u8],
    data: &'b [u8],
}

fn padded(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

fn key(bytes: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
}

/// Cuts `model` into `count` pieces in `folder`, called piece-00001-of-… and so on.
pub fn split(model: &Path, folder: &Path, count: u16) {
    let whole = std::fs::read(model).expect("a model");
    let mut reader = Reader {
        bytes: &whole,
        at: 8,
    };
    let (tensors, keys) = (reader.number::<8>(), reader.number::<8>());
    let begin = reader.at;
    for _ in 0..keys {
        reader.text();
        let kind = reader.number::<4>();
        reader.skip_value(kind);
    }
    let metadata = &whole[begin..reader.at];
    let entries: Vec<(&[u8], usize)> = (0..tensors)
        .map(|_| {
            let from = reader.at;
            reader.text();
            let dimensions = reader.number::<4>() as usize;
            reader.take(8 * dimensions + 4);
            let entry = &whole[from..reader.at];
            (entry, reader.number::<8>() as usize)
        })
        .collect();
    let data = &whole[reader.at.next_multiple_of(ALIGNMENT)..];
    let ends = entries.iter().skip(1).map(|&(_, offset)| offset);
    let all: Vec<Tensor<'_>> = entries
        .iter()
        .zip(ends.chain([data.len()]))
        .map(|(&(entry, offset), end)| Tensor {
            entry,
            data: &data[offset..end],
        })
        .collect();
    let each = all.len().div_ceil(usize::from(count));
    for (number, part) in all.chunks(each).enumerate() {
        let mut piece = whole[..8].to_vec();
        let own = if number == 0 { keys } else { 0 };
        piece.extend((part.len() as u64).to_le_bytes());
        piece.extend((own + 3).to_le_bytes());
        if number == 0 {
            piece.extend(metadata);
        }
        key(&mut piece, "split.no", 2, &(number as u16).to_le_bytes());
        key(&mut piece, "split.count", 2, &count.to_le_bytes());
        let total = (all.len() as i32).to_le_bytes();
        key(&mut piece, "split.tensors.count", 5, &total);
        let mut body = Vec::new();
        for tensor in part {
            piece.extend(tensor.entry);
            piece.extend((body.len() as u64).to_le_bytes());
            body.extend(tensor.data);
            padded(&mut body);
        }
        padded(&mut piece);
        piece.extend(body);
        let name = format!("piece-{:05}-of-{count:05}.gguf", number + 1);
        std::fs::write(folder.join(name), piece).expect("a file");
    }
}
