//! A plan in a file: for which model, which context, and by which build it was made.
//!
//! `pipeshard plan --save` writes it, `--pipeshard-plan` of llama.cpp's tools has a run follow it. What it was made for is
//! compared with what is there; a plan for something else is refused with a reason.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::read::ReadPlanError;
use super::types::{FixedPlan, Placement, Plan, Unit, UnitClass, UnitId, PLAN_SCHEMA_VERSION};
use crate::digest::hex;
use pipeshard_model::inventory::{Inventory, TensorInfo};

/// Version of the JSON form of [`SavedPlan`], the plan in it aside.
pub const SAVED_PLAN_SCHEMA: u32 = 1;

const KIND: &str = "pipeshard plan";

/// Residents that a run may drop from a saved plan, as a share of their bytes in percent: compute buffers are estimated when a
/// plan is made and measured when it is used.
const DROPPED_PERCENT: u32 = 5;

/// What a plan depends on of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorIdentity {
    /// llama.cpp's name of it.
    pub name: String,
    /// ggml's name of its type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Elements per dimension.
    pub shape: [u64; 4],
}

impl From<&TensorInfo> for TensorIdentity {
    fn from(tensor: &TensorInfo) -> Self {
        TensorIdentity {
            name: tensor.name.clone(),
            type_name: tensor.type_name.clone(),
            shape: tensor.shape,
        }
    }
}

/// The model that a plan was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The architecture's name.
    pub architecture: String,
    /// What the model calls itself.
    pub name: Option<String>,
    /// SHA-256 over architecture and tensors.
    pub fingerprint: String,
    /// Names, types and shapes of all tensors.
    pub tensors: Vec<TensorIdentity>,
}

impl ModelIdentity {
    /// The identity of a model.
    pub fn of(inventory: &Inventory) -> Self {
        let mut identity = ModelIdentity {
            architecture: inventory.architecture.clone(),
            name: inventory.name.clone(),
            fingerprint: String::new(),
            tensors: inventory.tensors.iter().map(TensorIdentity::from).collect(),
        };
        identity.fingerprint = identity.hash();
        identity
    }

    /// SHA-256 in hexadecimal over the architecture and, sorted by name, every tensor's name, type and shape.
    fn hash(&self) -> String {
        let mut lines: Vec<String> = (self.tensors.iter())
            .map(|t| format!("{}\t{}\t{:?}\n", t.name, t.type_name, t.shape))
            .collect();
        lines.sort_unstable();
        hex(format!("{}\n{}", self.architecture, lines.concat()))
    }

    /// How to call the model in a message.
    fn described(&self) -> String {
        match self.name.as_deref() {
            Some(name) if !name.is_empty() && !name.chars().any(char::is_control) => {
                format!("'{name}' ({})", self.architecture)
            }
            _ => format!("a model of architecture {}", self.architecture),
        }
    }
}

/// What the context was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSettings {
    /// Tokens of the KV cache, of all sequences together.
    pub context: u64,
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// Sequences.
    pub parallel: u32,
    /// Type of the keys in the KV cache.
    pub cache_type_k: String,
    /// Type of the values in the KV cache.
    pub cache_type_v: String,
}

impl PlanSettings {
    /// In words, for a message.
    pub fn described(&self) -> String {
        let sequences = match self.parallel {
            0 | 1 => String::new(),
            more => format!(" for {more} sequences"),
        };
        format!(
            "a context of {} tokens{sequences} with {} keys and {} values and ubatches of {}",
            self.context, self.cache_type_k, self.cache_type_v, self.ubatch
        )
    }
}

/// A plan and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlan {
    /// [`SAVED_PLAN_SCHEMA`] of the build that wrote it.
    pub schema: u32,
    /// Always `pipeshard plan`.
    pub kind: String,
    /// The version of pipeshard that wrote it.
    pub build: String,
    /// The model.
    pub model: ModelIdentity,
    /// The context.
    pub settings: PlanSettings,
    /// What lives where.
    pub plan: Plan,
}

/// Why a saved plan is not followed.
#[derive(Debug, thiserror::Error)]
pub enum SavedPlanError {
    /// Not the JSON of a saved plan.
    #[error(
        "it is not a saved plan, or is damaged: {0}. Write it again with pipeshard plan --save"
    )]
    Json(#[from] serde_json::Error),
    /// JSON of something else.
    #[error("it is not a saved plan but '{0}'. Write one with pipeshard plan --save")]
    Kind(String),
    /// A saved plan of another form.
    #[error(
        "it was written by pipeshard {build} in form {found}, and this build reads form {wanted}. Write it again with \
         pipeshard plan --save"
    )]
    Version {
        /// What it says.
        found: u32,
        /// What is read.
        wanted: u32,
        /// Who wrote it.
        build: String,
    },
    /// The plan contradicts itself.
    #[error(transparent)]
    Plan(ReadPlanError),
    /// The list of tensors is not the one that the fingerprint was made of.
    #[error(
        "its list of tensors does not match its fingerprint: the file is damaged or was edited. Write it again with \
         pipeshard plan --save"
    )]
    Fingerprint,
    /// Another model.
    #[error("it was made for another model, {model}: {difference}. Make one for this model with pipeshard plan --save")]
    Model {
        /// What it was made for.
        model: String,
        /// The first difference.
        difference: String,
    },
    /// What the plan places is not there to be placed.
    #[error(
        "it places {tensor}, which -ot, --n-cpu-moe or the way the model was loaded placed already; leave out \
         either"
    )]
    NotPlaced {
        /// The tensor's name.
        tensor: String,
    },
}

