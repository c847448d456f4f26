//! What a run that has not begun will ask the planner, as far as the model's file tells.

use crate::hook::accounts::backend_reserve;
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::plan::{default_small_threshold, units_from_inventory, PlanInput};
use pipeshard_plan::request::{ContextRequest, PlanRequest, StatedWorkload};

/// The device of such a run.
#[derive(Debug, Clone, Copy)]
pub struct ForeseenDevice {
    /// Its backend takes memory for itself, which a simulated one does not.
    pub real_card: bool,
    /// Bytes that allocations are multiples of.
    pub granularity: u64,
    /// Bytes that the user keeps for the backend; none: what is usual.
    pub reserve: Option<u64>,
}

/// What a run of the model in this context asks, within `budget` bytes.
pub fn request_of<'i>(
    inventory: &'i Inventory,
    context: ContextRequest,
    workload: StatedWorkload,
    device: ForeseenDevice,
    budget: u64,
) -> PlanRequest<'i> {
    let expected = |ubatch| match (device.reserve, device.real_card) {
        (None, true) => backend_reserve::expected_for(inventory, ubatch),
        _ => 0,
    };
    let units = units_from_inventory(inventory, default_small_threshold(inventory));
    let memory = PlanInput::new(units, Vec::new(), budget);
    PlanRequest {
        inventory,
        context,
        workload,
        pools: context
            .ubatches()
            .into_iter()
            .map(|ubatch| (ubatch, expected(ubatch)))
            .collect(),
        memory: PlanInput {
            // a run measures graphs with a buffer of its own, as small as the device allows
            reserve: device.reserve.unwrap_or(0)
                + memory.alignment.next_multiple_of(device.granularity),
            granularity: device.granularity,
            ..memory
        },
        forced: None,
    }
}
