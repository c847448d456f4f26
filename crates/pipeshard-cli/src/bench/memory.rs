//! The device's memory by the driver's count, sampled while a process runs.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pipeshard::lanes::driver_memory::DriverGpu;

/// Who tells how much device memory is in use.
#[derive(Debug, Clone)]
pub enum Source {
    /// NVIDIA's management library.
    Nvml(Arc<DriverGpu>),
    /// The program of the same maker, started for every sample.
    NvidiaSmi {
        /// Which GPU.
        index: u32,
    },
    /// Nobody; a simulated GPU counts for itself.
    None,
}

impl Source {
    /// The best that this machine has for a GPU.
    pub fn find(index: u32) -> Self {
        match DriverGpu::by_index(index) {
            Ok(gpu) => return Source::Nvml(Arc::new(gpu)),
            Err(why) => log::info!("{why}; asking nvidia-smi instead"),
        }
        let smi = Source::NvidiaSmi { index };
        match smi.used() {
            Some(_) => smi,
            None => Source::None,
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Nvml(_) => "NVML, sampled every 20 ms",
            Source::NvidiaSmi { .. } => "nvidia-smi, sampled every 50 ms or so",
            Source::None => "none",
        }
    }

    /// Bytes in use on the whole device now.
    pub fn used(&self) -> Option<u64> {
        match self {
            Source::Nvml(gpu) => gpu
                .used()
                .inspect_err(|why| log::warn!("device memory is unknown: {why}"))
                .ok(),
            Source::NvidiaSmi { index } => ask_nvidia_smi(*index),
            Source::None => None,
        }
    }

    fn interval(&self) -> Duration {
        match self {
            // more often takes processor time from those that generate
            Source::Nvml(_) => Duration::from_millis(20),
            _ => Duration::from_millis(50),
        }
    }

    /// Bytes in use before a process starts. The memory of the one before is given back a moment after it ended.
    pub fn settled(&self) -> Option<u64> {
        let mut last = self.used()?;
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(60));
            let now = self.used()?;
            if now >= last {
                break;
            }
            last = now;
        }
        Some(last)
    }
}

fn ask_nvidia_smi(index: u32) -> Option<u64> {
    let output = Command::new("nvidia-smi")
        .args([
            "--query-gpu=memory.used",
            "--format=csv,noheader,nounits",
            "-i",
        ])
        .arg(index.to_string())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mib: u64 = text.lines().next()?.trim().parse().ok()?;
    mib.checked_mul(1 << 20)
}

/// Samples in the background until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    steps: Arc<Mutex<Vec<(Instant, u64)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sampler {
    /// Starts.
    pub fn start(source: &Source) -> Self {
        let steps = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let nothing_to_ask = matches!(source, Source::None);
        let (source, kept, ended) = (source.clone(), Arc::clone(&steps), Arc::clone(&stop));
        let work = move || {
            let mut last = None;
            while !ended.load(Ordering::Relaxed) {
                let used = source.used();
                // a sample may fail; the next may not
                if used.is_some() && used != last {
                    kept.lock().extend(used.map(|u| (Instant::now(), u)));
                    last = used;
                }
                std::thread::sleep(source.interval());
            }
        };
        let named = || std::thread::Builder::new().name("memory".to_owned());
        let thread = match nothing_to_ask {
            true => None,
            false => named().spawn(work).ok(),
        };
        Sampler {
            steps,
            stop,
            thread,
        }
    }

    /// When the fewest bytes were in use from `from` to `to`.
    pub fn lowest(&self, from: Instant, to: Instant) -> Option<Instant> {
        lowest_of(&self.steps.lock(), from, to)
    }

    /// The most bytes in use from `from` to `to`; what was in use at `from` counts.
    pub fn peak(&self, from: Instant, to: Instant) -> Option<u64> {
        peak_of(&self.steps.lock(), from, to)
    }
}

fn lowest_of(steps: &[(Instant, u64)], from: Instant, to: Instant) -> Option<Instant> {
    let before = steps.iter().rev().find(|(at, _)| *at <= from);
    let during = steps.iter().filter(|(at, _)| *at > from && *at <= to);
    let lowest = before
        .into_iter()
        .chain(during)
        .min_by_key(|(_, used)| *used);
    lowest.map(|(at, _)| (*at).max(from))
}

fn peak_of(steps: &[(Instant, u64)], from: Instant, to: Instant) -> Option<u64> {
    let before = steps.iter().rev().find(|(at, _)| *at <= from);
    let during = steps.iter().filter(|(at, _)| *at > from && *at <= to);
    before
        .into_iter()
        .chain(during)
        .map(|(_, used)| *used)
        .max()
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // it ends after its next sample; a panic in it has nothing to tell
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_belongs_to_its_stretch_of_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let steps = [
            (at(0), 10),
            (at(10), 90),
            (at(20), 20),
            (at(30), 50),
            (at(40), 15),
        ];
        assert_eq!(peak_of(&steps, at(0), at(50)), Some(90));
        assert_eq!(peak_of(&steps, at(21), at(50)), Some(50));
        assert_eq!(peak_of(&steps, at(41), at(50)), Some(15));
        assert_eq!(peak_of(&steps, at(20), at(25)), Some(20));
        assert_eq!(peak_of(&[], at(0), at(50)), None);
        // the model before, gone, and the next one
        let low = lowest_of(&steps, at(12), at(39)).unwrap();
        assert_eq!(low, at(20));
        assert_eq!(peak_of(&steps, low, at(39)), Some(50));
        assert_eq!(lowest_of(&steps, at(41), at(45)), Some(at(41)));
    }

    #[test]
    fn without_a_source_there_is_no_peak() {
        let sampler = Sampler::start(&Source::None);
        // nothing samples, so nothing is to be waited for
        assert!(sampler.thread.is_none());
        assert_eq!(sampler.peak(Instant::now(), Instant::now()), None);
        assert_eq!(Source::None.settled(), None);
    }
}
