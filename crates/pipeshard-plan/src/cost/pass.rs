//! Passes, one after the other, on the lanes that a run has.

use super::lane::Lane;
use super::script::{Act, Copy, Script};
use super::table::{at, or, Costs};
use super::types::{Limit, PassCost, PassShape};
use crate::plan::Plan;
use crate::profile::Processor;
use std::collections::VecDeque;

const NOTHING: PassCost = PassCost {
    seconds: 0.0,
    gpu: 0.0,
    cpu: 0.0,
    link: 0.0,
    hand_overs: 0,
    hand_over_seconds: 0.0,
    bytes_streamed: 0,
    bound: 0.0,
    limit: Limit::Gpu,
};

/// What lies in the ring when the first pass begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// What fits, from the pass's first group on: the link had time for it.
    Filled,
    /// Nothing.
    #[cfg_attr(not(test), allow(dead_code))]
    Empty,
}

impl Costs<'_> {
    /// What a pass costs under a plan, if another like it ran before: what the ring holds at its beginning was copied then,
    /// and the copies for the next one begin in it.
    pub fn pass(&self, plan: &Plan, shape: PassShape) -> PassCost {
        let script = self.script(plan, shape);
        let passes = if script.copies.is_empty() { 1 } else { 2 };
        self.run(&script, passes, Start::Filled)
    }

    /// What a pass costs that has the ring to itself, and begins with it as `start` says.
    pub(super) fn first_pass(&self, plan: &Plan, shape: PassShape, start: Start) -> PassCost {
        self.run(&self.script(plan, shape), 1, start)
    }

    /// Runs so many passes, and says what the last of them took from the end of the one before.
    fn run(&self, script: &Script, passes: usize, start: Start) -> PassCost {
        let mut lanes = Lanes {
            lane: Lane::new(&self.profile, script.copies.len() * passes),
            copies: &script.copies,
            next: 0,
            announced: script.copies.len(),
            unread: 0,
            chosen: VecDeque::new(),
            clock: 0.0,
            cpu_over: 0.0,
            wake: self.profile.overheads.cpu_wake.median,
            rest: self.profile.host.rest,
        };
        let ahead = |copy: &Copy| start == Start::Filled && copy.first_lap && copy.choice.is_none();
        for (at, _) in script.copies.iter().enumerate().filter(|(_, c)| ahead(c)) {
            lanes.lane.in_place(at);
        }
        let mut cost = NOTHING;
        let mut host_free = 0.0;
        let mut ended = 0.0;
        for pass in 0..passes {
            let base = pass * script.copies.len();
            cost = NOTHING;
            let (began, busy) = (lanes.clock, lanes.lane.busy);
            lanes.fill();
            let begins = (host_free + script.before).max(lanes.clock);
            lanes.until(begins, false);
            if script.blocks.is_none() {
                host_free = began.max(host_free);
                lanes.announced = base + 2 * script.copies.len();
                lanes.fill();
            }
            let mut last = (Processor::Gpu, 0.0);
            let mut routed = None;
            for (index, act) in script.acts.iter().enumerate() {
                let (before, left) = last;
                if act.on != before && act.rows > 0 {
                    let elements = act.takes.max(left);
                    let seconds = self.hand_over(act.on, elements, act.rows);
                    cost.hand_overs += 1;
                    cost.hand_over_seconds += seconds;
                    lanes.until(lanes.clock + seconds, false);
                }
                if let Some(group) = act.group {
                    let copy = script.copies[group as usize];
                    if copy.choice.is_some() && copy.choice != routed {
                        routed = copy.choice;
                        if lanes.missing(base + group as usize) {
                            let seconds = self.profile.overheads.to_cpu.median;
                            cost.hand_over_seconds += seconds;
                            lanes.until(lanes.clock + seconds, false);
                        }
                        lanes.choose(base, routed);
                    }
                    lanes.read(base + group as usize);
                }
                match act.on {
                    Processor::Gpu => {
                        lanes.lane.hold(lanes.clock, act.link);
                        lanes.until(lanes.clock + act.seconds, false);
                        cost.gpu += act.seconds;
                    }
                    Processor::Cpu => {
                        cost.cpu += lanes.compute_on_cpu(act) - act.device;
                        cost.gpu += act.device;
                    }
                }
                lanes.unread = base + act.released as usize;
                if act.rows > 0 {
                    last = (act.on, act.leaves);
                }
                if script.blocks == Some(index) {
                    host_free = lanes.clock;
                    lanes.announced = base + 2 * script.copies.len();
                }
                if act.group.is_some() || script.blocks == Some(index) {
                    lanes.fill();
                }
            }
            lanes.until(lanes.clock + script.behind, false);
            if script.wants_result {
                host_free = lanes.clock;
            }
            cost.seconds = lanes.clock - ended;
            cost.link = lanes.lane.busy - busy;
            ended = lanes.clock;
        }
        let moved = script.copies.iter().filter(|copy| match passes {
            1 => !ahead(copy),
            _ => copy.behind.is_some(),
        });
        let streamed: f64 = moved.map(|copy| copy.bytes).sum();
        cost.link += at(script.fetched_bytes, self.profile.link.pinned.median);
        let streamed = streamed + script.fetched_bytes;
        cost.bytes_streamed = streamed.round() as u64;
        self.bound(&mut cost, script, streamed + script.host_kv_bytes);
        cost
    }

    /// `moved`: bytes that cross the link, of weights and of KV cache.
    fn bound(&self, cost: &mut PassCost, script: &Script, moved: f64) {
        let (link, memory) = (&self.profile.link, &self.profile.memory);
        let rate = or(link.pinned.median, f64::INFINITY);
        let together = or(link.pinned_cpu_busy.median, link.pinned.median)
            + or(memory.cpu_copy_busy.median, memory.cpu.median);
        let dram = together.max(memory.cpu.median).max(link.pinned.median);
        let cpu_alone: f64 = script
            .acts
            .iter()
            .filter(|act| act.on == Processor::Cpu)
            .map(|act| act.seconds - act.device)
            .sum();
        // where two are equal the later one is named
        let least = [
            (Limit::Dram, at(moved + script.cpu_bytes, dram)),
            (Limit::Cpu, cpu_alone),
            (Limit::Link, moved / rate),
            (Limit::Gpu, cost.gpu),
        ];
        let most = least.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let (limit, bound) = most.unwrap_or((Limit::Gpu, 0.0));
        cost.limit = limit;
        // what begins before a pass ends with it: no sequence of passes outruns its copies
        cost.seconds = cost.seconds.max(moved / rate);
        cost.bound = bound.min(cost.seconds);
    }
}

