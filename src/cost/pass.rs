//! Passes, one after the other, on the lanes that a run has.

use super::lane::Lane;
use super::steps::{Rows, Work};
use super::table::{at, or, Costs};
use super::types::{Limit, PassCost, PassShape};
use crate::inventory::expected_distinct;
use crate::plan::{Placement, Plan, Tier, UnitClass};
use crate::profile::{Op, Processor};
use std::collections::VecDeque;

/// Seconds that the host takes to decide whether a token may look at a cell, when it fills the mask.
pub(super) const MASK_LOOK: f64 = 4e-9;
/// Seconds that the host takes for an element of an embedding, which one thread looks up.
pub(super) const EMBEDDING_ELEMENT: f64 = 1.1e-9;
/// Bytes of a logit.
const LOGIT: f64 = 4.0;

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

/// A step under a plan.
#[derive(Debug, Clone, Copy)]
struct Act {
    on: Processor,
    /// Seconds while nothing else goes on.
    seconds: f64,
    /// Seconds while the copy lane is busy.
    copy_busy: f64,
    /// Position of the streamed group that it reads.
    group: Option<u32>,
    /// Elements per token that it takes and leaves, and the tokens.
    takes: f64,
    leaves: f64,
    rows: u32,
    /// Positions before this one are not read any more once it is over.
    released: u32,
}

/// A streamed group under a plan.
#[derive(Debug, Clone, Copy)]
struct Copy {
    bytes: f64,
    /// How many copies before it one has the same place; none if it has its place to itself.
    behind: Option<usize>,
    /// It lies in the ring when a pass begins whose copies had time.
    first_lap: bool,
    /// It can be copied only when the router of this layer has been computed.
    choice: Option<u32>,
}

/// A pass under a plan.
struct Script {
    acts: Vec<Act>,
    copies: Vec<Copy>,
    /// Seconds of the host before a pass.
    before: f64,
    /// Seconds behind its last step.
    behind: f64,
    /// The last act that the host waits for.
    blocks: Option<usize>,
    /// The host waits for the result.
    wants_result: bool,
    /// Bytes that the CPU reads.
    cpu_bytes: f64,
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

