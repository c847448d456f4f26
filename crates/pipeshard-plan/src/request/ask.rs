//! A model in a context, in so much device memory.

use super::context::ContextRequest;
use super::workload::StatedWorkload;
use crate::cost::{ModelShape, Workload};
use crate::plan::{estimate_scratch, plan, Decisions, KvPlacement, PlanError, PlanInput};
use crate::profile::Profile;
use crate::search::{follow, search, Candidate, Found, SearchInput, UbatchOption};
use pipeshard_model::inventory::Inventory;
use serde::{Deserialize, Serialize};

/// What a search has decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Tokens per ubatch.
    pub ubatch: u32,
    /// The CPU computes the output head.
    pub output_on_host: bool,
    /// The decisions, by estimated compute buffers.
    pub decisions: Decisions,
}

impl From<&Found> for Decided {
    fn from(found: &Found) -> Self {
        Decided {
            ubatch: found.ubatch,
            output_on_host: found.output_on_host,
            decisions: found.decisions.clone(),
        }
    }
}

/// What was decided again when compute buffers were known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapted {
    /// Bytes of compute buffers.
    pub scratch: u64,
    /// Bytes that were kept for the backend.
    pub reserve: u64,
    /// Where the KV cache is.
    pub kv: Vec<KvPlacement>,
    /// The decisions for them.
    pub decisions: Decisions,
}

impl Adapted {
    /// Reports whether this was decided for the memory that there is now.
    pub fn is_for(&self, input: &PlanInput) -> bool {
        (self.scratch, self.reserve) == (input.scratch, input.reserve)
            && input.kv_fixed.as_ref() == Some(&self.kv)
    }
}

/// A question that has one answer for a machine.
#[derive(Debug, Clone)]
pub struct PlanRequest<'a> {
    /// The model.
    pub inventory: &'a Inventory,
    /// The context.
    pub context: ContextRequest,
    /// What the user says of the conversation.
    pub workload: StatedWorkload,
    /// The model's units, the budget, and what else takes device memory. KV and compute buffers are those of the context.
    pub memory: PlanInput,
    /// What the device's backend takes beyond the input's reserve, by the size of the ubatch.
    pub pools: Vec<(u32, u64)>,
    /// A plan to take whatever it costs.
    pub forced: Option<Candidate>,
}

