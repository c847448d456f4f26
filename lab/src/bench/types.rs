//! What is measured, and what a measurement says.

use serde::{Deserialize, Serialize};
use std::fmt;

use pipeshard_model::size::ByteSize;

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approach {
    /// pipeshard inside the budget.
    Pipeshard,
    /// Stock llama.cpp that fits itself into the budget, with the file mapped: what a user gets.
    FitMapped,
    /// The same with the host's weights in page-locked memory.
    FitLocked,
    /// Stock llama.cpp, page-locked, with a placement found by a small search.
    Search,
    /// Stock llama.cpp, mapped, with the most whole layers that fit (`-ngl`).
    Layers,
    /// Stock llama.cpp, mapped, with feed-forward weights (`-ot`) or experts (`--n-cpu-moe`) of some layers on the CPU.
    Part,
    /// The same with the KV cache in host memory (`-nkvo`).
    HostKv,
    /// Stock llama.cpp, page-locked, with the placement that pipeshard chose. Not held to the budget.
    SamePlacement,
    /// Stock llama.cpp with everything in VRAM, without a budget: the ceiling.
    AllInVram,
    /// pipeshard with a budget in which everything fits.
    PipeshardAll,
}

impl Approach {
    /// All of them, in the order of tables.
    pub const ALL: [Approach; 10] = [
        Approach::FitMapped,
        Approach::FitLocked,
        Approach::Search,
        Approach::Layers,
        Approach::Part,
        Approach::HostKv,
        Approach::SamePlacement,
        Approach::Pipeshard,
        Approach::AllInVram,
        Approach::PipeshardAll,
    ];

    /// Reports whether pipeshard is at work.
    pub fn is_ours(self) -> bool {
        matches!(self, Approach::Pipeshard | Approach::PipeshardAll)
    }

    /// Reports whether it is what pipeshard has to beat at the same budget.
    pub fn is_baseline(self) -> bool {
        matches!(
            self,
            Approach::FitMapped
                | Approach::FitLocked
                | Approach::Search
                | Approach::Layers
                | Approach::Part
                | Approach::HostKv
        )
    }

    /// What tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Approach::Pipeshard => "pipeshard",
            Approach::FitMapped => "stock --fit, mmap",
            Approach::FitLocked => "stock --fit, locked",
            Approach::Search => "stock, best found",
            Approach::Layers => "stock, -ngl",
            Approach::Part => "stock, -ot or -ncmoe",
            Approach::HostKv => "stock, -nkvo",
            Approach::SamePlacement => "stock, our placement",
            Approach::AllInVram => "stock, all in VRAM",
            Approach::PipeshardAll => "pipeshard, all fits",
        }
    }
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A prompt of that many tokens, the model loaded and warm.
    Prompt,
    /// That many generated tokens, the model loaded and warm.
    Decode,
    /// From the start of the process until a prompt of that many tokens is evaluated.
    FirstToken,
}

/// One figure to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Test {
    /// What is timed.
    pub work: Work,
    /// How many tokens.
    pub tokens: u32,
    /// Tokens that are in the context before, of each sequence.
    pub depth: u32,
    /// Sequences that are computed side by side.
    #[serde(default = "one")]
    pub sequences: u32,
}

fn one() -> u32 {
    1
}

impl Test {
    /// A prompt.
    pub fn prompt(tokens: u32) -> Self {
        Test {
            work: Work::Prompt,
            tokens,
            depth: 0,
            sequences: 1,
        }
    }

    /// Generated tokens, `depth` tokens into a context.
    pub fn decode(tokens: u32, depth: u32) -> Self {
        Test {
            work: Work::Decode,
            tokens,
            depth,
            sequences: 1,
        }
    }

    /// The same for so many sequences side by side.
    pub fn side_by_side(self, sequences: u32) -> Self {
        Test { sequences, ..self }
    }

    /// A cold start.
    pub fn first_token(tokens: u32) -> Self {
        Test {
            work: Work::FirstToken,
            tokens,
            depth: 0,
            sequences: 1,
        }
    }

