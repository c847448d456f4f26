//! The counters of `GET /metrics` that are shown, out of Prometheus' text format.

use serde::Serialize;

/// Counters since the server started, and how many requests are in work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Tokens of prompts that were computed. llama.cpp's, as the next two: only llama-server counts them, and tells over HTTP.
    pub prompt_tokens: Option<f64>,
    /// Tokens of answers. llama.cpp counts an answer when it ends, not while it is written.
    pub answered_tokens: Option<f64>,
    /// Requests that are in work now.
    pub requests: Option<f64>,
    /// Ubatches in which some operation saw 32 rows or more.
    pub prompt_passes: u64,
    /// All other ubatches: each makes one token per sequence.
    pub decode_passes: u64,
    /// Bytes of weights that were copied to the device to be used once.
    pub streamed_bytes: u64,
    /// Bytes of weights that were copied to the device to stay.
    pub uploaded_bytes: u64,
    /// Splits for whose weights no copy had been submitted yet.
    pub stalls: u64,
    /// Errors.
    pub errors: u64,
    /// Changes of the budget.
    pub budget_changes: u64,
}

impl Counters {
    /// Reads them. None where pipeshard's are missing, because it is off.
    pub fn read(text: &str) -> Option<Self> {
        let one = |name: &str| samples(text, name).map(|(_, value)| value).next();
        let whole = |name: &str| one(name).map(whole);
        let passes = |tier: &str| {
            let label = format!("tier=\"{tier}\"");
            samples(text, "pipeshard_passes_total")
                .find(|(labels, _)| labels.contains(&label))
                .map(|(_, value)| self::whole(value))
        };
        Some(Self {
            prompt_tokens: one("llamacpp:prompt_tokens_total"),
            answered_tokens: one("llamacpp:tokens_predicted_total"),
            requests: one("llamacpp:requests_processing"),
            prompt_passes: passes("prompt")?,
            decode_passes: passes("decode")?,
            streamed_bytes: whole("pipeshard_streamed_bytes_total")?,
            uploaded_bytes: whole("pipeshard_uploaded_bytes_total")?,
            stalls: whole("pipeshard_stalls_total")?,
            errors: whole("pipeshard_errors_total")?,
            budget_changes: whole("pipeshard_budget_changes_total")?,
        })
    }

    /// All weights that went over the link, in bytes.
    pub fn link_bytes(&self) -> u64 {
        self.streamed_bytes.saturating_add(self.uploaded_bytes)
    }
}

/// What is not a number or negative counts as 0; counters beyond 2^53 lose their last digits, of which no rate depends.
fn whole(value: f64) -> u64 {
    value as u64
}

/// Labels and value of each sample of this name.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        // a longer name, or a sample of this one
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        let (labels, value) = rest.rsplit_once(' ')?;
        let value: f64 = value.parse().ok()?;
        value.is_finite().then_some((labels, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard::report::{PassCounts, Report};

    const LLAMA: &str = "# TYPE llamacpp:prompt_tokens_total counter\n\
        llamacpp:prompt_tokens_total 1.5e+06\nllamacpp:tokens_predicted_total 321\nllamacpp:requests_processing 2\n";

    #[test]
    fn what_a_report_says_is_read() {
        let report = Report {
            bytes_streamed: 7 << 30,
            bytes_uploaded: 3 << 30,
            stalls: 5,
            budget_changes: 4,
            passes: PassCounts {
                prompt: 11,
                decode: 222,
            },
            errors: vec!["one".to_owned()],
            ..Report::default()
        };
        let text = format!("{LLAMA}{}", report.to_prometheus());
        let read = Counters::read(&text).expect("counters");
        let expected = Counters {
            prompt_tokens: Some(1.5e6),
            answered_tokens: Some(321.0),
            requests: Some(2.0),
            prompt_passes: 11,
            decode_passes: 222,
            streamed_bytes: 7 << 30,
            uploaded_bytes: 3 << 30,
            stalls: 5,
            errors: 1,
            budget_changes: 4,
        };
        assert_eq!(read, expected);
        assert_eq!(read.link_bytes(), 10 << 30);
    }

    #[test]
    fn a_server_without_pipeshard_has_none() {
        assert_eq!(Counters::read(LLAMA), None);
        assert_eq!(Counters::read(""), None);
    }

    #[test]
    fn names_are_compared_in_full() {
        let text = "a_total_more 1\na_total{x=\"b c\"} 2\na_total NaN\na_total 3\na_total\n";
        let found: Vec<_> = samples(text, "a_total").collect();
        assert_eq!(found, [("{x=\"b c\"}", 2.0), ("", 3.0)]);
    }
}
