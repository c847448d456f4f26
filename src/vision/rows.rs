//! Feed-forward networks in pieces of rows: a graph rewrite.
//!
//! A feed-forward network treats each row (a patch of an image, a moment of sound) alone, and yet all rows pass it together: what lies
//! between its products, several times as wide as a row, is most of what an encoder's compute buffers hold. Here a few rows at a time
//! go through it, and what comes out is added to the residual stream where that lies:
//!
//! ```text
//! x + down(activation(up(norm(x))))   becomes   x₀ += down(activation(up(norm(x₀)))); x₁ += …; …
//! ```
//!
//! with views of the rows of `x`. A row's sums are formed as before. Whatever is computed from rows of `x` alone, by operations that keep
//! rows apart, and is added to `x` in the end is recognised; nobody else may read `x` or what is in between.
//!
//! The additions are chained through a source that they do not use, and a view of all of `x` stands behind the last: who read the sum reads
//! that. So ggml's allocator keeps `x` until then, and no longer.

use super::{is_view, Backends};
use crate::rewrite::{compute, room, set_nodes, Tensor, TensorContext};
use pipeshard_sys as ffi;
use std::collections::{HashMap, HashSet};

/// A source that additions do not use.
const CHAIN: usize = ffi::GGML_MAX_SRC as usize - 1;
/// Pieces of a network: with so many others need more memory.
const PIECES: i64 = 4;
/// Rows of a piece at least: enough for the device to be busy with.
const LEAST: i64 = 256;
/// Nodes of a network at most.
const NODES: usize = 32;

/// What was done to a graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Divided {
    /// Feed-forward networks that are computed in pieces.
    pub networks: u64,
    /// Their pieces.
    pub pieces: u64,
    /// Nodes that were put in.
    pub nodes: u64,
}

/// `x + f(x)`, row by row.
struct Network {
    /// The residual stream.
    x: Tensor,
    /// What `f` consists of, in order of execution.
    inner: Vec<Tensor>,
    /// The sum.
    sum: Tensor,
}

/// Who reads a tensor how often.
type Readers = HashMap<usize, u32>;

/// Computes feed-forward networks in pieces of rows, as many as there is room for. None are fine.
///
/// # Safety
/// `graph` is a valid graph that has not been split yet. `context` holds nothing that is still used.
pub unsafe fn divide(
    graph: *mut ffi::ggml_cgraph,
    context: &mut Option<TensorContext>,
    backends: Backends,
) -> Divided {
    let mut divided = Divided::default();
    let count = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    let raw = ffi::ggml_graph_nodes(graph);
    if raw.is_null() || count == 0 {
        return divided;
    }
    let nodes = std::slice::from_raw_parts(raw, count).to_vec();
    let mut readers: Readers = HashMap::new();
    for &node in &nodes {
        for source in (*node).src.into_iter().filter(|source| !source.is_null()) {
            *readers.entry(source as usize).or_default() += 1;
        }
    }
    let position: HashMap<usize, usize> =
        nodes.iter().map(|&node| node as usize).zip(0..).collect();
    let found = nodes
        .iter()
        .filter_map(|&sum| network(sum, &readers, &position));
    let mut found: Vec<Network> = found.collect();
    // a stream that is itself the sum of another would have no memory of its own any more
    let sums: HashSet<usize> = found.iter().map(|network| network.sum as usize).collect();
    found.retain(|network| !sums.contains(&(network.x as usize)));
    let more = |network: &Network| pieces(network).len() * (network.inner.len() + 2);
    let unread = nodes
        .iter()
        .filter(|&&node| !readers.contains_key(&(node as usize)));
    let room = room(graph, readers.len() + unread.count());
    let mut left = room.nodes.min(room.tensors);
    found.retain(|network| {
        let fits = more(network) <= left;
        left -= if fits { more(network) } else { 0 };
        fits
    });
    let tensors: usize = found.iter().map(|network| more(network) + 1).sum();
    let Some(context) = TensorContext::emptied(context, tensors).filter(|_| !found.is_empty())
    else {
        return divided;
    };
    let mut parts: HashMap<usize, Vec<Tensor>> = HashMap::new();
    let mut removed: HashSet<usize> = HashSet::new();
    for network in &found {
        let part = in_pieces(context, network);
        let able =
            |&node: &Tensor| is_view(node) || ffi::ggml_backend_supports_op(backends.device, node);
        if !part.iter().all(able) {
            continue;
        }
        for &node in &part {
            ffi::ggml_backend_sched_set_tensor_backend(backends.sched, node, backends.device);
            compute(node);
        }
        divided.networks += 1;
        divided.pieces += pieces(network).len() as u64;
        divided.nodes += (part.len() - network.inner.len() - 1) as u64;
        removed.extend(network.inner.iter().map(|&node| node as usize));
        parts.insert(network.sum as usize, part);
    }
    hand_on(&nodes, &parts);
    let mut order: Vec<Tensor> = Vec::with_capacity(nodes.len() + divided.nodes as usize);
    for &node in &nodes {
        match parts.get(&(node as usize)) {
            Some(part) => order.extend(part),
            None if removed.contains(&(node as usize)) => {}
            None => order.push(node),
        }
    }
    set_nodes(graph, &order);
    divided
}

