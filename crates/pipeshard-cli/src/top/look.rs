//! What one look at a server shows, out of its answers. Asks nothing by itself.

use super::metrics::Counters;
use pipeshard::report::Limits;
use serde::Serialize;
use serde_json::Value;

/// An answer over HTTP; the error is a sentence: nothing answered, and why.
pub type Heard = Result<Answer, String>;

/// An answer with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    /// As text.
    pub body: String,
}

/// What the four requests of a look were answered.
#[derive(Debug, Clone)]
pub struct Answers {
    /// `GET /health`
    pub health: Heard,
    /// `GET /props`
    pub props: Heard,
    /// `GET /pipeshard`
    pub limits: Heard,
    /// `GET /metrics`
    pub metrics: Heard,
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers, and weights are on the device.
    Awake,
    /// It holds no device memory for weights.
    Asleep,
    /// It loads a model.
    Loading,
    /// It wants an API key.
    Locked,
    /// Nothing answers, or not llama-server.
    Unreachable,
}

impl State {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            State::Awake => "awake",
            State::Asleep => "asleep",
            State::Loading => "loading",
            State::Locked => "locked",
            State::Unreachable => "unreachable",
        }
    }
}

/// One look at a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Look {
    /// What it does.
    pub state: State,
    /// Why, and what to do; none where it is awake.
    pub reason: Option<String>,
    /// The device's name and description.
    pub device: Option<String>,
    /// What is possible and held, in bytes; none where the server does not tell.
    pub limits: Option<Limits>,
    /// Counters; none where the server does not tell.
    pub counters: Option<Counters>,
    /// What is missing, and the flag that shows it.
    pub remarks: Vec<String>,
}

impl Look {
    /// A server of which nothing is known but this.
    pub fn only(state: State, reason: String) -> Self {
        Self {
            state,
            reason: Some(reason),
            device: None,
            limits: None,
            counters: None,
            remarks: Vec::new(),
        }
    }

    /// What the answers say.
    pub fn of(answers: &Answers) -> Self {
        if let Some(early) = not_ready(&answers.health) {
            return early;
        }
        if [&answers.props, &answers.limits, &answers.metrics]
            .iter()
            .any(|heard| matches!(heard, Ok(Answer { status: 401, .. })))
        {
            let reason = "the server does not accept the API key, or wants one: give --api-key KEY";
            return Self::only(State::Locked, reason.to_owned());
        }
        let props = json_of(&answers.props);
        if props["role"] == "router" {
            let reason =
                "this is a router: give the address of a model's own server, which its log shows";
            return Self::only(State::Awake, reason.to_owned());
        }
        let mut remarks = Vec::new();
        let limits = limits_of(&answers.limits, &props, &mut remarks);
        let counters = counters_of(&answers.metrics, &mut remarks);
        let ours = &props["pipeshard"];
        if ours["engaged"] == false {
            let why = ours["reason"].as_str().unwrap_or("the log says why");
            remarks.push(plain(&format!("pipeshard is off, because {why}")));
        }
        let (state, reason) = match asleep(&props, limits.as_ref()) {
            Some(reason) => (State::Asleep, Some(reason.to_owned())),
            None => (State::Awake, None),
        };
        Self {
            state,
            reason,
            device: ours["device"].as_str().map(plain),
            limits,
            counters,
            remarks,
        }
    }
}

/// What `GET /health` says, where the server cannot be asked more.
fn not_ready(health: &Heard) -> Option<Look> {
    let answer = match health {
        Ok(answer) => answer,
        Err(why) => return Some(Look::only(State::Unreachable, plain(why))),
    };
    match answer.status {
        200 => None,
        503 => {
            let reason = "the model is being loaded: wait";
            Some(Look::only(State::Loading, reason.to_owned()))
        }
        status => {
            let reason = format!(
                "GET /health was answered with {status}: is this llama-server? Check --url"
            );
            Some(Look::only(State::Unreachable, reason))
        }
    }
}

/// Why it is asleep.
fn asleep(props: &Value, limits: Option<&Limits>) -> Option<&'static str> {
    if props["is_sleeping"] == true {
        return Some("nothing was asked for some time; the next request wakes it");
    }
    let held = limits?.held;
    (held.resident + held.slots + held.vision == 0)
        .then_some("no device memory is held for weights; the next request takes it, or w")
}

fn limits_of(heard: &Heard, props: &Value, remarks: &mut Vec<String>) -> Option<Limits> {
    const CONTROL: &str =
        "add --pipeshard-control to the server's flags to see and change its budget";
    const OFF: &str =
        "pipeshard is off: add --pipeshard-vram SIZE and --pipeshard-control to the server's flags";
    let answer = match heard {
        Ok(answer) => answer,
        Err(why) => {
            remarks.push(plain(&format!("GET /pipeshard: {why}")));
            return None;
        }
    };
    match answer.status {
        200 => {
            let limits = serde_json::from_str(&answer.body).ok();
            if limits.is_none() {
                remarks.push("GET /pipeshard has an answer of another version of pipeshard: use the server's own".to_owned());
            }
            return limits;
        }
        404 | 501 if props["pipeshard"].is_null() && !props.is_null() => {
            remarks.push(OFF.to_owned())
        }
        404 => remarks.push(CONTROL.to_owned()),
        501 => remarks.push(OFF.to_owned()),
        // llama.cpp frees the model where it sleeps by itself
        409 if props["is_sleeping"] == true => {}
        status => remarks.push(format!("GET /pipeshard: {}", message(answer, status))),
    }
    None
}