    /// Decides what a run's hook would decide, and looks up what it takes.
    fn script(&self, plan: &Plan, shape: PassShape) -> Script {
        let rows = shape.rows.max(1);
        let all = plan.tier(rows);
        let few = plan.tier(shape.outputs.clamp(1, rows));
        let streaming = all.is_some_and(|t| t.placements.contains(&Placement::Streamed));
        let mut group_of = vec![None; plan.units.len()];
        for (group, held) in plan.ring.groups.iter().enumerate() {
            for (id, _) in &held.units {
                if let Some(of) = group_of.get_mut(id.index()) {
                    *of = Some(group);
                }
            }
        }
        let mut position_of: Vec<Option<u32>> = vec![None; plan.ring.groups.len()];
        let mut used: Vec<usize> = Vec::new();
        let mut copies: Vec<Copy> = Vec::new();
        let mut acts: Vec<Act> = Vec::with_capacity(self.steps.steps.len());
        let mut cpu_bytes = 0.0;
        let mut head_on_device = false;
        for step in &self.steps.steps {
            let sees = match step.rows {
                Rows::All => rows,
                Rows::Outputs => shape.outputs.min(rows),
            };
            let mut group = None;
            let (on, times) = match step.work {
                Work::Small => (Processor::Gpu, None),
                Work::Attention { layer, kind } => {
                    let host = plan.kv.iter().any(|kv| kv.layer == layer && !kv.device);
                    let times = self.attend(kind, sees, shape.sequences, shape.cells);
                    (processor(host), Some(times))
                }
                Work::Weights { unit, op } => {
                    let unit = unit as usize;
                    let class = plan.units.get(unit).map(|unit| unit.class);
                    let dense =
                        matches!(class, Some(UnitClass::Attention | UnitClass::FeedForward));
                    let tier = match (step.rows, dense && streaming) {
                        (Rows::Outputs, false) => few,
                        _ => all,
                    };
                    let placement = placement(tier, class, unit);
                    let held = group_of.get(unit).copied().flatten();
                    // what is kept lies where the tier streams nothing
                    let copied = placement == Placement::Streamed;
                    let host = placement == Placement::Host || (copied && held.is_none());
                    if let (true, Some(held)) = (copied && !host, held) {
                        let share = self.chosen(tier, placement, op, sees);
                        let choice = share.and(step.layer);
                        let position = *position_of[held].get_or_insert_with(|| {
                            let bytes = plan.ring.groups[held].units.iter();
                            let bytes = bytes.map(|(id, _)| plan.units[id.index()].bytes as f64);
                            copies.push(Copy {
                                bytes: bytes.sum::<f64>() * share.unwrap_or(1.0),
                                behind: None,
                                first_lap: false,
                                choice,
                            });
                            used.push(held);
                            used.len() as u32 - 1
                        });
                        group = Some(position);
                    }
                    if class == Some(UnitClass::Output) {
                        head_on_device = !host;
                    }
                    (processor(host), Some(self.product(op, sees)))
                }
            };
            if sees == 0 && group.is_none() {
                continue;
            }
            let small = self.small(on, step.small, step.leaves, sees);
            let seconds = |alone: f64| if sees == 0 { 0.0 } else { alone + small };
            let times = times.unwrap_or_default();
            if on == Processor::Cpu {
                cpu_bytes += times.bytes;
            }
            acts.push(Act {
                on,
                seconds: seconds(times.on(on)),
                copy_busy: seconds(match on {
                    Processor::Cpu => times.cpu_copy_busy,
                    Processor::Gpu => times.gpu,
                }),
                group,
                takes: step.takes,
                leaves: step.leaves,
                rows: sees,
                released: 0,
            });
        }
        release(&mut acts, copies.len());
        lay_out(&mut copies, &used, plan);
        let outputs = f64::from(shape.outputs.min(rows));
        let logits = outputs * f64::from(self.model.inventory.vocabulary_size) * LOGIT;
        let link = &self.profile.link;
        let blocks = |act: &Act| act.on == Processor::Cpu;
        Script {
            blocks: acts.iter().rposition(|act| {
                let chooses = act
                    .group
                    .is_some_and(|at| copies[at as usize].choice.is_some());
                blocks(act) || chooses
            }),
            before: self.before(shape),
            behind: match head_on_device {
                true => at(logits, or(link.back.median, link.pinned.median)),
                false => 0.0,
            },
            wants_result: shape.outputs > 0,
            cpu_bytes,
            copies,
            acts,
        }
    }

    /// Seconds of the host before a pass: the graph, the mask, the embeddings.
    pub(super) fn before(&self, shape: PassShape) -> f64 {
        let (rows, sequences) = (f64::from(shape.rows), f64::from(shape.sequences.max(1)));
        let own = rows / sequences;
        let looks = match self.model.inventory.kv.layers.is_empty() {
            true => 0.0,
            // the first token of a sequence is compared with all cells, the others with those of their batch
            false => sequences * shape.cells as f64 + rows * own,
        };
        let width = f64::from(self.model.inventory.embedding_length);
        let embedded = rows * width;
        let moved = at(embedded * 4.0, self.profile.link.pinned.median);
        self.profile.overheads.pass.median
            + looks * MASK_LOOK
            + embedded * EMBEDDING_ELEMENT
            + moved
    }

    /// The share of its experts that an operation fetches, where it fetches only those that were chosen.
    fn chosen(&self, tier: Option<&Tier>, placement: Placement, op: u16, rows: u32) -> Option<f64> {
        let Op::Experts { experts, used, .. } = self.steps.ops[usize::from(op)] else {
            return None;
        };
        let chosen = placement == Placement::Streamed
            && tier.is_some_and(|tier| tier.fetches_chosen(experts, used, rows));
        let distinct = expected_distinct(experts, used, rows) / f64::from(experts.max(1));
        chosen.then_some(distinct)
    }

