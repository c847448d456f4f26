//! How far what the planner predicted is from what was measured.

use std::fmt::Write;

use super::analysis::Stats;
use super::placements::{percent, verdict};
use super::types::{budget_text, Approach, Measurement, Work};

/// The median and the worst error that predictions may have.
const MEDIAN_ERROR: f64 = 0.10;
const WORST_ERROR: f64 = 0.25;

/// A prediction of one process.
#[derive(Debug, Clone, PartialEq)]
struct Error {
    /// Predicted by measured, less 1.
    off: f64,
    /// Of what.
    of: String,
}

/// How a measurement's prediction compares with it, if it has one.
fn error(m: &Measurement) -> Option<Error> {
    let predicted = m.counted.as_ref()?.predicted?;
    let measured = Stats::of(&m.seconds)?.median;
    let off = match m.test.work {
        Work::Prompt => predicted.ttft? / measured - 1.0,
        Work::Decode => {
            let tokens = f64::from(m.test.tokens) * f64::from(m.test.sequences.max(1));
            predicted.tps? * measured / tokens - 1.0
        }
        Work::FirstToken => return None,
    };
    let setting = match m.setting.as_str() {
        "" => String::new(),
        setting => format!(", {setting}"),
    };
    let budget = budget_text(m.budget);
    let of = format!("{}, {budget}, {}{setting}", m.model, m.test);
    off.is_finite().then_some(Error { off, of })
}

/// Sums up the predictions of one kind; empty without any.
fn line(what: &str, mut errors: Vec<Error>) -> Option<String> {
    errors.sort_by(|a, b| a.off.abs().total_cmp(&b.off.abs()));
    let sizes: Vec<f64> = errors.iter().map(|error| error.off.abs()).collect();
    let median = Stats::of(&sizes)?.median;
    let worst = errors.last()?;
    let is_met = median <= MEDIAN_ERROR && worst.off.abs() <= WORST_ERROR;
    Some(format!(
        "Predicted {what}: off by {} at the median of {} and {:+.0} % at worst ({}); target: median <= {}, worst <= {}: {}",
        percent(median),
        errors.len(),
        worst.off * 100.0,
        worst.of,
        percent(MEDIAN_ERROR),
        percent(WORST_ERROR),
        verdict(is_met)
    ))
}

/// Sums up all predictions for people: those of prompts and those of generation, of the plans that were chosen and of those
/// that were forced.
pub fn render(measurements: &[Measurement]) -> String {
    let ours = measurements.iter().filter(|m| {
        m.is_valid()
            && m.approach == Approach::Pipeshard
            && m.budget.is_some()
            && m.ubatch.is_none()
    });
    let of = |work: Work| {
        let of_work = ours.clone().filter(|m| m.test.work == work);
        of_work.filter_map(error).collect::<Vec<_>>()
    };
    let lines = [
        line("TTFT", of(Work::Prompt)),
        line("TPS", of(Work::Decode)),
    ];
    let mut text = String::new();
    for line in lines.into_iter().flatten() {
        let _ = writeln!(text, "{line}");
    }
    match text.is_empty() {
        true => text,
        false => format!("\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::measured;
    use super::super::types::{Predicted, Test};
    use super::*;

    fn run(test: Test, seconds: &[f64], predicted: (Option<f64>, Option<f64>)) -> Measurement {
        let mut m = measured(Approach::Pipeshard, "", 1, seconds);
        m.test = test;
        m.counted.as_mut().unwrap().predicted = Some(Predicted {
            ttft: predicted.0,
            tps: predicted.1,
        });
        m
    }

    #[test]
    fn each_process_counts_once_for_what_it_timed() {
        let all = [
            // 10 % too slow, half of what it took, and right; three repetitions of the first, and one of them was disturbed
            run(Test::prompt(8), &[1.0, 9.0, 1.0], (Some(1.1), Some(1.0))),
            run(Test::prompt(512), &[2.0], (Some(1.0), None)),
            run(Test::prompt(2048), &[0.5], (Some(0.5), None)),
            // 10 tokens of 4 sequences in 2 s are 20 per second
            run(
                Test::decode(10, 0).side_by_side(4),
                &[2.0],
                (None, Some(24.0)),
            ),
            run(Test::decode(10, 0), &[1.0], (Some(3.0), None)),
        ];
        let text = render(&all);
        let expected =
            "Predicted TTFT: off by 10 % at the median of 3 and -50 % at worst (m, 100 B, pp512); \
                        target: median <= 10 %, worst <= 25 %: NOT met";
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("TPS: off by 20 % at the median of 1 and +20 % at worst"),
            "{text}"
        );
        assert_eq!(text.trim().lines().count(), 2);
    }

    #[test]
    fn what_was_not_predicted_is_not_compared() {
        let mut cold = run(Test::first_token(32), &[1.0], (Some(2.0), None));
        assert_eq!(render(&[cold.clone()]), "");
        cold.test = Test::prompt(32);
        let mut all_fits = cold.clone();
        all_fits.budget = None;
        cold.counted = None;
        assert_eq!(render(&[cold, all_fits]), "");
    }
}
