//! Attention that is not fused, in blocks of queries: a graph rewrite.
//!
//! Where a device has no fused attention for an encoder's heads, or `-fa off` forbids it, the scores of all rows with all rows are in
//! memory at once: N² values per head. Here a block of queries at a time is scored, and what comes out is written where it belongs:
//!
//! ```text
//! v · softmax(k · q, mask)   becomes   out; v · softmax(k · q₀, mask₀) → out₀; v · softmax(k · q₁, mask₁) → out₁; …
//! ```
//!
//! with views of the rows of `q` and of the mask. The scores of a row are formed as before, so no sum changes.
//!
//! `out` is a node without an operation. The copies into it are chained through a source that they do not use, and a view of all of it
//! stands behind the last: who read the result reads that. So ggml's allocator keeps `out` until then, and no longer.

use super::rows::hand_on;
use super::{is_view, Backends};
use crate::rewrite::{compute, room, set_nodes, Tensor, TensorContext};
use pipeshard_sys as ffi;
use std::collections::{HashMap, HashSet};

/// A source that copies do not use.
const CHAIN: usize = ffi::GGML_MAX_SRC as usize - 1;
/// Queries of a block at least: enough for the device to be busy with.
const LEAST: i64 = 256;
/// Nodes of a block: views of queries, of the mask and of the place, two products, the softmax, a copy.
const OF_BLOCK: usize = 7;
/// Nodes besides: memory for the result, and a view of all of it.
const BESIDES: usize = 2;

/// What was done to a graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Divided {
    /// Attentions that are computed in blocks.
    pub attentions: u64,
    /// Their blocks.
    pub blocks: u64,
    /// Nodes that were put in.
    pub nodes: u64,
}

/// An attention as clip.cpp builds it without a fused operation.
#[derive(Clone, Copy)]
struct Attention {
    /// Keys by queries.
    scores: Tensor,
    softmax: Tensor,
    /// Values by weights of the softmax.
    result: Tensor,
}

