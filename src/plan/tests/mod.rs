//! What every plan must satisfy, over random models and budgets.

mod explain;
pub(in crate::plan) mod models;
mod properties;
mod scenarios;
