//! Costs of small plans by hand, of real shapes against what was measured, and properties.

mod forecast;
mod hand;
mod learning;
mod priced;
mod properties;
mod real;
mod recurrent;
