//! What there is one of in a process: llama.cpp's log, and whether a device is open.

use crate::failure::{Code, Failure};
use crate::host_memory;
use crate::locks::locked;
use crate::threads;
use crate::types::LogFn;
use crate::words::for_programs;
use pipeshard_sys as ffi;
use runtime::hook::{log, stopping};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError, RwLock};

/// Where messages go.
#[derive(Clone, Copy)]
struct Sink {
    log: LogFn,
    user: usize,
    level: c_int,
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// The process that opened something; 0 before.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Refuses what belongs to the process that this one was forked from: neither its threads nor its GPU are here. Takes no lock: it may
/// have been held when the process was forked.
pub fn check(name: &str) -> Result<(), Failure> {
    let process = PROCESS.load(Ordering::Relaxed);
    if process != 0 && process != std::process::id() {
        return Err(Failure::new(
            Code::Forked,
            format!("{name}: the process that this one was forked from uses pipeshard; what it opened belongs to it, and the child cannot use it"),
        ));
    }
    Ok(())
}

/// A device is open, or what was opened on it.
static IN_USE: Mutex<bool> = Mutex::new(false);

thread_local! {
    /// Errors that are being collected on this thread: a list on its stack. No value with a destructor, see `hook::log`.
    static COLLECTED: Cell<*mut Vec<String>> = const { Cell::new(std::ptr::null_mut()) };
}

/// What messages of the runtime begin with.
const OF_RUNTIME: &str = "pipeshard: ";

/// What was logged as an error.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    /// In words; empty where nothing was.
    pub text: String,
    /// The runtime said so, and not llama.cpp.
    pub of_runtime: bool,
    /// The smallest budget that would have been enough, in bytes; 0 where that is not why.
    pub minimum: u64,
}

impl Errors {
    /// The same with a sentence where nothing was said.
    pub fn or(self, otherwise: &str) -> Self {
        match self.text.is_empty() {
            true => Errors {
                text: otherwise.to_owned(),
                ..self
            },
            false => self,
        }
    }
}

/// Does `work`, and returns what was logged as an error on this thread meanwhile: llama.cpp says there why it fails.
pub fn with_errors<T>(work: impl FnOnce() -> T) -> (T, Errors) {
    /// Also where `work` panics.
    struct Restore(*mut Vec<String>);
    impl Drop for Restore {
        fn drop(&mut self) {
            COLLECTED.set(self.0);
        }
    }
    let mut errors: Vec<String> = Vec::new();
    let list: *mut Vec<String> = &mut errors;
    let restore = Restore(COLLECTED.replace(list));
    log::take_minimum();
    let result = work();
    let minimum = log::take_minimum();
    drop(restore);
    // the runtime says what is the matter with the device; else the first one is of what found it, and those behind it say that they
    // did not succeed either
    let of_runtime = errors.iter().find_map(|e| e.strip_prefix(OF_RUNTIME));
    let text = of_runtime.or(errors.first().map(String::as_str));
    let said = Errors {
        text: text.unwrap_or_default().to_owned(),
        of_runtime: of_runtime.is_some(),
        minimum,
    };
    (result, said)
}

/// PIPESHARD_LOG_DEBUG
const LOG_DEBUG: c_int = 4;

/// Our level for one of ggml's, and whether it is a message at all.
fn level_of(level: ffi::ggml_log_level) -> Option<c_int> {
    match level {
        ffi::GGML_LOG_LEVEL_ERROR => Some(1),
        ffi::GGML_LOG_LEVEL_WARN => Some(2),
        ffi::GGML_LOG_LEVEL_INFO => Some(3),
        ffi::GGML_LOG_LEVEL_DEBUG => Some(4),
        // parts of lines: dots of progress bars
        _ => None,
    }
}

