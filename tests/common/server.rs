//! llama-server, asked over HTTP.

use super::tool;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A server that ends with the test.
pub struct Server {
    child: Child,
    port: u16,
    /// Reads its log, or it would wait for a reader.
    reader: Option<JoinHandle<()>>,
    closes: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over a connection of its own; the status line and the body.
fn request(port: u16, head: &str, body: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_string(), body.to_string()))
}

impl Server {
    /// Of `model`, ready to be asked.
    pub fn start(model: &Path, flags: &[&str]) -> Self {
        let model = model.display().to_string();
        Self::start_with(&[&["-m", &model], flags].concat())
    }

    /// Of models that the flags name, ready to be asked.
    pub fn start_with(flags: &[&str]) -> Self {
        Self::start_in(&[], flags)
    }

    /// The same with variables of its own.
    pub fn start_in(variables: &[(&str, &str)], flags: &[&str]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let mut command = tool("llama-server");
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command
            .args(flags)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("a server");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let closes = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&closes);
        let reader = std::thread::spawn(move || {
            log.lines()
                .take_while(|_| !closed.load(Ordering::SeqCst))
                .for_each(drop);
        });
        let mut server = Server {
            child,
            port,
            reader: Some(reader),
            closes,
        };
        let start = Instant::now();
        while request(port, "GET /health", "").is_none_or(|(status, _)| !status.contains("200")) {
            let ended = server.child.try_wait().expect("our child");
            assert!(ended.is_none(), "the server ended at start: {ended:?}");
            assert!(
                start.elapsed() < Duration::from_secs(90),
                "the server does not become ready"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its status line and what it answers to a request with a body.
    pub fn post(&self, path: &str, body: &Value) -> (String, Value) {
        let head = format!("POST {path}");
        let (status, answer) = request(self.port, &head, &body.to_string()).expect("an answer");
        let (start, end) = (answer.find('{'), answer.rfind('}'));
        let json = start.zip(end).map(|(start, end)| &answer[start..=end]);
        let json = serde_json::from_str(json.unwrap_or("null"));
        (status, json.expect("JSON in one piece"))
    }

    /// Its status line and what it answers to a request without a body.
    pub fn get(&self, path: &str) -> (String, Value) {
        let (status, answer) = request(self.port, &format!("GET {path}"), "").expect("an answer");
        let (start, end) = (answer.find('{'), answer.rfind('}'));
        let json = start.zip(end).map(|(start, end)| &answer[start..=end]);
        let json = serde_json::from_str(json.unwrap_or("null"));
        (status, json.expect("JSON in one piece"))
    }

    /// What it answers to `POST /completion`.
    pub fn complete(&self, body: &Value) -> Value {
        let (status, answer) =
            request(self.port, "POST /completion", &body.to_string()).expect("an answer");
        assert!(status.contains("200"), "{status}: {answer}");
        let start = answer.find('{').expect("JSON");
        let end = answer.rfind('}').expect("JSON");
        serde_json::from_str(&answer[start..=end]).expect("JSON in one piece")
    }

    /// Whoever read its log is gone: it gets an error for what it writes from now on.
    pub fn close_log(&mut self) {
        self.closes.store(true, Ordering::SeqCst);
        // a line is what the reader notices by, and each completion is logged
        while self.reader.as_ref().is_some_and(|r| !r.is_finished()) {
            self.complete(&serde_json::json!({"prompt": "a", "n_predict": 1}));
        }
        let reader = self.reader.take().expect("it is closed once");
        reader.join().expect("the reader");
    }

    /// Asks it to stop, and says how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: the process is our child and has not been waited for, so the id is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the server does not stop"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
