//! What libpipeshard.so offers by name, in a process that has it loaded.

use pipeshard_sys as ffi;
use std::ffi::{c_char, c_void, CStr};

type Text = Option<unsafe extern "C" fn() -> *mut c_char>;

/// Functions of libpipeshard.so; where it is not loaded each of them does nothing.
#[derive(Default)]
pub struct Library {
    set_budget: Option<unsafe extern "C" fn(u64) -> bool>,
    report: Text,
    units: Text,
    plans: Text,
    device: Text,
    reset_device: Option<unsafe extern "C" fn()>,
    free: Option<unsafe extern "C" fn(*mut c_char)>,
}

impl Library {
    /// Looks the functions up.
    pub fn find() -> Self {
        // SAFETY: the registry lives as long as the process; hook/library.rs gives the functions these signatures, and a
        // null pointer becomes None.
        unsafe {
            let registry = ffi::ggml_backend_reg_by_name(c"pipeshard".as_ptr());
            if registry.is_null() {
                return Library::default();
            }
            let get = |name: &CStr| ffi::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            let text = |name: &CStr| std::mem::transmute::<*mut c_void, Text>(get(name));
            Library {
                set_budget: std::mem::transmute::<
                    *mut c_void,
                    Option<unsafe extern "C" fn(u64) -> bool>,
                >(get(c"pipeshard_set_budget")),
                report: text(c"pipeshard_report"),
                units: text(c"pipeshard_units"),
                plans: text(c"pipeshard_plans"),
                device: text(c"pipeshard_simulated_device"),
                reset_device: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn()>>(
                    get(c"pipeshard_reset_simulated_device"),
                ),
                free: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn(*mut c_char)>>(
                    get(c"pipeshard_free"),
                ),
            }
        }
    }

    fn json(&self, function: Text) -> Option<serde_json::Value> {
        let (function, free) = (function?, self.free?);
        // SAFETY: the text is NUL-terminated, and owned here until it is given back.
        unsafe {
            let text = function();
            if text.is_null() {
                return None;
            }
            let value = serde_json::from_str(&CStr::from_ptr(text).to_string_lossy()).ok();
            free(text);
            value
        }
    }

    /// The report so far.
    pub fn report(&self) -> Option<serde_json::Value> {
        self.json(self.report)
    }

    /// The units that pipeshard made of the loaded weights.
    pub fn units(&self) -> Option<serde_json::Value> {
        self.json(self.units)
    }

    /// The plan for the latest context as it was decided, and as it runs.
    pub fn plans(&self) -> Option<serde_json::Value> {
        self.json(self.plans)
    }

    /// The simulated GPU's counters.
    pub fn device(&self) -> Option<serde_json::Value> {
        self.json(self.device)
    }

    /// Starts the simulated GPU's counters afresh.
    pub fn reset_device(&self) {
        if let Some(reset) = self.reset_device {
            // SAFETY: takes no arguments; no pass is being submitted.
            unsafe { reset() }
        }
    }

    /// Changes the budget to `bytes` before the next batch. False: not possible, and why was logged.
    pub fn set_budget(&self, bytes: u64) -> bool {
        // SAFETY: a number is all it takes.
        self.set_budget.is_some_and(|set| unsafe { set(bytes) })
    }
}
