//! What has to be there before anything is measured: models, and a device that was opened and whose link is known.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use super::estimate::Facts;
use super::link::{LinkSpeed, Opened};
use super::models::ModelSpec;
use super::settings::{Progress, Settings};
use super::types::Machine;
use super::MIB;
use crate::process::{self, Finished};
use pipeshard_cli::bench::memory::{Sampler, Source};
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::profile::Profile;

/// What a model means for times.
pub fn facts_of(inventory: &Inventory) -> Facts {
    let experts = f64::from(inventory.expert_count.max(1));
    let used = f64::from(inventory.expert_used_count.max(1));
    Facts {
        bytes: inventory.file_bytes,
        active: (used / experts).min(1.0),
    }
}

/// Writes a command into the log.
pub fn log_command(log: &mut File, command: &Command) {
    // the log is a help, not a result: a full disk shows elsewhere
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let _ = writeln!(
        log,
        "\n$ {} {}",
        command.get_program().display(),
        args.join(" ")
    );
}

/// Writes what a process said into the log.
pub fn log_said(log: &mut File, finished: &Finished) {
    for said in &finished.lines {
        let _ = writeln!(
            log,
            "{:8.3} {}",
            (said.at - finished.start).as_secs_f64(),
            said.text
        );
    }
    let ended = finished
        .status
        .map_or_else(|| "ended at its time limit".to_owned(), |s| s.to_string());
    let _ = writeln!(
        log,
        "{:8.3} {ended}",
        finished.start.elapsed().as_secs_f64()
    );
}

/// Makes a model where its file is missing.
///
/// # Errors
/// Where it is a file that was named, or cannot be made.
pub fn make_model(
    settings: &Settings,
    model: &ModelSpec,
    progress: &dyn Progress,
    log: &mut File,
) -> Result<(), String> {
    if model.path.exists() {
        return Ok(());
    }
    let Some((shape, kind)) = &model.recipe else {
        return Err(format!("{} does not exist", model.path.display()));
    };
    progress.say(&format!(
        "making {} in {}",
        model.name,
        model.path.display()
    ));
    if let Some(folder) = model.path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut command = Command::new(&settings.program);
    command.args(["synth", "--shape", shape, "--type", kind]);
    command.arg(&model.path);
    log_command(log, &command);
    let finished = process::run(&mut command, Duration::from_secs(600))?;
    log_said(log, &finished);
    match finished.status.is_some_and(|s| s.success()) {
        true => Ok(()),
        false => Err(format!(
            "{} could not be made: {}",
            model.name,
            finished.complaint()
        )),
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':'));
    name.map_or_else(
        || "unknown processor".to_owned(),
        |(_, n)| n.trim().to_owned(),
    )
}

/// Device memory of other programs may change by so many bytes while the bare context is measured.
const TOLERATED: u64 = 16 * MIB;
/// Attempts to measure it while they keep still, and the pause between two.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(3);

/// What a look at the device found, and by how many bytes the memory of other programs changed meanwhile.
struct Look {
    machine: Machine,
    others: u64,
}

/// Opens the device in a process that does nothing else, and measures the link there. Where other programs take or give back
/// device memory meanwhile it is tried again; what remains of that is told with the source of the figures.
///
/// # Errors
/// Where that process does not get so far.
pub fn open_device(
    settings: &Settings,
    source: &Source,
    progress: &dyn Progress,
    log: &mut File,
) -> Result<Machine, String> {
    calmest(
        |attempt| {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            look_at_device(settings, source, log)
        },
        progress,
    )
}

/// The first of some looks during which other programs kept still, or that with the least change.
fn calmest(
    mut look: impl FnMut(u32) -> Result<Look, String>,
    progress: &dyn Progress,
) -> Result<Machine, String> {
    let mut best = look(0)?;
    let mut attempts = 1;
    while best.others > TOLERATED && attempts < ATTEMPTS {
        progress.say(&format!(
            "device memory of other programs changed by {} MiB meanwhile: again",
            best.others / MIB
        ));
        let next = look(attempts)?;
        attempts += 1;
        if next.others < best.others {
            best = next;
        }
    }
    if best.others > TOLERATED {
        best.machine.memory_source += &format!(
            "; that of other programs changed by {} MiB while it was measured, and so may all figures of it be off",
            best.others / MIB
        );
    }
    Ok(best.machine)
}