    /// Tokens of context that it needs.
    pub fn context(self) -> u32 {
        let kv_tokens = self.tokens.saturating_add(self.depth);
        match self.sequences {
            0 | 1 => kv_tokens,
            // llama.cpp rounds up the part of each
            several => kv_tokens.div_ceil(256).saturating_mul(256 * several),
        }
    }

    /// Decoding is the same test however many tokens it was measured over: baselines at a few tokens per second get fewer.
    pub fn comparable(self) -> Self {
        match self.work {
            Work::Decode => Test { tokens: 0, ..self },
            _ => self,
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.work, self.tokens) {
            (Work::Prompt, tokens) => format!("pp{tokens}"),
            (Work::Decode, 0) => "decode".to_owned(),
            (Work::Decode, tokens) => format!("tg{tokens}"),
            (Work::FirstToken, _) => "load".to_owned(),
        };
        let text = match self.sequences {
            0 | 1 => text,
            several => format!("{text}×{several}"),
        };
        match self.depth {
            0 => f.pad(&text),
            depth => f.pad(&format!("{text}@{depth}")),
        }
    }
}

/// Whether a measurement counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Outcome {
    /// It does.
    Valid,
    /// It took more device memory than the budget: thrown out if it is a baseline, a fault if it is pipeshard.
    OverBudget {
        /// By so many bytes.
        bytes: u64,
    },
    /// There is none.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What pipeshard's report says about a measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// Bytes streamed for each repetition.
    pub bytes_streamed: u64,
    /// Copies that were needed before they were under way.
    pub stalls: u64,
    /// Compute buffers that grew after they had been reserved.
    pub reallocations: u64,
    /// Host waits for neither hand-overs nor the user's inputs.
    pub other_waits: u64,
    /// Seconds spent on planning, for each context; an earlier build's measurements have none.
    pub planning_seconds: Option<f64>,
    /// Hand-overs between CPU and device for each pass.
    pub hand_overs_per_pass: f64,
    /// The most device memory by pipeshard's own books.
    pub peak: u64,
    /// Names of the weights without a permanent copy on the device.
    pub not_resident: Vec<String>,
    /// Bytes that one token reads of those.
    #[serde(default)]
    pub read_from_host: u64,
    /// Bytes that one token reads of all weights.
    #[serde(default)]
    pub read: u64,
    /// What the planner predicted.
    pub predicted: Option<Predicted>,
}

/// What a report predicts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Predicted {
    /// Seconds to the first token.
    pub ttft: Option<f64>,
    /// Generated tokens per second, all sequences together.
    pub tps: Option<f64>,
}

/// One test under one setting, in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The model's short name.
    pub model: String,
    /// Bytes of device memory less the bare context; none where everything is in VRAM.
    pub budget: Option<u64>,
    /// How it was run.
    pub approach: Approach,
    /// The placement that stock llama.cpp was told; empty where it chose itself.
    pub setting: String,
    /// Tokens per ubatch; none where it was left open.
    pub ubatch: Option<u32>,
    /// What was timed.
    pub test: Test,
    /// In which round.
    pub round: u32,
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
    /// The most device memory that was seen, in bytes, less the bare context; `None` if unknown.
    pub peak: Option<u64>,
    /// What pipeshard counted.
    pub counted: Option<Counted>,
    /// Whether it counts.
    pub outcome: Outcome,
}

impl Measurement {
    /// Reports whether it may stand for its approach.
    pub fn is_valid(&self) -> bool {
        let held = match self.approach {
            // a fault of pipeshard's that the verdict names; the figure is shown anyway
            Approach::Pipeshard => matches!(self.outcome, Outcome::OverBudget { .. }),
            _ => false,
        };
        (held || self.outcome == Outcome::Valid) && !self.seconds.is_empty()
    }

    /// What it is a measurement of, to be found again.
    pub fn key(&self) -> Key {
        Key {
            model: self.model.clone(),
            budget: self.budget,
            approach: self.approach,
            setting: self.setting.clone(),
            ubatch: self.ubatch,
            test: self.test,
            round: self.round,
        }
    }
}

