//! Virtual time: one clock per stream, one for the host, and a link that carries one copy at a time in each direction.
//!
//! Times are nanoseconds since the device was made. They are computed when a command is submitted, from nothing but
//! the commands before it, so a single submitting thread always gets the same timeline, however fast the machine is.

use std::collections::BTreeMap;

/// Which way a copy goes over the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Host to device.
    Up,
    /// Device to host.
    Down,
}

/// When something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn duration(self) -> u64 {
        self.end - self.start
    }
}

/// How long `bytes` (or operations) take at `rate` per second, in nanoseconds, rounded up.
pub(super) fn transfer_ns(bytes: u64, rate: u64) -> u64 {
    let ns = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// One direction of the link: when it is taken. Neighbouring copies are one entry.
#[derive(Debug, Default)]
struct Link {
    /// Start to end; disjoint and not touching.
    busy: BTreeMap<u64, u64>,
}

impl Link {
    /// Takes the first gap of `duration` that begins at `ready` or later.
    fn take(&mut self, ready: u64, duration: u64) -> Span {
        let mut start = ready;
        if let Some((_, &end)) = self.busy.range(..=ready).next_back() {
            start = start.max(end);
        }
        for (&next_start, &next_end) in self.busy.range(start..) {
            if next_start - start >= duration {
                break;
            }
            start = next_end;
        }
        let span = Span {
            start,
            end: start.saturating_add(duration),
        };
        if duration > 0 {
            self.insert(span);
        }
        span
    }

    fn insert(&mut self, span: Span) {
        let Span { mut start, mut end } = span;
        if let Some((&before, &before_end)) = self.busy.range(..=start).next_back() {
            if before_end == start {
                start = before;
            }
        }
        if let Some(after_end) = self.busy.remove(&end) {
            end = after_end;
        }
        self.busy.insert(start, end);
    }

    /// Forgets what ended before `now`, the earliest time at which anything can still begin.
    fn forget_before(&mut self, now: u64) {
        while let Some(entry) = self.busy.first_entry() {
            if *entry.get() > now {
                break;
            }
            entry.remove();
        }
    }
}

/// All the clocks of a device.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    host: u64,
    streams: Vec<u64>,
    up: Link,
    down: Link,
}

impl Clocks {
    /// A new stream, which starts now; the answer is its number.
    pub fn add_stream(&mut self) -> usize {
        self.streams.push(self.host);
        self.streams.len() - 1
    }

    pub fn host(&self) -> u64 {
        self.host
    }

    pub fn stream(&self, stream: usize) -> u64 {
        self.streams[stream]
    }

    /// The last moment at which anything that was submitted is still running.
    pub fn end(&self) -> u64 {
        self.streams.iter().copied().fold(self.host, u64::max)
    }

    /// The host works for itself.
    pub fn advance_host(&mut self, ns: u64) {
        self.host_until(self.host.saturating_add(ns));
    }

    /// The host waits for a moment; how long that took.
    pub fn host_until(&mut self, moment: u64) -> u64 {
        let waited = moment.saturating_sub(self.host);
        self.host += waited;
        self.up.forget_before(self.host);
        self.down.forget_before(self.host);
        waited
    }

    /// A copy over the link, in a stream's order.
    pub fn copy(&mut self, stream: usize, direction: Direction, duration: u64) -> Span {
        let ready = self.streams[stream].max(self.host);
        let span = self.link(direction).take(ready, duration);
        self.streams[stream] = span.end;
        span
    }

    /// A copy over the link for which the host waits, in no stream's order.
    pub fn host_copy(&mut self, direction: Direction, duration: u64) -> Span {
        let ready = self.host;
        let span = self.link(direction).take(ready, duration);
        self.host_until(span.end);
        span
    }

    /// Work of a stream that needs nothing but the device.
    pub fn work(&mut self, stream: usize, duration: u64) -> Span {
        let start = self.streams[stream].max(self.host);
        let end = start.saturating_add(duration);
        self.streams[stream] = end;
        Span { start, end }
    }

