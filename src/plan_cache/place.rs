//! Where plans and profiles are kept.

use std::path::{Path, PathBuf};

use super::plans::PlanCache;
use crate::profile::{Cache, CacheError};

/// Where plans are kept: `off`, or a folder.
pub const PLAN_CACHE: &str = "PIPESHARD_PLAN_CACHE";

/// What the user says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// Nothing: in the user's cache.
    #[default]
    Usual,
    /// Nowhere.
    Off,
    /// In this folder.
    Folder(PathBuf),
}

/// A place that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{PLAN_CACHE}: '{0}' is no place for plans; write off, or a folder with its whole path")]
pub struct PlaceError(String);

impl Place {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// [`PlaceError`] for what is neither `off` nor a whole path.
    pub fn read(value: Option<&str>) -> Result<Self, PlaceError> {
        match value {
            None | Some("") => Ok(Place::Usual),
            Some("off" | "0") => Ok(Place::Off),
            Some(path) if Path::new(path).is_absolute() => Ok(Place::Folder(path.into())),
            Some(other) => Err(PlaceError(other.to_owned())),
        }
    }

    /// The same from the environment.
    ///
    /// # Errors
    /// As [`Place::read`].
    pub fn from_env() -> Result<Self, PlaceError> {
        Self::read(std::env::var(PLAN_CACHE).ok().as_deref())
    }

    /// The profiles that are kept there; none where nothing is to be kept.
    ///
    /// # Errors
    /// The environment does not name the user's folder.
    pub fn profiles(&self) -> Result<Option<Cache>, CacheError> {
        match self {
            Place::Off => Ok(None),
            Place::Folder(folder) => Ok(Some(Cache::in_folder(folder))),
            Place::Usual => Cache::of_user().map(Some),
        }
    }

    /// The plans that are kept there; none where nothing is to be kept.
    ///
    /// # Errors
    /// A sentence, if the environment does not name the user's folder.
    pub fn open(&self) -> Result<Option<PlanCache>, String> {
        match self {
            Place::Off => Ok(None),
            Place::Folder(folder) => Ok(Some(PlanCache::in_folder(folder))),
            Place::Usual => match Cache::of_user() {
                Ok(cache) => Ok(Some(PlanCache::in_folder(&cache.folder().join("plans")))),
                Err(_) => Err(format!(
                    "there is no place to keep the plan: set XDG_CACHE_HOME or HOME to a folder, or {PLAN_CACHE}=off; another run may \
                     have another plan once more is known of this machine"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_off_or_a_whole_path() {
        assert_eq!(Place::read(None), Ok(Place::Usual));
        assert_eq!(Place::read(Some("off")), Ok(Place::Off));
        let folder = Place::Folder("/some/where".into());
        assert_eq!(Place::read(Some("/some/where")), Ok(folder.clone()));
        let why = Place::read(Some("plans")).unwrap_err().to_string();
        assert!(
            why.contains("PIPESHARD_PLAN_CACHE: 'plans'") && why.contains("off"),
            "{why}"
        );
        assert_eq!(Place::Off.open(), Ok(None));
        assert!(folder.open().unwrap().is_some());
    }
}
