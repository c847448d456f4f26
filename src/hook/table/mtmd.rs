//! What llama.cpp's multimodal library asks about encoders of images and sound.

use super::shared::shared_of;
use crate::hook::answers::encoder::{self, Announced, Loaded, Loading};
use crate::hook::answers::{encode, pass};
use crate::hook::runtime::Runtime;
use crate::vision::header::Kind;
use pipeshard_sys as ffi;
use std::ffi::{c_char, c_void, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// SAFETY of everything below: mtmd calls with the table's own `user` pointer, with texts that end in a zero byte and with schedulers
// that are alive during the call, as the contract in ggml-pipeshard.h says.

unsafe fn path_of<'a>(path: *const c_char) -> &'a Path {
    match path.is_null() {
        true => Path::new(""),
        false => Path::new(OsStr::from_bytes(CStr::from_ptr(path).to_bytes())),
    }
}

pub(super) unsafe extern "C" fn encoder_expected(
    user: *mut c_void,
    path: *const c_char,
    device: ffi::ggml_backend_dev_t,
    image_max_tokens: i32,
) {
    let shared = shared_of(user);
    shared.guard("encoder_expected", (), || {
        let announced = Announced {
            path: path_of(path),
            device,
            limit: u64::try_from(image_max_tokens).unwrap_or(0),
        };
        let mut runtime = shared.gate.alone();
        if runtime.is_broken() {
            return;
        }
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            encoders,
            telemetry,
            ..
        } = parts;
        encoders.limit = announced.limit;
        encoder::expected(accounts, tenant, telemetry, announced, proof);
    });
}

pub(super) unsafe extern "C" fn encoder_wanted(
    user: *mut c_void,
    sched: ffi::ggml_backend_sched_t,
    path: *const c_char,
    prefix: *const c_char,
    tensors: *mut ffi::ggml_context,
    size: usize,
    host: *mut ffi::ggml_backend_buffer_t,
) -> bool {
    let shared = shared_of(user);
    shared.guard("encoder_wanted", false, || {
        let prefix = match prefix.is_null() {
            true => c"",
            false => CStr::from_ptr(prefix),
        };
        let loading = Loading {
            sched,
            path: path_of(path),
            kind: Kind::of_prefix(&prefix.to_string_lossy()),
            bytes: size as u64,
            tensors,
        };
        let mut runtime = shared.gate.alone();
        if runtime.is_broken() {
            return false;
        }
        let (parts, proof) = runtime.parts();
        let Runtime {
            config,
            accounts,
            tenant,
            encoders,
            telemetry,
            ..
        } = parts;
        encode::close(accounts, encoders, proof);
        match encoder::wanted(
            config, accounts, tenant, encoders, telemetry, loading, proof,
        ) {
            Loaded::Refused => false,
            Loaded::OnDevice => true,
            Loaded::InHost(buffer) => {
                *host = buffer;
                true
            }
        }
    })
}

pub(super) unsafe extern "C" fn encode_done(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    let done = || {
        let mut runtime = shared.gate.plain();
        let Runtime {
            accounts,
            tenant,
            encoders,
            telemetry,
            ..
        } = &mut *runtime;
        pass::look_at_backend(accounts, tenant, sched as usize);
        encode::done(accounts, encoders, telemetry, sched as usize);
        runtime.end_preparing_of(sched as usize);
    };
    // the buffers are freed, whatever happened
    shared.guard_or("encode_done", (), done, done)
}

pub(super) unsafe extern "C" fn encoder_gone(user: *mut c_void, sched: ffi::ggml_backend_sched_t) {
    let shared = shared_of(user);
    let gone = || {
        let mut runtime = shared.gate.alone();
        let (parts, proof) = runtime.parts();
        let Runtime {
            accounts,
            tenant,
            encoders,
            ..
        } = parts;
        encoder::gone(accounts, tenant, encoders, sched as usize, proof);
    };
    shared.guard_or("encoder_gone", (), gone, gone)
}
