//! When a device gets to a point of its streams.
//!
//! The simulated GPU says it at once, on its virtual clocks. Of a real one ggml only tells *that* an event was reached: a
//! thread per stream waits for the events in the order in which they were recorded, and looks at the host's clock each
//! time. That is late by the time it takes to wake up, some 10 to 20 microseconds.

use super::record::{DeviceLane, Stamp, StampTimes, Stretch};
use crate::lanes::device::{Device, Event};
use pipeshard_model::threads::named;
use pipeshard_sim as sim;
use pipeshard_sys as ffi;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Points of one stream that may be on their way at one time; those beyond stay without a time.
const EVENTS: usize = 2048;
/// How long the end of a trace waits for what is still on its way.
const PATIENCE: Duration = Duration::from_secs(2);

/// An event of the pool, shared between the thread that records it and the one that waits for it.
struct PooledEvent {
    event: Event,
    in_flight: AtomicBool,
}

// SAFETY: the recording thread touches the event only while `in_flight` is false, the watching thread only while it is
// true; backends allow an event to be waited for on another thread than the one that recorded it.
unsafe impl Sync for PooledEvent {}

/// A stream of a real device, and the thread that watches it.
struct Watched {
    pool: Arc<[PooledEvent]>,
    /// There until the end.
    queue: Option<SyncSender<u64>>,
    watcher: Option<JoinHandle<()>>,
    seen: Arc<AtomicU64>,
    sent: u64,
}

impl Watched {
    fn start(device: Device, times: Arc<StampTimes>, origin: Instant) -> Option<Self> {
        let pool: Option<Arc<[PooledEvent]>> = (0..EVENTS)
            .map(|_| {
                Event::new(device).map(|event| PooledEvent {
                    event,
                    in_flight: AtomicBool::new(false),
                })
            })
            .collect();
        let pool = pool?;
        let (queue, points) = sync_channel(EVENTS);
        let seen = Arc::new(AtomicU64::new(0));
        let watcher = {
            let (pool, seen) = (Arc::clone(&pool), Arc::clone(&seen));
            move || watch(&points, &pool, &times, &seen, origin)
        };
        let watcher = named("pipeshard-trace").spawn(watcher).ok()?;
        Some(Watched {
            pool,
            queue: Some(queue),
            watcher: Some(watcher),
            seen,
            sent: 0,
        })
    }

    /// Records an event for the stamp. False if none is free.
    unsafe fn mark(&mut self, number: u64, stream: ffi::ggml_backend_t) -> bool {
        let pooled = &self.pool[number as usize % EVENTS];
        if pooled.in_flight.load(Ordering::Acquire) {
            return false;
        }
        pooled.event.record(stream);
        pooled.in_flight.store(true, Ordering::Release);
        // there is room for as many as there are events
        let sent = self
            .queue
            .as_ref()
            .is_some_and(|queue| queue.try_send(number).is_ok());
        self.sent += u64::from(sent);
        sent
    }

