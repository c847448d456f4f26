//! Where operands lie while an operation is measured: copies of its weights, then inputs and outputs.

use super::data::{chosen, normal, Blocks};
use super::engine::Engine;
use super::error::MeasureError;
use super::graph::{write, Graph, Tensor};
use super::traffic::Traffic;
use crate::lanes::device::Buffer;
use pipeshard_model::inventory::DType;
use pipeshard_plan::profile::Op;
use pipeshard_sys as ffi;

/// Alignment of all that is placed, in bytes: at least that of any backend.
const ALIGNMENT: u64 = 512;
/// Different choices of experts within one graph.
const CHOICES: usize = 32;

/// A range of bytes in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Room<'b> {
    pub buffer: &'b Buffer,
    pub offset: u64,
    pub bytes: u64,
}

impl Room<'_> {
    /// The part that begins at `from`, a share of all from 0 to 1, and ends at `to`.
    pub fn part(self, from: f64, to: f64) -> Self {
        let at = |share: f64| (self.bytes as f64 * share) as u64 / ALIGNMENT * ALIGNMENT;
        Room {
            offset: self.offset + at(from),
            bytes: at(to) - at(from),
            ..self
        }
    }
}

/// Where the operands of one processor lie.
pub(super) struct Place<'b> {
    pub weights: Room<'b>,
    pub input: Room<'b>,
    /// Results; what chooses or masks; in this order.
    pub output: Room<'b>,
    /// Weights are copied in so often that they take this many bytes: more than caches hold.
    pub rotate: u64,
}

/// An operation whose weights have been filled in.
#[derive(Debug)]
pub(super) struct Operands {
    op: Op,
    /// Bytes from one copy of the weights to the next.
    stride: u64,
    /// Copies of the weights.
    pub copies: usize,
    /// Where the values of a KV cache begin, after its keys.
    values: u64,
}

impl Operands {
    /// How often the operation is computed until all of its weights have been read: once for each copy, and more often where a
    /// token reads only the experts that it chooses. What is computed less often may find its weights in a cache.
    pub fn turns(&self, tokens: u32) -> usize {
        let whole = self.op.operand_bytes() as f64;
        let read = self.op.work(tokens).bytes.clamp(1.0, whole.max(1.0));
        // once where there are no weights to go round in
        ((self.copies as f64 * whole / read).ceil() as usize).max(1)
    }
}

fn up(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// ggml's number of a type.
fn kind_of(type_name: &str) -> Option<&'static DType> {
    DType::from_name(type_name)
}

impl<'b> Place<'b> {
    /// Fills the first `bytes` of the input with numbers.
    pub fn fill_input(&self, bytes: u64) -> Result<(), MeasureError> {
        let numbers = normal(1 << 18, 5);
        let data: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut at = 0;
        let end = bytes.min(self.input.bytes);
        while at < end {
            let length = (end - at).min(data.len() as u64);
            let place = self.input.offset + at;
            write(self.input.buffer, place, &data[..length as usize])?;
            at += length;
        }
        Ok(())
    }

    /// Fills the weights of `op` in, as often as there is room and need; none where not even one copy fits, or a type is
    /// unknown.
    pub fn prepare(
        &self,
        op: &Op,
        filler: &mut Filler<'_, 'b>,
    ) -> Result<Option<Operands>, MeasureError> {
        let (parts, values): (Vec<(u64, u64, &str)>, u64) = match op {
            Op::Product { type_name, .. } | Op::Experts { type_name, .. } => {
                (vec![(0, op.operand_bytes(), type_name)], 0)
            }
            Op::Sum { .. } => (Vec::new(), 0),
            Op::Attention {
                type_k,
                type_v,
                head,
                kv_heads,
                kv_tokens,
                ..
            } => {
                let width = u64::from(*head) * u64::from(*kv_heads);
                let size = |name: &str| {
                    kind_of(name).map_or(0, |dtype| dtype.device_bytes([width, *kv_tokens, 1, 1]))
                };
                let values = up(size(type_k));
                let parts = vec![
                    (0, size(type_k), &**type_k),
                    (values, size(type_v), &**type_v),
                ];
                (parts, values)
            }
        };
        let one = parts.iter().map(|(at, bytes, _)| at + bytes).max();
        // the tail that a device wants after quantised rows is in `operand_bytes`, and a little more does not hurt
        let stride = up(one.unwrap_or(0) + ALIGNMENT);
        let copies = (self.weights.bytes / stride).min(self.rotate.div_ceil(stride).max(1));
        if copies == 0 {
            return Ok(None);
        }
        for (at, bytes, type_name) in parts {
            for copy in 0..copies {
                let room = Room {
                    offset: self.weights.offset + copy * stride + at,
                    bytes,
                    ..self.weights
                };
                if !filler.fill(room, type_name, copy)? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Operands {
            op: op.clone(),
            stride,
            copies: copies as usize,
            values,
        }))
    }

