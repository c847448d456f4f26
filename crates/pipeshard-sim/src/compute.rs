//! Graphs: copied when they are submitted, priced on the virtual clock, computed by ggml-cpu.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use pipeshard_sys as ffi;

use super::clock::transfer_ns;
use super::memory::DeviceMemory;
use super::meter::GraphCost;
use super::spec::SimSpec;

/// What a backend that was never told otherwise computes with, as ggml's CPU backend does.
pub(super) const DEFAULT_THREADS: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub(super) enum ComputeError {
    #[error("the simulated GPU computes through ggml's CPU backend, and there is none: load the backends first")]
    NoCpu,
    #[error("ggml's CPU backend cannot be started")]
    NoCpuBackend,
    #[error("no memory to hold a graph of {0} nodes")]
    NoContext(usize),
    #[error("ggml's CPU backend failed with status {0}")]
    Status(ffi::ggml_status),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum GraphError {
    #[error(
        "'{tensor}', which '{node}' ({op}) needs, is not in the simulated GPU's memory: {reason}"
    )]
    Foreign {
        node: String,
        op: String,
        tensor: String,
        reason: String,
    },
}

/// A graph that refers to nothing of the caller's but device memory.
pub(super) struct GraphCopy {
    /// Nodes first, in order; then what they refer to.
    tensors: Box<[ffi::ggml_tensor]>,
    nodes: usize,
}

impl GraphCopy {
    /// Copies a graph and translates its addresses.
    ///
    /// # Safety
    /// `graph` must be a graph of ggml's.
    pub unsafe fn new(
        graph: *mut ffi::ggml_cgraph,
        memory: &DeviceMemory,
    ) -> Result<Self, GraphError> {
        // SAFETY: the caller vouches for the graph, whose node array holds as many nodes as it says.
        let nodes: Vec<*mut ffi::ggml_tensor> = unsafe {
            let count = usize::try_from(ffi::ggml_graph_n_nodes(graph)).unwrap_or(0);
            match count {
                0 => Vec::new(),
                _ => std::slice::from_raw_parts(ffi::ggml_graph_nodes(graph), count).to_vec(),
            }
        };
        let mut order = nodes.clone();
        let mut index: HashMap<*mut ffi::ggml_tensor, usize> =
            nodes.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        for node in &nodes {
            // SAFETY: nodes of a graph are tensors.
            let node = unsafe { &**node };
            for source in node.src.iter().copied().chain([node.view_src]) {
                if !source.is_null() && !index.contains_key(&source) {
                    index.insert(source, order.len());
                    order.push(source);
                }
            }
        }
        // SAFETY: sources of a graph's nodes are tensors, and tensors are plain data.
        let mut tensors: Box<[ffi::ggml_tensor]> = order.iter().map(|t| unsafe { **t }).collect();
        let base = tensors.as_mut_ptr();
        for (i, tensor) in tensors.iter_mut().enumerate() {
            let copy_of = |t: *mut ffi::ggml_tensor| match index.get(&t) {
                // SAFETY: the index is within the array.
                Some(at) => unsafe { base.add(*at) },
                None => ptr::null_mut(),
            };
            if i < nodes.len() {
                for source in &mut tensor.src {
                    *source = copy_of(*source);
                }
            } else {
                tensor.op = ffi::GGML_OP_NONE;
                tensor.src = [ptr::null_mut(); ffi::GGML_MAX_SRC as usize];
            }
            tensor.view_src = copy_of(tensor.view_src);
            // ggml-cpu looks into buffers for layouts of its own, which device memory never has.
            tensor.buffer = ptr::null_mut();
            tensor.extra = ptr::null_mut();
        }
        let mut copy = Self {
            tensors,
            nodes: nodes.len(),
        };
        copy.translate(memory)?;
        Ok(copy)
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes
    }

    /// All that it holds: nodes, then what they refer to.
    #[cfg(test)]
    pub fn tensors(&self) -> &[ffi::ggml_tensor] {
        &self.tensors
    }

    /// The name of the last node.
    pub fn label(&self) -> String {
        self.tensors[..self.nodes]
            .last()
            .map_or_else(String::new, name)
    }

    /// What the graph costs on such a card: per kernel the arithmetic or the memory traffic, whichever takes longer.
    pub fn cost(&self, spec: &SimSpec) -> GraphCost {
        let mut cost = GraphCost::default();
        for node in self.tensors[..self.nodes].iter().filter(|n| computes(n)) {
            let (flops, bytes) = work_of(node);
            let busy = transfer_ns(flops, spec.flops).max(transfer_ns(bytes, spec.membw));
            cost.kernels += 1;
            cost.bytes = cost.bytes.saturating_add(bytes);
            cost.duration_ns = cost
                .duration_ns
                .saturating_add(busy)
                .saturating_add(spec.launch_ns);
        }
        cost
    }

