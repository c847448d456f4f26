//! Times of a run's passes. Runs write them down; only `pipeshard tune` reads them.

use crate::cost::{learn, ModelShape, Observed, PassSeconds, PassShape};
use crate::plan::Plan;
use crate::profile::{Learned, Profile, ProfileKey};
use pipeshard_model::inventory::Inventory;
use serde::{Deserialize, Serialize};

/// Version of the JSON form of [`Observation`]; files of other versions are not read.
pub const OBSERVATION_SCHEMA: u32 = 2;

/// Passes of one shape that a run had under one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// [`OBSERVATION_SCHEMA`] of the build that wrote it.
    pub schema: u32,
    /// The build of pipeshard and of llama.cpp.
    pub build: String,
    /// [`super::fingerprint`] of the model.
    pub model: String,
    /// The device, its driver, the CPU and its threads.
    pub machine: ProfileKey,
    /// Experts that a token used.
    pub experts_used: u32,
    /// Type of the keys in the KV cache.
    pub cache_type_k: String,
    /// Type of the values in the KV cache.
    pub cache_type_v: String,
    /// The plan.
    pub plan: Plan,
    /// The shape of the passes.
    pub shape: PassShape,
    /// How many passes.
    pub passes: u64,
    /// Seconds that one took.
    pub seconds: f64,
    /// Of these, seconds of the CPU's splits.
    pub cpu_seconds: f64,
    /// Seconds that were predicted for one.
    pub predicted_seconds: f64,
}

impl Observation {
    /// Reads what a run has written.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let read: Observation = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if read.schema != OBSERVATION_SCHEMA {
            return Err(format!("it has form {}", read.schema));
        }
        read.plan.check().map_err(|e| e.to_string())?;
        let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        match time(read.seconds) && time(read.cpu_seconds) && read.seconds > 0.0 {
            true => Ok(read),
            false => Err("its times are none".to_owned()),
        }
    }

    /// Returns what these passes show of a machine beyond its profile; `None` where they depend on neither the CPU nor the
    /// link, or where the plan is not one of this model.
    pub fn shows(&self, inventory: &Inventory, profile: &Profile) -> Option<Learned> {
        let used = inventory.using_experts(self.experts_used);
        let units = self.plan.units.iter().map(|unit| unit.name.as_str());
        if !units.eq(used.tensors.iter().map(|tensor| tensor.name.as_str())) {
            return None;
        }
        let model = ModelShape {
            inventory: &used,
            type_k: &self.cache_type_k,
            type_v: &self.cache_type_v,
        };
        let observed = Observed {
            plan: &self.plan,
            shape: self.shape,
            passes: self.passes,
            measured: PassSeconds {
                all: self.seconds,
                cpu: self.cpu_seconds,
            },
        };
        learn(model, profile, &observed).map(|(learned, _)| learned)
    }
}
