//! Graphs: copied at submission, computed as the CPU backend computes them.

use super::super::compute::GraphCopy;
use super::super::{counters, failure, EntryKind};
use super::*;

/// A graph of the given nodes, all to be computed.
fn graph_of(
    context: *mut ffi::ggml_context,
    nodes: &[*mut ffi::ggml_tensor],
) -> *mut ffi::ggml_cgraph {
    // SAFETY: the context has room for the graph, and the graph for the nodes.
    unsafe {
        let graph = ffi::ggml_new_graph_custom(context, nodes.len().max(1), false);
        for node in nodes {
            (**node).flags |= ffi::GGML_TENSOR_FLAG_COMPUTE as i32;
            ffi::ggml_graph_add_node(graph, *node);
        }
        graph
    }
}

/// Gives a node that has no place yet one in a buffer.
fn place(node: *mut ffi::ggml_tensor, like: *mut ffi::ggml_tensor) {
    // SAFETY: both are tensors; `like` is allocated and no smaller.
    unsafe {
        (*node).buffer = (*like).buffer;
        (*node).data = (*like).data;
    }
}

/// `c = a + b`, in that order.
fn sum(tensors: &Tensors<3>) -> *mut ffi::ggml_cgraph {
    let [a, b, c] = tensors.all;
    // SAFETY: the context has room for the node.
    let node = unsafe { ffi::ggml_add(tensors.context, a, b) };
    place(node, c);
    graph_of(tensors.context, &[node])
}

#[test]
fn a_graph_is_what_it_was_when_it_was_submitted() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<3>(64);
    let [a, b, c] = tensors.all;
    poke(a, &[1.0; 64]);
    poke(b, &[2.0; 64]);
    let graph = sum(&tensors);
    let gate = lane.close();
    assert_eq!(lane.submit(graph), ffi::GGML_STATUS_SUCCESS);
    // SAFETY: the tensors are alive; what they say now must not matter any more.
    unsafe {
        let node = *ffi::ggml_graph_nodes(graph);
        (*node).src = [ptr::null_mut(); 10];
        (*node).op = ffi::GGML_OP_MUL;
        (*a).data = ptr::null_mut();
    }
    assert!(peek(c)[0].is_nan());
    gate.open();
    lane.synchronize();
    assert_eq!(peek(c), [3.0; 64]);
    let counters = counters(card.handle);
    assert_eq!((counters.graphs, counters.kernels), (1, 1));
}

#[test]
fn a_copy_refers_to_nothing_of_the_callers() {
    let card = Card::new("vram=8M");
    let layers = Layers::new(card.memory_type());
    let tail = graph_of(layers.tensors.context, &[layers.result]);
    for (graph, views) in [(layers.graph, 3), (tail, 0)] {
        // SAFETY: a graph of ggml's.
        let copy = unsafe { GraphCopy::new(graph, &card.device.memory) };
        let copy = copy.expect("all is in device memory");
        let tensors = copy.tensors();
        let own = tensors.as_ptr_range();
        for (i, tensor) in tensors.iter().enumerate() {
            for refers in tensor.src.iter().copied().chain([tensor.view_src]) {
                assert!(refers.is_null() || own.contains(&refers.cast_const()));
            }
            assert!(tensor.buffer.is_null() && tensor.extra.is_null());
            assert!(!card.device.memory.owns(tensor.data as usize));
            assert!(i < copy.len() || tensor.op == ffi::GGML_OP_NONE);
        }
        assert!(
            tensors.len() > copy.len(),
            "there are operands that are no nodes"
        );
        let looking = tensors.iter().filter(|t| !t.view_src.is_null());
        assert_eq!(looking.count(), views);
    }
}

unsafe extern "C" fn write_thread_count(
    to: *mut ffi::ggml_tensor,
    _from: *const ffi::ggml_tensor,
    ith: i32,
    nth: i32,
    _data: *mut c_void,
) {
    if ith == 0 {
        // SAFETY: the tensor holds at least one float, and only the first thread writes it.
        unsafe { *(*to).data.cast::<f32>() = nth as f32 };
    }
}

#[test]
fn graphs_are_computed_with_the_threads_that_were_set_when_they_were_submitted() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<3>(4);
    let set_threads = |threads: i32| {
        // SAFETY: the registry is the device's, and the name stands for a function of this type.
        unsafe {
            let registry = card.device.handles().registry;
            let name = c"ggml_backend_set_n_threads".as_ptr();
            let found = ffi::ggml_backend_reg_get_proc_address(registry, name);
            let function =
                std::mem::transmute::<*mut c_void, ffi::ggml_backend_set_n_threads_t>(found);
            function.expect("it is there")(lane.backend, threads);
        }
    };
    let graph = |to| {
        // SAFETY: the context has room for the node.
        let node = unsafe {
            let all = ffi::GGML_N_TASKS_MAX;
            let from = tensors.all[0];
            ffi::ggml_map_custom1(
                tensors.context,
                from,
                Some(write_thread_count),
                all,
                ptr::null_mut(),
            )
        };
        place(node, to);
        graph_of(tensors.context, &[node])
    };
    let gate = lane.close();
    set_threads(3);
    assert_eq!(lane.submit(graph(tensors.all[1])), ffi::GGML_STATUS_SUCCESS);
    set_threads(2);
    assert_eq!(lane.submit(graph(tensors.all[2])), ffi::GGML_STATUS_SUCCESS);
    gate.open();
    lane.synchronize();
    assert_eq!(
        (peek(tensors.all[1])[0], peek(tensors.all[2])[0]),
        (3.0, 2.0)
    );
}

