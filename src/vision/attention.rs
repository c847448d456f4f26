//! Windows attended to side by side: a graph rewrite.
//!
//! Stock computes attention within windows as that of all patches to all, and adds a mask that keeps windows apart: N² values that
//! the host fills, the link carries, and most of whose products are thrown away. Here windows of the same size that lie one behind
//! the other are the batch of one operation without a mask:
//!
//! ```text
//! attention(q, k, v, mask)   becomes   out; attention(q₀, k₀, v₀) → out₀; attention(q₁, k₁, v₁) → out₁; …
//! ```
//!
//! with views of what was attended before, and results that are written where they belong in `out`, which is memory and nothing else.
//! Patches stay in their order. Where all windows are full, ggml's kernels form the same sums in the same order.
//!
//! `out` is a node without an operation. The attentions are chained through a source that none of them uses, and whoever read the one
//! that was replaced reads the last: so ggml's allocator keeps `out` from the first of them until then, and no longer.
//!
//! The mask loses its place in memory and its flag of an input, which tells clip.cpp not to fill it, where clip.cpp asks.

use super::windows::Run;
use super::{is_view, Backends};
use crate::rewrite::{compute, room, set_nodes, Tensor, TensorContext};
use pipeshard_sys as ffi;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

/// clip.cpp's name for the mask of windows.
const MASK: &CStr = c"attn_mask";
/// Nodes of a run: three views and the attention; and where windows do not lie one behind the other, a view and a copy.
pub fn nodes_of(run: &Run) -> usize {
    if run.is_dense() {
        4
    } else {
        6
    }
}
/// A source that attention does not use.
const CHAIN: usize = ffi::GGML_MAX_SRC as usize - 1;
/// Where the memory of a mask is that has none. Nothing may read it.
const NOWHERE: usize = 64;

/// What was done to a graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batched {
    /// Attentions whose windows are computed side by side.
    pub attentions: u64,
    /// Their windows.
    pub windows: u64,
    /// Nodes that were put in.
    pub nodes: u64,
}

/// Why a graph stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// Windows are of other images than the graph's.
    #[error("its mask is not one of the image's patches")]
    OtherMask,
    /// Attention that is not computed as one operation.
    #[error("its attention is not fused")]
    NotFused,
    /// Something else looks at what would be replaced.
    #[error("its attention does not look as expected")]
    OtherShape,
    /// Too many windows of different sizes.
    #[error("the graph has no room for so many windows of different sizes")]
    NoRoom,
    /// The device lacks the operation.
    #[error("the device cannot attend to windows in one batch")]
    NotSupported,
}

/// The graph's mask of windows, if it has one that something reads.
unsafe fn mask_of(nodes: &[Tensor]) -> Option<Tensor> {
    let mut sources = nodes.iter().flat_map(|&node| (*node).src);
    sources.find(|&source| is_mask(source))
}

unsafe fn is_mask(tensor: Tensor) -> bool {
    !tensor.is_null()
        && (*tensor).op == ffi::GGML_OP_NONE
        && CStr::from_ptr((*tensor).name.as_ptr()) == MASK
}

/// The windows of an image.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'r> {
    /// All of them.
    pub runs: &'r [Run],
    /// Patches of the image.
    pub patches: u64,
    /// clip.cpp fills the mask whether or not something reads it.
    pub fills_mask: bool,
}

