//! Streams: commands that one thread carries out in the order in which they were submitted.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use pipeshard_model::threads::named;

use super::compute::{GraphCopy, DEFAULT_THREADS};
use super::device::{Device, Lane};
use super::fence::Fence;
use super::queue::{CommandQueue, Queued};

/// Copied sources that may wait in a stream before the submitter is held up, in bytes.
const STAGING_LIMIT: usize = 256 << 20;

/// Copies from this size on are done in two steps when delays are on, so that a half-done copy can be seen.
const TORN_FROM: usize = 4 << 10;

/// The most pieces that a graph is cut into when delays are on.
const MOST_PIECES: u64 = 4;

/// How long the end of the process waits for commands that are being carried out.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// Set when the process ends: no command is begun any more.
static EXITING: AtomicBool = AtomicBool::new(false);

/// Where a copy to the device takes its bytes from.
pub(super) enum Source {
    /// Read when the copy was submitted.
    Staged(Box<[u8]>),
    /// Page-locked: read when the copy is carried out.
    Host(*const u8, usize),
}

/// What a stream can be told to do. Pointers to device memory are shadow addresses of live allocations; freeing device
/// or page-locked memory waits for all streams first, so they stay valid.
pub(super) enum Command {
    Upload {
        to: *mut u8,
        from: Source,
    },
    Download {
        to: *mut u8,
        from: *const u8,
        len: usize,
        /// What a failed device fills the target with.
        when_lost: u8,
    },
    Copy {
        to: *mut u8,
        from: *const u8,
        len: usize,
    },
    Graph {
        graph: Box<GraphCopy>,
        threads: i32,
    },
    Signal(Arc<Fence>),
    Wait(Arc<Fence>),
}

// SAFETY: the pointers are only used by the stream's thread, while what they point to is kept alive as said above; the
// copied graph owns all that it refers to but device memory.
unsafe impl Send for Command {}

impl Queued for Command {
    fn staged(&self) -> usize {
        match self {
            Command::Upload {
                from: Source::Staged(bytes),
                ..
            } => bytes.len(),
            _ => 0,
        }
    }

    fn only_waits(&self) -> bool {
        matches!(self, Command::Wait(_))
    }
}

pub(super) struct Stream {
    pub id: usize,
    pub device: &'static Device,
    threads: AtomicI32,
    queue: CommandQueue<Command>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Stream {
    /// Makes a stream and its thread.
    pub fn start(device: &'static Device) -> std::io::Result<Arc<Self>> {
        let stream = Arc::new(Self {
            id: device.meter.lock().add_stream(),
            device,
            threads: AtomicI32::new(DEFAULT_THREADS),
            queue: CommandQueue::new(STAGING_LIMIT),
            worker: Mutex::new(None),
        });
        let worker = {
            let stream = Arc::clone(&stream);
            named(&format!("SIM0.{}", stream.id))
                .stack_size(8 << 20)
                .spawn(move || stream.run())?
        };
        *stream.worker.lock() = Some(worker);
        let lane: Weak<Self> = Arc::downgrade(&stream);
        device.add_stream(lane);
        if let Some(supply) = &device.supply {
            supply.stream_opened(Arc::as_ptr(&stream) as usize);
        }
        Ok(stream)
    }

    /// The number of threads that graphs submitted from now on are computed with.
    pub fn set_threads(&self, threads: i32) {
        self.threads.store(threads.max(1), Ordering::Relaxed);
    }

    pub fn threads(&self) -> i32 {
        self.threads.load(Ordering::Relaxed)
    }

    /// Reports whether a thread waits for all that was submitted: for tests.
    #[cfg(test)]
    pub fn is_waited_for(&self) -> bool {
        self.queue.is_waited_for()
    }

    pub fn submit(&self, command: Command) {
        self.queue.submit(command);
    }

    /// Lets the thread finish what was submitted, and ends it.
    pub fn stop(&self) {
        if let Some(supply) = &self.device.supply {
            supply.stream_closed(ptr::from_ref(self) as usize);
        }
        self.queue.close();
        let worker = self.worker.lock().take().filter(|_| !exiting());
        if let Some(worker) = worker {
            if worker.join().is_err() {
                log::error!("the thread of a simulated stream ended by a panic");
            }
        }
    }

    fn run(&self) {
        let spec = &self.device.spec;
        let mut delays = Delays::new(spec.seed, self.id as u64, spec.delay_us);
        while let Some(command) = self.queue.next(exiting) {
            let done = catch_unwind(AssertUnwindSafe(|| self.execute(command, &mut delays)));
            if done.is_err() {
                self.device
                    .health
                    .fail("a command of a simulated stream panicked");
            }
            self.queue.complete();
        }
        while exiting() {
            thread::park();
        }
    }

    fn execute(&self, command: Command, delays: &mut Delays) {
        // Streams that wait must go on even when the device is dead.
        let dead = self.device.failure().is_some();
        match command {
            Command::Signal(fence) => fence.signal(),
            Command::Wait(fence) => fence.wait(),
            // SAFETY: the target is as long as the submitter said, and stays so until the stream is drained.
            Command::Download {
                to, len, when_lost, ..
            } if dead => unsafe { ptr::write_bytes(to, when_lost, len) },
            _ if dead => {}
            Command::Upload { to, from } => match &from {
                Source::Staged(bytes) => copy(to, bytes.as_ptr(), bytes.len(), delays),
                Source::Host(from, len) => copy(to, *from, *len, delays),
            },
            Command::Download { to, from, len, .. } | Command::Copy { to, from, len } => {
                copy(to, from, len, delays);
            }
            Command::Graph { mut graph, threads } => {
                let pieces = delays.pieces(graph.len());
                let result = match self.device.spec.compute {
                    true => graph.compute(threads, &pieces, || delays.pause()),
                    false => {
                        graph.choose_first();
                        Ok(())
                    }
                };
                if let Err(error) = result {
                    self.device.health.fail(&error.to_string());
                }
            }
        }
    }
}

impl Lane for Stream {
    /// Nothing is counted: see the meter.
    fn drain(&self) {
        if !exiting() {
            self.queue.drain();
        }
    }

