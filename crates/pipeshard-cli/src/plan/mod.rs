//! `pipeshard plan`: what would live where and what that is worth, without loading the model and without a device.

mod answer;
mod explain;
mod image;
mod image_text;
mod machine;
mod map;
mod phases;
mod question;
mod style;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::answer::{answer, Answer};
use self::image::{Encoder, ImageArgs, ImageError};
pub(crate) use self::machine::PlannedMachine;
pub(crate) use self::question::Question;
pub(crate) use self::style::{rate, time};
use crate::habits::{cache_type, count, positive, FlashAttn, ModelFile, NotTaken};
use crate::no_gpu;
use pipeshard::hook::config::WORKLOAD;
use pipeshard::hook::planning::foresee::{request_of, ForeseenDevice};
use pipeshard::hook::tower::units::Rounding;
use pipeshard::plan_cache::{Place, PlanCache};
use pipeshard::profile::{default_threads, file_of_user, key_of_host, Cache};
use pipeshard_gguf::{inventory_of, InventoryError};
use pipeshard_model::inventory::{DType, Inventory};
use pipeshard_model::size::ByteSize;
use pipeshard_plan::constants::conversation::UBATCHES;
use pipeshard_plan::plan::{PlanError, SavedPlan};
use pipeshard_plan::profile::{WhatIf, WhatIfError};
use pipeshard_plan::request::{ContextRequest, StatedWorkload};
use pipeshard_sim::{SimSpec, SpecError};

/// The most tokens that llama.cpp's tools hand over at a time, and so the largest ubatch, unless they are told to.
const USUAL_BATCH: u32 = 2048;

/// Arguments of `pipeshard plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  pipeshard plan model.gguf --vram 4G
  pipeshard plan model.gguf --vram 4G -c 32K -ctk q8_0 -ctv q8_0
  pipeshard plan model.gguf --vram 6G -c 16K -np 4 --prompt-tokens 2K -ub 2048
  pipeshard plan model.gguf --vram 8G --what-if pcie=12G           a slower link?
  pipeshard plan model.gguf --vram 8G --what-if vram=12G           another card?
  pipeshard plan model.gguf --vram 8G --profile laptop-12g         on a machine that is not here
  pipeshard plan model.gguf --vram 8G --explain                    why this plan?
  pipeshard plan model.gguf --vram 4G --save plan.json
  llama-server -m model.gguf --pipeshard-plan plan.json -c 4096    run what was planned
  pipeshard plan model.gguf --mmproj mmproj.gguf --image 2560x1440 --vram 4G
  pipeshard plan model.gguf --map                                  budgets x contexts, as Markdown
  pipeshard plan model.gguf --vram 4G --json | jq .prediction.tps

