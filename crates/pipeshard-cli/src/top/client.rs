//! Asks a server over HTTP, or a process of this user through its socket.

use super::look::{Answer, Answers, Heard, Look};
use super::wish::{Request, DEADLINE_MS};
use pipeshard::share::visit::{self, Process};
use std::io::ErrorKind;
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// How long a look waits for each answer. `GET /metrics` waits for the batch that is computed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A change is answered after a batch: longer than the server itself waits.
const PATIENCE_FOR_CHANGES: Duration = Duration::from_millis(DEADLINE_MS + 5_000);

/// The most of an answer that is read. `/props` has the chat template.
const LARGEST: u64 = 8 << 20;

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// The address of a server, `http://HOST:PORT`, perhaps with a prefix.
    Http(String),
    /// A process of this user on this machine.
    Process(Process),
}

impl std::str::FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "write an address such as http://127.0.0.1:8080";
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(
                    "https is not supported: give the server's own http address, for example through ssh -L 8080:127.0.0.1:8080 HOST"
                        .to_owned(),
                )
            }
            Some((scheme, _)) => return Err(format!("{scheme}:// is not http://: {EXAMPLE}")),
            None => text,
        };
        let address = format!("http://{}", rest.trim_end_matches('/'));
        let parsed: Result<ureq::http::Uri, _> = address.parse();
        let usable = parsed.is_ok_and(|uri| {
            let host = uri.host().unwrap_or_default();
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let only_host = authority == host;
            // a port that is not a number is none, and so is `user@`
            let with_port =
                (uri.port_u16()).is_some_and(|port| authority == format!("{host}:{port}"));
            !host.is_empty() && (only_host || with_port) && uri.query().is_none()
        });
        match usable && !rest.contains('#') {
            true => Ok(Self::Http(address)),
            false => Err(EXAMPLE.to_owned()),
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Url::Http(address) => f.write_str(address),
            Url::Process(process) => write!(f, "process {}", process.number),
        }
    }
}

/// Asks one server.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    url: Url,
    key: Option<String>,
}

impl Client {
    /// Of the server at `url`, with an API key where it wants one. Asks nothing yet.
    pub fn new(url: Url, key: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // a proxy of the environment is for the internet, and would be handed the key
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Self {
            agent: config.into(),
            url,
            key,
        }
    }

    /// One look. Waits for each of four answers for two seconds at most.
    pub fn look(&self) -> Look {
        let health = self.get("/health");
        let ready = matches!(health, Ok(Answer { status: 200, .. }));
        let ask = |path| match ready {
            true => self.get(path),
            false => Err("it was not asked".to_owned()),
        };
        Look::of(&Answers {
            props: ask("/props"),
            limits: ask("/pipeshard"),
            metrics: ask("/metrics"),
            health,
        })
    }

    /// Asks for a change.
    pub fn post(&self, request: &Request) -> Heard {
        if let Url::Process(process) = &self.url {
            let body = request.body.to_string();
            return through_socket(process, request.path, body, PATIENCE_FOR_CHANGES);
        }
        let mut post = self.agent.post(format!("{}{}", self.url, request.path));
        if let Some(key) = &self.key {
            post = post.header("Authorization", format!("Bearer {key}"));
        }
        let post = post.header("Content-Type", "application/json");
        let post = post
            .config()
            .timeout_global(Some(PATIENCE_FOR_CHANGES))
            .build();
        self.heard(post.send(request.body.to_string()), PATIENCE_FOR_CHANGES)
    }

    fn get(&self, path: &str) -> Heard {
        if let Url::Process(process) = &self.url {
            return through_socket(process, path, String::new(), PATIENCE);
        }
        let mut get = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            get = get.header("Authorization", format!("Bearer {key}"));
        }
        let get = get.config().timeout_global(Some(PATIENCE)).build();
        self.heard(get.call(), PATIENCE)
    }

    fn heard(&self, response: Result<Response<Body>, ureq::Error>, patience: Duration) -> Heard {
        let why = |error| self.silence(&error, patience);
        let mut response = response.map_err(why)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LARGEST);
        Ok(Answer {
            status,
            body: body.read_to_string().map_err(why)?,
        })
    }

    /// Why there is no answer, and what to do.
    fn silence(&self, error: &ureq::Error, patience: Duration) -> String {
        let url = &self.url;
        match error {
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                format!("nothing listens at {url}: start llama-server there, or name another with --url")
            }
            ureq::Error::Io(error) if error.kind() == ErrorKind::TimedOut => self.late(patience),
            ureq::Error::Timeout(_) => self.late(patience),
            ureq::Error::HostNotFound => format!("no host has the name in {url}: check --url"),
            other => format!("{url} cannot be asked: {other}"),
        }
    }

    fn late(&self, patience: Duration) -> String {
        format!(
            "{} did not answer within {} s",
            self.url,
            patience.as_secs()
        )
    }
}

