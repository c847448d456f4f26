//! What a kept plan belongs to, and the kept plan.

use std::fmt::Write;

use super::ask::{Adapted, Decided, PlanRequest};
use crate::digest::hex;
use crate::plan::Unit;
use crate::profile::{model_label, Origin, Profile, ProfileKey};
use crate::search::Found;
use pipeshard_model::inventory::Inventory;
use serde::{Deserialize, Serialize};

/// Version of the JSON form of [`KeptPlan`]; files of other versions are not read.
pub const KEPT_PLAN_SCHEMA: u32 = 2;

/// JSON, or nothing where a value has none, which no profile and no inventory is.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// SHA-256 in hexadecimal over what a plan depends on of its model: names, types, shapes and sizes of the tensors, and the KV cache.
/// The weights themselves do not count.
pub fn fingerprint(inventory: &Inventory, units: &[Unit]) -> String {
    let mut text = json(&inventory.kv);
    for tensor in &inventory.tensors {
        // writing to a String cannot fail
        let _ = writeln!(
            text,
            "{}\t{}\t{:?}\t{}",
            tensor.name, tensor.type_name, tensor.shape, tensor.bytes
        );
    }
    for unit in units {
        let _ = writeln!(text, "{}\t{}", unit.name, unit.class.label());
    }
    hex(text)
}

/// A profile that was measured is known by what is measured once; operations are added to it as models need them. One that was
/// stated is known by all of it.
fn identity(profile: &Profile, inventory: &Inventory) -> String {
    hex(match profile.origin {
        Origin::Stated => json(profile),
        Origin::Measured => json(&(
            &profile.key,
            &profile.link,
            &profile.memory,
            &profile.overheads,
            &profile.host,
            profile.learned_of(&model_label(inventory)),
        )),
    })
}

/// All that the same command has in common with itself. Runs with the same key have the same plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanKey {
    /// The build of pipeshard and of llama.cpp.
    pub build: String,
    /// [`fingerprint`] of the model.
    pub model: String,
    /// The device, its driver, the CPU and its threads.
    pub machine: ProfileKey,
    /// Which profile of it.
    pub profile: String,
    /// Bytes of device memory.
    pub budget: u64,
    /// What the user keeps for the backend, in bytes.
    pub reserve: Option<u64>,
    /// The output head stays on the host, because an earlier context of the process found no room for it.
    pub output_on_host: bool,
    /// Bytes of encoders of images and sound: for good, and in turn.
    pub encoders: (u64, u64),
    /// Tokens of context, of all sequences together.
    pub context: u64,
    /// Tokens that are handed over at a time.
    pub batch: u32,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The user gave no ubatch.
    pub ubatch_is_free: bool,
    /// Sequences.
    pub sequences: u32,
    /// They share one KV cache.
    pub shared_cache: bool,
    /// There are layers with a sliding window, and they cache the whole context.
    pub full_windows: bool,
    /// Rows of a batch that may get logits; 0: all of them.
    pub outputs: u32,
    /// Experts that a token uses.
    pub experts_used: u32,
    /// Type of the keys in the KV cache.
    pub cache_type_k: String,
    /// Type of the values in the KV cache.
    pub cache_type_v: String,
    /// Tokens of the prompt that the plan is weighed by.
    pub prompt: u32,
    /// Tokens of the answer.
    pub generate: u32,
}

impl PlanKey {
    /// The key of a request; `reserve`: what the user keeps for the backend, if anything.
    pub fn of(request: &PlanRequest, profile: &Profile, build: &str, reserve: Option<u64>) -> Self {
        let context = &request.context;
        let conversation = request.conversation();
        let mut layers = request.inventory.kv.layers.iter();
        let has_windows = layers.any(|layer| layer.window.is_some());
        PlanKey {
            build: build.to_owned(),
            model: fingerprint(request.inventory, &request.memory.units),
            machine: profile.key.clone(),
            profile: identity(profile, request.inventory),
            budget: request.memory.budget,
            reserve,
            output_on_host: request.memory.output_on_host,
            encoders: (request.memory.encoders, request.memory.in_turn),
            context: context.tokens(),
            batch: context.batch,
            ubatch: context.ubatch,
            ubatch_is_free: context.ubatch_is_free,
            sequences: context.sequences,
            shared_cache: context.shared_cache,
            full_windows: context.full_windows && has_windows,
            outputs: context.outputs,
            experts_used: request.inventory.expert_used_count,
            cache_type_k: context.type_k.name.to_owned(),
            cache_type_v: context.type_v.name.to_owned(),
            prompt: conversation.prompt,
            generate: conversation.generated,
        }
    }