Sizes are written as 4G, 1.5G, 1500M or plain bytes, numbers of tokens as 4096 or 4K;
K, M and G are powers of 1024. llama.cpp's -m, -c, -b, -ub, -np, -ctk, -ctv, -t, -n
and -fa work here, too.
Rates (of --what-if) are bytes per second; their K, M and G are powers of 1000.
The model is not loaded and no device is opened. Compute buffers are therefore
estimated from the shapes of the weights; a run measures them and may plan a little
more or less. Times are predictions, and say what they are based on.")]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelFile,
    #[command(flatten)]
    pub not_taken: NotTaken,

    /// The most device memory to use, for example 4G or 1500M [default: all that --sim has]
    #[arg(long, value_name = "SIZE", visible_alias = "pipeshard-vram")]
    pub vram: Option<ByteSize>,

    /// Context size in tokens, for all sequences together; 0: as a run without -c chooses it
    #[arg(
        short = 'c',
        long,
        value_name = "N",
        default_value_t = 0,
        visible_alias = "ctx-size",
        value_parser = count
    )]
    pub ctx: u32,

    /// Parallel sequences; the context is divided among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub parallel: u32,

    /// The sequences share one KV cache, as with llama-server's --kv-unified
    #[arg(long)]
    pub kv_unified: bool,

    /// Layers with a sliding window cache the whole context, as with --swa-full of llama.cpp's tools
    #[arg(long)]
    pub swa_full: bool,

    /// Prompt tokens per sequence to predict for [default: three quarters of the context, all of a short one, 16384 at most]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub prompt_tokens: Option<u32>,

    /// Answer tokens per sequence to predict for [default: 64]
    #[arg(short = 'n', long, value_name = "N", visible_alias = "n-predict", value_parser = positive)]
    pub generate: Option<u32>,

    /// Both in one: prompt=2K,generate=512, as LLAMA_ARG_PIPESHARD_WORKLOAD says it for runs [default: that variable]
    #[arg(long, value_name = "WORKLOAD", conflicts_with_all = ["prompt_tokens", "generate"])]
    pub workload: Option<StatedWorkload>,

    /// Tokens that are handed over at a time
    #[arg(
        short = 'b', long, value_name = "N", default_value_t = USUAL_BATCH, visible_alias = "batch-size",
        value_parser = positive
    )]
    pub batch: u32,

    /// Rows of a batch for which logits are reserved [default: one for each sequence, as llama-server, llama-cli and llama-bench
    /// do; 0: all, as llama-completion and llama-perplexity do]
    #[arg(long, value_name = "N", value_parser = count)]
    pub outputs: Option<u32>,

    #[command(flatten)]
    pub images: ImageArgs,

    /// A simulated GPU, as --pipeshard-sim of llama.cpp's tools has it, for example vram=8G,pcie=25G
    #[arg(
        long, value_name = "SPEC", visible_alias = "pipeshard-sim",
        conflicts_with_all = ["profile", "map", "granularity"]
    )]
    pub sim: Option<String>,

    /// Tokens per ubatch [default: the plan's choice, as in a run without -ub]
    #[arg(long, value_name = "N", visible_alias = "ubatch-size", value_parser = positive)]
    pub ubatch: Option<u32>,

    /// Type of the keys in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,

    /// Type of the values in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,

    /// Flash attention: auto or on; plans are estimated with it
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = flash_attention)]
    pub flash_attn: FlashAttn,

    /// The machine: a file of `pipeshard profile --json`, or laptop-12g, desktop-16g, desktop-32g or `assumed` [default:
    /// what was measured here, or else `assumed`]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<String>,

    /// CPU threads; they select the measured profile [default: as llama.cpp, one per (performance) core]
    #[arg(short, long, value_name = "N", value_parser = crate::habits::threads)]
    pub threads: Option<u32>,

    /// Compare with a changed machine, such as pcie=12G,vram=8G (also cpu, dram, membw, flops, launch)
    #[arg(long, value_name = "CHANGES", conflicts_with = "map")]
    pub what_if: Option<String>,

    /// Memory that the backend takes for itself [default: estimated for a real card's profile, else 0]
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<ByteSize>,

    /// The driver rounds allocations up to a multiple of this
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = granularity)]
    pub granularity: ByteSize,

    /// Write the plan to FILE, for --pipeshard-plan of llama.cpp's tools
    #[arg(long, value_name = "FILE", conflicts_with = "map")]
    pub save: Option<PathBuf>,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "map")]
    pub json: bool,

    /// Also print bytes by class and a map of the layers
    #[arg(long, conflicts_with_all = ["json", "map"])]
    pub details: bool,

    /// Print what was tried, and why this plan won
    #[arg(long, conflicts_with = "map")]
    pub explain: bool,

    /// Predict for budgets of 2 to 16 GiB and contexts of 1K to 64K, and print Markdown
    #[arg(long)]
    pub map: bool,
}

