//! What became of a case, and the checks that make it a test of pipeshard.

use super::cases::Budget;
use super::feature::{report_of_value, Feature, Need};
use super::scenario::StepResult;
use pipeshard::report::Report;
use serde::{Deserialize, Serialize};

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Verdict {
    /// The same answers, and pipeshard did the work.
    Passed,
    /// Refused at start with a sentence that says what to change.
    Refused(String),
    /// llama.cpp cannot do it either.
    NotInLlama(String),
    /// It fails in a way that is known, and listed with the cases.
    KnownFault(String),
    /// Anything else.
    Failed(String),
}

/// The compute buffers of a context may grow so often: a graph that is laid out anew can need a few percent more than was reserved.
const GROWTHS: u64 = 1;

/// A case and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseResult {
    /// `model/feature/budget/threads`.
    pub name: String,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The budget in bytes.
    pub budget: Option<u64>,
    /// Weights that were streamed, in bytes.
    pub streamed: u64,
    /// Ubatches that were evaluated.
    pub passes: u64,
    /// Times compute buffers grew after they were reserved.
    #[serde(default)]
    pub growths: u64,
    /// Seconds for the processes of this case.
    pub seconds: f64,
}

/// The first difference between what two sides saw.
pub fn difference(stock: &[StepResult], ours: &[StepResult]) -> Option<String> {
    for (step, (a, b)) in stock.iter().zip(ours).enumerate() {
        for (a, b) in a.seen.iter().zip(&b.seen) {
            if a.what != b.what {
                return Some(format!("step {step}: '{}' against '{}'", a.what, b.what));
            }
            if a.tokens != b.tokens {
                return Some(format!(
                    "step {step}, {}: other tokens ({:?} in stock, {:?})",
                    a.what, a.tokens, b.tokens
                ));
            }
            if a.hash != b.hash {
                return Some(format!("step {step}, {}: other bits", a.what));
            }
        }
        if a.seen.len() != b.seen.len() {
            return Some(format!(
                "step {step}: {} results in stock, {}",
                a.seen.len(),
                b.seen.len()
            ));
        }
    }
    let nothing = stock.iter().all(|s| s.seen.is_empty());
    (stock.len() != ours.len() || nothing).then(|| "nothing was compared".to_string())
}

/// The report of a step.
///
/// # Errors
/// There is none.
pub fn report_of(step: &StepResult) -> Result<Report, String> {
    let value = step
        .report
        .clone()
        .ok_or("pipeshard was not attached: there is no report")?;
    report_of_value(&value)
}

