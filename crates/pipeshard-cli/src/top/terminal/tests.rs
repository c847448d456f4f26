//! Each way out, on a terminal of its own: the test starts itself once more, with a pseudo-terminal in place of the console.

use super::super::{run, TopArgs};
use super::*;
use clap::Parser;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{channel, Receiver};

/// What a terminal gets to leave the screen that a program has for itself.
const LEAVES: &str = "\x1b[?1049l";
/// What it gets to have one.
const ENTERS: &str = "\x1b[?1049h";

/// A pseudo-terminal: our side, and the side of the process under test, which has it alone once it runs: our side then ends with it.
struct Pty {
    ours: File,
    its: Option<File>,
}

impl Pty {
    fn open() -> Self {
        let (mut ours, mut its) = (-1, -1);
        let size = libc::winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: all pointers are to live variables of the right types, or null where that is allowed.
        let opened = unsafe {
            libc::openpty(
                &mut ours,
                &mut its,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &size,
            )
        };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: both were just opened, and nothing else owns them.
        unsafe {
            Self {
                ours: File::from_raw_fd(ours),
                its: Some(File::from_raw_fd(its)),
            }
        }
    }

    /// Modes of input, output and line, which raw mode changes.
    fn modes(&self) -> [libc::tcflag_t; 3] {
        // SAFETY: a termios is numbers, for which zero is a value.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the pointer is to a live variable.
        let read = unsafe { libc::tcgetattr(self.ours.as_raw_fd(), &mut modes) };
        assert_eq!(read, 0, "{}", io::Error::last_os_error());
        [modes.c_iflag, modes.c_oflag, modes.c_lflag]
    }

    /// Runs one of the ignored tests below on this terminal, to look at the server at `url`.
    fn start(&mut self, test: &str, url: &str) -> Child {
        let its = self.its.take().expect("it is used once");
        let copy = || its.try_clone().expect("a copy");
        Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .arg(format!("top::terminal::tests::{test}"))
            .env(URL, url)
            .stdin(copy())
            .stdout(copy())
            .stderr(copy())
            .spawn()
            .expect("this test starts")
    }

    /// Reads more; false where the process has ended.
    fn read(&mut self, so_far: &mut String) -> bool {
        let mut bytes = [0; 4096];
        // an error, EIO, is the end of a terminal
        let count = self.ours.read(&mut bytes).unwrap_or(0);
        so_far.push_str(&String::from_utf8_lossy(&bytes[..count]));
        count > 0
    }

    /// Reads until what was written has `text`.
    fn read_until(&mut self, text: &str, so_far: &mut String) {
        while !so_far.contains(text) {
            assert!(self.read(so_far), "it ended without {text:?}: {so_far}");
        }
    }
}

/// Runs `test`, ends it with `end` once it shows the screen, and returns how it ended and what it wrote.
fn outcome(test: &str, end: impl FnOnce(&mut File, &Child)) -> (ExitStatus, String) {
    let mut pty = Pty::open();
    let before = pty.modes();
    // port 1 is nobody's
    let mut child = pty.start(test, "http://127.0.0.1:1");
    let mut written = String::new();
    pty.read_until(ENTERS, &mut written);
    pty.read_until("unreachable", &mut written);
    end(&mut pty.ours, &child);
    while pty.read(&mut written) {}
    let status = child.wait().expect("our child");
    assert!(written.contains(LEAVES), "{written}");
    assert_eq!(pty.modes(), before, "the terminal is not as it was");
    (status, written)
}

/// Tells the process under test which server to look at.
const URL: &str = "TOP_LOOKS_AT";

fn arguments() -> TopArgs {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        top: TopArgs,
    }
    let url = std::env::var(URL).expect("the tests below set it");
    Line::parse_from(["top", "--url", &url, "--interval", "50"]).top
}