/// In how many pieces a network with so many rows is computed.
pub fn count(rows: i64) -> i64 {
    (rows / LEAST).clamp(1, PIECES)
}

/// Where the pieces of a network begin, and how many rows each has.
fn pieces(network: &Network) -> Vec<(i64, i64)> {
    // SAFETY: the networks that are found consist of valid tensors.
    let rows = unsafe { (*network.x).ne[1] };
    let count = count(rows);
    let begin = |piece: i64| rows * piece / count;
    let piece = |piece| (begin(piece), begin(piece + 1) - begin(piece));
    (0..count).map(piece).collect()
}

/// The network whose sum this node is, if it is one, and worth it.
unsafe fn network(
    sum: Tensor,
    readers: &Readers,
    position: &HashMap<usize, usize>,
) -> Option<Network> {
    let [left, right, ..] = (*sum).src;
    if (*sum).op != ffi::GGML_OP_ADD || !is_rows(sum) || left.is_null() || right.is_null() {
        return None;
    }
    // who is added to whom is a matter of taste
    let of = |x, y| of_stream(sum, x, y, readers, position);
    of(left, right).or_else(|| of(right, left))
}

unsafe fn of_stream(
    sum: Tensor,
    x: Tensor,
    y: Tensor,
    readers: &Readers,
    position: &HashMap<usize, usize>,
) -> Option<Network> {
    let computed = !matches!((*x).op, ffi::GGML_OP_NONE) && !is_view(x) && (*x).view_src.is_null();
    let asked = |node: Tensor| (*node).flags & ffi::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
    let rows = (*x).ne[1];
    if !computed || !is_rows(x) || asked(x) || asked(sum) || !same_shape(x, sum) || count(rows) < 2
    {
        return None;
    }
    let mut inner: Vec<Tensor> = Vec::new();
    let mut reads: Readers = HashMap::from([(x as usize, 1)]);
    let mut left = vec![y];
    while let Some(node) = left.pop() {
        if node == x || inner.contains(&node) {
            continue;
        }
        position.get(&(node as usize))?;
        if inner.len() == NODES || asked(node) || !is_rows(node) || (*node).ne[1] != rows {
            return None;
        }
        for source in rows_read(node, rows)? {
            *reads.entry(source as usize).or_default() += 1;
            left.push(source);
        }
        inner.push(node);
    }
    // what is in between is read by nobody else, and neither is the stream
    *reads.entry(y as usize).or_default() += 1;
    let alone = |(tensor, count): (&usize, &u32)| readers.get(tensor) == Some(count);
    let wide = inner
        .iter()
        .any(|&node| (*node).op == ffi::GGML_OP_MUL_MAT && (*node).ne[0] > (*x).ne[0]);
    if !wide || !reads.iter().all(alone) || y == x {
        return None;
    }
    inner.sort_by_key(|&node| position.get(&(node as usize)));
    Some(Network { x, inner, sum })
}

