//! How nodes of a graph are looked at.

use pipeshard_sys as ffi;

/// The backends that a scheduler offers us.
#[derive(Clone, Copy)]
pub struct Backends {
    /// Whose they are.
    pub sched: ffi::ggml_backend_sched_t,
    /// On our device.
    pub device: ffi::ggml_backend_t,
    /// The CPU's.
    pub cpu: ffi::ggml_backend_t,
}

/// The nodes of a graph.
///
/// # Safety
/// `graph` is a valid graph that outlives the slice and is not changed meanwhile.
pub unsafe fn graph_nodes<'a>(graph: *mut ffi::ggml_cgraph) -> &'a [*mut ffi::ggml_tensor] {
    let count = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    let nodes = ffi::ggml_graph_nodes(graph);
    match nodes.is_null() || count == 0 {
        true => &[],
        false => std::slice::from_raw_parts(nodes, count),
    }
}

/// The tensors that a node reads.
///
/// # Safety
/// `node` is a valid tensor, as are its sources.
pub unsafe fn sources(node: *mut ffi::ggml_tensor) -> impl Iterator<Item = *mut ffi::ggml_tensor> {
    (*node).src.into_iter().filter(|s| !s.is_null())
}

/// What a tensor is a view or a converted copy of: attention does not always read the KV cache itself.
///
/// # Safety
/// `tensor` is a valid tensor, as are its sources.
pub unsafe fn origin(tensor: *mut ffi::ggml_tensor) -> *mut ffi::ggml_tensor {
    let mut tensor = tensor;
    loop {
        let copied = matches!((*tensor).op, ffi::GGML_OP_CPY | ffi::GGML_OP_CONT);
        let from = match copied {
            true => (*tensor).src[0],
            false => (*tensor).view_src,
        };
        if from.is_null() {
            return tensor;
        }
        tensor = from;
    }
}

/// Reports whether a node is computed: a graph also carries the branches of a choice that was not made, so that its shape
/// stays the same.
///
/// # Safety
/// `node` is a valid tensor.
pub unsafe fn is_computed(node: *const ffi::ggml_tensor) -> bool {
    (*node).flags & ffi::GGML_TENSOR_FLAG_COMPUTE as i32 != 0
}

/// Reports whether a node computes nothing.
///
/// # Safety
/// `node` is a valid tensor, as are its sources.
pub unsafe fn is_view(node: *const ffi::ggml_tensor) -> bool {
    matches!(
        (*node).op,
        ffi::GGML_OP_VIEW | ffi::GGML_OP_RESHAPE | ffi::GGML_OP_PERMUTE | ffi::GGML_OP_TRANSPOSE
    )
}

/// Rows of activations that an operation with weights sees; the count by which ggml's backends decide what to offload.
///
/// # Safety
/// `node` is a valid tensor, as are its sources.
pub unsafe fn rows(node: *const ffi::ggml_tensor) -> u32 {
    let ne = (*node).ne;
    let rows = match (*node).op {
        ffi::GGML_OP_MUL_MAT => ne[1],
        ffi::GGML_OP_MUL_MAT_ID | ffi::GGML_OP_ROPE => ne[2],
        _ => ne[1].saturating_mul(ne[2]).saturating_mul(ne[3]),
    };
    rows.clamp(0, i64::from(u32::MAX)) as u32
}
