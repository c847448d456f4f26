//! `pipeshard-lab grids`: pipeshard and what stock llama.cpp can do with the same memory, measured in turn.

mod progress;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::progress::Bar;
use crate::bench::analysis::cells;
use crate::bench::export::{write_csv, write_json, Summary};
use crate::bench::grid::Grid;
use crate::bench::models::ModelSpec;
use crate::bench::placements;
use crate::bench::runner;
use crate::bench::settings::Settings;
use crate::bench::store::Store;
use crate::bench::sweep::{middle_first, GridKind, Sweep, CANDIDATES};
use crate::bench::types::Machine;
use crate::bench::verdicts::{verdicts, Met};
use crate::bench::{link, plot, predictions, table};
use pipeshard::profile::default_threads;
use pipeshard_cli::habits::{count, threads, NoPrompt};
use pipeshard_model::size::ByteSize;
use pipeshard_sim::SimSpec;

const HELP: &str = "\
Examples:
  pipeshard-lab grids --quick --out results
  pipeshard-lab grids --model llama3-8b:f16 --vram 4G,8G --prompt-tokens 512,4096 --out results
  pipeshard-lab grids --model big=/models/big.gguf --vram 6G --ubatch 2048,4096 --minutes 30
  pipeshard-lab grids --grid contexts --vram 4G,8G --contexts 4K,16K --minutes 8
  pipeshard-lab grids --grid batches --minutes 8
  pipeshard-lab grids --grid placements --candidates ffn-first,layers-first --minutes 8

Every figure is that of llama-bench in a process of its own. A budget means bytes of
device memory less what a process takes that only opens the device, for both sides and
by the driver's count; a baseline that took more is thrown out. Results are kept as
they come: the same command again takes up where the last one ended.";

/// Between the budgets that tell most.
const MIDDLE: u64 = 5600 << 20;
const DENSE: &str = "llama3-8b:f16";
const MIXTURE: &str = "qwen3-30b-a3b:q4_0";

/// How many kinds of placement stock llama.cpp is tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Search {
    /// The most promising one, and few tests of what loads slowly
    Small,
    /// The two most promising ones, and as few tests
    Medium,
    /// All that are known
    Full,
}

