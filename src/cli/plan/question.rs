//! What is asked: a model, a context, and what is done with it. Any budget can be tried on it.

use crate::cost::{self, ModelShape, Prediction, Workload};
use crate::inventory::{kv_bytes, DType, Inventory};
use crate::plan::{
    default_small_threshold, estimate_scratch, plan, units_from_inventory, KvLayer, Plan,
    PlanError, PlanInput, PlanSettings, Unit, UnitClass, UnitId,
};
use crate::profile::Profile;

/// llama.cpp rounds the context of each sequence up to this many cells.
const CONTEXT_PADDING: u64 = 256;

/// A model in a context.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The model.
    pub inventory: &'a Inventory,
    /// Type of the keys in the KV cache.
    pub type_k: &'static DType,
    /// Type of the values in the KV cache.
    pub type_v: &'static DType,
    /// Cells of the KV cache, of all sequences together.
    pub context: u64,
    /// Sequences share one KV cache.
    pub shared_cache: bool,
    /// What is done with it.
    pub workload: Workload,
    /// What the backend keeps for itself, in bytes.
    pub reserve: u64,
    /// What allocations are rounded up to, in bytes.
    pub granularity: u64,
    /// The model as the planner sees it.
    pub(super) units: Vec<Unit>,
}

impl<'a> Question<'a> {
    /// With f16 caches, no reserve, and the granularity of a real card.
    pub fn new(inventory: &'a Inventory, context: u64, workload: Workload) -> Self {
        Question {
            inventory,
            type_k: DType::from_name("f16").unwrap_or(&crate::inventory::DTYPES[0]),
            type_v: DType::from_name("f16").unwrap_or(&crate::inventory::DTYPES[0]),
            context: padded(context, workload.sequences),
            shared_cache: false,
            workload,
            reserve: 0,
            granularity: 2 << 20,
            units: units_from_inventory(inventory, default_small_threshold(inventory)),
        }
    }

    /// What a saved plan says about the context.
    pub fn settings(&self) -> PlanSettings {
        PlanSettings {
            context: self.context,
            ubatch: self.workload.ubatch,
            parallel: self.workload.sequences,
            cache_type_k: self.type_k.name.to_owned(),
            cache_type_v: self.type_v.name.to_owned(),
        }
    }

    fn kv(&self) -> Vec<KvLayer> {
        let sequences = u64::from(self.workload.sequences.max(1));
        let ubatch = u64::from(self.workload.ubatch);
        let layers = self.inventory.kv.layers.iter();
        let bytes = layers.map(|layer| {
            let cells = match self.shared_cache {
                true => layer.cells(self.context, ubatch, sequences),
                false => layer.cells(self.context / sequences, ubatch, 1) * sequences,
            };
            KvLayer {
                layer: layer.layer,
                bytes: kv_bytes(layer, cells, self.type_k, self.type_v),
            }
        });
        bytes.collect()
    }

    /// The plan with the output head's logits in device memory; where that leaves no room for the head itself, the plan with
    /// both on the host.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn plan(&self, budget: u64) -> Result<Plan, PlanError> {
        let kv = self.kv();
        let cells = u32::try_from(self.context).unwrap_or(u32::MAX);
        let ubatch = self.workload.ubatch;
        let input = |outputs| PlanInput {
            scratch: estimate_scratch(self.inventory, ubatch, cells, outputs),
            scratch_estimated: true,
            reserve: self.reserve,
            granularity: self.granularity,
            output_on_host: outputs == 0,
            ..PlanInput::new(self.units.clone(), kv.clone(), budget)
        };
        let with_head = input(ubatch);
        if let Ok(found) = plan(&with_head) {
            let is_head = |id: &UnitId| found.units[id.index()].class == UnitClass::Output;
            if found.residents.iter().any(is_head) {
                return Ok(found);
            }
        }
        let mut headless = plan(&input(0))?;
        let unlimited = PlanInput {
            budget: u64::MAX,
            ..with_head
        };
        headless.full_budget = plan(&unlimited)?.full_budget;
        Ok(headless)
    }

    /// What the conversation costs under a plan.
    pub fn predict(&self, plan: &Plan, profile: &Profile) -> Prediction {
        let shape = ModelShape {
            inventory: self.inventory,
            type_k: self.type_k.name,
            type_v: self.type_v.name,
        };
        cost::predict(plan, &shape, profile, self.workload)
    }
}

/// Cells that llama.cpp makes of a context of so many tokens for so many sequences.
pub fn padded(context: u64, sequences: u32) -> u64 {
    let sequences = u64::from(sequences.max(1));
    let each = (context / sequences).max(1);
    each.next_multiple_of(CONTEXT_PADDING) * sequences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::models;

    fn question(inventory: &Inventory, context: u64, ubatch: u32) -> Question<'_> {
        let workload = Workload {
            prompt: 512,
            generated: 128,
            sequences: 1,
            ubatch,
        };
        Question::new(inventory, context, workload)
    }

    fn roomy(question: &Question) -> u64 {
        question.plan(4 << 30).unwrap().ledger.kv
    }

    #[test]
    fn contexts_are_rounded_up_per_sequence() {
        assert_eq!(padded(1000, 1), 1024);
        assert_eq!(padded(1024, 1), 1024);
        assert_eq!(padded(4000, 4), 4 * 1024);
        assert_eq!(padded(0, 0), 256);
    }

    #[test]
    fn the_cache_grows_with_context_and_type() {
        let dense = models::dense();
        let short = question(&dense, 1024, 512);
        let mut fine = short.clone();
        fine.type_v = DType::from_name("f32").unwrap();
        assert_eq!(roomy(&short), 8 * 1024 * 1024 * 2);
        assert_eq!(roomy(&question(&dense, 2048, 512)), 2 * roomy(&short));
        assert_eq!(roomy(&fine), roomy(&short) * 3 / 2);
    }

    #[test]
    fn layers_with_a_window_cache_less() {
        let mut model = models::dense();
        for layer in &mut model.kv.layers[..4] {
            layer.window = Some(128);
        }
        let one = question(&model, 4096, 64);
        assert_eq!(roomy(&one), 4 * (4096 + 256) * 1024 * 2);
        let mut four = one.clone();
        four.workload.sequences = 4;
        assert_eq!(roomy(&four), 4 * (4096 + 4 * 256) * 1024 * 2);
        // 128 cells for each sequence and the ubatch, once
        four.shared_cache = true;
        assert_eq!(roomy(&four), 4 * (4096 + 768) * 1024 * 2);
    }

    #[test]
    fn the_head_and_its_logits_go_together() {
        let dense = models::dense();
        let asked = question(&dense, 1024, 512);
        let all = asked.plan(4 << 30).unwrap();
        assert!(all.ledger.scratch >= 512 * 8192 * 4);
        let most = asked.plan(all.full_budget - 1).unwrap();
        assert!(most.ledger.scratch < all.ledger.scratch);
        let prompt = most.tier(512).unwrap();
        assert_eq!(prompt.placements[0], crate::plan::Placement::Host);
    }
}
