//! Memory from the host's allocators, and the streams of the GPU. Both ggml-cuda (src/cuda.c) and the simulated GPU ask here.

use crate::failure::{Code, Failure};
use crate::locks::locked;
use crate::types::{AllocateFn, DeviceConfig, ReleaseFn};
use pipeshard_sim::{Supplied, Supply};
use runtime::hook::log;
use runtime::lanes::purpose::{self, Purpose};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What every allocation is a multiple of: CUDA's own promise.
const ALIGNMENT: usize = 256;

/// The two functions for one kind of memory.
#[derive(Clone, Copy)]
struct Allocator {
    allocate: AllocateFn,
    release: ReleaseFn,
}

impl Allocator {
    fn of(
        allocate: Option<AllocateFn>,
        release: Option<ReleaseFn>,
        names: &str,
    ) -> Result<Option<Self>, Failure> {
        match (allocate, release) {
            (Some(allocate), Some(release)) => Ok(Some(Allocator { allocate, release })),
            (None, None) => Ok(None),
            _ => Err(Failure::invalid(format!(
                "{names} belong together: state both or neither"
            ))),
        }
    }
}

/// What the host gave.
struct Taken {
    purpose: Purpose,
    size: usize,
    page_locked: bool,
}

/// The allocators of a device that is open.
pub struct HostMemory {
    device: Option<Allocator>,
    page_locked: Option<Allocator>,
    user: usize,
    taken: Mutex<HashMap<usize, Taken>>,
}

/// Those of the device that is open now.
static CURRENT: RwLock<Option<Arc<HostMemory>>> = RwLock::new(None);

/// Streams of the GPU that there are.
static STREAMS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

impl HostMemory {
    /// What the host states.
    ///
    /// # Errors
    /// One function of a pair is missing.
    pub fn of(config: &DeviceConfig) -> Result<Self, Failure> {
        let DeviceConfig {
            allocate,
            release,
            allocate_host,
            release_host,
            memory_user,
            ..
        } = *config;
        Ok(HostMemory {
            device: Allocator::of(allocate, release, "allocate and release")?,
            page_locked: Allocator::of(
                allocate_host,
                release_host,
                "allocate_host and release_host",
            )?,
            user: memory_user as usize,
            taken: Mutex::new(HashMap::new()),
        })
    }

    /// Whether the device's memory comes from the host.
    pub fn gives_device_memory(&self) -> bool {
        self.device.is_some()
    }

    fn allocator(&self, page_locked: bool) -> Option<Allocator> {
        match page_locked {
            true => self.page_locked,
            false => self.device,
        }
    }

    fn user(&self) -> *mut c_void {
        self.user as *mut c_void
    }

    /// `can_do_without`: the backend has a way to say that there is no memory.
    fn allocate(
        &self,
        (size, page_locked): (usize, bool),
        purpose: Purpose,
        can_do_without: bool,
    ) -> Supplied {
        let Some(allocator) = self.allocator(page_locked) else {
            return Supplied::Own;
        };
        let kind = purpose as c_int;
        // SAFETY: the host's function, with what it asked for.
        let memory = unsafe { (allocator.allocate)(self.user(), kind, size, ALIGNMENT) };
        if memory.addr() % ALIGNMENT != 0 {
            // SAFETY: as above; it goes back as it came.
            unsafe { (allocator.release)(self.user(), kind, memory, size) };
            log::error(&format!(
                "the host's allocator returned {memory:p}, which is no multiple of {ALIGNMENT}; it counts as refused"
            ));
        } else if !memory.is_null() {
            let taken = Taken {
                purpose,
                size,
                page_locked,
            };
            locked(&self.taken).insert(memory.addr(), taken);
            return Supplied::Memory(memory.cast());
        }
        let of = match page_locked {
            true => "page-locked memory",
            false => "memory of the GPU",
        };
        if can_do_without {
            log::warn(&format!(
                "the host's allocator refused {size} bytes of {of}"
            ));
            return Supplied::Refused;
        }
        log::warn(&format!(
            "the host's allocator refused {size} bytes of {of} that ggml's backend cannot do without; they are taken from the driver"
        ));
        Supplied::Own
    }

    fn has(&self, memory: usize, page_locked: bool) -> bool {
        let taken = locked(&self.taken);
        taken
            .get(&memory)
            .is_some_and(|taken| taken.page_locked == page_locked)
    }

    /// False if it is not the host's.
    fn release(&self, memory: *mut c_void, page_locked: bool) -> bool {
        let Some(allocator) = self.allocator(page_locked) else {
            return false;
        };
        if !self.has(memory.addr(), page_locked) {
            return false;
        }
        let taken = locked(&self.taken).remove(&memory.addr());
        let Some(Taken { purpose, size, .. }) = taken else {
            return false;
        };
        // SAFETY: the host gave it, and gets it back once.
        unsafe { (allocator.release)(self.user(), purpose as c_int, memory, size) };
        true
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let left = locked(&self.taken).len();
        if left > 0 {
            log::error(&format!(
                "{left} allocations of the host's were not given back: a bug of pipeshard, please report it"
            ));
        }
    }
}