    /// Of all keys of a model, this one: the name of its file.
    pub fn file_name(&self) -> String {
        let all = hex(json(self));
        let model = self.model.get(..12).unwrap_or(&self.model);
        format!("plan-{model}-{}.json", &all[..20])
    }
}

/// A plan that is kept: not what lives where, but the decisions that it follows from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptPlan {
    /// [`KEPT_PLAN_SCHEMA`] of the build that wrote it.
    pub schema: u32,
    /// What it belongs to.
    pub key: PlanKey,
    /// What was decided.
    pub decided: Decided,
    /// Predicted seconds to the first token.
    pub ttft: f64,
    /// Predicted tokens per second.
    pub tps: f64,
    /// `pipeshard tune` has made it.
    pub tuned: bool,
    /// What became of the decisions when compute buffers were known; none before a run has got so far.
    #[serde(default)]
    pub adapted: Option<Adapted>,
}

impl KeptPlan {
    /// What was found for a key.
    pub fn of(key: PlanKey, found: &Found, tuned: bool) -> Self {
        KeptPlan {
            schema: KEPT_PLAN_SCHEMA,
            key,
            decided: Decided::from(found),
            ttft: found.prediction.ttft,
            tps: found.prediction.tps,
            tuned,
            adapted: None,
        }
    }

    /// Reads a file of a kept plan.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let kept: KeptPlan = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        match kept.schema == KEPT_PLAN_SCHEMA && kept.decided.ubatch > 0 {
            true => Ok(kept),
            false => Err(format!("it has form {}", kept.schema)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Learned, Point, Processor};
    use pipeshard_model::test_support as models;

    #[test]
    fn a_measured_profile_stays_the_same_when_operations_are_added() {
        let model = models::dense();
        let mut profile = Profile::assumed();
        profile.origin = Origin::Measured;
        let before = identity(&profile, &model);
        profile.curves.push(crate::profile::Curve {
            on: Processor::Cpu,
            op: crate::profile::Op::Product {
                type_name: "f16".to_owned(),
                columns: 64,
                rows: 64,
            },
            points: vec![Point {
                rows: 1,
                seconds: 1.0,
                spread: 0.0,
                copy_busy: None,
            }],
        });
        profile.cpu.bytes *= 2.0;
        assert_eq!(identity(&profile, &model), before);
        profile.learn(Learned::before_any_run("another model".to_owned()));
        assert_eq!(identity(&profile, &model), before);
        let mut again = profile.clone();
        again.link.pinned.median *= 1.001;
        assert_ne!(identity(&again, &model), before);
        profile.learn(Learned::before_any_run(model_label(&model)));
        assert_ne!(identity(&profile, &model), before);
        // what is stated is what it says
        profile.origin = Origin::Stated;
        let stated = identity(&profile, &model);
        profile.cpu.bytes *= 2.0;
        assert_ne!(identity(&profile, &model), stated);
    }

    #[test]
    fn a_model_is_known_by_its_tensors_and_its_cache() {
        let model = models::dense();
        let of = |model: &Inventory| {
            let units = crate::plan::units_from_inventory(model, 0);
            fingerprint(model, &units)
        };
        let mut other = model.clone();
        other.name = Some("called otherwise".to_owned());
        assert_eq!(of(&model), of(&other));
        other.tensors[3].type_name = "q8_0".to_owned();
        assert_ne!(of(&model), of(&other));
        let mut other = model.clone();
        other.kv.layers[0].window = Some(64);
        assert_ne!(of(&model), of(&other));
        let units = crate::plan::units_from_inventory(&model, 1 << 40);
        assert_ne!(of(&model), fingerprint(&model, &units));
    }
}
