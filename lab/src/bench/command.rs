//! The command line of `llama-bench` for a job, and what its lines of output say.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::job::{Form, Job};
use super::repeats::Repeats;
use super::types::{Approach, Test, Work};
use super::MIB;

/// What all commands share.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder with `llama-bench` and its libraries.
    pub folder: PathBuf,
    /// Threads of the CPU.
    pub threads: u32,
    /// A simulated GPU in place of the real one.
    pub simulated: Option<String>,
    /// Device memory in bytes that a process sees as free after it opened the device.
    pub free: u64,
    /// Repetitions of each test.
    pub repetitions: u32,
}

/// Files that a process leaves in addition to its results.
#[derive(Debug, Clone)]
pub struct Side {
    /// pipeshard's report.
    pub report: PathBuf,
    /// What a simulated GPU counted.
    pub counters: PathBuf,
}

impl Side {
    /// In the folder of the results.
    pub fn in_folder(folder: &Path) -> Self {
        Side {
            report: folder.join(".report.json"),
            counters: folder.join(".counters.json"),
        }
    }

    /// Removes what the process before left, if it left anything.
    pub fn clear(&self) {
        for path in [&self.report, &self.counters] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// The most memory that a simulated device counted.
    pub fn counted_peak(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.counters).ok()?;
        let counters: serde_json::Value = serde_json::from_str(&text).ok()?;
        counters["peak_bytes"].as_u64()
    }
}

/// The variable that makes the planner take a placement by its name.
pub const CANDIDATE: &str = "PIPESHARD_DEBUG_CANDIDATE";
/// The variable that names the library to load.
const LIBRARY: &str = "PIPESHARD_LIBRARY";

