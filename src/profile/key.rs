//! What a profile belongs to, and what else is asked of the machine: read from where the system tells it.

use crate::lanes::device::Device;
use crate::lanes::driver_memory::driver_version;
use pipeshard_plan::profile::ProfileKey;

/// The key of this machine with one of its devices and so many threads of the CPU.
pub fn key_of(device: Device, threads: u32) -> ProfileKey {
    ProfileKey {
        device: device.description(),
        driver: driver(&device.name()),
        ..key_of_host(threads)
    }
}

/// The same without a device.
pub fn key_of_host(threads: u32) -> ProfileKey {
    ProfileKey {
        cpu: cpu_name(&read("/proc/cpuinfo")),
        threads,
        build: build(),
        ..ProfileKey::default()
    }
}

/// The build of llama.cpp and pipeshard that runs.
fn build() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), pipeshard_sys::BUILD_ID)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The processor's name from the text of /proc/cpuinfo.
fn cpu_name(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = value("model name").or_else(|| value("CPU implementer"));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The version of the driver of a device of that name; empty where nobody tells.
fn driver(device: &str) -> String {
    if !device.starts_with("CUDA") {
        return String::new();
    }
    let version = nvidia_version(&read("/proc/driver/nvidia/version"));
    version.or_else(driver_version).unwrap_or_default()
}

/// The version in the text of /proc/driver/nvidia/version: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  …`.
fn nvidia_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// Threads that llama.cpp computes with unless it is told: one for each core, not for each of a core's threads.
pub fn default_threads() -> u32 {
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings");
        std::fs::read_to_string(path).ok()
    };
    let cores: std::collections::HashSet<String> = (0..4096).map_while(siblings).collect();
    match cores.len() {
        0 => std::thread::available_parallelism().map_or(4, |n| n.get() as u32),
        n => n as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9654\nprocessor\t: 1\n";
        assert_eq!(cpu_name(text), "AMD EPYC 9654");
        assert_eq!(cpu_name(""), std::env::consts::ARCH);
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\nGCC version: gcc 12.3";
        assert_eq!(nvidia_version(text).as_deref(), Some("570.133.20"));
        assert_eq!(nvidia_version("nothing 1.2"), None);
    }

    #[test]
    fn this_machine_says_something() {
        assert!(!cpu_name(&read("/proc/cpuinfo")).is_empty());
    }
}
