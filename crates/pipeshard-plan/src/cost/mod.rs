//! What a plan costs on a machine: seconds per pass, what limits them, and the bound that no plan can beat.
//!
//! Pure: no I/O, no device, no clock. The same plan, model and [profile](crate::profile) always give the same prediction.
//!
//! A pass is simulated, operation by operation, with the lanes that a run has: whoever computes (the device or the CPU, one
//! after the other), and the copy lane, which runs the ring's groups in order of use as far ahead as their places are free.
//! How long an operation takes is the profile's to say. What is priced besides: each change from one processor to the other,
//! the small operations between products, what the host does before a pass, and that the CPU and the copy lane share the
//! host's memory.
//!
//! ```text
//! steps     what a pass of the model does, in order: products, attention, norms
//! table     seconds for each of them, on either processor
//! lane      the copy lane: a queue, its rate, what it has brought
//! script    the steps of a pass under a plan: what is computed where, what is copied
//! pass      one pass after the other, until they repeat
//! predict   a conversation: passes of a prompt over a growing cache, then generation
//! encode    an image ahead of a prompt
//! forecast  passes of one shape over a growing cache, to compare a run's with
//! calibration  how far a run is from that
//! learning  what that says of the machine
//! ```

mod calibration;
mod encode;
mod forecast;
mod lane;
mod learning;
mod pass;
mod predict;
mod script;
mod steps;
mod table;
mod types;

#[cfg(test)]
mod tests;

pub use calibration::{Calibration, Lane, PassSeconds};
pub use encode::{EncodeCost, EncodeWork, Times};
pub use forecast::Forecast;
pub use learning::{learn, Observed};
pub use table::Costs;
pub use types::{Limit, ModelShape, PassCost, PassShape, Prediction, Workload};

use crate::plan::Plan;
use crate::profile::{Processor, Profile};

/// What a pass costs that follows one like it; see [`Costs::pass`].
pub fn pass_cost(plan: &Plan, model: &ModelShape, profile: &Profile, pass: PassShape) -> PassCost {
    Costs::new(*model, profile).pass(plan, pass)
}

/// What a conversation costs; see [`Costs::predict`].
pub fn predict(
    plan: &Plan,
    model: &ModelShape,
    profile: &Profile,
    workload: Workload,
) -> Prediction {
    Costs::new(*model, profile).predict(plan, workload)
}

/// Seconds that one unit's operation takes; for many of them make [`Costs`] once.
pub fn unit_seconds(
    model: &ModelShape,
    profile: &Profile,
    unit: usize,
    rows: u32,
    on: Processor,
) -> f64 {
    Costs::new(*model, profile).unit_seconds(unit, rows, on)
}

/// Seconds that the attention of one layer takes; for many of them make [`Costs`] once.
pub fn attention_seconds(
    model: &ModelShape,
    profile: &Profile,
    layer: u32,
    rows: u32,
    kv_tokens: u64,
    on: Processor,
) -> f64 {
    Costs::new(*model, profile).attention_seconds(layer, rows, kv_tokens, on)
}
