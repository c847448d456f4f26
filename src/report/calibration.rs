//! What was predicted of a run, and how far it was from that.

use serde::{Deserialize, Serialize};

/// Why passes are not compared with what was predicted for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotCalibrated {
    /// The GPU is simulated: the time of its clocks is not the time that passes take.
    Simulated,
    /// Nothing was predicted for the context that was made last.
    NothingPredicted,
}

/// Where the figures came from that a prediction was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileKind {
    /// Measured on this machine.
    Measured,
    /// Stated: by the user, or for a simulated GPU.
    Stated,
    /// Those of no machine in particular.
    Assumed,
}

/// What was predicted of a conversation when the latest context was made. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// To the first token.
    pub ttft: f64,
    /// Generated tokens per second.
    pub tps: f64,
    /// To the last token.
    pub e2el: f64,
    /// One pass of generation, half way through the answer.
    pub decode_pass_seconds: f64,
    /// Bytes that such a pass streams.
    #[serde(default)]
    pub decode_bytes_streamed: u64,
    /// One pass of the prompt, on average.
    pub prompt_pass_seconds: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that are generated.
    pub generated_tokens: u32,
    /// What limits generation: `link`, `dram`, `gpu` or `cpu`.
    pub limit: String,
    /// What limits the prompt.
    pub prompt_limit: String,
    /// Where the figures came from.
    pub profile: ProfileKind,
}

/// Passes of a kind that were compared with what was predicted for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PassTimes {
    /// How many.
    pub passes: u64,
    /// What one took on average, in seconds; 0 without passes.
    pub measured_seconds_per_pass: f64,
    /// What was predicted for the same passes.
    pub predicted_seconds_per_pass: f64,
    /// Of what one took, the CPU's splits.
    pub measured_cpu_seconds_per_pass: f64,
    /// What was predicted for these.
    pub predicted_cpu_seconds_per_pass: f64,
    /// Measured by predicted, less 1; null without passes.
    pub off_by: Option<f64>,
    /// Enough passes are more than a quarter off.
    pub too_far_off: bool,
}

/// Passes that were compared with what was predicted for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalibrationCounts {
    /// Passes of generation.
    pub decode: PassTimes,
    /// Passes of prompts.
    pub prompt: PassTimes,
}

impl Predicted {
    /// What was predicted, as a sentence.
    pub(super) fn sentence(&self) -> String {
        let profile = match self.profile {
            ProfileKind::Measured => "from the measured profile",
            ProfileKind::Stated => "from a stated profile",
            ProfileKind::Assumed => "from an assumed profile",
        };
        format!(
            "{} tokens of prompt in {}, then {:.1} tokens/s, {profile}; limits: {} in the prompt, {} in generation",
            self.prompt_tokens,
            seconds(self.ttft),
            self.tps,
            name(&self.prompt_limit),
            name(&self.limit),
        )
    }
}

impl PassTimes {
    /// What the CPU's part took and was to take; nothing where it has none.
    fn on_cpu(&self) -> String {
        match self.measured_cpu_seconds_per_pass > 0.0 {
            true => format!(
                " (CPU {}, {} predicted)",
                seconds(self.measured_cpu_seconds_per_pass),
                seconds(self.predicted_cpu_seconds_per_pass)
            ),
            false => String::new(),
        }
    }
}

