//! A profile in a file: one that the user names, or one of the cache's.

use std::io;
use std::path::{Path, PathBuf};

use crate::files;
use pipeshard_plan::profile::{read, Origin, Profile, ProfileKey};

/// Why the user's own profile is not used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileFileError {
    /// The file cannot be read.
    #[error("the profile {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a profile.
    #[error(
        "{path} is not a profile of this version: {reason}; `pipeshard profile --json` prints one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The profile is of another machine.
    #[error("the profile {path} was measured elsewhere: its {what} is '{theirs}', here it is '{ours}'; measure one here, or leave the setting out")]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// Which part of the key differs.
        what: &'static str,
        /// The profile's.
        theirs: String,
        /// This machine's.
        ours: String,
    },
}

/// The profile in a file, whatever machine it is of.
///
/// # Errors
/// If the file cannot be read or is not a profile.
pub fn read_file(path: &Path) -> Result<Profile, ProfileFileError> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let text = files::read(path).and_then(|text| text.ok_or_else(missing));
    let text = text.map_err(|source| ProfileFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    read(&text).map_err(|reason| ProfileFileError::Damaged {
        path: path.to_owned(),
        reason,
    })
}

/// The profile in a file that the user names. One that was stated is taken as it is; one that was measured has to match.
///
/// # Errors
/// [`ProfileFileError`], with the reason.
pub fn from_file(path: &Path, key: &ProfileKey) -> Result<Profile, ProfileFileError> {
    let profile = read_file(path)?;
    if profile.origin == Origin::Stated {
        return Ok(profile);
    }
    match profile.key.difference(key) {
        None => Ok(profile),
        Some((what, theirs, ours)) => Err(ProfileFileError::Elsewhere {
            path: path.to_owned(),
            what,
            theirs,
            ours,
        }),
    }
}
