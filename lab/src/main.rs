//! The `pipeshard-lab` tool: what pipeshard is developed with.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::init();
    match pipeshard_lab::cli::run(pipeshard_lab::cli::Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