/// A server that is awake and refuses what it is asked by POST. Returns its address, and where those requests are told.
fn refusing_server() -> (String, Receiver<String>) {
    let (tell, told) = channel();
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    // it ends with the test's process
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut request = String::new();
            let mut bytes = [0; 4096];
            while !request.contains("\r\n\r\n") {
                let count = stream.read(&mut bytes).expect("a request");
                request.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            let asked = request.split(" HTTP").next().unwrap_or_default();
            let (status, body) = match asked.split_once(' ') {
                Some(("GET", "/health")) => ("200 OK", "{}"),
                Some(("POST", path)) => {
                    tell.send(path.to_owned()).expect("the test waits for it");
                    ("409 Conflict", r#"{"error": {"message": "busy"}}"#)
                }
                _ => ("404 Not Found", "{}"),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            // it may not wait for the answer once it was told to end
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (format!("http://{address}"), told)
}

#[test]
fn a_key_asks_the_server_and_its_answer_is_shown() {
    let mut pty = Pty::open();
    let (url, told) = refusing_server();
    let mut child = pty.start("runs_until_it_is_ended", &url);
    let mut written = String::new();
    pty.read_until("awake", &mut written);
    pty.ours.write_all(b"s").expect("it reads");
    let path = told.recv();
    if path.as_deref() != Ok("/pipeshard/sleep") {
        // it would wait for another key
        child.kill().expect("our child");
        panic!("it asked for {path:?}");
    }
    // cells that stay blank are not written again, so only words are found
    pty.read_until("refused:", &mut written);
    pty.read_until("busy", &mut written);
    pty.ours.write_all(b"q").expect("it reads");
    while pty.read(&mut written) {}
    assert!(child.wait().expect("our child").success(), "{written}");
}

#[test]
fn a_key_ends_it_and_the_terminal_is_as_before() {
    let press_q = |ours: &mut File, _: &Child| ours.write_all(b"q").expect("it reads");
    let (status, written) = outcome("runs_until_it_is_ended", press_q);
    assert!(status.success(), "{written}");
}

#[test]
fn control_c_ends_it_and_the_terminal_is_as_before() {
    let press = |ours: &mut File, _: &Child| ours.write_all(b"\x03").expect("it reads");
    let (status, written) = outcome("runs_until_it_is_ended", press);
    assert!(status.success(), "{written}");
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_as_before() {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let end = |_: &mut File, child: &Child| {
            let pid = i32::try_from(child.id()).expect("a process id");
            // SAFETY: the process is our child and was not waited for, so the id is its own.
            assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        };
        let (status, written) = outcome("runs_until_it_is_ended", end);
        assert!(status.success(), "{written}");
    }
}

#[test]
fn a_panic_gives_the_terminal_back_and_its_message_stays_to_be_read() {
    for test in ["panics_while_it_draws", "panics_in_another_thread"] {
        let (status, written) = outcome(test, |_, _| ());
        assert!(!status.success(), "{written}");
        let left = written.split(LEAVES).nth(1).expect("the screen was left");
        assert!(left.contains("on purpose"), "{written}");
    }
}

#[test]
#[ignore = "the tests above run it on a terminal of its own"]
fn runs_until_it_is_ended() {
    run(&arguments()).expect("an end");
}

fn taken() -> Terminal {
    let mut terminal = Terminal::take().expect("a terminal");
    terminal
        .draw(|frame| frame.render_widget("unreachable", frame.area()))
        .expect("it draws");
    terminal
}

#[test]
#[ignore = "the tests above run it on a terminal of its own"]
fn panics_while_it_draws() {
    let mut terminal = taken();
    terminal
        .draw(|_| panic!("on purpose"))
        .expect("it does not come here");
}

#[test]
#[ignore = "the tests above run it on a terminal of its own"]
fn panics_in_another_thread() {
    let _terminal = taken();
    let other = std::thread::spawn(|| panic!("on purpose"));
    assert!(other.join().is_ok());
}
