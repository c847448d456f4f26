//! `pipeshard eval`: evaluates prompts of given lengths with llama.cpp, stock or with pipeshard, and keeps every logit.
//!
//! One process evaluates one configuration, because the scheduler hook and a simulated GPU belong to the process.
//! `pipeshard verify` and the tests start several and compare.

use super::habits::{
    cache_type, count, llama_threads, positive, threads, FlashAttn, ModelFile, NoPrompt,
};
use clap::Args;
use pipeshard_llama::{
    largest, random_tokens, Context, ContextOptions, Fingerprint, FlashAttention, Library,
    LoadMode, Model, ModelOptions, Side,
};
use pipeshard_model::inventory::DType;
use pipeshard_model::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// What to evaluate, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pipeshard eval model.gguf --prompt-tokens 1,32,600 --generate 8 --vram 40M --sim vram=1G --logits out.f32"
)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelFile,
    #[command(flatten)]
    pub no_prompt: NoPrompt,
    /// Prompt lengths in tokens; each is evaluated from an empty context
    #[arg(
        long = "prompt-tokens",
        value_delimiter = ',',
        default_value = "1,7,31,32,33,600",
        value_parser = count
    )]
    pub prompts: Vec<u32>,
    /// Tokens to generate after each prompt, greedily
    #[arg(short = 'n', long, default_value_t = 8, visible_alias = "n-predict", value_parser = count)]
    pub generate: u32,
    /// Context length in tokens
    #[arg(short = 'c', long, default_value_t = 1024, visible_alias = "ctx-size", value_parser = positive)]
    pub ctx: u32,
    /// Tokens per ubatch
    #[arg(long, default_value_t = 512, visible_alias = "ubatch-size", value_parser = positive)]
    pub ubatch: u32,
    /// Tokens that are handed over at a time [default: the longest prompt, and at least a ubatch]
    #[arg(short = 'b', long, visible_alias = "batch-size", value_parser = positive)]
    pub batch: Option<u32>,
    /// Rows of logits that one ubatch may ask for (0: as many as the batch has)
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub outputs: u32,
    /// Type of the keys in the KV cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,
    /// Type of the values in the KV cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,
    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short = 't', long, value_parser = threads)]
    pub threads: Option<u32>,
    /// Run with pipeshard inside this budget; without it llama.cpp runs as it is
    #[arg(long)]
    pub vram: Option<ByteSize>,
    /// Simulate the GPU, for example vram=1G,pcie=25G
    #[arg(long)]
    pub sim: Option<String>,
    /// Layers on the GPU, without --vram (0: CPU only)
    #[arg(long, default_value_t = 0)]
    pub ngl: i32,
    /// Keep tensors whose name matches on the CPU, without --vram
    #[arg(long = "on-cpu", value_name = "REGEX")]
    pub on_cpu: Vec<String>,
    /// Load mode of the weights: mmap or none
    #[arg(long, default_value = "mmap")]
    pub load_mode: String,
    /// Flash attention
    #[arg(long, value_enum, default_value = "auto")]
    pub flash_attn: FlashAttn,
    /// Change the budget before these generated tokens: STEP=SIZE, in every prompt
    #[arg(long = "budget-at", value_name = "STEP=SIZE", value_delimiter = ',')]
    pub budget_at: Vec<String>,
    /// Contexts on the one model, each evaluating every prompt, in turns token by token
    #[arg(long, default_value_t = 1)]
    pub contexts: usize,
    /// Seed of the prompts' tokens
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the logits, 32-bit floats one vocabulary after another, to this file
    #[arg(long)]
    pub logits: Option<PathBuf>,
    /// Show llama.cpp's log
    #[arg(long)]
    pub verbose: bool,
}

/// What one prompt gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptResult {
    /// Which context.
    pub context: usize,
    /// Length in tokens.
    pub prompt: u32,
    /// The tokens generated.
    pub tokens: Vec<i32>,
    /// Hash of the bits of all logits.
    pub logits_hash: String,
    /// Seconds until the prompt's logits were there.
    pub prompt_seconds: f64,
    /// Seconds for the generated tokens.
    pub generate_seconds: f64,
    /// What a simulated GPU counted during the prompt.
    pub device: Option<serde_json::Value>,
}

