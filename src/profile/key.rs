//! What a profile belongs to, and what else is asked of the machine: read from where the system tells it.

use crate::lanes::device::Device;
use crate::lanes::driver_memory::driver_version;
use pipeshard_plan::profile::ProfileKey;
use std::collections::HashSet;
use std::path::Path;

/// Where Linux tells about PCI devices.
const PCI: &str = "/sys/bus/pci/devices";
/// Where it tells about CPUs.
const SYSTEM: &str = "/sys/devices";

/// The key of this machine with one of its devices and so many threads of the CPU.
pub fn key_of(device: Device, threads: u32) -> ProfileKey {
    ProfileKey {
        device: device.description(),
        slot: device
            .bus_id()
            .map_or_else(String::new, |id| slot(Path::new(PCI), &id)),
        driver: driver(&device.name()),
        ..key_of_host(threads)
    }
}

/// The same without a device.
pub fn key_of_host(threads: u32) -> ProfileKey {
    ProfileKey {
        cpu: cpu_name(&read("/proc/cpuinfo")),
        threads,
        build: build_name(),
        ..ProfileKey::default()
    }
}

/// The build of llama.cpp and pipeshard that runs.
pub fn build_name() -> String {
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

/// Returns the driver's version for a device of that name; empty if unknown.
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

/// The place of a device on the PCI bus, with the lanes of its slot if `devices` has them: `0000:01:00.0 x16`. Its current speed is
/// left out, which changes while a card rests.
fn slot(devices: &Path, bus_id: &str) -> String {
    let id = bus_id.to_ascii_lowercase();
    let is_id = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
    if !id.chars().all(is_id) {
        return id;
    }
    let width = std::fs::read_to_string(devices.join(&id).join("current_link_width"));
    let width = width.ok().and_then(|text| text.trim().parse::<u32>().ok());
    match width {
        Some(lanes @ 1..) => format!("{id} x{lanes}"),
        _ => id,
    }
}

/// Threads that llama.cpp computes with unless it is told: one for each core, not for each of a core's threads; where there are
/// performance and efficiency cores, those for performance alone.
pub fn default_threads() -> u32 {
    match cores(Path::new(SYSTEM)) {
        // unknown
        0 => std::thread::available_parallelism().map_or(4, |n| n.get() as u32),
        n => n as u32,
    }
}

/// Returns the number of cores that llama.cpp computes with, by `system`; 0 if unknown.
fn cores(system: &Path) -> usize {
    let siblings = |cpu: usize| {
        let path = system.join(format!("system/cpu/cpu{cpu}/topology/thread_siblings"));
        std::fs::read_to_string(path).ok()
    };
    // the kernel lists efficiency cores of hybrid processors here, and has no such file for others
    let efficient = std::fs::read_to_string(system.join("cpu_atom/cpus")).unwrap_or_default();
    let efficient = cpus(&efficient);
    let all: Vec<(usize, String)> = (0..4096)
        .map_while(|cpu| Some((cpu, siblings(cpu)?)))
        .collect();
    if efficient.is_empty() {
        return all
            .iter()
            .map(|(_, core)| core)
            .collect::<HashSet<_>>()
            .len();
    }
    // as llama.cpp counts them: it assumes that each core has two threads with adjacent numbers
    let (mut count, mut cpu) = (0, 0);
    while cpu < all.len() {
        if !efficient.contains(&cpu) {
            count += 1;
            cpu += 1;
        }
        cpu += 1;
    }
    count
}

/// The CPUs in a list such as `16-23,30`.
fn cpus(list: &str) -> HashSet<usize> {
    let parts = list.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    parts.flatten().take(4096).collect()
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

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn efficiency_cores_do_not_count() {
        let system = tempfile::tempdir().unwrap();
        let system = system.path();
        assert_eq!(cores(system), 0);
        // two cores of two threads, and four of one
        for (cpu, mask) in ["03", "03", "0c", "0c", "10", "20", "40", "80"]
            .iter()
            .enumerate()
        {
            let path = format!("system/cpu/cpu{cpu}/topology/thread_siblings");
            write(&system.join(path), mask);
        }
        assert_eq!(cores(system), 6);
        write(&system.join("cpu_atom/cpus"), "4-7\n");
        assert_eq!(cores(system), 2);
        write(&system.join("cpu_atom/cpus"), "nonsense");
        assert_eq!(cores(system), 6);
        assert_eq!(cpus("4-5,9\n"), HashSet::from([4, 5, 9]));
    }

    #[test]
    fn a_slot_has_a_place_and_lanes() {
        let devices = tempfile::tempdir().unwrap();
        let devices = devices.path();
        assert_eq!(slot(devices, "0000:3B:00.0"), "0000:3b:00.0");
        write(&devices.join("0000:3b:00.0/current_link_width"), "4\n");
        assert_eq!(slot(devices, "0000:3B:00.0"), "0000:3b:00.0 x4");
        write(&devices.join("0000:3b:00.0/current_link_width"), "0\n");
        assert_eq!(slot(devices, "0000:3b:00.0"), "0000:3b:00.0");
        assert_eq!(slot(devices, "../../etc"), "../../etc");
    }
}