impl PlanRequest<'_> {
    /// The conversation, with llama.cpp's ubatch.
    pub fn conversation(&self) -> Workload {
        self.context.workload(self.workload)
    }

    /// The model as prices are made for it.
    pub fn shape(&self) -> ModelShape<'_> {
        ModelShape {
            inventory: self.inventory,
            type_k: self.context.type_k.name,
            type_v: self.context.type_v.name,
        }
    }

    /// Estimated bytes of compute buffers.
    pub fn scratch(&self, ubatch: u32, output_on_host: bool) -> u64 {
        let outputs = match output_on_host {
            true => 0,
            false => self.context.outputs_of(ubatch),
        };
        let tokens = u32::try_from(self.context.each()).unwrap_or(u32::MAX);
        estimate_scratch(self.inventory, ubatch, tokens, outputs)
    }

    fn option(&self, ubatch: u32, output_on_host: bool) -> UbatchOption {
        let pools = self.pools.iter().find(|(size, _)| *size == ubatch);
        UbatchOption {
            ubatch,
            scratch: self.scratch(ubatch, output_on_host),
            pools: pools.map_or(0, |(_, bytes)| *bytes),
            kv: Some(self.context.kv(self.inventory, ubatch)),
            output_on_host,
        }
    }

    fn input(&self, ubatch: u32) -> PlanInput {
        PlanInput {
            kv: self.context.kv(self.inventory, ubatch),
            kv_fixed: None,
            scratch_estimated: true,
            ..self.memory.clone()
        }
    }

    /// Sizes of the ubatch, each with the output head and its logits on the device, and with both on the host.
    fn options(&self) -> Vec<UbatchOption> {
        let ubatches = self.context.ubatches();
        let heads = [false, true].into_iter();
        heads
            .flat_map(|on_host| ubatches.iter().map(move |&ubatch| (ubatch, on_host)))
            .map(|(ubatch, on_host)| self.option(ubatch, on_host))
            .collect()
    }

    fn asked<'s>(
        &'s self,
        input: &'s PlanInput,
        profile: &'s Profile,
        ubatches: &'s [UbatchOption],
    ) -> SearchInput<'s> {
        SearchInput {
            input,
            model: self.shape(),
            profile,
            workload: self.conversation(),
            ubatches,
            forced: self.forced,
        }
    }

    /// The plan with the best score, over all sizes of the ubatch.
    ///
    /// # Errors
    /// As [`search`].
    pub fn solve(&self, profile: &Profile) -> Result<Found, PlanError> {
        let options = self.options();
        let input = self.input(self.context.ubatch);
        let found = search(&self.asked(&input, profile, &options))?;
        self.bounded(found, &options)
    }

    /// The plan that decisions make which were found before.
    ///
    /// # Errors
    /// As [`plan`]: where the decisions do not fit the memory that there is.
    pub fn follow(&self, profile: &Profile, decided: &Decided) -> Result<Found, PlanError> {
        let options = [self.option(decided.ubatch, decided.output_on_host)];
        let input = self.input(decided.ubatch);
        let decisions = decided.decisions.clone();
        let found = follow(&self.asked(&input, profile, &options), decisions)?;
        self.bounded(found, &self.options())
    }

    /// The plan that an earlier run had once its compute buffers were known: decisions that were found before, and adapted.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn settled(
        &self,
        profile: &Profile,
        decided: &Decided,
        adapted: &Adapted,
    ) -> Result<Found, PlanError> {
        let input = PlanInput {
            kv: Vec::new(),
            kv_fixed: Some(adapted.kv.clone()),
            scratch_estimated: false,
            reserve: adapted.reserve,
            ..self.memory.clone()
        };
        let option = UbatchOption {
            ubatch: decided.ubatch,
            scratch: adapted.scratch,
            pools: 0,
            kv: None,
            output_on_host: decided.output_on_host,
        };
        let options = [option];
        let asked = self.asked(&input, profile, &options);
        follow(&asked, adapted.decisions.clone())
    }

    /// With the smallest budget of all options, and the one from which on everything is resident.
    fn bounded(&self, mut found: Found, options: &[UbatchOption]) -> Result<Found, PlanError> {
        let unlimited = |option: &UbatchOption| PlanInput {
            budget: u64::MAX,
            scratch: option.scratch,
            reserve: self.memory.reserve.saturating_add(option.pools),
            ..self.input(option.ubatch)
        };
        let least = options.iter().min_by_key(|option| option.scratch);
        let least = least.unwrap_or(&options[0]);
        let bare = self.option(least.ubatch, true);
        let least = PlanInput {
            output_on_host: true,
            ..unlimited(&bare)
        };
        let all = unlimited(&self.option(found.ubatch, false));
        found.plan.minimum_budget = plan(&least)?.minimum_budget;
        found.plan.full_budget = plan(&all)?.full_budget;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{default_small_threshold, units_from_inventory, Placement};
    use pipeshard_model::inventory::DType;
    use pipeshard_model::test_support as models;

    fn request(inventory: &Inventory, context: u32, budget: u64) -> PlanRequest<'_> {
        let f16 = DType::from_name("f16").unwrap();
        let units = units_from_inventory(inventory, default_small_threshold(inventory));
        PlanRequest {
            inventory,
            context: ContextRequest {
                context,
                batch: 2048,
                ubatch: 512,
                ubatch_is_free: true,
                sequences: 1,
                shared_cache: false,
                full_windows: false,
                outputs: 1,
                type_k: f16,
                type_v: f16,
            },
            workload: StatedWorkload::default(),
            memory: PlanInput {
                granularity: 64 << 10,
                ..PlanInput::new(units, Vec::new(), budget)
            },
            pools: Vec::new(),
            forced: None,
        }
    }

    #[test]
    fn decisions_that_are_kept_make_the_plan_that_was_found() {
        for (model, budget) in [
            (models::dense(), 32 << 20),
            (models::dense(), 40 << 20),
            (models::moe(), 24 << 20),
            (models::moe(), 4 << 30),
        ] {
            let asked = request(&model, 2048, budget);
            let found = asked.solve(&Profile::assumed()).unwrap();
            let decided = Decided::from(&found);
            let again = asked.follow(&Profile::assumed(), &decided).unwrap();
            assert_eq!(again.plan, found.plan);
            assert_eq!(again.prediction, found.prediction);
            assert_eq!(again.decisions, found.decisions);
            assert_eq!(again.priced, 1, "nothing is searched for");
            // when more is known about the machine by now, the plan stays the same, but its price changes
            let mut slower = Profile::assumed();
            slower.cpu.bytes /= 4.0;
            slower.link.pinned.median /= 8.0;
            let again = asked.follow(&slower, &decided).unwrap();
            assert_eq!(again.plan, found.plan);
        }
    }

    #[test]
    fn decisions_that_do_not_fit_are_refused() {
        let model = models::dense();
        let asked = request(&model, 2048, 40 << 20);
        let found = asked.solve(&Profile::assumed()).unwrap();
        let kept = Decided::from(&found);
        let less = request(&model, 2048, 1 << 20);
        assert!(less.follow(&Profile::assumed(), &kept).is_err());
    }

    #[test]
    fn many_logits_may_send_the_head_to_the_host() {
        let mut model = models::dense();
        model.vocabulary_size = 1 << 16;
        let logits = 512 << 18;
        let mut asked = request(&model, 1024, 4 << 30);
        asked.context.ubatch_is_free = false;
        let few = asked.solve(&Profile::assumed()).unwrap().plan;
        assert!(few.ledger.scratch < logits);
        asked.context.outputs = 0;
        let all = asked.solve(&Profile::assumed()).unwrap().plan;
        assert!(all.ledger.scratch >= logits);
        asked.memory.budget = all.minimum_budget;
        let least = asked.solve(&Profile::assumed()).unwrap();
        assert!(least.output_on_host && least.plan.ledger.scratch < all.ledger.scratch);
        let prompt = least.plan.tier(512).unwrap();
        assert_eq!(prompt.placements[0], Placement::Host);
    }

    #[test]
    fn windows_are_cached_for_the_ubatch_that_is_chosen() {
        let mut model = models::dense();
        for layer in &mut model.kv.layers {
            layer.window = Some(128);
        }
        let mut slow = Profile::assumed();
        slow.link.pinned.median /= 200.0;
        slow.link.pinned_cpu_busy.median /= 200.0;
        let asked = request(&model, 8192, 36 << 20);
        let found = asked.solve(&slow).unwrap();
        let bytes = asked.context.kv(&model, found.ubatch)[0].bytes;
        assert_eq!(found.plan.kv[0].bytes, bytes);
    }
}
