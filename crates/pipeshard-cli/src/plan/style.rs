//! Colours of tables in a terminal.

use anstyle::{AnsiColor, Style};

pub(super) const HEADING: Style = Style::new().bold();
pub(super) const QUIET: Style = Style::new().dimmed();
pub(super) const DEVICE: Style = AnsiColor::Green.on_default();
pub(super) const STREAMED: Style = AnsiColor::Yellow.on_default();
pub(super) const HOST: Style = AnsiColor::Magenta.on_default();

/// Takes blanks from the end.
pub(super) fn trim(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
}
