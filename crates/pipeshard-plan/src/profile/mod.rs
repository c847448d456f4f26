//! What a machine does per second, for the operations that a model consists of.
//!
//! A profile is a value. The runtime measures it once and keeps it as JSON; who plans is given one, and never measures anything.
//! Where nothing was measured for an operation, a [`Roofline`] answers: of the processor's bandwidth and its arithmetic rate the
//! one that takes longer. Machines that are not here have profiles that are stated ([`Rates`], [`Machine`], [`WhatIf`]).

mod curve;
mod host;
mod learned;
mod machine;
mod of_model;
mod operations;
mod read;
mod stated;
mod types;

pub use curve::Work;
pub use host::HostCosts;
pub use learned::model_label;
pub use machine::{Machine, WhatIf, WhatIfError, MACHINES};
pub use of_model::Heads;
pub use operations::{operations, usual_operations, Effort};
pub use read::read;
pub use stated::Rates;
pub use types::{
    Curve, HostMemory, Learned, Link, Op, Origin, Overheads, Point, Processor, Profile, ProfileKey,
    Quantity, Roofline, PROFILE_SCHEMA_VERSION,
};
