//! Why something is not done: a sentence for people, and the budget that would be enough, for programs.

use pipeshard_plan::plan::PlanError;
use std::fmt;

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The sentence.
    pub text: String,
    /// The smallest budget that works, in bytes, where that is why.
    pub minimum: Option<u64>,
}

impl Refusal {
    /// The same with another sentence.
    pub fn saying(&self, text: String) -> Self {
        Refusal {
            text,
            minimum: self.minimum,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Refusal {
            text,
            minimum: None,
        }
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&PlanError> for Refusal {
    fn from(error: &PlanError) -> Self {
        Refusal {
            text: error.to_string(),
            minimum: error.enough(),
        }
    }
}

impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        Refusal::from(&error)
    }
}
