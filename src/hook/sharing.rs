//! The thread that looks after this process's share of a total ([`crate::share`]): it answers the others, and once a second it looks
//! whether passes were computed with less than there could be, and takes what others leave or do not use.
//!
//! Passes know nothing of it: another budget is what [`super::control`] makes of it.

use super::control;
use super::gate::Gate;
use super::log;
use super::runtime::Runtime;
use crate::share::ask::{reply, Answer, Question};
use crate::share::shares::{Sharing, PATIENCE};
use pipeshard_model::threads::named;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often is looked whether the share is enough.
const EVERY_MS: i32 = 1000;

/// Says to the others what the budget is.
fn note(sharing: &Sharing, budget: u64) {
    if let Err(why) = sharing.has(budget) {
        log::warn(&why);
    }
}

/// Passes were computed with `budget` bytes: takes what others leave or do not use, if more than that would be used.
fn grow(sharing: &Sharing, gate: &Gate<Runtime>, budget: u64) {
    if budget == 0 || budget >= sharing.wanted() {
        return;
    }
    let limits = control::limits(gate).ok();
    let everything = limits.and_then(|limits| limits.everything_resident);
    let wanted = sharing.wanted().min(everything.unwrap_or(u64::MAX));
    if budget >= wanted {
        return;
    }
    if let Some(granted) = sharing.take(wanted, budget) {
        let changed = control::change_budget(gate, granted, Some(PATIENCE), None);
        note(
            sharing,
            changed.map_or(budget, |changed| changed.now.budget),
        );
    }
}

/// When this process computed something the last time.
struct Activity {
    passes: u64,
    since: Instant,
}

/// The thread that answers the others and looks whether the share is enough.
pub struct Service {
    /// Shut down to end it.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// A gate that outlives the thread.
pub(super) struct Outlives(pub *const Gate<Runtime>);

// SAFETY: a gate may be used by any thread; that it outlives this one is what `Service::start` asks for.
unsafe impl Send for Outlives {}

impl Outlives {
    pub fn gate(&self) -> &Gate<Runtime> {
        // SAFETY: as above.
        unsafe { &*self.0 }
    }
}

impl Service {
    /// Begins to answer.
    ///
    /// # Errors
    /// There is no thread for it.
    ///
    /// # Safety
    /// `gate` is alive until the service was dropped.
    pub unsafe fn start(
        sharing: Arc<Sharing>,
        listener: UnixListener,
        gate: &Gate<Runtime>,
    ) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let gate = Outlives(gate);
        let thread = named("pipeshard-share");
        let thread = thread.spawn(move || serve(&sharing, &listener, &stopped, gate.gate()))?;
        Ok(Service {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // not only closed: a child that was forked has this end too
        let _ = self.stop.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(sharing: &Sharing, listener: &UnixListener, stopped: &UnixStream, gate: &Gate<Runtime>) {
    let mut activity = Activity {
        passes: 0,
        since: Instant::now(),
    };
    let watched = |fd: i32| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut looked = Instant::now();
    loop {
        let mut both = [watched(listener.as_raw_fd()), watched(stopped.as_raw_fd())];
        // SAFETY: two entries.
        unsafe { libc::poll(both.as_mut_ptr(), 2, EVERY_MS) };
        if both[1].revents != 0 {
            return;
        }
        while let Ok((stream, _)) = listener.accept() {
            // who asks and goes away, or asks something else, is not told
            let _ = reply(stream, PATIENCE, |question| {
                log::after(|| answer(sharing, gate, &activity, question))
            });
        }
        if looked.elapsed().as_millis() < EVERY_MS as u128 {
            continue;
        }
        looked = Instant::now();
        let (passes, budget) = {
            let runtime = gate.plain();
            let opened = runtime.accounts.device().is_some();
            let budget = if opened { runtime.accounts.budget() } else { 0 };
            (runtime.telemetry.counters.total_passes(), budget)
        };
        if passes != activity.passes {
            activity = Activity {
                passes,
                since: looked,
            };
            log::after(|| grow(sharing, gate, budget));
        }
    }
}

fn answer(
    sharing: &Sharing,
    gate: &Gate<Runtime>,
    activity: &Activity,
    question: Question,
) -> Answer {
    if let Question::ShrinkTo(bytes) = question {
        let now = gate.plain().accounts.budget();
        if bytes < now {
            if let Ok(changed) = control::change_budget(gate, bytes, Some(PATIENCE), None) {
                note(sharing, changed.now.budget);
            }
        }
    }
    let passes = gate.plain().telemetry.counters.total_passes();
    let idle = match passes == activity.passes {
        true => activity.since.elapsed(),
        false => Duration::ZERO,
    };
    let limits = control::limits(gate).ok();
    Answer {
        budget: limits.as_ref().map_or(0, |limits| limits.budget),
        minimum: limits.as_ref().map_or(0, |limits| limits.minimum),
        idle_ms: idle.as_millis() as u64,
    }
}
