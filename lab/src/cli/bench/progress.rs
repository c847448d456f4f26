//! How far a run of the bench is.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bench::settings::Progress;

/// A bar on a terminal, lines elsewhere.
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{elapsed} {bar:24} {pos}/{len} {wide_msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Bar {
            bar,
            start: Instant::now(),
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// A line of its own.
    pub(super) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{:6.0}s {text}", self.start.elapsed().as_secs_f64()),
        }
    }
}

impl Progress for Bar {
    fn plan(&self, steps: usize, seconds: f64) {
        if let Some(bar) = &self.bar {
            bar.set_length(steps as u64);
        }
        self.line(&format!(
            "{steps} steps, by estimate {:.1} minutes in all",
            seconds / 60.0
        ));
    }

    fn step(&self, number: usize, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(number as u64);
                bar.set_message(what.to_owned());
            }
            None => self.line(&format!("{number}: {what}")),
        }
    }

    fn say(&self, what: &str) {
        self.line(what);
    }
}