/// The lanes in the middle of a run. Copies are numbered through all passes.
struct Lanes<'s> {
    lane: Lane,
    copies: &'s [Copy],
    /// The copy that is submitted next, but for those whose choice is awaited.
    next: usize,
    /// Copies from here on are not asked for yet.
    announced: usize,
    /// Copies from here on are still to be read.
    unread: usize,
    /// Copies whose experts are known, and which have no place yet.
    chosen: VecDeque<usize>,
    clock: f64,
    /// When the CPU computed last.
    cpu_over: f64,
    /// Seconds more that it takes behind a rest.
    wake: f64,
    /// Seconds without work that are a rest.
    rest: f64,
}

impl Lanes<'_> {
    fn copy(&self, at: usize) -> &Copy {
        &self.copies[at % self.copies.len()]
    }

    fn until(&mut self, time: f64, cpu_busy: bool) {
        self.lane.advance(time, cpu_busy);
        self.clock = time;
    }

    /// Whether the copy has to be made: it is not in place, from this pass or an earlier one.
    fn missing(&self, at: usize) -> bool {
        let stays = self.copy(at).behind.is_none() && at >= self.copies.len();
        !stays && !self.lane.has(at)
    }

    /// Whether its place still holds what is to be read.
    fn blocked(&self, at: usize) -> bool {
        let behind = self.copy(at).behind;
        behind.is_some_and(|back| at >= back && at - back >= self.unread)
    }

    fn submit(&mut self, at: usize) {
        let bytes = self.copy(at).bytes;
        self.lane.submit(at, bytes, self.clock);
    }

    /// Submits copies as far ahead as places are free.
    fn fill(&mut self) {
        while let Some(&at) = self.chosen.front() {
            if self.missing(at) {
                if self.blocked(at) {
                    return;
                }
                self.submit(at);
            }
            self.chosen.pop_front();
        }
        let most = self.announced.min(self.lane.count());
        while self.next < most {
            let at = self.next;
            if self.copy(at).choice.is_none() && self.missing(at) {
                if self.blocked(at) {
                    return;
                }
                self.submit(at);
            }
            self.next += 1;
        }
    }

    /// The router of a layer has been computed.
    fn choose(&mut self, base: usize, layer: Option<u32>) {
        for (at, copy) in self.copies.iter().enumerate() {
            if copy.choice == layer {
                self.chosen.push_back(base + at);
            }
        }
        self.fill();
    }

    /// The device waits until the group is in place.
    fn read(&mut self, at: usize) {
        if self.missing(at) {
            self.submit(at);
        }
        if self.lane.has(at) {
            let done = self.lane.finish(at);
            self.until(done.max(self.clock), false);
        }
    }

    /// The CPU computes, slower for as long as the copy lane is busy. Returns the seconds.
    fn compute_on_cpu(&mut self, act: &Act) -> f64 {
        let backlog = self.lane.backlog();
        let seconds = match backlog {
            _ if act.copy_busy <= backlog => act.copy_busy,
            _ if backlog > 0.0 => backlog + act.seconds * (1.0 - backlog / act.copy_busy),
            _ => act.seconds,
        };
        let seconds = match self.clock - self.cpu_over >= self.rest {
            true => seconds + self.wake,
            false => seconds,
        };
        self.until(self.clock + seconds, true);
        self.cpu_over = self.clock;
        seconds
    }
}
