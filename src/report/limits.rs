//! What a budget could be, and what became of a change.

use super::types::MemoryHeld;
use serde::{Deserialize, Serialize};

/// Which budgets are possible now, and what is held. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The budget.
    pub budget: u64,
    /// The smallest budget that works with the contexts that there are: their KV cache and compute buffers stay where they are.
    pub minimum: u64,
    /// With this budget all weights are resident; none where the present one is too small for any plan.
    pub everything_resident: Option<u64>,
    /// What is held, by class.
    pub held: MemoryHeld,
    /// The sum.
    pub held_total: u64,
    /// What this process has taken of the device since pipeshard opened it, by the driver's figure.
    pub by_driver: u64,
}

/// A change of the budget that was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetChanged {
    /// What is so from now on.
    #[serde(flatten)]
    pub now: Limits,
    /// Milliseconds until the pass that was running was over.
    pub waited_ms: f64,
    /// Milliseconds in which memory was given back.
    pub moved_ms: f64,
}
