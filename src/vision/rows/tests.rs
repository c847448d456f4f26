//! The rewrite on a simulated GPU, compared with the graph as llama.cpp builds it.

use super::*;
use pipeshard_sim::test_support::load_cpu;
use pipeshard_sim::{registry, SimSpec};
use std::ptr::null_mut;

const WIDTH: i64 = 64;
const INNER: i64 = 256;
const LAYERS: usize = 3;

/// How a network is made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// Root mean square, two products side by side, one of them through an activation.
    Gated,
    /// Mean and variance, an activation, and factors on the result.
    Plain,
    /// Somebody else looks at what is in between.
    Watched,
}

/// A graph of layers on a simulated GPU of its own.
struct Layers {
    backends: Backends,
    graph: *mut ffi::ggml_cgraph,
    input: Tensor,
    result: Tensor,
}

unsafe fn context() -> *mut ffi::ggml_context {
    ffi::ggml_init(ffi::ggml_init_params {
        mem_size: 4 << 20,
        mem_buffer: null_mut(),
        no_alloc: true,
    })
}

unsafe fn fill(tensor: Tensor, seed: usize) {
    let count = ffi::ggml_nelements(tensor) as usize;
    let value = |at: usize| ((at * 31 + seed * 17) as f32 * 0.13).sin() * 0.2;
    if (*tensor).type_ == ffi::GGML_TYPE_F16 {
        let values: Vec<half::f16> = (0..count)
            .map(|at| half::f16::from_f32(value(at)))
            .collect();
        ffi::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, 2 * count);
    } else {
        let values: Vec<f32> = (0..count).map(value).collect();
        ffi::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, 4 * count);
    }
}

/// The weights of a layer.
struct Weights {
    norm: Tensor,
    products: [Tensor; 3],
    biases: [Tensor; 3],
}

/// Nothing of it is ever freed.
fn layers(rows: i64, shape: Shape) -> Layers {
    load_cpu();
    let card = registry(SimSpec::parse("vram=256M").expect("a valid specification"));
    // SAFETY: devices live as long as the process, contexts have room for what is put into them; all else is made here.
    unsafe {
        let none = std::ptr::null();
        let device = ffi::ggml_backend_dev_init(ffi::ggml_backend_reg_dev_get(card, 0), none);
        let cpu = ffi::ggml_backend_init_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU, none);
        let mut both = [device, cpu];
        let sched =
            ffi::ggml_backend_sched_new(both.as_mut_ptr(), null_mut(), 2, 512, false, false);
        assert!(!device.is_null() && !cpu.is_null() && !sched.is_null());
        let held = context();
        let matrix = |a, b| ffi::ggml_new_tensor_2d(held, ffi::GGML_TYPE_F16, a, b);
        let vector = |a| ffi::ggml_new_tensor_1d(held, ffi::GGML_TYPE_F32, a);
        let weights: Vec<Weights> = (0..LAYERS)
            .map(|_| Weights {
                norm: vector(WIDTH),
                products: [
                    matrix(WIDTH, INNER),
                    matrix(WIDTH, INNER),
                    matrix(INNER, WIDTH),
                ],
                biases: [vector(INNER), vector(INNER), vector(WIDTH)],
            })
            .collect();
        let buffer = ffi::ggml_backend_alloc_ctx_tensors(held, device);
        ffi::ggml_backend_buffer_set_usage(buffer, ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        let mut tensor = ffi::ggml_get_first_tensor(held);
        let mut seed = 0;
        while !tensor.is_null() {
            seed += 1;
            fill(tensor, seed);
            tensor = ffi::ggml_get_next_tensor(held, tensor);
        }
        let made = context();
        let graph = ffi::ggml_new_graph_custom(made, 512, false);
        let input = ffi::ggml_new_tensor_2d(made, ffi::GGML_TYPE_F32, WIDTH, rows);
        ffi::ggml_set_input(input);
        let mut x = ffi::ggml_scale(made, input, 1.0);
        let mut watched = null_mut();
        for of in &weights {
            // in place of attention
            x = ffi::ggml_add(made, ffi::ggml_scale(made, x, 0.5), x);
            let normed = match shape {
                Shape::Gated => ffi::ggml_rms_norm(made, x, 1e-6),
                _ => ffi::ggml_norm(made, x, 1e-6),
            };
            let normed = ffi::ggml_mul(made, normed, of.norm);
            let product = |at: usize, input| {
                let product = ffi::ggml_mul_mat(made, of.products[at], input);
                ffi::ggml_add(made, product, of.biases[at])
            };
            let active = match shape {
                Shape::Gated => {
                    ffi::ggml_swiglu_split(made, product(0, normed), product(1, normed))
                }
                _ => ffi::ggml_gelu(made, product(0, normed)),
            };
            watched = active;
            let mut down = product(2, active);
            if shape == Shape::Plain {
                down = ffi::ggml_mul(made, down, of.norm);
            }
            x = match shape {
                Shape::Plain => ffi::ggml_add(made, down, x),
                _ => ffi::ggml_add(made, x, down),
            };
        }
        // seen through a view of a view
        let flat = ffi::ggml_reshape_1d(
            made,
            ffi::ggml_reshape_3d(made, x, WIDTH, 1, rows),
            WIDTH * rows,
        );
        let mut result = ffi::ggml_scale(made, flat, 2.0);
        if shape == Shape::Watched {
            let seen = ffi::ggml_reshape_1d(made, watched, INNER * rows);
            result = ffi::ggml_add(made, result, ffi::ggml_view_1d(made, seen, WIDTH * rows, 0));
        }
        ffi::ggml_set_output(result);
        ffi::ggml_build_forward_expand(graph, result);
        Layers {
            backends: Backends { sched, device, cpu },
            graph,
            input,
            result,
        }
    }
}

