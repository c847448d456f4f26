//! Sockets through which a process is looked at and asked for a change, by whoever may: its own user. One line of JSON there, one back.
//! Each process has one, named after its number; who finds one behind which nobody is removes it.

use super::ask::{line, send};
use super::own_place;
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What names of sockets end in.
const SOCKET: &str = "process";
/// A question is no longer than that, in bytes.
const LONGEST_QUESTION: u64 = 64 << 10;
/// An answer is no longer than that, in bytes.
const LONGEST_ANSWER: u64 = 8 << 20;

/// A question, as a request to llama-server would have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Such as `/pipeshard`.
    pub path: String,
    /// Empty where nothing is to be changed.
    #[serde(default)]
    pub body: String,
}

/// An answer, as llama-server would give it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    /// As text.
    pub body: String,
}

/// The socket of this process, until it is dropped.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    process: u32,
}

/// A process that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub number: u32,
    /// Where.
    pub socket: PathBuf,
}

/// Opens the socket of this process.
///
/// # Errors
/// There is no folder for it that belongs to this user alone, or no socket can be made there.
pub fn open() -> io::Result<(Door, UnixListener)> {
    open_in(&own_place()?)
}

fn open_in(folder: &Path) -> io::Result<(Door, UnixListener)> {
    let process = std::process::id();
    let path = folder.join(format!("{process}.{SOCKET}"));
    // left by one that had the number before
    match fs::remove_file(&path) {
        Err(why) if why.kind() != ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let door = Door { path, process };
    fs::set_permissions(&door.path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((door, listener))
}

impl Drop for Door {
    fn drop(&mut self) {
        // a child that was forked has it too, and is another process
        if self.process == std::process::id() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The processes of this user that can be asked, by their numbers.
pub fn processes() -> Vec<Process> {
    own_place().map_or(Vec::new(), |place| processes_in(&place))
}

fn processes_in(folder: &Path) -> Vec<Process> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Process> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| {
            let socket = entry.path();
            let of_process = socket.extension().is_some_and(|ending| ending == SOCKET);
            let number = socket.file_stem()?.to_str()?.parse().ok()?;
            of_process.then_some(Process { number, socket })
        })
        .filter(|process| match UnixStream::connect(&process.socket) {
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&process.socket);
                false
            }
            tried => tried.is_ok(),
        })
        .collect();
    found.sort_by_key(|process| process.number);
    found
}

/// Asks the process behind a socket.
///
/// # Errors
/// It is gone, does not answer within `patience`, or says something else.
pub fn ask(socket: &Path, question: &Question, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    send(&mut stream, question, patience)?;
    Ok(serde_json::from_str(&line(
        &stream,
        LONGEST_ANSWER,
        patience,
    )?)?)
}

/// Answers the question that comes through a stream. Whoever asks nothing within `patience`, or does not read the answer, gets none.
///
/// # Errors
/// Who asks is gone, or asks something else.
pub fn reply(
    mut stream: UnixStream,
    patience: Duration,
    answer: impl FnOnce(&Question) -> Answer,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let question: Question = serde_json::from_str(&line(&stream, LONGEST_QUESTION, patience)?)?;
    send(&mut stream, &answer(&question), patience)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn who_lives_is_found_and_asked_and_who_is_gone_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        let (door, listener) = open_in(folder.path()).unwrap();
        let mode = fs::metadata(&door.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // of a process that was killed, a file that is none, and a folder of those that share
        drop(UnixListener::bind(folder.path().join("4000000000.process")).unwrap());
        fs::write(folder.path().join("1.process"), "").unwrap();
        fs::create_dir(folder.path().join("share")).unwrap();
        let found = processes_in(folder.path());
        let numbers: Vec<u32> = found.iter().map(|process| process.number).collect();
        assert_eq!(numbers, [std::process::id()]);
        assert!(!folder.path().join("4000000000.process").exists());
        assert!(folder.path().join("1.process").exists());
        let server = std::thread::spawn(move || {
            listener.set_nonblocking(false).unwrap();
            loop {
                let (stream, _) = listener.accept().unwrap();
                let answer = |question: &Question| Answer {
                    status: 200,
                    body: format!("{}|{}", question.path, question.body),
                };
                // who only looks whether somebody is there asks nothing
                if reply(stream, PATIENCE, answer).is_ok() {
                    return;
                }
            }
        });
        let question = Question {
            path: "/x".to_owned(),
            body: "{\"a\": \"\n\"}".to_owned(),
        };
        let answer = ask(&found[0].socket, &question, PATIENCE).unwrap();
        assert_eq!(answer.body, "/x|{\"a\": \"\n\"}");
        server.join().unwrap();
        let path = door.path.clone();
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn who_asks_too_slowly_is_left() {
        let (mut asks, answers) = UnixStream::pair().unwrap();
        asks.write_all(b"{\"path\":").unwrap();
        // the rest never comes, and there is no end either
        let patience = Duration::from_millis(20);
        let replied = reply(answers, patience, |_| unreachable!("no question"));
        assert!(replied.is_err());
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        let long = "9".repeat(1 << 20);
        for said in ["\n", "{\"path\": 1}\n", "x", &long] {
            let (asks, answers) = UnixStream::pair().unwrap();
            let mut asks_too = asks.try_clone().unwrap();
            let said = said.to_owned();
            // more than the socket holds is not read to its end
            let writer = std::thread::spawn(move || {
                let _ = asks_too.write_all(said.as_bytes());
                let _ = asks_too.shutdown(std::net::Shutdown::Write);
            });
            let replied = reply(answers, PATIENCE, |_| unreachable!("no question"));
            assert!(replied.is_err());
            drop(asks);
            writer.join().unwrap();
        }
    }
}
