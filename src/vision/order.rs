//! Attention in the order that holds the least at once: a graph rewrite.
//!
//! llama.cpp computes queries, keys and values of all rows in 32 bits and turns them by their positions. Only then does it make keys and
//! values 16 bits wide, as fused attention reads them. All of that is alive at once, and it is the most that an encoder's graph holds.
//! Here each is finished before the next begins, and queries, which stay 32 bits wide, come last:
//!
//! ```text
//! q; turn q; k; turn k; v; k → 16 bits; v → 16 bits; attention   becomes   k; turn k; k → 16 bits; v; v → 16 bits; q; turn q; attention
//! ```
//!
//! The same nodes compute the same values from the same sources, so no bit changes. Only nodes that nothing else reads are moved, and only
//! where nothing in between writes into memory of another tensor. Where one product makes queries, keys and values at once, there is
//! nothing to gain: all three are there from the beginning.

use super::is_view;
use crate::rewrite::{set_nodes, Tensor};
use pipeshard_sys as ffi;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Whether an encoder's graph holds less then. That of `resampler` holds the most behind its layers, and ggml's allocator finds worse
/// places there.
pub fn pays(projector: &str) -> bool {
    projector != "resampler"
}

/// Nodes by their addresses.
struct Places<'n> {
    nodes: &'n [Tensor],
    position: HashMap<usize, usize>,
    /// Positions of the nodes that read each node, once for each time.
    readers: Vec<Vec<usize>>,
}

impl<'n> Places<'n> {
    unsafe fn of(nodes: &'n [Tensor]) -> Self {
        let addresses = nodes.iter().map(|&node| node as usize);
        let position: HashMap<usize, usize> = addresses.zip(0..).collect();
        let mut readers = vec![Vec::new(); nodes.len()];
        for (at, &node) in nodes.iter().enumerate() {
            // a cast names itself as what it writes to
            let sources = (*node).src.iter().filter(|&&source| source != node);
            for source in sources.filter_map(|&source| position.get(&(source as usize))) {
                readers[*source].push(at);
            }
        }
        Places {
            nodes,
            position,
            readers,
        }
    }

    /// The nodes from which `source` is computed for `reader` and for nothing else, in order.
    unsafe fn only_for(&self, source: Tensor, reader: usize) -> Vec<usize> {
        let mut found: HashSet<usize> = HashSet::new();
        let mut left: BinaryHeap<usize> = BinaryHeap::new();
        left.extend(self.position.get(&(source as usize)));
        // from the last one on, so that all that read a node are known when it is its turn
        while let Some(at) = left.pop() {
            let mut readers = self.readers[at].iter();
            let alone = readers.all(|at| *at == reader || found.contains(at));
            if !alone || !found.insert(at) {
                continue;
            }
            let node = self.nodes[at];
            let sources = (*node).src.into_iter().filter(|&source| source != node);
            left.extend(sources.filter_map(|source| self.position.get(&(source as usize))));
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        found
    }

    /// Whether these nodes have a product of their own, and read one other node, which is `of`.
    unsafe fn is_product_of(&self, part: &[usize], of: usize) -> bool {
        let (mut multiplies, mut reads) = (false, false);
        for &at in part {
            let node = self.nodes[at];
            multiplies |= (*node).op == ffi::GGML_OP_MUL_MAT;
            let others = (*node).src.into_iter().filter(|&source| source != node);
            for source in others.filter_map(|source| self.position.get(&(source as usize))) {
                reads |= *source == of;
                if *source != of && !part.contains(source) {
                    return false;
                }
            }
        }
        multiplies && reads
    }

    /// A node that these read and which is none of them.
    unsafe fn source_of(&self, part: &[usize]) -> Option<usize> {
        let others = |&at: &usize| {
            let sources = (*self.nodes[at]).src.into_iter();
            let mut places = sources.filter_map(|source| self.position.get(&(source as usize)));
            places.find(|source| !part.contains(source)).copied()
        };
        part.iter().find_map(others)
    }

    /// Whether a node writes into memory of another, so that its place among the others matters.
    unsafe fn writes_elsewhere(&self, at: usize) -> bool {
        let node = self.nodes[at];
        !(*node).view_src.is_null() && !is_view(node)
    }
}

/// Puts what each fused attention reads in order: keys, values, queries. Returns for how many the order is another now.
///
/// # Safety
/// `graph` is a valid graph that has not been split yet.
pub unsafe fn finish_each(graph: *mut ffi::ggml_cgraph) -> u64 {
    let count = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    let raw = ffi::ggml_graph_nodes(graph);
    if raw.is_null() || count == 0 {
        return 0;
    }
    let nodes = std::slice::from_raw_parts(raw, count).to_vec();
    let places = Places::of(&nodes);
    let mut order = nodes.clone();
    let (mut changed, mut done) = (0, 0);
    for (at, &node) in nodes.iter().enumerate() {
        if (*node).op != ffi::GGML_OP_FLASH_ATTN_EXT {
            continue;
        }
        let [q, k, v, ..] = (*node).src;
        let parts = [k, v, q].map(|source| places.only_for(source, at));
        let first = parts.iter().filter_map(|part| part.first()).min();
        let (Some(&first), Some(of)) = (first, places.source_of(&parts[0])) else {
            continue;
        };
        let apart = parts.iter().all(|part| places.is_product_of(part, of));
        // what one attention reads does not lie around another
        if !apart || first < done || (first..at).any(|between| places.writes_elsewhere(between)) {
            continue;
        }
        let moved: HashSet<usize> = parts.iter().flatten().copied().collect();
        let others = (first..at).filter(|between| !moved.contains(between));
        let wanted: Vec<Tensor> = others
            .chain(parts.iter().flatten().copied())
            .map(|place| nodes[place])
            .collect();
        // parts that share nodes would have them twice
        if wanted.len() == at - first {
            changed += u64::from(order[first..at] != wanted[..]);
            order[first..at].copy_from_slice(&wanted);
            done = at + 1;
        }
    }
    if changed > 0 {
        set_nodes(graph, &order);
    }
    changed
}

#[cfg(test)]
mod tests;
