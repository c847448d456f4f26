//! The decisions that a search makes for a context which is about to be made.

use super::admission::ContextSize;
use super::calibrating::Asked;
use super::log;
use super::runtime::Runtime;
use crate::profile::{file_of_user, obtain, Cache, ProfileError, Request};
use pipeshard_model::inventory::{kv_bytes, DType, Inventory, KvLayer as CachedLayer};
use pipeshard_plan::cost::Workload;
use pipeshard_plan::plan::{
    estimate_excess, estimate_scratch, place_kv, usual_prompt, Decisions, KvLayer, Placement,
    PlanError, GENERATED, UBATCHES,
};
use pipeshard_plan::profile::{operations, Effort, Profile};
use pipeshard_plan::search::{adapt, search, Found, SearchInput, UbatchOption};
use std::cell::Cell;
use std::time::Instant;

/// Whether decisions were made for the memory that is there. A context is decided about before its compute buffers and what the
/// device's backend takes are known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Settling {
    /// They were, or nothing was decided.
    #[default]
    Settled,
    /// They were made by estimate.
    Estimated,
    /// There is more or less memory than they were made for.
    Outdated,
}

impl Runtime {
    /// A context is about to be made: decides what the plan leaves open, and the ubatch where the user gave none.
    pub fn context_wanted(&mut self, model: usize, wanted: ContextSize) -> u32 {
        let began = Instant::now();
        self.learn_from_passes();
        self.outcome.planning += began.elapsed();
        if let Some(planned) = self.saved_ubatch(wanted) {
            // whoever saved the plan may have predicted for another machine
            self.predict_nothing();
            return planned;
        }
        // what a context that did not fit has taught is about the decisions that were made for it
        let search_anew = self.retry.own_ubatch && !self.retry.smallest;
        if self.retry.tried() && !search_anew {
            return self.retry.ubatch.unwrap_or(wanted.ubatch);
        }
        // the buffers of a context that lives were reserved for the decisions that were made for it
        let held = self.ledger.now();
        if held.kv > 0 || self.ledger.scratch() > 0 {
            return wanted.ubatch;
        }
        let found = match self.models.iter().find(|m| m.key == model) {
            Some(model) if !self.config.debug.like_stock => {
                let inventory = model.inventory.using_experts(wanted.experts_used);
                self.search(&inventory, wanted)
            }
            _ => return wanted.ubatch,
        };
        match found {
            Ok(Some(found)) => {
                self.replan();
                self.settling = Settling::Estimated;
                if found.ubatch != wanted.ubatch {
                    log::info(&format!(
                        "ubatches of {} tokens suit this budget (-ub {} for llama.cpp's own size)",
                        found.ubatch, wanted.ubatch
                    ));
                }
                let ubatch = found.ubatch;
                self.retry.ubatch = (ubatch != wanted.ubatch).then_some(ubatch);
                self.decisions = found.decisions;
                self.prediction = Some(found.prediction);
                ubatch
            }
            other => {
                // llama.cpp makes the context all the same; what does not fit is said then
                if let Err(why) = other {
                    log::warn(&format!("nothing was searched for: {why}"));
                }
                self.decisions = Decisions::default();
                self.predict_nothing();
                wanted.ubatch
            }
        }
    }

    /// Nothing is predicted for the context that is about to be made, and so nothing is compared or adapted.
    fn predict_nothing(&mut self) {
        self.settling = Settling::Settled;
        self.prediction = None;
        self.calibrating.context(None);
    }

