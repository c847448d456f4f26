//! Why a function fails, as C gets it.

use crate::words::for_programs;
use std::ffi::{c_char, c_int, CString};

/// The codes of pipeshard.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Invalid = -1,
    Version = -2,
    Busy = -3,
    BudgetTooSmall = -4,
    Deadline = -5,
    NoMemory = -6,
    NoDevice = -7,
    DeviceLost = -8,
    File = -9,
    ContextFull = -10,
    Cancelled = -11,
    Timeout = -12,
    Forked = -13,
    Unsupported = -14,
    Internal = -15,
}

/// Names of the codes, from 0 on downwards.
const NAMES: [&std::ffi::CStr; 16] = [
    c"PIPESHARD_OK",
    c"PIPESHARD_E_INVALID",
    c"PIPESHARD_E_VERSION",
    c"PIPESHARD_E_BUSY",
    c"PIPESHARD_E_BUDGET_TOO_SMALL",
    c"PIPESHARD_E_DEADLINE",
    c"PIPESHARD_E_NO_MEMORY",
    c"PIPESHARD_E_NO_DEVICE",
    c"PIPESHARD_E_DEVICE_LOST",
    c"PIPESHARD_E_FILE",
    c"PIPESHARD_E_CONTEXT_FULL",
    c"PIPESHARD_E_CANCELLED",
    c"PIPESHARD_E_TIMEOUT",
    c"PIPESHARD_E_FORKED",
    c"PIPESHARD_E_UNSUPPORTED",
    c"PIPESHARD_E_INTERNAL",
];

/// Why a function fails.
#[derive(Debug, Clone)]
pub struct Failure {
    pub code: Code,
    pub text: String,
    /// The smallest budget that works, in bytes; 0 where that is not the matter.
    pub minimum: u64,
}

impl Failure {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Failure {
            code,
            text: text.into(),
            minimum: 0,
        }
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Code::Invalid, text)
    }
}

/// What C holds as `pipeshard_error *`.
pub struct CError {
    code: c_int,
    text: CString,
    minimum: u64,
}

impl From<&Failure> for CError {
    fn from(failure: &Failure) -> Self {
        CError {
            code: failure.code as c_int,
            text: CString::new(for_programs(&failure.text).replace('\0', " ")).unwrap_or_default(),
            minimum: failure.minimum,
        }
    }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_result_name(code: c_int) -> *const c_char {
    let name = usize::try_from(code.unsigned_abs())
        .ok()
        .filter(|_| code <= 0)
        .and_then(|index| NAMES.get(index));
    name.map_or(c"unknown code".as_ptr(), |name| name.as_ptr())
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_error_code(error: *const CError) -> c_int {
    error.as_ref().map_or(0, |error| error.code)
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_error_text(error: *const CError) -> *const c_char {
    let text = error.as_ref().map(|error| error.text.as_ptr());
    text.unwrap_or(c"".as_ptr())
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_error_minimum(error: *const CError) -> u64 {
    error.as_ref().map_or(0, |error| error.minimum)
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_error_free(error: *mut CError) {
    if !error.is_null() {
        drop(Box::from_raw(error));
    }
}
