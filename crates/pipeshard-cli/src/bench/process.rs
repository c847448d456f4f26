//! One `llama-bench` process: its command, what it says, and how much device memory is in use while it runs.

use super::memory::{Sampler, Source};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

/// How pipeshard begins to say why it does nothing.
const OFF: &str = "pipeshard: off, because ";

/// `llama-bench`, and what all its processes are given.
pub struct Tool {
    path: PathBuf,
    simulated: Option<String>,
    counters: tempfile::NamedTempFile,
    common: Vec<String>,
}

/// What a process measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Tokens of the prompt per second.
    pub prompt_per_second: f64,
    /// Tokens generated per second.
    pub generated_per_second: f64,
    /// Seconds to the first token.
    pub ttft_seconds: f64,
    /// The most device memory that it took, in bytes.
    pub peak_bytes: Option<u64>,
}

/// Who tells how much memory a process takes.
pub enum Memory {
    /// The driver, of the whole device.
    Device(Source),
    /// The simulated device counts for itself.
    Simulated,
}

/// What is used of a line of `llama-bench -o jsonl`.
#[derive(Debug, Deserialize)]
struct Line {
    n_prompt: u32,
    n_gen: u32,
    avg_ns: f64,
}

impl Memory {
    /// The best that there is.
    pub fn find(tool: &Tool) -> Self {
        match tool.simulated {
            Some(_) => Memory::Simulated,
            None => Memory::Device(Source::find(0)),
        }
    }

    /// Runs `work`, and says how many more bytes were in use during it, at the most.
    fn most_during<T>(&self, work: impl FnOnce() -> T) -> (T, Option<u64>) {
        let Memory::Device(source) = self else {
            return (work(), None);
        };
        let before = source.settled();
        let sampler = Sampler::start(source);
        let from = Instant::now();
        let result = work();
        let peak = sampler.peak(from, Instant::now());
        let more = peak
            .zip(before)
            .and_then(|(peak, before)| peak.checked_sub(before));
        (result, more.filter(|&more| more > 0))
    }
}

impl Tool {
    /// Returns the `llama-bench` in this program's folder. `common`: flags of all its processes.
    ///
    /// # Errors
    /// There is none.
    pub fn find(common: Vec<String>, simulated: Option<String>) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let path = own.with_file_name(format!("llama-bench{}", std::env::consts::EXE_SUFFIX));
        if !path.exists() {
            return Err(format!(
                "{} is missing: pipeshard runs the llama-bench in its own folder; build both with `make build`",
                path.display()
            ));
        }
        let counters = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
        Ok(Tool {
            path,
            simulated,
            counters,
            common,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for (name, _) in std::env::vars_os() {
            // what the user has set for other runs would count for one side only
            if name.to_string_lossy().starts_with("LLAMA_ARG_") {
                command.env_remove(name);
            }
        }
        // what is measured is the plan of this build and profile, and no earlier one
        command.env(pipeshard::plan_cache::PLAN_CACHE, "off");
        if let Some(spec) = &self.simulated {
            command.args(["--pipeshard-sim", spec]);
            command.env("PIPESHARD_SIM_COUNTERS", self.counters.path());
        }
        command
    }

    /// Bytes that are free on the first device.
    ///
    /// # Errors
    /// `llama-bench` does not run, or knows no device: then `no_gpu` says why.
    pub fn free_memory(&self, no_gpu: impl FnOnce() -> String) -> Result<u64, String> {
        let output = self
            .command()
            .arg("--list-devices")
            .output()
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        free_in(&text).ok_or_else(no_gpu)
    }

    /// Runs it with these flags more.
    ///
    /// # Errors
    /// What it said last, where it failed.
    pub fn run(&self, flags: &[String], memory: &Memory) -> Result<Measured, String> {
        let mut command = self.command();
        command.args(&self.common).args(flags);
        let (output, peak) = memory.most_during(|| command.output());
        let output = output.map_err(|e| format!("{}: {e}", self.path.display()))?;
        let mut measured = parsed(&output)?;
        measured.peak_bytes = match memory {
            Memory::Simulated => self.counted(),
            _ => peak,
        };
        Ok(measured)
    }

    fn counted(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.counters.path()).ok()?;
        let counters: serde_json::Value = serde_json::from_str(&text).ok()?;
        counters["peak_bytes"].as_u64()
    }
}

