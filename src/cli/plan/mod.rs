//! `pipeshard plan`: what would live where and what that is worth, without loading the model and without a device.

mod answer;
mod layers;
mod machine;
mod map;
mod question;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use self::answer::{answer, Answer};
use self::machine::PlannedMachine;
use self::question::Question;
use crate::cost::Workload;
use crate::hook::pools;
use crate::inventory::{DType, Inventory, InventoryError};
use crate::plan::{PlanError, SavedPlan};
use crate::profile::{self, key_of_host, Cache, WhatIf, WhatIfError};
use crate::size::ByteSize;

/// Tokens of the answer, where nobody says; plans of runs are weighed by as many.
const GENERATED: u32 = 64;
/// The most tokens of the prompt, where nobody says: as in a run.
const LONGEST_PROMPT: u64 = 16384;
/// What llama.cpp's tools use, and what else a run may choose; none is larger than llama.cpp's usual batch.
const UBATCHES: [u32; 3] = [512, 1024, 2048];

/// Arguments of `pipeshard plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  pipeshard plan model.gguf --vram 4G
  pipeshard plan model.gguf --vram 4G --ctx 32768 --cache-type-k q8_0 --cache-type-v q8_0
  pipeshard plan model.gguf --vram 6G --ctx 16384 --parallel 4 --prompt 2048 --ubatch 2048
  pipeshard plan model.gguf --vram 8G --what-if pcie=12G           a slower link?
  pipeshard plan model.gguf --vram 8G --what-if vram=12G           another card?
  pipeshard plan model.gguf --vram 8G --profile laptop-12g         on a machine that is not here
  pipeshard plan model.gguf --vram 4G --save plan.json
  llama-server -m model.gguf --pipeshard-plan plan.json -c 4096    run what was planned
  pipeshard plan model.gguf --map                                  budgets x contexts, as Markdown
  pipeshard plan model.gguf --vram 4G --json | jq .prediction.tps

Sizes are written as 4G, 1.5G, 1500M or plain bytes; K, M and G are powers of 1024.
Rates (of --what-if) are bytes per second; their K, M and G are powers of 1000.
The model is not loaded and no device is opened. Compute buffers are therefore
estimated from the shapes of the weights; a run measures them and may plan a little
more or less. Times are predictions, and say what they are based on.")]
pub struct PlanArgs {
    /// The model, a GGUF file (the first one, if it is split)
    pub model: PathBuf,

    /// The most device memory to use, for example 4G or 1500M
    #[arg(
        long,
        value_name = "SIZE",
        visible_alias = "pipeshard-vram",
        required_unless_present = "map"
    )]
    pub vram: Option<ByteSize>,

    /// Tokens of context, of all sequences together; 0 takes what the model was trained for
    #[arg(
        short = 'c',
        long,
        value_name = "N",
        default_value_t = 0,
        visible_alias = "ctx-size"
    )]
    pub ctx: u32,

    /// Sequences that are computed side by side; the context is divided among them
    #[arg(
        long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub parallel: u32,

    /// The sequences share one KV cache, as with llama-server's --kv-unified
    #[arg(long)]
    pub kv_unified: bool,

    /// Tokens of the prompt to predict for, of each sequence [default: three quarters of the context, 16384 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: Option<u32>,

    /// Tokens of the answer to predict for, of each sequence
    #[arg(
        long, value_name = "N", default_value_t = GENERATED,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub generate: u32,

    /// Tokens of a prompt that are computed at a time [default: what suits the budget, as in a run without -ub]
    #[arg(
        long, value_name = "N", visible_alias = "ubatch-size",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub ubatch: Option<u32>,

    /// Type of the keys in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,

    /// Type of the values in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,

    /// The machine: a file of `pipeshard profile --json`, or laptop-12g, desktop-16g, desktop-32g or `assumed` [default:
    /// what was measured here, or else `assumed`]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<String>,

    /// Threads of the CPU, by which the profile that was measured here is found [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub threads: Option<u32>,

    /// What would be different, for example pcie=12G,vram=8G (also cpu, dram, membw, flops, launch)
    #[arg(long, value_name = "CHANGES", conflicts_with = "map")]
    pub what_if: Option<String>,

    /// What the device's backend keeps for itself [default: expected for a real card's profile, else 0]
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<ByteSize>,

    /// What the device's driver rounds allocations up to
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = granularity)]
    pub granularity: ByteSize,

    /// Write the plan to FILE, for --pipeshard-plan of llama.cpp's tools
    #[arg(long, value_name = "FILE", conflicts_with = "map")]
    pub save: Option<PathBuf>,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "map")]
    pub json: bool,

    /// Print bytes by class and a map of the layers, too
    #[arg(long, conflicts_with_all = ["json", "map"])]
    pub details: bool,

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
        "a prompt of {prompt} tokens does not fit the context of {context} for each sequence: give a larger --ctx or a smaller \
         --prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Cells of each sequence.
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
    /// The result cannot be printed.
    #[error("cannot print the plan: {0}")]
    Output(#[from] io::Error),
}

