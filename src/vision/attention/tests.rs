//! The rewrite on a simulated GPU, compared with the graph as llama.cpp builds it.

use super::*;
use crate::vision::windows::Grid;
use pipeshard_sim::test_support::load_cpu;
use pipeshard_sim::{registry, SimSpec};
use std::ptr::null_mut;

const HEAD: i64 = 32;
const HEADS: i64 = 2;
const LAYERS: usize = 3;

/// A scheduler over a simulated GPU of its own and the CPU.
struct Scheduler {
    backends: Backends,
}

impl Scheduler {
    fn new() -> Self {
        load_cpu();
        let card = registry(SimSpec::parse("vram=256M").expect("a valid specification"));
        // SAFETY: devices live as long as the process, and so do the backends and the scheduler of a test.
        unsafe {
            let device = ffi::ggml_backend_dev_init(
                ffi::ggml_backend_reg_dev_get(card, 0),
                std::ptr::null(),
            );
            let kind = ffi::GGML_BACKEND_DEVICE_TYPE_CPU;
            let cpu = ffi::ggml_backend_init_by_type(kind, std::ptr::null());
            let mut both = [device, cpu];
            let sched =
                ffi::ggml_backend_sched_new(both.as_mut_ptr(), null_mut(), 2, 512, false, false);
            assert!(!device.is_null() && !cpu.is_null() && !sched.is_null());
            Scheduler {
                backends: Backends { sched, device, cpu },
            }
        }
    }

    fn buffer(&self) -> usize {
        let Backends { sched, device, .. } = self.backends;
        // SAFETY: both are alive.
        unsafe { ffi::ggml_backend_sched_get_buffer_size(sched, device) }
    }
}

/// A graph of layers that attend within the windows of a grid.
struct Layers {
    graph: *mut ffi::ggml_cgraph,
    input: Tensor,
    mask: Tensor,
    result: Tensor,
}

fn input(
    context: *mut ffi::ggml_context,
    kind: ffi::ggml_type,
    width: i64,
    rows: i64,
    name: &CStr,
) -> Tensor {
    // SAFETY: the context has room.
    unsafe {
        let made = ffi::ggml_new_tensor_2d(context, kind, width, rows);
        ffi::ggml_set_name(made, name.as_ptr());
        ffi::ggml_set_input(made);
        made
    }
}

/// As clip.cpp builds attention; nothing of it is ever freed.
fn layers(grid: Grid, backends: Backends, nodes: usize) -> Layers {
    let rows = grid.patches() as i64;
    // SAFETY: the context has room for all that is put into it; whatever is handed to ggml is valid.
    unsafe {
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 4 << 20,
            mem_buffer: null_mut(),
            no_alloc: true,
        });
        let graph = ffi::ggml_new_graph_custom(context, nodes, false);
        let start = input(context, ffi::GGML_TYPE_F32, HEAD * HEADS, rows, c"x");
        let mask = input(context, ffi::GGML_TYPE_F16, rows, rows, MASK);
        let mut x = ffi::ggml_scale(context, start, 1.0);
        for layer in 0..LAYERS {
            let heads = ffi::ggml_reshape_3d(context, x, HEAD, HEADS, rows);
            let by_head = |of| ffi::ggml_permute(context, of, 0, 2, 1, 3);
            let half = |of| ffi::ggml_cast(context, by_head(of), ffi::GGML_TYPE_F16);
            let key = ffi::ggml_scale(context, heads, 0.7);
            let (k, v) = (half(key), half(heads));
            // the last one sees everything
            let seen = if layer + 1 < LAYERS { mask } else { null_mut() };
            let attention =
                ffi::ggml_flash_attn_ext(context, by_head(heads), k, v, seen, 0.5, 0.0, 0.0);
            let flat = ffi::ggml_reshape_2d(context, attention, HEAD * HEADS, rows);
            x = ffi::ggml_add(context, ffi::ggml_scale(context, flat, 0.3), x);
        }
        ffi::ggml_set_output(x);
        ffi::ggml_build_forward_expand(graph, x);
        let all = std::slice::from_raw_parts(
            ffi::ggml_graph_nodes(graph),
            ffi::ggml_graph_n_nodes(graph) as usize,
        );
        for &node in all {
            ffi::ggml_backend_sched_set_tensor_backend(backends.sched, node, backends.device);
        }
        Layers {
            graph,
            input: start,
            mask,
            result: x,
        }
    }
}

