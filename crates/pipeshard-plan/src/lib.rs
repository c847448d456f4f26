//! What lives where under a budget of device memory, and what that costs.
//!
//! | module | does | knows of |
//! |---|---|---|
//! | [`constants`] | every number that the others assume | nothing |
//! | [`plan`] | a pure function from inventory, budget, KV and scratch to a plan | the model |
//! | [`profile`] | what a machine does per second, as a value | the model |
//! | [`cost`] | a pure function from plan, model and profile to seconds per pass, and to a conversation's | plan, profile |
//! | [`search`] | what a plan leaves open, decided by what it costs | plan, profile, cost |
//! | [`request`] | what a plan is asked for, by `pipeshard plan` and by runs; what a plan that is kept belongs to | all of them |
//!
//! No device, no foreign code, no files, no clock: the same input always gives the same answer, and all of it is tried without
//! llama.cpp.
#![forbid(unsafe_code)]

pub mod constants;
pub mod cost;
mod digest;
pub mod plan;
pub mod profile;
pub mod request;
pub mod search;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
