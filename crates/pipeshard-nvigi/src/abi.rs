//! What hosts and plug-ins of NVIDIA's In-Game Inferencing SDK (NVIGI) agree on: a description of its binary interface in our own
//! words, written after the headers of NVIGI-Core 1.6.1 and NVIGI-Plugins 1.6.0. No file of the SDK is part of pipeshard. The headers
//! carry this notice (see THIRD-PARTY-NOTICES):
//!
//! SPDX-FileCopyrightText: Copyright (c) 2024-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
//! SPDX-License-Identifier: MIT
//!
//! Every struct begins with [`Base`]. Fields are only ever added at the end, with a higher version: those of version n may be read
//! where `version >= n`. Pointers are null where the host leaves something out; texts are UTF-8 and end with a zero byte. `bool` is
//! one byte.
#![allow(missing_docs)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of};

/// A GUID, in the byte order of its four parts.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uid(pub u32, pub u16, pub u16, pub [u8; 8]);

impl Uid {
    /// Of a text such as `53faf63e-8b92-477c-94b5-b60b4b9dbf48`.
    pub const fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        assert!(bytes.len() == 36, "a GUID has 36 characters");
        let mut digits = [0u8; 32];
        let (mut from, mut to) = (0, 0);
        while from < 36 {
            digits[to] = match bytes[from] {
                b'-' => {
                    from += 1;
                    continue;
                }
                digit @ b'0'..=b'9' => digit - b'0',
                letter @ b'a'..=b'f' => letter - b'a' + 10,
                letter @ b'A'..=b'F' => letter - b'A' + 10,
                _ => panic!("not a GUID"),
            };
            from += 1;
            to += 1;
        }
        let mut last = [0u8; 8];
        let mut at = 0;
        while at < 8 {
            last[at] = digits[16 + at * 2] << 4 | digits[17 + at * 2];
            at += 1;
        }
        Uid(
            number(&digits, 0, 8),
            number(&digits, 8, 12) as u16,
            number(&digits, 12, 16) as u16,
            last,
        )
    }
}

const fn number(digits: &[u8; 32], from: usize, to: usize) -> u32 {
    let (mut at, mut value) = (from, 0);
    while at < to {
        value = value << 4 | digits[at] as u32;
        at += 1;
    }
    value
}

/// A plug-in's name for programs: a GUID, and a checksum over `{GUID}` in upper case.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PluginId {
    pub id: Uid,
    pub crc24: u32,
}

/// CRC-24 as in OpenPGP.
pub const fn crc24(text: &[u8]) -> u32 {
    let (mut crc, mut at) = (0x00B7_04CE_u32, 0);
    while at < text.len() {
        crc ^= (text[at] as u32) << 16;
        let mut bit = 0;
        while bit < 8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4CFB;
            }
            bit += 1;
        }
        at += 1;
    }
    crc & 0x00FF_FFFF
}

/// This plug-in.
pub const OURS: PluginId = PluginId {
    id: Uid::of("9B8E3A7F-DAD2-4DF4-A9E1-817BD748A053"),
    crc24: 0x0056_61FD,
};
/// What has the log.
pub const CORE_FRAMEWORK: PluginId = PluginId {
    id: Uid::of("42534BCF-590C-40A9-8083-653F978CCD1B"),
    crc24: 0x001A_8307,
};
const _: () = assert!(crc24(b"{9B8E3A7F-DAD2-4DF4-A9E1-817BD748A053}") == OURS.crc24);
const _: () = assert!(crc24(b"{42534BCF-590C-40A9-8083-653F978CCD1B}") == CORE_FRAMEWORK.crc24);

/// What every struct begins with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Base {
    pub next: *const Base,
    pub uid: Uid,
    pub version: u32,
}

impl Base {
    pub const fn new(uid: Uid, version: u32) -> Self {
        Base {
            next: std::ptr::null(),
            uid,
            version,
        }
    }
}

/// A struct with an id.
///
/// # Safety
/// `repr(C)`, and begins with [`Base`].
pub unsafe trait Struct {
    const UID: Uid;
    const VERSION: u32;
}