fn set<T>(tensor: Tensor, values: &[T]) {
    // SAFETY: the tensor has memory for as many bytes.
    unsafe {
        assert_eq!(ffi::ggml_nbytes(tensor), size_of_val(values));
        ffi::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, size_of_val(values));
    }
}

/// Runs a graph: the result, and the bytes of compute buffers on the device.
fn run(grid: Grid, scheduler: &Scheduler, layers: &Layers) -> (Vec<f32>, usize) {
    let rows = grid.patches() as usize;
    let width = (HEAD * HEADS) as usize;
    let sched = scheduler.backends.sched;
    // SAFETY: graph and scheduler are valid, and tensors have memory once the graph is allocated.
    unsafe {
        assert!(ffi::ggml_backend_sched_alloc_graph(sched, layers.graph));
        let value = |at: usize| (at as f32 * 0.37).sin() + (at % 7) as f32 * 0.1;
        let values: Vec<f32> = (0..rows * width).map(value).collect();
        set(layers.input, &values);
        if (*layers.mask).flags & ffi::GGML_TENSOR_FLAG_INPUT as i32 != 0 {
            let mut mask = vec![half::f16::NEG_INFINITY; rows * rows];
            for run in grid.runs(nodes_of) {
                for window in 0..run.count {
                    let first = (run.first + window * run.step) as usize;
                    for row in first..first + run.each as usize {
                        mask[row * rows + first..][..run.each as usize].fill(half::f16::ZERO);
                    }
                }
            }
            set(layers.mask, &mask);
        }
        let status = ffi::ggml_backend_sched_graph_compute(sched, layers.graph);
        let card = ffi::ggml_backend_get_device(scheduler.backends.device);
        let failure = pipeshard_sim::failure(card);
        assert_eq!((status, failure), (ffi::GGML_STATUS_SUCCESS, None));
        let mut result = vec![0.0_f32; rows * width];
        let bytes = size_of_val(&result[..]);
        ffi::ggml_backend_tensor_get(layers.result, result.as_mut_ptr().cast(), 0, bytes);
        (result, scheduler.buffer())
    }
}

fn stock(grid: Grid) -> (Vec<f32>, usize) {
    let scheduler = Scheduler::new();
    let layers = layers(grid, scheduler.backends, 512);
    run(grid, &scheduler, &layers)
}

fn rewritten(grid: Grid) -> (Vec<f32>, usize) {
    rewritten_in(grid, &grid.runs(nodes_of))
}

/// The same with these runs.
fn rewritten_in(grid: Grid, runs: &[Run]) -> (Vec<f32>, usize) {
    let scheduler = Scheduler::new();
    let layers = layers(grid, scheduler.backends, 512);
    let (mut context, windows) = (None, of(runs, grid));
    // SAFETY: the graph was not split, and the context is empty.
    let batched = unsafe { batch_windows(layers.graph, &mut context, scheduler.backends, windows) };
    let batched = batched.expect("it is as expected").expect("it has a mask");
    assert_eq!(batched.attentions, LAYERS as u64 - 1);
    assert_eq!(batched.windows, batched.attentions * grid.count());
    // SAFETY: the mask is alive.
    let flags = unsafe { (*layers.mask).flags };
    assert_eq!(flags & ffi::GGML_TENSOR_FLAG_INPUT as i32, 0);
    let done = run(grid, &scheduler, &layers);
    // SAFETY: the mask is alive.
    assert_eq!(unsafe { (*layers.mask).data }.addr(), NOWHERE);
    done
}

fn of(runs: &[Run], grid: Grid) -> Windows<'_> {
    Windows {
        runs,
        patches: grid.patches(),
        fills_mask: false,
    }
}

fn grid(width: u32, height: u32) -> Grid {
    Grid {
        width,
        height,
        window: 4,
        merged: 2,
    }
}

#[test]
fn full_windows_give_the_same_bits_in_less_memory() {
    for (width, height) in [(8, 8), (16, 4), (4, 24)] {
        let grid = grid(width, height);
        let ((expected, before), (found, after)) = (stock(grid), rewritten(grid));
        assert!(expected.iter().all(|value| value.is_finite()));
        assert!(expected == found, "{width}x{height}");
        let mask = (grid.patches() * grid.patches() * 2) as usize;
        assert!(
            after + mask <= before,
            "{width}x{height}: {after} of {before}"
        );
    }
}

