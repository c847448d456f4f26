//! What pipeshard is developed with: models of random weights ([`synth`]), llama.cpp's features one by one against stock
//! ([`matrix`]), and measurements beside stock at equal memory ([`bench`]). Nothing of it is installed.

pub mod bench;
pub mod cli;
pub mod matrix;
pub mod process;
pub mod synth;
