//! The terminal while the screen is shown. It is given back on every way out: an end, an error, a panic in any thread, a signal.

use ratatui::DefaultTerminal;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Holds the terminal; dropping it gives it back.
#[derive(Debug)]
pub struct Terminal {
    inner: DefaultTerminal,
    ended: Arc<AtomicBool>,
}

/// Whether there is one to read keys from and to draw on.
pub fn exists() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

impl Terminal {
    /// Takes the terminal: no echo, a screen of its own.
    ///
    /// # Errors
    /// The system does not allow it. The terminal is as before then.
    pub fn take() -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGHUP,
        ] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        // this also lets a panic give the terminal back before its message is printed
        match ratatui::try_init() {
            Ok(inner) => Ok(Self { inner, ended }),
            Err(error) => {
                // one step of several may have been made
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }

    /// A signal asked the process to end.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Draws.
    ///
    /// # Errors
    /// The terminal takes nothing more.
    pub fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame)) -> io::Result<()> {
        self.inner.draw(draw).map(|_| ())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // a terminal that is gone cannot be given back
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests;
