//! The slot `json`: parameters of an evaluation, by the names that llama-server's requests have for them.

use crate::abi::result;
use crate::refusal::{tell, Kind, Refusal};
use serde_json::{Map, Value};

/// What a slot says.
#[derive(Default)]
pub struct Request {
    pub max_tokens: Option<i32>,
    pub temperature: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub seed: Option<u32>,
    pub stop: Vec<String>,
    pub grammar: Option<String>,
    pub json_schema: Option<String>,
}

/// Takes a member out, as `read` has it; another kind of value is refused.
fn taken<T>(
    given: &mut Map<String, Value>,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    match given.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(Refusal::invalid(format!(
                "slot 'json': {name} is {value}, which it cannot be"
            ))),
        },
    }
}

fn float(value: &Value) -> Option<f32> {
    value
        .as_f64()
        .map(|value| value as f32)
        .filter(|value| value.is_finite())
}

fn integer(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|value| i32::try_from(value).ok())
}

fn seed(value: &Value) -> Option<u32> {
    match value.as_i64()? {
        // as llama-server has it: any
        -1 => Some(u32::MAX),
        value => u32::try_from(value).ok(),
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::Array(all) => all.iter().map(text).collect(),
        value => text(value).map(|one| vec![one]),
    }
}

impl Request {
    /// # Errors
    /// It is no JSON object, or a member has a value that it cannot have.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        let parsed: Result<Map<String, Value>, _> = serde_json::from_str(text);
        let mut given = parsed.map_err(|why| {
            Refusal::new(
                result::JSON,
                format!("slot 'json' is no JSON object: {why}"),
            )
        })?;
        let given = &mut given;
        let schema = |value: &Value| value.is_object().then(|| value.to_string());
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let request = Request {
            max_tokens: taken(given, "n_predict", integer)?.or(taken(
                given,
                "max_tokens",
                integer,
            )?),
            temperature: taken(given, "temperature", float)?,
            top_k: taken(given, "top_k", integer)?,
            top_p: taken(given, "top_p", float)?,
            min_p: taken(given, "min_p", float)?,
            repeat_penalty: taken(given, "repeat_penalty", float)?,
            seed: taken(given, "seed", seed)?,
            stop: taken(given, "stop", texts)?.unwrap_or_default(),
            grammar: taken(given, "grammar", text)?,
            json_schema: taken(given, "json_schema", schema)?,
        };
        let unknown: Vec<&str> = given.keys().map(String::as_str).collect();
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            tell(
                Kind::Warning,
                &format!("slot 'json': {names} not known, and not used"),
            );
        }
        Ok(request)
    }
}
