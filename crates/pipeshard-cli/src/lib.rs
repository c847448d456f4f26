//! The `pipeshard` tool: what its users need. `pipeshard-lab`, for those who develop it, has these commands too.

pub mod bench;
pub mod eval;
pub mod habits;
mod no_gpu;
pub mod plan;
pub mod profile;
pub mod top;
pub mod trace;
pub mod tune;
pub mod verify;

use clap::{Parser, Subcommand};

/// What the tool was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "pipeshard",
    version,
    about = "Plans, measures and checks models for running inside a budget of VRAM",
    long_about = "Plans, measures and checks models for running inside a budget of VRAM.\n\n\
        The models themselves run in llama.cpp's own tools: llama-cli, llama-server and the others take --pipeshard.",
    after_help = "Examples:\n  \
        pipeshard plan model.gguf --vram 4G          what would live where\n  \
        pipeshard profile model.gguf                 how fast are this machine's GPU, CPU and link?\n  \
        pipeshard tune model.gguf --vram 4G          measure again, and replace the plan that runs follow\n  \
        pipeshard bench model.gguf --vram 8G         how fast, compared with stock llama.cpp in the same memory?\n  \
        pipeshard verify model.gguf --vram 4G        same answers as stock llama.cpp?\n  \
        pipeshard trace trace.json                   where the time of a run went\n  \
        pipeshard top                                what running processes hold, and how fast they are"
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
    /// Measure this machine again, and replace the plan that runs of a command follow
    Tune(Box<tune::TuneArgs>),
    /// Measure this machine: GPU, CPU, memory and link
    Profile(Box<profile::ProfileArgs>),
    /// Compare speed with stock llama.cpp in the same memory
    Bench(bench::BenchArgs),
    /// Compare answers with those of stock llama.cpp, bit for bit
    Verify(verify::VerifyArgs),
    /// Evaluate prompts and write logits and tokens (used by verify)
    #[command(hide = true)]
    Eval(eval::EvalArgs),
    /// Show where time goes in a trace that --pipeshard-trace wrote
    Trace(trace::TraceArgs),
    /// Watch running processes, and change their budgets
    Top(top::TopArgs),
}

/// Runs a command; the error is a text for the user.
///
/// # Errors
/// As the commands say.
pub fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Plan(args) => plan::run(args).map_err(|e| e.to_string()),
        Command::Tune(args) => tune::run(&args).map_err(|e| e.to_string()),
        Command::Profile(args) => profile::run(&args).map_err(|e| e.to_string()),
        Command::Bench(args) => bench::run(&args),
        Command::Verify(args) => verify::run(args).map_err(|e| e.to_string()),
        Command::Eval(args) => eval::run(args).map_err(|e| e.to_string()),
        Command::Trace(args) => trace::run(&args).map_err(|e| e.to_string()),
        Command::Top(args) => top::run(&args).map_err(|e| e.to_string()),
    }
}
