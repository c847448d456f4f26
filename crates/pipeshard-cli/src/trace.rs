//! `pipeshard trace`: the figures in a trace file.

use clap::Args;
use pipeshard::trace::chrome::{read_summary, TraceError};
use std::path::PathBuf;

/// Arguments of `pipeshard trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// A file that --pipeshard-trace wrote
    pub file: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the figures.
///
/// # Errors
/// [`TraceError`] for a file that cannot be read or is not a trace.
pub fn run(args: &TraceArgs) -> Result<(), TraceError> {
    let summary = read_summary(&args.file)?;
    match args.json {
        true => println!("{:#}", serde_json::json!(summary)),
        false => print!("{}", summary.render_table()),
    }
    Ok(())
}
