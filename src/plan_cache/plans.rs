//! Kept plans: JSON, one file per key. The first writer wins.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, Stored};
use pipeshard_plan::request::{Adapted, KeptPlan, PlanKey};

/// A folder of kept plans and observations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanCache {
    pub(super) folder: PathBuf,
}

/// Why something cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("the plan cannot be kept as {path}: {source}; another run may have another plan once more is known of this machine")]
pub struct CannotKeep {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl PlanCache {
    /// In a folder, which need not exist yet.
    pub fn in_folder(folder: &Path) -> Self {
        PlanCache {
            folder: folder.to_owned(),
        }
    }

    /// The file for a key.
    pub fn path(&self, key: &PlanKey) -> PathBuf {
        self.folder.join(key.file_name())
    }

    /// What is kept for a key.
    pub fn load(&self, key: &PlanKey) -> Stored<KeptPlan> {
        let path = self.path(key);
        let parse = |text: &[u8]| match KeptPlan::read(text)? {
            kept if kept.key == *key => Ok(Some(kept)),
            _ => Err("it is that of another key".to_owned()),
        };
        files::load(&path, parse, |why| {
            format!(
                "the kept plan {} is damaged: {why}; a plan is made anew and takes its place",
                path.display()
            )
        })
    }

    /// Keeps a plan unless one is kept for its key. Returns the one that is kept from here on.
    ///
    /// # Errors
    /// [`CannotKeep`], where the file cannot be written.
    pub fn keep(&self, plan: KeptPlan) -> Result<KeptPlan, CannotKeep> {
        let path = self.path(&plan.key);
        let fail = |source| CannotKeep {
            path: path.clone(),
            source,
        };
        let text = text(&plan).map_err(fail)?;
        if files::write_first(&path, &text).map_err(fail)? {
            return Ok(plan);
        }
        match self.load(&plan.key) {
            Stored::Valid(first) => Ok(*first),
            Stored::Nothing | Stored::Damaged(_) => {
                files::replace(&path, &text).map_err(fail)?;
                Ok(plan)
            }
        }
    }

    /// Keeps a plan in the place of what is kept for its key.
    ///
    /// # Errors
    /// [`CannotKeep`], where the file cannot be written.
    pub fn replace(&self, plan: &KeptPlan) -> Result<(), CannotKeep> {
        let path = self.path(&plan.key);
        let written = text(plan).and_then(|text| files::replace(&path, &text));
        written.map_err(|source| CannotKeep { path, source })
    }

    /// Adds to a kept plan what became of it when compute buffers were known, unless that is there already.
    ///
    /// # Errors
    /// [`CannotKeep`], where the file cannot be written.
    pub fn settle(&self, key: &PlanKey, adapted: Adapted) -> Result<(), CannotKeep> {
        match self.load(key) {
            Stored::Valid(kept) if kept.adapted.is_none() => self.replace(&KeptPlan {
                adapted: Some(adapted),
                ..*kept
            }),
            _ => Ok(()),
        }
    }

