//! The thread that answers those who look at this process through its socket ([`crate::share::visit`]): `pipeshard top`, and scripts.
//! It sleeps until somebody comes. Passes know nothing of it.

use super::control;
use super::gate::Gate;
use super::log;
use super::publish;
use super::runtime::Runtime;
use super::sharing::Outlives;
use crate::share::visit::{self, reply, Answer, Question};
use pipeshard_model::threads::named;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a visitor may take for its question, and to read the answer: others wait meanwhile, and so does who ends the thread.
const PATIENCE: Duration = Duration::from_millis(500);

/// The thread, and the socket, which goes with it.
pub struct Visits {
    /// Shut down to end it.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
    _door: visit::Door,
}

impl Visits {
    /// Begins to answer.
    ///
    /// # Errors
    /// There is no place for a socket, or no thread.
    ///
    /// # Safety
    /// `gate` is alive until this was dropped.
    pub unsafe fn start(gate: &Gate<Runtime>) -> io::Result<Self> {
        let (door, listener) = visit::open()?;
        let (stop, stopped) = UnixStream::pair()?;
        let gate = Outlives(gate);
        let thread = named("pipeshard-visit");
        let thread = thread.spawn(move || serve(&listener, &stopped, gate.gate()))?;
        Ok(Visits {
            stop,
            thread: Some(thread),
            _door: door,
        })
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        // not only closed: a child that was forked has this end too
        let _ = self.stop.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, stopped: &UnixStream, gate: &Gate<Runtime>) {
    let watched = |fd: i32| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let mut both = [watched(listener.as_raw_fd()), watched(stopped.as_raw_fd())];
        // SAFETY: two entries.
        unsafe { libc::poll(both.as_mut_ptr(), 2, -1) };
        if both[1].revents != 0 {
            return;
        }
        if let Ok((stream, _)) = listener.accept() {
            // who asks and goes away, or asks something else, is not told
            let _ = reply(stream, PATIENCE, |question| {
                log::after(|| answer(gate, question))
            });
        }
    }
}

/// As llama-server answers, but for what only it knows.
fn answer(gate: &Gate<Runtime>, question: &Question) -> Answer {
    let found = |body: String| Answer { status: 200, body };
    match (question.path.as_str(), question.body.as_str()) {
        ("/health", "") => found("{}".to_owned()),
        ("/props", "") => found(props(gate)),
        ("/metrics", "") => found(publish::report(&gate.plain()).to_prometheus()),
        (path, body) => {
            let answered = control::answer(Some(gate), path, body);
            Answer {
                status: u16::try_from(answered.status).unwrap_or(500),
                body: answered.body,
            }
        }
    }
}

/// What the process is, and what pipeshard does in it.
fn props(gate: &Gate<Runtime>) -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy();
    let runtime = gate.plain();
    let report = publish::report(&runtime);
    let files = runtime.tenant.weights.model_files();
    serde_json::json!({
        "pipeshard": {
            "engaged": report.engaged,
            "reason": report.reason,
            "device": report.device,
        },
        "process": {
            "number": std::process::id(),
            "program": program,
            "models": files,
        },
    })
    .to_string()
}
