//! `pipeshard verify`: the same answers as stock llama.cpp?

use super::eval::EvalResult;
use clap::Args;
use comfy_table::Table;
use pipeshard_model::size::ByteSize;
use std::path::{Path, PathBuf};
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
    /// The model (GGUF)
    pub model: PathBuf,
    /// The budget
    #[arg(long, visible_alias = "pipeshard-vram")]
    pub vram: ByteSize,
    /// Simulate the GPU, for example vram=1G,pcie=25G
    #[arg(long)]
    pub sim: Option<String>,
    /// What to compare with: same (the same placement in stock llama.cpp), gpu or cpu
    #[arg(long, default_value = "same")]
    pub reference: String,
    /// Prompt lengths in tokens
    #[arg(
        long = "prompt",
        value_delimiter = ',',
        default_value = "1,7,31,32,33,600"
    )]
    pub prompts: Vec<u32>,
    /// Tokens to generate after each prompt
    #[arg(short = 'n', long, default_value_t = 8)]
    pub generate: u32,
    /// Context length
    #[arg(short = 'c', long, default_value_t = 1024, visible_alias = "ctx-size")]
    pub ctx: u32,
    /// Tokens per ubatch
    #[arg(long, default_value_t = 512)]
    pub ubatch: u32,
    /// Threads of the CPU
    #[arg(short = 't', long, default_value_t = 2)]
    pub threads: i32,
    /// The largest difference of a logit that still passes; 0 asks for identical bits
    #[arg(long, default_value_t = 0.0)]
    pub tolerance: f32,
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
    let like_stock = args.reference == "same";
    let ours = spawn(args, &ours_logits, &["--vram", &vram], like_stock)?;
    let mut reference: Vec<String> = Vec::new();
    match args.reference.as_str() {
        "cpu" => reference.push("--ngl=0".to_string()),
        "gpu" => reference.push("--ngl=999".to_string()),
        "same" => {
            reference.push("--ngl=999".to_string());
            if let Some(pattern) = host_pattern(&ours) {
                reference.push(format!("--on-cpu={pattern}"));
            }
        }
        other => return Err(format!("--reference {other}: expected cpu, gpu or same")),
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
        .arg(&args.model)
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
        "--threads",
        &args.threads.to_string(),
    ]);
    let prompts: Vec<String> = args.prompts.iter().map(u32::to_string).collect();
    command.args(["--prompt", &prompts.join(",")]);
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
