//! A context is about to be made: decides what its plan leaves open, and the ubatch where the user gave none. Decides again when
//! compute buffers and the backend's own memory are known.

use super::learning;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::gate::NoPass;
use crate::hook::log;
use crate::hook::planning::context::{Asked, ContextPlan, ContextSize, Freshness};
use crate::hook::telemetry::counters::Counters;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::profile::{file_of_user, obtain, Cache, ProfileError, Request};
use pipeshard_model::inventory::{kv_bytes, DType, Inventory, KvLayer as CachedLayer};
use pipeshard_plan::cost::Workload;
use pipeshard_plan::plan::{
    estimate_excess, estimate_scratch, place_kv, usual_prompt, KvLayer, Placement, PlanError,
    GENERATED, UBATCHES,
};
use pipeshard_plan::profile::{operations, Effort, Profile};
use pipeshard_plan::search::{adapt, search, Found, SearchInput, UbatchOption};
use std::cell::Cell;
use std::time::Instant;

/// A context is about to be made: tokens per ubatch.
pub fn context_wanted(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    (model, wanted): (usize, ContextSize),
    _: NoPass<'_>,
) -> u32 {
    tenant.planner.attempts.begin(model);
    let began = Instant::now();
    learning::from_passes(config, tenant, &mut telemetry.clock);
    telemetry.counters.planning += began.elapsed();
    let followed = &mut tenant.planner.followed;
    if let Some(planned) = followed.ubatch(wanted, wanted.ubatch_is_free) {
        // whoever saved the plan may have predicted for another machine
        predict_nothing(tenant, telemetry);
        return planned;
    }
    // what a context that did not fit has taught is about the decisions that were made for it
    let attempt = tenant.planner.attempts.current();
    let search_anew = attempt.own_ubatch && !tenant.planner.attempts.smallest();
    if attempt.tried() && !search_anew {
        return attempt.ubatch.unwrap_or(wanted.ubatch);
    }
    accounts.reserve.nothing_comes();
    // the buffers of a context that lives were reserved for the decisions that were made for it
    let held = accounts.ledger.now();
    if held.kv > 0 || accounts.ledger.scratch() > 0 {
        return wanted.ubatch;
    }
    let inventory = match tenant.weights.model(model) {
        Some(model) if !config.debug.like_stock => {
            model.inventory.using_experts(wanted.experts_used)
        }
        _ => return wanted.ubatch,
    };
    let searched = search_for(config, accounts, tenant, telemetry, &inventory, wanted);
    match searched {
        Ok(Some((found, asked))) => {
            tenant.planner.replan();
            if found.ubatch != wanted.ubatch {
                log::info(&format!(
                    "ubatches of {} tokens suit this budget (-ub {} for llama.cpp's own size)",
                    found.ubatch, wanted.ubatch
                ));
            }
            let ubatch = found.ubatch;
            let attempt = tenant.planner.attempts.current_mut();
            attempt.ubatch = (ubatch != wanted.ubatch).then_some(ubatch);
            tenant.planner.set_context(Some(ContextPlan {
                model,
                decisions: found.decisions,
                freshness: Freshness::Estimated,
                prediction: Some(found.prediction),
                asked,
            }));
            telemetry.clock.context(config.on_wall_clock());
            ubatch
        }
        other => {
            // llama.cpp makes the context all the same; what does not fit is said then
            if let Err(why) = other {
                log::warn(&format!("nothing was searched for: {why}"));
            }
            predict_nothing(tenant, telemetry);
            wanted.ubatch
        }
    }
}

/// Nothing is decided and predicted for the context that is about to be made, and so nothing is compared or adapted.
fn predict_nothing(tenant: &mut Tenant, telemetry: &mut Telemetry) {
    tenant.planner.set_context(None);
    telemetry.clock.context(false);
}

