//! What happened, counted where it happens, and the report made of it.

use super::placement::SplitGraph;
use super::runtime::Runtime;
use super::{log, table};
use crate::lanes::fetch::{ExpertFetcher, FetchCounters};
use crate::report::{
    ExpertCounts, HostWaits, MemoryHeld, MemoryPeak, PassCounts, Report, UnitCounts,
    UnitPlacements, PROMPT_ROWS,
};
use crate::trace::summary::summary;
use crate::trace::timeline::Timeline;
use pipeshard_plan::plan::{Placement, Unit, UnitClass};
use pipeshard_sim as sim;
use pipeshard_sys as ffi;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Counters of one process.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The device's name and description.
    pub device: Option<String>,
    /// Why pipeshard is off.
    reason_off: Option<String>,
    passes: PassCounts,
    host_waits: HostWaits,
    /// By fetchers that are gone.
    fetched: FetchCounters,
    /// Splits submitted.
    pub splits: u64,
    /// Passes that ran a graph that had run before.
    pub graph_reuses: u64,
    /// Plans made.
    pub plans: u64,
    /// Spent on searches for plans.
    pub planning: Duration,
    /// Spent on the machine's profile.
    pub profiling: Duration,
    /// Times the arena took another shape while it was in use.
    pub recarvings: u64,
    /// Changes of the budget.
    pub budget_changes: u64,
    /// Times compute buffers on the device grew after the context was made.
    pub reallocations: u64,
    /// Contexts that asked for KV.
    pub contexts: u64,
    /// Models loaded.
    pub models: u64,
    /// Nodes that rewrites put into graphs, or changed.
    pub rewritten_nodes: u64,
    /// Page-locked bytes.
    pub page_locked_bytes: u64,
    /// Why memory is not page-locked.
    pub page_lock_refused: Option<String>,
    /// What went wrong.
    pub errors: Vec<String>,
    minimum_budget: u64,
    /// Where each unit was read in the latest graph of each tier: decode, prompt.
    seen: [Vec<Option<Placement>>; 2],
    declined: u64,
    /// Attentions of the device over cells in host memory, in all passes.
    pub over_host_cells: u64,
}

impl Outcome {
    /// Pipeshard is off, and why.
    pub fn off(&mut self, why: &str) {
        self.reason_off = Some(why.to_string());
    }

    /// What switched it off is over.
    pub fn on_again(&mut self) {
        self.reason_off = None;
    }

    /// Notes what went wrong, once.
    pub fn note_error(&mut self, why: String) {
        if !self.errors.contains(&why) {
            self.errors.push(why);
        }
    }

    /// The smallest budget that the latest plan could have been made for.
    pub fn set_minimum(&mut self, bytes: u64) {
        self.minimum_budget = bytes;
    }

    /// Notes where a graph that will run reads its weights.
    pub fn note_graph(&mut self, graph: &SplitGraph, units: &[Unit]) {
        let tier = usize::from(graph.rows >= PROMPT_ROWS);
        let seen = &mut self.seen[tier];
        seen.clear();
        seen.resize(units.len(), None);
        for &(id, placement) in &graph.bound {
            let small = units[id.index()].class == UnitClass::Small;
            if !small || seen[id.index()].is_none() {
                seen[id.index()] = Some(placement);
            }
        }
        self.declined += u64::from(graph.declined);
    }

    /// A pass was submitted whose operations saw so many rows.
    pub fn count_pass(&mut self, rows: u32) {
        match rows >= PROMPT_ROWS {
            true => self.passes.prompt += 1,
            false => self.passes.decode += 1,
        }
    }

    /// Passes of all tiers.
    pub fn total_passes(&self) -> u64 {
        self.passes.prompt + self.passes.decode
    }

    /// What fetched experts is given up.
    pub fn note_fetched(&mut self, fetcher: Option<ExpertFetcher>) {
        self.fetched = self.fetched.and(fetcher.as_ref());
    }

    /// The host waits for the device.
    pub fn count_host_wait(&mut self, why: ffi::ggml_sched_host_wait) {
        match why {
            ffi::GGML_SCHED_WAIT_USER_INPUT => self.host_waits.user_inputs += 1,
            ffi::GGML_SCHED_WAIT_HAND_OVER => self.host_waits.hand_overs += 1,
            _ => self.host_waits.other += 1,
        }
    }

    /// The host waited so many times for the router's choice.
    pub fn count_choices(&mut self, waits: u64) {
        self.host_waits.expert_choices += waits;
    }

    fn unit_counts(&self, tier: usize) -> UnitCounts {
        let count = |p: Placement| self.seen[tier].iter().filter(|&&s| s == Some(p)).count() as u64;
        UnitCounts {
            resident: count(Placement::Resident),
            kept: count(Placement::Kept),
            streamed: count(Placement::Streamed),
            host: count(Placement::Host),
        }
    }
}

/// The report on what happened so far.
pub fn report(runtime: &Runtime) -> Report {
    report_with(runtime, runtime.trace.timeline().as_ref())
}

