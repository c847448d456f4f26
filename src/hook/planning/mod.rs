//! What is planned, and what for: see [`planner`]. Reads weights and accounts as a `PlanInput`; knows no device and no scheduler.

pub mod attempts;
pub mod context;
pub mod foresee;
pub mod planner;
pub mod saved;