/// Arguments of `pipeshard-lab grids`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct BenchArgs {
    /// Models: SHAPE:TYPE, which is made where it is missing, FILE.gguf or NAME=FILE.gguf
    /// [default: llama3-8b:f16,qwen3-30b-a3b:q4_0; batches: the latter]
    #[arg(long = "model", value_name = "MODEL", value_delimiter = ',')]
    models: Option<Vec<String>>,

    #[command(flatten)]
    no_prompt: NoPrompt,

    /// Where models are made
    #[arg(long, value_name = "DIR", default_value = "/dev/shm/pipeshard-models")]
    models_dir: PathBuf,

    /// Another grid, instead of prompts and generation with an empty context
    #[arg(long, value_name = "GRID")]
    grid: Option<GridKind>,

    /// Budgets, without the bare context [default: 4G,8G; contexts and placements: 2G,4G,8G,16G; batches: 8G]
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    vram: Option<Vec<ByteSize>>,

    /// Contexts of a further grid [default: 1K,4K,16K,64K; placements: 1K,4K,16K; batches: 1K]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "grid")]
    contexts: Option<Vec<ByteSize>>,

    /// Parallel sequences, for --grid batches
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "grid", default_values = ["1", "4", "16", "64"])]
    batches: Vec<u32>,

    /// Placements that the planner is told to take, for --grid placements [default: all that have a name]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "grid")]
    candidates: Option<Vec<String>>,

    /// Prompt lengths in tokens [default: 8,32,128,512,2048,4096; quick: 32,512,2048,4096]
    #[arg(long = "prompt-tokens", value_name = "LIST", value_delimiter = ',', value_parser = count)]
    prompts: Option<Vec<u32>>,

    /// Ubatches of the search and of everything in VRAM [default: 512,2048,4096; quick: 4096]
    #[arg(long = "ubatch", value_name = "LIST", value_delimiter = ',', value_parser = count)]
    ubatches: Option<Vec<u32>>,

    /// Ubatches of stock --fit [default: 512,2048; quick: 2048]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = count)]
    fit_ubatch: Option<Vec<u32>>,

    /// Ubatches that pipeshard is given for longer prompts, in addition to its own choice [default: 2048,4096; quick: 2048]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = count)]
    our_ubatch: Option<Vec<u32>>,

    /// Passes of so many tokens that pipeshard is measured with alone; 0: none [default: 1,2; quick: none]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = count)]
    rows: Option<Vec<u32>>,

    /// Tokens to generate; fewer where that would take too long [default: 128; further grids: 64]
    #[arg(short = 'n', long, value_name = "N", value_parser = count)]
    generate: Option<u32>,

    /// Tokens that are in the context before a generation
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["0"], value_parser = count)]
    depth: Vec<u32>,

    /// Repetitions in each process, more for short tests [default: 3]
    #[arg(short, long, value_name = "N")]
    repetitions: Option<u32>,

    /// How often the best of each side are measured, in turn
    #[arg(long, value_name = "N", default_value_t = 2)]
    rounds: u32,

    /// Kinds of placement that stock llama.cpp is tried with [default: full; quick: small]
    #[arg(long)]
    search: Option<Search>,

    /// Tokens of the prompt whose cold start is measured; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 32)]
    first_token: u32,

    /// Leave out everything in VRAM; without it there are no bounds
    #[arg(long)]
    no_ceiling: bool,

    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short, long, value_name = "N", value_parser = threads)]
    threads: Option<u32>,

    /// A small grid that is done in 5 minutes on an H100
    #[arg(long)]
    quick: bool,

    /// Stop after so many minutes and show what there is [quick: 5]
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,

    /// Where results go: tables, CSV, JSON, pictures, and a log of every command
    #[arg(long, value_name = "DIR", default_value = "pipeshard-bench")]
    out: PathBuf,

    /// Measure nothing: draw the pictures of the results in --out again
    #[arg(long)]
    render: bool,

    /// The folder with llama-bench [default: that of this program]
    #[arg(long, value_name = "DIR")]
    tools: Option<PathBuf>,

    /// Simulate the GPU, for example vram=1G: tries the machinery, says nothing about speed
    #[arg(long, value_name = "SPEC", visible_alias = "simulate")]
    sim: Option<SimSpecText>,

    /// The GPU by the driver's count; llama.cpp uses its first, see CUDA_VISIBLE_DEVICES
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: u32,

    /// Open the device, print what is known of it and its link as JSON, and end; FILE is page-locked in place
    #[arg(long, value_name = "FILE", num_args = 0..=1, hide = true)]
    probe_device: Option<Option<PathBuf>>,
}

/// The text of a specification that was read once, for the processes to read again.
#[derive(Debug, Clone)]
struct SimSpecText(String);

impl std::str::FromStr for SimSpecText {
    type Err = pipeshard_sim::SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SimSpec::parse(text).map(|_| SimSpecText(text.to_owned()))
    }
}

/// Ascending, each once, without zeroes.
fn ascending(list: Vec<u32>) -> Vec<u32> {
    let mut list: Vec<u32> = list.into_iter().filter(|&n| n > 0).collect();
    list.sort_unstable();
    list.dedup();
    list
}

