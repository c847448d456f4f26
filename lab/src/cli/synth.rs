//! `pipeshard-lab synth`: writes a model of random weights.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use comfy_table::{presets, CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::synth::{
    shape, write, Layout, Summary, SynthError, SynthSpec, Window, WriteOptions, PROJECTORS, SHAPES,
};
use pipeshard_cli::habits::count;
use pipeshard_model::size::ByteSize;

const EXAMPLES: &str = "\
Examples:
  pipeshard-lab synth --list
  pipeshard-lab synth --shape tiny-llama tiny.gguf
  pipeshard-lab synth --shape llama3-8b --type q4_0 /dev/shm/8b.gguf
  pipeshard-lab synth --shape qwen3-235b-a22b --layers 12 --type q2_K part.gguf
  pipeshard-lab synth --shape qwen3-32b --type q4_K_M 32b.gguf
  pipeshard-lab synth --shape qwen3-32b --header-only 32b.gguf   takes no room; for pipeshard plan
  pipeshard-lab synth --shape tiny-llama --type q8_0,attention=f16 --seed 7 --tied tied.gguf
  pipeshard-lab synth --shape cosmos-reason1-7b 7b.gguf          a vision model is two files:
  pipeshard-lab synth --shape cosmos-reason1-7b-mmproj mmproj.gguf

English text is one token per character, after the begin token: 599 characters are 600 tokens.";

/// Write a model of random weights, for tests and measurements.
///
/// The model has the shape of a real one, or a small one, and loads in every llama.cpp tool. It generates varied words
/// that mean nothing. The same shape, types and seed give the same file on every machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SynthArgs {
    /// Where to write the model.
    #[arg(value_name = "OUT", required_unless_present = "list")]
    out: Option<PathBuf>,

    /// The shape of the model, one of those that --list shows.
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    shape: Option<String>,

    /// Show the shapes and their sizes.
    #[arg(long, conflicts_with_all = ["out", "shape"])]
    list: bool,

    /// Element types: one for all weights (q4_0), or some (attention=f16,output=q8_0), or both, or a mix (q4_K_M).
    ///
    /// Where rows do not fill a type's blocks, the type is used that llama.cpp's quantiser would use; it is said how often.
    #[arg(long = "type", value_name = "TYPE")]
    types: Option<String>,

    /// Number of layers.
    #[arg(long, value_name = "N", value_parser = count)]
    layers: Option<u32>,

    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Use the token embedding as output head.
    #[arg(long, conflicts_with = "untied")]
    tied: bool,

    /// Give the output head weights of its own.
    #[arg(long)]
    untied: bool,

    /// Width of the residual stream, which is the row length of most weights.
    #[arg(long, value_name = "N", value_parser = count)]
    embedding: Option<u32>,

    /// Attention heads, each with keys and values of its own.
    #[arg(long, value_name = "N", value_parser = count)]
    heads: Option<u32>,

    /// Width of the dense feed-forward network.
    #[arg(long, value_name = "N", value_parser = count)]
    feed_forward: Option<u32>,

    /// Tokens in the vocabulary.
    #[arg(long, value_name = "N", value_parser = count)]
    vocabulary: Option<u32>,

    /// Tokens of context that the model says it was trained for.
    #[arg(long, value_name = "N", value_parser = count)]
    context: Option<u32>,

    /// Routed experts per layer.
    #[arg(long, value_name = "N", value_parser = count)]
    experts: Option<u32>,

    /// Experts that one token uses.
    #[arg(long, value_name = "N", value_parser = count)]
    experts_used: Option<u32>,

    /// Width of one expert.
    #[arg(long, value_name = "N", value_parser = count)]
    expert_feed_forward: Option<u32>,

    /// Width of the shared expert, which every token uses, in architectures that have one.
    #[arg(long, value_name = "N", value_parser = count)]
    shared_feed_forward: Option<u32>,

    /// Tokens that layers with a sliding window look back.
    #[arg(long, value_name = "N", value_parser = count)]
    window: Option<u32>,

    /// Threads to write with; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Leave the weights out: the file takes no room on the disk, and is good for `pipeshard plan` only.
    #[arg(long)]
    header_only: bool,

    /// Replace OUT if it exists.
    #[arg(long)]
    force: bool,
}

impl SynthArgs {
    /// The shape that was named, with what was asked for instead.
    fn spec(&self, name: &str) -> Result<SynthSpec, SynthError> {
        let mut spec = shape(name)?;
        let set = |field: &mut u32, wanted: Option<u32>| {
            if let Some(wanted) = wanted {
                *field = wanted;
            }
        };
        set(&mut spec.layers, self.layers);
        set(&mut spec.embedding, self.embedding);
        set(&mut spec.heads, self.heads);
        set(&mut spec.kv_heads, self.heads);
        set(&mut spec.feed_forward, self.feed_forward);
        set(&mut spec.vocabulary, self.vocabulary);
        set(&mut spec.context, self.context);
        set(&mut spec.experts, self.experts);
        set(&mut spec.experts_used, self.experts_used);
        set(&mut spec.expert_feed_forward, self.expert_feed_forward);
        set(&mut spec.shared_feed_forward, self.shared_feed_forward);
        if let Some(tokens) = self.window {
            let period = spec.window.map_or(1, |window| window.period);
            spec.window = Some(Window { tokens, period });
        }
        if let Some(types) = &self.types {
            spec.types = spec.types.with(types)?;
        }
        spec.tied = (spec.tied || self.tied) && !self.untied;
        spec.seed = self.seed;
        Ok(spec)
    }
}