impl Supply for HostMemory {
    fn device(&self, size: usize) -> Supplied {
        self.allocate((size, false), purpose::now(), true)
    }

    fn release_device(&self, memory: *mut u8) {
        self.release(memory.cast(), false);
    }

    fn host(&self, size: usize) -> Supplied {
        self.allocate((size, true), purpose::now(), true)
    }

    fn release_host(&self, memory: *mut u8) -> bool {
        self.release(memory.cast(), true)
    }

    fn stream_opened(&self, stream: usize) {
        note_stream(stream, true);
    }

    fn stream_closed(&self, stream: usize) {
        note_stream(stream, false);
    }
}

/// They are the process's while this value lives.
pub struct InUse(Arc<HostMemory>);

impl InUse {
    pub fn begin(memory: HostMemory) -> Self {
        let memory = Arc::new(memory);
        set_current(Some(Arc::clone(&memory)));
        InUse(memory)
    }

    /// For a simulated GPU.
    pub fn supply(&self) -> Arc<dyn Supply> {
        Arc::clone(&self.0) as Arc<dyn Supply>
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        set_current(None);
    }
}

fn set_current(memory: Option<Arc<HostMemory>>) {
    *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = memory;
}

fn note_stream(stream: usize, is_open: bool) {
    let mut streams = locked(&STREAMS);
    match is_open {
        true => streams.push(stream),
        false => streams.retain(|&known| known != stream),
    }
}

/// The streams of the GPU that there are, as CUDA's handles.
pub fn streams() -> Vec<usize> {
    locked(&STREAMS).clone()
}

/// What src/memory.c asks.
#[repr(C)]
struct Compute {
    begins: unsafe extern "C" fn() -> c_int,
    ended: unsafe extern "C" fn(c_int),
}

unsafe extern "C" fn compute_begins() -> c_int {
    purpose::enter_compute() as c_int
}

unsafe extern "C" fn compute_ended(before: c_int) {
    purpose::leave_compute(before);
}

extern "C" {
    /// src/memory.c
    fn pipeshard_memory_tell(tell: *const Compute);
}

/// Listens to what ggml allocates: once in a process.
pub fn listen() {
    static COMPUTE: Compute = Compute {
        begins: compute_begins,
        ended: compute_ended,
    };
    // SAFETY: functions that stay as long as the library does.
    unsafe { pipeshard_memory_tell(&COMPUTE) };
    #[cfg(feature = "cuda")]
    of_cuda::listen();
}

#[cfg(feature = "cuda")]
mod of_cuda {
    use super::*;

    /// What src/cuda.c asks.
    #[repr(C)]
    struct OfCuda {
        allocate: unsafe extern "C" fn(*mut *mut c_void, usize, c_int, c_int) -> c_int,
        has: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
        release: unsafe extern "C" fn(*mut c_void, c_int),
        stream: unsafe extern "C" fn(*mut c_void, c_int),
    }

    extern "C" {
        /// src/cuda.c
        fn pipeshard_cuda_tell(tell: *const OfCuda);
    }

    fn current() -> Option<Arc<HostMemory>> {
        let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    unsafe extern "C" fn allocate(
        memory: *mut *mut c_void,
        size: usize,
        page_locked: c_int,
        is_buffer: c_int,
    ) -> c_int {
        let Some(host) = current() else { return 0 };
        let page_locked = page_locked != 0;
        // pools and work spaces are none, and ggml-cuda ends the process where it gets no memory for them
        let is_buffer = is_buffer != 0;
        let purpose = match is_buffer {
            true => purpose::now(),
            false => Purpose::Other,
        };
        match host.allocate((size, page_locked), purpose, is_buffer) {
            Supplied::Own => 0,
            Supplied::Memory(given) => {
                *memory = given.cast();
                1
            }
            Supplied::Refused => {
                *memory = std::ptr::null_mut();
                2
            }
        }
    }

    unsafe extern "C" fn has(memory: *mut c_void, page_locked: c_int) -> c_int {
        let has = |host: Arc<HostMemory>| host.has(memory.addr(), page_locked != 0);
        c_int::from(current().is_some_and(has))
    }

    unsafe extern "C" fn release(memory: *mut c_void, page_locked: c_int) {
        if let Some(host) = current() {
            host.release(memory, page_locked != 0);
        }
    }

    unsafe extern "C" fn stream(stream: *mut c_void, is_open: c_int) {
        note_stream(stream.addr(), is_open != 0);
    }

    pub fn listen() {
        static OF_CUDA: OfCuda = OfCuda {
            allocate,
            has,
            release,
            stream,
        };
        // SAFETY: functions that stay as long as the library does.
        unsafe { pipeshard_cuda_tell(&OF_CUDA) };
    }
}

/// Nothing that was given is used by the driver: where the host gives memory, it has to be that of its context.
pub fn check(memory: &HostMemory, is_simulated: bool) -> Result<(), Failure> {
    let given = memory.gives_device_memory() || memory.page_locked.is_some();
    match given && !is_simulated && cfg!(not(feature = "cuda")) {
        true => Err(Failure::new(
            Code::Unsupported,
            "allocators of the host are called in builds with CUDA and with the simulated GPU only",
        )),
        false => Ok(()),
    }
}