impl BenchArgs {
    fn grid(&self) -> Result<Grid, String> {
        let quick = self.quick;
        let list = |given: &Option<Vec<u32>>, full: &[u32], small: &[u32]| {
            let default = || if quick { small } else { full }.to_vec();
            ascending(given.clone().unwrap_or_else(default))
        };
        let names = match (&self.models, self.grid) {
            (Some(names), _) => names.clone(),
            (None, Some(GridKind::Batches)) => vec![MIXTURE.to_owned()],
            (None, _) => vec![DENSE.to_owned(), MIXTURE.to_owned()],
        };
        let models: Result<Vec<_>, _> = names
            .iter()
            .map(|text| ModelSpec::parse(text, &self.models_dir))
            .collect();
        let budgets = self.budgets();
        let search = self
            .search
            .unwrap_or(if quick { Search::Small } else { Search::Full });
        let grid = Grid {
            models: models?,
            budgets,
            prompts: list(
                &self.prompts,
                &[8, 32, 128, 512, 2048, 4096],
                &[32, 512, 2048, 4096],
            ),
            ubatches: list(&self.ubatches, &[512, 2048, 4096], &[4096]),
            fit_ubatches: list(&self.fit_ubatch, &[512, 2048], &[2048]),
            our_ubatches: list(&self.our_ubatch, &[2048, 4096], &[2048]),
            rows: list(&self.rows, &[1, 2], &[]),
            decode: self.generate.unwrap_or(128),
            decode_seconds: if quick { 2.0 } else { 4.0 },
            depths: self.depth.clone(),
            repetitions: self
                .repetitions
                .unwrap_or(if self.grid.is_some() { 2 } else { 3 })
                .max(1),
            rounds: self.rounds.max(1),
            first_token: self.first_token,
            kinds: match search {
                Search::Small => 1,
                Search::Medium => 2,
                Search::Full => usize::MAX,
            },
            full_search: search == Search::Full,
            same_placement: true,
            ceiling: !self.no_ceiling,
        };
        match grid.ubatches.is_empty() || grid.fit_ubatches.is_empty() {
            true => Err("--ubatch and --fit-ubatch need a number each, such as 2048".to_owned()),
            false => Ok(grid),
        }
    }

    fn budgets(&self) -> Vec<u64> {
        const GIB: u64 = 1 << 30;
        let default = match self.grid {
            None => vec![4 * GIB, 8 * GIB],
            Some(GridKind::Batches) => vec![8 * GIB],
            Some(_) => vec![2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB],
        };
        let given = self.vram.as_ref();
        let given = given.map(|list| list.iter().map(|size| size.0).collect());
        let mut budgets: Vec<u64> = given.unwrap_or(default);
        budgets.sort_unstable();
        budgets.dedup();
        budgets
    }

    fn sweep(&self) -> Result<Option<Sweep>, String> {
        let Some(kind) = self.grid else {
            return Ok(None);
        };
        let mut budgets = self.budgets();
        middle_first(&mut budgets, MIDDLE);
        let default: &[u64] = match kind {
            GridKind::Contexts => &[1 << 10, 4 << 10, 16 << 10, 64 << 10],
            GridKind::Batches => &[1 << 10],
            GridKind::Placements => &[1 << 10, 4 << 10, 16 << 10],
        };
        let given = self.contexts.as_ref();
        let given = given.map(|list| list.iter().map(|size| size.0).collect());
        let mut contexts: Vec<u64> = given.unwrap_or_else(|| default.to_vec());
        middle_first(&mut contexts, 8 << 10);
        contexts.dedup();
        let fitting = contexts
            .iter()
            .map(|&c| u32::try_from(c).ok().filter(|c| (64..1 << 24).contains(c)));
        let contexts: Option<Vec<u32>> = fitting.collect();
        let candidates = self.candidates.clone();
        let all = || CANDIDATES.iter().map(|&name| name.to_owned()).collect();
        Ok(Some(Sweep {
            kind,
            budgets,
            contexts: contexts.ok_or("--contexts: from 64 to 16M tokens, such as 4K,16K")?,
            batches: ascending(self.batches.clone()),
            tokens: self.generate.unwrap_or(64),
            seconds: 2.0,
            candidates: candidates.unwrap_or_else(all),
        }))
    }

