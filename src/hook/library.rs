//! What ggml's loader finds in libpipeshard.so.
//!
//! To ggml the library is a backend named `pipeshard` without kernels. It brings a simulated GPU where one was asked for,
//! attaches the scheduler hook where `--pipeshard` was given, and offers a few functions by name:
//!
//! | name | signature | |
//! |---|---|---|
//! | `pipeshard_set_budget` | `bool (uint64_t bytes)` | changes the budget: memory has been given back when it returns; false: nothing has changed, and the log says why |
//! | `pipeshard_http` | `char * (const char * path, const char * body, int32_t * status)` | what llama-server answers with `--pipeshard-control`, for its own process; free it with `pipeshard_free` |
//! | `pipeshard_sleep` | `bool (bool asleep)` | gives back all memory of weights, or says that they are wanted again: the next pass takes it; false: there is nothing to give back |
//! | `pipeshard_report` | `char * (void)` | the report so far as JSON; free it with `pipeshard_free` |
//! | `pipeshard_metrics` | `char * (void)` | the same in Prometheus' text format, for `GET /metrics` of llama-server |
//! | `pipeshard_props` | `char * (void)` | the object that `GET /props` of llama-server shows |
//! | `pipeshard_plans` | `char * (void)` | the plan for the latest context as it was decided, and as it runs, as JSON |
//! | `pipeshard_units` | `char * (void)` | the loaded weights as the planner sees them, as JSON |
//! | `pipeshard_simulated_device` | `char * (void)` | the simulated GPU's counters as JSON, null without one |
//! | `pipeshard_reset_simulated_device` | `void (void)` | starts those counters afresh |
//! | `pipeshard_free` | `void (char *)` | |

use super::attach::Attached;
use super::config::Config;
use super::control;
use super::gate::Gate;
use super::log;
use super::publish;
use super::runtime::Runtime;
use crate::report::Report;
use pipeshard_sim as sim;
use pipeshard_sys as ffi;
use std::ffi::{c_char, c_void, CStr, CString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

/// A value that C refers to for the life of the process.
struct Static<T>(T);

// SAFETY: the values are written once, before C sees them, and only read afterwards.
unsafe impl<T> Sync for Static<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Static<T> {}

/// The runtime of the process, once something was attached.
static ATTACHED: OnceLock<Attached> = OnceLock::new();
static REGISTRY: OnceLock<Static<ffi::ggml_backend_reg>> = OnceLock::new();
/// llama-server sleeps, and its weights' memory was given back.
static ASLEEP: AtomicBool = AtomicBool::new(false);
static SIMULATED: OnceLock<Static<ffi::ggml_backend_reg_t>> = OnceLock::new();

/// Called by ggml's loader. Null (after saying why on standard error) when the settings make no sense or the
/// library and llama.cpp come from different builds.
#[cfg_attr(not(feature = "host-library"), no_mangle)]
pub extern "C" fn ggml_backend_init() -> ffi::ggml_backend_reg_t {
    match std::panic::catch_unwind(start) {
        Ok(Ok(registry)) => registry,
        Ok(Err(why)) => {
            log::error(&why);
            std::ptr::null_mut()
        }
        Err(_) => std::ptr::null_mut(),
    }
}

fn start() -> Result<ffi::ggml_backend_reg_t, String> {
    log::forward();
    let config = Config::from_env().map_err(|e| e.to_string())?;
    config.check_outputs().map_err(|e| e.to_string())?;
    if let Some(spec) = &config.sim {
        let made = SIMULATED.get_or_init(|| Static(sim::registry(spec.clone())));
        if made.0.is_null() {
            return Err("there is no simulated GPU (see the message above)".to_string());
        }
        sim::quiesce_at_exit();
        if std::env::var_os(COUNTERS_FILE).is_some() {
            // SAFETY: the handler is a plain function.
            unsafe { libc::atexit(write_counters_at_exit) };
        }
    }
    if config.attach && ATTACHED.get().is_none() {
        attach(config)?;
    }
    let registry = REGISTRY.get_or_init(|| {
        Static(ffi::ggml_backend_reg {
            api_version: ffi::GGML_BACKEND_API_VERSION as i32,
            iface: ffi::ggml_backend_reg_i {
                get_name: Some(get_name),
                get_device_count: Some(get_device_count),
                get_device: Some(get_device),
                get_proc_address: Some(get_proc_address),
            },
            context: std::ptr::null_mut(),
        })
    });
    Ok(std::ptr::from_ref(&registry.0).cast_mut())
}

fn attach(config: Config) -> Result<(), String> {
    // ggml-cuda page-locks in place only where this is set; nothing else reads it. llama.cpp's tools have set it before they had a
    // second thread; here it is for hosts that attach by the environment.
    if !config.no_page_lock && std::env::var_os("GGML_CUDA_REGISTER_HOST").is_none() {
        std::env::set_var("GGML_CUDA_REGISTER_HOST", "1");
    }
    let attached = Attached::attach(config).map_err(|e| e.to_string())?;
    let _ = ATTACHED.set(attached);
    // SAFETY: the handler is a plain function.
    unsafe { libc::atexit(at_exit) };
    Ok(())
}

/// The runtime, where pipeshard is on.
fn gate() -> Option<&'static Gate<Runtime>> {
    ATTACHED.get().map(Attached::gate)
}

