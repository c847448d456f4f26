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
    /// The program and its models; none of a server that is asked over HTTP.
    pub program: Option<String>,
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
            program: None,
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
            program: program_of(&props["process"]),
            device: ours["device"].as_str().map(plain),
            limits,
            counters,
            remarks,
        }
    }
}

/// A program and the names of its models' files.
fn program_of(process: &Value) -> Option<String> {
    let program = process["program"].as_str()?;
    let files = process["models"].as_array().map_or(&[][..], Vec::as_slice);
    let names = files.iter().filter_map(Value::as_str).map(|file| {
        let name = std::path::Path::new(file).file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    });
    let words: Vec<String> = std::iter::once(program.to_owned()).chain(names).collect();
    Some(plain(&words.join(" ")))
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

/// Why it is asleep. Memory decides where it is known: a server that llama.cpp put to sleep may have been woken by a key.
fn asleep(props: &Value, limits: Option<&Limits>) -> Option<&'static str> {
    const IDLE: &str = "nothing was asked for some time; the next request wakes it";
    let idle = props["is_sleeping"] == true;
    let Some(limits) = limits else {
        return idle.then_some(IDLE);
    };
    let weights = limits.held.resident + limits.held.slots + limits.held.vision;
    match (weights, idle) {
        (1.., _) => None,
        (0, true) => Some(IDLE),
        (0, false) => Some("no device memory is held for weights; the next request takes it, or w"),
    }
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
mod tests;