/// What an evaluation gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvalResult {
    /// Per prompt and context.
    pub results: Vec<PromptResult>,
    /// Graphs that llama.cpp used again.
    pub graphs_reused: i64,
    /// What pipeshard reports.
    pub report: Option<serde_json::Value>,
    /// The units that pipeshard made of the loaded weights.
    pub units: Option<serde_json::Value>,
    /// The plan as it was decided, and as it runs.
    #[serde(default)]
    pub plans: Option<serde_json::Value>,
}

/// Runs the command: prints the result as JSON.
pub fn run(args: EvalArgs) -> Result<(), String> {
    let result = evaluate(&args)?;
    let text = serde_json::to_string(&result).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}

/// llama.cpp ends the process where a batch is longer than its context.
fn fits(args: &EvalArgs) -> Result<(), String> {
    let longest = args.prompts.iter().max().copied().unwrap_or(0);
    // the last token is generated and not evaluated
    let needed = u64::from(longest) + u64::from(args.generate.saturating_sub(1));
    match needed > u64::from(args.ctx) {
        true => Err(format!(
            "a prompt of {longest} tokens and {} generated ones do not fit into a context of {}: give --ctx {needed} or more",
            args.generate, args.ctx
        )),
        false => Ok(()),
    }
}

/// Evaluates in this process.
pub fn evaluate(args: &EvalArgs) -> Result<EvalResult, String> {
    fits(args)?;
    let set = |name: &str, value: &str| std::env::set_var(name, value);
    if let Some(budget) = args.vram {
        set("LLAMA_ARG_PIPESHARD", "1");
        set("LLAMA_ARG_PIPESHARD_VRAM", &budget.0.to_string());
    }
    if let Some(sim) = &args.sim {
        set("LLAMA_ARG_PIPESHARD_SIM", sim);
    }
    pipeshard_llama::start(args.verbose);
    let model = load(args)?;
    let library = Library::find();
    let mut contexts: Vec<Context> = (0..args.contexts)
        .map(|_| new_context(args, &model))
        .collect::<Result<_, _>>()?;
    let mut logits_file = match &args.logits {
        Some(path) => {
            let file =
                std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
            Some(std::io::BufWriter::new(file))
        }
        None => None,
    };
    let mut results = Vec::new();
    for &prompt in &args.prompts {
        results.extend(run_prompt(
            args,
            &model,
            &mut contexts,
            &library,
            prompt,
            &mut logits_file,
        )?);
    }
    if let Some(mut file) = logits_file {
        file.flush().map_err(|e| e.to_string())?;
    }
    let graphs_reused = contexts.iter().map(Context::graphs_reused).sum();
    Ok(EvalResult {
        results,
        graphs_reused,
        report: library.report(),
        units: library.units(),
        plans: library.plans(),
    })
}

fn load(args: &EvalArgs) -> Result<Model, String> {
    let mut options = ModelOptions {
        load_mode: match args.load_mode.as_str() {
            "mmap" => LoadMode::Mmap,
            "none" => LoadMode::None,
            other => return Err(format!("--load-mode {other}: expected mmap or none")),
        },
        ..ModelOptions::default()
    };
    if args.vram.is_none() {
        options.gpu_layers = args.ngl;
        options.cpu_only = args.ngl == 0;
        let host = |pattern: &String| (pattern.clone(), Side::Host);
        options.overrides = args.on_cpu.iter().map(host).collect();
    }
    Model::load(&args.model, &options).map_err(|e| e.to_string())
}

fn new_context<'m>(args: &EvalArgs, model: &'m Model) -> Result<Context<'m>, String> {
    let longest = args.prompts.iter().copied().max().unwrap_or(1);
    let mut options = ContextOptions::new(
        args.ctx,
        args.batch.unwrap_or(args.ubatch).max(longest),
        args.ubatch,
        llama_threads(args.threads),
    );
    options.outputs = args.outputs;
    options.flash_attention = match args.flash_attn {
        FlashAttn::Auto => FlashAttention::Auto,
        FlashAttn::On => FlashAttention::On,
        FlashAttn::Off => FlashAttention::Off,
    };
    options.kv_types = (args.cache_type_k.id, args.cache_type_v.id);
    Context::new(model, &options).map_err(|e| e.to_string())
}

