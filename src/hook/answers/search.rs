//! A context is about to be made: decides what its plan leaves open, and the ubatch where the user gave none. Decides again when
//! compute buffers and the backend's own memory are known.

use super::{keeping, observing};
use crate::hook::accounts::Accounts;
use crate::hook::answers::keeping::Chosen;
use crate::hook::config::{Config, WORKLOAD};
use crate::hook::gate::NoPass;
use crate::hook::log;
use crate::hook::planning::context::{Asked, ContextPlan, ContextSize, Freshness, KeptFor};
use crate::hook::telemetry::counters::Counters;
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::profile::{obtain, ProfileError, Request};
use pipeshard_model::inventory::{DType, Inventory};
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{estimate_excess, place_kv, Decisions, Placement, PlanError, PlanInput};
use pipeshard_plan::profile::{operations, Effort, Profile};
use pipeshard_plan::request::{Adapted, ContextRequest, PlanRequest};
use pipeshard_plan::search::{adapt, follow, Found, SearchInput, UbatchOption};
use std::cell::Cell;
use std::time::Instant;

/// A context is about to be made: tokens per ubatch, and of context.
pub fn context_wanted(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    (model, wanted): (usize, ContextSize),
    proof: NoPass<'_>,
) -> (u32, u32) {
    tenant.planner.attempts.begin(model);
    let wanted = fitting(config, accounts, tenant, (model, wanted));
    let asked = (model, wanted);
    let ubatch = ubatch_wanted(config, accounts, tenant, telemetry, asked, proof);
    (ubatch, wanted.context)
}

/// The context as it is wanted, with as many tokens as suit the budget where the user gave none. A second try of the same context gets
/// the same.
fn fitting(
    config: &Config,
    accounts: &Accounts,
    tenant: &Tenant,
    (model, wanted): (usize, ContextSize),
) -> ContextSize {
    let followed = &tenant.planner.followed;
    let (true, Some(known)) = (
        wanted.context_is_free && !config.debug.like_stock && !followed.is_given(),
        tenant.weights.model(model),
    ) else {
        return wanted;
    };
    let Some(request) = wanted.request(true) else {
        return wanted;
    };
    let budget = accounts.budget();
    let context = request.fitting(&known.inventory, budget);
    if context < wanted.context && !tenant.planner.attempts.current().tried() {
        let chosen = ContextRequest { context, ..request };
        let layers = chosen.kv(&known.inventory, wanted.ubatch);
        // worth a look: the tool was not asked for it
        log::warn(&format!(
            "a context of {context} tokens suits this budget: its KV cache takes {} of {} (-c for another; the model was trained for {})",
            ByteSize(layers.iter().map(|layer| layer.bytes).sum()),
            ByteSize(budget),
            wanted.context
        ));
    }
    ContextSize { context, ..wanted }
}

