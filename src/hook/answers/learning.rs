//! What the passes of a run have shown is kept with the profile, and the next plans go by it.

use crate::hook::config::Config;
use crate::hook::log;
use crate::hook::planning::planner::Planner;
use crate::hook::telemetry::pass_clock::{shape_of, PassClock};
use crate::hook::tenant::Tenant;
use crate::profile::{file_of_user, Cache};
use pipeshard_plan::cost::{learn, Costs, Forecast, Observed, PassSeconds};
use pipeshard_plan::profile::{Learned, Origin, Profile};
use std::time::Duration;

/// A younger profile is not measured again for being off: on a machine that changes from minute to minute each start would take
/// some seconds for it, and gain nothing.
const FRESH: Duration = Duration::from_secs(3600);
/// Passes that were predicted within this part teach nothing: what is known stays, and so do the plans that were made by it.
const RIGHT: f64 = 0.1;
/// What passes take is explained if they are priced at it within this part.
const EXPLAINED: f64 = 0.1;

/// Takes over what the passes have shown since this was called last: for this process and, where the machine was measured, for
/// later ones.
pub fn from_passes(config: &Config, tenant: &mut Tenant, clock: &mut PassClock) {
    let Some((learned, explained)) = shown_by_passes(config, tenant, clock) else {
        return;
    };
    clock.explained = explained;
    clock.price_anew();
    if let Some((cache, profile)) = kept_profile(config, &tenant.planner) {
        if let Err(error) = cache.teach(&profile.key, learned.clone()) {
            log::warn(&format!("{error}; what this run has shown is lost"));
        }
    }
    tenant.planner.learn(learned);
}

/// What the passes have shown, and whether it explains what they took.
fn shown_by_passes(config: &Config, tenant: &Tenant, clock: &PassClock) -> Option<(Learned, bool)> {
    let passes = clock.most_compared()?;
    passes.lane.off_by_more_than(RIGHT)?;
    let with = tenant.pricing().filter(|_| config.on_wall_clock())?;
    let (measured, _) = passes.lane.seconds_per_pass();
    let observed = Observed {
        plan: with.plan,
        shape: passes.shape(),
        passes: passes.lane.passes(),
        measured,
    };
    let (learned, priced) = learn(with.model(), with.profile, &observed)?;
    Some((learned, is_near(priced, measured)))
}

/// The profile that was measured, and where it is kept; without a folder of the user's nothing is.
fn kept_profile<'p>(config: &Config, planner: &'p Planner) -> Option<(Cache, &'p Profile)> {
    let measured = |profile: &&Profile| profile.origin == Origin::Measured;
    let profile = planner.measured.as_ref().filter(measured)?;
    let ours = file_of_user().is_none() && config.on_wall_clock();
    Some((Cache::of_user().ok().filter(|_| ours)?, profile))
}

/// A profile that was measured and is too far off is kept no longer, unless it is fresh or what passes took is explained by now:
/// the next run measures anew.
pub fn forget_profile_that_was_off(config: &Config, planner: &Planner, clock: &PassClock) {
    let counts = &clock.counts;
    let explained = clock.explained && counts.prompt.too_far_off().is_none();
    let off = counts.too_far_off() && !explained;
    let (Some((cache, profile)), true) = (kept_profile(config, planner), off) else {
        return;
    };
    if let Err(error) = cache.discard(&profile.key, FRESH) {
        log::warn(&format!(
            "the profile {} was too far off and cannot be removed: {error}; plans go by it until it is",
            cache.path(&profile.key).display()
        ));
    }
}

/// Prices passes of so many rows under the plan that the arena has. Takes as long as some passes are simulated: once for each
/// number of rows.
pub fn forecast(tenant: &Tenant, rows: u32) -> Option<Forecast> {
    let with = tenant.pricing()?;
    let costs = Costs::new(with.model(), with.profile);
    let shape = shape_of(rows);
    Some(Forecast::of(&costs, with.plan, shape, with.asked.context))
}

fn is_near(priced: PassSeconds, measured: PassSeconds) -> bool {
    (priced.all / measured.all - 1.0).abs() <= EXPLAINED
}
