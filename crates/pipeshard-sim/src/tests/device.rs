//! What the device says of itself, its memory, and its buffers.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use super::super::{counters, failure, is_simulated, registry, spec, SimSpec};
use super::*;

fn text<'a>(chars: *const std::ffi::c_char) -> &'a str {
    // SAFETY: ggml's names are strings that live as long as what they name.
    unsafe { CStr::from_ptr(chars) }
        .to_str()
        .expect("plain text")
}

#[test]
fn it_calls_itself_a_gpu_with_all_that_llama_cpp_looks_for() {
    let registry = registry(SimSpec::parse("vram=1M,context=256K").expect("a valid specification"));
    // SAFETY: the registry lives as long as the process, and all answers are plain.
    unsafe {
        assert_eq!(text(ffi::ggml_backend_reg_name(registry)), "SIM");
        assert_eq!(ffi::ggml_backend_reg_dev_count(registry), 1);
        let device = ffi::ggml_backend_reg_dev_get(registry, 0);
        assert_eq!(text(ffi::ggml_backend_dev_name(device)), "SIM0");
        assert!(text(ffi::ggml_backend_dev_description(device)).starts_with("simulated GPU (1 MiB"));
        assert_eq!(
            ffi::ggml_backend_dev_type(device),
            ffi::GGML_BACKEND_DEVICE_TYPE_GPU
        );
        let mut props = MaybeUninit::zeroed().assume_init();
        ffi::ggml_backend_dev_get_props(device, &mut props);
        assert_eq!(
            (props.memory_free, props.memory_total),
            (768 << 10, 1 << 20)
        );
        let caps = props.caps;
        assert!(caps.async_ && caps.host_buffer && caps.events && caps.mmap_support);
        assert!(!caps.buffer_from_host_ptr);

        let memory = ffi::ggml_backend_dev_buffer_type(device);
        let host = ffi::ggml_backend_dev_host_buffer_type(device);
        assert_eq!(text(ffi::ggml_backend_buft_name(memory)), "SIM0");
        assert_eq!(text(ffi::ggml_backend_buft_name(host)), "SIM0_Host");
        assert!(!ffi::ggml_backend_buft_is_host(memory) && ffi::ggml_backend_buft_is_host(host));
        assert!(ffi::ggml_backend_dev_supports_buft(device, memory));
        assert!(!ffi::ggml_backend_dev_supports_buft(device, host));
        assert!(!ffi::ggml_backend_dev_supports_buft(
            device,
            ffi::ggml_backend_cpu_buffer_type()
        ));

        let find = |name: &CStr| ffi::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
        assert!(!find(c"ggml_backend_set_n_threads").is_null());
        assert!(find(c"ggml_backend_get_features").is_null());

        assert!(is_simulated(device));
        assert_eq!(spec(device).expect("simulated").context, 256 << 10);
        load_cpu();
        let cpu = ffi::ggml_backend_dev_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_CPU);
        assert!(!is_simulated(cpu) && spec(cpu).is_none() && failure(cpu).is_none());
    }
}

#[test]
fn one_byte_more_than_there_is_cannot_be_allocated() {
    let card = Card::new("vram=1M,granularity=1");
    // SAFETY: the buffer type lives as long as the process; buffers are freed once.
    unsafe {
        let alloc = |size| ffi::ggml_backend_buft_alloc_buffer(card.memory_type(), size);
        assert!(alloc((1 << 20) + 1).is_null());
        let all = alloc(1 << 20);
        assert!(!all.is_null());
        assert!(alloc(1).is_null());
        let empty = alloc(0);
        assert!(!empty.is_null(), "nothing at all can always be had");
        ffi::ggml_backend_buffer_free(empty);
        ffi::ggml_backend_buffer_free(all);
    }
    let counters = counters(card.handle);
    assert_eq!(
        (
            counters.allocations,
            counters.frees,
            counters.failed_allocations
        ),
        (1, 1, 2)
    );
    assert_eq!((counters.current_bytes, counters.peak_bytes), (0, 1 << 20));
}

#[test]
fn quantised_rows_take_the_room_that_cuda_gives_them() {
    let card = Card::new("vram=1M");
    let size = |kind, row| {
        let tensor = Tensors::<1>::new(card.memory_type(), |context| {
            // SAFETY: the context has room for the tensor.
            unsafe { ffi::ggml_new_tensor_2d(context, kind, row, 3) }
        });
        // SAFETY: the tensor is alive.
        unsafe {
            let padded = ffi::ggml_backend_buft_get_alloc_size(card.memory_type(), tensor.all[0]);
            (ffi::ggml_nbytes(tensor.all[0]), padded)
        }
    };
    // 18 bytes hold 32 elements.
    assert_eq!(size(ffi::GGML_TYPE_Q4_0, 576), (3 * 324, 3 * 324 + 252));
    assert_eq!(size(ffi::GGML_TYPE_Q4_0, 1024), (3 * 576, 3 * 576));
    assert_eq!(size(ffi::GGML_TYPE_F16, 576), (3 * 1152, 3 * 1152));
}

