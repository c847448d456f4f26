//! What the passes of a run have shown is kept with the profile, and the next plans go by it.

use super::log;
use super::runtime::Runtime;
use crate::profile::{file_of_user, Cache};
use crate::report::LearnedOfModel;
use pipeshard_plan::cost::{learn, Observed, PassSeconds};
use pipeshard_plan::profile::{model_label, Learned, Origin, Profile};
use std::time::Duration;

/// A younger profile is not measured again for being off: on a machine that changes from minute to minute each start would take
/// some seconds for it, and gain nothing.
const FRESH: Duration = Duration::from_secs(3600);
/// Passes that were predicted within this part teach nothing: what is known stays, and so do the plans that were made by it.
const RIGHT: f64 = 0.1;
/// What passes take is explained if they are priced at it within this part.
const EXPLAINED: f64 = 0.1;

impl Runtime {
    /// Takes over what the passes have shown since this was called last: for this process and, where the machine was measured, for
    /// later ones.
    pub fn learn_from_passes(&mut self) {
        let Some((learned, explained)) = self.shown_by_passes() else {
            return;
        };
        self.calibrating.explained = explained;
        self.calibrating.price_anew();
        if let Some((cache, profile)) = self.kept_profile() {
            if let Err(error) = cache.teach(&profile.key, learned.clone()) {
                log::warn(&format!("{error}; what this run has shown is lost"));
            }
        }
        if let Some(profile) = &mut self.measured {
            profile.learn(learned);
        }
    }

    /// What the passes have shown, and whether it explains what they took.
    fn shown_by_passes(&self) -> Option<(Learned, bool)> {
        let passes = self.calibrating.most_compared()?;
        passes.lane.off_by_more_than(RIGHT)?;
        let with = self.pricing().filter(|_| self.on_wall_clock())?;
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
    fn kept_profile(&self) -> Option<(Cache, &Profile)> {
        let measured = |profile: &&Profile| profile.origin == Origin::Measured;
        let profile = self.measured.as_ref().filter(measured)?;
        let ours = file_of_user().is_none() && self.on_wall_clock();
        Some((Cache::of_user().ok().filter(|_| ours)?, profile))
    }

    /// A profile that was measured and is too far off is kept no longer, unless it is fresh or what passes took is explained by now:
    /// the next run measures anew.
    pub fn forget_profile_that_was_off(&self) {
        let counts = &self.calibrating.counts;
        let explained = self.calibrating.explained && counts.prompt.too_far_off().is_none();
        let off = counts.too_far_off() && !explained;
        let (Some((cache, profile)), true) = (self.kept_profile(), off) else {
            return;
        };
        if let Err(error) = cache.discard(&profile.key, FRESH) {
            log::warn(&format!(
                "the profile {} was too far off and cannot be removed: {error}; plans go by it until it is",
                cache.path(&profile.key).display()
            ));
        }
    }

    /// What runs have shown of the model that is loaded, this one included.
    pub(super) fn learned(&self) -> Option<LearnedOfModel> {
        let ([model], Some(profile)) = (self.models.as_slice(), &self.measured) else {
            return None;
        };
        let known = profile.learned_of(&model_label(&model.inventory))?;
        Some(LearnedOfModel {
            cpu_times_as_long: known.cpu,
            link_beside_cpu: known.link_beside_cpu,
            passes: known.passes,
        })
    }
}

fn is_near(priced: PassSeconds, measured: PassSeconds) -> bool {
    (priced.all / measured.all - 1.0).abs() <= EXPLAINED
}
