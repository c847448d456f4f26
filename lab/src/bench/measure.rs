//! From a process's output and files to a measurement.

use std::path::Path;
use std::time::Instant;

use super::analysis::{setting_text, Stats};
use super::command::{starts_a_test, BatchedLine, BenchLine};
use super::repeats::Repeats;
use super::table::rate;
use super::types::{Counted, Measurement, Outcome, Predicted, Test, Work};
use super::MIB;
use crate::process::Finished;
use pipeshard::report::Report;
use pipeshard_cli::bench::memory::Sampler;
use pipeshard_model::size::ByteSize;

/// Prompts whose lengths differ by less than this part are of the same length.
const SAME_LENGTH: f64 = 0.02;

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
    let lines = finished.lines.iter().filter(|s| !s.error);
    let (said, line) = lines
        .filter_map(|s| Some((s, BenchLine::parse(&s.text)?)))
        .find(|(_, line)| line.is_of(test))?;
    let start = finished
        .lines
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

/// A prompt and the generation after it, told apart by when `llama-bench` says that it goes on to the latter.
pub fn answer_of(finished: &Finished, prompt: Test, decode: Test) -> Option<[TestResult; 2]> {
    let lines = finished.lines.iter().filter(|s| !s.error);
    let (said, line) = lines
        .filter_map(|s| Some((s, BenchLine::parse(&s.text)?)))
        .find(|(_, line)| line.is_answer(prompt.tokens, decode.tokens))?;
    let when = |what: &str| -> Vec<Instant> {
        let of_run = |s: &&crate::process::Line| {
            s.error && s.text.starts_with("llama-bench: benchmark ") && s.text.contains(what)
        };
        finished.lines.iter().filter(of_run).map(|s| s.at).collect()
    };
    let (prompts, generations) = (when(": prompt run "), when(": generation run "));
    let whole = line.seconds();
    if prompts.len() != whole.len() || generations.len() != whole.len() {
        return None;
    }
    let first: Vec<f64> = prompts
        .iter()
        .zip(&generations)
        .map(|(from, to)| to.duration_since(*from).as_secs_f64())
        .collect();
    let rest = whole.iter().zip(&first);
    let rest: Vec<f64> = rest
        .map(|(whole, first)| (whole - first).max(1e-9))
        .collect();
    let result = |seconds| TestResult {
        seconds,
        from: finished.start,
        to: said.at,
    };
    Some([result(first), result(rest)])
}

/// The result of a test of `llama-batched-bench`; the first run is a warm-up where there are more.
pub fn batched_of(finished: &Finished, test: Test) -> Option<TestResult> {
    let mut seconds = Vec::new();
    let mut to = finished.start;
    for said in finished.lines.iter().filter(|s| !s.error) {
        if let Some(found) = BatchedLine::seconds_of(&said.text, test) {
            seconds.push(found);
            to = said.at;
        }
    }
    if seconds.len() > 1 {
        seconds.remove(0);
    }
    (!seconds.is_empty()).then_some(TestResult {
        seconds,
        from: finished.start,
        to,
    })
}

/// A result of `llama-bench`, and when it was worked on.
#[derive(Debug)]
pub struct Timed {
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
    /// When its model began to be loaded, the one before still in memory.
    pub from: Instant,
    /// When it was first computed with.
    pub loaded: Instant,
    /// When it was done.
    pub to: Instant,
}

/// The results of a process that runs the same test with one setting after the other.
pub fn results_in_order(finished: &Finished, test: Test) -> Vec<Timed> {
    let mut results = Vec::new();
    let mut from = finished.start;
    let mut loaded = None;
    for said in &finished.lines {
        if said.error {
            if starts_a_test(&said.text) {
                (from, loaded) = (said.at, None);
            } else if said.text.starts_with("llama-bench: benchmark ") && loaded.is_none() {
                loaded = Some(said.at);
            }
        } else if let Some(line) = BenchLine::parse(&said.text).filter(|l| l.is_of(test)) {
            results.push(Timed {
                seconds: line.seconds(),
                from,
                loaded: loaded.unwrap_or(from),
                to: said.at,
            });
        }
    }
    results
}

