//! What every plan must satisfy, over random models and budgets.

mod explain;
mod fixed;
mod properties;
mod scenarios;