/// Only what tells whether the rest can be read.
#[derive(Deserialize)]
struct Head {
    schema: u32,
    kind: String,
    #[serde(default)]
    build: String,
}

impl SavedPlan {
    /// Puts a plan together with what it was made for.
    pub fn new(inventory: &Inventory, settings: PlanSettings, plan: Plan) -> Self {
        SavedPlan {
            schema: SAVED_PLAN_SCHEMA,
            kind: KIND.to_owned(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            model: ModelIdentity::of(inventory),
            settings,
            plan,
        }
    }

    /// Reads what [`SavedPlan::to_json`] wrote.
    ///
    /// # Errors
    /// [`SavedPlanError`] for what is something else, damaged, or of a form that this build does not read.
    pub fn from_json(text: &[u8]) -> Result<Self, SavedPlanError> {
        let head: Head = serde_json::from_slice(text)?;
        if head.kind != KIND {
            let kind = head.kind.chars().filter(|c| !c.is_control()).take(40);
            return Err(SavedPlanError::Kind(kind.collect()));
        }
        let version = |found, wanted| SavedPlanError::Version {
            found,
            wanted,
            build: head.build.chars().filter(|c| !c.is_control()).collect(),
        };
        if head.schema != SAVED_PLAN_SCHEMA {
            return Err(version(head.schema, SAVED_PLAN_SCHEMA));
        }
        let value: serde_json::Value = serde_json::from_slice(text)?;
        let form = value["plan"]["schema_version"].as_u64();
        if let Some(found) = form.filter(|&found| found != u64::from(PLAN_SCHEMA_VERSION)) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(version(found, PLAN_SCHEMA_VERSION));
        }
        let saved: SavedPlan = serde_json::from_value(value)?;
        saved.plan.check().map_err(SavedPlanError::Plan)?;
        if saved.model.hash() != saved.model.fingerprint {
            return Err(SavedPlanError::Fingerprint);
        }
        Ok(saved)
    }

    /// As text for a file.
    ///
    /// # Errors
    /// What serde_json says; no plan is known for which it does.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self).map(|text| text + "\n")
    }

    /// Reports whether a model consists of what the plan was made for. A model may have loaded fewer tensors than its file has.
    ///
    /// # Errors
    /// [`SavedPlanError::Model`] with the first difference.
    pub fn check_model(
        &self,
        loaded: impl Iterator<Item = TensorIdentity>,
    ) -> Result<(), SavedPlanError> {
        let known: HashMap<&str, &TensorIdentity> = (self.model.tensors.iter())
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        let differs = |tensor: TensorIdentity| match known.get(tensor.name.as_str()) {
            None => Some(format!("that one has no {}", tensor.name)),
            Some(known) if **known != tensor => Some(format!(
                "its {} is {} of {} elements, here it is {} of {}",
                tensor.name,
                known.type_name,
                shape(known.shape),
                tensor.type_name,
                shape(tensor.shape)
            )),
            Some(_) => None,
        };
        let mut loaded = loaded;
        match loaded.find_map(differs) {
            None => Ok(()),
            Some(difference) => Err(SavedPlanError::Model {
                model: self.model.described(),
                difference,
            }),
        }
    }

    /// The plan in terms of `units`, those of the loaded model.
    ///
    /// # Errors
    /// [`SavedPlanError::NotPlaced`] where what it keeps on the device is not among them.
    pub fn fixed(&self, units: &[Unit]) -> Result<FixedPlan, SavedPlanError> {
        let mut known: HashMap<&str, UnitId> = HashMap::new();
        for (index, unit) in units.iter().enumerate() {
            known.insert(&unit.name, UnitId(index as u32));
        }
        let id_of = |id: UnitId| {
            let unit = self.plan.units.get(id.index())?;
            known.get(unit.name.as_str()).copied()
        };
        let on_device = |placement: &Placement| *placement != Placement::Host;
        for (index, unit) in self.plan.units.iter().enumerate() {
            let wanted = (self.plan.tiers.iter()).any(|tier| on_device(&tier.placements[index]));
            if wanted && unit.class != UnitClass::Small && !known.contains_key(unit.name.as_str()) {
                let tensor = unit.name.clone();
                return Err(SavedPlanError::NotPlaced { tensor });
            }
        }
        Ok(FixedPlan {
            dropped_percent: DROPPED_PERCENT,
            ..FixedPlan::from_plan(&self.plan, units.len(), id_of)
        })
    }
}

/// `4096x1024`, the dimensions that matter.
fn shape(shape: [u64; 4]) -> String {
    let used = shape.iter().rposition(|&n| n != 1).map_or(1, |at| at + 1);
    let parts: Vec<String> = shape[..used].iter().map(u64::to_string).collect();
    parts.join("x")
}
