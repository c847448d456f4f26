//! `IPipeshard`: what NVIGI has no words for. include/pipeshard_nvigi.h says what the functions do.

use crate::abi::InferenceInstance;
use crate::device::{pipeshard_report, pipeshard_sleep, pipeshard_wake};
use crate::instance::Instance;
use crate::refusal::{call, latest, latest_minimum, library, value, Refusal};
use crate::shared;
use crate::types::Limits;
use std::ffi::{c_char, CStr};

pub unsafe extern "C" fn set_budget(
    face: *const InferenceInstance,
    budget: u64,
    deadline_ms: u32,
    now: *mut Limits,
) -> u32 {
    call(|| {
        Instance::of(face)?
            .share
            .set_budget(budget, deadline_ms, now)
    })
}

pub unsafe extern "C" fn get_limits(face: *const InferenceInstance, limits: *mut Limits) -> u32 {
    call(|| {
        if limits.is_null() {
            return Err(Refusal::invalid(
                "getLimits: the pointer for the limits is null",
            ));
        }
        shared::limits(Instance::of(face)?.share.device, limits)
    })
}

pub unsafe extern "C" fn sleep(face: *const InferenceInstance) -> u32 {
    call(|| {
        let instance = Instance::of(face)?;
        library(|error| pipeshard_sleep(instance.share.device, error))
    })
}

pub unsafe extern "C" fn wake(face: *const InferenceInstance) -> u32 {
    call(|| {
        let instance = Instance::of(face)?;
        library(|error| pipeshard_wake(instance.share.device, error))
    })
}

pub unsafe extern "C" fn last_minimum() -> u64 {
    latest_minimum()
}

/// Copies as much of a text as there is room for, with a zero byte; the room that all of it needs.
unsafe fn copied(text: &[u8], into: *mut c_char, room: usize) -> usize {
    if !into.is_null() && room > 0 {
        let length = text.len().min(room - 1);
        std::ptr::copy_nonoverlapping(text.as_ptr(), into.cast(), length);
        into.add(length).write(0);
    }
    text.len() + 1
}

pub unsafe extern "C" fn last_error(into: *mut c_char, room: usize) -> usize {
    copied(latest().as_bytes(), into, room)
}

pub unsafe extern "C" fn report(
    face: *const InferenceInstance,
    into: *mut c_char,
    room: usize,
) -> usize {
    value(0, || {
        let made = pipeshard_report(Instance::of(face)?.share.device);
        if made.is_null() {
            return Err(Refusal::invalid("there is no report"));
        }
        let needed = copied(CStr::from_ptr(made).to_bytes(), into, room);
        crate::boundary::pipeshard_free(made);
        Ok(needed)
    })
}
