//! What every plan must satisfy, over random models and budgets.

mod explain;
pub(crate) mod models;
mod properties;
mod scenarios;
