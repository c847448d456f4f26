//! Why a function fails: a code for the host, a sentence for its log, and for `IPipeshard` the latest of both.

use crate::abi::{result, Base, Log, CORE_FRAMEWORK};
use crate::abi::{Framework, Struct};
use crate::boundary::c_text;
use crate::failure::{
    pipeshard_error_code, pipeshard_error_free, pipeshard_error_minimum, pipeshard_error_text,
    CError,
};
use crate::locks::locked;
use crate::process::pipeshard_set_log;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// Why something is not done.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: u32,
    pub text: String,
    /// The smallest budget that works, in bytes; 0 where that is not the matter.
    pub minimum: u64,
    /// The code of pipeshard.h that it comes from; 0 where it does not.
    pub of_library: c_int,
}

impl Refusal {
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Refusal {
            code,
            text: text.into(),
            minimum: 0,
            of_library: 0,
        }
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(result::INVALID_PARAMETER, text)
    }

    pub fn not_implemented(text: impl Into<String>) -> Self {
        Self::new(result::NOT_IMPLEMENTED, text)
    }
}

/// Ours for a code of pipeshard.h.
pub fn code_of(code: c_int) -> u32 {
    match code {
        0 => 0,
        -1 | -2 => result::INVALID_PARAMETER,
        -3 => result::BUSY,
        -4 | -6 | -10 => result::INSUFFICIENT_RESOURCES,
        -5 | -12 => result::TIMED_OUT,
        -7 => result::NO_HARDWARE,
        -8 | -13 => result::INVALID_STATE,
        -9 => result::INPUT_OUTPUT,
        -11 => result::CANCELLED,
        -14 => result::NOT_IMPLEMENTED,
        _ => result::EXCEPTION,
    }
}

/// Calls a function of pipeshard.h, whose last argument is the error.
pub fn library(call: impl FnOnce(*mut *mut CError) -> c_int) -> Result<(), Refusal> {
    let mut error = std::ptr::null_mut();
    if call(&mut error) == 0 {
        return Ok(());
    }
    // SAFETY: an error of the library's, which is freed once.
    unsafe {
        let refusal = Refusal {
            code: code_of(pipeshard_error_code(error)),
            text: CStr::from_ptr(pipeshard_error_text(error))
                .to_string_lossy()
                .into_owned(),
            minimum: pipeshard_error_minimum(error),
            of_library: pipeshard_error_code(error),
        };
        pipeshard_error_free(error);
        Err(refusal)
    }
}

/// The text of the latest refusal.
static LATEST: Mutex<String> = Mutex::new(String::new());
/// The smallest budget that the latest refusal by a budget named.
static MINIMUM: AtomicU64 = AtomicU64::new(0);

pub fn latest() -> String {
    locked(&LATEST).clone()
}

pub fn latest_minimum() -> u64 {
    MINIMUM.load(Ordering::Relaxed)
}

/// Tells the log, and keeps it for the host to ask.
pub fn note(refusal: &Refusal) {
    let mut text = refusal.text.clone();
    if refusal.minimum > 0 {
        MINIMUM.store(refusal.minimum, Ordering::Relaxed);
        let mib = refusal.minimum.div_ceil(1 << 20);
        text += &format!(" [the smallest vramBudgetMB that works is {mib}]");
    }
    tell(Kind::Error, &text);
    *locked(&LATEST) = text;
}

/// Does the work of a function of the plug-in. What fails is logged, and becomes a code; so does a panic.
pub fn call(work: impl FnOnce() -> Result<(), Refusal>) -> u32 {
    answer(|| work().map(|()| 0))
}

/// The same for work that has codes which are not failures.
pub fn answer(work: impl FnOnce() -> Result<u32, Refusal>) -> u32 {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Refusal::new(
            result::EXCEPTION,
            "pipeshard has a bug: it panicked. Please report it, with what is in the log; destroy all instances",
        ))
    });
    match done {
        Ok(code) => code,
        Err(refusal) => {
            note(&refusal);
            refusal.code
        }
    }
}

/// The same for functions that return something else than a code.
pub fn value<T>(otherwise: T, work: impl FnOnce() -> Result<T, Refusal>) -> T {
    let mut made = None;
    call(|| {
        made = Some(work()?);
        Ok(())
    });
    made.unwrap_or(otherwise)
}

/// As the log has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Info = 0,
    Warning = 1,
    Error = 2,
}

/// The host's log, and the framework that it belongs to.
struct Sink {
    framework: *const Framework,
    log: *const Log,
}

// SAFETY: the host's log may be called on any thread, and lives until `release`.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Asks the framework for its log, to which everything goes from now on.
///
/// # Safety
/// The framework lives until [`release_log`].
pub unsafe fn take_log(framework: *const Framework) {
    let Some(get) = (*framework).get_interface else {
        return;
    };
    let log = get(CORE_FRAMEWORK, &Log::UID, 1, std::ptr::null()).cast::<Log>();
    if log.is_null() || !crate::chain::is(log.cast::<Base>(), Log::UID) {
        return;
    }
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = Some(Sink { framework, log });
    pipeshard_set_log(Some(from_library), std::ptr::null_mut(), 3);
}

/// Nothing is logged any more.
///
/// # Safety
/// As for [`take_log`].
pub unsafe fn release_log() {
    pipeshard_set_log(None, std::ptr::null_mut(), 0);
    let sink = SINK.write().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(sink) = sink {
        if let Some(release) = (*sink.framework).release_interface {
            release(CORE_FRAMEWORK, &Log::UID);
        }
    }
    locked(&LATEST).clear();
}

unsafe extern "C" fn from_library(_: *mut c_void, level: c_int, text: *const c_char) {
    let kind = match level {
        1 => Kind::Error,
        2 => Kind::Warning,
        _ => Kind::Info,
    };
    tell_c(kind, CStr::from_ptr(text));
}

/// A message for the host's log, if it has one.
pub fn tell(kind: Kind, text: &str) {
    tell_c(kind, &c_text(text));
}

fn tell_c(kind: Kind, text: &CStr) {
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    let Some(sink) = sink.as_ref() else {
        return;
    };
    // SAFETY: the log lives until it is released, which waits for this lock; texts end with a zero byte.
    unsafe {
        let wanted = (*sink.log).get_level.map_or(1, |level| level());
        // what llama.cpp says of a model is for those who want to know everything
        let level = match kind {
            Kind::Info => 2,
            Kind::Warning | Kind::Error => 1,
        };
        if level > wanted {
            return;
        }
        if let Some(log) = (*sink.log).log {
            log(
                level,
                0,
                c"".as_ptr(),
                0,
                c"".as_ptr(),
                kind as c_int,
                c"pipeshard".as_ptr(),
                c"%s".as_ptr(),
                text.as_ptr(),
            );
        }
    }
}
