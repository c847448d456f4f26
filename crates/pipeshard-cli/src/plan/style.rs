//! Colours, columns and figures of tables in a terminal.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

/// No line is wider.
pub const WIDTH: usize = 96;
const LABEL: usize = 34;

pub(super) const HEADING: Style = Style::new().bold();
pub(super) const QUIET: Style = Style::new().dimmed();
pub(super) const DEVICE: Style = AnsiColor::Green.on_default();
pub(super) const STREAMED: Style = AnsiColor::Yellow.on_default();
pub(super) const HOST: Style = AnsiColor::Magenta.on_default();

/// Takes blanks from the end.
pub(super) fn trim(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
}

pub fn heading(text: &mut String, title: &str, columns: &[&str]) -> std::fmt::Result {
    write!(text, "\n{HEADING}{title:<width$}", width = LABEL + 2)?;
    for column in columns {
        write!(text, "{column:<20}")?;
    }
    trim(text);
    writeln!(text, "{HEADING:#}")
}

pub fn line(text: &mut String, label: &str, cells: &[String]) -> std::fmt::Result {
    write!(text, "  {label:<LABEL$}")?;
    for cell in cells {
        write!(text, "{cell:<20}")?;
    }
    trim(text);
    writeln!(text)
}

/// Three digits and a unit.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".to_owned(),
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Three digits of tokens per second.
pub fn rate(tokens: f64) -> String {
    match tokens {
        t if !t.is_finite() => "-".to_owned(),
        t if t >= 100.0 => format!("{t:.0} tok/s"),
        t if t >= 10.0 => format!("{t:.1} tok/s"),
        t => format!("{t:.2} tok/s"),
    }
}

/// Lines of at most `width` characters, broken at blanks.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