fn counters_of(heard: &Heard, remarks: &mut Vec<String>) -> Option<Counters> {
    match heard {
        Ok(answer) if answer.status == 200 => Counters::read(&answer.body),
        Ok(Answer {
            status: 404 | 501, ..
        }) => {
            remarks.push(
                "add --metrics to the server's flags to see tokens, link and stalls".to_owned(),
            );
            None
        }
        Ok(answer) => {
            remarks.push(format!("GET /metrics: {}", message(answer, answer.status)));
            None
        }
        Err(why) => {
            remarks.push(plain(&format!(
                "GET /metrics: {why} (a long batch is being computed?)"
            )));
            None
        }
    }
}

/// Null where there is no JSON.
fn json_of(heard: &Heard) -> Value {
    match heard {
        Ok(answer) if answer.status == 200 => {
            serde_json::from_str(&answer.body).unwrap_or_default()
        }
        _ => Value::Null,
    }
}

/// What an error says, as llama-server writes it.
pub fn message(answer: &Answer, status: u16) -> String {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    match body["error"]["message"].as_str() {
        Some(message) => plain(message),
        None => format!("status {status}"),
    }
}

/// Without characters that a terminal would obey: the text is another program's.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard::report::MemoryHeld;
    use serde_json::json;

    fn ok(body: &impl ToString) -> Heard {
        said(200, body)
    }

    fn said(status: u16, body: &impl ToString) -> Heard {
        let body = body.to_string();
        Ok(Answer { status, body })
    }

    fn error(status: u16, message: &str) -> Heard {
        said(
            status,
            &json!({"error": {"code": status, "message": message}}),
        )
    }

    fn limits(resident: u64) -> Limits {
        Limits {
            budget: 100,
            held: MemoryHeld {
                resident,
                kv: 5,
                ..MemoryHeld::default()
            },
            ..Limits::default()
        }
    }

    fn usual() -> Answers {
        let report = pipeshard::report::Report::default();
        Answers {
            health: ok(&json!({"status": "ok"})),
            props: ok(
                &json!({"is_sleeping": false, "pipeshard": {"engaged": true, "device": "SIM0"}}),
            ),
            limits: ok(&json!(limits(50))),
            metrics: ok(&report.to_prometheus()),
        }
    }

    #[test]
    fn a_server_with_all_flags_is_awake_and_nothing_is_missing() {
        let look = Look::of(&usual());
        assert_eq!((look.state, look.reason), (State::Awake, None));
        assert_eq!(look.device.as_deref(), Some("SIM0"));
        assert_eq!(look.limits, Some(limits(50)));
        assert!(look.counters.is_some());
        assert!(look.remarks.is_empty(), "{:?}", look.remarks);
    }

    #[test]
    fn health_says_whether_there_is_more_to_ask() {
        let health = |health| Look::of(&Answers { health, ..usual() });
        assert_eq!(health(error(503, "Loading model")).state, State::Loading);
        let gone = health(Err("nothing listens there".to_owned()));
        assert_eq!(gone.state, State::Unreachable);
        assert_eq!(gone.reason.as_deref(), Some("nothing listens there"));
        let other = health(said(404, &"<html>"));
        assert_eq!(other.state, State::Unreachable);
        assert!(other.reason.expect("a reason").contains("404"));
    }

    #[test]
    fn a_missing_flag_is_named() {
        let missing = |answers: Answers| Look::of(&answers).remarks.join("\n");
        let closed = missing(Answers {
            limits: error(404, "File Not Found"),
            ..usual()
        });
        assert!(
            closed.contains("--pipeshard-control") && !closed.contains("--pipeshard-vram"),
            "{closed}"
        );
        let unmeasured = missing(Answers {
            metrics: error(501, "no metrics"),
            ..usual()
        });
        assert!(unmeasured.contains("--metrics"), "{unmeasured}");
        for limits in [error(404, "File Not Found"), error(501, "pipeshard is off")] {
            let stock = Answers {
                limits,
                props: ok(&json!({})),
                ..usual()
            };
            let stock = missing(stock);
            assert!(stock.contains("--pipeshard-vram SIZE"), "{stock}");
        }
        let off = json!({"pipeshard": {"engaged": false, "reason": "there is no GPU"}});
        let off = missing(Answers {
            props: ok(&off),
            ..usual()
        });
        assert!(off.contains("because there is no GPU"), "{off}");
        let locked = Look::of(&Answers {
            limits: error(401, "Invalid API Key"),
            ..usual()
        });
        assert_eq!(locked.state, State::Locked);
        assert!(locked.reason.expect("a reason").contains("--api-key"));
    }

    #[test]
    fn it_is_asleep_where_no_weights_are_held_or_llama_cpp_sleeps() {
        let given_back = Answers {
            limits: ok(&json!(limits(0))),
            ..usual()
        };
        assert_eq!(Look::of(&given_back).state, State::Asleep);
        let idle = Answers {
            props: ok(&json!({"is_sleeping": true, "pipeshard": {"engaged": true}})),
            limits: error(409, "no model is loaded"),
            ..usual()
        };
        let idle = Look::of(&idle);
        assert_eq!(idle.state, State::Asleep);
        assert!(idle.remarks.is_empty(), "{:?}", idle.remarks);
    }

    #[test]
    fn a_router_is_not_asked_for_a_budget() {
        let look = Look::of(&Answers {
            props: ok(&json!({"role": "router"})),
            ..usual()
        });
        assert!(look.reason.expect("a reason").contains("router"));
    }

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        let props = json!({"pipeshard": {"engaged": true, "device": "a\u{1b}[2Jb\nc"}});
        let look = Look::of(&Answers {
            props: ok(&props),
            ..usual()
        });
        assert_eq!(look.device.as_deref(), Some("a [2Jb c"));
        assert_eq!(
            message(&error(409, "\u{7}no").expect("an answer"), 409),
            " no"
        );
    }
}
