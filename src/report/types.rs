//! The fields of a report.

use super::calibration::{CalibrationCounts, NotCalibrated, Predicted};
use super::timeline::TimelineSummary;
use super::vision::VisionReport;
use serde::{Deserialize, Serialize};

/// Version of the JSON form of [`Report`]; raised whenever a reader of the old form would be
/// misled. New fields do not raise it.
pub const REPORT_SCHEMA_VERSION: u32 = 2;

/// Rows from which a pass counts as a prompt's; the planner streams from there on.
pub const PROMPT_ROWS: u32 = 32;

/// What happened in a run. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// [`REPORT_SCHEMA_VERSION`] of the build that made it.
    pub schema_version: u32,
    /// At least one pass ran under a plan.
    pub engaged: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// The llama.cpp build that it ran in.
    pub build: String,
    /// The device, empty if none was used.
    pub device: String,
    /// The most device memory that might be held.
    pub budget: u64,
    /// The smallest budget that would have worked; 0 if nothing was planned.
    pub minimum_budget: u64,
    /// What is held now, per class.
    pub held: MemoryHeld,
    /// The most that was held, per class.
    pub peak: MemoryPeak,
    /// What a process holds that only opens the device; not part of the budget.
    pub context_bytes: u64,
    /// Passes per tier.
    pub passes: PassCounts,
    /// Passes that reused the graph of the one before.
    pub graph_reuses: u64,
    /// Weights copied into slots.
    pub bytes_streamed: u64,
    /// Weights copied into residents, those that came back after a change of budget included.
    pub bytes_uploaded: u64,
    /// Copies of streamed groups.
    pub copies: u64,
    /// Splits submitted, those of the CPU included.
    pub splits: u64,
    /// Times that a split was to be submitted and the copy of its group had not been issued yet.
    pub stalls: u64,
    /// What became of experts that batches have chosen.
    pub experts: ExpertCounts,
    /// Times that the host waited for the device.
    pub host_waits: HostWaits,
    /// Units that graphs used, per placement and tier.
    pub units: UnitPlacements,
    /// Host memory that was page-locked.
    pub page_locked_bytes: u64,
    /// Why weights could not be page-locked, if they could not.
    pub page_lock_refused: Option<String>,
    /// Changes of the budget while running.
    pub budget_changes: u64,
    /// Compute buffers that grew after they had been reserved; 0 in a healthy run.
    pub reallocations_after_reserve: u64,
    /// Plans made after the first.
    pub replans: u64,
    /// Seconds spent on searches for plans, those of all contexts together.
    pub planning_seconds: f64,
    /// Seconds spent on the machine's profile: reading it, or measuring it where there is none.
    pub profiling_seconds: f64,
    /// What went wrong, in the order in which it did.
    pub errors: Vec<String>,
    /// Contexts that were opened.
    pub contexts: u64,
    /// Models that were loaded.
    pub models: u64,
    /// Bytes that went through the staging ring because their source was not page-locked.
    pub staged_bytes: u64,
    /// Times the arena took another shape while it was in use.
    pub recarvings: u64,
    /// Nodes that graph rewrites put into graphs, or changed.
    pub rewritten_nodes: u64,
    /// Nodes with weights that were left to the scheduler.
    pub declined_nodes: u64,
    /// Attentions that the device computed over KV cache in host memory, which was copied for it.
    pub attentions_over_host_kv: u64,
    /// Names of the weights that are not resident.
    pub not_resident: Vec<String>,
    /// What became of the saved plan that the run was to follow.
    pub saved_plan: Option<SavedPlanUse>,
    /// What encoders of images and sound held and did; none where there was none on the device.
    pub vision: Option<VisionReport>,
    /// What the simulated device counted on its own side.
    pub simulated_device: Option<serde_json::Value>,
    /// What the lanes were busy with, if a trace was asked for.
    pub timeline: Option<TimelineSummary>,
    /// What was decided for the context that was made last; none where nothing was.
    pub plan: Option<PlanUse>,
    /// What was predicted of the plan; none where nothing was searched for.
    pub predicted: Option<Predicted>,
    /// Measured and predicted times of passes; `None` where they are not compared.
    pub calibration: Option<CalibrationCounts>,
    /// Why they are not compared, if they are not.
    pub not_calibrated: Option<NotCalibrated>,
}

/// Device memory that is held at one time, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryHeld {
    /// Resident weights.
    pub resident: u64,
    /// KV cache.
    pub kv: u64,
    /// Slots.
    pub slots: u64,
    /// Compute buffers of language models.
    pub scratch: u64,
    /// Encoders of images and sound: weights and compute buffers.
    pub vision: u64,
    /// All else, the backend's pools for example.
    pub other: u64,
}

