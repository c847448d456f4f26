//! The profile of this machine: measured once ([`obtain`]) and kept as JSON under the user's cache directory. What it says is a value
//! of `pipeshard_plan::profile`.

mod cache;
mod file;
mod key;
mod obtain;
mod simulated;

pub use crate::files::Stored;
pub use cache::{Cache, CacheError};
pub use file::{from_file, read_file, ProfileFileError};
pub use key::{build_name, default_threads, key_of, key_of_host};
pub use obtain::{file_of_user, obtain, Obtained, ProfileError, Request, Source, FILE_VARIABLE};
pub use simulated::of_simulated;
