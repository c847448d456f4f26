//! The `pipeshard-lab` tool: what pipeshard is developed with.

use clap::Parser;
use pipeshard_cli::habits::spelled_out;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::init();
    match pipeshard_lab::cli::run(
        pipeshard_lab::cli::Cli::parse_from(spelled_out(std::env::args_os())).command,
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
