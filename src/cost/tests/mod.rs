//! Costs of small plans by hand, of real shapes against what was measured, and properties.

mod forecast;
mod hand;
mod learning;
mod machine;
mod measured;
mod properties;
mod real;
