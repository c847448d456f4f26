//! Measuring: operations through ggml's public interface, copies, and overheads.
//!
//! Weights are random and lie in more memory than caches hold; one part after the other is used. All device memory is one
//! allocation of known size (and what the backend takes for itself), given back at the end.

mod clock;
mod copies;
mod curves;
mod data;
mod engine;
mod error;
mod graph;
mod host;
mod host_work;
mod overheads;
mod place;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;

use std::time::Duration;

use clock::{rate, Pace};
pub use copies::{page_locked, Copies, SharedPages};
use curves::Bench;
use engine::Engine;
pub use error::MeasureError;
use place::{Filler, Place, Room};
use traffic::Traffic;

use crate::lanes::device::{Buffer, Device, Memory};
use pipeshard_plan::profile::{
    Curve, Effort, HostCosts, HostMemory, Link, Op, Overheads, Processor, Quantity, Roofline,
};

const MIB: u64 = 1 << 20;
/// Device memory beyond which nothing is gained.
const MOST_DEVICE_MEMORY: u64 = 768 * MIB;
/// Columns and rows of the matrix that the host's memory is read with.
const READ_SIZE: u64 = 4096;

/// How much is measured, with what.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads of the CPU.
    pub threads: u32,
    /// The most device memory that may be held meanwhile, in bytes.
    pub device_memory: u64,
    /// Of these, what measuring needs at least.
    pub least_device_memory: u64,
    /// Weights on the host, in bytes: more than its caches hold.
    pub host_weights: u64,
    /// Page-locked memory that is copied from, in bytes.
    pub pinned: u64,
    /// Weights on the device that are gone through, in bytes: more than its caches hold.
    pub device_weights: u64,
    /// How long one figure is measured.
    pub point: Duration,
    /// Batch sizes on the device.
    pub gpu_batches: Vec<u32>,
    /// Batch sizes on the CPU.
    pub cpu_batches: Vec<u32>,
    /// An operation of the CPU that is predicted to take longer than this is left out, in seconds.
    pub longest: f64,
}

impl Settings {
    /// Settings for a machine like this one.
    pub fn new(effort: Effort, threads: u32, device_memory: u64) -> Self {
        let host_weights = host_weights(host::last_cache_bytes(), host::free_memory());
        let quick = effort == Effort::Quick;
        let list = |short: &[u32], long: &[u32]| if quick { short } else { long }.to_vec();
        Settings {
            threads: threads.max(1),
            device_memory,
            least_device_memory: 160 * MIB,
            host_weights,
            pinned: 128 * MIB,
            device_weights: 128 * MIB,
            point: Duration::from_millis(if quick { 15 } else { 100 }),
            gpu_batches: list(
                &[1, 4, 16, 64, 512, 2048],
                &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
            ),
            cpu_batches: list(&[1, 4, 16, 64, 512], &[1, 2, 4, 8, 16, 32, 64, 128, 512]),
            longest: if quick { 0.1 } else { 1.0 },
        }
    }
}

/// More weights than the last cache holds, but at most half of the free memory.
fn host_weights(cache: u64, free: u64) -> u64 {
    (4 * cache).max(512 * MIB).min(free / 2).max(16 * MIB)
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The link.
    pub link: Link,
    /// The host's memory.
    pub memory: HostMemory,
    /// Overheads.
    pub overheads: Overheads,
    /// What the host does next to products.
    pub host: HostCosts,
    /// The CPU's limits.
    pub cpu: Roofline,
    /// The device's limits.
    pub gpu: Roofline,
    /// The operations. A curve without points stands for what cannot be measured here.
    pub curves: Vec<Curve>,
}

/// Measures the machine and `ops` on it. `progress` is told steps done and steps in all.
///
/// # Errors
/// [`MeasureError`]; nothing is held any more then.
pub fn measure(
    device: Device,
    ops: &[Op],
    settings: &Settings,
    progress: &dyn Fn(usize, usize),
) -> Result<Measured, MeasureError> {
    let steps = 3 + 2 * ops.len();
    let arenas = Arenas::new(device, settings)?;
    let mut session = Session::open(device, &arenas, settings)?;
    progress(0, steps);
    let pace = session.pace();
    let span = settings.pinned.min(64 * MIB);
    let mut link = session.traffic.measure(device, span, pace)?;
    progress(1, steps);
    let (memory, cpu_wake) = session.memory(&mut link)?;
    let host = session.host_work()?;
    progress(2, steps);
    // what it costs to wake threads and to wait depends on what else runs at that moment, and so does the link
    let mut overheads = vec![session.overheads()?];
    session.traffic.measure_again(&mut link, span, pace);
    progress(3, steps);
    let (first, second) = ops.split_at(ops.len() / 2);
    let mut curves = session.curves(first, &|done| progress(3 + done, steps))?;
    overheads.push(session.overheads()?);
    session.traffic.measure_again(&mut link, span, pace);
    let done_first = 3 + curves.len();
    curves.extend(session.curves(second, &|done| progress(done_first + done, steps))?);
    overheads.push(session.overheads()?);
    session.traffic.measure_again(&mut link, span, pace);
    let overheads = Overheads {
        cpu_wake,
        ..overheads::middle_of(&overheads)
    };
    let cpu = Roofline {
        bytes: memory.cpu.median.max(best(&curves, Processor::Cpu).0),
        flops: best(&curves, Processor::Cpu).1,
        launch: overheads.cpu_op.median,
    };
    let gpu = Roofline {
        bytes: best(&curves, Processor::Gpu).0,
        flops: best(&curves, Processor::Gpu).1,
        launch: overheads.launch.median,
    };
    Ok(Measured {
        link,
        memory,
        overheads,
        host,
        cpu,
        gpu,
        curves,
    })
}

