//! `pipeshard bench`: compares the speed of a model within a budget with stock llama.cpp in the same memory.
//!
//! Both sides are `llama-bench` processes with the same settings, in turn. pipeshard goes first: what it held at its peak is what
//! stock's `--fit` is then held to. The grids of docs/benchmarks.md are made by `pipeshard-lab grids`.

pub mod memory;
mod process;
mod rows;
mod table;

use crate::habits::{cache_type, count, positive, threads, FlashAttn, ModelFile, NoPrompt};
use crate::no_gpu;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pipeshard_model::inventory::DType;
use pipeshard_model::size::ByteSize;
use process::{Memory, Tool};
use rows::{Comparison, Row};

/// What to compare.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pipeshard bench model.gguf --vram 8G\n  \
    pipeshard bench model.gguf --vram 8G -p 8K -n 128 -ctk q8_0 -ctv q8_0\n  \
    pipeshard bench model.gguf --vram 4G --depth 16384 --rounds 3 --json > result.json\n\n\
    Stock llama.cpp runs with --fit, held to the memory that pipeshard took, from a mapped file and from page-locked memory, with each \
    ubatch of --stock-ubatch. The driver's context counts on both sides. Other placements (-ot, --n-cpu-moe) can be better than --fit: \
    append their llama-bench flags after -- to add a row with them.")]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelFile,
    #[command(flatten)]
    pub no_prompt: NoPrompt,
    /// The budget
    #[arg(long, visible_alias = "pipeshard-vram")]
    pub vram: ByteSize,
    /// Tokens of the prompt
    #[arg(short = 'p', long, default_value_t = 2048, visible_alias = "n-prompt", value_parser = count)]
    pub prompt_tokens: u32,
    /// Tokens to generate
    #[arg(short = 'n', long, default_value_t = 64, visible_alias = "n-gen", value_parser = count)]
    pub generate: u32,
    /// Tokens that are in the context before both
    #[arg(short = 'd', long, default_value_t = 0, visible_alias = "n-depth", value_parser = count)]
    pub depth: u32,
    /// Measurements of every row; rows take turns
    #[arg(short = 'r', long, default_value_t = 2, value_parser = positive)]
    pub rounds: u32,
    /// Tokens per ubatch, on both sides (default: the plan's choice, and those of --stock-ubatch)
    #[arg(long, visible_alias = "ubatch-size", value_parser = positive)]
    pub ubatch: Option<u32>,
    /// Tokens that are handed over at a time, on both sides [default: the prompt, and at least 2048]
    #[arg(short = 'b', long, visible_alias = "batch-size", value_parser = positive)]
    pub batch: Option<u32>,
    /// The ubatches that stock is tried with
    #[arg(long, value_delimiter = ',', default_value = "512,2048", value_parser = positive)]
    pub stock_ubatch: Vec<u32>,
    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short, long, value_parser = threads)]
    pub threads: Option<u32>,
    /// Flash attention
    #[arg(long, value_enum, default_value = "auto")]
    pub flash_attn: FlashAttn,
    /// Type of the K cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,
    /// Type of the V cache
    #[arg(long, default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,
    /// Simulate the GPU, for example vram=8G,pcie=25G: for trying the command out, its times are those of this CPU
    #[arg(long)]
    pub sim: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// llama-bench flags of one more row of stock llama.cpp, such as -ngl 99 -ncmoe 40
    #[arg(last = true)]
    pub stock_flags: Vec<String>,
}

fn ours(args: &BenchArgs) -> Row {
    let mut flags = vec!["--pipeshard-vram".to_owned(), args.vram.0.to_string()];
    if let Some(ubatch) = args.ubatch {
        flags.extend(["-ub".to_owned(), ubatch.to_string()]);
    }
    Row::new("pipeshard".to_owned(), true, flags)
}

/// The flags of all rows.
fn common(args: &BenchArgs) -> Vec<String> {
    let mut flags = vec!["-m".to_owned(), args.model.display().to_string()];
    let mut add = |words: &[&str]| flags.extend(words.iter().map(|&w| w.to_owned()));
    add(&["-o", "jsonl", "-r", "1"]);
    add(&["-p", &args.prompt_tokens.to_string()]);
    add(&["-n", &args.generate.to_string()]);
    add(&["-d", &args.depth.to_string()]);
    let batch = args.batch.unwrap_or(args.prompt_tokens.max(2048));
    add(&["-b", &batch.to_string()]);
    add(&["-fa", args.flash_attn.word()]);
    add(&[
        "-ctk",
        args.cache_type_k.name,
        "-ctv",
        args.cache_type_v.name,
    ]);
    if let Some(threads) = args.threads {
        add(&["-t", &threads.to_string()]);
    }
    flags
}