/// Attends to windows side by side. None where the graph has no mask of windows.
///
/// # Errors
/// [`Declined`], and the graph is as it was.
///
/// # Safety
/// `graph` is a valid graph that has not been split yet. `context` holds nothing that is still used.
pub unsafe fn batch_windows(
    graph: *mut ffi::ggml_cgraph,
    context: &mut Option<TensorContext>,
    backends: Backends,
    windows: Windows<'_>,
) -> Result<Option<Batched>, Declined> {
    let Windows { runs, patches, .. } = windows;
    let count = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    let raw = ffi::ggml_graph_nodes(graph);
    if raw.is_null() || count == 0 {
        return Ok(None);
    }
    let nodes = std::slice::from_raw_parts(raw, count).to_vec();
    let Some(mask) = mask_of(&nodes) else {
        return Ok(None);
    };
    // the graph may come for a second time
    restore(mask);
    let found = find(&nodes, mask, patches)?;
    let inner: usize = runs.iter().map(nodes_of).sum();
    let more = found.len() * inner;
    let mut known: HashSet<usize> = nodes.iter().map(|&node| node as usize).collect();
    nodes
        .iter()
        .for_each(|&node| known.extend((*node).src.iter().map(|&source| source as usize)));
    let room = room(graph, known.len());
    // one is put in and one taken out besides
    if more > room.nodes || more + found.len() > room.tensors {
        return Err(Declined::NoRoom);
    }
    let tensors = found.len() * (inner + 1);
    let context = TensorContext::emptied(context, tensors).ok_or(Declined::NoRoom)?;
    let mut parts: HashMap<usize, Vec<Tensor>> = HashMap::new();
    for &attention in &found {
        let part = divide(context, attention, runs);
        let able = |&node: &Tensor| ffi::ggml_backend_supports_op(backends.device, node);
        if !part[1..].iter().all(|node| is_view(*node) || able(node)) {
            return Err(Declined::NotSupported);
        }
        parts.insert(attention as usize, part);
    }
    // nothing was changed up to here
    for part in parts.values() {
        for &node in part {
            ffi::ggml_backend_sched_set_tensor_backend(backends.sched, node, backends.device);
            compute(node);
        }
    }
    hand_on(&nodes, &parts);
    let mut order: Vec<Tensor> = Vec::with_capacity(nodes.len() + more);
    for &node in &nodes {
        match parts.get(&(node as usize)) {
            Some(part) => order.extend(part),
            None => order.push(node),
        }
    }
    set_nodes(graph, &order);
    forget(mask, backends, windows.fills_mask);
    let attentions = found.len() as u64;
    Ok(Some(Batched {
        attentions,
        windows: attentions * runs.iter().map(|run| run.count).sum::<u64>(),
        nodes: more as u64,
    }))
}

/// The attentions that read the mask, which nothing else does.
unsafe fn find(nodes: &[Tensor], mask: Tensor, patches: u64) -> Result<Vec<Tensor>, Declined> {
    let side = i64::try_from(patches).unwrap_or(i64::MAX);
    if (*mask).ne != [side, side, 1, 1] {
        return Err(Declined::OtherMask);
    }
    let mut found = Vec::new();
    for &node in nodes {
        let reads = (*node).src.iter().filter(|&&source| source == mask).count();
        match (reads, (*node).op) {
            (0, _) => {}
            (1, ffi::GGML_OP_FLASH_ATTN_EXT) if (*node).src[3] == mask => {
                if !is_as_expected(node, side) {
                    return Err(Declined::OtherShape);
                }
                found.push(node);
            }
            (_, ffi::GGML_OP_SOFT_MAX) => return Err(Declined::NotFused),
            _ => return Err(Declined::OtherShape),
        }
    }
    // whoever reads an attention sees all of it as one matrix
    let sees_all = |node: Tensor| {
        let reads = |source: &&Tensor| found.contains(*source);
        (*node).src.iter().filter(reads).count() == 0
            || ((*node).op == ffi::GGML_OP_RESHAPE && found.contains(&(*node).src[0]))
    };
    match nodes.iter().all(|&node| sees_all(node)) {
        true => Ok(found),
        false => Err(Declined::OtherShape),
    }
}

/// An attention of all patches to all: queries, keys and values of a head lie row by row, and so does the result of a patch.
unsafe fn is_as_expected(node: Tensor, side: i64) -> bool {
    let [q, k, v, ..] = (*node).src;
    let row_by_row = |tensor: Tensor| {
        !tensor.is_null()
            && (*tensor).ne[1] == side
            && (*tensor).ne[3] == 1
            && (*tensor).nb[0] == ffi::ggml_type_size((*tensor).type_)
    };
    let asked = (*node).flags & ffi::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
    !asked
        && row_by_row(q)
        && row_by_row(k)
        && row_by_row(v)
        && (*node).view_src.is_null()
        && (*node).type_ == ffi::GGML_TYPE_F32
        && ffi::ggml_is_contiguous(node)
        && (*node).ne == [(*v).ne[0], (*q).ne[2], side, 1]
}