/// Measures operations alone, for a machine whose other figures are known: the link's rate `pinned` among them.
///
/// # Errors
/// As for [`measure`].
pub fn measure_operations(
    device: Device,
    ops: &[Op],
    settings: &Settings,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Curve>, MeasureError> {
    let steps = 1 + 2 * ops.len();
    let arenas = Arenas::new(device, settings)?;
    let mut session = Session::open(device, &arenas, settings)?;
    progress(0, steps);
    let pace = session.pace();
    session
        .traffic
        .measure(device, settings.pinned.min(32 * MIB), pace)?;
    progress(1, steps);
    session.curves(ops, &|done| progress(1 + done, steps))
}

/// The highest rates of any point: bytes and floating-point operations per second.
pub(crate) fn best(curves: &[Curve], on: Processor) -> (f64, f64) {
    let of_processor = curves.iter().filter(|curve| curve.on == on);
    let rates = of_processor.flat_map(|curve| {
        let rate = |point: &pipeshard_plan::profile::Point| {
            let work = curve.op.work(point.rows);
            let seconds = point.seconds.max(1e-9);
            (work.bytes / seconds, work.flops / seconds)
        };
        curve.points.iter().map(rate)
    });
    rates.fold((0.0, 0.0), |(bytes, flops), (b, f)| {
        (f64::max(bytes, b), f64::max(flops, f))
    })
}

/// Memory that is measured with.
struct Arenas {
    device: Buffer,
    host: Buffer,
    host_weights: u64,
}

/// What a part of the memory is for.
#[derive(Debug, Clone, Copy)]
enum Part {
    Weights,
    Input,
    Output,
    Target,
}

impl Arenas {
    fn new(device: Device, settings: &Settings) -> Result<Self, MeasureError> {
        let limit = settings.device_memory;
        if limit < settings.least_device_memory {
            return Err(MeasureError::LimitTooSmall {
                needed: settings.least_device_memory,
                limit,
            });
        }
        // the rest is for what the backend takes for itself
        let device_bytes = limit.min(MOST_DEVICE_MEMORY) / 3 * 2;
        let refused = || MeasureError::DeviceMemory {
            device: device.name(),
            bytes: device_bytes,
        };
        let device = Buffer::allocate(device.memory_type(), device_bytes).ok_or_else(refused)?;
        // inputs and outputs of the host: touched only where they are used
        let host_bytes = settings.host_weights + device_bytes;
        let host = Buffer::allocate(Memory::host(), host_bytes)
            .ok_or(MeasureError::HostMemory(host_bytes))?;
        small_pages(&host);
        Ok(Arenas {
            device,
            host,
            host_weights: settings.host_weights,
        })
    }

    fn device_part(&self, part: Part) -> Room<'_> {
        let all = Room {
            buffer: &self.device,
            offset: 0,
            bytes: self.device.size(),
        };
        match part {
            Part::Weights => all.part(0.0, 0.46),
            Part::Input => all.part(0.46, 0.71),
            Part::Output => all.part(0.71, 0.97),
            Part::Target => all.part(0.97, 1.0),
        }
    }

    fn host_part(&self, part: Part) -> Room<'_> {
        let weights = self.host_weights;
        let rest = Room {
            buffer: &self.host,
            offset: weights.next_multiple_of(4096),
            bytes: (self.host.size() - weights).saturating_sub(4096),
        };
        match part {
            Part::Weights => Room {
                offset: 0,
                bytes: weights,
                ..rest
            },
            Part::Input => rest.part(0.0, 0.5),
            Part::Output | Part::Target => rest.part(0.5, 1.0),
        }
    }
}

/// Asks for pages of the size that a mapped file has, so that weights are read as they are then.
fn small_pages(buffer: &Buffer) {
    let page = 4096;
    let first = (buffer.base() as usize).next_multiple_of(page);
    let end = buffer.base() as usize + buffer.size() as usize;
    // SAFETY: whole pages inside the buffer; the advice changes no content, and may be declined.
    unsafe {
        libc::madvise(
            first as *mut std::ffi::c_void,
            end.saturating_sub(first) / page * page,
            libc::MADV_NOHUGEPAGE,
        )
    };
}

