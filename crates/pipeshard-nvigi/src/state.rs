//! IGPTSessionState: a conversation as bytes, KV cache included.

use crate::abi::InferenceInstance;
use crate::evaluation::state_of;
use crate::instance::Instance;
use crate::locks::locked;
use crate::refusal::{library, value, Refusal};
use crate::session::exports::{pipeshard_session_restore, pipeshard_session_save};
use std::ffi::c_int;
use std::sync::Arc;

fn saved(instance: &Instance) -> Result<Vec<u8>, Refusal> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: places for both; the bytes are freed once.
    unsafe {
        let session = instance.session.0;
        library(|error| pipeshard_session_save(session, &mut data, &mut size, error))?;
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size).to_vec();
        crate::boundary::pipeshard_free(data);
        Ok(bytes)
    }
}

/// An instance, and the state of its session.
type Saved = (Arc<Instance>, Vec<u8>);

/// The instance, and its state. None while something else is done with it.
fn saved_of(face: *const InferenceInstance) -> Result<Option<Saved>, Refusal> {
    let instance = Instance::of(face)?;
    let Some(_turn) = instance.take_turn_if_idle() else {
        return Ok(None);
    };
    let kept = locked(&instance.saved).take();
    let bytes = match kept {
        Some(bytes) => bytes,
        None => saved(&instance)?,
    };
    Ok(Some((Arc::clone(&instance), bytes)))
}

fn keep(instance: &Instance, bytes: Vec<u8>) {
    *locked(&instance.saved) = Some(bytes);
}

pub unsafe extern "C" fn get_data_size(face: *const InferenceInstance) -> usize {
    value(0, || {
        let Some((instance, bytes)) = saved_of(face)? else {
            return Ok(0);
        };
        let size = bytes.len();
        // for the call that comes next
        keep(&instance, bytes);
        Ok(size)
    })
}

pub unsafe extern "C" fn get_data(
    face: *const InferenceInstance,
    data: *mut u8,
    size: usize,
    positions: *mut c_int,
) -> usize {
    value(0, || {
        let Some((instance, bytes)) = saved_of(face)? else {
            return Ok(0);
        };
        if data.is_null() || size < bytes.len() {
            let text = format!(
                "seq_get_data: {size} bytes of room, and the state has {}",
                bytes.len()
            );
            keep(&instance, bytes);
            return Err(Refusal::invalid(text));
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        if let Some(positions) = positions.as_mut() {
            *positions = state_of(instance.session.0)?.used as c_int;
        }
        Ok(bytes.len())
    })
}

pub unsafe extern "C" fn set_data(
    face: *const InferenceInstance,
    data: *const u8,
    size: usize,
    positions: c_int,
) -> bool {
    value(false, || {
        let instance = Instance::of(face)?;
        let Some(_turn) = instance.take_turn_if_idle() else {
            return Ok(false);
        };
        *locked(&instance.saved) = None;
        let session = instance.session.0;
        library(|error| pipeshard_session_restore(session, data.cast(), size, error))?;
        let used = state_of(session)?.used;
        match i64::from(used) == i64::from(positions) {
            true => Ok(true),
            false => Err(Refusal::invalid(format!(
                "seq_set_data: the state has {used} tokens, and n_past is {positions}; the state is in place"
            ))),
        }
    })
}
