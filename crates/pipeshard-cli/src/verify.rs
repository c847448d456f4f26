//! `pipeshard verify`: the same answers as stock llama.cpp?

use super::eval::EvalResult;
use super::habits::{cache_type, count, positive, threads, FlashAttn, ModelFile, NotTaken};
use super::no_gpu;
use clap::Args;
use comfy_table::Table;
use pipeshard_model::inventory::DType;
use pipeshard_model::size::ByteSize;
use std::path::Path;
use std::process::Command;

/// What to compare.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pipeshard verify model.gguf --vram 4G\n  \
    pipeshard verify model.gguf --vram 40M --sim vram=1G --reference cpu\n\n\
    The reference is stock llama.cpp with the same placement (same): what the plan leaves on the host is on the CPU there, too. \
    Others are stock with everything in VRAM (gpu), and on the CPU alone (cpu). On the simulated GPU all of them agree to the \
    last bit; on a real one stock with part of a model on the CPU does not agree with itself in VRAM to the last bit, for \
    kernels that are fused within a piece of the graph are not fused across pieces.")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelFile,
    #[command(flatten)]
    pub not_taken: NotTaken,
    /// The budget
    #[arg(long, visible_alias = "pipeshard-vram")]
    pub vram: ByteSize,
    /// Simulate the GPU, for example vram=1G,pcie=25G
    #[arg(long)]
    pub sim: Option<String>,
    /// What to compare with
    #[arg(long, value_enum, default_value = "same")]
    pub reference: Reference,
    /// Prompt lengths in tokens
    #[arg(
        long = "prompt-tokens",
        value_delimiter = ',',
        default_value = "1,7,31,32,33,600",
        value_parser = count
    )]
    pub prompts: Vec<u32>,
    /// Tokens to generate after each prompt
    #[arg(short = 'n', long, default_value_t = 8, visible_alias = "n-predict", value_parser = count)]
    pub generate: u32,
    /// Context length
    #[arg(short = 'c', long, default_value_t = 1024, visible_alias = "ctx-size", value_parser = positive)]
    pub ctx: u32,
    /// Tokens per ubatch
    #[arg(long, default_value_t = 512, visible_alias = "ubatch-size", value_parser = positive)]
    pub ubatch: u32,
    /// Tokens that are handed over at a time [default: the longest prompt, and at least a ubatch]
    #[arg(short = 'b', long, visible_alias = "batch-size", value_parser = positive)]
    pub batch: Option<u32>,
    /// Type of the keys in the KV cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,
    /// Type of the values in the KV cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,
    /// Flash attention
    #[arg(long, value_enum, default_value = "auto")]
    pub flash_attn: FlashAttn,
    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short = 't', long, value_parser = threads)]
    pub threads: Option<u32>,
    /// The largest difference of a logit that still passes; 0 asks for identical bits
    #[arg(long, default_value_t = 0.0)]
    pub tolerance: f32,
}

/// What to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reference {
    /// Stock llama.cpp with the same placement
    Same,
    /// Stock llama.cpp with everything in VRAM
    Gpu,
    /// Stock llama.cpp on the CPU
    Cpu,
}

/// Two evaluations side by side.
struct Comparison {
    stock: EvalResult,
    ours: EvalResult,
    largest_difference: f32,
    identical: bool,
}