impl Tools {
    /// A tool in an environment that says nothing about placements.
    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("LLAMA_ARG_") || text == CANDIDATE {
                command.env_remove(name);
            }
        }
        // what is measured is the plan of this build and profile, and no earlier one
        command.env(pipeshard::plan_cache::PLAN_CACHE, "off");
        command
    }

    /// The library that has the switches for tests, as `make test-library` leaves it, unless the user names one.
    fn library_with_switches(&self) -> Option<PathBuf> {
        if std::env::var_os(LIBRARY).is_some() {
            return None;
        }
        let beside = [self.folder.as_path()]
            .into_iter()
            .chain(self.folder.parent());
        let found = beside.map(|folder| folder.join("test-hooks/libpipeshard.so"));
        found.into_iter().find(|library| library.exists())
    }

    /// Makes a simulated device leave its counters.
    pub fn count_into(&self, command: &mut Command, side: &Side) {
        if self.simulated.is_some() {
            command.env("PIPESHARD_SIM_COUNTERS", &side.counters);
        }
    }

    /// Returns the command that times a generation deep in a context with several settings; `args` has a list of each.
    pub fn deep_command(&self, path: &Path, test: Test, ubatch: u32, args: &[String]) -> Command {
        let mut command = self.tool("llama-bench");
        command.arg("-m").arg(path);
        let number = |flag: &str, value: u32| [flag.to_owned(), value.to_string()];
        command.args(["-o", "jsonl", "--progress"]);
        command.args(number("-t", self.threads));
        command.args(number("-r", self.repetitions));
        command.args(number("-ub", ubatch));
        command.args(["-p", "0"]);
        command.args(number("-n", test.tokens));
        command.args(number("-d", test.depth));
        command.args(args);
        if let Some(spec) = &self.simulated {
            command.args(["--pipeshard-sim", spec]);
        }
        command
    }

    /// The arguments of `llama-batched-bench`. The prompt is shared: every sequence starts from a copy of it, which fills their
    /// contexts without computing them.
    fn batched_arguments(&self, job: &Job, repeats: Repeats) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let Some(test) = job.tests.first() else {
            return args;
        };
        let mut push = |list: &[&str]| args.extend(list.iter().map(|&a| a.to_owned()));
        // the first is a warm-up
        let runs = vec![test.sequences.to_string(); repeats.runs() as usize];
        push(&["--output-format", "jsonl", "-t", &self.threads.to_string()]);
        push(&["-c", &test.context().to_string(), "-b", "2048"]);
        if let Some(ubatch) = job.ubatch {
            push(&["-ub", &ubatch.to_string()]);
        }
        push(&["-pps", "-npp", &test.depth.to_string()]);
        push(&["-ntg", &test.tokens.to_string(), "-npl", &runs.join(",")]);
        if job.approach.is_ours() {
            let budget = job.budget.unwrap_or(self.free - self.free / 16);
            push(&["--pipeshard", "--pipeshard-vram", &budget.to_string()]);
        } else {
            push(&["--fit", "off"]);
        }
        args.extend(job.flags.iter().cloned());
        if let Some(spec) = &self.simulated {
            args.extend(["--pipeshard-sim".to_owned(), spec.clone()]);
        }
        args
    }

    /// The command for `job` on the model at `path`. `slack` are bytes by which `--fit` is held below the budget, because it
    /// is known to overrun its target by as many.
    pub fn command(
        &self,
        job: &Job,
        path: &Path,
        repeats: Repeats,
        slack: u64,
        side: &Side,
    ) -> Command {
        let batched = job.form == Form::Batched;
        let mut command = self.tool(match batched {
            true => "llama-batched-bench",
            false => "llama-bench",
        });
        command.arg("-m").arg(path);
        command.args(match batched {
            true => self.batched_arguments(job, repeats),
            false => self.arguments(job, repeats, slack),
        });
        if job.approach.is_ours() {
            command.arg("--pipeshard-report").arg(&side.report);
        }
        if job.approach == Approach::Pipeshard && !job.setting.is_empty() {
            command.env(CANDIDATE, &job.setting);
            command.envs(
                self.library_with_switches()
                    .map(|library| (LIBRARY, library)),
            );
        }
        self.count_into(&mut command, side);
        command
    }

    /// Returns the arguments after the model's name, without those that name files.
    fn arguments(&self, job: &Job, repeats: Repeats, slack: u64) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut push = |list: &[&str]| args.extend(list.iter().map(|&a| a.to_owned()));
        push(&["-o", "jsonl", "--progress", "-t", &self.threads.to_string()]);
        push(&["-r", &repeats.times.to_string()]);
        if !repeats.warm_up {
            push(&["--no-warmup"]);
        }
        let longest = job.tests.iter().map(|t| match t.work {
            Work::Decode => t.depth,
            _ => t.tokens,
        });
        let batch = longest.max().unwrap_or(0).max(job.ubatch.unwrap_or(0));
        push(&["-b", &batch.max(2048).to_string()]);
        if let Some(ubatch) = job.ubatch {
            push(&["-ub", &ubatch.to_string()]);
        }
        if let (Form::Answer, [prompt, decode]) = (job.form, &job.tests[..]) {
            let both = format!("{},{}", prompt.tokens, decode.tokens);
            push(&["-p", "0", "-n", "0", "-pg", &both]);
            let budget = job.budget.unwrap_or(self.free - self.free / 16);
            push(&["--pipeshard", "--pipeshard-vram", &budget.to_string()]);
            if let Some(spec) = &self.simulated {
                push(&["--pipeshard-sim", spec]);
            }
            return args;
        }
        let prompts = job.tests.iter().filter(|t| t.work != Work::Decode);
        let prompts: Vec<String> = prompts.map(|t| t.tokens.to_string()).collect();
        let decodes: Vec<&Test> = job
            .tests
            .iter()
            .filter(|t| t.work == Work::Decode)
            .collect();
        let or_none = |list: Vec<String>| match list.is_empty() {
            true => "0".to_owned(),
            false => list.join(","),
        };
        let tokens = decodes.first().map(|t| t.tokens.to_string());
        push(&[
            "-p",
            &or_none(prompts),
            "-n",
            &or_none(tokens.into_iter().collect()),
        ]);
        let depth = decodes.iter().map(|t| t.depth).max().unwrap_or(0);
        if depth > 0 {
            push(&["-d", &depth.to_string()]);
        }
        // without a budget: all of the card but a margin that pipeshard keeps itself, too
        let budget = job.budget.unwrap_or(self.free - self.free / 16);
        match job.approach {
            Approach::Pipeshard | Approach::PipeshardAll => {
                push(&["--pipeshard", "--pipeshard-vram", &budget.to_string()]);
            }
            Approach::FitMapped | Approach::FitLocked => {
                let context = job.tests.iter().map(|t| t.context()).max().unwrap_or(0);
                let held = budget.saturating_sub(slack);
                // what is to stay free, in whole mebibytes: rounded up
                let margin = self.free.saturating_sub(held).div_ceil(MIB).max(1);
                push(&["-fitt", &margin.to_string(), "-fitc", &context.to_string()]);
            }
            Approach::AllInVram => push(&["-ngl", "999"]),
            Approach::Search
            | Approach::SamePlacement
            | Approach::Layers
            | Approach::Part
            | Approach::HostKv => {}
        }
        if !job.approach.is_ours()
            && !matches!(job.approach, Approach::FitMapped | Approach::AllInVram)
        {
            push(&["-lm", "none"]);
        }
        args.extend(job.flags.iter().cloned());
        if let Some(spec) = &self.simulated {
            args.extend(["--pipeshard-sim".to_owned(), spec.clone()]);
        }
        args
    }
}

/// A line of `llama-bench -o jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub struct BenchLine {
    n_prompt: u32,
    n_gen: u32,
    #[serde(default)]
    n_depth: u32,
    #[serde(default)]
    samples_ns: Vec<u64>,
    /// The processor, as ggml names it.
    #[serde(default)]
    pub cpu_info: String,
}

impl BenchLine {
    /// Reads a line; none where it is something else.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }

