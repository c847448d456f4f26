//! What this machine does per second, for the operations that a model consists of.
//!
//! A profile is a value: it is measured once ([`obtain`]), kept as JSON under the user's cache directory, and read by the
//! planner, which never measures anything itself. Where nothing was measured for an operation, a [`Roofline`] answers: of the
//! processor's bandwidth and its arithmetic rate the one that takes longer. Simulated GPUs and machines that are not here have
//! profiles that are stated ([`Profile::stated`], [`Machine`], [`WhatIf`]).

mod cache;
mod curve;
mod file;
mod key;
mod learned;
mod machine;
pub mod measure;
mod obtain;
mod of_model;
mod operations;
mod plot;
mod stated;
mod table;
mod types;

pub use cache::{Cache, CacheError, Found};
pub use curve::Work;
pub use file::{from_file, read_file, ProfileFileError};
pub use key::{default_threads, key_of, key_of_host};
pub use learned::{model_label, Learned};
pub use machine::{Machine, WhatIf, WhatIfError, MACHINES};
pub use obtain::{file_of_user, obtain, Obtained, ProfileError, Request, Source, FILE_VARIABLE};
pub use of_model::Heads;
pub use operations::{operations, usual_operations, Effort};
pub use plot::{draw, PlotError};
pub use stated::{Rates, ASSUMED_CPU, ASSUMED_DRAM_SHARE, ASSUMED_PASS};
pub use table::render;
pub use types::{
    Curve, HostMemory, Link, Op, Origin, Overheads, Point, Processor, Profile, ProfileKey,
    Quantity, Roofline, PROFILE_SCHEMA_VERSION,
};
