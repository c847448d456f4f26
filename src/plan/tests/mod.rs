//! What every plan must satisfy, over random models and budgets.

mod explain;
mod fixed;
pub(crate) mod models;
mod properties;
mod scenarios;
