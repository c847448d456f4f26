//! A run that follows a saved plan (`--pipeshard-plan`): read at the start, compared with the model and with each context.
//!
//! Owned by [`super::planner::Planner`]; without a saved plan every question has the answer "nothing is set".

use super::context::ContextSize;
use crate::hook::log;
use crate::report::SavedPlanUse;
use pipeshard_model::inventory::DType;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{FixedPlan, Plan, SavedPlan, TensorIdentity, Unit};
use pipeshard_sys as ffi;
use std::ffi::CStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No saved plan is larger: that of a model with 2000 tensors has a megabyte.
const MAX_BYTES: u64 = 64 << 20;

/// The plan that a run follows.
#[derive(Debug, Clone)]
pub struct PlanFile {
    /// Where it came from.
    pub path: PathBuf,
    /// What it says.
    pub saved: Arc<SavedPlan>,
}

impl PlanFile {
    /// Reads the file, and refuses a plan that is larger than `budget` bytes.
    pub fn read(path: &Path, budget: Option<u64>) -> Result<Self, String> {
        let text = read_file(path)?;
        let saved = SavedPlan::from_json(&text).map_err(|e| e.to_string())?;
        let needs = saved.plan.ledger.total();
        match budget {
            Some(budget) if needs > budget => Err(format!(
                "it needs {} of device memory, and --pipeshard-vram allows {}; give at least {}, leave --pipeshard-vram out, or \
                 make a plan for that budget",
                ByteSize(needs),
                ByteSize(budget),
                ByteSize(needs).to_flag()
            )),
            _ => Ok(PlanFile {
                path: path.to_owned(),
                saved: Arc::new(saved),
            }),
        }
    }

    /// The budget that it was made for, in bytes.
    pub fn budget(&self) -> u64 {
        self.saved.plan.budget
    }

    fn refuse(&self, why: impl std::fmt::Display) -> String {
        format!(
            "the saved plan {} is not followed: {why}",
            self.path.display()
        )
    }
}

/// The file's content. A model that was named by mistake is not read to its end.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut text = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|e: std::io::Error| {
        format!("it cannot be read ({e}); give the path of a file that pipeshard plan --save wrote")
    })?;
    match text.len() as u64 > MAX_BYTES {
        true => Err("it is too large for a saved plan; give the path of a file that pipeshard plan --save wrote".to_string()),
        false => Ok(text),
    }
}

/// A saved plan in use, if there is one.
#[derive(Debug, Default)]
pub struct FollowedPlan {
    file: Option<PlanFile>,
    /// In terms of the loaded units, while the model is loaded.
    fixed: Option<FixedPlan>,
    /// The context that is being made.
    asked_for: Option<ContextSize>,
    /// Why the context cannot be made.
    refusal: Option<String>,
}

impl FollowedPlan {
    /// Follows this plan, if it is one.
    pub fn new(file: Option<PlanFile>) -> Self {
        FollowedPlan {
            file,
            ..FollowedPlan::default()
        }
    }

    /// Reports whether there is one.
    pub fn is_given(&self) -> bool {
        self.file.is_some()
    }