/// Computes attention that is not fused in blocks of queries, as many as there is room for. None are fine.
///
/// # Safety
/// `graph` is a valid graph that has not been split yet. `context` holds nothing that is still used, unless by this graph.
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
    let found = find(&nodes);
    if found.is_empty() {
        return divided;
    }
    let mut known: HashSet<usize> = nodes.iter().map(|&node| node as usize).collect();
    nodes
        .iter()
        .for_each(|&node| known.extend((*node).src.iter().map(|&source| source as usize)));
    let room = room(graph, known.len());
    let each = room.nodes.min(room.tensors) / found.len();
    let most = each.saturating_sub(BESIDES) / OF_BLOCK;
    let blocks_of = |attention: &Attention| blocks((*attention.result).ne[1], most);
    let more: usize = found.iter().map(|a| blocks_of(a).len()).sum();
    let tensors = more * OF_BLOCK + found.len() * BESIDES;
    let Some(context) = TensorContext::emptied(context, tensors).filter(|_| most > 1) else {
        return divided;
    };
    let mut parts: HashMap<usize, Vec<Tensor>> = HashMap::new();
    let mut removed: HashSet<usize> = HashSet::new();
    for attention in &found {
        let blocks = blocks_of(attention);
        let part = in_blocks(context, attention, &blocks);
        let able = |&node: &Tensor| {
            is_view(node)
                || (*node).op == ffi::GGML_OP_NONE
                || ffi::ggml_backend_supports_op(backends.device, node)
        };
        if blocks.len() < 2 || !part.iter().all(able) {
            continue;
        }
        // a mask that somebody sets lies where its rows are looked at; from the host, each view of it would be copied
        let mask = (*attention.softmax).src[1];
        let placed = (!mask.is_null() && (*mask).op == ffi::GGML_OP_NONE).then_some(mask);
        for &node in part.iter().chain(&placed) {
            ffi::ggml_backend_sched_set_tensor_backend(backends.sched, node, backends.device);
        }
        part.iter().for_each(|&node| compute(node));
        divided.attentions += 1;
        divided.blocks += blocks.len() as u64;
        divided.nodes += (part.len() - 3) as u64;
        removed.extend([attention.scores, attention.softmax].map(|node| node as usize));
        parts.insert(attention.result as usize, part);
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

/// Where blocks of so many queries begin, and how many each has: `most` blocks at most.
fn blocks(queries: i64, most: usize) -> Vec<(i64, i64)> {
    let most = i64::try_from(most).unwrap_or(i64::MAX).max(1);
    let count = (queries / LEAST).clamp(1, most);
    let begin = |block: i64| queries * block / count;
    let block = |block| (begin(block), begin(block + 1) - begin(block));
    (0..count).map(block).collect()
}

/// The attentions that are worth it, and of which nothing but the result is looked at.
unsafe fn find(nodes: &[Tensor]) -> Vec<Attention> {
    let mut readers: HashMap<usize, Vec<Tensor>> = HashMap::new();
    for &node in nodes {
        for source in (*node).src.into_iter().filter(|source| !source.is_null()) {
            readers.entry(source as usize).or_default().push(node);
        }
    }
    let only_reader = |of: Tensor| match readers.get(&(of as usize)).map(Vec::as_slice) {
        Some([reader]) => Some(*reader),
        _ => None,
    };
    let asked = |node: Tensor| (*node).flags & ffi::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
    let own = |node: Tensor| (*node).view_src.is_null() && ffi::ggml_is_contiguous(node);
    let of_softmax = |&softmax: &Tensor| {
        let [scores, mask, ..] = (*softmax).src;
        if (*softmax).op != ffi::GGML_OP_SOFT_MAX || (*scores).op != ffi::GGML_OP_MUL_MAT {
            return None;
        }
        let result = only_reader(softmax)?;
        let attention = Attention {
            scores,
            softmax,
            result,
        };
        let queries = (*scores).ne[1];
        let as_expected = only_reader(scores) == Some(softmax)
            && (*result).op == ffi::GGML_OP_MUL_MAT
            && (*result).src[1] == softmax
            && (*result).src[0] != softmax
            && ![scores, softmax, result].into_iter().any(asked)
            && [scores, softmax, result].into_iter().all(own)
            && !is_copied_on(&readers, result)
            && (*result).ne[1] == queries
            && queries >= 2 * LEAST
            && (mask.is_null() || matches!((*mask).ne, [_, rows, 1, 1] if rows >= queries));
        as_expected.then_some(attention)
    };
    nodes.iter().filter_map(of_softmax).collect()
}

/// A block that an earlier rewrite of the same graph has made: its result is copied on.
unsafe fn is_copied_on(readers: &HashMap<usize, Vec<Tensor>>, result: Tensor) -> bool {
    let reads = readers.get(&(result as usize)).into_iter().flatten();
    let chained =
        |&&node: &&Tensor| (*node).op == ffi::GGML_OP_CPY && !(*node).src[CHAIN].is_null();
    reads.filter(chained).count() > 0
}

/// Memory for the result, each block, and a view of all of it, in order of execution.
unsafe fn in_blocks(
    context: &TensorContext,
    attention: &Attention,
    blocks: &[(i64, i64)],
) -> Vec<Tensor> {
    let context = context.raw();
    let Attention {
        scores,
        softmax,
        result,
    } = *attention;
    let [keys, queries, ..] = (*scores).src;
    let [_, mask, sinks, ..] = (*softmax).src;
    let values = (*result).src[0];
    let out = ffi::ggml_dup_tensor(context, result);
    ffi::ggml_set_name(out, (*result).name.as_ptr());
    let rows_of = |of: Tensor, first: i64, count: i64| {
        let ([width, _, heads, batch], [_, row, head, next]) = ((*of).ne, (*of).nb);
        let offset = first as usize * row;
        ffi::ggml_view_4d(
            context, of, width, count, heads, batch, row, head, next, offset,
        )
    };
    let mut part = vec![out];
    let mut before = out;
    for &(first, count) in blocks {
        let of_block = rows_of(queries, first, count);
        part.push(of_block);
        let mask = match mask.is_null() {
            true => mask,
            false => {
                let rows = rows_of(mask, first, count);
                part.push(rows);
                rows
            }
        };
        let scored = ffi::ggml_mul_mat(context, keys, of_block);
        (*scored).op_params = (*scores).op_params;
        let weighed = ffi::ggml_soft_max_ext(context, scored, mask, 1.0, 0.0);
        (*weighed).op_params = (*softmax).op_params;
        (*weighed).src[2] = sinks;
        let made = ffi::ggml_mul_mat(context, values, weighed);
        (*made).op_params = (*result).op_params;
        let place = rows_of(out, first, count);
        let copy = ffi::ggml_cpy(context, made, place);
        (*copy).src[CHAIN] = before;
        before = copy;
        for (node, like) in [(scored, scores), (weighed, softmax), (made, result)] {
            ffi::ggml_set_name(node, (*like).name.as_ptr());
        }
        part.extend([scored, weighed, made, place, copy]);
    }
    let ([width, rows, heads, batch], [_, row, head, next]) = ((*out).ne, (*out).nb);
    let whole = ffi::ggml_view_4d(context, out, width, rows, heads, batch, row, head, next, 0);
    (*whole).src[0] = before;
    ffi::ggml_set_name(whole, (*result).name.as_ptr());
    part.push(whole);
    part
}

#[cfg(test)]
mod tests;
