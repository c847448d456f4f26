//! The report, made of what the parts have counted. Reads everything and changes nothing.

use super::accounts::Accounts;
use super::answers::observing;
use super::log;
use super::planning::context::ContextPlan;
use super::planning::planner::Planner;
use super::runtime::Runtime;
use super::telemetry::counters::Counters;
use crate::report::{
    CalibrationCounts, ExpertCounts, HostWaits, MemoryPeak, NotCalibrated, PassTimes, PlanUse,
    Predicted, ProfileKind, Report, UnitPlacements,
};
use crate::trace::summary::summary;
use crate::trace::timeline::Timeline;
use pipeshard_plan::cost::{Lane, Limit};
use pipeshard_plan::plan::Plan;
use pipeshard_plan::profile::{Origin, Profile};
use pipeshard_sim as sim;
use std::path::Path;
use std::time::SystemTime;

/// The report on what happened so far.
pub fn report(runtime: &Runtime) -> Report {
    let timeline = runtime.telemetry.trace.timeline();
    report_with(runtime, timeline.as_ref())
}

fn engaged(counters: &Counters) -> (bool, Option<String>) {
    let passes = counters.total_passes() > 0;
    match (counters.reason_off(), passes) {
        (Some(why), _) => (false, Some(why.to_string())),
        (None, true) => (true, None),
        (None, false) => (
            false,
            Some("no graph with a model's weights has run".to_string()),
        ),
    }
}

/// Names of the units that are streamed or left to the CPU.
fn not_resident(plan: &Plan) -> Vec<String> {
    let mut resident = vec![false; plan.units.len()];
    for id in &plan.residents {
        resident[id.index()] = true;
    }
    let units = plan.units.iter().zip(resident);
    let others = units.filter(|(_, resident)| !resident);
    others.map(|(unit, _)| unit.name.clone()).collect()
}

fn report_with(runtime: &Runtime, timeline: Option<&Timeline>) -> Report {
    let Runtime {
        config,
        accounts,
        tenant,
        encoders,
        telemetry,
        ..
    } = runtime;
    let (residency, counters) = (&tenant.residency, &telemetry.counters);
    let (engaged, reason) = engaged(counters);
    let peak = accounts.ledger.peak();
    let arena = residency.arena();
    let (copies, fetched) = (residency.copies(), residency.fetched());
    let waits = counters.host_waits();
    let calibration = calibration(runtime);
    let carved = residency.carved();
    Report {
        engaged,
        reason,
        build: pipeshard_sys::BUILD_ID.to_string(),
        device: counters.device.clone().unwrap_or_default(),
        budget: accounts.budget(),
        minimum_budget: counters.minimum_budget(),
        held: accounts.held(),
        peak: MemoryPeak {
            resident: peak.resident,
            kv: peak.kv,
            slots: peak.slots,
            scratch: peak.scratch,
            vision: peak.vision,
            other: peak.other,
            total: accounts.ledger.peak_total(),
        },
        context_bytes: config.sim.as_ref().map_or(0, |spec| spec.context),
        passes: counters.passes(),
        graph_reuses: counters.graph_reuses,
        bytes_streamed: arena.map_or(0, |a| a.streamed_bytes()) + fetched.bytes,
        bytes_uploaded: arena.map_or(0, |a| a.uploaded_bytes()),
        copies: arena.map_or(0, |a| a.group_copies()),
        splits: counters.splits,
        stalls: arena.map_or(0, |a| a.stalls()),
        host_waits: HostWaits {
            staging: copies.staging_waits,
            ..waits
        },
        units: UnitPlacements {
            decode: counters.unit_counts(0),
            prompt: counters.unit_counts(1),
        },
        page_locked_bytes: tenant.weights.page_locked_bytes(),
        page_lock_refused: counters.page_lock_refused.clone(),
        budget_changes: counters.budget_changes,
        reallocations_after_reserve: counters.reallocations,
        replans: tenant.planner.plans().saturating_sub(1),
        planning_seconds: counters.planning.as_secs_f64(),
        profiling_seconds: counters.profiling.as_secs_f64(),
        errors: counters.errors().to_vec(),
        contexts: counters.contexts,
        models: counters.models,
        experts: ExpertCounts {
            fetched: fetched.experts,
            bytes_fetched: fetched.bytes,
            ..arena.map_or_else(Default::default, |a| ExpertCounts {
                copied: a.experts().copied,
                reused: a.experts().reused,
                bytes_saved: a.experts().bytes_saved,
                ..ExpertCounts::default()
            })
        },
        staged_bytes: copies.staged_bytes,
        recarvings: residency.recarvings(),
        rewritten_nodes: counters.rewritten_nodes,
        declined_nodes: counters.declined(),
        attentions_over_host_kv: counters.over_host_kv,
        not_resident: carved.map(not_resident).unwrap_or_default(),
        simulated_device: simulated_device(accounts),
        vision: encoders.report(),
        saved_plan: carved.and_then(|carved| tenant.planner.followed.used(carved)),
        plan: tenant.planner.context().map(plan_use),
        timeline: timeline.map(summary),
        predicted: predicted(&tenant.planner),
        not_calibrated: calibration.as_ref().err().copied(),
        calibration: calibration.ok(),
        ..Report::default()
    }
}