/// Where the simulated GPU's counters go as JSON at exit: for measuring stock llama.cpp on it, which writes no report.
const COUNTERS_FILE: &str = "PIPESHARD_SIM_COUNTERS";

extern "C" fn write_counters_at_exit() {
    let write = || {
        let (Some(device), Some(path)) = (simulated(), std::env::var_os(COUNTERS_FILE)) else {
            return;
        };
        let text = serde_json::to_string(&sim::counters(device)).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, text) {
            log::error(&format!(
                "the simulated GPU's counters were not written to {}: {error}",
                path.display()
            ));
        }
    };
    let _ = std::panic::catch_unwind(write);
}

/// How long the end of the process waits for a callback that is in progress.
const EXIT_WAITS: Duration = Duration::from_millis(300);

/// At the end of the process: publishes, unless the last model's end already did.
fn publish_at_exit() {
    let Some(gate) = gate() else { return };
    match gate.plain_within(EXIT_WAITS) {
        Some(runtime) if runtime.telemetry.published => {}
        // the tool's log may be gone already
        Some(mut runtime) => publish::publish(&mut runtime, false),
        // a signal may have come inside a callback, and its handler have ended the process: this thread would wait for itself
        None => log::error("the process ends while a callback is in progress; there is no report"),
    }
}

extern "C" fn at_exit() {
    let _ = std::panic::catch_unwind(|| log::after(publish_at_exit));
}

unsafe extern "C" fn get_name(_: ffi::ggml_backend_reg_t) -> *const c_char {
    c"pipeshard".as_ptr()
}

unsafe extern "C" fn get_device_count(_: ffi::ggml_backend_reg_t) -> usize {
    SIMULATED
        .get()
        .map_or(0, |reg| unsafe { ffi::ggml_backend_reg_dev_count(reg.0) })
}

unsafe extern "C" fn get_device(
    _: ffi::ggml_backend_reg_t,
    index: usize,
) -> ffi::ggml_backend_dev_t {
    SIMULATED.get().map_or(std::ptr::null_mut(), |reg| unsafe {
        ffi::ggml_backend_reg_dev_get(reg.0, index)
    })
}

