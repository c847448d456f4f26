//! What the driver says of device memory: of a device, and of this process.
//!
//! NVIDIA's management library (NVML) is loaded at run time, where there is one. Nothing else here or in the tools knows it.

use super::device::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::Nvml;
use std::sync::OnceLock;

/// The library, for the life of the process: it is never shut down, so that handles stay good.
fn nvml() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    let loaded = NVML.get_or_init(|| Nvml::init().map_err(|error| said(&error)));
    loaded.as_ref().map_err(Clone::clone)
}

fn said(error: &NvmlError) -> String {
    format!("NVIDIA's management library: {error}")
}

/// The version of NVIDIA's driver, where its library tells.
pub fn driver_version() -> Option<String> {
    nvml().ok()?.sys_driver_version().ok()
}

/// A GPU as NVIDIA's management library knows it.
#[derive(Debug)]
pub struct DriverGpu(nvml_wrapper::Device<'static>);

impl DriverGpu {
    /// By the number that the driver gives it.
    ///
    /// # Errors
    /// There is no library, or no such GPU.
    pub fn by_index(index: u32) -> Result<Self, String> {
        let found = nvml()?.device_by_index(index);
        found.map(DriverGpu).map_err(|error| said(&error))
    }

    /// Returns the GPU of a ggml device.
    ///
    /// # Errors
    /// As for [`Self::by_index`], or the device's backend does not say where it is.
    pub fn of(device: Device) -> Result<Self, String> {
        let place = device
            .bus_id()
            .ok_or_else(|| format!("{} does not say where it is", device.name()))?;
        let found = nvml()?.device_by_pci_bus_id(physical(&place));
        found.map(DriverGpu).map_err(|error| said(&error))
    }

    /// Bytes in use on the whole GPU.
    ///
    /// # Errors
    /// The library does not tell.
    pub fn used(&self) -> Result<u64, String> {
        let memory = self.0.memory_info().map_err(|error| said(&error))?;
        Ok(memory.used)
    }

    /// Bytes that this process holds on the GPU, its driver's context among them.
    ///
    /// # Errors
    /// The library does not tell: it knows the process by another number, as in some containers, or knows no figures by process
    /// (MIG, WDDM).
    pub fn held_by_this_process(&self) -> Result<u64, String> {
        let computing = self.0.running_compute_processes();
        let mut listed = computing.map_err(|error| said(&error))?;
        // one that does both is in both lists, with the same figure
        listed.extend(self.0.running_graphics_processes().unwrap_or_default());
        let listed: Vec<(u32, Option<u64>)> = listed
            .into_iter()
            .map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => (process.pid, Some(bytes)),
                UsedGpuMemory::Unavailable => (process.pid, None),
            })
            .collect();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        own_figure(&listed, &own_numbers(&status, std::process::id()))
    }
}

/// Where a device is, without what ggml appends for virtual devices of one GPU.
fn physical(place: &str) -> &str {
    place.split("-v").next().unwrap_or(place)
}

/// The numbers that a process has in the namespaces that it can see, from the text of /proc/self/status, with the one it knows of.
fn own_numbers(status: &str, known: u32) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let words = line.unwrap_or_default().split_whitespace();
    let mut numbers: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
    numbers.push(known);
    numbers
}

/// The most that is listed for a process with one of these numbers.
fn own_figure(listed: &[(u32, Option<u64>)], own: &[u32]) -> Result<u64, String> {
    let mut ours = listed
        .iter()
        .filter(|(pid, _)| own.contains(pid))
        .peekable();
    if ours.peek().is_none() {
        return Err("it does not list this process".to_owned());
    }
    let figure = ours.filter_map(|(_, bytes)| *bytes).max();
    figure.ok_or_else(|| "it does not know how much a process holds".to_owned())
}

/// Who tells how much of a device's memory is gone.
pub trait MemorySource: Send {
    /// Returns the bytes that this process holds on the device, or why they are not known.
    fn held_by_process(&mut self) -> Result<u64, String>;

    /// Free bytes.
    fn free(&mut self) -> u64;
}

/// The driver of a real device.
pub struct DriverMemory {
    device: Device,
    gpu: Result<DriverGpu, String>,
}

impl DriverMemory {
    /// Of this device.
    pub fn of(device: Device) -> Self {
        let gpu = DriverGpu::of(device);
        DriverMemory { device, gpu }
    }
}

impl MemorySource for DriverMemory {
    fn held_by_process(&mut self) -> Result<u64, String> {
        self.gpu
            .as_ref()
            .map_err(Clone::clone)?
            .held_by_this_process()
    }

    fn free(&mut self) -> u64 {
        self.device.memory().0
    }
}

/// A simulated GPU, which no other program uses. For tests it acts as if one did.
pub struct SimulatedMemory {
    device: Device,
    /// Bytes that another program holds while it is looked for the second to the fourth time.
    others: u64,
    looks: u32,
}

impl SimulatedMemory {
    /// Of this device. `others`: bytes that another program takes and gives back.
    pub fn of(device: Device, others: u64) -> Self {
        SimulatedMemory {
            device,
            others,
            looks: 0,
        }
    }
}

impl MemorySource for SimulatedMemory {
    fn held_by_process(&mut self) -> Result<u64, String> {
        Err("a simulated GPU has no driver".to_owned())
    }

    fn free(&mut self) -> u64 {
        self.looks += 1;
        let taken = match self.looks {
            2..=4 => self.others,
            _ => 0,
        };
        self.device.memory().0.saturating_sub(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_any_of_its_numbers() {
        let status = "Name:\tx\nNSpid:\t4711\t7\nVmPeak:\t1 kB\n";
        assert_eq!(own_numbers(status, 7), [4711, 7, 7]);
        assert_eq!(own_numbers("", 7), [7]);
        let listed = [(1, Some(50)), (4711, Some(30)), (4711, Some(40)), (9, None)];
        assert_eq!(own_figure(&listed, &[4711, 7]), Ok(40));
        let why = own_figure(&listed, &[8]).unwrap_err();
        assert!(why.contains("does not list"), "{why}");
        let why = own_figure(&listed, &[9]).unwrap_err();
        assert!(why.contains("does not know"), "{why}");
    }

    #[test]
    fn virtual_devices_lie_where_their_gpu_does() {
        assert_eq!(physical("0000:3b:00.0-v1"), "0000:3b:00.0");
        assert_eq!(physical("0000:3b:00.0"), "0000:3b:00.0");
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        if let Err(why) = DriverGpu::by_index(0) {
            assert!(why.contains("management library"), "{why}");
        }
    }
}
