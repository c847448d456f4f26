//! The text of an evaluation that a host fetches, from its begin until the terminal state was fetched.

use crate::abi::execution;
use crate::outputs::Outputs;
use std::time::Duration;

/// How long a host is made to wait if it says nothing sensible, in seconds, and at most.
const USUAL: f32 = 60.0;
const LONGEST: f32 = 24.0 * 3600.0;

/// What was handed out and not released.
pub struct Handed {
    pub text: String,
    pub outputs: Outputs,
    pub state: u32,
}

/// An evaluation whose text is fetched, until its terminal state was.
pub struct Poll {
    /// What came since it was fetched last.
    pub text: String,
    /// The terminal state.
    pub end: Option<u32>,
    handed: Option<Handed>,
    patience: Duration,
}

impl Poll {
    /// `seconds`: how long getResults waits.
    pub fn new(seconds: f32) -> Self {
        let seconds = match seconds.is_finite() && seconds > 0.0 {
            true => seconds.min(LONGEST),
            false => USUAL,
        };
        Poll {
            text: String::new(),
            end: None,
            handed: None,
            patience: Duration::from_secs_f32(seconds),
        }
    }

    /// What the host gets now, if there is something: the same until it is released.
    pub fn hand_out(&mut self) -> Option<&Handed> {
        if self.handed.is_none() {
            let text = std::mem::take(&mut self.text);
            let state = match (text.is_empty(), self.end) {
                (false, _) => execution::PENDING,
                (true, Some(end)) => end,
                (true, None) => return None,
            };
            self.handed = Some(Handed {
                outputs: Outputs::of(&text),
                text,
                state,
            });
        }
        self.handed.as_ref()
    }

    /// What was handed out, which the host has done with.
    pub fn release(&mut self) -> Option<Handed> {
        self.handed.take()
    }

    /// How long getResults waits.
    pub fn patience(&self) -> Duration {
        self.patience
    }
}
