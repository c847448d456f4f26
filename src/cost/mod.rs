//! What a plan costs on a machine: seconds per pass, what limits them, and the bound that no plan can beat.
//!
//! Pure: no I/O, no device, no clock. The same plan, model and [profile](crate::profile) always give the same prediction.

mod types;

pub use types::{Limit, ModelShape, PassCost, PassShape, Prediction, Workload};