    /// Removes the plans of a model that were made by another profile of the same machine, which no run looks for any more, and
    /// returns how many there were. Files that are not plans stay.
    ///
    /// # Errors
    /// [`CannotKeep`], where a file cannot be removed.
    pub fn forget_others(&self, than: &PlanKey) -> Result<usize, CannotKeep> {
        let mut gone = 0;
        for path in files::list(&self.folder, "plan-", ".json") {
            let kept = files::read(&path).ok().flatten();
            let kept = kept.and_then(|text| KeptPlan::read(&text).ok());
            let its = |kept: &KeptPlan| {
                let key = &kept.key;
                (&key.model, &key.machine) == (&than.model, &than.machine)
                    && key.profile != than.profile
            };
            if kept.as_ref().is_some_and(its) {
                files::remove(&path).map_err(|source| CannotKeep { path, source })?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

fn text(plan: &KeptPlan) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(plan)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_plan::plan::Decisions;
    use pipeshard_plan::profile::ProfileKey;
    use pipeshard_plan::request::{Decided, KEPT_PLAN_SCHEMA};

    fn key(budget: u64) -> PlanKey {
        PlanKey {
            build: "b".to_owned(),
            model: "0123456789abcdef".to_owned(),
            machine: ProfileKey::default(),
            profile: "p".to_owned(),
            budget,
            reserve: None,
            output_on_host: false,
            encoders: (0, 0),
            context: 4096,
            batch: 2048,
            ubatch: 512,
            ubatch_is_free: true,
            sequences: 1,
            shared_cache: false,
            full_windows: false,
            outputs: 1,
            experts_used: 0,
            cache_type_k: "f16".to_owned(),
            cache_type_v: "f16".to_owned(),
            prompt: 3072,
            generate: 64,
        }
    }

    fn plan(budget: u64, ubatch: u32) -> KeptPlan {
        KeptPlan {
            schema: KEPT_PLAN_SCHEMA,
            key: key(budget),
            decided: Decided {
                ubatch,
                output_on_host: false,
                decisions: Decisions::default(),
            },
            ttft: 1.0,
            tps: 10.0,
            tuned: false,
            adapted: None,
        }
    }

    fn cache() -> (tempfile::TempDir, PlanCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = PlanCache::in_folder(&folder.path().join("deep/plans"));
        (folder, cache)
    }

    fn files_in(cache: &PlanCache) -> usize {
        std::fs::read_dir(&cache.folder).unwrap().count()
    }

    #[test]
    fn the_first_writer_wins() {
        let (_folder, cache) = cache();
        assert_eq!(cache.load(&key(1)), Stored::Nothing);
        assert_eq!(cache.keep(plan(1, 512)).unwrap().decided.ubatch, 512);
        assert_eq!(cache.keep(plan(1, 1024)).unwrap().decided.ubatch, 512);
        assert_eq!(cache.keep(plan(2, 1024)).unwrap().decided.ubatch, 1024);
        assert_eq!(cache.load(&key(1)), Stored::Valid(Box::new(plan(1, 512))));
        assert_eq!(files_in(&cache), 2, "no temporary file is left");
        cache.replace(&plan(1, 2048)).unwrap();
        assert_eq!(cache.load(&key(1)), Stored::Valid(Box::new(plan(1, 2048))));
    }

    #[test]
    fn of_many_writers_all_go_by_one_plan() {
        let (_folder, cache) = cache();
        let won: Vec<u32> = std::thread::scope(|scope| {
            let cache = &cache;
            let writers: Vec<_> = (1..=16)
                .map(|ubatch| scope.spawn(move || cache.keep(plan(1, ubatch)).unwrap()))
                .collect();
            let ended = writers.into_iter().map(|writer| writer.join().unwrap());
            ended.map(|kept| kept.decided.ubatch).collect()
        });
        assert!(won.iter().all(|ubatch| *ubatch == won[0]), "{won:?}");
        assert_eq!(files_in(&cache), 1);
    }

    #[test]
    fn what_is_damaged_is_told_and_replaced() {
        let (_folder, cache) = cache();
        cache.keep(plan(1, 512)).unwrap();
        let path = cache.path(&key(1));
        let whole = std::fs::read_to_string(&path).unwrap();
        let form = format!("\"schema\": {KEPT_PLAN_SCHEMA}");
        assert!(whole.contains(&form), "{whole}");
        for damage in [
            whole[..whole.len() / 2].to_owned(),
            String::new(),
            whole.replace(&form, "\"schema\": 99"),
            whole.replace("\"ubatch\": 512", "\"ubatch\": 0"),
            whole.replace("\"budget\": 1", "\"budget\": 7"),
        ] {
            assert_ne!(damage, whole);
            std::fs::write(&path, &damage).unwrap();
            let Stored::Damaged(why) = cache.load(&key(1)) else {
                panic!("{damage}");
            };
            assert!(why.contains("is damaged") && why.contains("takes its place"));
            assert_eq!(cache.keep(plan(1, 1024)).unwrap().decided.ubatch, 1024);
            assert_eq!(cache.load(&key(1)), Stored::Valid(Box::new(plan(1, 1024))));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = PlanCache::in_folder(&file.join("below"));
        let why = cache.keep(plan(1, 512)).unwrap_err().to_string();
        assert!(
            why.contains("file/below/plan-") && why.contains("cannot be kept"),
            "{why}"
        );
    }

    #[test]
    fn what_became_of_a_plan_is_added_once() {
        let (_folder, cache) = cache();
        let adapted = |scratch| Adapted {
            scratch,
            reserve: 0,
            kv: Vec::new(),
            decisions: Decisions::default(),
        };
        cache.settle(&key(1), adapted(1)).unwrap();
        assert_eq!(cache.load(&key(1)), Stored::Nothing);
        cache.keep(plan(1, 512)).unwrap();
        cache.settle(&key(1), adapted(1)).unwrap();
        cache.settle(&key(1), adapted(2)).unwrap();
        let Stored::Valid(kept) = cache.load(&key(1)) else {
            panic!("nothing is kept");
        };
        assert_eq!(kept.adapted, Some(adapted(1)));
    }

    #[test]
    fn plans_by_an_earlier_profile_are_forgotten() {
        let (_folder, cache) = cache();
        let mut tuned = plan(1, 512);
        tuned.key.profile = "measured again".to_owned();
        let mut elsewhere = plan(3, 512);
        elsewhere.key.machine.device = "another card".to_owned();
        for plan in [plan(1, 512), plan(2, 512), elsewhere.clone(), tuned.clone()] {
            cache.keep(plan).unwrap();
        }
        std::fs::write(cache.folder.join("plan-mine.json"), "{}").unwrap();
        let gone = cache.forget_others(&tuned.key).unwrap();
        assert_eq!((gone, files_in(&cache)), (2, 3));
        assert_eq!(cache.load(&tuned.key), Stored::Valid(Box::new(tuned)));
        assert_eq!(
            cache.load(&elsewhere.key),
            Stored::Valid(Box::new(elsewhere))
        );
    }
}
