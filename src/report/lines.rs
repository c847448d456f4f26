//! A report as three lines: what is where, how much device memory that took, and how fast it was compared with the prediction.

use pipeshard_model::size::ByteSize;
use pipeshard_plan::constants::runs::ENOUGH_PASSES;

use super::calibration::{
    seconds, CalibrationCounts, NotCalibrated, PassTimes, Predicted, ProfileKind,
};
use super::types::{Report, UnitCounts};

/// What is off by less is said to be as predicted.
const NOTABLE: f64 = 0.1;

impl Report {
    /// Returns three lines with the prefix `pipeshard: `, or one line with the reason where pipeshard was
    /// not engaged. Errors follow, one per line.
    pub fn render_lines(&self) -> String {
        let mut lines = match (self.engaged, &self.reason) {
            (true, _) => vec![self.placed(), self.device_memory(), self.speed()],
            (false, Some(reason)) => vec![format!("off, because {reason}")],
            (false, None) => vec!["off, because nothing was computed".to_owned()],
        };
        lines.extend(self.errors.iter().map(|error| format!("error: {error}")));
        let lines: Vec<String> = (lines.iter())
            .map(|line| {
                let line = line.chars().filter(|c| !c.is_control());
                format!("pipeshard: {}", line.collect::<String>())
            })
            .collect();
        lines.join("\n")
    }

    fn placed(&self) -> String {
        let device = match self.device.as_str() {
            "" => "an unnamed device",
            name => name,
        };
        let mut phases = Vec::new();
        let (prompt, decode) = (&self.units.prompt, &self.units.decode);
        let all = |units: &UnitCounts| units.resident + units.kept + units.streamed + units.host;
        let known = match prompt.is_empty() {
            true => decode,
            false => prompt,
        };
        if !known.is_empty() {
            phases.push(format!(
                "{} of {} weights resident",
                known.resident,
                all(known)
            ));
        }
        for (phase, units) in [("prompts", prompt), ("generation", decode)] {
            let parts = [
                (units.streamed, "streamed"),
                (units.kept, "in the ring"),
                (units.host, "on the CPU"),
            ];
            let parts = parts.iter().filter(|(number, _)| *number > 0);
            let parts: Vec<String> = parts.map(|(n, what)| format!("{n} {what}")).collect();
            if !parts.is_empty() {
                phases.push(format!("{phase}: {}", parts.join(", ")));
            }
        }
        if let Some(saved) = &self.saved_plan {
            let dropped = match saved.dropped {
                0 => String::new(),
                count => format!(", {count} of its residents had no room"),
            };
            phases.push(format!("saved plan {}{dropped}", saved.file));
        }
        format!("engaged on {device}: {}", phases.join("; "))
    }

    fn device_memory(&self) -> String {
        let (peak, budget) = (ByteSize(self.peak.total), ByteSize(self.budget));
        let over = match self.peak.total > self.budget {
            true => ", more than the budget",
            false => "",
        };
        let staged = match self.staged_bytes {
            0 => String::new(),
            bytes => format!(
                "; {} went through staging, which is slower, for not all weights are page-locked",
                ByteSize(bytes)
            ),
        };
        format!("device memory: peak {peak} of {budget}{over}{staged}")
    }

    fn speed(&self) -> String {
        let Some(predicted) = &self.predicted else {
            return "speed: nothing was predicted for this context".to_owned();
        };
        let compared = self.calibration.as_ref();
        let compared = compared.and_then(|times| drift(times, predicted.profile));
        match compared {
            Some(compared) => format!("speed: {compared}"),
            None => format!("speed: {}", expected(predicted, self.not_calibrated)),
        }
    }
}

fn expected(predicted: &Predicted, why: Option<NotCalibrated>) -> String {
    let why = match why {
        Some(NotCalibrated::Simulated) => "; not compared, for the GPU is simulated",
        Some(NotCalibrated::NothingPredicted) | None => "; too few passes to compare",
    };
    format!(
        "predicted are {} tokens of prompt in {} and {:.1} tokens/s{why}",
        predicted.prompt_tokens,
        seconds(predicted.ttft),
        predicted.tps
    )
}

/// What passes took compared with the prediction for them; none where too few were compared.
fn drift(times: &CalibrationCounts, profile: ProfileKind) -> Option<String> {
    let kinds = [("prompts", &times.prompt), ("generation", &times.decode)];
    let told = kinds
        .into_iter()
        .filter_map(|(kind, times)| one(kind, times));
    let (told, notable): (Vec<String>, Vec<bool>) = told.unzip();
    if told.is_empty() {
        return None;
    }
    let action = match (notable.contains(&true), profile) {
        (false, _) => "",
        (true, ProfileKind::Stated) => "; the stated profile is not that of this machine",
        (true, _) => ": pipeshard tune MODEL measures again",
    };
    Some(told.join(", ") + action)
}