    /// A graph that computes the operation `count` times for `tokens` tokens, with one copy of the weights after the other,
    /// beginning with `first`. None where inputs or outputs do not fit, or the engine cannot compute it.
    pub fn graph(
        &self,
        engine: &Engine,
        operands: &Operands,
        tokens: u32,
        first: usize,
        count: usize,
    ) -> Result<Option<Graph<'b>>, MeasureError> {
        let graph = Graph::new(8 * count + CHOICES + 8)?;
        let t = i64::from(tokens);
        let float = ffi::GGML_TYPE_F32;
        let (input, output) = (self.input, self.output);
        let weights = |index: usize| {
            let copy = (first + index) % operands.copies;
            self.weights.offset + copy as u64 * operands.stride
        };
        let mut nodes = Vec::with_capacity(count);
        let fits = |input_bytes: u64, output_bytes: u64, more: u64| {
            input_bytes <= input.bytes && up(output_bytes) + more + ALIGNMENT <= output.bytes
        };
        match &operands.op {
            Op::Product {
                type_name,
                columns,
                rows,
            } => {
                let (c, r) = (*columns, *rows);
                let Some(dtype) = kind_of(type_name) else {
                    return Ok(None);
                };
                if !fits(4 * c * u64::from(tokens), 4 * r * u64::from(tokens), 0) {
                    return Ok(None);
                }
                let x = graph.tensor(float, [c as i64, t, 1], input.buffer, input.offset)?;
                for index in 0..count {
                    let shape = [c as i64, r as i64, 1];
                    let at = weights(index);
                    let w = graph.tensor(dtype.id, shape, self.weights.buffer, at)?;
                    nodes.push(graph.product(w, x, (output.buffer, output.offset))?);
                }
            }
            Op::Experts {
                type_name,
                columns,
                rows,
                experts,
                used,
            } => {
                let Some(dtype) = kind_of(type_name) else {
                    return Ok(None);
                };
                let (e, k) = (i64::from(*experts), i64::from(*used));
                let results = 4 * rows * u64::from(*used) * u64::from(tokens);
                let list = up(4 * u64::from(*used) * u64::from(tokens));
                let choices = count.min(CHOICES);
                if !fits(
                    4 * columns * u64::from(tokens),
                    results,
                    list * choices as u64,
                ) {
                    return Ok(None);
                }
                let x = graph.tensor(float, [*columns as i64, 1, t], input.buffer, input.offset)?;
                let lists = output.offset + up(results);
                let mut ids = Vec::with_capacity(choices);
                for choice in 0..choices {
                    let at = lists + choice as u64 * list;
                    let seed = (first * 64 + choice) as u64;
                    let list = chosen(*experts, *used, tokens, seed);
                    let bytes: Vec<u8> = list.iter().flat_map(|id| id.to_le_bytes()).collect();
                    write(output.buffer, at, &bytes)?;
                    ids.push(graph.tensor(ffi::GGML_TYPE_I32, [k, t, 1], output.buffer, at)?);
                }
                for index in 0..count {
                    let shape = [*columns as i64, *rows as i64, e];
                    let at = weights(index);
                    let stack = graph.tensor(dtype.id, shape, self.weights.buffer, at)?;
                    let to = (output.buffer, output.offset);
                    nodes.push(graph.experts(stack, x, ids[index % choices], to)?);
                }
            }
            Op::Sum { columns } => {
                let bytes = 4 * columns * u64::from(tokens);
                if !fits(up(bytes) + bytes, bytes, 0) {
                    return Ok(None);
                }
                let shape = [*columns as i64, t, 1];
                let at = |index: u64| input.offset + index * up(bytes);
                let x = graph.tensor(float, shape, input.buffer, at(0))?;
                let y = graph.tensor(float, shape, input.buffer, at(1))?;
                for _ in 0..count {
                    nodes.push(graph.sum(x, y, (output.buffer, output.offset))?);
                }
            }
            Op::Attention {
                head,
                heads,
                kv_heads,
                type_k,
                type_v,
                kv_tokens,
            } => {
                let (Some(kind_k), Some(kind_v)) = (kind_of(type_k), kind_of(type_v)) else {
                    return Ok(None);
                };
                let queries = 4 * u64::from(*head) * u64::from(*heads) * u64::from(tokens);
                let mask_bytes = 2 * kv_tokens * u64::from(tokens);
                if !fits(queries, queries, mask_bytes) {
                    return Ok(None);
                }
                let (d, h, g) = (i64::from(*head), i64::from(*heads), i64::from(*kv_heads));
                let q = graph.tensor(float, [d, t, h], input.buffer, input.offset)?;
                let at = output.offset + up(queries);
                // every token sees the whole cache
                clear(output.buffer, at, mask_bytes)?;
                let shape = [*kv_tokens as i64, t, 1];
                let mask = graph.tensor(ffi::GGML_TYPE_F16, shape, output.buffer, at)?;
                for index in 0..count {
                    let shape = [d, *kv_tokens as i64, g];
                    let at = weights(index);
                    let k = graph.cache(kind_k.id, shape, self.weights.buffer, at)?;
                    let at = at + operands.values;
                    let v = graph.cache(kind_v.id, shape, self.weights.buffer, at)?;
                    let to = (output.buffer, output.offset);
                    nodes.push(graph.attention([q, k, v, mask], *head, to)?);
                }
            }
        }
        let able = nodes.iter().all(|node| engine.computes(*node));
        Ok(able.then_some(graph))
    }
}

