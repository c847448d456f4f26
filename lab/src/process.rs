//! Processes that are run to their end or to a time limit, with all that they said and when they said it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wait_timeout::ChildExt;

/// A line that a process wrote.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it arrived.
    pub at: Instant,
    /// On standard error, and not on standard output.
    pub error: bool,
    /// The line, without its end.
    pub text: String,
}

/// The outcome of a process.
#[derive(Debug)]
pub struct Finished {
    /// When it was started.
    pub start: Instant,
    /// Its exit status; none where it was ended at its time limit.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The lines of both, in order of arrival.
    pub lines: Vec<Line>,
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

    /// What it said on standard error, in one line.
    pub fn said(&self) -> String {
        let words: Vec<&str> = self.stderr.split_whitespace().collect();
        words.join(" ")
    }

    /// Why a benchmark has no result, in one line.
    pub fn complaint(&self) -> String {
        let ended = match self.status {
            None => format!("its {} s were over", self.start.elapsed().as_secs()),
            Some(status) if status.success() => "it ended without a result".to_owned(),
            Some(status) => status.to_string(),
        };
        let telling = |s: &&Line| s.error && !s.text.trim().is_empty() && !is_progress(&s.text);
        match self.lines.iter().rev().find(telling) {
            Some(last) => {
                let text: String = last.text.trim().chars().take(160).collect();
                format!("{ended}: {text}")
            }
            None => ended,
        }
    }
}

fn is_progress(line: &str) -> bool {
    line.starts_with("llama-bench: benchmark ")
}

/// Has the kernel end the process when the thread that starts it ends: a killed process leaves no child that would compute
/// while the next one does, or hold device memory.
fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
}

/// Runs `command`; ends it when `limit` is over, or when the calling thread ends.
///
/// # Errors
/// Where it cannot be started.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished, String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    end_with_parent(command);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .map_err(|e| format!("{} cannot be started: {e}", command.get_program().display()))?;
    let stdout = child.stdout.take().map(|stream| read(stream, false));
    let stderr = child.stderr.take().map(|stream| read(stream, true));
    let waited = child.wait_timeout(limit);
    if !matches!(waited, Ok(Some(_))) {
        // it may have ended in this moment
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, mut lines) = all_of(stdout);
    let (stderr, more) = all_of(stderr);
    lines.extend(more);
    lines.sort_by_key(|line| line.at);
    Ok(Finished {
        start,
        status: waited.map_err(|e| e.to_string())?,
        stdout,
        stderr,
        lines,
    })
}

type Reader = JoinHandle<(String, Vec<Line>)>;

fn read(stream: impl Read + Send + 'static, error: bool) -> Reader {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let (mut bytes, mut lines) = (Vec::new(), Vec::new());
        loop {
            let begin = bytes.len();
            match stream.read_until(b'\n', &mut bytes) {
                // a broken pipe ends the text as its end does
                Ok(0) | Err(_) => break,
                Ok(_) => lines.push(Line {
                    at: Instant::now(),
                    error,
                    text: String::from_utf8_lossy(&bytes[begin..])
                        .trim_end()
                        .to_owned(),
                }),
            }
        }
        (String::from_utf8_lossy(&bytes).into_owned(), lines)
    })
}

fn all_of(reader: Option<Reader>) -> (String, Vec<Line>) {
    let read = reader.and_then(|reader| reader.join().ok());
    read.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str, limit: Duration) -> Finished {
        run(Command::new("sh").args(["-c", script]), limit).unwrap()
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let starter = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            end_with_parent(command.arg("60"));
            command.spawn().unwrap()
        });
        let mut child = starter.join().unwrap();
        let ended = child.wait_timeout(Duration::from_secs(20)).unwrap();
        // where the kernel did not end it, the test does
        let _ = child.kill();
        assert_eq!(
            ended.and_then(|status| status.signal()),
            Some(libc::SIGKILL)
        );
    }

    #[test]
    fn lines_come_with_their_stream_and_in_order() {
        // the second line is written when the first one was read
        let script = "echo one; sleep 0.05; echo two >&2; exit 3";
        let finished = shell(script, Duration::from_secs(20));
        let lines = finished.lines.iter();
        let texts: Vec<_> = lines.map(|s| (s.error, &s.text[..])).collect();
        assert_eq!(texts, [(false, "one"), (true, "two")]);
        assert_eq!(
            (&finished.stdout[..], &finished.stderr[..]),
            ("one\n", "two\n")
        );
        assert!(finished.failed_cleanly() && !finished.succeeded());
        assert!(
            finished.complaint().ends_with("3: two"),
            "{}",
            finished.complaint()
        );
    }

    #[test]
    fn what_was_said_before_the_limit_is_kept() {
        let limit = Duration::from_millis(300);
        // exec: what holds the pipes is ended itself
        let finished = shell("echo one; exec sleep 60", limit);
        assert!(finished.status.is_none() && !finished.failed_cleanly());
        assert_eq!(finished.stdout, "one\n");
        assert!(finished.complaint().contains("were over"));
        assert!(finished.told().starts_with("hung"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut command = Command::new("/nowhere/llama-bench");
        let error = run(&mut command, Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("/nowhere/llama-bench"), "{error}");
    }
}
