//! What comes from C and goes to it: calls, structs that state their size, texts.

use crate::cuda_context;
use crate::failure::{CError, Code, Failure};
use crate::types::Sized32;
use std::ffi::{c_char, c_int, CStr, CString};
use std::mem::{size_of, MaybeUninit};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// A struct larger than that is none: its size was never set.
const LARGEST: usize = 1 << 16;

/// Does the work of a function. What fails becomes a code, and an error object where one is wanted; so does a panic.
///
/// # Safety
/// `error` is null or a place for a pointer.
pub unsafe fn call(error: *mut *mut CError, work: impl FnOnce() -> Result<(), Failure>) -> c_int {
    if let Some(error) = error.as_mut() {
        *error = std::ptr::null_mut();
    }
    let _context = cuda_context::enter();
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Failure::new(
            Code::Internal,
            "pipeshard has a bug: it panicked. Please report it, with what is in the log; close everything on the device",
        ))
    });
    match result {
        Ok(()) => 0,
        Err(failure) => {
            if let Some(error) = error.as_mut() {
                *error = Box::into_raw(Box::new(CError::from(&failure)));
            }
            failure.code as c_int
        }
    }
}

/// The same for functions that have nothing to return but a text, which C frees with pipeshard_free; null where it fails.
pub fn text(work: impl FnOnce() -> Option<String>) -> *mut c_char {
    let _context = cuda_context::enter();
    let made = catch_unwind(AssertUnwindSafe(work)).ok().flatten();
    made.map_or(std::ptr::null_mut(), |text| to_c(text.as_bytes()))
}

/// Bytes for C, with a zero behind them, which pipeshard_free gives back; null where there is no memory.
pub fn to_c(bytes: &[u8]) -> *mut c_char {
    // SAFETY: the memory has room for the bytes and the zero.
    unsafe {
        let memory = libc::malloc(bytes.len() + 1).cast::<u8>();
        if !memory.is_null() {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
            memory.add(bytes.len()).write(0);
        }
        memory.cast()
    }
}

/// Where C wants a handle that is about to be opened: NULL until then.
///
/// # Safety
/// `place` is null or can be written to.
pub unsafe fn handle<'a, H>(place: *mut *mut H, name: &str) -> Result<&'a mut *mut H, Failure> {
    let place = place.as_mut().ok_or_else(|| {
        Failure::invalid(format!(
            "{name} is NULL: it has to point to where the handle goes"
        ))
    })?;
    *place = std::ptr::null_mut();
    Ok(place)
}

/// A struct that C passes; all defaults for null.
///
/// # Safety
/// `from` is null, or as many bytes can be read there as its first four say.
pub unsafe fn read<T: Sized32>(from: *const T, name: &str) -> Result<T, Failure> {
    let mut value = MaybeUninit::<T>::zeroed();
    let known = size_of::<T>();
    if from.is_null() {
        return Ok(value.assume_init());
    }
    let size = from.cast::<u32>().read() as usize;
    if size < T::FIRST || size > LARGEST {
        return Err(Failure::invalid(format!(
            "{name}.size is {size}, which no version of the struct has: begin it with PIPESHARD_INIT({name})"
        )));
    }
    let bytes = from.cast::<u8>();
    // what an older header does not have is zero
    std::ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast(), known.min(size));
    let newer = size.saturating_sub(known);
    let newer = std::slice::from_raw_parts(bytes.add(size - newer), newer);
    if newer.iter().any(|&byte| byte != 0) {
        return Err(Failure::new(
            Code::Version,
            format!(
                "{name} has a member that is set and that this library (version {}) does not know: it is older than the header",
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    Ok(value.assume_init())
}

/// Fills in a struct of C, as much of it as C knows.
///
/// # Safety
/// `to` is null, or as many bytes can be read and written there as its first four say.
pub unsafe fn write<T: Sized32>(to: *mut T, value: &T, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Ok(());
    }
    let size = to.cast::<u32>().read();
    let (length, known) = (size as usize, size_of::<T>());
    if length < size_of::<u32>() * 2 || length > LARGEST {
        return Err(Failure::invalid(format!(
            "{name}.size is {size}: begin the struct with PIPESHARD_INIT({name})"
        )));
    }
    let bytes = to.cast::<u8>();
    let value = std::ptr::from_ref(value).cast::<u8>();
    std::ptr::copy_nonoverlapping(value, bytes, length.min(known));
    std::ptr::write_bytes(
        bytes.add(known.min(length)),
        0,
        length.saturating_sub(known),
    );
    to.cast::<u32>().write(size);
    Ok(())
}

/// A text that C may leave out.
///
/// # Safety
/// `text` is null or ends with a zero byte.
pub unsafe fn optional<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    match CStr::from_ptr(text).to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Failure::invalid(format!("{name} is not UTF-8"))),
    }
}

/// A text that has to be there.
///
/// # Safety
/// As for [`optional`].
pub unsafe fn required<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    optional(text, name)?.ok_or_else(|| Failure::invalid(format!("{name} is NULL")))
}

/// A text for llama.cpp.
pub fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_free(text: *mut c_char) {
    libc::free(text.cast());
}