    fn settled(&self) -> bool {
        self.seen.load(Ordering::Acquire) >= self.sent
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // without a sender the thread ends once it has seen all
        self.queue = None;
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn watch(
    points: &Receiver<u64>,
    pool: &[PooledEvent],
    times: &StampTimes,
    seen: &AtomicU64,
    origin: Instant,
) {
    while let Ok(number) = points.recv() {
        let pooled = &pool[number as usize % EVENTS];
        pooled.event.synchronize();
        times.set(number, nanoseconds(origin));
        pooled.in_flight.store(false, Ordering::Release);
        seen.fetch_add(1, Ordering::Release);
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A lane's times, and where they come from on a real device.
struct LaneClock {
    times: Arc<StampTimes>,
    stamps: u64,
    watched: Option<Watched>,
}

/// The clocks of the host and of the device's lanes, all from one origin.
pub struct Clock {
    origin: Instant,
    device: Option<Device>,
    events_only: bool,
    simulated: bool,
    lanes: [Option<LaneClock>; DeviceLane::COUNT],
    /// Points whose time was not taken because too many were on their way.
    untimed: u64,
}

impl Clock {
    /// The host's clock, from now on. `events_only`: a simulated device is treated like a real one.
    pub fn start(events_only: bool) -> Self {
        Clock {
            origin: Instant::now(),
            device: None,
            events_only,
            simulated: false,
            lanes: Default::default(),
            untimed: 0,
        }
    }

    /// The device whose streams will be looked at.
    pub fn attach(&mut self, device: Device) {
        self.device = Some(device);
        self.simulated = !self.events_only && sim::is_simulated(device.raw());
    }

    /// Reports whether times are those of a simulated device.
    pub fn is_virtual(&self) -> bool {
        self.simulated
    }

    /// Points without a time.
    pub fn untimed(&self) -> u64 {
        self.untimed
    }

    /// The host's time in nanoseconds.
    pub fn now(&self) -> u64 {
        match self.device.filter(|_| self.simulated) {
            Some(device) => sim::host_clock(device.raw()),
            None => nanoseconds(self.origin),
        }
    }

    /// When a stamp was passed; `None` if that is not known.
    pub fn time(&self, stamp: Stamp) -> Option<u64> {
        let lane = self.lanes[stamp.lane.index()].as_ref()?;
        lane.times.get(stamp.number)
    }

    /// Stamps the start of work that follows everything submitted to `stream` so far. A real device has none for the compute
    /// streams: when a split begins follows from when it was submitted, and from the ends of what it waits for, which are
    /// seen more exactly than something that begins at once.
    ///
    /// # Safety
    /// `stream` is a live backend of the attached device.
    pub unsafe fn begin(&mut self, lane: DeviceLane, stream: ffi::ggml_backend_t) -> Stamp {
        let mut number = Stamp::NONE;
        if self.simulated {
            sim::mark(stream);
        } else if matches!(lane, DeviceLane::Copy | DeviceLane::Fetch) {
            number = self.next(lane);
            self.record(lane, number, stream);
        }
        Stamp { lane, number }
    }

    /// Stamps where what was submitted since `begin` begins and ends. On a real device it begins at `begin`; the simulated
    /// one knows it better.
    ///
    /// # Safety
    /// As for [`Self::begin`]; nothing else began on the stream since.
    pub unsafe fn end(&mut self, begin: Stamp, stream: ffi::ggml_backend_t) -> Stretch {
        let lane = begin.lane;
        let mut begin = begin;
        if self.simulated {
            let (start, end) = sim::since_mark(stream);
            begin.number = self.next(lane);
            self.set(lane, begin.number, start);
            let number = self.next(lane);
            self.set(lane, number, end);
            return Stretch {
                begin,
                end: Stamp { lane, number },
            };
        }
        let number = self.next(lane);
        self.record(lane, number, stream);
        Stretch {
            begin,
            end: Stamp { lane, number },
        }
    }

    fn set(&self, lane: DeviceLane, number: u64, ns: u64) {
        if let Some(clock) = &self.lanes[lane.index()] {
            clock.times.set(number, ns);
        }
    }

    fn next(&mut self, lane: DeviceLane) -> u64 {
        let (device, simulated, origin) = (self.device, self.simulated, self.origin);
        // made for a lane's first stamp, which is in the first pass
        let clock = self.lanes[lane.index()].get_or_insert_with(|| {
            let times = Arc::new(StampTimes::default());
            let watched = device
                .filter(|_| !simulated)
                .and_then(|device| Watched::start(device, Arc::clone(&times), origin));
            LaneClock {
                times,
                stamps: 0,
                watched,
            }
        });
        clock.stamps += 1;
        clock.times.clear(clock.stamps);
        clock.stamps
    }

    unsafe fn record(&mut self, lane: DeviceLane, number: u64, stream: ffi::ggml_backend_t) {
        let watched = self.lanes[lane.index()]
            .as_mut()
            .and_then(|clock| clock.watched.as_mut());
        let taken = watched.is_some_and(|watched| watched.mark(number, stream));
        self.untimed += u64::from(!taken);
    }

    /// Waits until the device has got to all stamps, but not for long.
    pub fn settle(&self) {
        let begin = Instant::now();
        let watched = || {
            self.lanes
                .iter()
                .flatten()
                .filter_map(|l| l.watched.as_ref())
        };
        while !watched().all(Watched::settled) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
