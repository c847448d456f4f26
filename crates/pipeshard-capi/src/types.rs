//! The structs of include/pipeshard.h. tests/host_library.rs compares sizes and places of members with what a C compiler makes of
//! the header; what members mean is said there.
#![allow(missing_docs)]

use std::ffi::{c_char, c_int, c_void};

/// A struct that states its size in its first member, is valid with all bits zero, and holds no reference.
///
/// # Safety
/// `repr(C)`, begins with a `u32`, has no padding that matters, and is valid with every bit zero.
pub unsafe trait Sized32: Copy {
    /// Its size in the first version of the header that this library fits, in bytes.
    const FIRST: usize = size_of::<Self>();
}

macro_rules! sized {
    ($($name:ident $(from $first:expr)?),*) => {$(
        // SAFETY: see the definition below: numbers and nullable pointers behind a u32.
        unsafe impl Sized32 for $name {
            $(const FIRST: usize = $first;)?
        }
    )*};
}
sized!(
    DeviceConfig from std::mem::offset_of!(DeviceConfig, allocate),
    PredictionQuery,
    Prediction,
    BudgetRequest,
    Limits,
    ModelConfig from std::mem::offset_of!(ModelConfig, file_size),
    SessionConfig,
    Media,
    State,
    GenerateConfig,
    Event
);

pub type LogFn = unsafe extern "C" fn(*mut c_void, c_int, *const c_char);
pub type ProgressFn = unsafe extern "C" fn(*mut c_void, f32) -> c_int;
pub type PieceFn = unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> c_int;
pub type AllocateFn = unsafe extern "C" fn(*mut c_void, c_int, usize, usize) -> *mut c_void;
pub type ReleaseFn = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, usize);
pub type SizeFn = unsafe extern "C" fn(*mut c_void, *const c_char) -> i64;
pub type ReadFn = unsafe extern "C" fn(*mut c_void, *const c_char, u64, *mut c_void, u64) -> i64;
pub type ThreadFn = unsafe extern "C" fn(*mut c_void, *const c_char);
pub type WakeupFn = unsafe extern "C" fn(*mut c_void);

pub const NO_PAGE_LOCK: u32 = 1;
pub const SOCKET: u32 = 2;

pub const EVENT_TEXT: i32 = 1;
pub const EVENT_DONE: i32 = 2;
pub const EVENT_ENDED: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceConfig {
    pub size: u32,
    pub flags: u32,
    pub budget: u64,
    pub name: *const c_char,
    pub simulated: *const c_char,
    pub cache_dir: *const c_char,
    pub profile: *const c_char,
    pub threads: i32,
    pub reserved: i32,
    pub allocate: Option<AllocateFn>,
    pub release: Option<ReleaseFn>,
    pub allocate_host: Option<AllocateFn>,
    pub release_host: Option<ReleaseFn>,
    pub memory_user: *mut c_void,
    pub cuda_context: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct BudgetRequest {
    pub size: u32,
    pub deadline_ms: u32,
    pub budget: u64,
    pub allow: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Limits {
    pub size: u32,
    pub asleep: u32,
    pub budget: u64,
    pub minimum: u64,
    pub everything: u64,
    pub held: u64,
    pub peak: u64,
    pub held_weights: u64,
    pub held_kv: u64,
    pub held_ring: u64,
    pub held_buffers: u64,
    pub held_vision: u64,
    pub held_other: u64,
    pub by_driver: u64,
    pub waited_ms: f64,
    pub moved_ms: f64,
    pub minimum_round_trip: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PredictionQuery {
    pub size: u32,
    pub context: u32,
    pub path: *const c_char,
    pub type_k: *const c_char,
    pub type_v: *const c_char,
    pub budget: u64,
    pub prompt_tokens: u32,
    pub answer_tokens: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Prediction {
    pub size: u32,
    pub measured: u32,
    pub budget: u64,
    pub minimum: u64,
    pub everything: u64,
    pub context: u32,
    pub ubatch: u32,
    pub prompt_tokens: u32,
    pub answer_tokens: u32,
    pub first_token_ms: f64,
    pub tokens_per_second: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ModelConfig {
    pub size: u32,
    pub flags: u32,
    pub path: *const c_char,
    pub mmproj: *const c_char,
    pub chat_template: *const c_char,
    pub progress: Option<ProgressFn>,
    pub progress_user: *mut c_void,
    pub image_max_tokens: i32,
    pub reserved: i32,
    pub file_size: Option<SizeFn>,
    pub read_file: Option<ReadFn>,
    pub files_user: *mut c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SessionConfig {
    pub size: u32,
    pub context: u32,
    pub ubatch: u32,
    pub flags: u32,
    pub type_k: *const c_char,
    pub type_v: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Media {
    pub size: u32,
    pub width: u32,
    pub height: u32,
    pub stride: u32,
    pub rgb: *const c_void,
    pub file: *const c_void,
    pub file_size: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct State {
    pub size: u32,
    pub context: u32,
    pub used: u32,
    pub ubatch: u32,
    pub messages: u32,
    pub busy: u32,
    pub prompt_tokens: u32,
    pub reused_tokens: u32,
    pub generated_tokens: u32,
    pub evaluated_again: u32,
    pub prompt_ms: f64,
    pub generate_ms: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct GenerateConfig {
    pub size: u32,
    pub max_tokens: u32,
    pub temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub seed: u32,
    pub grammar: *const c_char,
    pub json_schema: *const c_char,
    pub stop: *const *const c_char,
    pub stop_count: usize,
    pub tokens_per_second: f32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Event {
    pub size: u32,
    pub kind: i32,
    pub code: i32,
    pub reserved: u32,
    pub text: *const c_char,
    pub length: usize,
}

impl Event {
    /// Nothing happened.
    pub const NONE: Event = Event {
        size: 0,
        kind: 0,
        code: 0,
        reserved: 0,
        text: std::ptr::null(),
        length: 0,
    };
}