/// What the simulated device counted, and how that compares with the ledger.
fn simulated_device(accounts: &Accounts) -> Option<serde_json::Value> {
    let device = accounts.device()?.raw();
    let (most, now) = accounts.unaccounted()?;
    let mut counters = serde_json::to_value(sim::counters(device)).ok()?;
    counters["unaccounted_bytes"] = most.into();
    counters["beyond_ledger_bytes"] = now.into();
    Some(counters)
}

/// What was predicted of the context that was made last.
fn predicted(planner: &Planner) -> Option<Predicted> {
    let ContextPlan {
        prediction, asked, ..
    } = planner.context()?;
    let found = prediction.as_ref()?;
    let passes = asked.workload.prompt.div_ceil(asked.workload.ubatch.max(1));
    Some(Predicted {
        ttft: found.ttft,
        tps: found.tps,
        e2el: found.e2el,
        decode_pass_seconds: found.decode.seconds,
        decode_bytes_streamed: found.decode.bytes_streamed,
        prompt_pass_seconds: found.prompt.seconds / f64::from(passes.max(1)),
        prompt_tokens: asked.workload.prompt,
        generated_tokens: asked.workload.generated,
        limit: name(found.decode.limit).to_string(),
        prompt_limit: name(found.prompt.limit).to_string(),
        profile: kind(planner.measured.as_ref()?),
    })
}

/// Measured and predicted times of passes, or why they are not compared.
fn calibration(runtime: &Runtime) -> Result<CalibrationCounts, NotCalibrated> {
    if !runtime.config.on_wall_clock() {
        return Err(NotCalibrated::Simulated);
    }
    if runtime.tenant.planner.context().is_none() {
        return Err(NotCalibrated::NothingPredicted);
    }
    let clock = &runtime.telemetry.clock;
    Ok(CalibrationCounts {
        decode: times(&clock.counts.decode),
        prompt: times(&clock.counts.prompt),
    })
}

fn plan_use(context: &ContextPlan) -> PlanUse {
    PlanUse {
        source: context.source.name().to_owned(),
        ubatch: context.asked.workload.ubatch,
        sequences: context.asked.workload.sequences,
    }
}

/// The plan that was decided for the context that was made last, and the one that the arena has, as JSON.
pub fn plans(runtime: &Runtime) -> Option<String> {
    let context = runtime.tenant.planner.context()?;
    serde_json::to_string(&serde_json::json!({
        "source": context.source.name(),
        "workload": context.asked.workload,
        "planned": context.planned,
        "running": runtime.tenant.residency.carved(),
    }))
    .ok()
}

fn times(lane: &Lane) -> PassTimes {
    let (measured, predicted) = lane.seconds_per_pass();
    PassTimes {
        passes: lane.passes(),
        measured_seconds_per_pass: measured.all,
        predicted_seconds_per_pass: predicted.all,
        measured_cpu_seconds_per_pass: measured.cpu,
        predicted_cpu_seconds_per_pass: predicted.cpu,
        off_by: lane.off_by(),
        too_far_off: lane.too_far_off().is_some(),
    }
}

fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::Link => "link",
        Limit::Dram => "dram",
        Limit::Gpu => "gpu",
        Limit::Cpu => "cpu",
    }
}

fn kind(profile: &Profile) -> ProfileKind {
    match profile.origin {
        Origin::Measured => ProfileKind::Measured,
        Origin::Stated if profile.key == Profile::assumed().key => ProfileKind::Assumed,
        Origin::Stated => ProfileKind::Stated,
    }
}

/// Reports whether another process has written the file since this one attached pipeshard.
fn is_of_others(path: &Path, began: SystemTime) -> bool {
    let written = std::fs::metadata(path).and_then(|file| file.modified());
    written.is_ok_and(|at| at > began)
}

/// Prints the report's lines on standard error and writes the files that were asked for. `details`: the tool's log, which may be
/// silent, gets all the rest.
pub fn publish(runtime: &mut Runtime, details: bool) {
    let timeline = runtime.telemetry.trace.timeline();
    let report = report_with(runtime, timeline.as_ref());
    let clock = &mut runtime.telemetry.clock;
    observing::passes(&runtime.config, &runtime.tenant, clock);
    let config = &runtime.config;
    if details {
        log::debug(&format!("all that was counted\n{}", report.render_table()));
    }
    log::to_stderr(&report.render_lines());
    // a router that loads no model has the settings of its children, and ends behind them
    let telemetry = &runtime.telemetry;
    let by_others =
        |path: &Path| telemetry.counters.models == 0 && is_of_others(path, telemetry.began);
    if let Some(path) = config.report.as_deref().filter(|path| !by_others(path)) {
        if let Err(error) = report.write_json(path) {
            log::error(&error.to_string());
        }
    }
    if let (Some(path), Some(timeline)) = (&config.trace, timeline) {
        if let Err(error) = timeline.write(path) {
            log::error(&error.to_string());
        }
    }
    runtime.telemetry.published = true;
}
