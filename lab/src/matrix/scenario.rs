//! One step of a scenario, in this process.

use super::feature::{Failure, Observation, Setup, Stage};
use super::features;
use clap::Args;
use pipeshard_llama::{ContextOptions, Library, ModelOptions, Side};
use pipeshard_model::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to run, and how. For `pipeshard-lab matrix`, which starts such processes.
#[derive(Debug, Args)]
pub struct ScenarioArgs {
    /// The feature
    pub feature: String,
    /// Which of its steps
    #[arg(long, default_value_t = 0)]
    pub step: usize,
    /// The model
    #[arg(long)]
    pub model: PathBuf,
    /// A folder that the steps share
    #[arg(long)]
    pub folder: PathBuf,
    /// Threads of the CPU
    #[arg(long, default_value_t = 1)]
    pub threads: i32,
    /// How often to repeat, where the scenario repeats anything
    #[arg(long, default_value_t = 1)]
    pub repeats: u32,
    /// Run with pipeshard inside this budget; without it llama.cpp runs as it is
    #[arg(long)]
    pub vram: Option<ByteSize>,
    /// Simulate the GPU
    #[arg(long)]
    pub sim: Option<String>,
    /// Layers on the GPU, without --vram (0: CPU only)
    #[arg(long, default_value_t = 0)]
    pub ngl: i32,
    /// Keep tensors whose name matches on the CPU, without --vram
    #[arg(long = "on-cpu", value_name = "REGEX")]
    pub on_cpu: Option<String>,
    /// Show llama.cpp's log
    #[arg(long)]
    pub verbose: bool,
}

/// What a step gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StepResult {
    /// What it saw.
    pub seen: Vec<Observation>,
    /// Why llama.cpp cannot do this with this model.
    pub unsupported: Option<String>,
    /// The report at the end.
    pub report: Option<serde_json::Value>,
    /// The units of the weights that were loaded last.
    pub units: Option<serde_json::Value>,
    /// Weights that were not resident in the end.
    pub not_resident: Vec<String>,
}

/// Tokens of the context, of a batch and of a ubatch, where a feature does not say otherwise.
const SIZES: (u32, u32, u32) = (256, 128, 64);

/// Runs the command: prints the result as JSON.
///
/// # Errors
/// A text for the user: what went wrong.
pub fn run(args: ScenarioArgs) -> Result<(), String> {
    let result = play(&args)?;
    let text = serde_json::to_string(&result).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}

fn play(args: &ScenarioArgs) -> Result<StepResult, String> {
    let feature = features::named(&args.feature)
        .ok_or_else(|| format!("there is no feature '{}'", args.feature))?;
    let step = feature
        .steps
        .get(args.step)
        .ok_or_else(|| format!("{} has no step {}", feature.name, args.step))?;
    if let Some(budget) = args.vram {
        std::env::set_var("LLAMA_ARG_PIPESHARD", "1");
        std::env::set_var("LLAMA_ARG_PIPESHARD_VRAM", budget.0.to_string());
    }
    if let Some(sim) = &args.sim {
        std::env::set_var("LLAMA_ARG_PIPESHARD_SIM", sim);
    }
    pipeshard_llama::start(args.verbose);
    let (ctx, batch, ubatch) = SIZES;
    let mut setup = Setup {
        model: ModelOptions {
            gpu_layers: -1,
            ..ModelOptions::default()
        },
        context: ContextOptions::new(ctx, batch, ubatch, args.threads),
    };
    (feature.setup)(&mut setup);
    if args.vram.is_none() {
        setup.model.gpu_layers = args.ngl;
        setup.model.cpu_only = args.ngl == 0;
        let host = args.on_cpu.iter().map(|p| (p.clone(), Side::Host));
        setup.model.overrides.extend(host);
    }
    let mut stage = Stage {
        setup,
        model_path: args.model.clone(),
        folder: args.folder.clone(),
        repeats: args.repeats,
        library: Library::find(),
        seen: Vec::new(),
        report: None,
        units: None,
    };
    let unsupported = match (step.run)(&mut stage) {
        Ok(()) => None,
        Err(Failure::Unsupported(why)) => Some(why),
        Err(Failure::Failed(why)) => return Err(why),
    };
    let while_loaded = stage.report.as_ref().map(|r| r["not_resident"].clone());
    let not_resident = while_loaded.and_then(|names| serde_json::from_value(names).ok());
    Ok(StepResult {
        seen: stage.seen,
        unsupported,
        report: stage.library.report(),
        units: stage.units,
        not_resident: not_resident.unwrap_or_default(),
    })
}