fn look_at_device(settings: &Settings, source: &Source, log: &mut File) -> Result<Look, String> {
    let idle = source.settled();
    let mut command = Command::new(&settings.program);
    command.args(["grids", "--probe-device"]);
    command.args(settings.grid.models.first().map(|model| &model.path));
    if let Some(spec) = &settings.simulated {
        command.args(["--sim", spec]);
    }
    log_command(log, &command);
    let sampler = Sampler::start(source);
    let finished = process::run(&mut command, Duration::from_secs(120))?;
    log_said(log, &finished);
    let said: Vec<_> = finished.lines.iter().filter(|s| !s.error).collect();
    let lines = (said.first(), said.get(1));
    let (Some(opened_line), Some(speed_line)) = lines else {
        return Err(format!(
            "the device could not be opened: {}",
            finished.complaint()
        ));
    };
    let opened: Opened = serde_json::from_str(&opened_line.text).map_err(|e| e.to_string())?;
    let speed: LinkSpeed = serde_json::from_str(&speed_line.text).map_err(|e| e.to_string())?;
    // it sleeps for a quarter of a second when it is open, and has nothing else
    let from = opened_line.at + Duration::from_millis(60);
    let open = sampler.peak(from, from + Duration::from_millis(120));
    let context = match (open, idle) {
        (Some(open), Some(idle)) => open.saturating_sub(idle),
        _ => 0,
    };
    let memory_source = match (source, &settings.simulated) {
        (_, Some(_)) => "the simulated GPU's own counter",
        (source, None) => source.name(),
    };
    let others = match (idle, source.settled()) {
        (Some(before), Some(after)) => before.abs_diff(after),
        _ => 0,
    };
    let machine = Machine {
        device: opened.device,
        cpu: processor(),
        threads: settings.threads,
        free: opened.free,
        context,
        memory_source: memory_source.to_owned(),
        link_pinned: speed.pinned,
        link_registered: speed.registered,
        link_pageable: speed.pageable,
        link_back: speed.back,
        register_rate: speed.register,
        cpu_read: 0.0,
        cpu_read_copying: 0.0,
        link_cpu_reading: 0.0,
        simulated: settings.simulated.is_some(),
    };
    Ok(Look { machine, others })
}

/// Adds what the CPU reads, alone and while the link copies, from the profile of this machine. It is measured now if it is not
/// known, which the first run with pipeshard would do otherwise.
pub fn note_read_rates(
    settings: &Settings,
    machine: &mut Machine,
    progress: &dyn Progress,
    log: &mut File,
) {
    match profile(settings, log) {
        Ok(profile) => {
            machine.cpu_read = profile.memory.cpu.median;
            machine.cpu_read_copying = profile.memory.cpu_copy_busy.median;
            machine.link_cpu_reading = profile.link.pinned_cpu_busy.median;
        }
        Err(why) => progress.say(&format!(
            "no bound for generation, for there is no profile: {why}"
        )),
    }
}

fn profile(settings: &Settings, log: &mut File) -> Result<Profile, String> {
    let mut command = Command::new(settings.tools.join("pipeshard"));
    command.arg("profile");
    command.args(settings.grid.models.first().map(|model| &model.path));
    command.args(["--json", "--threads", &settings.threads.to_string()]);
    if let Some(spec) = &settings.simulated {
        command.args(["--sim", spec]);
    }
    log_command(log, &command);
    let finished = process::run(&mut command, Duration::from_secs(120))?;
    log_said(log, &finished);
    if !finished.status.is_some_and(|s| s.success()) {
        return Err(finished.complaint());
    }
    let said: Vec<&str> = finished
        .lines
        .iter()
        .filter(|s| !s.error)
        .map(|s| s.text.as_str())
        .collect();
    serde_json::from_str(&said.join("\n")).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told(std::cell::RefCell<Vec<String>>);

    impl Progress for Told {
        fn plan(&self, _: usize, _: f64) {}
        fn step(&self, _: usize, _: &str) {}
        fn say(&self, what: &str) {
            self.0.borrow_mut().push(what.to_owned());
        }
    }

    /// Looks during which other programs' memory changed by so many MiB: which one was taken, and what was said.
    fn looks(changes: &[u64]) -> (Machine, usize) {
        let told = Told(Default::default());
        let look = |attempt: u32| {
            let machine = Machine {
                context: u64::from(attempt),
                memory_source: "NVML".to_owned(),
                ..Machine::default()
            };
            let others = changes[attempt as usize] * MIB;
            Ok(Look { machine, others })
        };
        let machine = calmest(look, &told).unwrap();
        let lines = told.0.borrow().len();
        (machine, lines)
    }

    #[test]
    fn the_bare_context_is_measured_while_other_programs_keep_still() {
        let (machine, lines) = looks(&[3]);
        assert_eq!((machine.context, lines), (0, 0));
        let (machine, lines) = looks(&[631, 200, 0]);
        assert_eq!((machine.context, lines), (2, 2));
        assert_eq!(machine.memory_source, "NVML");
        let (machine, _) = looks(&[631, 40, 300, 90, 500]);
        assert_eq!(machine.context, 1, "the least of five");
        assert!(machine.memory_source.contains("changed by 40 MiB"));
    }
}
