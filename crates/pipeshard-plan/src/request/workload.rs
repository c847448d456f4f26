//! The conversation that plans are weighed by, as the user says it: `prompt=2K,generate=512`.

use std::fmt;
use std::str::FromStr;

use crate::constants::conversation::GENERATED;
use crate::plan::usual_prompt;
use serde::{Deserialize, Serialize};

/// Tokens of the prompt and of the answer, of each sequence. What is not said is the usual: three quarters of the context, 16384 at
/// most, and an answer of 64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatedWorkload {
    /// Tokens of the prompt.
    pub prompt: Option<u32>,
    /// Tokens of the answer.
    pub generate: Option<u32>,
}

/// A workload that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no workload: {why}. Write tokens of the prompt and of the answer, for example prompt=2K,generate=512")]
pub struct WorkloadError {
    text: String,
    why: String,
}

impl StatedWorkload {
    /// Tokens of prompt and answer in a context of `each` tokens per sequence. The answer ends where the context does; a prompt
    /// that leaves no room for one is cut.
    pub fn in_context(self, each: u64) -> (u32, u32) {
        let most = u32::try_from(each.saturating_sub(1))
            .unwrap_or(u32::MAX)
            .max(1);
        let prompt = self.prompt.unwrap_or(usual_prompt(each)).clamp(1, most);
        let room = u32::try_from(each.saturating_sub(u64::from(prompt))).unwrap_or(u32::MAX);
        let generated = self.generate.unwrap_or(GENERATED).min(room).max(1);
        (prompt, generated)
    }

    /// Reports whether the prompt leaves no room for an answer in a context of `each` tokens per sequence.
    pub fn is_too_long(self, each: u64) -> bool {
        self.prompt.is_some_and(|prompt| u64::from(prompt) >= each)
    }
}

/// `2048`, `2K`, `2k`: K is 1024, as for sizes.
fn tokens(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number: Option<u32> = match digits.chars().all(|c| c.is_ascii_digit()) {
        true => digits.parse().ok(),
        false => None,
    };
    let number = number.and_then(|number| number.checked_mul(unit));
    match number {
        Some(number @ 1..) => Ok(number),
        _ => Err(format!("'{text}' is no number of tokens")),
    }
}

impl FromStr for StatedWorkload {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let wrong = |why: String| WorkloadError {
            text: text.to_owned(),
            why,
        };
        let mut workload = StatedWorkload::default();
        for part in text.split(',').map(str::trim) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("'{part}' has no '='")))?;
            let place = match key.trim() {
                "prompt" => &mut workload.prompt,
                "generate" => &mut workload.generate,
                other => return Err(wrong(format!("'{other}' is neither prompt nor generate"))),
            };
            if place.is_some() {
                return Err(wrong(format!("{} is said twice", key.trim())));
            }
            *place = Some(tokens(value.trim()).map_err(wrong)?);
        }
        Ok(workload)
    }
}

impl fmt::Display for StatedWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("prompt", self.prompt), ("generate", self.generate)];
        let said: Vec<String> = (parts.iter())
            .filter_map(|(key, value)| Some(format!("{key}={}", (*value)?)))
            .collect();
        f.write_str(&said.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(prompt: Option<u32>, generate: Option<u32>) -> StatedWorkload {
        StatedWorkload { prompt, generate }
    }

    #[test]
    fn workloads_are_read() {
        let read = |text: &str| text.parse::<StatedWorkload>();
        assert_eq!(
            read("prompt=2K,generate=512"),
            Ok(said(Some(2048), Some(512)))
        );
        assert_eq!(read(" generate = 3k "), Ok(said(None, Some(3072))));
        assert_eq!(read("prompt=7").unwrap().to_string(), "prompt=7");
    }

    #[test]
    fn what_is_no_workload_is_refused_with_a_reason() {
        for (text, part) in [
            ("", "'' has no '='"),
            ("2K", "'2K' has no '='"),
            ("prompt=2M", "'2M' is no number of tokens"),
            ("prompt=0", "'0' is no number"),
            ("prompt=+5", "'+5' is no number"),
            ("prompt=4194304K", "is no number"),
            ("answer=5", "'answer' is neither"),
            ("prompt=1,prompt=2", "prompt is said twice"),
        ] {
            let why = text.parse::<StatedWorkload>().unwrap_err().to_string();
            assert!(
                why.contains(part) && why.contains("prompt=2K,generate=512"),
                "{why}"
            );
        }
    }

    #[test]
    fn prompt_and_answer_fit_the_context() {
        assert_eq!(said(None, None).in_context(4096), (3072, 64));
        assert_eq!(said(Some(1000), None).in_context(1024), (1000, 24));
        assert_eq!(said(Some(5000), Some(9)).in_context(1024), (1023, 1));
        assert!(said(Some(1024), None).is_too_long(1024));
        assert!(!said(Some(1023), None).is_too_long(1024));
    }
}