    fn settings(&self) -> Result<Settings, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let beside = program.parent().map(PathBuf::from).unwrap_or_default();
        let minutes = self.minutes.or(self.quick.then_some(5.0));
        let limit = match minutes {
            Some(minutes) => Some(
                Duration::try_from_secs_f64(minutes * 60.0)
                    .map_err(|e| format!("--minutes {minutes}: {e}"))?,
            ),
            None => None,
        };
        Ok(Settings {
            grid: self.grid()?,
            sweep: self.sweep()?,
            folder: self.out.clone(),
            tools: self.tools.clone().unwrap_or(beside),
            program,
            simulated: self.sim.as_ref().map(|spec| spec.0.clone()),
            threads: self.threads.unwrap_or_else(default_threads),
            gpu: self.gpu,
            limit,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// Where nothing could be measured, or results could not be written. A row that failed is in the results instead.
pub fn run(args: &BenchArgs) -> Result<(), String> {
    if let Some(file) = &args.probe_device {
        let simulated = args.sim.as_ref().map(|spec| spec.0.as_str());
        return link::probe(simulated, file.as_deref());
    }
    if args.render {
        return render(&args.out);
    }
    let settings = args.settings()?;
    let progress = Bar::new();
    let results = runner::run(&settings, &progress)?;
    progress.clear();
    let models: Vec<String> = settings
        .grid
        .models
        .iter()
        .map(|m| m.name.clone())
        .collect();
    let cells = cells(&results.measurements, &models, &results.machine);
    let mut verdicts = verdicts(&cells, |model| results.mixtures.iter().any(|m| m == model));
    if settings.sweep.is_some() {
        // the usual targets are another grid's
        verdicts.retain(|v| v.met != Met::NotMeasured);
    }
    let points = placements::points(&results.measurements);
    let text = table::render(&results.machine, &cells, &verdicts, &results.notes)
        + &placements::render(&points)
        + &predictions::render(&results.measurements);
    println!("{text}");
    let path = |name: &str| settings.folder.join(name);
    let said =
        |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", path(name).display());
    std::fs::write(path("tables.txt"), &text).map_err(|e| said("tables.txt", &e))?;
    write_csv(&path("results.csv"), &cells).map_err(|e| said("results.csv", &e))?;
    let summary = Summary {
        schema_version: 2,
        machine: &results.machine,
        cells: &cells,
        targets: &verdicts,
        placements: &points,
        not_measured: &results.notes,
    };
    if !points.is_empty() {
        placements::write_csv(&path("placements.csv"), &points)
            .map_err(|e| said("placements.csv", &e))?;
    }
    write_json(&path("summary.json"), &summary).map_err(|e| said("summary.json", &e))?;
    plot::write_all(&settings.folder, &cells)?;
    progress.line(&format!("results are in {}", settings.folder.display()));
    Ok(())
}

/// Draws the pictures of a folder with results.
fn render(folder: &Path) -> Result<(), String> {
    let path = folder.join("summary.json");
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(|e| said(&e))?;
    let summary: serde_json::Value = serde_json::from_str(&text).map_err(|e| said(&e))?;
    let machine: Machine =
        serde_json::from_value(summary["machine"].clone()).map_err(|e| said(&e))?;
    let results = folder.join("results.jsonl");
    let store = Store::open(&results).map_err(|e| e.to_string())?;
    let models: BTreeSet<String> = store.measurements.iter().map(|m| m.model.clone()).collect();
    let models: Vec<String> = models.into_iter().collect();
    plot::write_all(folder, &cells(&store.measurements, &models, &machine))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::clock::step_seconds;
    use crate::bench::estimate::Facts;
    use crate::bench::job::Step;
    use crate::bench::search::Strategy;
    use crate::bench::types::{Approach, Work};

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Tool::try_parse_from(line.split_whitespace()).map(|tool| tool.bench)
    }

    #[test]
    fn the_quick_grid_is_a_small_one_with_a_limit() {
        let quick = parse("bench --quick").unwrap().settings().unwrap();
        assert_eq!(quick.limit, Some(Duration::from_secs(300)));
        assert_eq!(quick.grid.prompts, [32, 512, 2048, 4096]);
        assert_eq!(quick.grid.models.len(), 2);
        assert!(!quick.grid.full_search);
        let full = parse("bench --vram 8G,2G,8G --prompt-tokens 512,8").unwrap();
        let full = full.settings().unwrap();
        assert_eq!(full.limit, None);
        assert_eq!(full.grid.budgets, [2 << 30, 8 << 30]);
        assert_eq!(full.grid.prompts, [8, 512]);
        assert!(full.grid.full_search && full.grid.same_placement);
    }

    #[test]
    fn the_quick_grid_has_time_for_what_it_is_for() {
        let grid = parse("bench --quick").unwrap().grid().unwrap();
        let facts = [(16u64 << 30, 1.0), (17 << 30, 8.0 / 128.0)];
        let facts = facts.map(|(bytes, active)| Facts { bytes, active });
        let decode = |model: usize, budget| {
            let tokens = grid.decode_seconds / facts[model].token(budget);
            (tokens as u32).clamp(8, grid.decode)
        };
        let steps = grid.steps(decode, |_| vec![Strategy::Layers]);
        let of = |wanted: &dyn Fn(&Step) -> bool| -> f64 {
            let steps = steps.iter().filter(|step| wanted(step));
            steps.map(|step| step_seconds(step, &facts, &grid)).sum()
        };
        let later = |step: &Step| match step {
            Step::Run(job) => {
                job.round > 1 || job.approach == Approach::FitLocked || job.budget == Some(8 << 30)
            }
            Step::Search { budget, .. } => *budget == 8 << 30,
            Step::Duel { .. } => true,
            _ => false,
        };
        let (first, rest) = (of(&|step| !later(step)), of(&later));
        // half a minute is for making the models; what is left is for the larger budget, page-locked --fit, and more rounds
        assert!(first < 240.0, "{first} s, and {rest} s");
        let early = || steps.iter().take_while(|step| !later(step));
        let cold = |step: &&Step| matches!(step, Step::Run(job) if job.tests.iter().any(|t| t.work == Work::FirstToken));
        assert_eq!(early().filter(cold).count(), 4);
        let same = |step: &&Step| matches!(step, Step::SamePlacement { .. });
        assert!(early().filter(same).count() > 0);
        let is_later: Vec<bool> = steps.iter().map(later).collect();
        assert!(
            is_later.is_sorted(),
            "every target has a pair before anything has two"
        );
    }

    #[test]
    fn a_further_grid_has_budgets_and_contexts_of_its_own() {
        let sweep = |line| parse(line).unwrap().settings().unwrap().sweep.unwrap();
        let contexts = sweep("bench --grid contexts");
        assert_eq!(contexts.contexts, [4096, 16384, 1024, 65536]);
        assert_eq!(contexts.budgets.len(), 4);
        let batches = parse("bench --grid batches").unwrap().settings().unwrap();
        assert_eq!(batches.grid.models.len(), 1);
        assert_eq!(batches.sweep.unwrap().budgets, [8 << 30]);
        let placements = sweep("bench --grid placements --contexts 2K --candidates a,b");
        assert_eq!(placements.contexts, [2048]);
        assert_eq!(placements.candidates, ["a", "b"]);
        assert!(parse("bench --contexts 4K").is_err());
        let tiny = parse("bench --grid contexts --contexts 10").unwrap();
        assert!(tiny.settings().is_err());
    }

    #[test]
    fn senseless_lines_are_refused() {
        assert!(parse("bench --vram much").is_err());
        assert!(parse("bench --sim pcie=1G").is_err());
        assert!(parse("bench --ubatch 0").unwrap().settings().is_err());
        assert!(parse("bench --model :f16").unwrap().settings().is_err());
        assert!(
            parse("bench --minutes -1").is_err()
                || parse("bench --minutes=-1").unwrap().settings().is_err()
        );
    }
}