fn cache_type(name: &str) -> Result<&'static DType, String> {
    const USABLE: [&str; 9] = [
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
    ];
    let usable = USABLE.contains(&name).then(|| DType::from_name(name));
    let no_type = || {
        format!(
            "a KV cache has no such type; use one of {}",
            USABLE.join(", ")
        )
    };
    usable.flatten().ok_or_else(no_type)
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
    let inventory = Inventory::from_gguf(&args.model)?;
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

fn machine(args: &PlanArgs) -> Result<PlannedMachine, PlanCommandError> {
    let named = args.profile.clone().or_else(|| {
        let file = profile::file_of_user()?;
        Some(file.display().to_string())
    });
    match named {
        Some(named) => PlannedMachine::from_argument(&named).map_err(PlanCommandError::Profile),
        None => {
            let threads = args.threads.unwrap_or_else(profile::default_threads);
            let cache = Cache::of_user().ok();
            Ok(PlannedMachine::at_hand(
                cache.as_ref(),
                &key_of_host(threads),
            ))
        }
    }
}

fn answered(inventory: &Inventory, args: &PlanArgs) -> Result<Answer, PlanCommandError> {
    let machine = machine(args)?;
    let question = question(inventory, args, &machine)?;
    let budget = args.vram.ok_or(PlanCommandError::NoBudget)?;
    let what_if: Option<WhatIf> = args.what_if.as_deref().map(str::parse).transpose()?;
    let what_if = args.what_if.as_deref().zip(what_if.as_ref());
    let model = args.model.display().to_string();
    Ok(answer(model, &question, &machine, budget.0, what_if)?)
}

fn question<'a>(
    inventory: &'a Inventory,
    args: &PlanArgs,
    machine: &PlannedMachine,
) -> Result<Question<'a>, PlanCommandError> {
    let context = match args.ctx {
        0 => inventory.context_length,
        wanted => wanted,
    };
    if context == 0 {
        return Err(PlanCommandError::NoContext);
    }
    let each = question::padded(context.into(), args.parallel) / u64::from(args.parallel);
    let usual = (each - each / 4).min(LONGEST_PROMPT);
    let usual = u32::try_from(usual).unwrap_or(u32::MAX);
    let prompt = args.prompt.unwrap_or(usual);
    if u64::from(prompt) >= each {
        let context = each;
        return Err(PlanCommandError::PromptTooLong { prompt, context });
    }
    // the answer ends where the context does
    let room = u32::try_from(each - u64::from(prompt)).unwrap_or(u32::MAX);
    let workload = Workload {
        prompt,
        generated: args.generate.min(room),
        sequences: args.parallel,
        ubatch: args.ubatch.unwrap_or(UBATCHES[0]),
    };
    let ubatches: Vec<u32> = match args.ubatch {
        Some(given) => vec![given],
        None => (UBATCHES.into_iter())
            .filter(|&size| size == UBATCHES[0] || u64::from(size) <= each)
            .collect(),
    };
    let largest = ubatches.iter().copied().max().unwrap_or(1);
    let expected = || match machine.real_card {
        true => pools::expected_for(inventory, largest),
        false => 0,
    };
    Ok(Question {
        type_k: args.cache_type_k,
        type_v: args.cache_type_v,
        shared_cache: args.kv_unified,
        ubatches,
        reserve: args.reserve.map_or_else(expected, |size| size.0),
        granularity: args.granularity.0,
        ..Question::new(inventory, context.into(), workload)
    })
}

