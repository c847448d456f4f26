//! Running a command to its end or to its time limit, noting when it says what.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// A line that a process wrote.
#[derive(Debug, Clone)]
pub struct Said {
    /// When it arrived.
    pub at: Instant,
    /// On standard error, and not on standard output.
    pub error: bool,
    /// The line, without its end.
    pub text: String,
}

/// What became of a process.
#[derive(Debug)]
pub struct Finished {
    /// When it was started.
    pub start: Instant,
    /// Its exit status; none where it was ended at its time limit.
    pub status: Option<ExitStatus>,
    /// All that it said, in order of arrival.
    pub said: Vec<Said>,
}

impl Finished {
    /// Why there is no result, in one line.
    pub fn complaint(&self) -> String {
        let ended = match self.status {
            None => format!("its {} s were over", self.start.elapsed().as_secs()),
            Some(status) if status.success() => "it ended without a result".to_owned(),
            Some(status) => status.to_string(),
        };
        let telling = |s: &&Said| s.error && !s.text.trim().is_empty() && !is_progress(&s.text);
        match self.said.iter().rev().find(telling) {
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

/// Has the kernel end the process when the thread that starts it ends: a benchmark that is killed leaves nothing behind that
/// would compute beside the next one, or hold device memory.
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
    let (sender, lines) = mpsc::channel();
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(read(stdout, false, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(read(stderr, true, sender.clone()));
    }
    drop(sender);
    let mut said = Vec::new();
    let mut ended_early = false;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => said.push(line),
            // both streams are closed; it has yet to end
            Err(RecvTimeoutError::Disconnected) => match child.try_wait() {
                Ok(None) if start.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(None) => ended_early = true,
                _ => break,
            },
            Err(RecvTimeoutError::Timeout) => ended_early = true,
        }
        if ended_early {
            // it may have ended in this moment
            let _ = child.kill();
            break;
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    for reader in readers {
        // its only result is what it sent
        let _ = reader.join();
    }
    said.extend(lines.try_iter());
    Ok(Finished {
        start,
        status: (!ended_early).then_some(status),
        said,
    })
}

fn read(
    stream: impl Read + Send + 'static,
    error: bool,
    sender: Sender<Said>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(bytes) = line else { return };
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            let at = Instant::now();
            if sender.send(Said { at, error, text }).is_err() {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Finished {
        run(Command::new("sh").args(["-c", script]), limit).unwrap()
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let (sender, receiver) = mpsc::channel();
        let starter = std::thread::spawn(move || {
            let mut command = Command::new("sleep");
            end_with_parent(command.arg("60"));
            let child = command.spawn().unwrap();
            sender.send(child).unwrap();
        });
        let mut child = receiver.recv().unwrap();
        starter.join().unwrap();
        let begun = Instant::now();
        let ended = loop {
            match child.try_wait().unwrap() {
                None if begun.elapsed() < Duration::from_secs(20) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                ended => break ended,
            }
        };
        // where the kernel did not end it, the test does
        let _ = child.kill();
        let signal =
            ended.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status));
        assert_eq!(signal, Some(libc::SIGKILL));
    }

    #[test]
    fn lines_come_with_their_stream_and_time() {
        let script = "echo one; sleep 0.05; echo two >&2; exit 3";
        let finished = shell(script, Duration::from_secs(20));
        let texts: Vec<_> = finished
            .said
            .iter()
            .map(|s| (s.error, &s.text[..]))
            .collect();
        assert_eq!(texts, [(false, "one"), (true, "two")]);
        assert!(finished.said[1].at > finished.said[0].at);
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
        assert!(finished.status.is_none());
        assert_eq!(finished.said.len(), 1);
        assert!(finished.start.elapsed() < Duration::from_secs(30));
        assert!(finished.complaint().contains("were over"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut command = Command::new("/nowhere/llama-bench");
        let error = run(&mut command, Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("/nowhere/llama-bench"), "{error}");
    }
}
