//! Messages in the place where the tool's own messages go.

use pipeshard_sys as ffi;
use std::ffi::CString;

extern "C" {
    /// ggml's own logger (ggml-impl.h), which the tools redirect.
    fn ggml_log_internal(level: ffi::ggml_log_level, format: *const std::ffi::c_char, ...);
}

fn send(level: ffi::ggml_log_level, message: &str) {
    let text = message.replace('\0', " ");
    if let Ok(text) = CString::new(format!("pipeshard: {text}\n")) {
        // SAFETY: the format takes one NUL-terminated string, which lives during the call.
        unsafe { ggml_log_internal(level, c"%s".as_ptr(), text.as_ptr()) }
    }
}

/// Something worth knowing.
pub fn info(message: &str) {
    send(ffi::GGML_LOG_LEVEL_INFO, message);
}

/// Something that works, but not as well as it could.
pub fn warn(message: &str) {
    send(ffi::GGML_LOG_LEVEL_WARN, message);
}

/// Something that ends what the user wanted. Also on standard error where the tool silences its log.
pub fn error(message: &str) {
    eprintln!("pipeshard: {message}");
}

/// Passes on what other parts of the library log through the `log` crate.
struct Forward;

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            match record.level() {
                log::Level::Error | log::Level::Warn => warn(&text),
                _ => info(&text),
            }
        }
    }

    fn flush(&self) {}
}

/// Sends the `log` crate's messages to the tool's log, unless the process has a logger of its own.
pub fn forward() {
    if log::set_logger(&Forward).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