/// Both processors and the copy lane.
struct Session<'s> {
    cpu: Engine,
    gpu: Engine,
    traffic: Traffic<'s>,
    arenas: &'s Arenas,
    settings: &'s Settings,
}

impl<'s> Session<'s> {
    fn open(
        device: Device,
        arenas: &'s Arenas,
        settings: &'s Settings,
    ) -> Result<Self, MeasureError> {
        let target = arenas.device_part(Part::Target);
        let target = (target.buffer, target.offset, target.bytes);
        let session = Session {
            cpu: Engine::of_cpu(settings.threads)?,
            gpu: Engine::of_device(device, settings.threads)?,
            traffic: Traffic::open(device, target, settings.pinned)?,
            arenas,
            settings,
        };
        let all = u64::MAX;
        session.gpu_place().fill_input(all)?;
        session.cpu_place().fill_input(64 * MIB)?;
        Ok(session)
    }

    fn pace(&self) -> Pace {
        Pace {
            limit: self.settings.point,
            least: 3,
        }
    }

    fn gpu_place(&self) -> Place<'s> {
        Place {
            weights: self.arenas.device_part(Part::Weights),
            input: self.arenas.device_part(Part::Input),
            output: self.arenas.device_part(Part::Output),
            rotate: self.settings.device_weights,
        }
    }

    fn cpu_place(&self) -> Place<'s> {
        Place {
            weights: self.arenas.host_part(Part::Weights),
            input: self.arenas.host_part(Part::Input),
            output: self.arenas.host_part(Part::Output),
            rotate: self.settings.host_weights,
        }
    }

    fn gpu_bench(&self) -> Bench<'_, 's> {
        Bench {
            on: Processor::Gpu,
            engine: &self.gpu,
            place: self.gpu_place(),
            batches: &self.settings.gpu_batches,
            pace: self.pace(),
            repetition: 1e-3,
            best_rate: 10e12,
            longest: self.settings.longest,
            busy_up_to: 1,
        }
    }

    fn cpu_bench(&self) -> Bench<'_, 's> {
        Bench {
            on: Processor::Cpu,
            engine: &self.cpu,
            place: self.cpu_place(),
            batches: &self.settings.cpu_batches,
            pace: self.pace(),
            repetition: self.settings.point.as_secs_f64() / 4.0,
            best_rate: 1e12,
            longest: self.settings.longest,
            busy_up_to: 1,
        }
    }

    /// Measures the rate at which the CPU reads, alone and while the copy lane reads as well, and how much longer it takes after a
    /// rest. The copy lane's rate meanwhile goes into `link`.
    fn memory(&self, link: &mut Link) -> Result<(HostMemory, Quantity), MeasureError> {
        let room = self.settings.host_weights / 4;
        let op = Op::Product {
            type_name: "f16".to_owned(),
            columns: READ_SIZE,
            rows: READ_SIZE.min(room / (2 * READ_SIZE)).max(1),
        };
        let mut filler = Filler::new(&self.traffic, self.settings.threads);
        let mut memory = HostMemory::default();
        let mut wake = Quantity::default();
        let bench = self.cpu_bench();
        if let Some(read) = bench.read(&op, &self.traffic, &mut filler)? {
            let (alone, busy) = (read.alone, read.busy);
            wake = read.wake;
            let bytes = op.work(1).bytes;
            memory.cpu = rate(bytes, alone);
            memory.cpu_copy_busy = memory.cpu;
            link.pinned_cpu_busy = link.pinned;
            if let Some(busy) = busy {
                memory.cpu_copy_busy.median = bytes / busy.seconds;
                link.pinned_cpu_busy.median = busy.link;
            }
        }
        Ok((memory, wake))
    }

    fn host_work(&self) -> Result<HostCosts, MeasureError> {
        let table = self.arenas.host_part(Part::Weights);
        let rest = self.arenas.host_part(Part::Output);
        host_work::measure(&Engine::of_cpu(1)?, (table, rest), self.pace())
    }

    fn overheads(&self) -> Result<Overheads, MeasureError> {
        overheads::measure(
            (&self.gpu, self.arenas.device_part(Part::Output)),
            (&self.cpu, self.arenas.host_part(Part::Output)),
            self.pace(),
        )
    }

    fn curves(&self, ops: &[Op], done: &dyn Fn(usize)) -> Result<Vec<Curve>, MeasureError> {
        let mut filler = Filler::new(&self.traffic, self.settings.threads);
        let mut curves = Vec::with_capacity(2 * ops.len());
        let benches = [self.gpu_bench(), self.cpu_bench()];
        for op in ops {
            for bench in &benches {
                curves.push(bench.curve(op, &self.traffic, &mut filler)?);
                done(curves.len());
            }
        }
        Ok(curves)
    }
}
