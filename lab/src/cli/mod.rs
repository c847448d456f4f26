//! The `pipeshard-lab` tool.

pub mod bench;
pub mod matrix;
pub mod routing;
pub mod synth;

use clap::{Parser, Subcommand};

/// What the tool was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "pipeshard-lab",
    version,
    about = "Developer tools of pipeshard: make models, check features, measure",
    long_about = "Developer tools of pipeshard: make models, check features, measure.\n\n\
        It has the commands of pipeshard, too.",
    after_help = "Examples:\n  \
        pipeshard-lab synth --shape tiny-llama tiny.gguf a small model of random weights\n  \
        pipeshard-lab matrix                             same answers as stock, feature by feature?\n  \
        pipeshard-lab grids --quick                      how fast, compared with stock llama.cpp, at equal memory?"
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The tool's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare speed with stock llama.cpp in the same memory
    Grids(Box<bench::BenchArgs>),
    /// Check llama.cpp's features one by one: same answers as stock?
    Matrix(matrix::MatrixArgs),
    /// One step of a case of the matrix
    #[command(hide = true)]
    Scenario(crate::matrix::scenario::ScenarioArgs),
    /// Write a model of random weights
    Synth(synth::SynthArgs),
    /// Count the experts that prompts touch
    Routing(routing::RoutingArgs),
    /// What `pipeshard` does
    #[command(flatten)]
    Users(pipeshard_cli::Command),
}

/// Runs a command; the error is a text for the user.
///
/// # Errors
/// As the commands say.
pub fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Grids(args) => bench::run(&args),
        Command::Matrix(args) => matrix::run(args),
        Command::Scenario(args) => crate::matrix::scenario::run(args),
        Command::Synth(args) => synth::run(&args).map_err(|e| e.to_string()),
        Command::Routing(args) => routing::run(&args),
        Command::Users(command) => pipeshard_cli::run(command),
    }
}
