//! The planner: what lives where under a budget of device memory.
//!
//! A pure function from [`PlanInput`] to [`Plan`]: no I/O, no device, no clock. The same input
//! always gives the same plan, and the plan is a value that can be printed ([`Plan::explain`]),
//! saved as JSON ([`Plan::from_json`] reads it back), compared and tested.
//!
//! How the budget is spent, in this order:
//!
//! 1. what must be on the device: compute buffers (*scratch*), the backend's own *reserve*, and
//!    every small tensor, which would otherwise pull its operation to the CPU;
//! 2. the smallest ring of slots that lets a copy overlap the computation before it;
//! 3. the KV cache, layer by layer; layers that do not fit keep it in host memory;
//! 4. *residents*: a prefix of a priority list. The usual list is attention, feed-forward, output
//!    head, experts; the search may choose another one. The layers of a class follow a
//!    low-discrepancy sequence, so that residents are spread over the depth of the model and the
//!    copy engine has work while they compute;
//! 5. a larger ring, for more lookahead.
//!
//! With the same list the residents of a larger budget contain those of a smaller one. Chunk
//! boundaries depend only on the list, so both plans share their leading chunks, and a change of
//! budget moves only what differs. The search may choose another list for another budget.
//!
//! What is neither resident nor small depends on the tier, which is a range of rows that an
//! operation sees: long batches stream it through the ring, short ones compute it on the CPU.
//! Where a batch leaves enough of a layer's experts alone, it fetches only those that it has chosen. Of what a single token has
//! chosen in a layer on the host, the device may fetch and compute a part while the CPU computes the rest.

mod chunks;
mod conversation;
mod decisions;
mod error;
mod estimate;
mod experts;
mod explain;
mod fetching;
mod fixed;
mod memory;
mod order;
mod read;
mod ring;
mod saved;
mod solve;
mod tiers;
mod types;
mod units;

#[cfg(test)]
mod tests;

pub use conversation::usual_prompt;
pub use decisions::Decisions;
pub use error::{Contribution, Contributor, PlanError};
pub use estimate::{estimate_excess, estimate_scratch};
pub use fetching::{ExpertLayer, FetchLayout, FetchShape, NUMBERS_BYTES};
pub(crate) use order::spread;
pub use read::ReadPlanError;
pub use saved::{
    ModelIdentity, PlanSettings, SavedPlan, SavedPlanError, TensorIdentity, SAVED_PLAN_SCHEMA,
};
pub use solve::place_kv;
pub use types::{
    BatchFetch, Chunk, FixedPlan, KvLayer, KvPlacement, Ledger, Location, Placement, Plan,
    PlanInput, Ring, StreamGroup, StreamShare, Tier, Unit, UnitClass, UnitId, PLAN_SCHEMA_VERSION,
};
pub use units::{default_small_threshold, units_from_inventory};

/// Plans what lives where.
///
/// # Errors
///
/// [`PlanError::BudgetTooSmall`] names the smallest budget for which the same input succeeds;
/// [`PlanError::InvalidInput`] and [`PlanError::Overflow`] name settings or sizes that make no
/// sense.
pub fn plan(input: &PlanInput) -> Result<Plan, PlanError> {
    match &input.fixed {
        Some(fixed) => fixed::plan_as(input, fixed),
        None => solve::plan_freely(input),
    }
}
