//! The one function that is visible, and what it answers: information, Register, Deregister.

use crate::abi::{
    result, Framework, InferenceInterface, InterfaceInfo, List, Padded, PipeshardInterface,
    PluginInfo, PolledInterface, SessionStateInterface, Struct, Text, OURS,
};
use crate::abi::{Base, Uid};
use crate::refusal::{call, release_log, take_log, Refusal};
use crate::{capabilities, control, creation, instance, polled, state};
use std::ffi::{c_char, c_void, CStr};
use std::sync::atomic::{AtomicBool, Ordering};

/// A struct of pointers to what does not change.
struct Constant<T>(T);

// SAFETY: nothing of it is ever written, and what it points to is constant as well.
unsafe impl<T> Sync for Constant<T> {}

const fn interface<S: Struct>() -> InterfaceInfo {
    InterfaceInfo {
        base: Base::new(InterfaceInfo::UID, InterfaceInfo::VERSION),
        uid: S::UID,
        interface_version: S::VERSION,
    }
}

static INTERFACES: Constant<[InterfaceInfo; 4]> = Constant([
    interface::<InferenceInterface>(),
    interface::<PolledInterface>(),
    interface::<SessionStateInterface>(),
    interface::<PipeshardInterface>(),
]);

const fn text(text: &'static CStr) -> Text {
    Text {
        data: text.as_ptr(),
        length: text.count_bytes(),
    }
}

/// A part of the version, which cargo has as a text.
const fn number(text: &str) -> u32 {
    let (bytes, mut at, mut value) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        value = value * 10 + (bytes[at] - b'0') as u32;
        at += 1;
    }
    value
}

/// Of the adapter: any, or NVIDIA's where the library is built with CUDA.
const VENDOR: u32 = match cfg!(feature = "cuda") {
    true => 0x10DE,
    false => 0,
};

static INFO: Constant<PluginInfo> = Constant(PluginInfo {
    base: Base::new(PluginInfo::UID, PluginInfo::VERSION),
    id: OURS,
    plugin_version: Padded::of(
        number(env!("CARGO_PKG_VERSION_MAJOR")),
        number(env!("CARGO_PKG_VERSION_MINOR")),
        number(env!("CARGO_PKG_VERSION_PATCH")),
    ),
    plugin_api: Padded::of(0, 0, 1),
    min_os: Padded::of(0, 0, 0),
    min_driver: Padded::of(0, 0, 0),
    min_gpu_arch: 0,
    required_vendor: VENDOR,
    description: text(c"language models of llama.cpp inside a VRAM budget that is kept"),
    author: text(c"pipeshard"),
    build: text(c"release"),
    interfaces: List {
        data: &raw const INTERFACES.0 as *const InterfaceInfo,
        length: 4,
        capacity: 4,
    },
    min_system_flags: 0,
});

static INFERENCE: InferenceInterface = InferenceInterface {
    base: Base::new(InferenceInterface::UID, InferenceInterface::VERSION),
    create_instance: creation::create_instance,
    destroy_instance: instance::destroy_instance,
    get_capabilities: capabilities::get_capabilities,
};
static POLLED: PolledInterface = PolledInterface {
    base: Base::new(PolledInterface::UID, PolledInterface::VERSION),
    get_results: polled::get_results,
    release_results: polled::release_results,
};
static STATE: SessionStateInterface = SessionStateInterface {
    base: Base::new(SessionStateInterface::UID, SessionStateInterface::VERSION),
    get_data_size: state::get_data_size,
    get_data: state::get_data,
    set_data: state::set_data,
};
static CONTROL: PipeshardInterface = PipeshardInterface {
    base: Base::new(PipeshardInterface::UID, PipeshardInterface::VERSION),
    set_budget: control::set_budget,
    get_limits: control::get_limits,
    sleep: control::sleep,
    wake: control::wake,
    last_minimum: control::last_minimum,
    last_error: control::last_error,
    report: control::report,
};

// SAFETY: structs of functions that are never written; their `next` is null.
unsafe impl Sync for InferenceInterface {}
// SAFETY: as above.
unsafe impl Sync for PolledInterface {}
// SAFETY: as above.
unsafe impl Sync for SessionStateInterface {}
// SAFETY: as above.
unsafe impl Sync for PipeshardInterface {}

/// Register was called, and Deregister was not since.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Without a thread, a file or a GPU: hosts load plug-ins only to ask this.
unsafe extern "C" fn get_info(_: *const Framework, info: *mut *const PluginInfo) -> u32 {
    match info.as_mut() {
        Some(info) => {
            *info = &INFO.0;
            0
        }
        None => result::INVALID_PARAMETER,
    }
}

unsafe extern "C" fn register(framework: *const Framework) -> u32 {
    call(|| {
        if !crate::chain::is(framework.cast(), Framework::UID) {
            return Err(Refusal::invalid("Register: framework is not an IFramework"));
        }
        let add = (*framework)
            .add_interface
            .ok_or_else(|| Refusal::invalid("Register: the framework has no addInterface"))?;
        if REGISTERED.swap(true, Ordering::Relaxed) {
            return Err(Refusal::new(
                result::INVALID_STATE,
                "Register: the plug-in is registered already; call Deregister first",
            ));
        }
        take_log(framework);
        let interfaces: [(*const c_void, Uid); 4] = [
            ((&raw const INFERENCE).cast(), InferenceInterface::UID),
            ((&raw const POLLED).cast(), PolledInterface::UID),
            ((&raw const STATE).cast(), SessionStateInterface::UID),
            ((&raw const CONTROL).cast(), PipeshardInterface::UID),
        ];
        for (interface, uid) in interfaces {
            if !add(OURS, interface.cast_mut(), 0) {
                end();
                return Err(Refusal::new(
                    result::INVALID_STATE,
                    format!("Register: the framework refuses the interface {uid:x?}"),
                ));
            }
        }
        Ok(())
    })
}

/// Ends everything that runs.
unsafe fn end() {
    instance::destroy_all();
    capabilities::forget();
    release_log();
    REGISTERED.store(false, Ordering::Relaxed);
}

unsafe extern "C" fn deregister() -> u32 {
    call(|| {
        if !REGISTERED.load(Ordering::Relaxed) {
            return Err(Refusal::new(
                result::INVALID_STATE,
                "Deregister: the plug-in is not registered",
            ));
        }
        end();
        Ok(())
    })
}

/// The functions of a plug-in by their names; null for other names.
#[no_mangle]
unsafe extern "C" fn nvigiPluginGetFunction(name: *const c_char) -> *const c_void {
    if name.is_null() {
        return std::ptr::null();
    }
    match CStr::from_ptr(name).to_bytes() {
        b"nvigiPluginGetInfo" => get_info as *const c_void,
        b"nvigiPluginRegister" => register as *const c_void,
        b"nvigiPluginDeregister" => deregister as *const c_void,
        _ => std::ptr::null(),
    }
}