/// Stock's rows, held to `bytes` of the `free` bytes of the device.
fn stocks(args: &BenchArgs, free: u64, bytes: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let margin = free.saturating_sub(bytes) >> 20;
    let context = args.depth + args.prompt_tokens.max(args.generate);
    let ubatches = args
        .ubatch
        .map_or_else(|| args.stock_ubatch.clone(), |ubatch| vec![ubatch]);
    for ubatch in ubatches {
        for (how, mode) in [("mapped", None), ("page-locked", Some("none"))] {
            let words = ["-fitt", &margin.to_string(), "-fitc", &context.to_string()];
            let mut flags: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
            flags.extend(["-ub".to_owned(), ubatch.to_string()]);
            flags.extend(
                mode.iter()
                    .flat_map(|m| ["-lm".to_owned(), (*m).to_owned()]),
            );
            let name = format!("--fit, {how}, -ub {ubatch}");
            rows.push(Row::new(name, false, flags));
        }
    }
    if !args.stock_flags.is_empty() {
        let name = args.stock_flags.join(" ");
        rows.push(Row::new(name, false, args.stock_flags.clone()));
    }
    rows
}

fn progress(args: &BenchArgs, rows: u64) -> ProgressBar {
    let bar = ProgressBar::new(rows * u64::from(args.rounds));
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg} ({elapsed}, {eta} to go)");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Runs the command.
///
/// # Errors
/// There is no device or no `llama-bench`, or pipeshard does not run within the budget.
pub fn run(args: &BenchArgs) -> Result<(), String> {
    let tool = Tool::find(common(args), args.sim.clone())?;
    let none = || no_gpu::nothing_to_compare("bench", &args.model, args.vram);
    let free = tool.free_memory(none)?;
    let memory = Memory::find(&tool);
    let mut rows = vec![ours(args)];
    let bar = progress(args, 1);
    bar.set_message(rows[0].name.clone());
    // the first one measures what this machine does, where that is not known yet, and says how much memory stock gets
    rows[0].measure(&tool, &memory);
    if let Some(why) = rows[0].failure.take() {
        bar.finish_and_clear();
        return Err(format!("pipeshard did not run within {}: {why}", args.vram));
    }
    let peak = rows[0].rounds[0].peak_bytes;
    let held_to = peak.unwrap_or(args.vram.0);
    rows.extend(stocks(args, free, held_to));
    bar.set_length(rows.len() as u64 * u64::from(args.rounds));
    bar.inc(1);
    for round in 0..args.rounds {
        for row in rows.iter_mut() {
            let measured = row.ours && round == 0;
            if !measured && row.failure.is_none() {
                bar.set_message(row.name.clone());
                row.measure(&tool, &memory);
            }
            bar.inc(u64::from(!measured));
        }
    }
    bar.finish_and_clear();
    let comparison = Comparison {
        budget: args.vram.0,
        prompt: args.prompt_tokens,
        generate: args.generate,
        depth: args.depth,
        stock_held_to: held_to,
        measured_memory: peak.is_some(),
        simulated: args.sim.is_some(),
        rows,
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&comparison).map_err(|e| e.to_string())?,
        false => table::of(&comparison),
    };
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn args(line: &str) -> BenchArgs {
        Line::parse_from(format!("bench model.gguf {line}").split(' ')).args
    }

    #[test]
    fn stock_gets_the_memory_that_pipeshard_took() {
        let rows = stocks(&args("--vram 8G"), 16 << 30, 9 << 30);
        let flags: Vec<String> = rows.iter().map(|row| row.flags.join(" ")).collect();
        assert_eq!(
            flags,
            [
                "-fitt 7168 -fitc 2048 -ub 512",
                "-fitt 7168 -fitc 2048 -ub 512 -lm none",
                "-fitt 7168 -fitc 2048 -ub 2048",
                "-fitt 7168 -fitc 2048 -ub 2048 -lm none",
            ]
        );
    }

    #[test]
    fn an_ubatch_that_is_given_is_given_to_both_sides() {
        let args = args("--vram 8G --ubatch 1024 --depth 100 -- -ngl 99 -ncmoe 40");
        assert_eq!(ours(&args).flags[2..], ["-ub", "1024"]);
        let rows = stocks(&args, 16 << 30, 9 << 30);
        assert_eq!(rows.len(), 3);
        assert!(rows[0].flags.join(" ").ends_with("-fitc 2148 -ub 1024"));
        assert_eq!(rows[2].flags, ["-ngl", "99", "-ncmoe", "40"]);
    }
}
