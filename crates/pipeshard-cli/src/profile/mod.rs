//! `pipeshard profile`: what this machine does per second.

mod plot;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::habits::{cache_type, OptionalModel, MODEL};
use crate::no_gpu;
use pipeshard::lanes::device::Device;
use pipeshard::profile::{
    default_threads, key_of, obtain, of_simulated, read_file, Cache, CacheError, ProfileError,
    ProfileFileError, Request, Source, Stored,
};
use pipeshard_gguf::{inventory_of, InventoryError};
use pipeshard_model::inventory::DType;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::profile::{operations, usual_operations, Effort, Profile};
use pipeshard_sim::{SimSpec, SpecError};
use plot::{draw, PlotError};
use table::render;

const HELP: &str = "\
Examples:
  pipeshard profile                          measure this machine for usual models
  pipeshard profile model.gguf               for the types and shapes of a model
  pipeshard profile model.gguf --full        longer: more operations, sizes, repetitions
  pipeshard profile --show --svg roof.svg    what is known already, and as a picture
  pipeshard profile --sim vram=8G,pcie=12G   what is stated about a simulated GPU

A profile is kept per GPU and slot, driver, CPU, number of threads and build, under
$XDG_CACHE_HOME/pipeshard or ~/.cache/pipeshard, and measured again where one of them
changes. Runs with --pipeshard measure what they need by themselves.";

/// Arguments of `pipeshard profile`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub model: OptionalModel,

    /// Measure more operations, batch sizes and repetitions, even if known
    #[arg(long)]
    pub full: bool,

    /// Print what is known and measure nothing
    #[arg(long, conflicts_with_all = ["full", "refresh"])]
    pub show: bool,

    /// Measure again, even if known
    #[arg(long)]
    pub refresh: bool,

    /// Print the profile as JSON
    #[arg(long)]
    pub json: bool,

    /// Write an SVG with rooflines and measured points
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short, long, value_name = "N", value_parser = crate::habits::threads)]
    pub threads: Option<u32>,

    /// The most device memory to use for measuring [default: free memory]
    #[arg(long, value_name = "SIZE", visible_alias = "pipeshard-vram")]
    pub vram: Option<ByteSize>,

    /// Type of the keys in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,

    /// Type of the values in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,

    /// Print the profile that a simulated GPU states
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["full", "refresh"])]
    pub sim: Option<String>,

    /// Print the profile in a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["full", "refresh", "sim", MODEL])]
    pub profile: Option<PathBuf>,
}