/// Why `pipeshard plan` has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum PlanCommandError {
    /// The model cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The context to plan for is unknown.
    #[error(
        "the model does not say what context it was trained for: give one, for example --ctx 4096"
    )]
    NoContext,
    /// Prompt and answer are longer than the context.
    #[error(
        "a prompt of {prompt} tokens does not fit the context of {context} per sequence: give a larger --ctx or a smaller \
         --prompt-tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens of context of each sequence.
        context: u64,
    },
    /// The profile cannot be used.
    #[error("--profile: {0}")]
    Profile(String),
    /// Nobody knows what would be different.
    #[error("--what-if: {0}")]
    WhatIf(#[from] WhatIfError),
    /// No budget.
    #[error("give a budget, for example --vram 4G")]
    NoBudget,
    /// The plan cannot be saved.
    #[error("cannot write the plan to {path}: {error}")]
    Save {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The simulated GPU makes no sense.
    #[error("--sim: {0}")]
    Sim(#[from] SpecError),
    /// The workload in the environment, or the place for plans, makes no sense.
    #[error("{0}")]
    Environment(String),
    /// There is no encoder to plan for, or no room for the image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The result cannot be printed.
    #[error("cannot print the plan: {0}")]
    Output(#[from] io::Error),
}

fn flash_attention(text: &str) -> Result<FlashAttn, String> {
    match FlashAttn::from_str(text, true)? {
        FlashAttn::Off => Err(
            "plans are estimated with flash attention; a run with -fa off measures its larger compute buffers by itself"
                .to_owned(),
        ),
        other => Ok(other),
    }
}

fn granularity(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("allocations cannot be multiples of zero bytes".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// Plans and prints to standard output.
///
/// # Errors
///
/// A model or a profile that cannot be read, a budget that is too small, an output that cannot be written to.
pub fn run(args: PlanArgs) -> Result<(), PlanCommandError> {
    let inventory = inventory_of(&args.model)?;
    let text = match args.map {
        true => map::render(&inventory, &args)?,
        false => {
            let asked = answered(&inventory, &args)?;
            if let Some(path) = &args.save {
                save(&inventory, &args, &asked, path)?;
            }
            render(&asked, &args)?
        }
    };
    // takes the colours out again where nobody sees them
    match anstream::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn threads(args: &PlanArgs) -> u32 {
    args.threads.unwrap_or_else(default_threads)
}

fn simulated(args: &PlanArgs) -> Result<Option<SimSpec>, SpecError> {
    args.sim.as_deref().map(SimSpec::parse).transpose()
}

pub(crate) fn machine(args: &PlanArgs) -> Result<PlannedMachine, PlanCommandError> {
    if let Some(spec) = simulated(args)? {
        return Ok(PlannedMachine::simulated(&spec, threads(args)));
    }
    let named = args.profile.clone().or_else(|| {
        let file = file_of_user()?;
        Some(file.display().to_string())
    });
    match named {
        Some(named) => PlannedMachine::from_argument(&named).map_err(PlanCommandError::Profile),
        None => {
            let cache = Cache::of_user().ok();
            let mut here = PlannedMachine::at_hand(cache.as_ref(), &key_of_host(threads(args)));
            // only then is a look worth its time
            if !here.runs_here && no_gpu::first().is_none() {
                here.source = no_gpu::PLANNED_WITHOUT.to_owned();
            }
            Ok(here)
        }
    }
}

fn answered(inventory: &Inventory, args: &PlanArgs) -> Result<Answer, PlanCommandError> {
    let machine = machine(args)?;
    let mut question = question(inventory, args, &machine)?;
    let budget = budget(args)?;
    let rounding = Rounding {
        granularity: question.request.memory.granularity,
        alignment: question.request.memory.alignment,
    };
    let mut encoder = Encoder::of(&args.images, rounding, machine.real_card)?;
    if let Some(encoder) = &mut encoder {
        let memory = &mut question.request.memory;
        (memory.encoders, memory.in_turn) = encoder.room();
        while let Err(error) = question.solve(budget, &machine.profile) {
            if !encoder.give_way(&error) {
                return Err(encoder.no_room(&question, &machine.profile, error).into());
            }
            let memory = &mut question.request.memory;
            (memory.encoders, memory.in_turn) = encoder.room();
        }
    }
    let what_if: Option<WhatIf> = args.what_if.as_deref().map(str::parse).transpose()?;
    let what_if = args.what_if.as_deref().zip(what_if.as_ref());
    let model = args.model.display().to_string();
    let mut answer = answer(model, &question, &machine, budget, what_if)?;
    if let Some(encoder) = &encoder {
        let solved = question.solve(budget, &machine.profile)?;
        answer.image = Some(encoder.answer(&question, &solved, &machine.profile)?);
    }
    if !args.explain {
        answer.explanation = None;
    }
    Ok(answer)
}

/// The budget in bytes.
pub(crate) fn budget(args: &PlanArgs) -> Result<u64, PlanCommandError> {
    match (args.vram, simulated(args)?) {
        (Some(size), _) => Ok(size.0),
        (None, Some(spec)) => Ok(spec.vram),
        (None, None) => Err(PlanCommandError::NoBudget),
    }
}

/// What the user says of the conversation: by flags, or as runs are told.
fn workload(args: &PlanArgs) -> Result<StatedWorkload, PlanCommandError> {
    if args.prompt_tokens.is_some() || args.generate.is_some() {
        return Ok(StatedWorkload {
            prompt: args.prompt_tokens,
            generate: args.generate,
        });
    }
    if let Some(said) = args.workload {
        return Ok(said);
    }
    let said = std::env::var(WORKLOAD).ok().filter(|said| !said.is_empty());
    let said = said.map(|said| said.parse::<StatedWorkload>()).transpose();
    let said = said.map_err(|why| PlanCommandError::Environment(format!("{WORKLOAD}: {why}")));
    Ok(said?.unwrap_or_default())
}

/// Plans that runs on this machine keep.
fn kept(machine: &PlannedMachine) -> Result<Option<PlanCache>, PlanCommandError> {
    if !machine.runs_here {
        return Ok(None);
    }
    let place = Place::from_env();
    let place = place.map_err(|why| PlanCommandError::Environment(why.to_string()))?;
    // where nobody says which folder is the user's, nothing is kept
    Ok(place.open().unwrap_or_default())
}

pub(crate) fn question<'a>(
    inventory: &'a Inventory,
    args: &PlanArgs,
    machine: &PlannedMachine,
) -> Result<Question<'a>, PlanCommandError> {
    let wanted = match args.ctx {
        0 => inventory.context_length,
        wanted => wanted,
    };
    if wanted == 0 {
        return Err(PlanCommandError::NoContext);
    }
    let mut context = ContextRequest {
        context: wanted,
        batch: args.batch,
        ubatch: args.ubatch.unwrap_or(UBATCHES[0]),
        ubatch_is_free: args.ubatch.is_none(),
        sequences: args.parallel,
        shared_cache: args.kv_unified,
        full_windows: args.swa_full,
        outputs: args.outputs.unwrap_or(args.parallel),
        type_k: args.cache_type_k,
        type_v: args.cache_type_v,
    };
    if args.ctx == 0 {
        context.context = context.fitting(inventory, budget(args)?);
    }
    let workload = workload(args)?;
    if workload.is_too_long(context.each()) {
        return Err(PlanCommandError::PromptTooLong {
            prompt: workload.prompt.unwrap_or_default(),
            context: context.each(),
        });
    }
    let reserve = args.reserve.map(|size| size.0);
    let simulated = simulated(args)?;
    let device = ForeseenDevice {
        real_card: machine.real_card,
        granularity: simulated.map_or(args.granularity.0, |spec| spec.granularity),
        reserve,
    };
    Ok(Question {
        request: request_of(inventory, context, workload, device, u64::MAX),
        reserve,
        kept: match args.explain {
            // who wants to know what was tried has it tried
            true => None,
            false => kept(machine)?,
        },
    })
}

fn render(asked: &Answer, args: &PlanArgs) -> Result<String, PlanCommandError> {
    if args.json {
        let json = serde_json::to_string_pretty(asked).map_err(io::Error::from)?;
        return Ok(json + "\n");
    }
    let mut text = text::render(asked);
    if let Some(explained) = &asked.explanation {
        text += &explain::render(explained);
    }
    if args.details {
        text += "\n";
        text += &asked.plan.explain();
    }
    if let Some(path) = &args.save {
        text += &format!(
            "\nSaved. To run it: llama-server -m {} --pipeshard-plan {} -c {} -ub {}{}\n",
            args.model.display(),
            path.display(),
            asked.context,
            asked.ubatch,
            flags(args)
        );
    }
    Ok(text)
}

/// What llama.cpp's tools have to be told beside context and ubatch, where it is not the default.
fn flags(args: &PlanArgs) -> String {
    let mut flags = String::new();
    for (flag, dtype) in [("-ctk", args.cache_type_k), ("-ctv", args.cache_type_v)] {
        if dtype.name != "f16" {
            flags += &format!(" {flag} {}", dtype.name);
        }
    }
    if args.parallel > 1 {
        flags += &format!(" -np {}", args.parallel);
    }
    if args.kv_unified {
        flags += " -kvu";
    }
    if args.swa_full {
        flags += " --swa-full";
    }
    flags
}

fn save(
    inventory: &Inventory,
    args: &PlanArgs,
    asked: &Answer,
    path: &std::path::Path,
) -> Result<(), PlanCommandError> {
    let machine = machine(args)?;
    let settings = question(inventory, args, &machine)?.settings(asked.ubatch);
    let saved = SavedPlan::new(inventory, settings, asked.plan.clone());
    let failed = |error| PlanCommandError::Save {
        path: path.display().to_string(),
        error,
    };
    let text = saved.to_json().map_err(|e| failed(e.into()))?;
    if pipeshard::report::is_model(path) {
        let why = "it is a model, which would be written over; give another file";
        return Err(failed(std::io::Error::other(why)));
    }
    std::fs::write(path, text).map_err(failed)
}

#[cfg(test)]
mod tests;