/// The result, and the bytes of compute buffers on the device.
fn run(layers: &Layers) -> (Vec<f32>, usize) {
    let Backends { sched, device, .. } = layers.backends;
    // SAFETY: graph and scheduler are valid, and tensors have memory once the graph is allocated.
    unsafe {
        assert!(ffi::ggml_backend_sched_alloc_graph(sched, layers.graph));
        fill(layers.input, 99);
        let status = ffi::ggml_backend_sched_graph_compute(sched, layers.graph);
        let failure = pipeshard_sim::failure(ffi::ggml_backend_get_device(device));
        assert_eq!((status, failure), (ffi::GGML_STATUS_SUCCESS, None));
        let mut result = vec![0.0_f32; ffi::ggml_nelements(layers.result) as usize];
        let bytes = size_of_val(&result[..]);
        ffi::ggml_backend_tensor_get(layers.result, result.as_mut_ptr().cast(), 0, bytes);
        (
            result,
            ffi::ggml_backend_sched_get_buffer_size(sched, device),
        )
    }
}

fn divided(layers: &Layers, context: &mut Option<TensorContext>) -> Divided {
    // SAFETY: the graph was not split.
    unsafe { divide(layers.graph, context, layers.backends) }
}

#[test]
fn pieces_give_the_same_bits_in_less_memory() {
    for shape in [Shape::Gated, Shape::Plain] {
        for (rows, each) in [(1030, 4), (800, 3), (2048, 4)] {
            let (expected, before) = run(&layers(rows, shape));
            let ours = layers(rows, shape);
            let mut context = None;
            let done = divided(&ours, &mut context);
            let networks = LAYERS as u64;
            assert_eq!(
                (done.networks, done.pieces),
                (networks, networks * each),
                "{shape:?}"
            );
            let (found, after) = run(&ours);
            assert!(expected.iter().all(|value| value.is_finite()));
            assert!(expected == found, "{shape:?} {rows}");
            // of the two or three wide tensors a part is left
            assert!(
                after * 3 < before * 2,
                "{shape:?} {rows}: {after} of {before}"
            );
        }
    }
}

#[test]
fn what_is_watched_or_small_stays_whole() {
    for (rows, shape, networks) in [(300, Shape::Gated, 0), (1024, Shape::Watched, LAYERS - 1)] {
        let (expected, _) = run(&layers(rows, shape));
        let ours = layers(rows, shape);
        let mut context = None;
        assert_eq!(
            divided(&ours, &mut context).networks,
            networks as u64,
            "{shape:?}"
        );
        assert!(run(&ours).0 == expected, "{shape:?}");
    }
}