/// Memory for the result, and for each run the views and the attention, in order of execution.
unsafe fn divide(context: &TensorContext, attention: Tensor, runs: &[Run]) -> Vec<Tensor> {
    let context = context.raw();
    let [q, k, v, _, sinks, ..] = (*attention).src;
    let out = ffi::ggml_dup_tensor(context, attention);
    ffi::ggml_set_name(out, (*attention).name.as_ptr());
    let mut part = vec![out];
    let mut before = out;
    for run in runs {
        let view = |of: Tensor| {
            let [row, head] = [(*of).nb[1], (*of).nb[2]];
            let ([width, _, heads, _], each) = ((*of).ne, run.each as i64);
            let (next, first) = (run.step as usize * row, run.first as usize * row);
            ffi::ggml_view_4d(
                context,
                of,
                width,
                each,
                heads,
                run.count as i64,
                row,
                head,
                next,
                first,
            )
        };
        let (q, k, v) = (view(q), view(k), view(v));
        let none = std::ptr::null_mut();
        let made = ffi::ggml_flash_attn_ext(context, q, k, v, none, 1.0, 0.0, 0.0);
        (*made).op_params = (*attention).op_params;
        (*made).src[4] = sinks;
        ffi::ggml_set_name(made, (*attention).name.as_ptr());
        part.extend([q, k, v, made]);
        let first = run.first as usize * (*out).nb[2];
        before = match run.is_dense() {
            true => {
                (*made).view_src = out;
                (*made).view_offs = first;
                (*made).src[CHAIN] = before;
                made
            }
            false => {
                let ([width, heads, each, count], [_, head, row, _]) = ((*made).ne, (*out).nb);
                let next = run.step as usize * row;
                let place = ffi::ggml_view_4d(
                    context, out, width, heads, each, count, head, row, next, first,
                );
                let copy = ffi::ggml_cpy(context, made, place);
                (*copy).src[CHAIN] = before;
                part.extend([place, copy]);
                copy
            }
        };
    }
    part
}

/// Has the readers of the attentions read what takes their place, and what is a view of a reader look into the same memory. Whether a
/// node is such a view is found by its sources: they are as they were where the graph comes for a second time, all else is not.
unsafe fn hand_on(nodes: &[Tensor], parts: &HashMap<usize, Vec<Tensor>>) {
    let mut views: HashMap<usize, Tensor> = HashMap::new();
    for &node in nodes {
        let source = (*node).src[0];
        let direct = parts.get(&(source as usize));
        let memory = match direct {
            Some(part) => part.first().copied(),
            None => views.get(&(source as usize)).copied(),
        };
        let Some(memory) = memory.filter(|_| is_view(node)) else {
            continue;
        };
        (*node).view_src = memory;
        views.insert(node as usize, memory);
        if let Some(&last) = direct.and_then(|part| part.last()) {
            (*node).src[0] = last;
        }
    }
}

/// Nothing reads the mask any more: it needs no memory, and is no input that somebody has to set. Where clip.cpp fills it anyway, it
/// stays what it is, in host memory.
unsafe fn forget(mask: Tensor, backends: Backends, filled: bool) {
    // without a backend of its own the scheduler would not know where it is
    ffi::ggml_backend_sched_set_tensor_backend(backends.sched, mask, backends.cpu);
    if filled {
        return;
    }
    (*mask).flags &= !(ffi::GGML_TENSOR_FLAG_INPUT as i32);
    (*mask).data = std::ptr::without_provenance_mut(NOWHERE);
}

/// The mask is an input again.
unsafe fn restore(mask: Tensor) {
    if (*mask).data.addr() == NOWHERE {
        (*mask).flags |= ffi::GGML_TENSOR_FLAG_INPUT as i32;
        (*mask).data = std::ptr::null_mut();
    }
}

#[cfg(test)]
mod tests;