impl MemoryHeld {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.resident + self.kv + self.slots + self.scratch + self.vision + self.other
    }
}

/// The most device memory that was held, in bytes. Classes peak at different times, so the total
/// may be less than their sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPeak {
    /// Resident weights.
    pub resident: u64,
    /// KV cache.
    pub kv: u64,
    /// Slots.
    pub slots: u64,
    /// Compute buffers of language models.
    pub scratch: u64,
    /// Encoders of images and sound: weights and compute buffers.
    pub vision: u64,
    /// All else, the backend's pools for example.
    pub other: u64,
    /// Everything at once.
    pub total: u64,
}

/// A saved plan that a run followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedPlanUse {
    /// The file.
    pub file: String,
    /// Weights that it keeps in device memory.
    pub residents: u64,
    /// Of these, how many had no room in this run.
    pub dropped: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

/// What was decided for a context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanUse {
    /// `searched` by this run, `kept` by an earlier run of the same command, or `tuned` by `pipeshard tune`.
    pub source: String,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// Sequences that the plan was weighed for.
    pub sequences: u32,
}

/// Passes per tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PassCounts {
    /// Too few rows to stream for.
    pub decode: u64,
    /// Enough rows to stream for.
    pub prompt: u64,
}

/// Times that the host waited for the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostWaits {
    /// Activations passed between the device and the CPU.
    pub hand_overs: u64,
    /// Inputs of the user: tokens, positions, masks.
    pub user_inputs: u64,
    /// The router's choice, for layers that fetch only the chosen experts.
    pub expert_choices: u64,
    /// A free slot of the staging ring.
    pub staging: u64,
}

/// Counts of layers that fetch only the chosen experts. An expert of a layer counts once per tensor: three times if it has
/// an up, a gate and a down projection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpertCounts {
    /// Copied because a batch chose them.
    pub copied: u64,
    /// Chosen, and still in place from an earlier batch.
    pub reused: u64,
    /// Bytes that copies of the whole layers would have moved in addition.
    pub bytes_saved: u64,
    /// Fetched for a few tokens while the CPU computed others of the same layer.
    pub fetched: u64,
    /// Bytes of these; they are in `bytes_streamed`.
    pub bytes_fetched: u64,
}

/// Units per placement, for each tier; zero for a tier that never ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitPlacements {
    /// In the latest graph of few rows.
    pub decode: UnitCounts,
    /// In the latest graph of many rows.
    pub prompt: UnitCounts,
}

/// Units per placement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitCounts {
    /// Kept in device memory.
    pub resident: u64,
    /// Used in a slot of the ring, where it lay already.
    pub kept: u64,
    /// Copied into a slot for the pass.
    pub streamed: u64,
    /// Computed by the CPU.
    pub host: u64,
}

impl UnitCounts {
    /// Reports whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Report {
    fn default() -> Self {
        Self {
            schema_version: REPORT_SCHEMA_VERSION,
            engaged: false,
            reason: None,
            build: String::new(),
            device: String::new(),
            budget: 0,
            minimum_budget: 0,
            held: MemoryHeld::default(),
            peak: MemoryPeak::default(),
            context_bytes: 0,
            passes: PassCounts::default(),
            graph_reuses: 0,
            bytes_streamed: 0,
            bytes_uploaded: 0,
            copies: 0,
            splits: 0,
            stalls: 0,
            experts: ExpertCounts::default(),
            host_waits: HostWaits::default(),
            units: UnitPlacements::default(),
            page_locked_bytes: 0,
            page_lock_refused: None,
            budget_changes: 0,
            reallocations_after_reserve: 0,
            replans: 0,
            planning_seconds: 0.0,
            profiling_seconds: 0.0,
            errors: Vec::new(),
            contexts: 0,
            models: 0,
            staged_bytes: 0,
            recarvings: 0,
            rewritten_nodes: 0,
            declined_nodes: 0,
            attentions_over_host_kv: 0,
            not_resident: Vec::new(),
            saved_plan: None,
            vision: None,
            simulated_device: None,
            timeline: None,
            plan: None,
            predicted: None,
            calibration: None,
            not_calibrated: None,
        }
    }
}

impl Report {
    /// A report that says why pipeshard was not engaged.
    pub fn off(reason: impl Into<String>) -> Self {
        Self {
            reason: Some(reason.into()),
            ..Self::default()
        }
    }
}
