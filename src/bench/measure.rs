//! From what a process said, and left behind, to a measurement.

use std::path::Path;
use std::time::Instant;

use super::analysis::{setting_text, Stats};
use super::command::{starts_a_test, BenchLine};
use super::process::Finished;
use super::table::rate;
use super::types::{Counted, Measurement, Outcome, Test, Work};
use super::MIB;
use crate::report::Report;
use crate::size::ByteSize;

/// The setting of `--fit` that was held so many bytes below its budget.
pub fn slack_setting(slack: u64) -> String {
    match slack {
        0 => String::new(),
        slack => format!("-{} MiB", slack / MIB),
    }
}

/// Reads such a setting.
pub fn parse_slack(setting: &str) -> Option<u64> {
    let mib = setting.strip_prefix('-')?.strip_suffix(" MiB")?;
    mib.parse::<u64>().ok()?.checked_mul(MIB)
}

/// What `llama-bench` says about a test.
#[derive(Debug)]
pub struct TestResult {
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
    /// When it began.
    pub from: Instant,
    /// When it was done.
    pub to: Instant,
}

/// The result of a test, and the stretch of time in which it ran: from when `llama-bench` said that it starts.
pub fn result_of(finished: &Finished, test: Test) -> Option<TestResult> {
    let lines = finished.said.iter().filter(|s| !s.error);
    let (said, line) = lines
        .filter_map(|s| Some((s, BenchLine::parse(&s.text)?)))
        .find(|(_, line)| line.is_of(test))?;
    let start = finished
        .said
        .iter()
        .filter(|s| s.error && s.at <= said.at && starts_a_test(&s.text))
        .map(|s| s.at)
        .next_back();
    Some(TestResult {
        seconds: line.seconds(),
        from: start.unwrap_or(finished.start),
        to: said.at,
    })
}

/// A file of JSON; none where it is missing or something else.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// What a report says about one repetition. Only a process with a single test can tell its bytes.
pub fn counted(report: &Report, test: Test, repetitions: u32, tests: &[Test]) -> Counted {
    let repetitions = f64::from(repetitions);
    let runs = match test.work {
        Work::FirstToken => 1.0,
        Work::Prompt => repetitions + 1.0,
        // the warm-up generates one token; bytes are those of a token
        Work::Decode => repetitions * f64::from(test.tokens) + 1.0,
    };
    let alone = tests.len() == 1 && test.depth == 0;
    let passes = (report.passes.prompt + report.passes.decode).max(1) as f64;
    Counted {
        bytes_streamed: match alone {
            true => (report.bytes_streamed as f64 / runs) as u64,
            false => 0,
        },
        stalls: report.stalls,
        reallocations: report.reallocations_after_reserve,
        other_waits: report.host_waits.other,
        hand_overs_per_pass: report.host_waits.hand_overs as f64 / passes,
        peak: report.peak.total,
        not_resident: match alone {
            true => report.not_resident.clone(),
            false => Vec::new(),
        },
    }
}

/// A measurement in one line.
pub fn told(m: &Measurement) -> String {
    let peak = m
        .peak
        .map_or_else(String::new, |p| format!(", peak {}", ByteSize(p)));
    let what = match (&m.outcome, Stats::of(&m.seconds)) {
        (Outcome::Failed { reason }, _) => format!("failed: {reason}"),
        (_, None) => "no repetition".to_owned(),
        (outcome, Some(stats)) => {
            let over = match outcome {
                Outcome::OverBudget { bytes } => {
                    format!(", {} OVER the budget", ByteSize(*bytes))
                }
                _ => String::new(),
            };
            let figure = match m.test.work {
                Work::FirstToken => format!("{:.2} s", stats.mean),
                _ => {
                    let speed = f64::from(m.test.tokens) / stats.mean.max(1e-12);
                    format!("{} token/s", rate(speed))
                }
            };
            format!("{figure} ±{:.0} %{peak}{over}", stats.relative() * 100.0)
        }
    };
    let setting = setting_text(&m.setting, m.ubatch);
    format!("  {} {} {setting}: {what}", m.approach.title(), m.test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overruns_are_remembered_in_the_setting() {
        assert_eq!(slack_setting(48 * MIB), "-48 MiB");
        assert_eq!(parse_slack("-48 MiB"), Some(48 * MIB));
        assert_eq!(parse_slack(&slack_setting(0)), None);
        assert_eq!(parse_slack("ffn 3"), None);
    }

    #[test]
    fn a_report_is_shared_out_among_repetitions() {
        let report = Report {
            bytes_streamed: 4000,
            ..Report::default()
        };
        let prompt = Test::prompt(512);
        assert_eq!(counted(&report, prompt, 3, &[prompt]).bytes_streamed, 1000);
        let both = [prompt, Test::prompt(8)];
        assert_eq!(counted(&report, prompt, 3, &both).bytes_streamed, 0);
        let cold = Test::first_token(8);
        assert_eq!(counted(&report, cold, 3, &[cold]).bytes_streamed, 4000);
    }
}
