//! A profile in a file: one that the user names, or one of the cache's.

use std::io;
use std::path::{Path, PathBuf};

use super::types::{Curve, Origin, Profile, ProfileKey, PROFILE_SCHEMA_VERSION};

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
    /// The file is no profile.
    #[error(
        "{path} is no profile of this version: {reason}; `pipeshard profile --json` prints one"
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

/// A profile from text; what is wrong with it otherwise.
pub(super) fn read(text: &[u8]) -> Result<Profile, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let version = &value["schema_version"];
    if *version != PROFILE_SCHEMA_VERSION {
        return Err(format!(
            "its version is {version}, this build reads {PROFILE_SCHEMA_VERSION}"
        ));
    }
    let profile: Profile = serde_json::from_value(value).map_err(|e| e.to_string())?;
    match nonsense(&profile) {
        Some(what) => Err(what),
        None => Ok(profile),
    }
}

/// A figure that no measurement gives.
fn nonsense(profile: &Profile) -> Option<String> {
    let (link, memory, paid) = (&profile.link, &profile.memory, &profile.overheads);
    let quantities = [
        link.pinned,
        link.pinned_cpu_busy,
        link.pageable,
        link.back,
        link.register,
        memory.cpu,
        memory.cpu_copy_busy,
        paid.to_cpu,
        paid.to_gpu,
        paid.launch,
        paid.cpu_op,
        paid.cpu_wake,
        paid.pass,
    ];
    let figures = quantities.iter().map(|quantity| quantity.median);
    let rooflines = [profile.cpu, profile.gpu];
    let figures = figures.chain(rooflines.iter().flat_map(|r| [r.bytes, r.flops, r.launch]));
    if figures
        .into_iter()
        .any(|figure| !(figure >= 0.0 && figure.is_finite()))
    {
        return Some("a figure is negative".to_owned());
    }
    let wrong = |curve: &&Curve| {
        let points = &curve.points;
        let time = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        let rising = points.windows(2).all(|pair| pair[0].rows < pair[1].rows);
        !rising
            || points
                .iter()
                .any(|p| !time(p.seconds) || !p.copy_busy.is_none_or(time))
    };
    if let Some(curve) = profile.curves.iter().find(wrong) {
        return Some(format!("the curve of {} makes no sense", curve.op));
    }
    let learned = profile
        .learned
        .iter()
        .find(|learned| !learned.is_possible())?;
    Some(format!(
        "what runs of {} have shown makes no sense",
        learned.model
    ))
}

/// The profile in a file, whatever machine it is of.
///
/// # Errors
/// Where the file cannot be read or is no profile.
pub fn read_file(path: &Path) -> Result<Profile, ProfileFileError> {
    let text = std::fs::read(path).map_err(|source| ProfileFileError::Read {
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