/// From when a process with several settings holds the memory of one alone: while the next model is loaded there is a moment
/// in which the one before is gone and it is not there yet.
pub fn low_point(sampler: &Sampler, result: &Timed) -> Instant {
    let low = sampler.lowest(result.from, result.loaded);
    low.unwrap_or(result.from)
}

/// What was predicted of these tests, by a report; nothing where a process has several of a kind, for the report is of all.
///
/// Of a generation: what was predicted for the very passes that ran. Of a prompt: the same where it took several passes alike;
/// else what the plan was chosen by, where that was for a prompt of this length.
pub fn predicted_of(report: &Report, repeats: Repeats, tests: &[Test]) -> Option<Predicted> {
    let only = |work: Work| {
        let mut of_work = tests.iter().filter(|t| t.work == work);
        of_work.next().filter(|_| of_work.next().is_none())
    };
    let (prompt, decode) = (only(Work::Prompt), only(Work::Decode));
    let chosen = report.predicted.as_ref();
    let passes = report.calibration.unwrap_or_default();
    let chosen = chosen.filter(|chosen| {
        prompt.is_none_or(|prompt| {
            let off = f64::from(chosen.prompt_tokens) / f64::from(prompt.tokens.max(1)) - 1.0;
            off.abs() <= SAME_LENGTH
        })
    });
    let ttft = prompt.and_then(|_| {
        // the warm-up is a prompt, too
        let per_prompt = report.passes.prompt as f64 / f64::from(repeats.runs());
        let of_passes = passes.prompt.predicted_seconds_per_pass * per_prompt.ceil();
        positive(of_passes).or(chosen.map(|p| p.ttft))
    });
    let tps = decode.and_then(|decode| {
        let of_pass = positive(passes.decode.predicted_seconds_per_pass);
        let of_pass = of_pass.map(|seconds| f64::from(decode.sequences) / seconds);
        of_pass.or(chosen.map(|p| p.tps))
    });
    let found = Predicted { ttft, tps };
    (found != Predicted::default()).then_some(found)
}

fn positive(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}