unsafe extern "C" fn log(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    let Some(level) = level_of(level) else {
        return;
    };
    let said = CStr::from_ptr(text).to_string_lossy();
    let said = said.trim_end();
    if said.is_empty() {
        return;
    }
    // llama.cpp takes a pass that was ended early for one that failed
    let level = match stopping::has_ended() {
        true => LOG_DEBUG,
        false => level,
    };
    if level == 1 {
        if let Some(list) = COLLECTED.get().as_mut() {
            list.push(said.to_owned());
        }
    }
    let sink = *SINK.read().unwrap_or_else(PoisonError::into_inner);
    let Some(sink) = sink.filter(|sink| level <= sink.level) else {
        return;
    };
    if let Ok(text) = CString::new(for_programs(said).replace('\0', " ")) {
        (sink.log)(sink.user as *mut c_void, level, text.as_ptr());
    }
}

/// What would have been printed: where llama.cpp prints, it says what is wrong, such as in a grammar.
unsafe extern "C" fn printed(text: *const c_char) {
    log(ffi::GGML_LOG_LEVEL_ERROR, text, std::ptr::null_mut());
}

/// What ggml says before it ends the process.
unsafe extern "C" fn last_words(text: *const c_char) {
    log(ffi::GGML_LOG_LEVEL_ERROR, text, std::ptr::null_mut());
}

/// Begins to use llama.cpp: once in a process.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        log::keep_off_stderr();
        // of this library's own copy of Rust's standard library: where it panics, the log says so
        std::panic::set_hook(Box::new(|panic| log::error(&panic.to_string())));
        log::forward();
        threads::listen();
        host_memory::listen();
        // SAFETY: the callbacks are plain functions, which stay as long as this library and the llama.cpp in it do.
        unsafe {
            pipeshard_quiet_tell(Some(printed));
            ffi::llama_log_set(Some(log), std::ptr::null_mut());
            ffi::mtmd_helper_log_set(Some(log), std::ptr::null_mut());
            ffi::mtmd_log_set(Some(log), std::ptr::null_mut());
            ffi::ggml_set_abort_callback(Some(last_words));
            #[cfg(feature = "cuda")]
            if ffi::ggml_backend_reg_by_name(c"CUDA".as_ptr()).is_null() {
                ffi::ggml_backend_register(ggml_backend_cuda_reg());
            }
            ffi::llama_backend_init();
        }
    });
}

#[cfg(feature = "cuda")]
extern "C" {
    fn ggml_backend_cuda_reg() -> ffi::ggml_backend_reg_t;
}

extern "C" {
    /// src/environment.c
    fn pipeshard_environment_page_lock(allowed: c_int);
    /// src/quiet.c
    fn pipeshard_quiet_tell(tell: Option<unsafe extern "C" fn(*const c_char)>);
}

/// Whether ggml-cuda page-locks weights where it is asked to.
pub fn allow_page_lock(allowed: bool) {
    // SAFETY: a number is all it takes.
    unsafe { pipeshard_environment_page_lock(c_int::from(allowed)) }
}

/// The right to have a device, of which a process has one.
pub struct Use(());

impl Use {
    /// # Errors
    /// Another has it.
    pub fn take() -> Result<Self, Failure> {
        check("device")?;
        let mut in_use = locked(&IN_USE);
        if *in_use {
            return Err(Failure::new(
                Code::Busy,
                "a device is open in this process, or was closed while models or sessions on it are open; a process has one at a time",
            ));
        }
        *in_use = true;
        PROCESS.store(std::process::id(), Ordering::Relaxed);
        Ok(Use(()))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        *locked(&IN_USE) = false;
    }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_set_log(log: Option<LogFn>, user: *mut c_void, level: c_int) {
    let sink = log.map(|log| Sink {
        log,
        user: user as usize,
        level,
    });
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_version() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 16 | part(env!("CARGO_PKG_VERSION_MINOR"))
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_build_id() -> *const c_char {
    static TEXT: std::sync::OnceLock<CString> = std::sync::OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let version = env!("CARGO_PKG_VERSION");
        CString::new(format!("{version} {}", ffi::BUILD_ID)).unwrap_or_default()
    });
    text.as_ptr()
}
