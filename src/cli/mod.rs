//! The `pipeshard` tool.

pub mod bench;
pub mod eval;
pub mod matrix;
pub mod plan;
pub mod profile;
pub mod routing;
pub mod synth;
pub mod trace;
pub mod verify;

use clap::{Parser, Subcommand};

/// What the tool was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "pipeshard",
    version,
    about = "Plans, makes and checks models for running inside a budget of VRAM",
    long_about = "Plans, makes and checks models for running inside a budget of VRAM.\n\n\
        The models themselves run in llama.cpp's own tools: llama-cli, llama-server and the others take --pipeshard.",
    after_help = "Examples:\n  \
        pipeshard plan model.gguf --vram 4G          what would live where\n  \
        pipeshard profile model.gguf                 how fast are this machine's GPU, CPU and link?\n  \
        pipeshard verify model.gguf --vram 4G        same answers as stock llama.cpp?\n  \
        pipeshard synth --shape tiny-llama tiny.gguf a small model of random weights\n  \
        pipeshard bench --quick                      how fast, beside stock llama.cpp, at equal memory?\n  \
        pipeshard trace trace.json                   where the time of a run went"
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The tool's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what would live where under a budget
    Plan(plan::PlanArgs),
    /// Measure what this machine does per second
    Profile(Box<profile::ProfileArgs>),
    /// Compare answers with those of stock llama.cpp, bit for bit
    Verify(verify::VerifyArgs),
    /// Evaluate prompts of given lengths and write logits and tokens
    Eval(eval::EvalArgs),
    /// Measure pipeshard beside what stock llama.cpp can do with the same memory
    Bench(Box<bench::BenchArgs>),
    /// Check llama.cpp's features one by one: same answers as stock?
    Matrix(matrix::MatrixArgs),
    /// One step of a case of the matrix
    #[command(hide = true)]
    Scenario(crate::matrix::scenario::ScenarioArgs),
    /// Write a model of random weights
    Synth(synth::SynthArgs),
    /// Show where time goes in a trace that --pipeshard-trace wrote
    Trace(trace::TraceArgs),
    /// Count the experts that prompts touch
    Routing(routing::RoutingArgs),
}

/// Runs a command; the error is a text for the user.
pub fn run(cli: Cli) -> Result<(), String> {
    match cli.command {
        Command::Plan(args) => plan::run(args).map_err(|e| e.to_string()),
        Command::Profile(args) => profile::run(&args).map_err(|e| e.to_string()),
        Command::Verify(args) => verify::run(args).map_err(|e| e.to_string()),
        Command::Eval(args) => eval::run(args).map_err(|e| e.to_string()),
        Command::Bench(args) => bench::run(&args),
        Command::Matrix(args) => matrix::run(args),
        Command::Scenario(args) => crate::matrix::scenario::run(args),
        Command::Synth(args) => synth::run(&args).map_err(|e| e.to_string()),
        Command::Trace(args) => trace::run(&args).map_err(|e| e.to_string()),
        Command::Routing(args) => routing::run(&args),
    }
}
