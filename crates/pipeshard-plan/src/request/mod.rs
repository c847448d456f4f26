//! What a plan is asked for. `pipeshard plan` and a run ask with the same type, so the plan that is printed is the plan that runs.
//!
//! ```text
//! workload  the conversation that plans are weighed by, as the user says it
//! context   a context as llama.cpp is about to make it
//! ask       a model in a context, in so much memory: searched for, or made from decisions that are known
//! key       what a kept plan belongs to, and the kept plan
//! observed  what passes of a run took, for `pipeshard tune`
//! ```

mod ask;
mod context;
mod key;
mod observed;
mod workload;

pub use ask::{Adapted, Decided, PlanRequest};
pub use context::ContextRequest;
pub use key::{fingerprint, KeptPlan, PlanKey, KEPT_PLAN_SCHEMA};
pub use observed::{Observation, OBSERVATION_SCHEMA};
pub use workload::{StatedWorkload, WorkloadError};
