//! What is asked: a model, a context, and what is done with it. Any budget can be tried on it.

use serde::Serialize;

use pipeshard_model::inventory::{kv_bytes, DType, Inventory};
use pipeshard_plan::cost::{ModelShape, Prediction, Workload};
use pipeshard_plan::plan::{
    default_small_threshold, estimate_scratch, plan, units_from_inventory, KvLayer, Plan,
    PlanError, PlanInput, PlanSettings, Unit,
};
use pipeshard_plan::profile::Profile;
use pipeshard_plan::search::{search, SearchInput, Tried, UbatchOption, UbatchScore};

/// llama.cpp rounds the context of each sequence up to this many cells.
const CONTEXT_PADDING: u64 = 256;

/// What lives where, and what that is worth.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The plan.
    pub plan: Plan,
    /// What the conversation costs.
    pub prediction: Prediction,
    /// The conversation, with the ubatch that was chosen.
    pub workload: Workload,
    /// What was tried.
    pub explanation: Explanation,
}

/// How the plan was found.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The plan's ubatch and score.
    pub chosen: UbatchScore,
    /// Plans that were priced.
    pub priced: u32,
    /// The best of each size of the ubatch, with the output head on the device and on the host.
    pub ubatches: Vec<UbatchScore>,
    /// What was tried, in order; what became the plan comes last.
    pub tried: Vec<Tried>,
}

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
    /// What is done with it; its ubatch does not matter.
    pub workload: Workload,
    /// Sizes of the ubatch to choose from; the first is what llama.cpp would use.
    pub ubatches: Vec<u32>,
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
            type_k: DType::from_name("f16").unwrap_or(&pipeshard_model::inventory::DTYPES[0]),
            type_v: DType::from_name("f16").unwrap_or(&pipeshard_model::inventory::DTYPES[0]),
            context: padded(context, workload.sequences),
            shared_cache: false,
            workload,
            ubatches: vec![workload.ubatch],
            reserve: 0,
            granularity: 2 << 20,
            units: units_from_inventory(inventory, default_small_threshold(inventory)),
        }
    }

    /// What a saved plan says about the context; `ubatch`: the one that was chosen.
    pub fn settings(&self, ubatch: u32) -> PlanSettings {
        PlanSettings {
            context: self.context,
            ubatch,
            parallel: self.workload.sequences,
            cache_type_k: self.type_k.name.to_owned(),
            cache_type_v: self.type_v.name.to_owned(),
        }
    }

    fn kv(&self, ubatch: u32) -> Vec<KvLayer> {
        let sequences = u64::from(self.workload.sequences.max(1));
        let ubatch = u64::from(ubatch);
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

    /// The plan with the best score, over all sizes of the ubatch, and with the output head's logits in device memory or head and
    /// logits on the host.
    ///
    /// # Errors
    /// As [`search`].
    pub fn solve(&self, budget: u64, profile: &Profile) -> Result<Solution, PlanError> {
        let heads = [false, true].into_iter();
        let options: Vec<UbatchOption> = heads
            .flat_map(|on_host| self.ubatches.iter().map(move |&ubatch| (ubatch, on_host)))
            .map(|(ubatch, output_on_host)| UbatchOption {
                ubatch,
                scratch: self.scratch(ubatch, output_on_host),
                pools: 0,
                kv: Some(self.kv(ubatch)),
                output_on_host,
            })
            .collect();
        let mut found = search(&SearchInput {
            input: &PlanInput {
                budget,
                ..self.input(self.workload.ubatch)
            },
            model: self.shape(),
            profile,
            workload: self.workload,
            ubatches: &options,
            forced: None,
        })?;
        let least = options.iter().min_by_key(|option| option.scratch);
        let least = PlanInput {
            scratch: least.map_or(0, |option| option.scratch),
            output_on_host: true,
            ..self.input(least.map_or(1, |option| option.ubatch))
        };
        let all = PlanInput {
            scratch: self.scratch(found.ubatch, false),
            ..self.input(found.ubatch)
        };
        found.plan.minimum_budget = plan(&least)?.minimum_budget;
        found.plan.full_budget = plan(&all)?.full_budget;
        Ok(Solution {
            workload: Workload {
                ubatch: found.ubatch,
                ..self.workload
            },
            plan: found.plan,
            prediction: found.prediction,
            explanation: Explanation {
                chosen: UbatchScore {
                    ubatch: found.ubatch,
                    output_on_host: found.output_on_host,
                    score: found.score,
                    ttft: found.prediction.ttft,
                    tps: found.prediction.tps,
                },
                priced: found.priced,
                ubatches: found.ubatches,
                tried: found.tried,
            },
        })
    }

    fn scratch(&self, ubatch: u32, head_on_host: bool) -> u64 {
        let cells = u32::try_from(self.context).unwrap_or(u32::MAX);
        let outputs = if head_on_host { 0 } else { ubatch };
        estimate_scratch(self.inventory, ubatch, cells, outputs)
    }

    /// What the planner is asked, with no limit.
    fn input(&self, ubatch: u32) -> PlanInput {
        PlanInput {
            scratch_estimated: true,
            reserve: self.reserve,
            granularity: self.granularity,
            ..PlanInput::new(self.units.clone(), self.kv(ubatch), u64::MAX)
        }
    }

    fn shape(&self) -> ModelShape<'_> {
        ModelShape {
            inventory: self.inventory,
            type_k: self.type_k.name,
            type_v: self.type_v.name,
        }
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
    use pipeshard_model::test_support as models;
    use pipeshard_plan::profile::WhatIf;

    fn question(inventory: &Inventory, context: u64, ubatch: u32) -> Question<'_> {
        let workload = Workload {
            prompt: 512,
            generated: 128,
            sequences: 1,
            ubatch,
        };
        Question::new(inventory, context, workload)
    }

    fn solved(question: &Question, budget: u64) -> Solution {
        question.solve(budget, &Profile::assumed()).unwrap()
    }

    fn roomy(question: &Question) -> u64 {
        solved(question, 4 << 30).plan.ledger.kv
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
    fn windows_are_cached_for_the_ubatch_that_is_chosen() {
        let mut model = models::dense();
        for layer in &mut model.kv.layers {
            layer.window = Some(128);
        }
        let mut asked = question(&model, 4096, 64);
        asked.workload.prompt = 2048;
        asked.ubatches = vec![64, 256];
        let slow: WhatIf = "pcie=100M,cpu=100M".parse().unwrap();
        let slow = slow.apply(&Profile::assumed());
        let chosen = asked.solve(40 << 20, &slow).unwrap();
        assert_eq!(chosen.workload.ubatch, 256);
        assert_eq!(chosen.plan.kv[0].bytes, 512 * 1024 * 2);
    }

    #[test]
    fn the_head_and_its_logits_go_together() {
        let dense = models::dense();
        let asked = question(&dense, 1024, 512);
        let all = solved(&asked, 4 << 30).plan;
        assert!(all.ledger.scratch >= 512 * 8192 * 4);
        let most = solved(&asked, all.minimum_budget).plan;
        assert!(most.ledger.scratch < all.ledger.scratch);
        let prompt = most.tier(512).unwrap();
        assert_eq!(prompt.placements[0], pipeshard_plan::plan::Placement::Host);
    }
}