/// Runs the command; an error when the answers differ.
pub fn run(args: VerifyArgs) -> Result<(), String> {
    if args.sim.is_none() && no_gpu::first().is_none() {
        return Err(no_gpu::nothing_to_compare("verify", &args.model, args.vram));
    }
    let folder = std::env::temp_dir().join(format!("pipeshard-verify-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let result = compare(&args, &folder);
    // best effort: the folder is in the system's temporary files
    let _ = std::fs::remove_dir_all(&folder);
    let comparison = result?;
    println!("{}", table(&comparison));
    let verdict = format!(
        "largest difference of a logit: {:e}; {}",
        comparison.largest_difference,
        if comparison.identical {
            "all bits are identical"
        } else {
            "the bits differ"
        }
    );
    let engaged = comparison
        .ours
        .report
        .as_ref()
        .is_some_and(|r| r["engaged"] == true);
    if !engaged {
        return Err(format!(
            "pipeshard was not engaged, so nothing was compared; {verdict}"
        ));
    }
    let tokens_agree = comparison
        .stock
        .results
        .iter()
        .zip(&comparison.ours.results)
        .all(|(a, b)| a.tokens == b.tokens);
    let within = comparison.identical
        || (args.tolerance > 0.0 && comparison.largest_difference <= args.tolerance);
    match within && (tokens_agree || args.tolerance > 0.0) {
        true => {
            println!("same answers: {verdict}");
            Ok(())
        }
        false => Err(format!("different answers: {verdict}")),
    }
}

fn compare(args: &VerifyArgs, folder: &Path) -> Result<Comparison, String> {
    let (ours_logits, stock_logits) = (folder.join("ours.f32"), folder.join("stock.f32"));
    let vram = args.vram.0.to_string();
    // where the CPU computes decides about the last bit, so the strict comparison leaves out what stock has no flag for
    let like_stock = args.reference == Reference::Same;
    let ours = spawn(args, &ours_logits, &["--vram", &vram], like_stock)?;
    let mut reference: Vec<String> = Vec::new();
    match args.reference {
        Reference::Cpu => reference.push("--ngl=0".to_string()),
        Reference::Gpu => reference.push("--ngl=999".to_string()),
        Reference::Same => {
            reference.push("--ngl=999".to_string());
            if let Some(pattern) = host_pattern(&ours) {
                reference.push(format!("--on-cpu={pattern}"));
            }
        }
    }
    let reference: Vec<&str> = reference.iter().map(String::as_str).collect();
    let stock = spawn(args, &stock_logits, &reference, false)?;
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (a, b) = (read(&stock_logits)?, read(&ours_logits)?);
    let identical = a == b;
    let floats = |bytes: &[u8]| {
        bytes
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect::<Vec<_>>()
    };
    let (a, b) = (floats(&a), floats(&b));
    if a.len() != b.len() {
        return Err(format!(
            "{} logits on one side, {} on the other",
            a.len(),
            b.len()
        ));
    }
    let largest_difference = difference_while_tokens_agree(&a, &b, &stock, &ours);
    Ok(Comparison {
        stock,
        ours,
        largest_difference,
        identical,
    })
}

/// Returns the largest difference of a logit, while both sides had seen the same tokens: after the first token that differs
/// they answer different questions.
fn difference_while_tokens_agree(
    a: &[f32],
    b: &[f32],
    stock: &EvalResult,
    ours: &EvalResult,
) -> f32 {
    let rows: usize = stock.results.iter().map(|r| r.tokens.len() + 1).sum();
    let vocabulary = a.len() / rows.max(1);
    let (mut largest, mut row) = (0.0f32, 0);
    for (stock, ours) in stock.results.iter().zip(&ours.results) {
        let pairs = stock.tokens.iter().zip(&ours.tokens);
        let same_tokens = pairs.take_while(|(x, y)| x == y).count();
        let span = row * vocabulary..(row + same_tokens + 1).min(rows) * vocabulary;
        let differences = a[span.clone()]
            .iter()
            .zip(&b[span])
            .map(|(x, y)| (x - y).abs());
        largest = differences.fold(largest, f32::max);
        row += stock.tokens.len() + 1;
    }
    largest
}

/// What the plan leaves on the host, as a pattern for stock llama.cpp's tensor overrides.
fn host_pattern(ours: &EvalResult) -> Option<String> {
    let names = ours.report.as_ref()?["not_resident"].as_array()?;
    let names: Vec<String> = names
        .iter()
        .filter_map(|n| n.as_str())
        .map(regex::escape)
        .collect();
    (!names.is_empty()).then(|| format!("^({})$", names.join("|")))
}

fn spawn(
    args: &VerifyArgs,
    logits: &Path,
    extra: &[&str],
    like_stock: bool,
) -> Result<EvalResult, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command
        .arg("eval")
        .arg(&*args.model)
        .arg("--logits")
        .arg(logits)
        .args(extra);
    if like_stock {
        command.env("PIPESHARD_LIKE_STOCK", "1");
    }
    command.args([
        "--generate",
        &args.generate.to_string(),
        "--ctx",
        &args.ctx.to_string(),
    ]);
    command.args([
        "--ubatch",
        &args.ubatch.to_string(),
        "--cache-type-k",
        args.cache_type_k.name,
        "--cache-type-v",
        args.cache_type_v.name,
        "--flash-attn",
        args.flash_attn.word(),
    ]);
    if let Some(batch) = args.batch {
        command.args(["--batch", &batch.to_string()]);
    }
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let prompts: Vec<String> = args.prompts.iter().map(u32::to_string).collect();
    command.args(["--prompt-tokens", &prompts.join(",")]);
    if let Some(sim) = &args.sim {
        command.args(["--sim", sim]);
    }
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("evaluation failed ({}), see above", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("evaluation printed no result: {e}"))
}

fn table(comparison: &Comparison) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["prompt", "tokens generated", "stock", "pipeshard", "logits"]);
    for (stock, ours) in comparison
        .stock
        .results
        .iter()
        .zip(&comparison.ours.results)
    {
        let seconds = |r: &super::eval::PromptResult| {
            format!("{:.3} s + {:.3} s", r.prompt_seconds, r.generate_seconds)
        };
        table.add_row([
            stock.prompt.to_string(),
            format!(
                "{} {}",
                stock.tokens.len(),
                if stock.tokens == ours.tokens {
                    "same"
                } else {
                    "DIFFERENT"
                }
            ),
            seconds(stock),
            seconds(ours),
            if stock.logits_hash == ours.logits_hash {
                "identical"
            } else {
                "different"
            }
            .to_string(),
        ]);
    }
    table
}
