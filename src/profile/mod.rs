//! What this machine does per second, for the operations that a model consists of.
//!
//! A profile is a value: it is measured once , kept as JSON under the user's cache directory, and read by the
//! planner, which never measures anything itself. Where nothing was measured for an operation, a [`Roofline`] answers: of the
//! processor's bandwidth and its arithmetic rate the one that takes longer.

mod curve;
mod types;

pub use curve::Work;
pub use types::{
    Curve, HostMemory, Link, Op, Origin, Overheads, Point, Processor, Profile, ProfileKey,
    Quantity, Roofline, PROFILE_SCHEMA_VERSION,
};