    /// Stands in for computing: every choice among things is the first one, so that a reader of the choice finds one.
    pub fn choose_first(&mut self) {
        let nodes = self.tensors[..self.nodes].iter();
        for node in nodes.filter(|n| computes(n) && n.type_ == ffi::GGML_TYPE_I32) {
            // SAFETY: a whole tensor, whose address was translated to as many bytes of device memory.
            unsafe { ptr::write_bytes(node.data.cast::<u8>(), 0, ffi::ggml_nbytes(node)) };
        }
    }

    /// Computes the nodes in pieces that end at `ends`; `before` is called before each piece.
    pub fn compute(
        &mut self,
        threads: i32,
        ends: &[usize],
        mut before: impl FnMut(),
    ) -> Result<(), ComputeError> {
        let mut begin = 0;
        for &end in ends {
            before();
            if end > begin {
                let nodes = &mut self.tensors[begin..end];
                compute_nodes(nodes, threads)?;
            }
            begin = end;
        }
        Ok(())
    }

    /// Turns device addresses into shadow addresses. What a kernel touches must be device memory.
    fn translate(&mut self, memory: &DeviceMemory) -> Result<(), GraphError> {
        let mut reasons: Vec<Option<String>> = Vec::with_capacity(self.tensors.len());
        for tensor in &mut self.tensors {
            // SAFETY: a whole tensor.
            let len = unsafe { ffi::ggml_nbytes(tensor) };
            let place = match (tensor.data.is_null(), len) {
                (_, 0) => Ok(ptr::null_mut()),
                (true, _) => Err("it has no data".to_owned()),
                (false, _) => memory
                    .translate(tensor.data as usize, len)
                    .map_err(|e| e.to_string()),
            };
            tensor.data = place.as_ref().map_or(ptr::null_mut(), |p| p.cast());
            reasons.push(place.err());
        }
        let base = self.tensors.as_ptr();
        for (i, node) in self.tensors[..self.nodes]
            .iter()
            .enumerate()
            .filter(|(_, n)| computes(n))
        {
            let sources = node.src.iter().filter(|s| !s.is_null());
            // SAFETY: all sources were made to point into the same array.
            let sources = sources.map(|s| unsafe { s.cast_const().offset_from(base) } as usize);
            for used in sources.chain([i]) {
                if let Some(reason) = reasons[used].take() {
                    return Err(GraphError::Foreign {
                        node: name(node),
                        op: op_name(node.op),
                        tensor: name(&self.tensors[used]),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Reports whether a node is a kernel, and not just another way to look at memory.
fn computes(node: &ffi::ggml_tensor) -> bool {
    let looks_only = matches!(
        node.op,
        ffi::GGML_OP_NONE
            | ffi::GGML_OP_RESHAPE
            | ffi::GGML_OP_VIEW
            | ffi::GGML_OP_PERMUTE
            | ffi::GGML_OP_TRANSPOSE
    );
    let wanted = node.flags & ffi::GGML_TENSOR_FLAG_COMPUTE as i32 != 0;
    !looks_only && wanted && node.ne.iter().all(|n| *n > 0)
}

fn name(tensor: &ffi::ggml_tensor) -> String {
    let bytes = tensor
        .name
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| *c as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

fn op_name(op: ffi::ggml_op) -> String {
    // SAFETY: ggml answers with a constant string for every operation that a graph can hold.
    unsafe { CStr::from_ptr(ffi::ggml_op_name(op)) }
        .to_string_lossy()
        .into_owned()
}

fn product(ne: &[i64]) -> u64 {
    ne.iter().fold(1, |p: u64, n| {
        p.saturating_mul(u64::try_from(*n).unwrap_or(0))
    })
}

/// Floating-point operations and bytes read and written.
fn work_of(node: &ffi::ggml_tensor) -> (u64, u64) {
    // SAFETY: a whole tensor.
    let bytes_of = |t: &ffi::ggml_tensor| unsafe { ffi::ggml_nbytes(t) } as u64;
    // SAFETY: sources are null or tensors of the same copied graph, which outlives this borrow.
    let source = |i: usize| unsafe { node.src[i].as_ref() };
    let elements = product(&node.ne);
    let written = bytes_of(node);
    let read: u64 = (0..node.src.len()).filter_map(source).map(bytes_of).sum();
    match (node.op, source(0), source(1), source(2)) {
        (ffi::GGML_OP_MUL_MAT, Some(a), ..) => {
            let flops = elements
                .saturating_mul(2)
                .saturating_mul(product(&a.ne[..1]));
            (flops, read + written)
        }
        (ffi::GGML_OP_MUL_MAT_ID, Some(experts), Some(_), Some(ids)) => {
            let flops = elements
                .saturating_mul(2)
                .saturating_mul(product(&experts.ne[..1]));
            let count = product(&experts.ne[2..3]).max(1);
            let used = product(&ids.ne).min(count);
            let idle = bytes_of(experts) / count * (count - used);
            (flops, read - idle + written)
        }
        (ffi::GGML_OP_FLASH_ATTN_EXT, Some(q), Some(k), Some(v)) => {
            let pairs = product(&q.ne[1..]).saturating_mul(product(&k.ne[1..2]));
            let width = product(&k.ne[..1]) + product(&v.ne[..1]);
            (
                pairs.saturating_mul(width).saturating_mul(2),
                read + written,
            )
        }
        // Only some rows of the table are touched.
        (ffi::GGML_OP_GET_ROWS, _, Some(rows), _) => (0, 2 * written + bytes_of(rows)),
        (ffi::GGML_OP_SET_ROWS, Some(values), Some(rows), _) => {
            (0, 2 * bytes_of(values) + bytes_of(rows))
        }
        _ => (elements, read + written),
    }
}

/// The process's only instance of ggml's CPU backend; it computes one graph at a time.
struct Engine {
    backend: ffi::ggml_backend_t,
    set_threads: ffi::ggml_backend_set_n_threads_t,
}

// SAFETY: the backend has no ties to a thread, and it is only used behind the lock.
unsafe impl Send for Engine {}

static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);

impl Engine {
    fn start() -> Result<Self, ComputeError> {
        let device = cpu_device().ok_or(ComputeError::NoCpu)?;
        // SAFETY: the device comes from ggml's registry; parameters are optional.
        let backend = unsafe { ffi::ggml_backend_dev_init(device, ptr::null()) };
        if backend.is_null() {
            return Err(ComputeError::NoCpuBackend);
        }
        // SAFETY: the device comes from ggml's registry, and the name stands for a function of this type.
        let set_threads = unsafe {
            let registry = ffi::ggml_backend_dev_backend_reg(device);
            let name = c"ggml_backend_set_n_threads".as_ptr();
            let found = ffi::ggml_backend_reg_get_proc_address(registry, name);
            std::mem::transmute::<*mut std::ffi::c_void, ffi::ggml_backend_set_n_threads_t>(found)
        };
        Ok(Self {
            backend,
            set_threads,
        })
    }
}

/// Frees what was started to compute with; it is started again when it is needed.
pub(super) fn stop_engine() {
    if let Some(engine) = ENGINE.lock().take() {
        // SAFETY: made by ggml, freed once, and nothing is being computed: the lock was free.
        unsafe { ffi::ggml_backend_free(engine.backend) };
    }
}

/// ggml's CPU device, once its module is loaded.
pub(super) fn cpu_device() -> Option<ffi::ggml_backend_dev_t> {
    // SAFETY: no arguments that could be wrong.
    let device = unsafe { ffi::ggml_backend_dev_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU) };
    (!device.is_null()).then_some(device)
}

/// Graphs are computed by the thread of their stream alone.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Computes graphs with one thread each from now on: ggml starts threads for every graph where it was built without OpenMP.
pub(super) fn compute_alone() {
    ALONE.store(true, Ordering::Relaxed);
}

fn compute_nodes(nodes: &mut [ffi::ggml_tensor], threads: i32) -> Result<(), ComputeError> {
    let threads = match ALONE.load(Ordering::Relaxed) {
        true => 1,
        false => threads,
    };
    let mut engine = ENGINE.lock();
    if engine.is_none() {
        *engine = Some(Engine::start()?);
    }
    let Some(engine) = engine.as_ref() else {
        return Err(ComputeError::NoCpuBackend);
    };
    let context = GraphContext::new(nodes)?;
    // SAFETY: the backend is alive and behind the lock; the graph refers to tensors that outlive this call, and their
    // data to shadow memory that stays allocated until this stream is drained.
    let status = unsafe {
        if let Some(set_threads) = engine.set_threads {
            set_threads(engine.backend, threads);
        }
        ffi::ggml_backend_graph_compute(engine.backend, context.graph)
    };
    match status {
        ffi::GGML_STATUS_SUCCESS => Ok(()),
        status => Err(ComputeError::Status(status)),
    }
}

/// A ggml graph around this library's tensors; freed when dropped.
///
/// It counts no uses of its nodes, so ggml-cpu fuses none of them: a fused norm does not write its own result, which a
/// later split may need. Fused or not, the bits are the same.
struct GraphContext {
    context: *mut ffi::ggml_context,
    graph: *mut ffi::ggml_cgraph,
}

impl GraphContext {
    fn new(nodes: &mut [ffi::ggml_tensor]) -> Result<Self, ComputeError> {
        // SAFETY: the context is given room for one graph, which is given room for all nodes; both are checked.
        unsafe {
            let context = ffi::ggml_init(ffi::ggml_init_params {
                mem_size: ffi::ggml_graph_overhead_custom(nodes.len(), false) + 256,
                mem_buffer: ptr::null_mut(),
                no_alloc: true,
            });
            if context.is_null() {
                return Err(ComputeError::NoContext(nodes.len()));
            }
            let graph = ffi::ggml_new_graph_custom(context, nodes.len(), false);
            for node in nodes.iter_mut() {
                ffi::ggml_graph_add_node(graph, node);
            }
            Ok(Self { context, graph })
        }
    }
}

impl Drop for GraphContext {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init() and freed once.
        unsafe { ffi::ggml_free(self.context) };
    }
}