fn render(asked: &Answer, args: &PlanArgs) -> Result<String, PlanCommandError> {
    if args.json {
        let json = serde_json::to_string_pretty(asked).map_err(io::Error::from)?;
        return Ok(json + "\n");
    }
    let mut text = text::render(asked);
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
    std::fs::write(path, text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::models;
    use crate::plan::Plan;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        args: PlanArgs,
    }

    fn args(line: &str) -> Result<PlanArgs, clap::Error> {
        // whatever was measured on the machine that runs the tests
        let machine = match line.contains("--profile") {
            true => "",
            false => "--profile assumed",
        };
        let words = ["plan"].into_iter().chain(line.split_whitespace());
        let words = words.chain(machine.split_whitespace());
        Tool::try_parse_from(words).map(|tool| tool.args)
    }

    fn shown(inventory: &Inventory, line: &str) -> Result<String, PlanCommandError> {
        let args = args(line).unwrap();
        let text = match args.map {
            true => map::render(inventory, &args)?,
            false => render(&answered(inventory, &args)?, &args)?,
        };
        Ok(anstream::adapter::strip_str(&text).to_string())
    }

    #[test]
    fn a_dense_model() {
        let line = "m.gguf --vram 40M --ctx 1000 --ubatch 64 --granularity 64K";
        insta::assert_snapshot!(shown(&models::dense(), line).unwrap());
    }

    #[test]
    fn a_mixture_with_several_sequences() {
        let line =
            "m.gguf --vram 20M --ctx 2048 --parallel 4 --ubatch 64 --granularity 64K --details";
        insta::assert_snapshot!(shown(&models::moe(), line).unwrap());
    }

    #[test]
    fn another_machine() {
        let line = "m.gguf --vram 30M --ctx 1024 --ubatch 64 --granularity 64K --reserve 0 \
                    --profile laptop-12g --what-if pcie=6G,vram=20M";
        insta::assert_snapshot!(shown(&models::dense(), line).unwrap());
    }

    #[test]
    fn a_map() {
        let line = "m.gguf --map --profile desktop-16g --reserve 0";
        insta::assert_snapshot!(shown(&models::moe(), line).unwrap());
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        for model in [models::dense(), models::moe()] {
            for vram in ["12M", "20M", "40M", "2G"] {
                let line = format!(
                    "m.gguf --vram {vram} --ctx 512 --ubatch 32 --granularity 64K --details"
                );
                let text = shown(&model, &line).unwrap();
                assert!(
                    text.lines().all(|line| line.chars().count() <= 96),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn colours_are_escape_sequences_and_nothing_else() {
        let asked = answered(
            &models::dense(),
            &args("m.gguf --vram 40M --ctx 512").unwrap(),
        );
        let text = text::render(&asked.unwrap());
        assert!(text.contains("\u{1b}["));
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(!plain.contains('\u{1b}'));
    }

    #[test]
    fn prints_json() {
        let line = "m.gguf --vram 40M -c 1024 --cache-type-k q8_0 --what-if vram=30M --json";
        let text = shown(&models::moe(), line).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["context"], 1024);
        assert_eq!(json["cache_type_k"], "q8_0");
        assert_eq!(json["plan"]["budget"], 40 << 20);
        assert_eq!(json["plan"]["scratch_estimated"], true);
        assert_eq!(json["profile"]["origin"], "stated");
        assert_eq!(json["alternative"]["budget"], 30 << 20);
        assert!(json["prediction"]["tps"].as_f64().unwrap() > 0.0);
        assert_eq!(json["budgets"].as_array().unwrap().len(), 3);
        let plan: Plan = serde_json::from_value(json["plan"].clone()).unwrap();
        assert!(plan.ledger.total() <= plan.budget);
    }

    #[test]
    fn the_context_defaults_to_the_models() {
        let asked = |line: &str| answered(&models::dense(), &args(line).unwrap()).unwrap();
        assert_eq!(asked("m.gguf --vram 1G").context, 4096);
        assert_eq!(asked("m.gguf --vram 1G --ctx-size 1000").context, 1024);
        let mut silent = models::dense();
        silent.context_length = 0;
        let error = shown(&silent, "m.gguf --vram 1G").unwrap_err();
        assert!(error.to_string().contains("--ctx 4096"));
    }

    #[test]
    fn prompt_and_answer_fit_the_context() {
        let workload = |line: &str| {
            let args = args(&format!("m.gguf --vram 1G {line}")).unwrap();
            answered(&models::dense(), &args).unwrap().workload
        };
        assert_eq!(workload("").prompt, 3072);
        assert_eq!(workload("--ctx 1024 --parallel 4").prompt, 192);
        assert_eq!(workload("--ctx 65536").prompt, 16384);
        assert_eq!(workload("--ctx 1024 --prompt 1000").generated, 24);
        let long = shown(
            &models::dense(),
            "m.gguf --vram 1G --ctx 1024 --prompt 1024",
        );
        assert!(long.unwrap_err().to_string().contains("smaller --prompt"));
    }

    #[test]
    fn a_real_card_keeps_some_memory_for_itself() {
        let reserve = |line: &str| {
            let args = args(&format!("m.gguf --vram 2G --ctx 512 {line}")).unwrap();
            let asked = answered(&models::dense(), &args).unwrap();
            asked.plan.ledger.reserve
        };
        assert_eq!(reserve(""), 0);
        assert!(reserve("--profile laptop-12g") > 64 << 20);
        assert_eq!(reserve("--profile laptop-12g --reserve 3M"), 3 << 20);
    }

    #[test]
    fn what_is_saved_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        let line = format!(
            "m.gguf --vram 30M --ctx 512 --parallel 2 --cache-type-v q8_0 --save {}",
            file.display()
        );
        let args = args(&line).unwrap();
        let asked = answered(&models::moe(), &args).unwrap();
        save(&models::moe(), &args, &asked, &file).unwrap();
        let saved = SavedPlan::from_json(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(saved.plan, asked.plan);
        assert_eq!((saved.settings.context, saved.settings.parallel), (512, 2));
        let text = render(&asked, &args).unwrap();
        assert!(text.contains("-c 512 -ub 512 -ctv q8_0 -np 2"), "{text}");
        let nowhere = folder.path().join("no/such/folder");
        let error = save(&models::moe(), &args, &asked, &nowhere).unwrap_err();
        assert!(error.to_string().contains("cannot write the plan"));
    }

    #[test]
    fn the_minimum_that_is_named_works() {
        for model in [models::dense(), models::moe()] {
            let error = shown(&model, "m.gguf --vram 1M --ctx 1024").unwrap_err();
            let PlanCommandError::Plan(PlanError::BudgetTooSmall { minimum, .. }) = error else {
                panic!("{error}");
            };
            let named = ByteSize(minimum).to_flag();
            shown(&model, &format!("m.gguf --vram {named} --ctx 1024")).unwrap();
            shown(&model, &format!("m.gguf --vram {} --ctx 1024", minimum - 1)).unwrap_err();
        }
    }

    #[test]
    fn bad_arguments_are_explained() {
        for (line, part) in [
            ("m.gguf", "--vram"),
            ("m.gguf --vram 4X", "'4X' is no size"),
            (
                "m.gguf --vram 1G --cache-type-k q2_K",
                "use one of f32, f16",
            ),
            ("m.gguf --vram 1G --ubatch 0", "0 is not in"),
            ("m.gguf --vram 1G --parallel 0", "0 is not in"),
            ("m.gguf --vram 1G --granularity 0", "multiples of zero"),
            ("m.gguf --map --json", "cannot be used with"),
            ("--vram 1G", "<MODEL>"),
        ] {
            let message = args(line).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
        for (line, part) in [
            ("m.gguf --vram 1G --what-if pci=3G", "--what-if: 'pci'"),
            (
                "m.gguf --vram 1G --profile no/such/file",
                "--profile: the profile no/such/file cannot",
            ),
        ] {
            let message = shown(&models::dense(), line).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn a_model_that_is_missing_is_an_error() {
        let args = args("no/such/model.gguf --vram 1G").unwrap();
        let error = run(args).unwrap_err();
        assert!(error.to_string().contains("no/such/model.gguf"), "{error}");
    }
}
