//! Graph rewrites: nodes put into a graph before it is split.

use super::nodes::graph_nodes;
use pipeshard_sys as ffi;

/// Puts a scaling by one in front of the first normalisation of a graph: the same values by another path. Exercises what
/// every rewrite needs (room in the graph, order of nodes, the scheduler's tables). Returns the number of nodes put in.
///
/// # Safety
/// `graph` is a valid graph that has not been split yet.
pub unsafe fn identity(graph: *mut ffi::ggml_cgraph) -> u64 {
    let count = graph_nodes(graph).len();
    if count as i32 >= ffi::ggml_graph_size(graph) {
        return 0;
    }
    let Some(at) = graph_nodes(graph)
        .iter()
        .position(|&n| (*n).op == ffi::GGML_OP_RMS_NORM)
    else {
        return 0;
    };
    let norm = graph_nodes(graph)[at];
    let input = (*norm).src[0];
    if input.is_null() || (*input).type_ != ffi::GGML_TYPE_F32 {
        return 0;
    }
    let Some(context) = context() else { return 0 };
    let scaled = ffi::ggml_scale(context, input, 1.0);
    if scaled.is_null() {
        return 0;
    }
    // what building a graph does for the nodes that are computed
    (*scaled).flags |= ffi::GGML_TENSOR_FLAG_COMPUTE as i32;
    // appended, then moved to its place: the nodes of a graph stand in order of execution
    ffi::ggml_graph_add_node(graph, scaled);
    let nodes = std::slice::from_raw_parts_mut(ffi::ggml_graph_nodes(graph), count + 1);
    nodes[at..].rotate_right(1);
    (*norm).src[0] = scaled;
    1
}

/// A context for the tensors of rewrites. Graphs that are alive at the same time may refer to the tensors of several
/// generations, so contexts are used in turn and only reset after the others were.
fn context() -> Option<*mut ffi::ggml_context> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::OnceLock;
    const CONTEXTS: usize = 256;
    static POOL: OnceLock<Vec<usize>> = OnceLock::new();
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let pool = POOL.get_or_init(|| {
        let params = ffi::ggml_init_params {
            // SAFETY: no preconditions.
            mem_size: 8 * unsafe { ffi::ggml_tensor_overhead() },
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: the parameters are valid; the contexts live as long as the process.
        (0..CONTEXTS)
            .map(|_| unsafe { ffi::ggml_init(params) } as usize)
            .filter(|&c| c != 0)
            .collect()
    });
    let context = *pool.get(NEXT.fetch_add(1, Ordering::Relaxed) % pool.len().max(1))?
        as *mut ffi::ggml_context;
    // SAFETY: a live context; the tensors in it belong to a graph that was split many graphs ago.
    unsafe { ffi::ggml_reset(context) };
    Some(context)
}