/// Runs the command.
///
/// # Errors
/// [`SynthError`] when the shape, the types or the output path are invalid; then no file is left.
pub fn run(args: &SynthArgs) -> Result<(), SynthError> {
    let (Some(name), Some(out)) = (&args.shape, &args.out) else {
        println!("{}", list()?);
        println!("{}", list_encoders());
        return Ok(());
    };
    let spec = args.spec(name)?;
    let bar = progress_bar(Layout::new(&spec)?.bytes());
    let options = WriteOptions {
        threads: args.threads,
        replace: args.force,
        header_only: args.header_only,
    };
    let result = write(&spec, out, options, &|bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    println!("{}", told(&result?));
    Ok(())
}

fn progress_bar(bytes: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    let style = ProgressStyle::with_template(
        "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
    );
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn millions(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 1000.0 {
        format!("{millions:.1} M")
    } else {
        format!("{:.2} B", millions / 1000.0)
    }
}

/// One line about what was written.
fn told(summary: &Summary) -> String {
    let types: Vec<_> = summary
        .types
        .iter()
        .map(|(name, bytes)| format!("{name} {}", ByteSize(*bytes)))
        .collect();
    let rate = summary.bytes as f64 / summary.seconds.max(1e-3);
    let mut text = format!(
        "{}: {}, {} parameters in {} tensors ({}), {:.1} s, {}/s",
        summary.path.display(),
        ByteSize(summary.bytes),
        millions(summary.parameters),
        summary.tensors,
        types.join(", "),
        summary.seconds,
        ByteSize(rate as u64),
    );
    if summary.replaced > 0 {
        text.push_str(&format!(
            "\n{} tensors have another type than asked for: their rows do not fill its blocks",
            summary.replaced
        ));
    }
    text
}

/// The shapes as a table.
fn list() -> Result<Table, SynthError> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "shape",
        "llama.cpp",
        "layers",
        "width",
        "heads",
        "vocabulary",
        "size",
        "types",
        "about",
    ]);
    for shape in SHAPES {
        let spec = shape.spec();
        let inner = if spec.is_mixture() {
            format!("{}·{}", spec.experts, spec.expert_feed_forward)
        } else {
            spec.feed_forward.to_string()
        };
        table.add_row([
            shape.name.to_owned(),
            spec.architecture.name().to_owned(),
            spec.layers.to_string(),
            format!("{}/{inner}", spec.embedding),
            format!("{}/{}", spec.heads, spec.kv_heads),
            spec.vocabulary.to_string(),
            ByteSize(Layout::new(&spec)?.bytes()).to_string(),
            spec.main_type().name.to_owned(),
            shape.about.to_owned(),
        ]);
    }
    for column in [2, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(table)
}

/// The small encoders, each in a line.
fn list_encoders() -> String {
    let width = PROJECTORS.iter().map(|p| p.shape().len()).max();
    let lines = PROJECTORS.iter().map(|projector| {
        let width = width.unwrap_or(0);
        format!("\n  {:width$}  {}", projector.shape(), projector.about)
    });
    let lines: String = lines.collect();
    format!(
        "Encoders of images and sound for tests, each a file next to a language model's:{lines}"
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        synth: SynthArgs,
    }

    fn parse(line: &str) -> Result<SynthArgs, clap::Error> {
        Tool::try_parse_from(line.split_whitespace()).map(|tool| tool.synth)
    }

    #[test]
    fn what_is_asked_for_replaces_the_shape() {
        let args = parse(
            "synth --shape tiny-llama --type q4_0,attention=f16 --layers 9 --seed 5 --tied \
             --embedding 576 out.gguf",
        )
        .unwrap();
        let spec = args.spec("tiny-llama").unwrap();
        assert_eq!((spec.layers, spec.seed, spec.embedding), (9, 5, 576));
        assert!(spec.tied);
        assert_eq!(spec.types.feed_forward.name, "q4_0");
        assert_eq!(spec.types.attention.name, "f16");
        assert_eq!(spec.heads, shape("tiny-llama").unwrap().heads);
        let untied = parse("synth --shape tiny-gemma3 --untied out").unwrap();
        assert!(!untied.spec("tiny-gemma3").unwrap().tied);
    }

    #[test]
    fn incomplete_lines_are_refused() {
        assert!(parse("synth").is_err());
        assert!(parse("synth out.gguf").is_err());
        assert!(parse("synth --shape tiny-llama").is_err());
        assert!(parse("synth --list out.gguf").is_err());
        assert!(parse("synth --shape tiny-llama --tied --untied out").is_err());
        assert!(parse("synth --list").is_ok());
    }

    #[test]
    fn every_shape_is_listed() {
        let table = list().unwrap().to_string();
        for shape in SHAPES {
            assert!(table.contains(shape.name), "{table}");
        }
        let encoders = list_encoders();
        assert!(encoders.contains("\n  tiny-mmproj-gemma3 ") && encoders.contains("pooling"));
    }

    #[test]
    fn a_model_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("model.gguf");
        let line = format!(
            "synth --shape tiny-llama --layers 1 --vocabulary 260 {}",
            out.display()
        );
        run(&parse(&line).unwrap()).unwrap();
        assert!(pipeshard_gguf::inventory_of(&out).is_ok());
        let whole = pipeshard_gguf::inventory_of(&out).unwrap();
        let header = folder.path().join("header.gguf");
        let short = line.replace("model.gguf", "header.gguf") + " --header-only";
        run(&parse(&short).unwrap()).unwrap();
        assert_eq!(pipeshard_gguf::inventory_of(&header).unwrap(), whole);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&header.metadata().unwrap());
        assert!(blocks * 512 < whole.weight_bytes() / 2, "{blocks}");
        let again = run(&parse(&line).unwrap()).unwrap_err();
        assert!(again.to_string().contains("--force"), "{again}");
        run(&parse(&format!("{line} --force")).unwrap()).unwrap();
    }
}