fn report_with(runtime: &Runtime, timeline: Option<&Timeline>) -> Report {
    let outcome = &runtime.outcome;
    let engaged = outcome.total_passes() > 0 && outcome.reason_off.is_none();
    let reason = match (&outcome.reason_off, engaged) {
        (Some(why), _) => Some(why.clone()),
        (None, true) => None,
        (None, false) => Some("no graph with a model's weights has run".to_string()),
    };
    let now = runtime.ledger.now();
    let peak = runtime.ledger.peak();
    let arena = runtime.arena.as_ref();
    let copies = runtime
        .copier
        .as_ref()
        .map(|c| c.counters)
        .unwrap_or_default();
    let fetched = outcome.fetched.and(runtime.fetcher.as_ref());
    let not_resident = match &runtime.carved {
        Some(plan) => {
            let mut resident = vec![false; plan.units.len()];
            plan.residents
                .iter()
                .for_each(|id| resident[id.index()] = true);
            let streamed_or_host = plan
                .units
                .iter()
                .zip(resident)
                .filter(|(_, resident)| !resident);
            streamed_or_host
                .map(|(unit, _)| unit.name.clone())
                .collect()
        }
        None => Vec::new(),
    };
    let calibration = runtime.calibration();
    Report {
        engaged,
        reason,
        build: pipeshard_sys::BUILD_ID.to_string(),
        device: outcome.device.clone().unwrap_or_default(),
        budget: runtime.budget,
        minimum_budget: outcome.minimum_budget,
        held: MemoryHeld {
            resident: now.resident,
            kv: now.kv,
            slots: now.slots,
            scratch: now.scratch,
            other: now.other,
        },
        peak: MemoryPeak {
            resident: peak.resident,
            kv: peak.kv,
            slots: peak.slots,
            scratch: peak.scratch,
            other: peak.other,
            total: runtime.ledger.peak_total(),
        },
        context_bytes: runtime.config.sim.as_ref().map_or(0, |spec| spec.context),
        passes: outcome.passes,
        graph_reuses: outcome.graph_reuses,
        bytes_streamed: arena.map_or(0, |a| a.streamed_bytes()) + fetched.bytes,
        bytes_uploaded: arena.map_or(0, |a| a.uploaded_bytes()),
        copies: arena.map_or(0, |a| a.group_copies()),
        splits: outcome.splits,
        stalls: arena.map_or(0, |a| a.stalls()),
        host_waits: HostWaits {
            other: outcome.host_waits.other + copies.staging_waits,
            ..outcome.host_waits
        },
        units: UnitPlacements {
            decode: outcome.unit_counts(0),
            prompt: outcome.unit_counts(1),
        },
        page_locked_bytes: outcome.page_locked_bytes,
        page_lock_refused: outcome.page_lock_refused.clone(),
        budget_changes: outcome.budget_changes,
        reallocations_after_reserve: outcome.reallocations,
        replans: outcome.plans.saturating_sub(1),
        planning_seconds: outcome.planning.as_secs_f64(),
        profiling_seconds: outcome.profiling.as_secs_f64(),
        errors: outcome.errors.clone(),
        contexts: outcome.contexts,
        models: outcome.models,
        experts: ExpertCounts {
            beside_cpu: fetched.experts,
            bytes_beside_cpu: fetched.bytes,
            ..arena.map_or_else(Default::default, |a| ExpertCounts {
                copied: a.experts().copied,
                reused: a.experts().reused,
                bytes_saved: a.experts().bytes_saved,
                ..ExpertCounts::default()
            })
        },
        staged_bytes: copies.staged_bytes,
        recarvings: outcome.recarvings,
        rewritten_nodes: outcome.rewritten_nodes,
        declined_nodes: outcome.declined,
        attentions_over_host_cells: outcome.over_host_cells,
        not_resident,
        simulated_device: runtime
            .device
            .filter(|d| sim::is_simulated(d.raw()))
            .and_then(|d| serde_json::to_value(sim::counters(d.raw())).ok()),
        saved_plan: runtime.saved_plan_use(),
        timeline: timeline.map(summary),
        predicted: runtime.predicted(),
        not_calibrated: calibration.err().map(str::to_string),
        calibration: calibration.ok(),
        ..Report::default()
    }
}

static PUBLISHED: AtomicBool = AtomicBool::new(false);

/// Prints the report's table on standard error and writes the files that were asked for.
pub fn publish(runtime: &mut Runtime) {
    runtime.learn_from_passes();
    let timeline = runtime.trace.timeline();
    let report = report_with(runtime, timeline.as_ref());
    eprintln!("{}", report.render_table());
    runtime.forget_profile_that_was_off();
    if let Some(path) = &runtime.config.report {
        if let Err(error) = report.write_json(path) {
            log::error(&error.to_string());
        }
    }
    if let (Some(path), Some(timeline)) = (&runtime.config.trace, timeline) {
        if let Err(error) = timeline.write(path) {
            log::error(&error.to_string());
        }
    }
    PUBLISHED.store(true, Ordering::Relaxed);
}

/// At the end of the process: publishes, unless the last model's end already did.
pub fn publish_at_exit() {
    if PUBLISHED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(shared) = table::shared() {
        publish(&mut shared.lock());
    }
}