#[test]
fn what_was_never_filled_spreads_as_nan() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<3>(64);
    poke(tensors.all[0], &[1.0; 64]);
    assert_eq!(lane.submit(sum(&tensors)), ffi::GGML_STATUS_SUCCESS);
    lane.synchronize();
    assert!(peek(tensors.all[2]).iter().all(|x| x.is_nan()));
}

#[test]
fn operands_in_host_memory_fail_the_graph_and_are_named() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<3>(64);
    // SAFETY: the buffer type is always there.
    let host = Tensors::<1>::new(unsafe { ffi::ggml_backend_cpu_buffer_type() }, |context| {
        // SAFETY: the context has room for the tensor, and the name is a string.
        unsafe {
            let tensor = ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_F32, 64);
            ffi::ggml_set_name(tensor, c"stray".as_ptr())
        }
    });
    // SAFETY: the context has room for the node.
    let node = unsafe { ffi::ggml_add(tensors.context, tensors.all[0], host.all[0]) };
    place(node, tensors.all[2]);
    let graph = graph_of(tensors.context, &[node]);
    assert_eq!(lane.submit(graph), ffi::GGML_STATUS_FAILED);
    let reason = failure(card.handle).expect("the graph cannot be computed");
    assert!(
        reason.contains("'stray'") && reason.contains("(ADD)"),
        "{reason}"
    );
    assert_eq!(
        lane.submit(sum(&tensors)),
        ffi::GGML_STATUS_FAILED,
        "a failure sticks"
    );
}

#[test]
fn an_empty_graph_is_nothing_to_do() {
    let card = Card::new("vram=1M");
    let lane = card.stream();
    let tensors = card.floats::<1>(4);
    let graph = graph_of(tensors.context, &[]);
    assert_eq!(lane.submit(graph), ffi::GGML_STATUS_SUCCESS);
    lane.synchronize();
    assert_eq!(failure(card.handle), None);
}

/// Some layers of a model: a quantised product, a norm, a nonlinearity, a view of a part and a sum.
struct Layers {
    tensors: Tensors<4>,
    graph: *mut ffi::ggml_cgraph,
    result: *mut ffi::ggml_tensor,
}

const WIDTH: i64 = 576;
const ROWS: i64 = 40;

impl Layers {
    fn new(buft: ffi::ggml_backend_buffer_type_t) -> Self {
        let mut made = 0;
        let mut context = ptr::null_mut();
        let mut all: [*mut ffi::ggml_tensor; 4] = [ptr::null_mut(); 4];
        let mut nodes = Vec::new();
        // SAFETY: the context has room for all tensors, and everything is allocated in one buffer afterwards.
        let tensors = Tensors::<4>::new(buft, |c| unsafe {
            context = c;
            let tensor = match made {
                0 => ffi::ggml_new_tensor_2d(c, ffi::GGML_TYPE_Q4_0, WIDTH, WIDTH),
                1 => ffi::ggml_new_tensor_2d(c, ffi::GGML_TYPE_F32, WIDTH, ROWS),
                2 => ffi::ggml_new_tensor_1d(c, ffi::GGML_TYPE_F32, WIDTH),
                _ => {
                    let mut x = all[1];
                    for _ in 0..3 {
                        let norm = ffi::ggml_rms_norm(c, x, 1e-5);
                        let scaled = ffi::ggml_mul(c, norm, all[2]);
                        let product = ffi::ggml_mul_mat(c, all[0], scaled);
                        let half = ffi::ggml_view_2d(c, product, WIDTH, ROWS, (*product).nb[1], 0);
                        let bent = ffi::ggml_silu(c, half);
                        let y = ffi::ggml_add(c, x, bent);
                        nodes.extend([norm, scaled, product, half, bent, y]);
                        x = y;
                    }
                    x
                }
            };
            all[made] = tensor;
            made += 1;
            tensor
        });
        let graph = graph_of(context, &nodes);
        let layers = Self {
            result: tensors.all[3],
            tensors,
            graph,
        };
        layers.fill();
        layers
    }