    fn is_busy(&self) -> bool {
        self.queue.is_busy()
    }
}

fn copy(to: *mut u8, from: *const u8, len: usize, delays: &mut Delays) {
    let first = if len >= TORN_FROM {
        delays.part(len)
    } else {
        len
    };
    for (offset, len) in [(0, first), (first, len - first)] {
        if len > 0 {
            delays.pause();
            // SAFETY: the submitter checked both ranges and they stay allocated until the stream is drained. They may
            // overlap when both are device memory, which this allows.
            unsafe { ptr::copy(from.add(offset), to.add(offset), len) };
        }
    }
}

/// Seeded random pauses in real time.
struct Delays {
    state: u64,
    longest_us: u64,
}

impl Delays {
    fn new(seed: u64, stream: u64, longest_us: u64) -> Self {
        let mut delays = Self {
            state: seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            longest_us,
        };
        delays.draw();
        delays
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn pause(&mut self) {
        if self.longest_us > 0 {
            let us = self.draw() % (self.longest_us + 1);
            thread::sleep(Duration::from_micros(us));
        }
    }

    /// Returns a part of `len`, at least 1 and less than `len`; all of `len` when there are no delays.
    fn part(&mut self, len: usize) -> usize {
        match self.longest_us {
            0 => len,
            _ => 1 + (self.draw() % (len as u64 - 1)) as usize,
        }
    }

    /// Where to pause between the nodes of a graph: ascending ends of its pieces; the last end is `len`.
    fn pieces(&mut self, len: usize) -> Vec<usize> {
        let mut ends = vec![len];
        if self.longest_us > 0 && len > 1 {
            for _ in 0..self.draw() % MOST_PIECES {
                ends.push(self.part(len));
            }
            ends.sort_unstable();
            ends.dedup();
        }
        ends
    }
}

/// Reports whether the process ends: nothing is carried out any more, so nothing may be waited for.
pub(super) fn exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}

/// Keeps the streams from beginning anything new, and waits a moment for what they are at: what a graph uses must not
/// go away under it while the process ends.
pub(super) fn quiesce_at_exit(streams: &[Arc<dyn Lane>]) {
    EXITING.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    while streams.iter().any(|s| s.is_busy()) && begin.elapsed() < EXIT_PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
}