#[test]
fn ragged_windows_give_the_same_but_for_rounding() {
    for (width, height) in [
        (9, 8),
        (10, 7),
        (3, 3),
        (1, 30),
        (30, 1),
        (5, 5),
        (6, 27),
        (7, 24),
    ] {
        let grid = grid(width, height);
        let ((expected, _), (found, _)) = (stock(grid), rewritten(grid));
        let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let most = differences.fold(0.0_f32, f32::max);
        // halves have 11 bits
        assert!(most < 4e-3, "{width}x{height}: {most}");
    }
}

/// All windows of an image, each taken alone or in runs of so many.
fn in_runs_of(grid: Grid, count: u64) -> Vec<Run> {
    let [all] = grid.runs(nodes_of)[..] else {
        panic!("{grid:?} has windows of several sizes");
    };
    let run = |window: u64| Run {
        first: window * all.each,
        count: count.min(all.count - window),
        ..all
    };
    (0..all.count).step_by(count as usize).map(run).collect()
}

#[test]
fn windows_may_be_taken_one_by_one_or_by_columns() {
    let grid = grid(16, 12);
    let (expected, _) = stock(grid);
    let (whole, least) = rewritten(grid);
    assert!(whole == expected);
    for count in [1, 5] {
        let (found, bytes) = rewritten_in(grid, &in_runs_of(grid, count));
        assert!(found == expected, "{count}");
        // results are kept no longer than they are read
        assert_eq!(bytes, least, "{count}");
    }
    // as if a strip cost more than all columns
    let columns = grid.runs(|run| if run.is_dense() { 100 } else { 1 });
    assert!(columns.iter().all(|run| !run.is_dense()));
    let (found, bytes) = rewritten_in(grid, &columns);
    assert!(found == expected);
    // the result of a column lies beside that of all
    let column = columns[0].each * columns[0].count * (HEAD * HEADS * 4) as u64;
    assert!(bytes as u64 <= least as u64 + column, "{bytes} {least}");
}

#[test]
fn a_graph_that_comes_again_is_rewritten_again() {
    let grid = grid(9, 5);
    let (expected, _) = rewritten(grid);
    let scheduler = Scheduler::new();
    let layers = layers(grid, scheduler.backends, 512);
    let (mut context, runs) = (None, grid.runs(nodes_of));
    let count = unsafe { ffi::ggml_graph_n_nodes(layers.graph) } as usize;
    // SAFETY: as many nodes as the graph has.
    let before: Vec<_> = unsafe {
        let nodes = std::slice::from_raw_parts(ffi::ggml_graph_nodes(layers.graph), count);
        nodes.iter().map(|&node| (node, (*node).src)).collect()
    };
    let mut rewrite = |graph| {
        let windows = of(&runs, grid);
        // SAFETY: the graph was not split.
        let batched = unsafe { batch_windows(graph, &mut context, scheduler.backends, windows) };
        assert!(matches!(batched, Ok(Some(_))), "{batched:?}");
    };
    rewrite(layers.graph);
    // the scheduler restores nodes and their sources, and nothing else
    // SAFETY: the context has room; the nodes are alive.
    let graph = unsafe {
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 1 << 20,
            mem_buffer: null_mut(),
            no_alloc: true,
        });
        let graph = ffi::ggml_new_graph_custom(context, 512, false);
        for (node, sources) in before {
            (*node).src = sources;
            ffi::ggml_graph_add_node(graph, node);
        }
        graph
    };
    rewrite(graph);
    let again = Layers { graph, ..layers };
    assert!(run(grid, &scheduler, &again).0 == expected);
}

#[test]
fn what_cannot_be_rewritten_stays_as_it_is() {
    let whole = grid(8, 8);
    let scheduler = Scheduler::new();
    let declined = |grid: Grid, nodes: usize| {
        let layers = layers(whole, scheduler.backends, nodes);
        // SAFETY: the graph was not split, and the context is empty.
        let (result, count) = unsafe {
            let before = ffi::ggml_graph_n_nodes(layers.graph);
            let result = batch_windows(
                layers.graph,
                &mut None,
                scheduler.backends,
                of(&grid.runs(nodes_of), grid),
            );
            assert_ne!((*layers.mask).flags & ffi::GGML_TENSOR_FLAG_INPUT as i32, 0);
            (result, ffi::ggml_graph_n_nodes(layers.graph) == before)
        };
        assert!(count);
        result.err()
    };
    assert_eq!(declined(grid(8, 9), 512), Some(Declined::OtherMask));
    // as many nodes as it has, and one
    assert_eq!(declined(whole, 45), Some(Declined::NoRoom));
}