/// One context's way through a prompt.
struct Run {
    tokens: Vec<i32>,
    hash: Fingerprint,
    next: i32,
    prompt_seconds: f64,
    generate_seconds: f64,
    device: Option<serde_json::Value>,
}

impl Run {
    fn new() -> Self {
        Run {
            tokens: Vec::new(),
            hash: Fingerprint::default(),
            next: 0,
            prompt_seconds: 0.0,
            generate_seconds: 0.0,
            device: None,
        }
    }
}

fn budget_changes(args: &EvalArgs) -> Result<Vec<(u32, ByteSize)>, String> {
    let parse = |change: &String| {
        let (at, size) = change.split_once('=').ok_or("expected STEP=SIZE")?;
        let at = at.parse().map_err(|_| format!("'{at}' is not a step"))?;
        let size = size.parse::<ByteSize>().map_err(|e| e.to_string())?;
        Ok((at, size))
    };
    let changes = args
        .budget_at
        .iter()
        .map(|c| parse(c).map_err(|why: String| format!("--budget-at {c}: {why}")));
    changes.collect()
}

fn run_prompt(
    args: &EvalArgs,
    model: &Model,
    contexts: &mut [Context<'_>],
    library: &Library,
    prompt: u32,
    file: &mut Option<std::io::BufWriter<std::fs::File>>,
) -> Result<Vec<PromptResult>, String> {
    let vocabulary = model.vocabulary();
    let count = contexts.len();
    let changes = budget_changes(args)?;
    let mut runs: Vec<Run> = contexts.iter().map(|_| Run::new()).collect();
    library.reset_device();
    // every context's batch is submitted before any result is asked for, so that passes overlap
    let start = Instant::now();
    for (index, context) in contexts.iter_mut().enumerate() {
        context.clear();
        let mut tokens = random_tokens(args.seed + index as u64, prompt, vocabulary);
        context
            .decode_next(&mut tokens)
            .map_err(|e| e.to_string())?;
    }
    for (context, run) in contexts.iter().zip(&mut runs) {
        take_logits(context, run, file)?;
        run.prompt_seconds = start.elapsed().as_secs_f64();
        run.device = library.device();
    }
    for step in 0..args.generate {
        let start = Instant::now();
        for (index, (context, run)) in contexts.iter_mut().zip(&mut runs).enumerate() {
            run.tokens.push(run.next);
            // with several contexts the budget changes while the first one's batch is still being computed
            if index == count.min(2) - 1 {
                for &(_, size) in changes.iter().filter(|c| c.0 == step) {
                    if !library.set_budget(size.0) {
                        return Err(format!("the budget could not be changed to {size}"));
                    }
                }
            }
            context
                .decode_next(&mut [run.next])
                .map_err(|e| e.to_string())?;
        }
        for (context, run) in contexts.iter().zip(&mut runs) {
            take_logits(context, run, file)?;
            run.generate_seconds += start.elapsed().as_secs_f64();
        }
    }
    Ok(runs
        .into_iter()
        .enumerate()
        .map(|(context, run)| PromptResult {
            context,
            prompt,
            tokens: run.tokens,
            logits_hash: run.hash.hex(),
            prompt_seconds: run.prompt_seconds,
            generate_seconds: run.generate_seconds,
            device: run.device,
        })
        .collect())
}

fn take_logits(
    context: &Context<'_>,
    run: &mut Run,
    file: &mut Option<std::io::BufWriter<std::fs::File>>,
) -> Result<(), String> {
    let logits = context.logits(-1).map_err(|e| e.to_string())?;
    run.next = largest(logits);
    run.hash.floats(logits);
    if let Some(file) = file {
        for logit in logits {
            file.write_all(&logit.to_le_bytes())
                .map_err(|e| format!("the logits could not be written: {e}"))?;
        }
    }
    Ok(())
}
