//! What the passes of a run took is written down for `pipeshard tune`. A run changes nothing by it, neither its own plan nor the next.

use super::keeping;
use crate::hook::config::Config;
use crate::hook::telemetry::pass_clock::{shape_of, PassClock};
use crate::hook::tenant::Tenant;
use crate::profile::build_name;
use pipeshard_plan::cost::{Costs, Forecast};
use pipeshard_plan::request::{fingerprint, Observation, OBSERVATION_SCHEMA};

/// Writes down what passes took since this was called last, where enough of them say so.
pub fn passes(config: &Config, tenant: &Tenant, clock: &mut PassClock) {
    let Some(observed) = observed(config, tenant, clock) else {
        return;
    };
    clock.price_anew();
    if let Some(cache) = keeping::cache(config) {
        if let Err(error) = cache.note(&observed) {
            keeping::tell_once(&error.to_string());
        }
    }
}

fn observed(config: &Config, tenant: &Tenant, clock: &PassClock) -> Option<Observation> {
    let passes = clock.most_compared()?;
    passes.lane.off_by_enough_passes()?;
    let with = tenant.pricing().filter(|_| config.on_wall_clock())?;
    let model = tenant.weights.only_model()?;
    let (measured, predicted) = passes.lane.seconds_per_pass();
    Some(Observation {
        schema: OBSERVATION_SCHEMA,
        build: build_name(),
        model: fingerprint(&model.inventory, tenant.weights.described()),
        machine: with.profile.key.clone(),
        experts_used: with.asked.experts_used,
        cache_type_k: with.asked.type_k.to_owned(),
        cache_type_v: with.asked.type_v.to_owned(),
        plan: with.plan.clone(),
        shape: passes.shape(),
        passes: passes.lane.passes(),
        seconds: measured.all,
        cpu_seconds: measured.cpu,
        predicted_seconds: predicted.all,
    })
}

/// Prices passes of so many rows under the plan that the arena has. Takes as long as some passes are simulated: once for each
/// number of rows.
pub fn forecast(tenant: &Tenant, rows: u32) -> Option<Forecast> {
    let with = tenant.pricing()?;
    let costs = Costs::new(with.model(), with.profile);
    let shape = shape_of(rows);
    Some(Forecast::of(&costs, with.plan, shape, with.asked.context))
}