unsafe extern "C" fn get_proc_address(
    _: ffi::ggml_backend_reg_t,
    name: *const c_char,
) -> *mut c_void {
    match CStr::from_ptr(name).to_bytes() {
        b"pipeshard_set_budget" => set_budget as *mut c_void,
        b"pipeshard_http" => http as *mut c_void,
        b"pipeshard_sleep" => sleep as *mut c_void,
        b"pipeshard_report" => report as *mut c_void,
        b"pipeshard_metrics" => metrics as *mut c_void,
        b"pipeshard_props" => props as *mut c_void,
        b"pipeshard_plans" => plans as *mut c_void,
        b"pipeshard_units" => units as *mut c_void,
        b"pipeshard_simulated_device" => simulated_device as *mut c_void,
        b"pipeshard_reset_simulated_device" => reset_simulated_device as *mut c_void,
        b"pipeshard_free" => free as *mut c_void,
        _ => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn set_budget(bytes: u64) -> bool {
    let work = || {
        let Some(gate) = gate() else {
            return false;
        };
        let changed = control::change_budget(gate, bytes, None, None);
        changed
            .inspect_err(|why| log::error(&why.to_string()))
            .is_ok()
    };
    std::panic::catch_unwind(|| log::after(work)).unwrap_or(false)
}

/// llama-server has had nothing to do for some time, or has something to do again. False: it frees the model itself.
unsafe extern "C" fn sleep(asleep: bool) -> bool {
    let work = || {
        let Some(gate) = gate() else {
            return false;
        };
        if !asleep {
            return ASLEEP.swap(false, Ordering::Relaxed);
        }
        if gate.plain().tenant.weights.models().is_empty() {
            return false;
        }
        let given = control::give_back(gate, None);
        let given = given.inspect_err(|why| log::error(&why.to_string()));
        ASLEEP.store(given.is_ok(), Ordering::Relaxed);
        given.is_ok()
    };
    std::panic::catch_unwind(|| log::after(work)).unwrap_or(false)
}

/// The answer to a request of `--pipeshard-control`; its status is written to `status`.
unsafe extern "C" fn http(
    path: *const c_char,
    body: *const c_char,
    status: *mut i32,
) -> *mut c_char {
    if path.is_null() || body.is_null() || status.is_null() {
        return std::ptr::null_mut();
    }
    let (path, body) = (CStr::from_ptr(path), CStr::from_ptr(body));
    let answer =
        || log::after(|| control::answer(gate(), &path.to_string_lossy(), &body.to_string_lossy()));
    text(|| {
        let answer = answer();
        *status = answer.status;
        Some(answer.body)
    })
}

/// A text for C, or null. The caller gives it back with `pipeshard_free`.
fn text(make: impl FnOnce() -> Option<String>) -> *mut c_char {
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make))
        .ok()
        .flatten();
    made.and_then(|text| CString::new(text).ok())
        .map_or(std::ptr::null_mut(), CString::into_raw)
}

/// The report so far, `None` where pipeshard is off.
fn report_now() -> Option<Report> {
    Some(publish::report(&gate()?.plain()))
}

unsafe extern "C" fn report() -> *mut c_char {
    text(|| Some(report_now()?.to_json()))
}

unsafe extern "C" fn metrics() -> *mut c_char {
    text(|| Some(report_now()?.to_prometheus()))
}

unsafe extern "C" fn props() -> *mut c_char {
    text(|| Some(report_now()?.to_props()))
}

unsafe extern "C" fn plans() -> *mut c_char {
    text(|| publish::plans(&gate()?.plain()))
}

unsafe extern "C" fn units() -> *mut c_char {
    text(|| {
        let runtime = gate()?.plain();
        serde_json::to_string(runtime.tenant.weights.described()).ok()
    })
}

fn simulated() -> Option<ffi::ggml_backend_dev_t> {
    // SAFETY: the registry lives as long as the process and has one device.
    SIMULATED
        .get()
        .filter(|reg| !reg.0.is_null())
        .map(|reg| unsafe { ffi::ggml_backend_reg_dev_get(reg.0, 0) })
}

unsafe extern "C" fn simulated_device() -> *mut c_char {
    text(|| serde_json::to_string(&sim::counters(simulated()?)).ok())
}

unsafe extern "C" fn reset_simulated_device() {
    if let Some(device) = simulated() {
        sim::reset_counters(device);
    }
}

unsafe extern "C" fn free(text: *mut c_char) {
    if !text.is_null() {
        drop(CString::from_raw(text));
    }
}
