//! `pipeshard-lab matrix`: the same answers, whatever pipeshard is combined with?

use crate::matrix::cases::{self, Budget, Group};
use crate::matrix::document;
use crate::matrix::run::{line, run as run_groups, Outcome};
use crate::matrix::work::{Device, Workbench};
use clap::Args;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Which cases to run, and how.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pipeshard-lab matrix                            the quick part, on the simulated GPU\n  \
    pipeshard-lab matrix --full --filter '^llama/'  one model, all features and budgets\n  \
    pipeshard-lab matrix --device gpu               on a real GPU, compared with stock at the same placement\n  \
    pipeshard-lab matrix --full --list              the names of all cases: model/feature/budget/threads")]
pub struct MatrixArgs {
    /// Run cases whose name matches
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<Regex>,
    /// Run all cases, not only the quick part
    #[arg(long)]
    pub full: bool,
    /// Run the quick part (the default)
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// Run a tenth of all cases, with the quick part: the one that tests with this seed run
    #[arg(long, value_name = "SEED", conflicts_with_all = ["full", "quick", "device"])]
    pub tenth: Option<u64>,
    /// Where to run
    #[arg(long, value_enum, default_value = "sim")]
    pub device: Device,
    /// Only these budgets
    #[arg(long, value_enum, value_delimiter = ',')]
    pub budgets: Vec<Budget>,
    /// Print the names of the cases and run none
    #[arg(long)]
    pub list: bool,
    /// Write the result of each case to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Take over the cases that passed in an earlier run of the same build, which --json wrote
    #[arg(long, value_name = "FILE")]
    pub reuse: Option<PathBuf>,
    /// Write the page for users; needs all cases
    #[arg(long, value_name = "FILE", requires = "full", conflicts_with_all = ["filter", "budgets", "device"])]
    pub write_doc: Option<PathBuf>,
    /// Groups of cases to run at the same time; as many as there are cores by default, one on a real GPU
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Keep the models in this folder, and use those that are there
    #[arg(long, value_name = "FOLDER")]
    pub models: Option<PathBuf>,
    /// With --device gpu: simulate it, to try that without one
    #[arg(long, value_name = "SPEC", hide = true)]
    pub in_place_of_gpu: Option<String>,
    /// Longest random pause of the simulated GPU, in microseconds
    #[arg(long, default_value_t = 100)]
    pub delay: u32,
    /// Seconds after which a process counts as hung
    #[arg(long, default_value_t = 240)]
    pub patience: u64,
}

impl MatrixArgs {
    /// The cases that were asked for.
    fn groups(&self) -> Vec<Group> {
        let mut groups = match (self.tenth, self.device) {
            (Some(seed), _) => cases::quick_and_tenth(seed),
            (None, Device::Sim) => cases::groups(self.full),
            (None, Device::Gpu) => cases::groups_on_gpu(self.full),
        };
        let wanted = |group: &Group, budget: &Budget| {
            let named = |filter: &Regex| filter.is_match(&group.case(*budget));
            let listed = self.budgets.is_empty() || self.budgets.contains(budget);
            listed && self.filter.as_ref().is_none_or(named)
        };
        for group in &mut groups {
            let mut budgets = std::mem::take(&mut group.budgets);
            budgets.retain(|budget| wanted(group, budget));
            group.budgets = budgets;
        }
        groups.retain(|g| !g.budgets.is_empty());
        groups
    }
}

/// Runs the command.
///
/// # Errors
/// A text for the user: a case failed, or nothing could be run.
pub fn run(args: MatrixArgs) -> Result<(), String> {
    let groups = args.groups();
    if args.list {
        groups
            .iter()
            .flat_map(Group::cases)
            .for_each(|name| println!("{name}"));
        return Ok(());
    }
    if groups.is_empty() {
        return Err("no case has such a name; --list shows them".to_string());
    }
    let own = args.models.is_none();
    let temporary =
        || std::env::temp_dir().join(format!("pipeshard-matrix-{}", std::process::id()));
    let folder = args.models.clone().unwrap_or_else(temporary);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(match args.device {
        Device::Sim => cores,
        Device::Gpu => 1,
    });
    let bench = Workbench {
        program: std::env::current_exe().map_err(|e| e.to_string())?,
        folder: folder.clone(),
        device: args.device,
        delay: args.delay,
        patience: Duration::from_secs(args.patience),
        in_place_of_gpu: args.in_place_of_gpu.clone(),
    };
    let start = Instant::now();
    let earlier = args.reuse.as_deref().map(read).transpose()?;
    let (taken, left) = earlier.unwrap_or_default().take_over(&groups);
    let mut outcome = run_groups(&left, &bench, jobs, &|case| println!("{}", line(case)));
    if !taken.is_empty() {
        println!("{} cases taken over from an earlier run", taken.len());
        outcome.cases.extend(taken);
        outcome.in_order_of(&groups);
    }
    if own {
        // best effort: the folder is in the system's temporary files
        let _ = std::fs::remove_dir_all(&folder);
    }
    publish(&args, &groups, &outcome)?;
    let told = outcome.told();
    println!("{told} ({:.0} s)", start.elapsed().as_secs_f64());
    match outcome.failed().count() {
        0 => Ok(()),
        count => Err(format!("{count} cases failed")),
    }
}

fn read(path: &Path) -> Result<Outcome, String> {
    let told = |why: String| format!("{}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| told(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| told(e.to_string()))
}

/// The commit of the sources that the tool lies in, with `-dirty` where they were changed since.
fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude=*"]);
    let told = git.output().ok().filter(|output| output.status.success());
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.unwrap_or_else(|| "unknown (git does not tell)".to_owned())
}

fn publish(args: &MatrixArgs, groups: &[Group], outcome: &Outcome) -> Result<(), String> {
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(outcome).map_err(|e| e.to_string())?;
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if let Some(path) = &args.write_doc {
        std::fs::write(path, document::page(groups, outcome, &commit()))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}