/// Tokens per ubatch of the context that is about to be made.
fn ubatch_wanted(
    config: &Config,
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    (model, wanted): (usize, ContextSize),
    _: NoPass<'_>,
) -> u32 {
    let began = Instant::now();
    observing::passes(config, tenant, &mut telemetry.clock);
    telemetry.counters.planning += began.elapsed();
    let followed = &mut tenant.planner.followed;
    if let Some(planned) = followed.ubatch(wanted, wanted.ubatch_is_free) {
        // the saved plan's prediction may be for another machine
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
        Ok(Some((chosen, asked))) => {
            let found = chosen.found;
            tenant.planner.replan();
            if found.ubatch != wanted.ubatch {
                log::info(&format!(
                    "the plan uses ubatches of {} tokens (-ub {} for llama.cpp's default)",
                    found.ubatch, wanted.ubatch
                ));
            }
            let ubatch = found.ubatch;
            let attempt = tenant.planner.attempts.current_mut();
            attempt.ubatch = (ubatch != wanted.ubatch).then_some(ubatch);
            if found.output_on_host {
                attempt.keep_head_on_host();
            }
            tenant.planner.set_context(Some(ContextPlan {
                model,
                decisions: found.decisions,
                freshness: Freshness::Estimated,
                prediction: Some(found.prediction),
                asked,
                planned: found.plan,
                kv_as_planned: config.debug.candidate.is_none(),
                source: chosen.source,
                kept: chosen.kept,
            }));
            telemetry.clock.context(config.on_wall_clock());
            ubatch
        }
        other => {
            // llama.cpp makes the context anyway; what does not fit is reported then
            if let Err(why) = other {
                log::warn(&format!("no plan was searched: {why}"));
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
) -> Result<Option<(Chosen, Asked)>, String> {
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
    let own_ubatch = tenant.planner.attempts.current().own_ubatch;
    let Some(context) = wanted.request(!own_ubatch) else {
        return Ok(None);
    };
    if config.workload.is_too_long(context.each()) {
        let (prompt, _) = config.workload.in_context(context.each());
        log::warn(&format!(
            "{WORKLOAD}={}: the prompt does not fit a context of {} tokens; the plan is for one of {prompt}",
            config.workload,
            context.each()
        ));
    }
    let pools = |ubatch| (ubatch, accounts.reserve.expected_beyond(inventory, ubatch));
    let request = PlanRequest {
        inventory,
        context,
        workload: config.workload,
        pools: context.ubatches().into_iter().map(pools).collect(),
        memory: input,
        forced: config.debug.candidate,
    };
    let chosen = keeping::choose(config, &request, &profile);
    telemetry.counters.planning += began.elapsed();
    tenant.planner.measured = Some(profile);
    match chosen {
        Ok(chosen) => {
            let found = &chosen.found;
            let mut workload = request.conversation();
            workload.ubatch = found.ubatch;
            let asked = Asked {
                workload,
                context: context.each(),
                experts_used: wanted.experts_used,
                type_k: context.type_k.name,
                type_v: context.type_v.name,
            };
            let scratch = request.scratch(found.ubatch, found.output_on_host);
            let least = scratch.saturating_sub(estimate_excess(scratch));
            // KV in host memory is copied into compute buffers for the device to attend to it, a layer at a time
            let hosted = found.plan.kv.iter().filter(|layer| !layer.device);
            let copied = hosted.map(|layer| layer.bytes).max().unwrap_or(0);
            accounts.reserve.expect_ubatch(inventory, found.ubatch);
            let bare = PlanInput {
                reserve: accounts.reserved(),
                scratch: 0,
                kv: context.kv(inventory, found.ubatch),
                ..request.memory
            };
            let bare = place_kv(&bare);
            let attempt = tenant.planner.attempts.current_mut();
            attempt.estimated_scratch = least + copied;
            attempt.kv_gives_way = bare.is_ok_and(|kv| kv.iter().any(|layer| !layer.device));
            Ok(Some((chosen, asked)))
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
    let first = freshness == Freshness::Estimated;
    let adapted = adapted(config, accounts, tenant, first);
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

/// `first`: the decisions were made by estimate, and an earlier run of the same command may have adapted them.
fn adapted(config: &Config, accounts: &Accounts, tenant: &Tenant, first: bool) -> Option<Found> {
    let model = tenant.weights.only_model()?;
    let context = tenant.planner.context_of(model.key)?;
    let profile = tenant.planner.measured.as_ref()?;
    if accounts.ledger.contexts() != 1 {
        return None;
    }
    let asked = context.asked;
    let input = tenant.plan_problem(accounts);
    if config.debug.decode_stream.is_some() {
        return None;
    }
    let least = tenant.plan_input(accounts, 0).stream_min_rows;
    let kept = context.kept.as_ref().filter(|_| first);
    if asked.workload.ubatch < least {
        // compute buffers of a ubatch that streams nothing are as small as those of a token
        settle(kept, &input, &context.decisions);
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
    let known = kept.and_then(|kept| kept.adapted.as_ref());
    if let Some(known) = known.filter(|known| known.is_for(&input)) {
        return follow(&wanted, known.decisions.clone()).ok();
    }
    // where it does not fit any more, making the plan says so
    let found = adapt(&wanted, context.decisions.clone()).ok()?;
    settle(kept, &input, &found.decisions);
    Some(found)
}

/// Keeps what became of decisions now that compute buffers are known, where that is not known yet.
fn settle(kept: Option<&KeptFor>, input: &PlanInput, decisions: &Decisions) {
    let Some(kept) = kept.filter(|kept| kept.adapted.is_none()) else {
        return;
    };
    let adapted = Adapted {
        scratch: input.scratch,
        reserve: input.reserve,
        kv: input.kv_fixed.clone().unwrap_or_default(),
        decisions: decisions.clone(),
    };
    if let Err(error) = kept.cache.settle(&kept.key, adapted) {
        keeping::tell_once(&error.to_string());
    }
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
    let mut operations = operations(
        inventory,
        name(wanted.type_k),
        name(wanted.type_v),
        device_memory,
        Effort::Quick,
    );
    operations.extend_from_slice(&accounts.of_encoder);
    let cache = config.profile_place.profiles();
    if let (Err(why), None) = (&cache, &config.sim) {
        log::warn(&format!("the profile of this machine was not saved: {why}"));
    }
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
        file: config.profile.as_deref(),
        effort: Effort::Quick,
        refresh: false,
        cache: cache.as_ref().ok().and_then(Option::as_ref),
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
        count => {
            format!("the device fetches {count} of a token's experts, the CPU computes the others")
        }
    };
    format!(
        "planned: {decode}; a ring of {} MiB; {:.3} s for a prompt and {:.1} tokens/s are expected ({} plans priced)",
        found.plan.ring.bytes >> 20,
        predicted.ttft,
        predicted.tps,
        found.priced
    )
}