/// The sources of which each row of a node is computed from the same row; all others are the same for every row. None where the
/// operation may look at other rows.
unsafe fn rows_read(node: Tensor, rows: i64) -> Option<Vec<Tensor>> {
    if !(*node).view_src.is_null() {
        return None;
    }
    let [a, b, further @ ..] = (*node).src;
    let further = further.iter().any(|source| !source.is_null());
    let of_rows = |tensor: Tensor| is_rows(tensor) && (*tensor).ne[1] == rows;
    if a.is_null() || further {
        return None;
    }
    match (*node).op {
        ffi::GGML_OP_MUL_MAT if !b.is_null() => {
            (is_constant(a) && (*a).ne[2] == 1 && (*a).ne[3] == 1 && of_rows(b)).then(|| vec![b])
        }
        ffi::GGML_OP_ADD | ffi::GGML_OP_MUL if !b.is_null() && of_rows(a) => {
            let vector = is_constant(b) && matches!((*b).ne, [_, 1, 1, 1]);
            match (vector, of_rows(b) && same_shape(a, b)) {
                (true, _) => Some(vec![a]),
                (_, true) => Some(vec![a, b]),
                _ => None,
            }
        }
        ffi::GGML_OP_GLU if of_rows(a) => match b.is_null() {
            true => Some(vec![a]),
            false => of_rows(b).then(|| vec![a, b]),
        },
        ffi::GGML_OP_NORM | ffi::GGML_OP_RMS_NORM | ffi::GGML_OP_UNARY | ffi::GGML_OP_SCALE
            if b.is_null() && of_rows(a) =>
        {
            Some(vec![a])
        }
        _ => None,
    }
}

/// A weight: nothing computes it, and nobody sets it for a graph.
unsafe fn is_constant(tensor: Tensor) -> bool {
    let input = ffi::GGML_TENSOR_FLAG_INPUT as i32;
    (*tensor).op == ffi::GGML_OP_NONE && (*tensor).flags & input == 0
}

/// Rows of floats, one behind the other.
unsafe fn is_rows(tensor: Tensor) -> bool {
    (*tensor).type_ == ffi::GGML_TYPE_F32
        && matches!((*tensor).ne, [_, _, 1, 1])
        && ffi::ggml_is_contiguous(tensor)
}

unsafe fn same_shape(a: Tensor, b: Tensor) -> bool {
    (*a).ne == (*b).ne
}

/// The network in pieces, in order of execution; the last node is all of the sum.
unsafe fn in_pieces(context: &TensorContext, network: &Network) -> Vec<Tensor> {
    let context = context.raw();
    let x = network.x;
    let [width, rows, ..] = (*x).ne;
    let row = (*x).nb[1];
    let mut part = Vec::new();
    let mut before: Tensor = std::ptr::null_mut();
    for (first, count) in pieces(network) {
        let offset = first as usize * row;
        let view = ffi::ggml_view_2d(context, x, width, count, row, offset);
        let mut made: HashMap<usize, Tensor> = HashMap::from([(x as usize, view)]);
        part.push(view);
        for &node in network.inner.iter().chain([&network.sum]) {
            let copy = ffi::ggml_new_tensor_2d(context, (*node).type_, (*node).ne[0], count);
            (*copy).op = (*node).op;
            (*copy).op_params = (*node).op_params;
            (*copy).src = (*node)
                .src
                .map(|source| made.get(&(source as usize)).copied().unwrap_or(source));
            ffi::ggml_set_name(copy, (*node).name.as_ptr());
            made.insert(node as usize, copy);
            part.push(copy);
            if node == network.sum {
                (*copy).view_src = x;
                (*copy).view_offs = offset;
                (*copy).src[CHAIN] = before;
                before = copy;
            }
        }
    }
    let whole = ffi::ggml_view_2d(context, x, width, rows, row, 0);
    (*whole).src[0] = before;
    ffi::ggml_set_name(whole, (*network.sum).name.as_ptr());
    part.push(whole);
    part
}

/// Has the readers of nodes that were replaced read the last of what takes their place, a view of all of it, and their views look into
/// that memory.
pub(super) unsafe fn hand_on(nodes: &[Tensor], parts: &HashMap<usize, Vec<Tensor>>) {
    let mut views: HashMap<usize, Tensor> = HashMap::new();
    for &node in nodes {
        let sources = (*node).src;
        let first = sources[0];
        (*node).src = sources.map(|source| {
            let whole = parts.get(&(source as usize)).and_then(|part| part.last());
            whole.copied().unwrap_or(source)
        });
        if !is_view(node) {
            continue;
        }
        let direct = parts.get(&(first as usize)).and_then(|part| part.last());
        let memory = match direct {
            Some(&whole) => Some((*whole).view_src),
            None => views.get(&(first as usize)).copied(),
        };
        if let Some(memory) = memory {
            (*node).view_src = memory;
            views.insert(node as usize, memory);
        }
    }
}

#[cfg(test)]
mod tests;