/// The answer of a process, or why there is none.
fn through_socket(process: &Process, path: &str, body: String, patience: Duration) -> Heard {
    let question = visit::Question {
        path: path.to_owned(),
        body,
    };
    let answered = visit::ask(&process.socket, &question, patience);
    let number = process.number;
    let answered = answered.map_err(|why| match why.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
            format!("process {number} has ended")
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "process {number} did not answer within {} s",
            patience.as_secs()
        ),
        _ => format!("process {number} cannot be asked: {why}"),
    });
    answered.map(|visit::Answer { status, body }| Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::super::look::State;
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn an_address_is_http_with_a_host() {
        let url = |text: &str| text.parse::<Url>().map(|url| url.to_string());
        let usual = Ok("http://127.0.0.1:8080".to_owned());
        assert_eq!(url("http://127.0.0.1:8080"), usual);
        assert_eq!(url("127.0.0.1:8080/"), usual);
        assert_eq!(
            url("http://[::1]:8080/prefix/"),
            Ok("http://[::1]:8080/prefix".to_owned())
        );
        assert!(url("https://there").expect_err("no TLS").contains("ssh -L"));
        for wrong in [
            "",
            "http://",
            "ftp://there",
            "http://a b",
            "http://a?b=c",
            "http://a#b",
            "a:port",
            "a:99999",
            "me@a",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    /// Answers `answers` requests with what `answer` makes of their first line and Authorization, and returns the port.
    fn server(answers: usize, answer: fn(&str, &str) -> String) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for _ in 0..answers {
                let (mut stream, _) = listener.accept().expect("a client");
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a byte") == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).expect("a text");
                let key = head
                    .lines()
                    .find(|line| line.to_lowercase().starts_with("authorization"));
                let said = answer(
                    head.lines().next().expect("a line"),
                    key.unwrap_or_default(),
                );
                stream.write_all(said.as_bytes()).expect("a reader");
            }
        });
        port
    }

    fn response(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn client(port: u16, key: Option<&str>) -> Client {
        let url = format!("http://127.0.0.1:{port}").parse().expect("a URL");
        Client::new(url, key.map(str::to_owned))
    }

    #[test]
    fn where_nothing_listens_it_says_so() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let look = client(port, None).look();
        assert_eq!(look.state, State::Unreachable);
        let reason = look.reason.expect("a reason");
        assert!(
            reason.contains("nothing listens") && reason.contains("--url"),
            "{reason}"
        );
    }

    #[test]
    fn the_key_goes_with_each_request_and_errors_have_a_body() {
        let port = server(4, |line, key| {
            match (line.split(' ').nth(1), key.ends_with("Bearer secret")) {
                (_, false) => response("401 Unauthorized", ""),
                (Some("/health"), _) => response("200 OK", "{}"),
                (Some("/props"), _) => response("200 OK", r#"{"pipeshard": {"engaged": true}}"#),
                (Some("/pipeshard"), _) => {
                    response("409 Conflict", r#"{"error": {"message": "no model"}}"#)
                }
                _ => response("501 Not Implemented", "{}"),
            }
        });
        let look = client(port, Some("secret")).look();
        assert_eq!(look.state, State::Awake);
        let remarks = look.remarks.join("\n");
        assert!(
            remarks.contains("no model") && remarks.contains("--metrics"),
            "{remarks}"
        );
    }

    #[test]
    fn a_server_that_does_not_take_the_key_is_locked() {
        let port = server(4, |line, _| match line.split(' ').nth(1) {
            Some("/health") => response("200 OK", "{}"),
            _ => response("401 Unauthorized", "{}"),
        });
        assert_eq!(client(port, None).look().state, State::Locked);
    }

    #[test]
    fn where_it_is_sent_elsewhere_it_does_not_go() {
        let port = server(1, |_, _| {
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                .to_owned()
        });
        let look = client(port, Some("secret")).look();
        assert_eq!(look.state, State::Unreachable);
        assert!(look.reason.expect("a reason").contains("302"));
    }
}
