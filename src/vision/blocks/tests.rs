//! The rewrite on a simulated GPU, compared with the graph as llama.cpp builds it.

use super::*;
use pipeshard_sim::test_support::load_cpu;
use pipeshard_sim::{registry, SimSpec};
use std::ptr::null_mut;

const HEAD: i64 = 24;
const HEADS: i64 = 3;
const LAYERS: usize = 2;

/// A graph of layers on a simulated GPU of its own.
struct Layers {
    backends: Backends,
    graph: *mut ffi::ggml_cgraph,
    inputs: Vec<Tensor>,
    result: Tensor,
}

/// What is special about a graph.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Masked,
    /// Somebody looks at what the softmax gives.
    Watched,
}

/// As clip.cpp builds attention that is not fused, in a graph for `nodes` nodes; nothing of it is ever freed.
fn layers(rows: i64, kind: Kind, nodes: usize) -> Layers {
    load_cpu();
    let card = registry(SimSpec::parse("vram=512M").expect("a valid specification"));
    // SAFETY: devices live as long as the process, the context has room for what is put into it; all else is made here.
    unsafe {
        let none = std::ptr::null();
        let device = ffi::ggml_backend_dev_init(ffi::ggml_backend_reg_dev_get(card, 0), none);
        let cpu = ffi::ggml_backend_init_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU, none);
        let mut both = [device, cpu];
        let sched =
            ffi::ggml_backend_sched_new(both.as_mut_ptr(), null_mut(), 2, nodes, false, false);
        assert!(!device.is_null() && !cpu.is_null() && !sched.is_null());
        let made = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 4 << 20,
            mem_buffer: null_mut(),
            no_alloc: true,
        });
        let graph = ffi::ggml_new_graph_custom(made, nodes, false);
        let mut inputs = Vec::new();
        let mut input = |width, rows| {
            let input = ffi::ggml_new_tensor_2d(made, ffi::GGML_TYPE_F32, width, rows);
            ffi::ggml_set_input(input);
            inputs.push(input);
            input
        };
        let x = input(HEAD * HEADS, rows);
        let mask = match kind {
            Kind::Masked => input(rows, rows),
            _ => null_mut(),
        };
        let mut x = ffi::ggml_scale(made, x, 1.0);
        for _ in 0..LAYERS {
            let heads = |by| {
                let scaled = ffi::ggml_scale(made, x, by);
                ffi::ggml_reshape_3d(made, scaled, HEAD, HEADS, rows)
            };
            let q = ffi::ggml_permute(made, heads(1.0), 0, 2, 1, 3);
            let k = ffi::ggml_permute(made, heads(0.7), 0, 2, 1, 3);
            let v = ffi::ggml_cont(made, ffi::ggml_permute(made, heads(0.9), 1, 2, 0, 3));
            let scores = ffi::ggml_mul_mat(made, k, q);
            let softmax = ffi::ggml_soft_max_ext(made, scores, mask, 0.3, 0.0);
            let result = ffi::ggml_mul_mat(made, v, softmax);
            let turned = ffi::ggml_permute(made, result, 0, 2, 1, 3);
            let flat = ffi::ggml_cont_2d(made, turned, HEAD * HEADS, rows);
            x = ffi::ggml_add(made, flat, x);
            if kind == Kind::Watched {
                let some =
                    ffi::ggml_view_2d(made, softmax, HEAD * HEADS, rows, (*softmax).nb[1], 0);
                x = ffi::ggml_add(made, x, some);
            }
        }
        let result = ffi::ggml_scale(made, x, 2.0);
        ffi::ggml_set_output(result);
        ffi::ggml_build_forward_expand(graph, result);
        Layers {
            backends: Backends { sched, device, cpu },
            graph,
            inputs,
            result,
        }
    }
}

/// What comes out, and the size of all compute buffers.
fn run(layers: &Layers) -> (Vec<f32>, usize) {
    let Backends { sched, device, cpu } = layers.backends;
    // SAFETY: all of it is alive.
    unsafe {
        assert!(ffi::ggml_backend_sched_alloc_graph(sched, layers.graph));
        for (seed, &input) in layers.inputs.iter().enumerate() {
            let count = ffi::ggml_nelements(input) as usize;
            let value = |at: usize| ((at * 31 + seed * 17) as f32 * 0.13).sin() * 0.9;
            let values: Vec<f32> = (0..count).map(value).collect();
            ffi::ggml_backend_tensor_set(input, values.as_ptr().cast(), 0, 4 * count);
        }
        let status = ffi::ggml_backend_sched_graph_compute(sched, layers.graph);
        assert_eq!(status, ffi::GGML_STATUS_SUCCESS);
        let count = ffi::ggml_nelements(layers.result) as usize;
        let mut values = vec![0f32; count];
        ffi::ggml_backend_tensor_get(layers.result, values.as_mut_ptr().cast(), 0, 4 * count);
        // without weights on the device, the graph as it was is the CPU's
        let sizes = [device, cpu].map(|of| ffi::ggml_backend_sched_get_buffer_size(sched, of));
        (values, sizes.into_iter().sum())
    }
}

fn rewritten(rows: i64, kind: Kind, nodes: usize) -> (Divided, (Vec<f32>, usize)) {
    let layers = layers(rows, kind, nodes);
    let mut context = None;
    // SAFETY: nothing has split the graph yet; the tensors stay until it has run.
    let divided = unsafe { divide(layers.graph, &mut context, layers.backends) };
    // a graph that comes for a second time stays as it is
    let again = unsafe { divide(layers.graph, &mut context, layers.backends) };
    assert_eq!(again, Divided::default());
    (divided, run(&layers))
}

#[test]
fn blocks_give_the_same_bits_in_less_memory() {
    for (rows, kind, blocks) in [
        (1024, Kind::Plain, 4),
        (1024, Kind::Masked, 4),
        (777, Kind::Plain, 3),
        (777, Kind::Masked, 3),
    ] {
        let (expected, all) = run(&layers(rows, kind, 512));
        let (divided, (found, some)) = rewritten(rows, kind, 512);
        assert_eq!(divided.attentions, LAYERS as u64, "{rows} {kind:?}");
        assert_eq!(divided.blocks, (LAYERS * blocks) as u64, "{rows} {kind:?}");
        assert!(
            expected == found,
            "{rows} {kind:?}: other bits than the graph as it was"
        );
        let scores = (rows * rows * HEADS * 4) as usize;
        let saved = scores - scores / blocks;
        assert!(
            some + saved * 8 / 10 < all,
            "{rows} {kind:?}: {some} of {all} bytes, where {saved} are saved"
        );
    }
}

#[test]
fn there_are_no_more_blocks_than_the_graph_has_room_for() {
    let (expected, _) = run(&layers(2048, Kind::Plain, 512));
    let (divided, (found, _)) = rewritten(2048, Kind::Plain, 128);
    assert!(
        (2 * LAYERS as u64..8 * LAYERS as u64).contains(&divided.blocks),
        "{divided:?}"
    );
    assert!(expected == found);
}

#[test]
fn what_is_small_or_looked_at_stays_as_it_is() {
    for (rows, kind) in [(2 * LEAST - 1, Kind::Plain), (1024, Kind::Watched)] {
        let (expected, all) = run(&layers(rows, kind, 512));
        let (divided, (found, same)) = rewritten(rows, kind, 512);
        assert_eq!(divided, Divided::default(), "{rows} {kind:?}");
        assert_eq!(all, same);
        assert!(expected == found);
    }
}