    fn search(
        &mut self,
        inventory: &Inventory,
        wanted: ContextSize,
    ) -> Result<Option<Found>, String> {
        // several models share the budget: what is best for one is not for the other
        if self.models.len() > 1 {
            return Ok(None);
        }
        let began = Instant::now();
        let profile = self.profile(inventory, wanted);
        self.outcome.profiling += began.elapsed();
        let profile = profile?;
        let began = Instant::now();
        // no other context holds anything
        self.pools.contexts_gone();
        self.note_arena();
        let mut input = self.plan_problem(0);
        input.kv_fixed = None;
        let (Some(type_k), Some(type_v)) =
            (DType::from_id(wanted.type_k), DType::from_id(wanted.type_v))
        else {
            return Ok(None);
        };
        let sequences = wanted.sequences.max(1);
        let cells = |layer: &CachedLayer| {
            let (context, ubatch) = (u64::from(wanted.context), u64::from(wanted.ubatch));
            layer.cells(context, ubatch, u64::from(sequences))
        };
        let layers = inventory.kv.layers.iter();
        let of_layer = |layer: &CachedLayer| KvLayer {
            layer: layer.layer,
            bytes: kv_bytes(layer, cells(layer), type_k, type_v),
        };
        input.kv = layers.map(of_layer).collect();
        let longest = wanted.batch.min(wanted.context);
        let larger = UBATCHES.iter().copied();
        let larger = larger.filter(|&size| size > wanted.ubatch && size <= longest);
        let may_choose = self.config.ubatch_from_plan && !self.retry.own_ubatch;
        let ubatches: Vec<UbatchOption> = std::iter::once(wanted.ubatch)
            .chain(larger.filter(|_| may_choose))
            .map(|ubatch| UbatchOption {
                ubatch,
                scratch: estimate_scratch(inventory, ubatch, wanted.context, 0),
                pools: self.pools.expected_beyond(inventory, ubatch),
            })
            .collect();
        let each = wanted.context / sequences;
        let mut asked = Asked {
            workload: Workload {
                prompt: usual_prompt(each.into()),
                generated: GENERATED,
                sequences: 1,
                ubatch: wanted.ubatch,
            },
            context: u64::from(each),
            experts_used: wanted.experts_used,
            type_k: type_k.name,
            type_v: type_v.name,
        };
        let found = search(&SearchInput {
            input: &input,
            model: asked.model(inventory),
            profile: &profile,
            workload: asked.workload,
            ubatches: &ubatches,
            forced: self.config.debug.candidate,
        });
        self.outcome.planning += began.elapsed();
        self.measured = Some(profile);
        if let Ok(found) = &found {
            asked.workload.ubatch = found.ubatch;
            let option = ubatches.iter().find(|o| o.ubatch == found.ubatch);
            let least = option.map_or(0, |o| o.scratch.saturating_sub(estimate_excess(o.scratch)));
            // cells in host memory are copied into compute buffers for the device to attend to them, a layer at a time
            let hosted = found.plan.kv.iter().filter(|layer| !layer.device);
            let copied = hosted.map(|layer| layer.bytes).max().unwrap_or(0);
            self.retry.estimated_scratch = least + copied;
            self.pools.expect_ubatch(inventory, found.ubatch);
            input.reserve = self.reserve();
            input.scratch = 0;
            let bare = place_kv(&input);
            self.retry.cells_give_way = bare.is_ok_and(|kv| kv.iter().any(|layer| !layer.device));
            self.calibrating.context(Some(asked));
        }
        match found {
            Ok(found) => Ok(Some(found)),
            // by estimate: in the smallest budgets that work there is nothing to decide, and what does not work says so itself
            Err(PlanError::BudgetTooSmall { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Adapts what was decided to the memory that is there for it, now that it is known. Compute buffers were reserved by then:
    /// only what needs no others is decided again, that is what generation streams through the ring and how large that is.
    pub fn settle_decisions(&mut self) {
        let settling = std::mem::take(&mut self.settling);
        if settling == Settling::Settled {
            return;
        }
        if self.retry.smallest {
            self.prediction = None;
            return;
        }
        let began = Instant::now();
        let adapted = self.adapted();
        self.outcome.planning += began.elapsed();
        let Some(found) = adapted else {
            return;
        };
        let changed = found.decisions != self.decisions;
        if changed || settling == Settling::Estimated {
            log::info(&describe(&found));
        }
        if changed {
            self.decisions = found.decisions;
            self.replan();
        }
        self.prediction = Some(found.prediction);
    }

    fn adapted(&self) -> Option<Found> {
        let asked = self.calibrating.asked?;
        let ([model], Some(profile), 1) = (
            self.models.as_slice(),
            &self.measured,
            self.ledger.contexts(),
        ) else {
            return None;
        };
        let input = self.plan_problem(0);
        let least = self.plan_input(0).stream_min_rows;
        // compute buffers of a ubatch that streams nothing are as small as those of a token
        if self.config.debug.decode_stream.is_some() || asked.workload.ubatch < least {
            return None;
        }
        let inventory = model.inventory.using_experts(asked.experts_used);
        let option = UbatchOption {
            ubatch: asked.workload.ubatch,
            scratch: input.scratch,
            pools: 0,
        };
        let wanted = SearchInput {
            input: &input,
            model: asked.model(&inventory),
            profile,
            workload: asked.workload,
            ubatches: &[option],
            forced: self.config.debug.candidate,
        };
        // where it does not fit any more, making the plan says so
        adapt(&wanted, self.decisions.clone()).ok()
    }

    /// What this machine does per second: kept from before, or measured now.
    fn profile(&mut self, inventory: &Inventory, wanted: ContextSize) -> Result<Profile, String> {
        if let Some(profile) = self.measured.take() {
            return Ok(profile);
        }
        let Some(device) = self.device else {
            return Err("there is no device".to_string());
        };
        let name = |id| DType::from_id(id).map_or("f16", |dtype| dtype.name);
        // what is measured with is freed before anything else takes its place
        let held = self.ledger.now().total() + self.reserve();
        let device_memory = self.budget.saturating_sub(held);
        let operations = operations(
            inventory,
            name(wanted.type_k),
            name(wanted.type_v),
            device_memory,
            Effort::Quick,
        );
        let cache = Cache::of_user();
        if let (Err(why), None) = (&cache, &self.config.sim) {
            log::warn(&format!("the profile of this machine is not kept: {why}"));
        }
        let file = file_of_user();
        let announced = Cell::new(false);
        let progress = |_, _| {
            if !announced.replace(true) {
                log::info("measuring what this machine does, once, for some seconds");
            }
        };
        let request = Request {
            device,
            operations: &operations,
            threads: wanted.threads.max(1),
            device_memory,
            simulated: self.config.sim.as_ref(),
            file: file.as_deref(),
            effort: Effort::Quick,
            refresh: false,
            cache: cache.as_ref().ok(),
            progress: &progress,
        };
        match obtain(&request) {
            Ok(obtained) => {
                for note in &obtained.notes {
                    log::warn(note);
                }
                Ok(obtained.profile)
            }
            // a file that was asked for is used or nothing is
            Err(error @ ProfileError::File(_)) => Err(error.to_string()),
            Err(error) => {
                let why = format!("{error}; plans are made for an assumed machine");
                log::warn(&why);
                self.outcome.note_error(why);
                Ok(Profile::assumed())
            }
        }
    }
}

/// What was decided, in a line.
fn describe(found: &Found) -> String {
    let predicted = &found.prediction;
    let tier = |rows| found.plan.tier(rows);
    let streams = |rows| tier(rows).is_some_and(|t| t.placements.contains(&Placement::Streamed));
    let decode = match streams(1) {
        true => format!(
            "{} MiB are streamed for each token",
            predicted.decode.bytes_streamed >> 20
        ),
        false => "nothing is streamed for a token".to_string(),
    };
    let decode = match found.plan.fetched_experts {
        0 => decode,
        count => format!("{count} of a token's experts are fetched beside the CPU's"),
    };
    format!(
        "planned: {decode}; a ring of {} MiB; {:.3} s for a prompt and {:.1} tokens/s are expected ({} plans priced)",
        found.plan.ring.bytes >> 20,
        predicted.ttft,
        predicted.tps,
        found.priced
    )
}
