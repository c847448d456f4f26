//! How to run, and who hears of it.

use std::path::PathBuf;
use std::time::Duration;

use super::grid::Grid;
use super::sweep::Sweep;

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to measure.
    pub grid: Grid,
    /// Where results go.
    pub folder: PathBuf,
    /// The folder with `llama-bench`.
    pub tools: PathBuf,
    /// This program, for making models and opening the device in processes of their own.
    pub program: PathBuf,
    /// A simulated GPU.
    pub simulated: Option<String>,
    /// Threads of the CPU.
    pub threads: u32,
    /// Which GPU the driver's figures are of.
    pub gpu: u32,
    /// A further grid in place of the usual one.
    pub sweep: Option<Sweep>,
    /// When to stop.
    pub limit: Option<Duration>,
}

/// Who hears how far it is.
pub trait Progress {
    /// So many seconds are estimated, for so many steps.
    fn plan(&self, steps: usize, seconds: f64);
    /// A step begins.
    fn step(&self, number: usize, what: &str);
    /// Something was found out.
    fn say(&self, what: &str);
}
