//! The rewrite on a simulated GPU, compared with the graph as llama.cpp builds it.

use super::*;
use pipeshard_sim::test_support::load_cpu;
use pipeshard_sim::{registry, SimSpec};
use std::ptr::null_mut;

const HEAD: i64 = 32;
const HEADS: i64 = 2;
const WIDTH: i64 = HEAD * HEADS;
const ROWS: i64 = 512;
const LAYERS: usize = 3;

/// How queries, keys and values are made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// Each by a product of its own.
    Apart,
    /// All by one product.
    Fused,
    /// A copy into keys stands in between.
    Written,
}

/// A graph of attentions on a simulated GPU of its own.
struct Layers {
    sched: ffi::ggml_backend_sched_t,
    device: ffi::ggml_backend_t,
    graph: *mut ffi::ggml_cgraph,
    input: Tensor,
    positions: Tensor,
    result: Tensor,
}

unsafe fn fill(tensor: Tensor, seed: usize) {
    let count = ffi::ggml_nelements(tensor) as usize;
    let value = |at: usize| ((at * 31 + seed * 17) as f32 * 0.13).sin() * 0.2;
    let values: Vec<f32> = (0..count).map(value).collect();
    ffi::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, 4 * count);
}

/// As clip.cpp builds attention; nothing of it is ever freed.
unsafe fn layers(shape: Shape) -> Layers {
    load_cpu();
    let card = registry(SimSpec::parse("vram=256M").expect("a valid specification"));
    let device =
        ffi::ggml_backend_dev_init(ffi::ggml_backend_reg_dev_get(card, 0), std::ptr::null());
    let kind = ffi::GGML_BACKEND_DEVICE_TYPE_CPU;
    let cpu = ffi::ggml_backend_init_by_type(kind, std::ptr::null());
    let mut both = [device, cpu];
    let sched = ffi::ggml_backend_sched_new(both.as_mut_ptr(), null_mut(), 2, 512, false, false);
    let context = || {
        ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 4 << 20,
            mem_buffer: null_mut(),
            no_alloc: true,
        })
    };
    let (weights, context) = (context(), context());
    let of = |name: usize, width: i64| {
        let made = ffi::ggml_new_tensor_2d(weights, ffi::GGML_TYPE_F32, WIDTH, width);
        (name, made)
    };
    let matrices: Vec<Vec<(usize, Tensor)>> = (0..LAYERS)
        .map(|layer| match shape {
            Shape::Fused => vec![of(layer, 3 * WIDTH)],
            _ => (0..3).map(|part| of(3 * layer + part, WIDTH)).collect(),
        })
        .collect();
    ffi::ggml_backend_alloc_ctx_tensors(weights, device);
    for &(seed, tensor) in matrices.iter().flatten() {
        fill(tensor, seed);
    }
    let input = ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_F32, WIDTH, ROWS);
    ffi::ggml_set_input(input);
    let positions = ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_I32, ROWS);
    ffi::ggml_set_input(positions);
    let graph = ffi::ggml_new_graph_custom(context, 512, false);
    let turned = |tensor: Tensor| ffi::ggml_rope(context, tensor, positions, HEAD as i32, 0);
    let heads = |tensor: Tensor| ffi::ggml_permute(context, tensor, 0, 2, 1, 3);
    let mut x = ffi::ggml_scale(context, input, 0.5);
    for matrices in &matrices {
        let norm = ffi::ggml_rms_norm(context, x, 1e-6);
        let [q, k, v] = match matrices[..] {
            [(_, all)] => {
                let all = ffi::ggml_mul_mat(context, all, norm);
                [0, 1, 2].map(|part| {
                    let (head, row) = (4 * HEAD as usize, (*all).nb[1]);
                    let offset = part * 4 * WIDTH as usize;
                    ffi::ggml_view_3d(context, all, HEAD, HEADS, ROWS, head, row, offset)
                })
            }
            _ => [0, 1, 2].map(|part| {
                let made = ffi::ggml_mul_mat(context, matrices[part].1, norm);
                ffi::ggml_reshape_3d(context, made, HEAD, HEADS, ROWS)
            }),
        };
        let (q, mut k) = (turned(q), turned(k));
        if shape == Shape::Written {
            k = ffi::ggml_cpy(context, v, k);
        }
        for part in [q, k, v] {
            ffi::ggml_build_forward_expand(graph, part);
        }
        let k = ffi::ggml_cast(context, heads(k), ffi::GGML_TYPE_F16);
        let v = ffi::ggml_cast(context, heads(v), ffi::GGML_TYPE_F16);
        let none = null_mut();
        let out = ffi::ggml_flash_attn_ext(context, heads(q), k, v, none, 0.2, 0.0, 0.0);
        let out = ffi::ggml_reshape_2d(context, out, WIDTH, ROWS);
        x = ffi::ggml_add(context, out, x);
    }
    ffi::ggml_set_output(x);
    ffi::ggml_build_forward_expand(graph, x);
    Layers {
        sched,
        device,
        graph,
        input,
        positions,
        result: x,
    }
}

impl Layers {
    /// What it computes, and bytes of compute buffers on the device.
    unsafe fn run(&self) -> (Vec<f32>, usize) {
        assert!(ffi::ggml_backend_sched_alloc_graph(self.sched, self.graph));
        fill(self.input, 99);
        let positions: Vec<i32> = (0..ROWS as i32).collect();
        let bytes = 4 * positions.len();
        ffi::ggml_backend_tensor_set(self.positions, positions.as_ptr().cast(), 0, bytes);
        let status = ffi::ggml_backend_sched_graph_compute(self.sched, self.graph);
        assert_eq!(status, ffi::GGML_STATUS_SUCCESS);
        let mut values = vec![0.0_f32; (WIDTH * ROWS) as usize];
        let bytes = 4 * values.len();
        ffi::ggml_backend_tensor_get(self.result, values.as_mut_ptr().cast(), 0, bytes);
        let buffer = ffi::ggml_backend_sched_get_buffer_size(self.sched, self.device);
        (values, buffer)
    }
}

/// With the graph as it was built, and in another order: for how many attentions that is another, and the compute buffers of both.
fn compared(shape: Shape) -> (u64, usize, usize) {
    // SAFETY: both graphs are valid, and nothing of them is freed.
    unsafe {
        let (stock, ours) = (layers(shape), layers(shape));
        let changed = finish_each(ours.graph);
        let ((expected, before), (found, after)) = (stock.run(), ours.run());
        assert!(expected.iter().any(|value| value.abs() > 0.01));
        assert!(expected == found, "{shape:?}");
        (changed, before, after)
    }
}

#[test]
fn the_same_bits_in_less_memory() {
    let (changed, before, after) = compared(Shape::Apart);
    assert_eq!(changed, LAYERS as u64);
    let all_rows = (4 * WIDTH * ROWS) as usize;
    assert!(before - after >= all_rows / 2, "{before} {after}");
}

#[test]
fn what_one_product_makes_stays_as_it_is() {
    let (changed, before, after) = compared(Shape::Fused);
    assert_eq!((changed, before), (0, after));
}

#[test]
fn nothing_moves_across_what_writes_into_other_memory() {
    let (changed, before, after) = compared(Shape::Written);
    assert_eq!((changed, before), (0, after));
}

#[test]
fn an_order_is_found_once() {
    // SAFETY: the graph is valid.
    unsafe {
        let layers = layers(Shape::Apart);
        assert_eq!(finish_each(layers.graph), LAYERS as u64);
        assert_eq!(finish_each(layers.graph), 0);
    }
}
