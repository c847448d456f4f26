//! What this machine does per second, for the operations that a model consists of.
//!
//! A profile is a value: it is measured once , kept as JSON under the user's cache directory, and read by the
//! planner, which never measures anything itself. Where nothing was measured for an operation, a [`Roofline`] answers: of the
//! processor's bandwidth and its arithmetic rate the one that takes longer.

mod curve;
mod machine;
mod operations;
mod stated;
mod types;

pub use curve::Work;
pub use machine::{Machine, WhatIf, WhatIfError, MACHINES};
pub use operations::{operations, usual_operations, Effort};
pub use stated::{Rates, ASSUMED_CPU, ASSUMED_DRAM_SHARE, ASSUMED_PASS};
pub use types::{
    Curve, HostMemory, Link, Op, Origin, Overheads, Point, Processor, Profile, ProfileKey,
    Quantity, Roofline, PROFILE_SCHEMA_VERSION,
};
