//! Processes with a time limit.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a process left behind.
#[derive(Debug)]
pub struct Finished {
    /// `None`: it hung and was ended.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Ended by itself, with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// Ended by itself, with another exit code: not by a signal, and not by the time limit.
    pub fn failed_cleanly(&self) -> bool {
        self.status
            .is_some_and(|s| s.code().is_some_and(|code| code != 0))
    }

    /// How it ended, and the last of what it said.
    pub fn told(&self) -> String {
        let how = match self.status {
            None => "hung and was ended".to_string(),
            Some(status) => status.to_string(),
        };
        let lines: Vec<&str> = self.stderr.lines().filter(|l| !l.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(4)..].join(" / ");
        format!("{how}: {last}")
    }

    /// What it said, in one line.
    pub fn said(&self) -> String {
        let words: Vec<&str> = self.stderr.split_whitespace().collect();
        words.join(" ")
    }
}

/// Runs a process to its end, or ends it after `patience`.
///
/// # Errors
/// A text for the user: it could not be started.
pub fn finish(command: &mut Command, patience: Duration) -> Result<Finished, String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    let drain = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // a broken pipe ends the text like its end does
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = drain(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = drain(child.stderr.take().map(|s| Box::new(s) as _));
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(3));
            }
            _ => {
                // it may have ended in this moment
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Finished {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}