    /// The moment at which what a stream was given so far is done.
    pub fn record(&self, stream: usize) -> u64 {
        self.streams[stream].max(self.host)
    }

    /// A stream does not go on before `moment`.
    pub fn wait(&mut self, stream: usize, moment: u64) {
        self.streams[stream] = self.streams[stream].max(moment);
    }

    fn link(&mut self, direction: Direction) -> &mut Link {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_follow_from_rates() {
        assert_eq!(transfer_ns(25_000_000_000, 25_000_000_000), 1_000_000_000);
        assert_eq!(transfer_ns(1, 25_000_000_000), 1);
        assert_eq!(transfer_ns(0, 5), 0);
        assert_eq!(transfer_ns(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn streams_overlap_but_copies_of_one_direction_do_not() {
        let mut clocks = Clocks::default();
        let (a, b) = (clocks.add_stream(), clocks.add_stream());
        let first = clocks.copy(a, Direction::Up, 100);
        let second = clocks.copy(b, Direction::Up, 50);
        let back = clocks.copy(b, Direction::Down, 30);
        assert_eq!(first, Span { start: 0, end: 100 });
        assert_eq!(
            second,
            Span {
                start: 100,
                end: 150
            }
        );
        assert_eq!(
            back,
            Span {
                start: 150,
                end: 180
            }
        );
        let other_way = clocks.copy(a, Direction::Down, 20);
        assert_eq!(
            other_way,
            Span {
                start: 100,
                end: 120
            }
        );
        assert_eq!(
            clocks.work(a, 10),
            Span {
                start: 120,
                end: 130
            }
        );
        assert_eq!(clocks.end(), 180);
    }

    #[test]
    fn a_copy_that_must_wait_does_not_hold_the_link() {
        let mut clocks = Clocks::default();
        let (lane, other) = (clocks.add_stream(), clocks.add_stream());
        clocks.wait(lane, 1_000);
        assert_eq!(clocks.copy(lane, Direction::Up, 100).start, 1_000);
        assert_eq!(
            clocks.copy(other, Direction::Up, 400),
            Span { start: 0, end: 400 }
        );
        assert_eq!(
            clocks.copy(other, Direction::Up, 700),
            Span {
                start: 1_100,
                end: 1_800
            }
        );
    }

    #[test]
    fn waiting_moves_the_host_and_never_backwards() {
        let mut clocks = Clocks::default();
        let stream = clocks.add_stream();
        clocks.work(stream, 500);
        assert_eq!(clocks.host_until(clocks.record(stream)), 500);
        assert_eq!(clocks.host_until(200), 0);
        clocks.advance_host(100);
        assert_eq!(clocks.host(), 600);
        let idle = clocks.add_stream();
        clocks.advance_host(50);
        let copy = clocks.copy(idle, Direction::Down, 5);
        assert_eq!(copy.start, 650, "nothing begins before it is submitted");
        assert_eq!(
            clocks.work(stream, 10),
            Span {
                start: 650,
                end: 660
            }
        );
        assert_eq!(
            clocks.host_copy(Direction::Up, 40),
            Span {
                start: 650,
                end: 690
            }
        );
        assert_eq!(clocks.host(), 690);
        assert_eq!(clocks.stream(stream), 660);
        let late = clocks.add_stream();
        assert_eq!(clocks.record(late), 690);
    }

    proptest! {
        #[test]
        fn the_link_is_never_taken_twice(copies in proptest::collection::vec((0u64..500, 0u64..60), 1..60)) {
            let mut link = Link::default();
            let mut spans: Vec<Span> = Vec::new();
            for (ready, duration) in copies {
                let span = link.take(ready, duration);
                prop_assert!(span.start >= ready);
                prop_assert_eq!(span.duration(), duration);
                for other in &spans {
                    let apart = span.end <= other.start || other.end <= span.start;
                    prop_assert!(apart || duration == 0 || other.duration() == 0, "{:?} {:?}", span, other);
                }
                spans.push(span);
            }
            let taken: u64 = link.busy.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(taken, spans.iter().map(|s| s.duration()).sum::<u64>());
        }
    }
}
