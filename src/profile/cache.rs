//! Where profiles are kept: JSON under the user's cache directory, one file per key.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, Stored};
use pipeshard_plan::profile::{read, Profile, ProfileKey};

/// A folder of profiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// Why profiles cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Nobody says where.
    #[error("the profile cannot be kept: set XDG_CACHE_HOME or HOME to a folder, or every run measures it")]
    NoFolder,
    /// The file cannot be written.
    #[error("the profile cannot be kept as {path}: {source}; it will be measured again next time")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A number that stays the same from build to build (FNV-1a).
fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The name of a key's file in a cache.
fn file_name(key: &ProfileKey) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let device: String = key.device.to_ascii_lowercase().chars().map(word).collect();
    let device: Vec<&str> = device.split('-').filter(|part| !part.is_empty()).collect();
    let device: String = device.join("-").chars().take(40).collect();
    let all = format!(
        "{}\n{}\n{}\n{}\n{}\n{}",
        key.device, key.slot, key.driver, key.cpu, key.threads, key.build
    );
    format!("profile-{device}-{:016x}.json", stable_hash(&all))
}

impl Cache {
    /// The user's: `$XDG_CACHE_HOME/pipeshard`, or `~/.cache/pipeshard`.
    ///
    /// # Errors
    /// Where neither is set.
    pub fn of_user() -> Result<Self, CacheError> {
        Self::from_lookup(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn from_lookup(get: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, CacheError> {
        // the specification of base directories wants relative paths to be ignored
        let absolute = |name: &str| get(name).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        let base = base.ok_or(CacheError::NoFolder)?;
        Ok(Cache::in_folder(&base.join("pipeshard")))
    }

    /// A folder of its own, which need not exist yet.
    pub fn in_folder(folder: &Path) -> Self {
        Cache {
            folder: folder.to_owned(),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file for a key.
    pub fn path(&self, key: &ProfileKey) -> PathBuf {
        self.folder.join(file_name(key))
    }

    /// The profile for a key.
    pub fn load(&self, key: &ProfileKey) -> Stored<Profile> {
        let path = self.path(key);
        files::load(
            &path,
            |text| Ok(Some(read(text)?).filter(|profile| profile.key == *key)),
            |reason| {
                format!(
                    "the profile {} is damaged: {reason}; measured again",
                    path.display()
                )
            },
        )
    }

    /// The profile of a machine with the CPU, the threads and the build of `host` that was written last, and its file: for those
    /// who open no device and so cannot tell which one there is.
    pub fn latest_of(&self, host: &ProfileKey) -> Option<(PathBuf, Profile)> {
        let matches = |path: PathBuf| {
            let profile = read(&files::read(&path).ok()??).ok()?;
            let key = &profile.key;
            let same =
                (&key.cpu, key.threads, &key.build) == (&host.cpu, host.threads, &host.build);
            same.then_some((path, profile))
        };
        let files = files::list(&self.folder, "profile-", ".json");
        files.into_iter().rev().find_map(matches)
    }

    /// Keeps a profile under its key: all of it or, where that fails, what was there.
    ///
    /// # Errors
    /// Where the folder or the file cannot be written.
    pub fn store(&self, profile: &Profile) -> Result<PathBuf, CacheError> {
        let path = self.path(&profile.key);
        let fail = |source| CacheError::Write {
            path: path.clone(),
            source,
        };
        let written = text(profile).and_then(|text| files::replace(&path, &text));
        written.map_err(fail)?;
        Ok(path)
    }

    /// Keeps a profile that was measured, unless another process has kept one meanwhile. Returns the one that is kept.
    ///
    /// # Errors
    /// Where the folder or the file cannot be written.
    pub fn store_first(&self, profile: Profile) -> Result<Profile, CacheError> {
        let path = self.path(&profile.key);
        let fail = |source| CacheError::Write {
            path: path.clone(),
            source,
        };
        let text = text(&profile).map_err(fail)?;
        if files::write_first(&path, &text).map_err(fail)? {
            return Ok(profile);
        }
        match self.load(&profile.key) {
            Stored::Valid(first) => Ok(*first),
            Stored::Nothing | Stored::Damaged(_) => {
                files::replace(&path, &text).map_err(fail)?;
                Ok(profile)
            }
        }
    }
}

fn text(profile: &Profile) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(profile)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::file::from_file;
    use pipeshard_plan::profile::{Curve, Op, Origin, Point, Processor, PROFILE_SCHEMA_VERSION};

    fn key() -> ProfileKey {
        ProfileKey {
            device: "NVIDIA H100 80GB HBM3".to_owned(),
            slot: "0000:01:00.0 x16".to_owned(),
            driver: "550.54".to_owned(),
            cpu: "AMD EPYC".to_owned(),
            threads: 16,
            build: "0.2.0 abc".to_owned(),
        }
    }

    fn measured(key: ProfileKey) -> Profile {
        let point = Point {
            rows: 1,
            seconds: 1.5e-5,
            spread: 0.01,
            copy_busy: Some(2e-5),
        };
        Profile {
            origin: Origin::Measured,
            key,
            curves: vec![Curve {
                on: Processor::Gpu,
                op: product(4096),
                points: vec![point],
            }],
            ..Profile::assumed()
        }
    }

    fn product(rows: u64) -> Op {
        Op::Product {
            type_name: "q4_0".to_owned(),
            columns: 4096,
            rows,
        }
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(&folder.path().join("deep/pipeshard"));
        (folder, cache)
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let (_folder, cache) = cache();
        let profile = measured(key());
        assert_eq!(cache.load(&key()), Stored::Nothing);
        let path = cache.store(&profile).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("profile-nvidia-h100-80gb-hbm3-"), "{name}");
        assert_eq!(cache.load(&key()), Stored::Valid(Box::new(profile)));
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left");
    }

    #[test]
    fn cards_of_one_name_in_different_slots_have_profiles_of_their_own() {
        let (_folder, cache) = cache();
        let other = ProfileKey {
            slot: "0000:02:00.0 x4".to_owned(),
            ..key()
        };
        cache.store(&measured(key())).unwrap();
        assert_eq!(cache.load(&other), Stored::Nothing);
        cache.store(&measured(other.clone())).unwrap();
        assert_ne!(cache.path(&key()), cache.path(&other));
        assert!(matches!(cache.load(&key()), Stored::Valid(_)));
        let difference = key().difference(&other).unwrap();
        assert_eq!(difference.0, "slot");
    }

    #[test]
    fn of_two_that_measure_at_once_the_first_is_kept() {
        let (_folder, cache) = cache();
        let (first, mut second) = (measured(key()), measured(key()));
        second.link.pinned.median *= 2.0;
        assert_eq!(cache.store_first(first.clone()).unwrap(), first);
        assert_eq!(cache.store_first(second.clone()).unwrap(), first);
        assert_eq!(cache.load(&key()), Stored::Valid(Box::new(first)));
        std::fs::write(cache.path(&key()), "{").unwrap();
        assert_eq!(cache.store_first(second.clone()).unwrap(), second);
        assert_eq!(cache.load(&key()), Stored::Valid(Box::new(second)));
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let (_folder, cache) = cache();
        cache.store(&measured(key())).unwrap();
        let change = |change: fn(&mut ProfileKey)| {
            let mut other = key();
            change(&mut other);
            other
        };
        let others = [
            (change(|k| k.device.push('x')), "device"),
            (change(|k| k.driver.push('x')), "driver"),
            (change(|k| k.cpu.push('x')), "CPU"),
            (change(|k| k.threads = 8), "number of threads"),
            (change(|k| k.build.push('x')), "build"),
        ];
        for (other, what) in others {
            assert_eq!(cache.load(&other), Stored::Nothing);
            // a file that was moved to another's place is not taken for it
            std::fs::copy(cache.path(&key()), cache.path(&other)).unwrap();
            assert_eq!(cache.load(&other), Stored::Nothing, "{what}");
            assert_eq!(other.difference(&key()).unwrap().0, what);
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let (_folder, cache) = cache();
        let path = cache.store(&measured(key())).unwrap();
        assert!(cache.latest_of(&key()).is_some());
        // blanks behind a profile change nothing, however many they are
        let mut text = std::fs::read(&path).unwrap();
        text.resize(files::MAX_BYTES as usize, b' ');
        std::fs::write(&path, &text).unwrap();
        assert!(matches!(cache.load(&key()), Stored::Valid(_)));
        text.push(b' ');
        std::fs::write(&path, &text).unwrap();
        let found = cache.load(&key());
        assert!(
            matches!(&found, Stored::Damaged(why) if why.contains("too large")),
            "{found:?}"
        );
        assert_eq!(cache.latest_of(&key()), None);
        let refused = from_file(&path, &key()).unwrap_err().to_string();
        assert!(refused.contains("too large"), "{refused}");
    }

    #[test]
    fn damage_is_told() {
        let (_folder, cache) = cache();
        let path = cache.store(&measured(key())).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let version = |number: u32| format!("\"schema_version\": {number}");
        let now = version(PROFILE_SCHEMA_VERSION);
        let seconds = serde_json::to_string(&1.5e-5).unwrap();
        let replaced = |what: &str, by: &str| {
            let damage = whole.replace(what, by);
            assert_ne!(damage, whole, "'{what}' is not in the file");
            damage
        };
        let damages = [
            whole[..whole.len() / 2].to_owned(),
            String::new(),
            "[]".to_owned(),
            replaced(&now, &version(99)),
            replaced("\"pinned\"", "\"pined\""),
            replaced(&seconds, &format!("-{seconds}")),
            replaced(&seconds, "0.0"),
            format!("{{{now}}}"),
        ];
        for damage in damages {
            std::fs::write(&path, &damage).unwrap();
            let found = cache.load(&key());
            assert!(
                matches!(&found, Stored::Damaged(why) if why.contains("measured again")),
                "{damage}: {found:?}"
            );
            let refused = from_file(&path, &key()).unwrap_err().to_string();
            assert!(
                refused.contains("is not a profile of this version"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_measured_file_of_another_machine_is_refused_and_a_stated_one_is_taken() {
        let (folder, cache) = cache();
        let path = cache.store(&measured(key())).unwrap();
        assert!(from_file(&path, &key()).is_ok());
        let mut other = key();
        other.threads = 8;
        let refused = from_file(&path, &other).unwrap_err().to_string();
        assert!(
            refused.contains("number of threads is '16', here it is '8'"),
            "{refused}"
        );
        let path = cache.store(&Profile::assumed()).unwrap();
        assert_eq!(from_file(&path, &other).unwrap(), Profile::assumed());
        let missing = from_file(&folder.path().join("none"), &other).unwrap_err();
        assert!(missing.to_string().contains("cannot be read"));
    }

    #[test]
    fn curves_are_added_and_replaced() {
        let mut profile = measured(key());
        let curve = |rows, seconds| Curve {
            on: Processor::Gpu,
            op: product(rows),
            points: vec![Point {
                rows: 1,
                seconds,
                spread: 0.0,
                copy_busy: None,
            }],
        };
        profile.merge(vec![curve(4096, 1.0), curve(64, 2.0)]);
        let times: Vec<f64> = profile.curves.iter().map(|c| c.points[0].seconds).collect();
        assert_eq!(times, [1.0, 2.0]);
    }

    #[test]
    fn the_folder_is_the_users() {
        let folder = |pairs: &'static [(&str, &str)]| {
            Cache::from_lookup(move |name| {
                pairs
                    .iter()
                    .find(|p| p.0 == name)
                    .map(|p| PathBuf::from(p.1))
            })
        };
        let at = |path: &str| Cache::in_folder(Path::new(path));
        let both = &[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(folder(both).unwrap(), at("/x/pipeshard"));
        assert_eq!(
            folder(&[("HOME", "/h")]).unwrap(),
            at("/h/.cache/pipeshard")
        );
        let relative = &[("XDG_CACHE_HOME", "x"), ("HOME", "/h")];
        assert_eq!(folder(relative).unwrap(), at("/h/.cache/pipeshard"));
        assert!(folder(&[])
            .unwrap_err()
            .to_string()
            .contains("XDG_CACHE_HOME"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = Cache::in_folder(&file.join("below")).store(&measured(key()));
        assert!(refused
            .unwrap_err()
            .to_string()
            .contains("file/below/profile-"));
    }
}
