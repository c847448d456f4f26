//! The copy lane: what it has been given, in order, and when it was done.

use super::table::{at, or};
use crate::profile::Profile;
use std::collections::VecDeque;

/// A queue of copies with a clock of its own, in seconds.
#[derive(Debug)]
pub(super) struct Lane {
    clock: f64,
    /// Index and bytes that are left.
    queue: VecDeque<(usize, f64)>,
    waiting: f64,
    rate: f64,
    rate_cpu_busy: f64,
    /// Whether each copy was submitted, and when it was done, by index.
    done: Vec<(bool, Option<f64>)>,
    /// Seconds that copies have taken so far.
    pub busy: f64,
}

impl Lane {
    /// A lane for copies `0..count`.
    pub fn new(profile: &Profile, count: usize) -> Self {
        let link = &profile.link;
        let rate = or(link.pinned.median, f64::INFINITY);
        let busy = or(link.pinned_cpu_busy.median, rate);
        Lane {
            clock: 0.0,
            queue: VecDeque::new(),
            waiting: 0.0,
            rate,
            rate_cpu_busy: busy.min(rate),
            done: vec![(false, None); count],
            busy: 0.0,
        }
    }

    /// What is in place from the start.
    pub fn in_place(&mut self, copy: usize) {
        self.done[copy] = (true, Some(0.0));
    }

    /// How many copies it can be given.
    pub fn count(&self) -> usize {
        self.done.len()
    }

    pub fn submit(&mut self, copy: usize, bytes: f64, now: f64) {
        if self.queue.is_empty() {
            self.clock = self.clock.max(now);
        }
        self.done[copy].0 = true;
        self.queue.push_back((copy, bytes));
        self.waiting += bytes;
    }

    /// Whether the copy has been submitted, or is in place.
    pub fn has(&self, copy: usize) -> bool {
        self.done[copy].0
    }

    /// Seconds that the lane will be busy from `now` on while the CPU computes.
    pub fn backlog(&self) -> f64 {
        at(self.waiting, self.rate_cpu_busy)
    }

    /// Time goes on to `to`; `cpu_busy`: the CPU computes meanwhile.
    pub fn advance(&mut self, to: f64, cpu_busy: bool) {
        let rate = if cpu_busy {
            self.rate_cpu_busy
        } else {
            self.rate
        };
        while self.clock < to {
            let Some((copy, left)) = self.queue.front_mut() else {
                self.clock = to;
                return;
            };
            let needed = *left / rate;
            if self.clock + needed <= to {
                self.clock += needed;
                self.busy += needed;
                self.waiting -= *left;
                self.done[*copy].1 = Some(self.clock);
                self.queue.pop_front();
            } else {
                let moved = (to - self.clock) * rate;
                *left -= moved;
                self.waiting -= moved;
                self.busy += to - self.clock;
                self.clock = to;
            }
        }
        if self.queue.is_empty() {
            self.waiting = 0.0;
        }
    }

    /// The link is somebody else's from `now` on for so long.
    pub fn hold(&mut self, now: f64, seconds: f64) {
        self.clock = self.clock.max(now) + seconds;
        self.busy += seconds;
    }

    /// When the copy is done, the CPU waiting for it. Copies before it are, too.
    pub fn finish(&mut self, copy: usize) -> f64 {
        while self.done[copy].1.is_none() {
            let Some(&(_, left)) = self.queue.front() else {
                break;
            };
            // a little beyond, lest rounding leave a rest
            let to = self.clock + left / self.rate;
            self.advance(to + to * f64::EPSILON + f64::MIN_POSITIVE, false);
        }
        self.done[copy].1.unwrap_or(self.clock)
    }
}
