//! What every rewrite of a graph needs: memory for the tensors that it puts in, room for them, and their place among the nodes.
//!
//! A graph is rewritten before its scheduler splits it. ggml's allocator follows the list of nodes, so three things hold for whatever
//! is put in: views are nodes as well, ahead of what reads them; there are never fewer nodes than before; and what is no longer
//! computed leaves the list.

use pipeshard_sys as ffi;

/// A tensor of a graph.
pub type Tensor = *mut ffi::ggml_tensor;

/// Memory for the tensors of one scheduler's rewritten graph.
#[derive(Debug)]
pub struct TensorContext {
    raw: *mut ffi::ggml_context,
    capacity: usize,
}

// SAFETY: used under the runtime's lock only.
unsafe impl Send for TensorContext {}

impl TensorContext {
    fn new(capacity: usize) -> Option<Self> {
        let params = ffi::ggml_init_params {
            // SAFETY: no preconditions.
            mem_size: capacity * unsafe { ffi::ggml_tensor_overhead() },
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: the parameters are valid.
        let raw = unsafe { ffi::ggml_init(params) };
        (!raw.is_null()).then_some(TensorContext { raw, capacity })
    }

    /// Returns an empty one with room for this many tensors, in place of what `held` had; `None` if memory is short.
    pub fn emptied(held: &mut Option<TensorContext>, capacity: usize) -> Option<&TensorContext> {
        match held {
            // SAFETY: alive; its tensors belong to the graph before this one.
            Some(context) if context.capacity >= capacity => unsafe {
                ffi::ggml_reset(context.raw)
            },
            _ => *held = TensorContext::new(capacity),
        }
        held.as_ref()
    }

    /// ggml's context.
    pub fn raw(&self) -> *mut ffi::ggml_context {
        self.raw
    }
}

impl Drop for TensorContext {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; its scheduler is gone, and so are the graphs that it was for.
        unsafe { ffi::ggml_free(self.raw) }
    }
}

/// What a graph and its scheduler still have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Further nodes.
    pub nodes: usize,
    /// Further tensors, nodes included.
    pub tensors: usize,
}

/// The room in a graph whose scheduler was made for graphs of the same size. `known`: tensors that the scheduler gets to know without a
/// rewrite.
///
/// # Safety
/// `graph` is a valid graph.
pub unsafe fn room(graph: *mut ffi::ggml_cgraph, known: usize) -> Room {
    let size = ffi::ggml_graph_size(graph).max(0) as usize;
    let nodes = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    Room {
        nodes: size.saturating_sub(nodes),
        tensors: table_size(size).saturating_sub(known),
    }
}

/// Tensors that a scheduler for graphs of `size` nodes knows at least. Its hash table has the next of a list of primes, each a little
/// over a power of two; an eighth is left free for its probing.
fn table_size(size: usize) -> usize {
    const OVER: usize = 32;
    let below = size.next_power_of_two() / 2;
    let table = match size > below + OVER {
        true => size.next_power_of_two(),
        false => size,
    };
    table - table / 8
}

/// Gives a graph these nodes, in this order.
///
/// # Safety
/// `graph` is a valid graph with room for them; there are no fewer than it has.
pub unsafe fn set_nodes(graph: *mut ffi::ggml_cgraph, order: &[Tensor]) {
    let have = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    for &node in &order[have..] {
        ffi::ggml_graph_add_node(graph, node);
    }
    let written = std::slice::from_raw_parts_mut(ffi::ggml_graph_nodes(graph), order.len());
    written.copy_from_slice(order);
}

/// Marks a node as computed, as building a graph does.
///
/// # Safety
/// `node` is valid.
pub unsafe fn compute(node: Tensor) {
    (*node).flags |= ffi::GGML_TENSOR_FLAG_COMPUTE as i32;
}

#[cfg(test)]
mod tests {
    use super::table_size;

    #[test]
    fn a_table_is_never_thought_larger_than_it_is() {
        // sizes and the primes that ggml takes for them
        for (size, prime) in [
            (4099, 4099),
            (4100, 8209),
            (4632, 8209),
            (8192, 8209),
            (8209, 8209),
            (9048, 16411),
            (1024, 1031),
        ] {
            let places = table_size(size);
            assert!(
                places <= prime && places >= size * 7 / 8,
                "{size}: {places}"
            );
        }
        assert_eq!(table_size(4632), 7168);
    }
}