#[test]
fn buffers_hold_what_they_are_given_and_poison_before() {
    let card = Card::new("vram=1M");
    let tensors = card.floats::<2>(100);
    let [a, b] = tensors.all;
    assert!(peek(a).iter().all(|x| x.is_nan()));
    let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
    poke(a, &values);
    assert_eq!(peek(a), values);
    assert!(
        peek(b).iter().all(|x| x.is_nan()),
        "the neighbour is as it was"
    );
    // SAFETY: both tensors are allocated and alike.
    unsafe {
        ffi::ggml_backend_tensor_copy(a, b);
        assert_eq!(peek(b), values);
        ffi::ggml_backend_tensor_memset(b, 0, 40, 8);
        ffi::ggml_backend_buffer_clear(tensors.buffer, 0);
    }
    assert_eq!(peek(a), [0f32; 100]);
    let counters = counters(card.handle);
    assert_eq!((counters.bytes_h2d, counters.bytes_d2d), (400, 400));
    assert_eq!(counters.bytes_d2h, 5 * 400);
    assert_eq!(counters.sync_copies, 7);
}

#[test]
fn poison_can_be_turned_off() {
    let card = Card::new("vram=1M,poison=off");
    let tensors = card.floats::<1>(10);
    assert_eq!(peek(tensors.all[0]), [0f32; 10]);
}

#[test]
fn page_locked_buffers_are_the_cpus_but_for_their_type() {
    let card = Card::new("vram=1M,pin=1M");
    let host = card.device.handles().host_type;
    // SAFETY: buffers are freed once, and written within their length.
    unsafe {
        let locked = ffi::ggml_backend_buft_alloc_buffer(host, 600 << 10);
        assert_eq!((*locked).buft, host);
        let base = ffi::ggml_backend_buffer_get_base(locked).cast::<u8>();
        base.write_bytes(7, 600 << 10);
        assert!(page_locked_is(card.handle, 600 << 10));
        let too_much = ffi::ggml_backend_buft_alloc_buffer(host, 600 << 10);
        assert_eq!(
            (*too_much).buft,
            ffi::ggml_backend_cpu_buffer_type(),
            "what cannot be locked is not"
        );
        ffi::ggml_backend_buffer_free(too_much);
        ffi::ggml_backend_buffer_free(locked);
    }
    assert!(page_locked_is(card.handle, 0));
    let refused = Card::new("vram=1M,pin=off");
    // SAFETY: as above.
    unsafe {
        let buffer = ffi::ggml_backend_buft_alloc_buffer(refused.device.handles().host_type, 100);
        assert_eq!((*buffer).buft, ffi::ggml_backend_cpu_buffer_type());
        ffi::ggml_backend_buffer_free(buffer);
    }
}

#[test]
fn it_takes_the_operations_that_cuda_would_take_off_the_host() {
    let card = Card::new("vram=1M");
    // SAFETY: the context has room for the tensors, and nothing is computed.
    unsafe {
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: 1 << 16,
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        });
        let weight = ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_F32, 64, 64);
        let rows = |n| ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_F32, 64, n);
        let multiply = |n| ffi::ggml_mul_mat(context, weight, rows(n));
        let takes = |op| ffi::ggml_backend_dev_offload_op(card.handle, op);
        assert!(takes(multiply(32)) && takes(multiply(600)));
        assert!(!takes(multiply(31)) && !takes(multiply(1)));
        assert!(takes(ffi::ggml_add(context, rows(32), rows(32))));
        let ids = ffi::ggml_new_tensor_1d(context, ffi::GGML_TYPE_I32, 600);
        let lookup = ffi::ggml_get_rows(context, weight, ids);
        assert!(!takes(lookup), "embeddings are looked up on the host");
        let supports = |op| ffi::ggml_backend_dev_supports_op(card.handle, op);
        assert!(supports(multiply(1)) && supports(lookup));
        let custom = ffi::ggml_map_custom1(context, rows(1), Some(nothing), 1, ptr::null_mut());
        assert!(!supports(custom), "the host's functions run on the host");
        ffi::ggml_free(context);
    }
}

unsafe extern "C" fn nothing(
    _to: *mut ffi::ggml_tensor,
    _from: *const ffi::ggml_tensor,
    _ith: i32,
    _nth: i32,
    _data: *mut c_void,
) {
}

#[test]
fn another_cards_memory_is_foreign() {
    let (one, other) = (Card::new("vram=1M"), Card::new("vram=1M"));
    let tensors = one.floats::<1>(64);
    // SAFETY: the tensor is alive, as is the context until it is freed.
    unsafe {
        assert!(!ffi::ggml_backend_dev_supports_buft(
            other.handle,
            one.memory_type()
        ));
        let double = ffi::ggml_add(tensors.context, tensors.all[0], tensors.all[0]);
        assert!(ffi::ggml_backend_dev_supports_op(one.handle, double));
        assert!(!ffi::ggml_backend_dev_supports_op(other.handle, double));
    }
}
