//! What is done on each thread of the library when it starts and when it ends: the host is told, and its CUDA context is pushed.

use crate::cuda_context::{enter, Entered};
use crate::types::ThreadFn;
use pipeshard_model::threads::announce_to;
use std::ffi::{c_char, c_void, CString};
use std::sync::{PoisonError, RwLock};

/// Whom the host wants called.
#[derive(Clone, Copy)]
struct Hooks {
    started: Option<ThreadFn>,
    ending: Option<ThreadFn>,
    user: usize,
}

impl Hooks {
    fn call(&self, hook: Option<ThreadFn>, name: &CString) {
        if let Some(hook) = hook {
            // SAFETY: the host's function, with a text that lives through the call.
            unsafe { hook(self.user as *mut c_void, name.as_ptr()) }
        }
    }
}

static HOOKS: RwLock<Option<Hooks>> = RwLock::new(None);

/// A thread that has started. Whoever was told so is told of its end, whatever hooks there are by then.
struct Started {
    hooks: Option<Hooks>,
    name: CString,
    _context: Entered,
}

unsafe extern "C" fn started(name: *const c_char) -> *mut c_void {
    let hooks = *HOOKS.read().unwrap_or_else(PoisonError::into_inner);
    let started = Started {
        _context: enter(),
        name: std::ffi::CStr::from_ptr(name).to_owned(),
        hooks,
    };
    if let Some(hooks) = &started.hooks {
        hooks.call(hooks.started, &started.name);
    }
    Box::into_raw(Box::new(started)).cast()
}

unsafe extern "C" fn ending(started: *mut c_void) {
    let started = Box::from_raw(started.cast::<Started>());
    if let Some(hooks) = &started.hooks {
        hooks.call(hooks.ending, &started.name);
    }
}

extern "C" {
    /// src/threads.c
    fn pipeshard_threads_tell(
        started: unsafe extern "C" fn(*const c_char) -> *mut c_void,
        ending: unsafe extern "C" fn(*mut c_void),
    );
    /// src/threads.c
    fn pipeshard_threads_next(name: *const c_char, length: usize);
}

fn next(name: &str) {
    // SAFETY: as many bytes as it says, which are copied.
    unsafe { pipeshard_threads_next(name.as_ptr().cast(), name.len()) }
}

/// Listens to threads: once in a process.
pub fn listen() {
    announce_to(next);
    // SAFETY: functions that stay as long as the library does.
    unsafe { pipeshard_threads_tell(started, ending) }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_set_thread_hooks(
    started: Option<ThreadFn>,
    ending: Option<ThreadFn>,
    user: *mut c_void,
) {
    let hooks = (started.is_some() || ending.is_some()).then_some(Hooks {
        started,
        ending,
        user: user as usize,
    });
    *HOOKS.write().unwrap_or_else(PoisonError::into_inner) = hooks;
}