/// What tells measurements apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// As in [`Measurement`].
    pub model: String,
    /// As in [`Measurement`].
    pub budget: Option<u64>,
    /// As in [`Measurement`].
    pub approach: Approach,
    /// As in [`Measurement`].
    pub setting: String,
    /// As in [`Measurement`].
    pub ubatch: Option<u32>,
    /// As in [`Measurement`].
    pub test: Test,
    /// As in [`Measurement`].
    pub round: u32,
}

/// The machine, measured in the same visit. Bandwidths are in bytes per second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// What the device calls itself.
    pub device: String,
    /// The processor.
    pub cpu: String,
    /// Threads that were used.
    pub threads: u32,
    /// Device memory that a process sees as free after it opened the device.
    pub free: u64,
    /// Device memory that a process takes which only opens the device and its matrix library.
    pub context: u64,
    /// Where memory figures come from.
    pub memory_source: String,
    /// Host to device, from memory that the device's driver allocated page-locked.
    pub link_pinned: f64,
    /// Host to device, from a mapped file that was page-locked in place; 0 where that was refused.
    pub link_registered: f64,
    /// Host to device, from ordinary memory.
    pub link_pageable: f64,
    /// Device to host, into page-locked memory.
    pub link_back: f64,
    /// Page-locking of a mapped file in place; 0 where it was refused.
    pub register_rate: f64,
    /// What the CPU reads of weights with all its threads, the link idle; 0 where that was not measured.
    #[serde(default)]
    pub cpu_read: f64,
    /// The same while the link copies.
    #[serde(default)]
    pub cpu_read_copying: f64,
    /// What the link copies while the CPU reads.
    #[serde(default)]
    pub link_cpu_reading: f64,
    /// A simulated device: times are those of the CPU.
    pub simulated: bool,
}

impl Machine {
    /// What the CPU and the link read from host memory at the same time; 0 where that was not measured.
    pub fn host_memory(&self) -> f64 {
        let together = self.cpu_read_copying + self.link_cpu_reading;
        together.max(self.cpu_read).max(self.link())
    }

    /// What weights are streamed at, at best.
    pub fn link(&self) -> f64 {
        self.link_pinned.max(self.link_registered)
    }
}

/// A budget for people: `4 GiB`, or that there is none.
pub fn budget_text(budget: Option<u64>) -> String {
    budget.map_or_else(
        || "no budget".to_owned(),
        |bytes| ByteSize(bytes).to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_short_names() {
        assert_eq!(Test::prompt(512).to_string(), "pp512");
        assert_eq!(Test::decode(64, 0).to_string(), "tg64");
        assert_eq!(
            Test::decode(64, 4096).comparable().to_string(),
            "decode@4096"
        );
        assert_eq!(
            Test::decode(64, 992).side_by_side(16).to_string(),
            "tg64×16@992"
        );
        assert_eq!(Test::first_token(32).to_string(), "load");
        assert_eq!(
            Test::decode(8, 0).comparable(),
            Test::decode(64, 0).comparable()
        );
        assert_ne!(Test::prompt(8).comparable(), Test::prompt(9).comparable());
    }

    #[test]
    fn each_sequence_has_a_part_of_the_context() {
        assert_eq!(Test::decode(32, 896).context(), 928);
        assert_eq!(Test::decode(32, 896).side_by_side(64).context(), 64 * 1024);
    }

    #[test]
    fn a_baseline_over_its_budget_does_not_count_and_pipeshard_is_shown() {
        let mut measurement = Measurement {
            model: "m".to_owned(),
            budget: Some(10),
            approach: Approach::Search,
            setting: String::new(),
            ubatch: None,
            test: Test::prompt(8),
            round: 1,
            seconds: vec![1.0],
            peak: Some(11),
            counted: None,
            outcome: Outcome::OverBudget { bytes: 1 },
        };
        assert!(!measurement.is_valid());
        measurement.approach = Approach::Pipeshard;
        assert!(measurement.is_valid());
        measurement.seconds.clear();
        assert!(!measurement.is_valid());
    }
}