/// Writes zeros.
fn clear(buffer: &Buffer, offset: u64, bytes: u64) -> Result<(), MeasureError> {
    let zeros = vec![0u8; bytes.min(1 << 22) as usize];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(zeros.len() as u64);
        write(buffer, offset + at, &zeros[..length as usize])?;
        at += length;
    }
    Ok(())
}

/// Fills weights in: on the device through page-locked memory, on the host with several threads.
pub(super) struct Filler<'t, 'b> {
    pub traffic: &'t Traffic<'b>,
    pub threads: usize,
    blocks: Vec<Blocks>,
    staged: Option<String>,
}

impl<'t, 'b> Filler<'t, 'b> {
    pub fn new(traffic: &'t Traffic<'b>, threads: u32) -> Self {
        Filler {
            traffic,
            threads: threads as usize,
            blocks: Vec::new(),
            staged: None,
        }
    }

    /// Fills a range with weights of a type. False for a type that is not supported.
    fn fill(&mut self, room: Room<'b>, type_name: &str, seed: u64) -> Result<bool, MeasureError> {
        let known = self.blocks.iter().position(|b| b.type_name() == type_name);
        let index = match known {
            Some(index) => index,
            None => match Blocks::new(type_name) {
                Some(blocks) => {
                    self.blocks.push(blocks);
                    self.blocks.len() - 1
                }
                None => return Ok(false),
            },
        };
        let blocks = &self.blocks[index];
        // SAFETY: a live buffer.
        if unsafe { ffi::ggml_backend_buffer_is_host(room.buffer.raw()) } {
            let base = room.buffer.base().wrapping_add(room.offset as usize);
            // SAFETY: the range lies inside the buffer, in host memory, and nothing is computed from it meanwhile.
            let to = unsafe { std::slice::from_raw_parts_mut(base, room.bytes as usize) };
            self.fill_host(blocks, to, seed);
            return Ok(true);
        }
        let graph = Graph::new(1)?;
        let shape = [room.bytes as i64, 1, 1];
        let target: Tensor = graph.tensor(ffi::GGML_TYPE_I8, shape, room.buffer, room.offset)?;
        let pieces: Vec<(usize, usize)> = blocks.pieces(room.bytes as usize, seed).collect();
        match self.traffic.pinned() {
            Some((base, size)) if size >= blocks.bytes().len() as u64 => {
                if self.staged.as_deref() != Some(type_name) {
                    // SAFETY: the page-locked buffer has room for all blocks, and the copy lane is idle.
                    unsafe {
                        base.copy_from_nonoverlapping(blocks.bytes().as_ptr(), blocks.bytes().len())
                    };
                    self.staged = Some(type_name.to_owned());
                }
                // SAFETY: the pieces lie inside the blocks, and together are as long as the target.
                unsafe { self.traffic.fill(target, base, &pieces) };
            }
            _ => {
                let mut at = 0;
                for (from, bytes) in pieces {
                    let piece = &blocks.bytes()[from..from + bytes];
                    write(room.buffer, room.offset + at, piece)?;
                    at += bytes as u64;
                }
            }
        }
        Ok(true)
    }

    fn fill_host(&self, blocks: &Blocks, to: &mut [u8], seed: u64) {
        let block = DType::from_name(blocks.type_name()).map_or(1, |d| d.block_bytes as usize);
        let share = to.len().div_ceil(self.threads.max(1)).max(1 << 20);
        let share = share.next_multiple_of(block);
        std::thread::scope(|scope| {
            for (index, part) in to.chunks_mut(share).enumerate() {
                let seed = seed * 1000 + index as u64;
                scope.spawn(move || blocks.fill(part, seed));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_take_more_turns_than_copies_until_all_weights_were_read() {
        let turns = |op: Op, tokens| {
            let operands = Operands {
                op,
                stride: 0,
                copies: 10,
                values: 0,
            };
            operands.turns(tokens)
        };
        let experts = Op::Experts {
            type_name: "f16".to_owned(),
            columns: 256,
            rows: 64,
            experts: 128,
            used: 8,
        };
        assert_eq!(turns(experts.clone(), 1), 160);
        // of many tokens each expert is some token's
        assert!((10..=11).contains(&turns(experts, 512)));
        let product = Op::Product {
            type_name: "f16".to_owned(),
            columns: 256,
            rows: 64,
        };
        assert_eq!((turns(product.clone(), 1), turns(product, 512)), (10, 10));
    }
}