impl CalibrationCounts {
    /// Returns a sentence with measured and predicted times; `None` without passes.
    pub(super) fn sentence(&self) -> Option<String> {
        let kinds = [("prompt", &self.prompt), ("decode", &self.decode)];
        let kinds = kinds.iter().filter(|(_, times)| times.passes > 0);
        let told: Vec<String> = kinds
            .map(|(kind, times)| {
                format!(
                    "{kind} {} a pass, {} predicted{}, in {}",
                    seconds(times.measured_seconds_per_pass),
                    seconds(times.predicted_seconds_per_pass),
                    times.on_cpu(),
                    times.passes
                )
            })
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// What it means where the prediction was too far off, and what to do.
    pub(super) fn warning(&self, profile: ProfileKind) -> Option<String> {
        let kinds = [("prompts", &self.prompt), ("generation", &self.decode)];
        let far = kinds.iter().filter(|(_, times)| times.too_far_off);
        let far: Vec<String> = far
            .filter_map(|(kind, times)| {
                let off = times.off_by?;
                let than = if off > 0.0 { "more" } else { "less" };
                Some(format!(
                    "{kind} took {:.0} % {than} time",
                    off.abs() * 100.0
                ))
            })
            .collect();
        if far.is_empty() {
            return None;
        }
        let action = match profile {
            ProfileKind::Measured => "pipeshard tune MODEL measures this machine again",
            ProfileKind::Stated => "the profile that was stated does not describe this machine: leave it out, or measure this one",
            ProfileKind::Assumed => "the profile describes no particular machine: measure this one with pipeshard profile MODEL",
        };
        Some(format!(
            "{} than predicted, so there may be a better plan; {action}",
            far.join(" and ")
        ))
    }
}

fn name(limit: &str) -> &str {
    match limit {
        "link" => "the link",
        "dram" => "host memory",
        "gpu" => "the GPU",
        "cpu" => "the CPU",
        other => other,
    }
}

/// With three digits that count, in a unit that fits.
pub(super) fn seconds(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1.0 => (v, "s"),
        v if v >= 1e-3 => (v * 1e3, "ms"),
        v => (v * 1e6, "µs"),
    };
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}\u{a0}{unit}")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn predicted() -> Predicted {
        Predicted {
            ttft: 2.5,
            tps: 40.0,
            e2el: 4.1,
            decode_pass_seconds: 0.025,
            decode_bytes_streamed: 0,
            prompt_pass_seconds: 0.3,
            prompt_tokens: 3072,
            generated_tokens: 64,
            limit: "cpu".to_owned(),
            prompt_limit: "link".to_owned(),
            profile: ProfileKind::Measured,
        }
    }

    pub fn times(off_by: f64, too_far_off: bool) -> PassTimes {
        PassTimes {
            passes: 10,
            measured_seconds_per_pass: 0.02 * (1.0 + off_by),
            predicted_seconds_per_pass: 0.02,
            measured_cpu_seconds_per_pass: 0.015 * (1.0 + off_by),
            predicted_cpu_seconds_per_pass: 0.015,
            off_by: Some(off_by),
            too_far_off,
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (value, expected) in [
            (2.345, "2.35 s"),
            (123.4, "123 s"),
            (0.0123, "12.3 ms"),
            (0.00045, "450 µs"),
            (0.0, "0.00 µs"),
        ] {
            assert_eq!(seconds(value).replace('\u{a0}', " "), expected);
        }
    }

    #[test]
    fn what_is_close_gives_no_warning() {
        let counts = CalibrationCounts {
            decode: times(0.1, false),
            ..CalibrationCounts::default()
        };
        assert_eq!(counts.warning(ProfileKind::Measured), None);
        let told = counts.sentence().unwrap().replace('\u{a0}', " ");
        assert_eq!(
            told,
            "decode 22.0 ms a pass, 20.0 ms predicted (CPU 16.5 ms, 15.0 ms predicted), in 10"
        );
        assert_eq!(CalibrationCounts::default().sentence(), None);
    }

    #[test]
    fn what_is_far_off_is_told_with_what_to_do() {
        let counts = CalibrationCounts {
            decode: times(0.5, true),
            prompt: times(-0.4, true),
        };
        let said = |kind| counts.warning(kind).unwrap();
        assert_eq!(
            said(ProfileKind::Measured),
            "prompts took 40 % less time and generation took 50 % more time than predicted, so there may be a better plan; \
             pipeshard tune MODEL measures this machine again"
        );
        assert!(said(ProfileKind::Assumed).contains("pipeshard profile MODEL"));
        assert!(!said(ProfileKind::Stated).contains("--refresh"));
    }
}
