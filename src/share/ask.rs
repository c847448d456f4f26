//! What members of a group ask each other: one line of JSON there, one back.

use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A line is no longer than that.
const LONGEST: u64 = 4096;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How are you?
    State,
    /// Have a budget of so many bytes, and say how much it is.
    ShrinkTo(u64),
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Bytes.
    pub budget: u64,
    /// The smallest budget that works now, in bytes.
    pub minimum: u64,
    /// Since when nothing was computed, in milliseconds.
    pub idle_ms: u64,
}

/// What is left of the time until then.
fn left(until: Instant) -> io::Result<Option<Duration>> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(Some(left)),
    }
}

/// Reads one line of at most `longest` bytes, all of it within `patience`.
pub(super) fn line(mut from: &UnixStream, longest: u64, patience: Duration) -> io::Result<String> {
    let until = Instant::now() + patience;
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while text.len() as u64 <= longest {
        from.set_read_timeout(left(until)?)?;
        match from.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => text.extend_from_slice(&piece[..count]),
        }
        if text.ends_with(b"\n") {
            return String::from_utf8(text).map_err(|_| ErrorKind::InvalidData.into());
        }
    }
    Err(ErrorKind::InvalidData.into())
}

/// Writes it as one line, all of it within `patience`.
pub(super) fn send(
    to: &mut UnixStream,
    what: &impl Serialize,
    patience: Duration,
) -> io::Result<()> {
    let until = Instant::now() + patience;
    let text = serde_json::to_string(what)? + "\n";
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        to.set_write_timeout(left(until)?)?;
        match to.write(rest)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => rest = &rest[count..],
        }
    }
    Ok(())
}

/// Asks the member behind a socket.
///
/// # Errors
/// It is gone, does not answer within `patience`, or says something else.
pub fn ask(socket: &Path, question: Question, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    send(&mut stream, &question, patience)?;
    Ok(serde_json::from_str(&line(&stream, LONGEST, patience)?)?)
}

/// Answers the question that comes through a stream. Whoever asks nothing within `patience` gets no answer.
///
/// # Errors
/// Who asks is gone, or asks something else.
pub fn reply(
    mut stream: UnixStream,
    patience: Duration,
    answer: impl FnOnce(Question) -> Answer,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let question = serde_json::from_str(&line(&stream, LONGEST, patience)?)?;
    send(&mut stream, &answer(question), patience)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_question_gets_its_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            reply(stream, PATIENCE, |question| Answer {
                budget: match question {
                    Question::ShrinkTo(bytes) => bytes,
                    Question::State => 0,
                },
                minimum: 2,
                idle_ms: 3,
            })
            .unwrap();
        });
        let answer = ask(&path, Question::ShrinkTo(7), PATIENCE).unwrap();
        assert_eq!((answer.budget, answer.minimum, answer.idle_ms), (7, 2, 3));
        server.join().unwrap();
        // nobody listens any more
        assert!(ask(&path, Question::State, PATIENCE).is_err());
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        for said in ["\n", "{\"shrink_to\": -1}\n", "x", &"9".repeat(10_000)] {
            let (mut asks, answers) = UnixStream::pair().unwrap();
            asks.write_all(said.as_bytes()).unwrap();
            asks.shutdown(std::net::Shutdown::Write).unwrap();
            let replied = reply(answers, PATIENCE, |_| unreachable!("no question"));
            assert!(replied.is_err(), "{said}");
        }
    }
}