    /// Runs so many passes, and says what the last of them took from the end of the one before.
    fn run(&self, script: &Script, passes: usize, start: Start) -> PassCost {
        let mut lanes = Lanes {
            lane: Lane::new(self.profile, script.copies.len() * passes),
            copies: &script.copies,
            next: 0,
            announced: script.copies.len(),
            unread: 0,
            chosen: VecDeque::new(),
            clock: 0.0,
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
                        lanes.until(lanes.clock + act.seconds, false);
                        cost.gpu += act.seconds;
                    }
                    Processor::Cpu => cost.cpu += lanes.compute_on_cpu(act),
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
        cost.bytes_streamed = streamed.round() as u64;
        self.bound(&mut cost, script, streamed);
        cost
    }

    fn bound(&self, cost: &mut PassCost, script: &Script, streamed: f64) {
        let (link, memory) = (&self.profile.link, &self.profile.memory);
        let rate = or(link.pinned.median, f64::INFINITY);
        let together = or(link.pinned_cpu_busy.median, link.pinned.median)
            + or(memory.cpu_copy_busy.median, memory.cpu.median);
        let dram = together.max(memory.cpu.median).max(link.pinned.median);
        let cpu_alone: f64 = script
            .acts
            .iter()
            .filter(|act| act.on == Processor::Cpu)
            .map(|act| act.seconds)
            .sum();
        // where two are equal the later one is named
        let least = [
            (Limit::Dram, at(streamed + script.cpu_bytes, dram)),
            (Limit::Cpu, cpu_alone),
            (Limit::Link, streamed / rate),
            (Limit::Gpu, cost.gpu),
        ];
        let most = least.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let (limit, bound) = most.unwrap_or((Limit::Gpu, 0.0));
        cost.limit = limit;
        // what begins before a pass ends with it: no sequence of passes outruns its copies
        cost.seconds = cost.seconds.max(streamed / rate);
        cost.bound = bound.min(cost.seconds);
    }
}

fn processor(host: bool) -> Processor {
    match host {
        true => Processor::Cpu,
        false => Processor::Gpu,
    }
}

fn placement(tier: Option<&Tier>, class: Option<UnitClass>, unit: usize) -> Placement {
    match class {
        Some(UnitClass::Small) => Placement::Resident,
        _ => tier
            .and_then(|tier| tier.placements.get(unit).copied())
            .unwrap_or(Placement::Host),
    }
}

/// Notes after which step each group has been read for the last time.
fn release(acts: &mut [Act], groups: usize) {
    let mut last = vec![0; groups];
    for (index, act) in acts.iter().enumerate() {
        if let Some(group) = act.group {
            last[group as usize] = index;
        }
    }
    let mut released = 0;
    for (index, act) in acts.iter_mut().enumerate() {
        while released < groups && last[released] <= index {
            released += 1;
        }
        act.released = released as u32;
    }
}

/// Which groups share a place: copies run in a cycle, the next pass's behind this one's.
fn lay_out(copies: &mut [Copy], used: &[usize], plan: &Plan) {
    let count = used.len();
    let place = |at: usize| {
        let group = &plan.ring.groups[used[at % count]];
        (group.offset, group.offset + group.bytes)
    };
    let mut first_lap = true;
    for (at, copy) in copies.iter_mut().enumerate() {
        let (begin, end) = place(at);
        let shares = |&back: &usize| {
            let (from, to) = place(at + count - back);
            begin < to && from < end
        };
        copy.behind = (1..count).find(shares);
        first_lap &= copy.behind.is_none_or(|back| back > at);
        copy.first_lap = first_lap;
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
        self.until(self.clock + seconds, true);
        seconds
    }
}
