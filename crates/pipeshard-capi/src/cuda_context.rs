//! The host's CUDA context. ggml-cuda computes in the context that is current on the thread, so where the host has one it is pushed on
//! each thread that comes into the library, and on each that the library starts, for as long as it is there.

use crate::failure::{Code, Failure};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::OnceLock;

/// Functions of CUDA's driver, which returns 0 where all is well.
struct Driver {
    push: unsafe extern "C" fn(*mut c_void) -> c_int,
    pop: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    device: unsafe extern "C" fn(*mut c_int) -> c_int,
}

static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();

/// The host's, while a device is open; null for none.
static CONTEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

fn driver() -> Option<&'static Driver> {
    let find = || {
        // SAFETY: names end with zeros; the functions have had these types since CUDA 4. The driver stays: the host has a context of its.
        unsafe {
            let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
            if library.is_null() {
                return None;
            }
            let [push, pop, device] = [
                c"cuCtxPushCurrent_v2",
                c"cuCtxPopCurrent_v2",
                c"cuCtxGetDevice",
            ]
            .map(|name| libc::dlsym(library, name.as_ptr()));
            if push.is_null() || pop.is_null() || device.is_null() {
                return None;
            }
            Some(Driver {
                push: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(
                    push,
                ),
                pop: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut *mut c_void) -> c_int,
                >(pop),
                device: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_int) -> c_int>(
                    device,
                ),
            })
        }
    };
    DRIVER.get_or_init(find).as_ref()
}

/// The context is current on this thread until the value is dropped.
pub struct Entered {
    pushed: bool,
    /// Of this thread.
    _here: PhantomData<*mut ()>,
}

/// Makes the host's context current, if there is one.
pub fn enter() -> Entered {
    let context = CONTEXT.load(Ordering::Acquire);
    let push = || driver().map(|driver| driver.push);
    let pushed = match context.is_null() {
        true => false,
        // SAFETY: the host's context, which it keeps while the device is open.
        false => push().is_some_and(|push| unsafe { push(context) } == 0),
    };
    Entered {
        pushed,
        _here: PhantomData,
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(driver) = driver().filter(|_| self.pushed) {
            let mut context = std::ptr::null_mut();
            // SAFETY: there is one, which was pushed.
            unsafe { (driver.pop)(&mut context) };
        }
    }
}

/// The host's context is the process's while this value lives.
pub struct InUse(());

impl InUse {
    /// # Errors
    /// There is no driver, or it refuses the context.
    pub fn begin(context: *mut c_void) -> Result<Self, Failure> {
        if !context.is_null() && driver().is_none() {
            return Err(Failure::new(
                Code::NoDevice,
                "cuda_context is set, and CUDA's driver, libcuda.so.1, is not there",
            ));
        }
        CONTEXT.store(context, Ordering::Release);
        let in_use = InUse(());
        if !context.is_null() && !enter().pushed {
            return Err(Failure::invalid(
                "CUDA's driver refuses cuda_context: it was destroyed, or is none",
            ));
        }
        Ok(in_use)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        CONTEXT.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// Refuses a context that is of another GPU than `name`, which computes: ggml-cuda would leave the context alone.
pub fn check_device(name: &str) -> Result<(), Failure> {
    if CONTEXT.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    let mut number = -1;
    let entered = enter();
    let known = driver().filter(|_| entered.pushed);
    // SAFETY: a place for a number.
    let code = known.map_or(1, |driver| unsafe { (driver.device)(&mut number) });
    match code == 0 && name == format!("CUDA{number}") {
        true => Ok(()),
        false => Err(Failure::invalid(format!(
            "cuda_context is of GPU {number}, and {name} computes: name the context's in pipeshard_device_config"
        ))),
    }
}