fn one(kind: &str, times: &PassTimes) -> Option<(String, bool)> {
    let off = times.off_by.filter(|_| times.passes >= ENOUGH_PASSES)?;
    let took = seconds(times.measured_seconds_per_pass);
    let notable = off.abs() > NOTABLE;
    let compared = match (notable, off > 0.0) {
        (false, _) => "as predicted".to_owned(),
        (true, true) => format!("{:.0} % slower than predicted", off * 100.0),
        (true, false) => format!(
            "{:.0} % faster than predicted",
            // of what was predicted, the time per pass less what it took, as speed
            (1.0 / (1.0 + off) - 1.0) * 100.0
        ),
    };
    Some((format!("{kind} {took} a pass, {compared}"), notable))
}

#[cfg(test)]
mod tests {
    use super::super::calibration::tests::{predicted, times};
    use super::super::types::{MemoryPeak, UnitPlacements};
    use super::*;

    fn report() -> Report {
        Report {
            engaged: true,
            device: "SIM0".to_owned(),
            budget: 40 << 20,
            peak: MemoryPeak {
                total: 35 << 20,
                ..MemoryPeak::default()
            },
            units: UnitPlacements {
                prompt: UnitCounts {
                    resident: 100,
                    streamed: 119,
                    kept: 0,
                    host: 1,
                },
                decode: UnitCounts {
                    resident: 100,
                    streamed: 0,
                    kept: 4,
                    host: 116,
                },
            },
            predicted: Some(predicted()),
            not_calibrated: Some(NotCalibrated::Simulated),
            ..Report::default()
        }
    }

    fn speed(decode: f64, prompt: Option<f64>) -> String {
        let report = Report {
            calibration: Some(CalibrationCounts {
                decode: times(decode, false),
                prompt: prompt.map_or_else(PassTimes::default, |off| times(off, false)),
            }),
            ..report()
        };
        let lines = report.render_lines();
        assert_eq!(lines.lines().count(), 3, "{lines}");
        let last = lines.lines().last().unwrap().to_owned();
        last.replace('\u{a0}', " ")
    }

    #[test]
    fn a_run_is_three_lines() {
        let lines = report().render_lines().replace('\u{a0}', " ");
        assert_eq!(
            lines,
            "pipeshard: engaged on SIM0: 100 of 220 weights resident; prompts: 119 streamed, 1 on the CPU; generation: 4 in the \
             ring, 116 on the CPU\n\
             pipeshard: device memory: peak 35 MiB of 40 MiB\n\
             pipeshard: speed: predicted are 3072 tokens of prompt in 2.50 s and 40.0 tokens/s; not compared, for the GPU is \
             simulated"
        );
    }

    #[test]
    fn drift_is_told_with_what_to_do() {
        assert_eq!(
            speed(0.18, None),
            "pipeshard: speed: generation 23.6 ms a pass, 18 % slower than predicted: pipeshard tune MODEL measures again"
        );
        assert_eq!(
            speed(0.04, Some(-0.09)),
            "pipeshard: speed: prompts 18.2 ms a pass, as predicted, generation 20.8 ms a pass, as predicted"
        );
        let faster = speed(-0.5, None);
        assert!(
            faster.contains("100 % faster than predicted: pipeshard tune"),
            "{faster}"
        );
    }

    #[test]
    fn too_few_passes_say_nothing() {
        let mut few = times(0.5, false);
        few.passes = ENOUGH_PASSES - 1;
        let report = Report {
            calibration: Some(CalibrationCounts {
                decode: few,
                prompt: PassTimes::default(),
            }),
            not_calibrated: None,
            ..report()
        };
        assert!(report.render_lines().contains("too few passes to compare"));
    }

    #[test]
    fn what_makes_a_run_slow_is_said() {
        let staged = Report {
            staged_bytes: 82 << 20,
            ..report()
        };
        let lines = staged.render_lines().replace('\u{a0}', " ");
        assert_eq!(lines.lines().count(), 3);
        assert!(
            lines.contains("of 40 MiB; 82 MiB went through staging"),
            "{lines}"
        );
    }

    #[test]
    fn why_it_was_off_and_errors_are_said() {
        let off = Report::off("there is no GPU").render_lines();
        assert_eq!(off, "pipeshard: off, because there is no GPU");
        let trouble = Report {
            errors: vec!["one\nthing".to_owned(), "another".to_owned()],
            ..report()
        };
        let lines = trouble.render_lines();
        assert_eq!(lines.lines().count(), 5);
        assert!(lines.ends_with("pipeshard: error: onething\npipeshard: error: another"));
    }
}
