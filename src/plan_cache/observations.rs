//! What passes of runs took: a file for each run, the latest of a model. Nobody but `pipeshard tune` reads them.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::plans::{CannotKeep, PlanCache};
use crate::files;
use pipeshard_plan::profile::ProfileKey;
use pipeshard_plan::request::Observation;

/// Runs of a model that are remembered.
const RUNS: usize = 16;

impl PlanCache {
    fn begin_of(&self, model: &str) -> String {
        format!("observed-{}-", model.get(..12).unwrap_or(model))
    }

    /// Keeps what a run has observed, and forgets what the oldest ones have.
    ///
    /// # Errors
    /// [`CannotKeep`], where the file cannot be written.
    pub fn note(&self, observed: &Observation) -> Result<(), CannotKeep> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let begin = self.begin_of(&observed.model);
        let name = format!(
            "{begin}{}-{}.json",
            now.unwrap_or_default().as_nanos(),
            std::process::id()
        );
        let path = self.folder.join(name);
        let text = serde_json::to_vec(observed).map_err(std::io::Error::from);
        let written = text.and_then(|text| files::replace(&path, &text));
        written.map_err(|source| CannotKeep { path, source })?;
        let known = files::list(&self.folder, &begin, ".json");
        for old in &known[..known.len().saturating_sub(RUNS)] {
            // another run may have removed it
            let _ = files::remove(old);
        }
        Ok(())
    }

    /// What runs of a model have observed on a machine with a build, the oldest first, and the files. What is damaged is left out
    /// and among the files.
    pub fn observed(
        &self,
        model: &str,
        machine: &ProfileKey,
        build: &str,
    ) -> (Vec<Observation>, Vec<PathBuf>) {
        let mut found = Vec::new();
        let mut of = Vec::new();
        for path in files::list(&self.folder, &self.begin_of(model), ".json") {
            let text = files::read(&path).ok().flatten().unwrap_or_default();
            match Observation::read(&text) {
                Ok(observed) => {
                    let ours = observed.model == model && observed.machine == *machine;
                    if ours && observed.build == build {
                        found.push(observed);
                        of.push(path);
                    }
                }
                Err(_) => of.push(path),
            }
        }
        (found, of)
    }

    /// Removes what was observed.
    ///
    /// # Errors
    /// [`CannotKeep`], where a file cannot be removed.
    pub fn forget_observed(&self, of: &[PathBuf]) -> Result<(), CannotKeep> {
        for path in of {
            files::remove(path).map_err(|source| CannotKeep {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_plan::cost::PassShape;
    use pipeshard_plan::plan::{plan, PlanInput};
    use pipeshard_plan::request::OBSERVATION_SCHEMA;

    fn observed(model: &str, passes: u64) -> Observation {
        Observation {
            schema: OBSERVATION_SCHEMA,
            build: "b".to_owned(),
            model: model.to_owned(),
            machine: ProfileKey::default(),
            experts_used: 0,
            cache_type_k: "f16".to_owned(),
            cache_type_v: "f16".to_owned(),
            plan: plan(&PlanInput::new(Vec::new(), Vec::new(), 1 << 30)).unwrap(),
            shape: PassShape {
                rows: 1,
                sequences: 1,
                kv_tokens: 0,
                outputs: 1,
            },
            passes,
            seconds: 0.1,
            cpu_seconds: 0.0,
            predicted_seconds: 0.2,
        }
    }

    #[test]
    fn the_latest_runs_of_a_model_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PlanCache::in_folder(folder.path());
        let machine = ProfileKey::default();
        for passes in 0..20 {
            cache.note(&observed("a model, and more", passes)).unwrap();
        }
        cache.note(&observed("another model", 99)).unwrap();
        let (found, of) = cache.observed("a model, and more", &machine, "b");
        let passes: Vec<u64> = found.iter().map(|observed| observed.passes).collect();
        assert_eq!(passes, (4..20).collect::<Vec<u64>>());
        assert!(cache
            .observed("a model, and more", &machine, "c")
            .0
            .is_empty());
        std::fs::write(&of[0], "{").unwrap();
        let (found, of) = cache.observed("a model, and more", &machine, "b");
        assert_eq!((found.len(), of.len()), (15, 16));
        cache.forget_observed(&of).unwrap();
        assert!(cache
            .observed("a model, and more", &machine, "b")
            .1
            .is_empty());
        assert_eq!(cache.observed("another model", &machine, "b").0.len(), 1);
    }
}