    fn fill(&self) {
        let noise = |n: i64, scale: f32| -> Vec<f32> {
            (0..n)
                .map(|i| ((i * 7919 % 1013) as f32 / 506.5 - 1.0) * scale)
                .collect()
        };
        let weights = noise(WIDTH * WIDTH, 0.1);
        let mut packed = vec![0u8; (WIDTH * WIDTH) as usize / 32 * 18];
        // SAFETY: there is room for the packed rows, and the tensor is as large.
        unsafe {
            ffi::ggml_quantize_chunk(
                ffi::GGML_TYPE_Q4_0,
                weights.as_ptr(),
                packed.as_mut_ptr().cast(),
                0,
                WIDTH,
                WIDTH,
                ptr::null(),
            );
            ffi::ggml_backend_tensor_set(self.tensors.all[0], address(&packed), 0, packed.len());
        }
        poke(self.tensors.all[1], &noise(WIDTH * ROWS, 1.0));
        poke(self.tensors.all[2], &noise(WIDTH, 2.0));
    }
}

#[test]
fn results_are_those_of_the_cpu_backend_bit_for_bit() {
    load_cpu();
    // SAFETY: the CPU backend is loaded; it is freed at the end.
    let expected = unsafe {
        let layers = Layers::new(ffi::ggml_backend_cpu_buffer_type());
        let cpu = ffi::ggml_backend_init_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU, ptr::null());
        assert_eq!(
            ffi::ggml_backend_graph_compute(cpu, layers.graph),
            ffi::GGML_STATUS_SUCCESS
        );
        ffi::ggml_backend_free(cpu);
        peek(layers.result)
    };
    assert!(expected.iter().all(|x| x.is_finite()));
    for spec in [
        "vram=8M",
        "vram=8M,delay=200,seed=1",
        "vram=8M,delay=200,seed=2",
    ] {
        let card = Card::new(spec);
        let lane = card.stream();
        let layers = Layers::new(card.memory_type());
        assert_eq!(lane.submit(layers.graph), ffi::GGML_STATUS_SUCCESS);
        lane.synchronize();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&peek(layers.result)), bits(&expected), "{spec}");
    }
}

#[test]
fn a_graph_costs_what_its_nodes_cost() {
    let card = Card::new("vram=8M,flops=1T,membw=1T,launch=1us");
    let lane = card.stream();
    let layers = Layers::new(card.memory_type());
    let before = counters(card.handle).host_clock_ns;
    assert_eq!(lane.submit(layers.graph), ffi::GGML_STATUS_SUCCESS);
    lane.synchronize();
    let counters = counters(card.handle);
    assert_eq!(counters.kernels, 3 * 5, "views are no kernels");
    // Per layer: 2·576·576·40 operations in the product; elsewhere the rows are read and written.
    let rows = (WIDTH * ROWS * 4) as u64;
    let product = 2 * 576 * 576 * 40 / 1000 + 1;
    let moved = |bytes: u64| bytes.div_ceil(1000);
    let others = [2 * rows, 2 * rows + 4 * 576, 2 * rows, 3 * rows].map(moved);
    let layer = product + others.iter().sum::<u64>() + 5 * 1000;
    assert_eq!(counters.gpu_busy_ns, 3 * layer);
    assert_eq!(counters.host_clock_ns - before, 3 * layer);
    let entries = super::super::timeline(card.handle);
    let graph = entries
        .iter()
        .find(|e| e.kind == EntryKind::Graph)
        .expect("one graph");
    assert_eq!(
        (graph.stream, graph.end_ns - graph.start_ns),
        (Some(0), 3 * layer)
    );
}

#[test]
fn graphs_of_thousands_of_nodes_are_no_trouble() {
    let card = Card::new("vram=1M,delay=10");
    let lane = card.stream();
    let tensors = card.floats::<2>(16);
    let [a, b] = tensors.all;
    poke(a, &[1.0; 16]);
    poke(b, &[0.0; 16]);
    const NODES: usize = 2000;
    // SAFETY: the context has room for the nodes and is freed at the end.
    unsafe {
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: (NODES + 1) * 2 * (ffi::ggml_tensor_overhead() + 64),
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        });
        let mut x = b;
        let nodes: Vec<*mut ffi::ggml_tensor> = (0..NODES)
            .map(|_| {
                x = ffi::ggml_add_inplace(context, x, a);
                place(x, b);
                x
            })
            .collect();
        let graph = graph_of(context, &nodes);
        for _ in 0..3 {
            assert_eq!(lane.submit(graph), ffi::GGML_STATUS_SUCCESS);
        }
        lane.synchronize();
        assert_eq!(peek(b), [3.0 * NODES as f32; 16]);
        ffi::ggml_free(context);
    }
}

#[test]
fn two_streams_compute_at_the_same_time_and_agree() {
    let card = Card::new("vram=8M");
    let lanes = [card.stream(), card.stream(), card.stream()];
    let layers: Vec<Layers> = lanes
        .iter()
        .map(|_| Layers::new(card.memory_type()))
        .collect();
    for _ in 0..3 {
        for (lane, layers) in lanes.iter().zip(&layers) {
            assert_eq!(lane.submit(layers.graph), ffi::GGML_STATUS_SUCCESS);
        }
    }
    lanes.iter().for_each(Lane::synchronize);
    let results: Vec<Vec<f32>> = layers.iter().map(|l| peek(l.result)).collect();
    assert!(results.iter().all(|r| *r == results[0]));
}