/// Declares a struct: GUID, latest version and size in bytes; then its fields with the places that they have in NVIGI's headers.
macro_rules! declare {
    ($(#[$doc:meta])* $name:ident = $uid:literal, $version:literal, $size:literal {
        $($field:ident @ $offset:literal : $kind:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name {
            pub base: Base,
            $(pub $field: $kind,)*
        }
        // SAFETY: as declared above.
        unsafe impl Struct for $name {
            const UID: Uid = Uid::of($uid);
            const VERSION: u32 = $version;
        }
        const _: () = {
            $(assert!(offset_of!($name, $field) == $offset, "a field has another place");)*
            assert!(size_of::<$name>() == $size, "another size");
        };
    };
}
pub(crate) use declare;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Version(pub u32, pub u32, pub u32);

/// A text and its length in bytes, without the zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    pub data: *const c_char,
    pub length: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct List<T> {
    pub data: *const T,
    pub length: usize,
    pub capacity: usize,
}

declare!(PluginInfo = "53faf63e-8b92-477c-94b5-b60b4b9dbf48", 2, 208 {
    id @ 32: PluginId,
    plugin_version @ 56: Padded,
    plugin_api @ 72: Padded,
    min_os @ 88: Padded,
    min_driver @ 104: Padded,
    min_gpu_arch @ 120: u32,
    required_vendor @ 124: u32,
    description @ 128: Text,
    author @ 144: Text,
    build @ 160: Text,
    interfaces @ 176: List<InterfaceInfo>,
    // version 2
    min_system_flags @ 200: u64,
});
/// Three numbers in the 16 bytes that they have here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Padded(pub Version, pub u32);

impl Padded {
    pub const fn of(major: u32, minor: u32, build: u32) -> Self {
        Padded(Version(major, minor, build), 0)
    }
}

declare!(InterfaceInfo = "1d599c9d-cdfc-4db9-97a5-80f817211c1c", 1, 56 {
    uid @ 32: Uid,
    interface_version @ 48: u32,
});
declare!(Framework = "0f688505-89e4-45ff-84e8-d08380592bd0", 1, 88 {
    add_interface @ 32: Option<unsafe extern "C" fn(PluginId, *mut c_void, u32) -> bool>,
    get_interface @ 40: Option<unsafe extern "C" fn(PluginId, *const Uid, u32, *const c_char) -> *mut c_void>,
    release_interface @ 48: Option<unsafe extern "C" fn(PluginId, *const Uid) -> bool>,
    get_num_interfaces @ 56: *const c_void,
    // these return structs that have destructors in C++; not called
    get_model_directory @ 64: *const c_void,
    get_dependencies @ 72: *const c_void,
    get_plugin_id @ 80: *const c_void,
});

/// Level, colour, file, line, function, kind (0 info, 1 warning, 2 error), tag, format.
pub type LogFn = unsafe extern "C" fn(
    u32,
    c_int,
    *const c_char,
    c_int,
    *const c_char,
    c_int,
    *const c_char,
    *const c_char,
    ...
);

declare!(Log = "8ffd0ca2-62a0-4f4a-8840-e27e3ff4f75f", 2, 128 {
    log @ 32: Option<LogFn>,
    not_called @ 40: *const c_void,
    get_level @ 48: Option<unsafe extern "C" fn() -> u32>,
    // settings
    more @ 56: [*const c_void; 9],
});

/// `createInstance`, `destroyInstance`, `getCapsAndRequirements`.
pub type CreateFn = unsafe extern "C" fn(*const Base, *mut *mut InferenceInstance) -> u32;
pub type DestroyFn = unsafe extern "C" fn(*const InferenceInstance) -> u32;
pub type CapabilitiesFn = unsafe extern "C" fn(*mut *const Base, *const Base) -> u32;

declare!(InferenceInterface = "f0038a35-eec2-4230-811d-58c9498671bc", 1, 56 {
    create_instance @ 32: CreateFn,
    destroy_instance @ 40: DestroyFn,
    get_capabilities @ 48: CapabilitiesFn,
});

pub type SignatureFn = unsafe extern "C" fn(*mut c_void) -> *const DescriptorArray;
pub type ContextFn = unsafe extern "C" fn(*mut Context) -> u32;

declare!(InferenceInstance = "ad9dc29c-0a89-4a4e-b900-a7183b48336e", 3, 88 {
    data @ 32: *mut c_void,
    get_feature_id @ 40: unsafe extern "C" fn(*mut c_void) -> PluginId,
    get_input_signature @ 48: SignatureFn,
    get_output_signature @ 56: SignatureFn,
    evaluate @ 64: ContextFn,
    evaluate_async @ 72: ContextFn,
    cancel_async_evaluation @ 80: ContextFn,
});

pub type CallbackFn = unsafe extern "C" fn(*const Context, u32, *mut c_void) -> u32;

declare!(
    /// `InferenceExecutionContext`
    Context = "75b12c0b-5d88-48b0-8e52-d2e8b4684eda", 1, 80 {
    instance @ 32: *const InferenceInstance,
    inputs @ 40: *const SlotArray,
    callback @ 48: Option<CallbackFn>,
    runtime_parameters @ 56: *const Base,
    callback_user @ 64: *mut c_void,
    outputs @ 72: *const SlotArray,
});
declare!(PolledInterface = "203a2e67-9ea2-47fc-b932-7a3965e608d4", 1, 48 {
    get_results @ 32: unsafe extern "C" fn(*mut Context, bool, *mut u32) -> u32,
    release_results @ 40: unsafe extern "C" fn(*mut Context, u32) -> u32,
});
declare!(Descriptor = "a3c2792b-8ea3-4079-b6d8-ec2591332c2e", 1, 64 {
    key @ 32: *const c_char,
    data_type @ 40: Uid,
    optional @ 56: bool,
    allocator @ 60: u32,
});
declare!(DescriptorArray = "30116404-792f-4099-b248-fd82b7ac67ae", 1, 48 {
    count @ 32: usize,
    items @ 40: *const Descriptor,
});
declare!(Slot = "a3560575-f9f7-4fbf-a382-22d6448c9d52", 1, 48 {
    key @ 32: *const c_char,
    data @ 40: *const Base,
});
declare!(SlotArray = "10fd9adb-794e-4873-accd-ad8bd2ac00bf", 1, 48 {
    count @ 32: usize,
    items @ 40: *const Slot,
});
declare!(DataText = "15f34b49-63d3-4ae2-af75-3dd37772dcb9", 1, 40 {
    utf8 @ 32: *const Base,
});
declare!(CpuData = "a8197fe3-fc9b-4730-bc85-cb9f755c111c", 1, 48 {
    buffer @ 32: *const c_void,
    bytes @ 40: usize,
});
declare!(CommonCreationParameters = "cc8cad78-95f0-41b0-ad9c-5d6995988b23", 2, 80 {
    threads @ 32: i32,
    vram_budget_mb @ 40: usize,
    model_guid @ 48: *const c_char,
    models @ 56: *const c_char,
    additional_models @ 64: *const c_char,
    // version 2
    model_card @ 72: *const c_char,
});
declare!(CommonCapabilities = "1213844e-e53b-4c46-a303-741789060b3c", 2, 80 {
    count @ 32: usize,
    guids @ 40: *const *const c_char,
    names @ 48: *const *const c_char,
    budgets_mb @ 56: *const usize,
    backends @ 64: u32,
    // version 2
    flags @ 72: *const u32,
});
declare!(GptCreationParameters = "506c5935-67c6-4136-9550-36bba83c93bc", 3, 88 {
    max_tokens @ 32: i32,
    context @ 36: i32,
    seed @ 40: i32,
    // version 2
    flash_attention @ 44: u8,
    batch @ 48: i32,
    ubatch @ 52: i32,
    type_k @ 56: i32,
    type_v @ 60: i32,
    // version 3
    lora_count @ 64: usize,
    lora_names @ 72: *const *const c_char,
    lora_scales @ 80: *const f32,
});
declare!(GptRuntimeParameters = "feb5f4a9-8a02-4864-8757-081f42381160", 6, 168 {
    seed @ 32: u32,
    max_tokens @ 36: i32,
    batch @ 40: i32,
    keep @ 44: i32,
    draft @ 48: i32,
    chunks @ 52: i32,
    parallel @ 56: i32,
    sequences @ 60: i32,
    temperature @ 64: f32,
    top_p @ 68: f32,
    interactive @ 72: u8,
    reverse_prompt @ 80: *const c_char,
    prefix @ 88: *const c_char,
    suffix @ 96: *const c_char,
    // version 2
    frame_ms @ 104: f32,
    tokens_per_second @ 108: i32,
    // version 3
    is_templated @ 112: u8,
    // version 4
    lora_count @ 120: usize,
    lora_names @ 128: *const *const c_char,
    lora_scales @ 136: *const f32,
    // version 5
    use_jinja @ 144: u8,
    chat_template @ 152: *const c_char,
    // version 6
    most_seconds @ 160: f32,
});
declare!(GptSamplerParameters = "fd183aa9-6e50-4021-9b0e-a7aeab6eef49", 2, 128 {
    previous @ 32: i32,
    probabilities @ 36: i32,
    min_keep @ 40: i32,
    top_k @ 44: i32,
    min_p @ 48: f32,
    xtc_probability @ 52: f32,
    xtc_threshold @ 56: f32,
    tfs_z @ 60: f32,
    typical_p @ 64: f32,
    dynamic_range @ 68: f32,
    dynamic_exponent @ 72: f32,
    penalty_last @ 76: i32,
    penalty_repeat @ 80: f32,
    penalty_frequency @ 84: f32,
    penalty_presence @ 88: f32,
    mirostat @ 92: i32,
    mirostat_tau @ 96: f32,
    mirostat_eta @ 100: f32,
    penalize_newline @ 104: u8,
    ignore_eos @ 105: u8,
    // version 2
    persistent_kv @ 106: u8,
    grammar @ 112: *const c_char,
    session_cache @ 120: *const c_char,
});

impl GptSamplerParameters {
    /// With the defaults of NVIGI.
    pub const fn usual() -> Self {
        GptSamplerParameters {
            base: Base::new(Self::UID, Self::VERSION),
            previous: 64,
            probabilities: 0,
            min_keep: 0,
            top_k: 40,
            min_p: 0.05,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            tfs_z: 1.0,
            typical_p: 1.0,
            dynamic_range: 0.0,
            dynamic_exponent: 1.0,
            penalty_last: 64,
            penalty_repeat: 1.0,
            penalty_frequency: 0.0,
            penalty_presence: 0.0,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            penalize_newline: 0,
            ignore_eos: 0,
            persistent_kv: 0,
            grammar: std::ptr::null(),
            session_cache: std::ptr::null(),
        }
    }
}

declare!(SessionStateInterface = "8e7f6d5c-4b3a-2918-0736-455463728190", 1, 56 {
    get_data_size @ 32: unsafe extern "C" fn(*const InferenceInstance) -> usize,
    get_data @ 40: unsafe extern "C" fn(*const InferenceInstance, *mut u8, usize, *mut c_int) -> usize,
    set_data @ 48: unsafe extern "C" fn(*const InferenceInstance, *const u8, usize, c_int) -> bool,
});
declare!(CudaParameters = "fab2bd3f-8a3e-41ab-88de-d6cb2b65c554", 2, 120 {
    implementation @ 32: c_int,
    device @ 36: c_int,
    context @ 40: *const c_void,
    stream @ 48: *const c_void,
    // version 2: functions, each with its argument
    malloc_report @ 56: *const c_void,
    malloc_report_user @ 64: *const c_void,
    free_report @ 72: *const c_void,
    free_report_user @ 80: *const c_void,
    malloc @ 88: *const c_void,
    malloc_user @ 96: *const c_void,
    free @ 104: *const c_void,
    free_user @ 112: *const c_void,
});
// Our own; include/pipeshard_nvigi.h has them for hosts.

declare!(PipeshardCreationParameters = "f917bc7f-0397-466a-8c66-e91e25f09c50", 1, 80 {
    simulated @ 32: *const c_char,
    device @ 40: *const c_char,
    cache_dir @ 48: *const c_char,
    profile @ 56: *const c_char,
    flags @ 64: u32,
    ubatch @ 68: u32,
    reserved @ 72: u64,
});
declare!(PipeshardInterface = "11b8b0a7-fc1d-4bd9-b7fd-66badb799505", 1, 88 {
    set_budget @ 32: unsafe extern "C" fn(*const InferenceInstance, u64, u32, *mut crate::types::Limits) -> u32,
    get_limits @ 40: unsafe extern "C" fn(*const InferenceInstance, *mut crate::types::Limits) -> u32,
    sleep @ 48: unsafe extern "C" fn(*const InferenceInstance) -> u32,
    wake @ 56: unsafe extern "C" fn(*const InferenceInstance) -> u32,
    last_minimum @ 64: unsafe extern "C" fn() -> u64,
    last_error @ 72: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    report @ 80: unsafe extern "C" fn(*const InferenceInstance, *mut c_char, usize) -> usize,
});

/// Results: these, shifted by 24 bits.
pub mod result {
    pub const INVALID_PARAMETER: u32 = 4 << 24;
    pub const NO_HARDWARE: u32 = 5 << 24;
    pub const INVALID_STATE: u32 = 8 << 24;
    pub const EXCEPTION: u32 = 9 << 24;
    pub const JSON: u32 = 10 << 24;
    pub const INSUFFICIENT_RESOURCES: u32 = 12 << 24;
    pub const NOT_READY: u32 = 13 << 24;
    pub const NOT_IMPLEMENTED: u32 = 16 << 24;
    pub const NOT_FOUND: u32 = 17 << 24;
    pub const TIMED_OUT: u32 = 18 << 24;
    pub const INPUT_OUTPUT: u32 = 21 << 24;
    pub const BUSY: u32 = 24 << 24;
    pub const CANCELLED: u32 = 28 << 24;
}

/// States of an evaluation, as callbacks and getResults have them.
pub mod execution {
    pub const INVALID: u32 = 0;
    pub const DONE: u32 = 1 << 24;
    pub const CANCEL: u32 = 2 << 24;
    /// Final text; more follows.
    pub const PENDING: u32 = 3 << 24;
}