/// Reports whether pipeshard did a step's work inside `bytes`, and nothing went wrong on the way.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn healthy(
    step: &StepResult,
    feature: &Feature,
    budget: Option<Budget>,
    bytes: u64,
) -> Result<(), String> {
    let report = report_of(step)?;
    let require = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
    require(
        report.engaged && report.reason.is_none(),
        format!("pipeshard was off: {:?}", report.reason),
    )?;
    require(
        report.errors.is_empty(),
        format!("errors in the report: {:?}", report.errors),
    )?;
    require(
        report.budget == bytes,
        format!("the budget became {} in place of {bytes}", report.budget),
    )?;
    // a real backend's own memory is more than a small model's budget, so there the books cannot be held against it
    let within = report.simulated_device.is_none() || report.peak.total <= bytes;
    require(
        within && report.peak.resident > 0,
        format!("held of {bytes} bytes: {:?}", report.peak),
    )?;
    require(
        report.reallocations_after_reserve <= GROWTHS * report.contexts.max(1),
        format!(
            "compute buffers grew {} times while running",
            report.reallocations_after_reserve
        ),
    )?;
    let passes = report.passes.prompt + report.passes.decode;
    require(passes > 0, "no pass ran".to_string())?;
    require(
        report.passes.prompt > 0 || !feature.has_prompts,
        "no pass was a prompt's".to_string(),
    )?;
    require(
        report.bytes_uploaded + report.bytes_streamed > 0,
        "no weights reached the device".to_string(),
    )?;
    require(
        report.host_waits.staging == 0,
        format!("{} waits for a staging slot", report.host_waits.staging),
    )?;
    if budget == Some(Budget::Min) && feature.has_prompts {
        require(report.bytes_streamed > 0, "nothing was streamed".into())?;
    }
    // the budget in which all fits is found without adapters, which bring larger compute buffers
    let grows = feature.needs.contains(&Need::Loras);
    if budget == Some(Budget::All) && !grows {
        require(
            report.bytes_streamed == 0,
            format!("{} bytes were streamed", report.bytes_streamed),
        )?;
    }
    if let Some(device) = &report.simulated_device {
        let count = |name: &str| device[name].as_u64().unwrap_or(u64::MAX);
        for name in ["failed_allocations", "events_never_recorded"] {
            require(count(name) == 0, format!("{name}: {}", count(name)))?;
        }
        // at no time is anything on the device that was not asked for, and in the end everything booked is there
        for name in ["unaccounted_bytes", "beyond_ledger_bytes"] {
            let bytes = device[name].as_i64();
            require(bytes == Some(0), format!("{name}: {bytes:?}"))?;
        }
        let peak = count("peak_bytes");
        require(
            peak <= bytes,
            format!("the device held {peak} bytes of {bytes}"),
        )?;
        require(count("kernels") > 0, "the device computed nothing".into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::feature::Observation;
    use super::super::features;
    use super::*;

    fn step(tokens: &[i32], hash: &str) -> StepResult {
        StepResult {
            seen: vec![Observation {
                what: "a prompt".to_string(),
                tokens: tokens.to_vec(),
                hash: hash.to_string(),
            }],
            ..StepResult::default()
        }
    }

    #[test]
    fn every_difference_is_one() {
        let stock = [step(&[1], "a")];
        assert_eq!(difference(&stock, &[step(&[1], "a")]), None);
        assert!(difference(&stock, &[step(&[2], "a")]).is_some());
        assert!(difference(&stock, &[step(&[1], "b")]).is_some());
        assert!(difference(&stock, &[]).is_some());
        assert!(difference(&stock, &[StepResult::default()]).is_some());
        assert!(difference(&[], &[]).is_some());
        let empty = [StepResult::default()];
        assert!(difference(&empty, &empty).is_some());
    }

    #[test]
    fn a_run_without_pipeshard_is_not_healthy() {
        let feature = features::named("generate").unwrap();
        let mut run = step(&[1], "a");
        assert!(healthy(&run, feature, None, 100).is_err());
        let report = Report {
            engaged: true,
            budget: 100,
            bytes_uploaded: 1,
            bytes_streamed: 1,
            ..Report::default()
        };
        let with = |change: fn(&mut Report)| {
            let mut report = report.clone();
            report.peak.total = 100;
            report.peak.resident = 1;
            report.simulated_device = Some(serde_json::json!({
                "failed_allocations": 0, "events_never_recorded": 0, "peak_bytes": 100, "kernels": 1,
                "unaccounted_bytes": 0, "beyond_ledger_bytes": 0,
            }));
            report.passes.prompt = 1;
            change(&mut report);
            StepResult {
                report: serde_json::to_value(report).ok(),
                ..step(&[1], "a")
            }
        };
        run = with(|_| ());
        assert_eq!(healthy(&run, feature, Some(Budget::Min), 100), Ok(()));
        assert!(healthy(&run, feature, Some(Budget::All), 100).is_err());
        for change in [
            (|r| r.engaged = false) as fn(&mut Report),
            |r| r.peak.total = 101,
            |r| r.peak.resident = 0,
            |r| r.errors.push("refused".to_string()),
            |r| r.budget = 99,
            |r| r.simulated_device.as_mut().unwrap()["unaccounted_bytes"] = 1.into(),
            |r| r.simulated_device.as_mut().unwrap()["beyond_ledger_bytes"] = (-1).into(),
            |r| r.passes.prompt = 0,
            |r| r.bytes_streamed = 0,
            |r| r.reallocations_after_reserve = GROWTHS + 1,
        ] {
            assert!(healthy(&with(change), feature, Some(Budget::Min), 100).is_err());
        }
    }
}