/// A file of JSON; none where it is missing or something else.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// What a report says about one repetition. Only a process with a single test can tell its bytes.
pub fn counted(report: &Report, test: Test, repeats: Repeats, tests: &[Test]) -> Counted {
    let runs = match test.work {
        Work::FirstToken | Work::Prompt => f64::from(repeats.runs()),
        // the warm-up generates one token; bytes are those of a token
        Work::Decode => {
            let tokens = f64::from(repeats.times) * f64::from(test.tokens);
            tokens + f64::from(u32::from(repeats.warm_up))
        }
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
        other_waits: report.host_waits.staging,
        planning_seconds: Some(report.planning_seconds / report.contexts.max(1) as f64),
        hand_overs_per_pass: report.host_waits.hand_overs as f64 / passes,
        peak: report.peak.total,
        not_resident: match alone {
            true => report.not_resident.clone(),
            false => Vec::new(),
        },
        read_from_host: 0,
        read: 0,
        predicted: None,
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
                Work::FirstToken => format!("{:.2} s", stats.median),
                _ => {
                    let tokens = f64::from(m.test.tokens) * f64::from(m.test.sequences);
                    let speed = tokens / stats.median.max(1e-12);
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
    use std::time::Duration;

    use super::*;
    use crate::process::Line;

    fn repeats(times: u32, warm_up: bool) -> Repeats {
        Repeats { times, warm_up }
    }

    #[test]
    fn overruns_are_remembered_in_the_setting() {
        assert_eq!(slack_setting(48 * MIB), "-48 MiB");
        assert_eq!(parse_slack("-48 MiB"), Some(48 * MIB));
        assert_eq!(parse_slack(&slack_setting(0)), None);
        assert_eq!(parse_slack("ffn 3"), None);
    }

    #[test]
    fn predictions_are_those_of_what_was_timed() {
        use pipeshard::report::{CalibrationCounts, PassCounts, PassTimes};
        let tests = [Test::prompt(16256), Test::decode(8, 16256)];
        let times = |seconds| PassTimes {
            passes: 3,
            predicted_seconds_per_pass: seconds,
            ..PassTimes::default()
        };
        let mut report = Report {
            passes: PassCounts {
                prompt: 12,
                decode: 17,
            },
            calibration: Some(CalibrationCounts {
                decode: times(0.1),
                prompt: times(0.5),
            }),
            ..Report::default()
        };
        // four passes in each of two prompts and a warm-up
        let found = predicted_of(&report, repeats(2, true), &tests).unwrap();
        assert_eq!((found.ttft, found.tps), (Some(2.0), Some(10.0)));
        report.calibration = None;
        assert_eq!(predicted_of(&report, repeats(2, true), &tests), None);
        let chosen = |tokens: u32| {
            let text = format!(
                r#"{{"ttft": 3.0, "tps": 7.0, "e2el": 9.0, "decode_pass_seconds": 0.1, "prompt_pass_seconds": 0.7,
                    "prompt_tokens": {tokens}, "generated_tokens": 64, "limit": "cpu", "prompt_limit": "link",
                    "profile": "measured"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        report.predicted = Some(chosen(16384));
        let found = predicted_of(&report, repeats(2, true), &tests).unwrap();
        assert_eq!((found.ttft, found.tps), (Some(3.0), Some(7.0)));
        // a process of its own for each
        let prompt = predicted_of(&report, repeats(2, true), &tests[..1]).unwrap();
        assert_eq!((prompt.ttft, prompt.tps), (Some(3.0), None));
        let decode = predicted_of(&report, repeats(2, true), &tests[1..]).unwrap();
        assert_eq!((decode.ttft, decode.tps), (None, Some(7.0)));
        // of which one?
        let prompts = [Test::prompt(16256), Test::prompt(16384)];
        assert_eq!(predicted_of(&report, repeats(2, true), &prompts), None);
        // of another prompt
        report.predicted = Some(chosen(12288));
        assert_eq!(predicted_of(&report, repeats(2, true), &tests), None);
    }

    #[test]
    fn a_report_is_shared_out_among_repetitions() {
        let report = Report {
            bytes_streamed: 4000,
            ..Report::default()
        };
        let prompt = Test::prompt(512);
        assert_eq!(
            counted(&report, prompt, repeats(3, true), &[prompt]).bytes_streamed,
            1000
        );
        let both = [prompt, Test::prompt(8)];
        assert_eq!(
            counted(&report, prompt, repeats(3, true), &both).bytes_streamed,
            0
        );
        let cold = Test::first_token(8);
        assert_eq!(
            counted(&report, cold, repeats(1, false), &[cold]).bytes_streamed,
            4000
        );
    }

    #[test]
    fn results_come_in_the_order_of_the_settings() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let said = |ms, error, text: &str| Line {
            at: at(ms),
            error,
            text: text.to_owned(),
        };
        let line = |ns: u64| {
            format!("{{\"n_prompt\": 0, \"n_gen\": 4, \"n_depth\": 200, \"samples_ns\": [{ns}]}}")
        };
        let finished = Finished {
            start,
            status: None,
            stdout: String::new(),
            stderr: String::new(),
            lines: vec![
                said(1, true, "llama-bench: benchmark 1/2: starting"),
                said(5, true, "llama-bench: benchmark 1/2: warmup generation run"),
                said(9, false, &line(1_000_000_000)),
                said(10, true, "llama-bench: benchmark 2/2: starting"),
                said(
                    15,
                    true,
                    "llama-bench: benchmark 2/2: warmup generation run",
                ),
                said(
                    16,
                    true,
                    "llama-bench: benchmark 2/2: depth run 1/1 (cached)",
                ),
                said(19, false, &line(2_000_000_000)),
            ],
        };
        let results = results_in_order(&finished, Test::decode(4, 200));
        assert_eq!(results.len(), 2);
        assert_eq!(results[1].seconds, [2.0]);
        let times = (results[1].from, results[1].loaded, results[1].to);
        assert_eq!(times, (at(10), at(15), at(19)));
    }
}
