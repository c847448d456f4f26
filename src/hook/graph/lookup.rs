//! Embeddings looked up by several threads: a graph rewrite.
//!
//! ggml looks them up with a single thread, and the device has nothing to do until it is over: 10 ms for 4,096 tokens of an 8B
//! model. ggml's own threads would not help, for it waits until the last one of them is awake: 11 to 19 ms in all on an H100's host.
//! Here the node becomes an operation of our own, which converts each row as ggml does, to the same bits, with
//! helpers; nothing waits for a helper.

use crate::hook::helpers::Helpers;
use half::slice::HalfFloatSliceExt;
use pipeshard_plan::constants::graph::MANY_EMBEDDINGS;
use pipeshard_sys as ffi;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

/// Tokens that a thread takes at a time.
const AT_A_TIME: usize = 64;

/// What ggml notes of the operation in a node.
type Parameters = [i32; ffi::GGML_MAX_OP_PARAMS as usize / 4];

/// Makes the node an operation that threads share, if it looks up rows of weights in host memory for many tokens. True: it is one, now
/// or since the graph was split before.
///
/// # Safety
/// `node` belongs to a graph that has not been split yet.
pub unsafe fn share(node: *mut ffi::ggml_tensor) -> bool {
    if let (true, Some(parameters)) = (is_lookup_of_many(node), parameters()) {
        (*node).op = ffi::GGML_OP_CUSTOM;
        (*node).op_params = *parameters;
    }
    is_shared(node)
}

/// Reports whether the node looks up rows, shared or not.
///
/// # Safety
/// `node` is valid.
pub unsafe fn looks_up(node: *const ffi::ggml_tensor) -> bool {
    (*node).op == ffi::GGML_OP_GET_ROWS || is_shared(node)
}

unsafe fn is_shared(node: *const ffi::ggml_tensor) -> bool {
    (*node).op == ffi::GGML_OP_CUSTOM && parameters().is_some_and(|ours| (*node).op_params == *ours)
}

unsafe fn is_lookup_of_many(node: *const ffi::ggml_tensor) -> bool {
    let [weights, tokens, ..] = (*node).src;
    if (*node).op != ffi::GGML_OP_GET_ROWS || weights.is_null() || tokens.is_null() {
        return false;
    }
    let (buffer, list) = ((*weights).buffer, &*tokens);
    let converts = matches!((*weights).type_, ffi::GGML_TYPE_F32 | ffi::GGML_TYPE_F16)
        || converter((*weights).type_).is_some();
    converts
        && !buffer.is_null()
        && ffi::ggml_backend_buffer_is_host(buffer)
        && ffi::ggml_backend_buffer_get_usage(buffer) == ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
        && matches!((*weights).ne, [_, _, 1, 1])
        && list.type_ == ffi::GGML_TYPE_I32
        && list.ne[0] >= i64::from(MANY_EMBEDDINGS)
        && matches!(list.ne, [_, 1, 1, 1])
        && (*node).type_ == ffi::GGML_TYPE_F32
        && (*node).nb[0] == std::mem::size_of::<f32>()
        && (*node).view_src.is_null()
}

/// ggml's conversion of a row to floats, if the type has one.
fn converter(kind: ffi::ggml_type) -> ffi::ggml_to_float_t {
    // SAFETY: a tensor's type is one that ggml knows; it answers with a table that lives as long as the process.
    unsafe { ffi::ggml_get_type_traits(kind).as_ref()?.to_float }
}

/// What ggml notes of [`look_up`] in a node that one of its threads computes. Its layout is ggml's own, so a node is made to see it.
fn parameters() -> Option<&'static Parameters> {
    static MADE: OnceLock<Option<Parameters>> = OnceLock::new();
    let make = || {
        // SAFETY: the context has room for one tensor, and is freed when that was read.
        unsafe {
            let context = ffi::ggml_init(ffi::ggml_init_params {
                mem_size: 2 * ffi::ggml_tensor_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if context.is_null() {
                return None;
            }
            let node = ffi::ggml_custom_4d(
                context,
                ffi::GGML_TYPE_F32,
                1,
                1,
                1,
                1,
                std::ptr::null_mut(),
                0,
                Some(look_up),
                1,
                std::ptr::null_mut(),
            );
            let parameters = node.as_ref().map(|node| node.op_params);
            ffi::ggml_free(context);
            parameters
        }
    };
    MADE.get_or_init(make).as_ref()
}

/// What a lookup reads and writes.
struct Lookup<'t> {
    weights: &'t ffi::ggml_tensor,
    tokens: &'t ffi::ggml_tensor,
    rows: &'t ffi::ggml_tensor,
}

// SAFETY: memory of the tensors is only read, except for rows, and each row is written by one thread.
unsafe impl Sync for Lookup<'_> {}

/// Computes the node. ggml calls this on one of its threads alone; where it calls it on more, the others have nothing to do.
unsafe extern "C" fn look_up(node: *mut ffi::ggml_tensor, thread: c_int, _: c_int, _: *mut c_void) {
    if thread != 0 {
        return;
    }
    let lookup = Lookup {
        weights: &*(*node).src[0],
        tokens: &*(*node).src[1],
        rows: &*node,
    };
    let count = lookup.tokens.ne[0] as usize;
    Helpers::of_process().share(count.div_ceil(AT_A_TIME), &|part| {
        let first = part * AT_A_TIME;
        // SAFETY: ggml has allocated all three tensors, and computes nothing else meanwhile.
        unsafe { lookup.rows(first..count.min(first + AT_A_TIME)) }
    });
}

impl Lookup<'_> {
    /// A token that the table does not have ends the process, as it does in ggml.
    unsafe fn rows(&self, of: std::ops::Range<usize>) {
        let width = self.weights.ne[0];
        let convert = converter(self.weights.type_);
        for index in of {
            let token = i64::from(*at::<i32>(self.tokens, 0, index));
            assert!((0..self.weights.ne[1]).contains(&token), "token {token}");
            let from = at::<u8>(self.weights, 1, token as usize);
            let to = at::<f32>(self.rows, 1, index).cast_mut();
            match (self.weights.type_, convert) {
                (ffi::GGML_TYPE_F32, _) => {
                    std::ptr::copy_nonoverlapping(from.cast(), to, width as usize);
                }
                (ffi::GGML_TYPE_F16, _) => {
                    let row = std::slice::from_raw_parts(from.cast::<half::f16>(), width as usize);
                    row.convert_to_f32_slice(std::slice::from_raw_parts_mut(to, width as usize));
                }
                (_, Some(convert)) => convert(from.cast(), to, width),
                (_, None) => unreachable!("such a table is not shared"),
            }
        }
    }
}

/// Where a part of a tensor begins along one of its dimensions.
fn at<T>(tensor: &ffi::ggml_tensor, dimension: usize, index: usize) -> *const T {
    let data = tensor.data.cast_const().cast::<u8>();
    data.wrapping_add(tensor.nb[dimension] * index).cast()
}
