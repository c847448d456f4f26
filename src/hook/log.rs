//! Messages in the place where the tool's own messages go. Anybody may call this.

use super::refusal::Refusal;
use pipeshard_sys as ffi;
use std::cell::Cell;
use std::ffi::CString;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

extern "C" {
    /// ggml's own logger (ggml-impl.h), which the tools redirect.
    fn ggml_log_internal(level: ffi::ggml_log_level, format: *const std::ffi::c_char, ...);
}

/// A message on its way.
enum Message {
    ToLog(ffi::ggml_log_level, String),
    ToStderr(String),
}

thread_local! {
    /// What the calling thread says when it is done with what it does: a list on its stack, see [`after`]. A value with a destructor
    /// would keep the library in memory for as long as the thread lives.
    static LATER: Cell<*mut Vec<Message>> = const { Cell::new(std::ptr::null_mut()) };
}

thread_local! {
    /// See [`take_minimum`].
    static MINIMUM: Cell<u64> = const { Cell::new(0) };
}

/// Nothing goes to standard error: all is for the log of a program that has its own use for standard error, or has closed it.
static LOG_ONLY: AtomicBool = AtomicBool::new(false);

/// From here on everything goes to ggml's log, which the program reads.
pub fn keep_off_stderr() {
    LOG_ONLY.store(true, Ordering::Relaxed);
}

impl Message {
    fn deliver(self) {
        match self {
            Message::ToLog(level, message) => {
                let text = message.replace('\0', " ");
                if let Ok(text) = CString::new(format!("pipeshard: {text}\n")) {
                    // SAFETY: the format takes one NUL-terminated string, which lives during the call.
                    unsafe { ggml_log_internal(level, c"%s".as_ptr(), text.as_ptr()) }
                }
            }
            Message::ToStderr(text) => write_line(&mut std::io::stderr(), &text),
        }
    }

    fn send(self) {
        let later = LATER.get();
        match later.is_null() {
            true => self.deliver(),
            // SAFETY: the list of `after`, which is on this thread's stack below; nothing else refers to it meanwhile.
            false => unsafe { (*later).push(self) },
        }
    }
}

/// Does `work`, and afterwards delivers the messages that the thread logged during it. The program's log callback may take
/// locks of its own, or ask for the report: it is not called from where the runtime is locked.
pub fn after<T>(work: impl FnOnce() -> T) -> T {
    /// Also where `work` panics.
    struct Deliver;
    impl Drop for Deliver {
        fn drop(&mut self) {
            let later = LATER.replace(std::ptr::null_mut());
            // SAFETY: the list of the call that made this, which is older than it.
            let said = unsafe { std::mem::take(&mut *later) };
            said.into_iter().for_each(Message::deliver);
        }
    }
    if !LATER.get().is_null() {
        return work();
    }
    let mut said = Vec::new();
    LATER.set(&mut said);
    let _deliver = Deliver;
    work()
}

fn send(level: ffi::ggml_log_level, message: &str) {
    Message::ToLog(level, message.to_string()).send();
}

/// Something worth knowing before what follows it, which takes a while. The one message that is not held back by [`after`].
pub fn at_once(message: &str) {
    Message::ToLog(ffi::GGML_LOG_LEVEL_INFO, message.to_string()).deliver();
}

/// Something for those who want to know everything (`-v`).
pub fn debug(message: &str) {
    send(ffi::GGML_LOG_LEVEL_DEBUG, message);
}

/// Something worth knowing.
pub fn info(message: &str) {
    send(ffi::GGML_LOG_LEVEL_INFO, message);
}

/// Something that works, but not as well as it could.
pub fn warn(message: &str) {
    send(ffi::GGML_LOG_LEVEL_WARN, message);
}

/// Something that ends what the user wanted: on standard error, for the tool may silence its log.
pub fn error(message: &str) {
    match LOG_ONLY.load(Ordering::Relaxed) {
        true => send(ffi::GGML_LOG_LEVEL_ERROR, message),
        false => to_stderr(&format!("pipeshard: {message}")),
    }
}

/// Why something is not done; programs can ask for the budget that would be enough ([`take_minimum`]).
pub fn refusal(why: &Refusal) {
    note_minimum(why);
    error(&why.text);
}

/// The budget that would be enough, of a refusal that is not said again.
pub fn note_minimum(why: &Refusal) {
    if let Some(minimum) = why.minimum {
        MINIMUM.set(minimum);
    }
}

/// The smallest budget, in bytes, with which what this thread was refused last would work, and forgets it. 0: nothing was refused for want
/// of a budget since it was asked last.
pub fn take_minimum() -> u64 {
    MINIMUM.take()
}

/// A line on standard error. Without a reader the line is lost, and the process goes on.
pub fn to_stderr(text: &str) {
    match LOG_ONLY.load(Ordering::Relaxed) {
        true => {
            let lines = text.lines();
            lines.for_each(|line| info(line.trim_start_matches("pipeshard: ")));
        }
        false => Message::ToStderr(text.to_string()).send(),
    }
}

fn write_line(out: &mut impl Write, text: &str) {
    let _ = writeln!(out, "{text}");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As standard error is when who read it has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn who_cannot_be_told_is_not_told() {
        write_line(&mut Closed, "the reader of the log has gone");
    }

    fn how_many() -> Option<usize> {
        // SAFETY: the list of `after`, in which this is called.
        unsafe { LATER.get().as_ref().map(Vec::len) }
    }

    #[test]
    fn what_is_said_under_the_lock_is_delivered_behind_it() {
        after(|| {
            info("one");
            assert_eq!(how_many(), Some(1));
            after(|| warn("another, within a callback within a callback"));
            assert_eq!(how_many(), Some(2));
        });
        assert_eq!(how_many(), None);
        let panicked = std::panic::catch_unwind(|| after(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(how_many(), None);
    }
}