fn search_for(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    inventory: &Inventory,
    wanted: ContextSize,
) -> Result<Option<(Found, Asked)>, String> {
    // several models share the budget: what is best for one is not for the other
    if tenant.weights.models().len() > 1 {
        return Ok(None);
    }
    let began = Instant::now();
    let known = tenant.planner.measured.take();
    let profile = match known {
        Some(profile) => Ok(profile),
        None => profile(config, accounts, &mut telemetry.counters, inventory, wanted),
    };
    telemetry.counters.profiling += began.elapsed();
    let profile = profile?;
    let began = Instant::now();
    // no other context holds anything
    accounts.reserve.contexts_gone();
    tenant.note_holdings(accounts);
    let mut input = tenant.plan_problem(accounts);
    input.kv_fixed = None;
    let types = (DType::from_id(wanted.type_k), DType::from_id(wanted.type_v));
    let (Some(type_k), Some(type_v)) = types else {
        return Ok(None);
    };
    let sequences = wanted.sequences.max(1);
    // a sliding window's cache grows with the ubatch
    let kv = |ubatch: u32| -> Vec<KvLayer> {
        let (context, ubatch) = (u64::from(wanted.context), u64::from(ubatch));
        let cells = |layer: &CachedLayer| layer.cells(context, ubatch, u64::from(sequences));
        let of_layer = |layer: &CachedLayer| KvLayer {
            layer: layer.layer,
            bytes: kv_bytes(layer, cells(layer), type_k, type_v),
        };
        inventory.kv.layers.iter().map(of_layer).collect()
    };
    input.kv = kv(wanted.ubatch);
    let longest = wanted.batch.min(wanted.context);
    let larger = UBATCHES.iter().copied();
    let larger = larger.filter(|&size| size > wanted.ubatch && size <= longest);
    let own_ubatch = tenant.planner.attempts.current().own_ubatch;
    let may_choose = wanted.ubatch_is_free && !own_ubatch;
    let ubatches: Vec<UbatchOption> = std::iter::once(wanted.ubatch)
        .chain(larger.filter(|_| may_choose))
        .map(|ubatch| UbatchOption {
            ubatch,
            scratch: estimate_scratch(inventory, ubatch, wanted.context, 0),
            pools: accounts.reserve.expected_beyond(inventory, ubatch),
            kv: Some(kv(ubatch)),
            output_on_host: false,
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
        forced: config.debug.candidate,
    });
    telemetry.counters.planning += began.elapsed();
    tenant.planner.measured = Some(profile);
    match found {
        Ok(found) => {
            asked.workload.ubatch = found.ubatch;
            let option = ubatches.iter().find(|o| o.ubatch == found.ubatch);
            let least = option.map_or(0, |o| o.scratch.saturating_sub(estimate_excess(o.scratch)));
            // cells in host memory are copied into compute buffers for the device to attend to them, a layer at a time
            let hosted = found.plan.kv.iter().filter(|layer| !layer.device);
            let copied = hosted.map(|layer| layer.bytes).max().unwrap_or(0);
            accounts.reserve.expect_ubatch(inventory, found.ubatch);
            input.reserve = accounts.reserved();
            input.scratch = 0;
            input.kv = kv(found.ubatch);
            let bare = place_kv(&input);
            let attempt = tenant.planner.attempts.current_mut();
            attempt.estimated_scratch = least + copied;
            attempt.cells_give_way = bare.is_ok_and(|kv| kv.iter().any(|layer| !layer.device));
            Ok(Some((found, asked)))
        }
        // by estimate: in the smallest budgets that work there is nothing to decide, and what does not work says so itself
        Err(PlanError::BudgetTooSmall { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Adapts what was decided to the memory that is there for it, now that it is known. Compute buffers were reserved by then:
/// only what needs no others is decided again, that is what generation streams through the ring and how large that is.
pub fn decide_again(
    config: &Config,
    accounts: &Accounts,
    tenant: &mut Tenant,
    counters: &mut Counters,
    _: NoPass<'_>,
) {
    let smallest = tenant.planner.attempts.smallest();
    let Some(context) = tenant.planner.context_mut() else {
        return;
    };
    let freshness = std::mem::replace(&mut context.freshness, Freshness::Fresh);
    if freshness == Freshness::Fresh {
        return;
    }
    if smallest {
        context.prediction = None;
        return;
    }
    let began = Instant::now();
    let adapted = adapted(config, accounts, tenant);
    counters.planning += began.elapsed();
    let (Some(found), Some(context)) = (adapted, tenant.planner.context_mut()) else {
        return;
    };
    let changed = found.decisions != context.decisions;
    if changed || freshness == Freshness::Estimated {
        log::info(&describe(&found));
    }
    context.prediction = Some(found.prediction);
    if changed {
        context.decisions = found.decisions;
        tenant.planner.replan();
    }
}

fn adapted(config: &Config, accounts: &Accounts, tenant: &Tenant) -> Option<Found> {
    let model = tenant.weights.only_model()?;
    let context = tenant.planner.context_of(model.key)?;
    let profile = tenant.planner.measured.as_ref()?;
    if accounts.ledger.contexts() != 1 {
        return None;
    }
    let asked = context.asked;
    let input = tenant.plan_problem(accounts);
    let least = tenant.plan_input(accounts, 0).stream_min_rows;
    // compute buffers of a ubatch that streams nothing are as small as those of a token
    if config.debug.decode_stream.is_some() || asked.workload.ubatch < least {
        return None;
    }
    let inventory = model.inventory.using_experts(asked.experts_used);
    let option = UbatchOption {
        ubatch: asked.workload.ubatch,
        scratch: input.scratch,
        pools: 0,
        kv: None,
        output_on_host: false,
    };
    let wanted = SearchInput {
        input: &input,
        model: asked.model(&inventory),
        profile,
        workload: asked.workload,
        ubatches: &[option],
        forced: config.debug.candidate,
    };
    // where it does not fit any more, making the plan says so
    adapt(&wanted, context.decisions.clone()).ok()
}

/// What this machine does per second: kept from before, or measured now.
fn profile(
    config: &Config,
    accounts: &Accounts,
    counters: &mut Counters,
    inventory: &Inventory,
    wanted: ContextSize,
) -> Result<Profile, String> {
    let Some(device) = accounts.device() else {
        return Err("there is no device".to_string());
    };
    let name = |id| DType::from_id(id).map_or("f16", |dtype| dtype.name);
    // what is measured with is freed before anything else takes its place
    let device_memory = accounts.unused();
    let operations = operations(
        inventory,
        name(wanted.type_k),
        name(wanted.type_v),
        device_memory,
        Effort::Quick,
    );
    let cache = Cache::of_user();
    if let (Err(why), None) = (&cache, &config.sim) {
        log::warn(&format!("the profile of this machine is not kept: {why}"));
    }
    let file = file_of_user();
    let announced = Cell::new(false);
    let progress = |_, _| {
        if !announced.replace(true) {
            log::at_once("measuring what this machine does, once, for some seconds");
        }
    };
    let request = Request {
        device,
        operations: &operations,
        threads: wanted.threads.max(1),
        device_memory,
        simulated: config.sim.as_ref(),
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
            counters.note_error(why);
            Ok(Profile::assumed())
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
