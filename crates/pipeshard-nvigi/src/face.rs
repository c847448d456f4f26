//! What a host holds as `InferenceInstance`: functions, and which slots there are.

use crate::abi::{
    Base, DataText, Descriptor, DescriptorArray, InferenceInstance, PluginId, Struct, Uid, OURS,
};
use crate::evaluation;
use crate::images::DataImage;
use std::ffi::{c_char, c_void};

/// The functions of a new instance.
pub fn new() -> Box<InferenceInstance> {
    Box::new(InferenceInstance {
        base: Base::new(InferenceInstance::UID, InferenceInstance::VERSION),
        data: std::ptr::null_mut(),
        get_feature_id,
        get_input_signature,
        get_output_signature,
        evaluate: evaluation::evaluate,
        evaluate_async: evaluation::evaluate_async,
        cancel_async_evaluation: evaluation::cancel,
    })
}

unsafe extern "C" fn get_feature_id(_: *mut c_void) -> PluginId {
    OURS
}

struct Signature<T>(T);

// SAFETY: never written; pointers are to constants.
unsafe impl<T> Sync for Signature<T> {}

const fn slot(key: *const c_char, uid: Uid) -> Descriptor {
    Descriptor {
        base: Base::new(Descriptor::UID, Descriptor::VERSION),
        key,
        data_type: uid,
        optional: true,
        // memory of the CPU
        allocator: 1,
    }
}

static INPUTS: Signature<[Descriptor; 5]> = Signature([
    slot(c"text".as_ptr(), DataText::UID),
    slot(c"system".as_ptr(), DataText::UID),
    slot(c"assistant".as_ptr(), DataText::UID),
    slot(c"image".as_ptr(), DataImage::UID),
    slot(c"json".as_ptr(), DataText::UID),
]);
static OUTPUTS: Signature<[Descriptor; 1]> =
    Signature([slot(crate::outputs::KEY.as_ptr(), DataText::UID)]);

const fn signature(count: usize, items: *const Descriptor) -> Signature<DescriptorArray> {
    Signature(DescriptorArray {
        base: Base::new(DescriptorArray::UID, DescriptorArray::VERSION),
        count,
        items,
    })
}

static INPUT_SIGNATURE: Signature<DescriptorArray> =
    signature(5, (&raw const INPUTS.0).cast::<Descriptor>());
static OUTPUT_SIGNATURE: Signature<DescriptorArray> =
    signature(1, (&raw const OUTPUTS.0).cast::<Descriptor>());

unsafe extern "C" fn get_input_signature(_: *mut c_void) -> *const DescriptorArray {
    &INPUT_SIGNATURE.0
}

unsafe extern "C" fn get_output_signature(_: *mut c_void) -> *const DescriptorArray {
    &OUTPUT_SIGNATURE.0
}