/// The first device's free memory in what `--list-devices` prints: `NAME: TEXT (A MiB, B MiB free)`.
fn free_in(text: &str) -> Option<u64> {
    let found = regex::Regex::new(r"\(\d+ MiB, (\d+) MiB free\)")
        .ok()?
        .captures(text)?;
    found[1].parse::<u64>().ok()?.checked_mul(1 << 20)
}

/// Why a process failed, by what it said: pipeshard's own reason, which goes over several lines, or the last line.
fn reason(errors: &str) -> String {
    let lines = || errors.lines().filter(|line| !line.trim().is_empty());
    let words: Vec<&str> = match lines().position(|line| line.starts_with(OFF)) {
        Some(first) => {
            let rest = lines().skip(first + 1);
            let rest = rest.take_while(|line| line.starts_with(' '));
            let first = lines().nth(first).and_then(|line| line.strip_prefix(OFF));
            first.into_iter().chain(rest).collect()
        }
        None => lines().next_back().into_iter().collect(),
    };
    match words.is_empty() {
        true => "it said nothing".to_owned(),
        false => words.iter().map(|w| w.trim()).collect::<Vec<_>>().join(" "),
    }
}

fn parsed(output: &Output) -> Result<Measured, String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Line> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let prompt = lines.iter().find(|line| line.n_gen == 0);
    let generate = lines.iter().find(|line| line.n_prompt == 0);
    let (Some(prompt), Some(generate)) = (prompt, generate) else {
        return Err(reason(&String::from_utf8_lossy(&output.stderr)));
    };
    let per_second = |tokens: u32, line: &Line| f64::from(tokens) * 1e9 / line.avg_ns;
    let prompt_per_second = per_second(prompt.n_prompt, prompt);
    let generated_per_second = per_second(generate.n_gen, generate);
    Ok(Measured {
        prompt_per_second,
        generated_per_second,
        ttft_seconds: prompt.avg_ns / 1e9,
        peak_bytes: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn output(stdout: &str, stderr: &str) -> Output {
        Output {
            status: std::process::ExitStatus::from_raw(0),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn both_tests_are_found_among_other_lines() {
        let lines = "llama\n{\"n_prompt\": 2000, \"n_gen\": 0, \"avg_ns\": 500000000}\n\
                     {\"n_prompt\": 0, \"n_gen\": 64, \"avg_ns\": 2000000000}\n";
        let measured = parsed(&output(lines, "")).expect("both are there");
        assert_eq!(measured.prompt_per_second, 4000.0);
        assert_eq!(measured.generated_per_second, 32.0);
        assert_eq!(measured.ttft_seconds, 0.5);
    }

    #[test]
    fn a_failure_is_the_last_thing_that_was_said() {
        let why = parsed(&output("", "loading\nno memory\n\n")).expect_err("nothing ran");
        assert_eq!(why, "no memory");
        let errors =
            "failed\npipeshard: off, because 4 MiB are\n  too few: take 9M\nbench failed\n";
        assert_eq!(reason(errors), "4 MiB are too few: take 9M");
    }

    #[test]
    fn free_memory_is_the_first_devices() {
        let text = "Available devices:\n  SIM0: simulated (1024 MiB, 1000 MiB free)\n  SIM1: x (1 MiB, 1 MiB free)\n";
        assert_eq!(free_in(text), Some(1000 << 20));
        assert_eq!(free_in("Available devices:\n"), None);
    }
}