    /// Compares a model with the plan. `first`: no other model is loaded. Returns why the model cannot be served.
    ///
    /// # Safety
    /// The tensors are valid.
    pub unsafe fn check_model(
        &self,
        first: bool,
        tensors: &[*mut ffi::ggml_tensor],
    ) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if !first {
            let one = "it is for one model, and this process loads another one; leave out --pipeshard-plan";
            return Err(file.refuse(one));
        }
        let identity = |&tensor: &*mut ffi::ggml_tensor| {
            let name = CStr::from_ptr((*tensor).name.as_ptr());
            TensorIdentity {
                name: name.to_string_lossy().into_owned(),
                type_name: DType::from_id((*tensor).type_).map_or_else(
                    || format!("type-{}", (*tensor).type_),
                    |dtype| dtype.name.to_owned(),
                ),
                shape: (*tensor).ne.map(|n| u64::try_from(n).unwrap_or(0)),
            }
        };
        let loaded = tensors.iter().map(identity);
        file.saved.check_model(loaded).map_err(|e| file.refuse(e))
    }

    /// The model's units are known: the plan is put in their terms. Returns why that is not possible.
    pub fn follow(&mut self, units: &[Unit]) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let fixed = file.saved.fixed(units);
        let fixed = fixed.map_err(|e| file.refuse(e))?;
        log::info(&format!(
            "following the plan in {}: {} for {}",
            file.path.display(),
            ByteSize(file.saved.plan.ledger.total()),
            file.saved.settings.described()
        ));
        self.fixed = Some(fixed);
        Ok(())
    }

    /// The model is gone.
    pub fn forget_model(&mut self) {
        let file = self.file.take();
        *self = FollowedPlan::new(file);
    }

    /// What the planner is to follow now. Once batches have run (`in_use`) nothing is refused any more: what does not fit gives way.
    pub fn fixed(&self, in_use: bool) -> Option<FixedPlan> {
        let mut fixed = self.fixed.clone()?;
        if in_use {
            fixed.dropped_percent = 100;
        }
        Some(fixed)
    }

    /// A context is about to be made. Returns the ubatch of the plan, where the user gave none (`free`).
    pub fn ubatch(&mut self, wanted: ContextSize, free: bool) -> Option<u32> {
        let file = self.file.as_ref()?;
        self.asked_for = Some(wanted);
        self.refusal = None;
        let planned = file.saved.settings.ubatch.max(1);
        if free {
            return Some(planned.min(wanted.batch.max(1)));
        }
        if wanted.ubatch != planned {
            log::warn(&format!(
                "ubatches of {} tokens were asked for, the saved plan is for {planned}; compute buffers will differ",
                wanted.ubatch
            ));
        }
        Some(wanted.ubatch)
    }

    /// Where the saved plan has this layer's KV; `None` where it says nothing about it. KV of another size is left on the host,
    /// and the context will be refused.
    pub fn kv_on_host(&mut self, layer: u32, bytes: u64) -> Option<bool> {
        let file = self.file.as_ref()?;
        let planned = file.saved.plan.kv.iter().find(|kv| kv.layer == layer)?;
        if planned.bytes == bytes {
            return Some(!planned.device);
        }
        if self.refusal.is_none() {
            let context = self.asked_for.map_or_else(String::new, |asked| {
                let name = |id| DType::from_id(id).map_or("?", |dtype| dtype.name);
                format!(
                    " (-c {} -ub {} -np {} -ctk {} -ctv {})",
                    asked.context,
                    asked.ubatch,
                    asked.sequences,
                    name(asked.type_k),
                    name(asked.type_v)
                )
            });
            self.refusal = Some(file.refuse(format!(
                "it is for {}, and the context that is wanted{context} is another: the KV cache of layer {layer} takes {}, not {}. \
                 Use the plan's settings, or make a plan for these",
                file.saved.settings.described(),
                ByteSize(bytes),
                ByteSize(planned.bytes)
            )));
        }
        Some(true)
    }

    /// Why the context that is being made cannot be, because of the saved plan.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// What became of the plan in the shape that the arena has.
    pub fn used(&self, carved: &Plan) -> Option<SavedPlanUse> {
        let file = self.file.as_ref()?;
        let fixed = self.fixed.as_ref()?;
        let mut dropped = vec![false; carved.units.len()];
        for id in &fixed.residents {
            if let Some(mark) = dropped.get_mut(id.index()) {
                *mark = true;
            }
        }
        for id in &carved.residents {
            if let Some(mark) = dropped.get_mut(id.index()) {
                *mark = false;
            }
        }
        let lost = carved.units.iter().zip(&dropped).filter(|(_, &gone)| gone);
        let (count, bytes) = lost.fold((0, 0), |(n, sum), (unit, _)| (n + 1, sum + unit.bytes));
        Some(SavedPlanUse {
            file: file.path.display().to_string(),
            residents: fixed.residents.len() as u64,
            dropped: count,
            dropped_bytes: bytes,
        })
    }

    /// Reports so when the run keeps fewer residents than the saved plan has.
    pub fn note_dropped_residents(&self, carved: &Plan) {
        if let Some(used) = self.used(carved).filter(|used| used.dropped > 0) {
            log::warn(&format!(
                "{} of the {} residents of the saved plan ({}) have no room: compute buffers or the backend take more than was \
                 planned for",
                used.dropped,
                used.residents,
                ByteSize(used.dropped_bytes)
            ));
        }
    }
}
