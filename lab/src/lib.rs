//! What pipeshard is developed with: models of random weights ([`synth`]), llama.cpp's features one by one against stock
//! ([`matrix`]), and measurements compared with stock at equal memory ([`bench`]). It is not installed.

pub mod bench;
pub mod cli;
pub mod matrix;
pub mod process;
pub mod synth;