/// Why `pipeshard profile` has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ProfileCommandError {
    /// The model cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Nothing could be measured.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The file cannot be shown.
    #[error(transparent)]
    File(#[from] ProfileFileError),
    /// Profiles are not kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The picture cannot be written.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// The simulated GPU makes no sense.
    #[error("--sim: {0}")]
    Sim(#[from] SpecError),
    /// There is no GPU.
    #[error("{0}")]
    NoDevice(String),
    /// Nothing is known yet.
    #[error("nothing was measured yet for {device} with {threads} threads: leave out --show to measure now")]
    NothingKnown {
        /// The device.
        device: String,
        /// Threads of the CPU.
        threads: u32,
    },
    /// What is known cannot be read.
    #[error("{0}; leave out --show to measure now")]
    Damaged(String),
    /// The result cannot be printed.
    #[error("cannot print the profile: {0}")]
    Output(#[from] io::Error),
    /// The result is no JSON.
    #[error("cannot print the profile: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs the command.
///
/// # Errors
/// No GPU, a model that cannot be read, nothing that could be measured, an output that cannot be written.
pub fn run(args: &ProfileArgs) -> Result<(), ProfileCommandError> {
    let profile = match (&args.profile, &args.sim) {
        (Some(path), _) => read_file(path)?,
        (_, Some(spec)) => of_simulated(&SimSpec::parse(spec)?, threads(args), None),
        _ => of_machine(args)?,
    };
    if let Some(path) = &args.svg {
        draw(&profile, path)?;
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&profile)? + "\n",
        false => render(&profile),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // the reader closed the pipe: it has read enough
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn threads(args: &ProfileArgs) -> u32 {
    args.threads.unwrap_or_else(default_threads)
}

/// The profile of this machine: known, or measured now.
fn of_machine(args: &ProfileArgs) -> Result<Profile, ProfileCommandError> {
    let inventory = args.model.0.as_deref().map(inventory_of).transpose()?;
    let none = || {
        let why = no_gpu::nothing_to_measure(args.model.0.as_deref(), args.vram);
        ProfileCommandError::NoDevice(why)
    };
    let device = no_gpu::first().ok_or_else(none)?;
    let threads = threads(args);
    let cache = Cache::of_user();
    if args.show {
        return known(&cache?, device, threads);
    }
    let (free, _) = device.memory();
    let device_memory = args.vram.map_or(free, |size| size.0.min(free));
    let effort = match args.full {
        true => Effort::Full,
        false => Effort::Quick,
    };
    let (type_k, type_v) = (args.cache_type_k.name, args.cache_type_v.name);
    let wanted = match &inventory {
        Some(inventory) => operations(inventory, type_k, type_v, device_memory, effort),
        None => usual_operations(device_memory, effort),
    };
    let bar = progress_bar();
    let obtained = obtain(&Request {
        device,
        operations: &wanted,
        threads,
        device_memory,
        simulated: None,
        file: None,
        effort,
        refresh: args.refresh || args.full,
        cache: cache.as_ref().ok(),
        progress: &|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
    });
    bar.finish_and_clear();
    let obtained = obtained?;
    let no_place = cache.as_ref().err().map(ToString::to_string);
    for note in obtained.notes.iter().chain(&no_place) {
        eprintln!("{note}");
    }
    if let (Ok(cache), false) = (&cache, obtained.from == Source::Cache) {
        let path = cache.path(&key_of(device, threads));
        tell_where(&path);
    }
    Ok(obtained.profile)
}

fn tell_where(path: &Path) {
    if path.exists() {
        eprintln!("Kept as {}", path.display());
    }
}

fn known(cache: &Cache, device: Device, threads: u32) -> Result<Profile, ProfileCommandError> {
    match cache.load(&key_of(device, threads)) {
        Stored::Valid(profile) => Ok(*profile),
        Stored::Damaged(why) => Err(ProfileCommandError::Damaged(why)),
        Stored::Nothing => Err(ProfileCommandError::NothingKnown {
            device: device.description(),
            threads,
        }),
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar() -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    let style = ProgressStyle::with_template("Measuring {bar:40} {pos}/{len} {elapsed}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        profile: ProfileArgs,
    }

    fn parse(line: &str) -> Result<ProfileArgs, clap::Error> {
        Tool::try_parse_from(line.split_whitespace()).map(|tool| tool.profile)
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(parse("profile --show --full").is_err());
        assert!(parse("profile --show --refresh").is_err());
        assert!(parse("profile --sim vram=1G --full").is_err());
        assert!(parse("profile --threads 0").is_err());
        assert!(parse("profile model.gguf --full --json --svg x.svg --vram 4G -t 8").is_ok());
    }

    #[test]
    fn a_simulated_gpu_needs_no_device_and_a_file_can_be_shown() {
        let folder = tempfile::tempdir().unwrap();
        let svg = folder.path().join("roof.svg");
        let line = format!("profile --sim vram=8G,pcie=12G --svg {}", svg.display());
        run(&parse(&line).unwrap()).unwrap();
        assert!(svg.exists());
        let wrong = run(&parse("profile --sim vram=8X").unwrap()).unwrap_err();
        assert!(wrong.to_string().starts_with("--sim: "), "{wrong}");

        let file = folder.path().join("profile.json");
        let line = format!("profile --profile {}", file.display());
        let missing = run(&parse(&line).unwrap()).unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
        std::fs::write(&file, serde_json::to_vec(&Profile::assumed()).unwrap()).unwrap();
        run(&parse(&line).unwrap()).unwrap();
    }
}
