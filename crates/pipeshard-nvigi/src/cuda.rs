//! What a host has of CUDA that instances are to use (CudaParameters): its context, and its allocator of the GPU's memory.

use crate::abi::{Base, CudaParameters};
use crate::chain::{field, View};
use crate::refusal::Refusal;
use std::ffi::{c_int, c_void};

type Malloc = unsafe extern "C" fn(*mut *mut c_void, usize, c_int, bool, bool, *mut c_void) -> i32;
type Free = unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32;
type Report = unsafe extern "C" fn(*mut c_void, usize, *mut c_void);

/// A function and its last argument.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Given {
    function: usize,
    user: usize,
}

impl Given {
    fn is_there(self) -> bool {
        self.function != 0
    }
}

/// What instances are to use.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct HostCuda {
    context: usize,
    device: c_int,
    malloc: Given,
    free: Given,
    on_malloc: Given,
    on_free: Given,
}

impl HostCuda {
    /// # Safety
    /// A chain of a host's.
    ///
    /// # Errors
    /// Functions are missing that belong to others.
    pub unsafe fn of(chain: *const Base) -> Result<Self, Refusal> {
        type C = CudaParameters;
        let cuda = View::<C>::find(chain);
        let none = std::ptr::null();
        macro_rules! given {
            ($function:ident, $user:ident) => {
                Given {
                    function: field!(cuda, C.$function, 2, none) as usize,
                    user: field!(cuda, C.$user, 2, none) as usize,
                }
            };
        }
        let host = HostCuda {
            context: field!(cuda, C.context, 1, none) as usize,
            device: field!(cuda, C.device, 1, 0),
            malloc: given!(malloc, malloc_user),
            free: given!(free, free_user),
            on_malloc: given!(malloc_report, malloc_report_user),
            on_free: given!(free_report, free_report_user),
        };
        if host.malloc.is_there() != host.free.is_there() {
            return Err(Refusal::invalid(
                "CudaParameters: mallocCallback and freeCallback belong together: set both or neither",
            ));
        }
        let reports = host.on_malloc.is_there() || host.on_free.is_there();
        if reports && !host.malloc.is_there() {
            return Err(Refusal::not_implemented(
                "CudaParameters: reports of memory are made for that of mallocCallback only: set it and freeCallback, or leave the reports null",
            ));
        }
        Ok(host)
    }

    /// The CUcontext; null for none.
    pub fn context(&self) -> *mut c_void {
        self.context as *mut c_void
    }

    /// Whether memory of the GPU comes from the host.
    pub fn allocates(&self) -> bool {
        self.malloc.is_there()
    }
}

/// `pipeshard_allocate_fn`; `user` is a [`HostCuda`]. What memory is for is not passed on.
///
/// # Safety
/// As the header says.
pub unsafe extern "C" fn allocate(
    user: *mut c_void,
    _kind: c_int,
    size: usize,
    _alignment: usize,
) -> *mut c_void {
    let host = &*user.cast::<HostCuda>();
    let malloc = std::mem::transmute::<usize, Malloc>(host.malloc.function);
    let mut memory = std::ptr::null_mut();
    let argument = host.malloc.user as *mut c_void;
    if malloc(&mut memory, size, host.device, false, false, argument) != 0 || memory.is_null() {
        return std::ptr::null_mut();
    }
    report(host.on_malloc, memory, size);
    memory
}

/// `pipeshard_release_fn`; `user` is a [`HostCuda`].
///
/// # Safety
/// As the header says.
pub unsafe extern "C" fn release(
    user: *mut c_void,
    _kind: c_int,
    memory: *mut c_void,
    size: usize,
) {
    let host = &*user.cast::<HostCuda>();
    if memory.is_null() {
        return;
    }
    report(host.on_free, memory, size);
    let free = std::mem::transmute::<usize, Free>(host.free.function);
    free(memory, host.free.user as *mut c_void);
}

unsafe fn report(to: Given, memory: *mut c_void, size: usize) {
    if to.is_there() {
        let report = std::mem::transmute::<usize, Report>(to.function);
        report(memory, size, to.user as *mut c_void);
    }
}