    /// Reports whether it is the result of `test`.
    pub fn is_of(&self, test: Test) -> bool {
        let tokens = match test.work {
            Work::Decode => (0, test.tokens),
            Work::Prompt | Work::FirstToken => (test.tokens, 0),
        };
        (self.n_prompt, self.n_gen) == tokens && self.n_depth == test.depth
    }

    /// Reports whether it is the result of a prompt and a generation together.
    pub fn is_answer(&self, prompt: u32, tokens: u32) -> bool {
        (self.n_prompt, self.n_gen, self.n_depth) == (prompt, tokens, 0)
    }

    /// Seconds of each repetition.
    pub fn seconds(&self) -> Vec<f64> {
        self.samples_ns.iter().map(|&ns| ns as f64 / 1e9).collect()
    }
}

/// A line of `llama-batched-bench --output-format jsonl`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct BatchedLine {
    pp: u32,
    tg: u32,
    pl: u32,
    t_tg: f64,
}

impl BatchedLine {
    /// Seconds of the generation, where the line is the result of `test`.
    pub fn seconds_of(line: &str, test: Test) -> Option<f64> {
        let line: BatchedLine = serde_json::from_str(line.trim()).ok()?;
        let same = (line.pp, line.tg, line.pl) == (test.depth, test.tokens, test.sequences);
        (same && line.t_tg > 0.0).then_some(line.t_tg)
    }
}

/// Reports whether a line of `llama-bench --progress` says that the next test starts.
pub fn starts_a_test(line: &str) -> bool {
    line.starts_with("llama-bench: benchmark ") && line.trim_end().ends_with(": starting")
}

#[cfg(test)]
mod tests {
    use super::super::estimate::Facts;
    use super::*;

    fn tools() -> Tools {
        Tools {
            folder: PathBuf::from("/bin"),
            threads: 16,
            simulated: None,
            free: 80 << 30,
            repetitions: 3,
        }
    }

    fn line(job: &Job, slack: u64) -> String {
        let facts = Facts {
            bytes: 16 << 30,
            active: 1.0,
        };
        let repeats = Repeats::of(job, facts, tools().repetitions);
        tools().arguments(job, repeats, slack).join(" ")
    }

    #[test]
    fn fit_leaves_free_what_the_budget_does_not_cover() {
        let tests = vec![Test::prompt(512), Test::prompt(4096), Test::decode(16, 0)];
        let job = Job::new(0, Some(4 << 30), Approach::FitMapped, tests).ubatch(2048);
        assert_eq!(
            line(&job, 0),
            "-o jsonl --progress -t 16 -r 1 -b 4096 -ub 2048 -p 512,4096 -n 16 -fitt 77824 -fitc 4096"
        );
        let locked = Job {
            approach: Approach::FitLocked,
            ..job
        };
        assert!(line(&locked, 100 * MIB).ends_with("-fitt 77924 -fitc 4096 -lm none"));
    }

    #[test]
    fn pipeshard_gets_the_budget_in_bytes_and_chooses_its_ubatch() {
        let job = Job::new(0, Some(5000), Approach::Pipeshard, vec![Test::prompt(8)]);
        assert_eq!(
            line(&job, 0),
            "-o jsonl --progress -t 16 -r 4 -b 2048 -p 8 -n 0 --pipeshard --pipeshard-vram 5000"
        );
    }

    #[test]
    fn a_cold_start_is_not_warmed_up() {
        let tests = vec![Test::first_token(32)];
        let job = Job::new(0, Some(1 << 30), Approach::FitMapped, tests);
        assert!(line(&job, 0).contains("-r 1 --no-warmup -b 2048 -p 32 -n 0"));
    }

    #[test]
    fn a_placement_is_passed_on() {
        let job = Job {
            flags: vec!["-ngl".to_owned(), "7".to_owned()],
            ..Job::new(0, Some(1), Approach::Search, vec![Test::decode(4, 512)])
        };
        assert!(line(&job, 0).ends_with("-p 0 -n 4 -d 512 -lm none -ngl 7"));
        let all = Job::new(0, None, Approach::AllInVram, vec![Test::prompt(8)]);
        assert!(line(&all, 0).ends_with("-p 8 -n 0 -ngl 999"));
    }

    #[test]
    fn lines_are_matched_with_tests() {
        let line = r#"{"n_prompt": 512, "n_gen": 0, "n_depth": 0, "cpu_info": "x", "samples_ns": [ 500000000, 250000000 ],"samples_ts": [ 1, 2 ]}"#;
        let line = BenchLine::parse(line).unwrap();
        assert!(line.is_of(Test::prompt(512)));
        assert!(line.is_of(Test::first_token(512)));
        assert!(!line.is_of(Test::decode(512, 0)));
        assert_eq!(line.seconds(), [0.5, 0.25]);
        assert!(BenchLine::parse("ggml_cuda_init: found 1 device").is_none());
        assert!(starts_a_test("llama-bench: benchmark 2/8: starting\n"));
        assert!(!starts_a_test(
            "llama-bench: benchmark 2/8: warmup prompt run"
        ));
    }
}
