//! Plans that are kept: the same command has the same plan, until the user says otherwise (`pipeshard tune`).

use crate::hook::config::Config;
use crate::hook::log;
use crate::hook::planning::context::{KeptFor, PlanSource};
use crate::plan_cache::{PlanCache, Stored};
use crate::profile::build_name;
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::Profile;
use pipeshard_plan::request::{Decided, KeptPlan, PlanKey, PlanRequest};
use pipeshard_plan::search::Found;
use std::sync::atomic::{AtomicBool, Ordering};

/// The decisions for a context, and where they come from.
pub struct Chosen {
    /// The plan that they make, and what it costs.
    pub found: Found,
    /// Where they come from.
    pub source: PlanSource,
    /// What is kept of them; none where nothing is.
    pub kept: Option<KeptFor>,
}

/// Reports once in a process that plans cannot be kept. The run goes on.
pub fn tell_once(why: &str) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        log::warn(why);
    }
}

/// Where plans are kept; none where they are not.
pub fn cache(config: &Config) -> Option<PlanCache> {
    if config.debug.changes_plans() {
        return None;
    }
    match config.plan_cache.open() {
        Ok(cache) => cache,
        Err(why) => {
            tell_once(&why);
            None
        }
    }
}

/// The kept decisions, where there are some that fit; else those of a search, which are kept from here on.
pub fn choose(
    config: &Config,
    request: &PlanRequest,
    profile: &Profile,
) -> Result<Chosen, PlanError> {
    let searched = |found| Chosen {
        found,
        source: PlanSource::Searched,
        kept: None,
    };
    let Some(cache) = cache(config) else {
        return Ok(searched(request.solve(profile)?));
    };
    let key = PlanKey::of(request, profile, &build_name(), config.reserve);
    let mut does_not_fit = false;
    match cache.load(&key) {
        Stored::Valid(kept) => match request.follow(profile, &kept.decided) {
            Ok(found) => return Ok(followed(found, cache, *kept)),
            Err(why) => {
                log::warn(&format!(
                    "the plan that was kept for this command does not fit any more ({why}); another is searched for and takes its place"
                ));
                does_not_fit = true;
            }
        },
        Stored::Nothing => {}
        Stored::Damaged(why) => log::warn(&why),
    }
    let found = request.solve(profile)?;
    let plan = KeptPlan::of(key, &found, false);
    let kept = match does_not_fit {
        true => cache.replace(&plan).map(|()| plan),
        false => cache.keep(plan),
    };
    match kept {
        Err(error) => {
            tell_once(&error.to_string());
            Ok(searched(found))
        }
        // another process was faster: both go by its plan
        Ok(first) if first.decided != Decided::from(&found) => {
            match request.follow(profile, &first.decided) {
                Ok(found) => Ok(followed(found, cache, first)),
                Err(_) => Ok(searched(found)),
            }
        }
        Ok(kept) => Ok(Chosen {
            source: PlanSource::Searched,
            ..followed(found, cache, kept)
        }),
    }
}

fn followed(found: Found, cache: PlanCache, kept: KeptPlan) -> Chosen {
    let source = match kept.tuned {
        true => PlanSource::Tuned,
        false => PlanSource::Kept,
    };
    Chosen {
        found,
        source,
        kept: Some(KeptFor {
            cache,
            key: kept.key,
            adapted: kept.adapted,
        }),
    }
}
