//! A pass under a plan, before it runs: what is computed where, what is copied, in which order.

use super::steps::{OpId, Rows, Step, Work};
use super::table::{at, or, Costs, Times};
use super::types::PassShape;
use crate::constants::graph::{MANY_EMBEDDINGS, MANY_TOKENS, STORES};
use crate::plan::{Placement, Plan, Tier, UnitClass};
use crate::profile::{Op, Processor};
use pipeshard_model::inventory::{expected_distinct, DType};

/// Bytes of a logit.
const LOGIT: f64 = 4.0;

/// A step under a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act {
    pub on: Processor,
    /// Seconds while nothing else goes on.
    pub seconds: f64,
    /// Seconds while the copy lane is busy.
    pub copy_busy: f64,
    /// Of these, seconds in which it copies KV cache and has the link to itself.
    pub link: f64,
    /// Of these, seconds in which the device computes its share behind the CPU's.
    pub device: f64,
    /// Position of the streamed group that it reads.
    pub group: Option<u32>,
    /// Elements per token that it takes and leaves, and the tokens.
    pub takes: f64,
    pub leaves: f64,
    pub rows: u32,
    /// Positions before this one are not read any more once it is over.
    pub released: u32,
}

/// A streamed group under a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    pub bytes: f64,
    /// How many copies before it one has the same place; none if it has its place to itself.
    pub behind: Option<usize>,
    /// It lies in the ring when a pass begins whose copies had time.
    pub first_lap: bool,
    /// It can be copied only when the router of this layer has been computed.
    pub choice: Option<u32>,
}

/// A pass under a plan.
pub(super) struct Script {
    pub acts: Vec<Act>,
    pub copies: Vec<Copy>,
    /// Seconds of the host before a pass.
    pub before: f64,
    /// Seconds behind its last step.
    pub behind: f64,
    /// The last act that the host waits for.
    pub blocks: Option<usize>,
    /// The host waits for the result.
    pub wants_result: bool,
    /// Bytes that the CPU reads.
    pub cpu_bytes: f64,
    /// Bytes of experts that the device fetches while the CPU computes others.
    pub fetched_bytes: f64,
    /// Bytes of KV cache that are copied from host memory.
    pub host_kv_bytes: f64,
}

/// A step whose experts are computed by both processors.
struct Shared {
    seconds: f64,
    device: f64,
    fetched_bytes: f64,
    cpu_bytes: f64,
}

impl Costs<'_> {
    /// Decides what a run's hook would decide, and looks up what it takes.
    pub(super) fn script(&self, plan: &Plan, shape: PassShape) -> Script {
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
        let (mut cpu_bytes, mut fetched_bytes, mut host_kv_bytes) = (0.0, 0.0, 0.0);
        let by_both = plan.shared_with_device(rows);
        let mut head_on_device = false;
        for step in &self.steps.steps {
            let sees = match step.rows {
                Rows::All => rows,
                Rows::Outputs => shape.outputs.min(rows),
            };
            let mut group = None;
            let mut shared = None;
            let mut link = 0.0;
            let mut takes = step.takes;
            let (on, times) = match step.work {
                Work::Small => (Processor::Gpu, None),
                Work::Attention { layer, kind } => {
                    let host = plan.kv.iter().any(|kv| kv.layer == layer && !kv.device);
                    let mut times = self.attend(kind, sees, shape.sequences, shape.kv_tokens);
                    let copied = host && sees >= plan.host_kv_min_rows;
                    if copied && sees > 0 {
                        link = self.kv_copied(times);
                        times.gpu += link;
                        host_kv_bytes += times.kv_bytes;
                        acts.push(self.store(step, sees));
                        takes = 0.0;
                    }
                    (processor(host && !copied), Some(times))
                }
                Work::Weights { unit, op } => {
                    let unit = unit as usize;
                    let class = plan.units.get(unit).map(|unit| unit.class);
                    let of_layer = class != Some(UnitClass::Output);
                    let tier = match (step.rows, of_layer && streaming) {
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
                    let times = self.product(op, sees);
                    if host && by_both.get(unit).copied().unwrap_or(false) {
                        shared = self.by_both(op, times, plan.fetched_for(sees), sees);
                    }
                    (processor(host), Some(times))
                }
            };
            if sees == 0 && group.is_none() {
                continue;
            }
            let small = self.small(on, step.small, step.leaves, sees);
            let seconds = |alone: f64| if sees == 0 { 0.0 } else { alone + small };
            let times = times.unwrap_or_default();
            if on == Processor::Cpu {
                cpu_bytes += shared.as_ref().map_or(times.bytes, |s| s.cpu_bytes);
            }
            fetched_bytes += shared.as_ref().map_or(0.0, |s| s.fetched_bytes);
            let (alone, busy) = match (&shared, on) {
                (Some(shared), _) => (shared.seconds, shared.seconds),
                (None, Processor::Cpu) => (times.cpu, times.cpu_copy_busy),
                (None, Processor::Gpu) => (times.gpu, times.gpu),
            };
            acts.push(Act {
                on,
                seconds: seconds(alone),
                copy_busy: seconds(busy),
                link,
                device: shared.map_or(0.0, |shared| shared.device),
                group,
                takes,
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
            fetched_bytes,
            host_kv_bytes,
            copies,
            acts,
        }
    }

    /// An operation on the experts of each of `rows` tokens, of which the device fetches so many for a token: the link and the CPU
    /// read host memory side by side.
    fn by_both(&self, op: OpId, times: Times, fetched: u32, rows: u32) -> Option<Shared> {
        let Op::Experts { experts, used, .. } = self.steps.ops[usize::from(op)] else {
            return None;
        };
        let fetched = fetched.min(used.checked_sub(1)?);
        if fetched == 0 {
            return None;
        }
        let whole = expected_distinct(experts, used, rows).max(f64::MIN_POSITIVE);
        // what several tokens choose alike is fetched, or read, once for them
        let copies = expected_distinct(experts, fetched, rows);
        let rest = expected_distinct(experts, used - fetched, rows) / whole;
        let share = f64::from(fetched) / f64::from(used);
        let link = &self.profile.link;
        let fetched_bytes = times.bytes * copies / whole;
        let link = at(
            fetched_bytes,
            or(link.pinned_cpu_busy.median, link.pinned.median),
        );
        // slower while the link reads as well, and as always behind that
        let (alone, busy) = (times.cpu, times.cpu_copy_busy.max(times.cpu));
        let (alone, busy) = (alone * rest, busy * rest);
        let both = match busy > link {
            true => link + (1.0 - link / busy) * alone,
            false => link,
        };
        Some(Shared {
            seconds: (copies / 2.0).ceil() * self.profile.host.submit_experts
                + both
                + times.gpu * share,
            device: times.gpu * share,
            fetched_bytes,
            cpu_bytes: times.bytes * rest,
        })
    }

    /// Seconds to copy the KV cache that an attention is given from host memory.
    fn kv_copied(&self, times: Times) -> f64 {
        at(times.kv_bytes, self.profile.link.pinned.median)
    }

    /// What the CPU does before KV cache in host memory is copied for `attention`: it stores the batch's keys and values there.
    fn store(&self, attention: &Step, rows: u32) -> Act {
        // what attention takes besides are queries, as many as it leaves
        let stored = attention.takes - attention.leaves;
        let host = &self.profile.host;
        let floats = STORES * host.store_row + host.store_float * stored;
        let seconds = STORES * self.profile.overheads.cpu_op.median + floats * f64::from(rows);
        Act {
            on: Processor::Cpu,
            seconds,
            copy_busy: seconds,
            link: 0.0,
            device: 0.0,
            group: None,
            takes: stored,
            leaves: 0.0,
            rows,
            released: 0,
        }
    }

    /// From how many tokens on the device attends to `kv_tokens` tokens of each sequence in host memory, which are copied for it: 1, 2
    /// or `u32::MAX`. llama.cpp reserves compute buffers for a full ubatch and for a token of each sequence, so where the CPU
    /// is faster with few tokens only those of a single sequence may be left to it.
    pub(crate) fn device_attends_from(&self, kv_tokens: u64, sequences: u32) -> u32 {
        let faster = |rows: u32| {
            (0..self.steps.caches.len()).all(|kind| {
                let times = self.attend(kind as u16, rows, 1, kv_tokens);
                times.gpu + self.kv_copied(times) <= times.cpu
            })
        };
        match (faster(MANY_TOKENS), sequences > 1 || faster(1)) {
            (false, _) => u32::MAX,
            (true, true) => 1,
            (true, false) => 2,
        }
    }

    /// The most experts that a token chooses in a layer.
    pub(crate) fn experts_used(&self) -> u32 {
        let ops = self.steps.ops.iter();
        let used = ops.filter_map(|op| match op {
            Op::Experts { used, .. } => Some(*used),
            _ => None,
        });
        used.max().unwrap_or(0)
    }

    /// Tokens whose experts may be divided between the CPU and the device without a change of any bit, at most.
    pub(crate) fn divisible_rows(&self) -> u32 {
        let ops = self.steps.ops.iter();
        let rows = ops.filter_map(|op| match op {
            Op::Experts { type_name, .. } => Some(DType::from_name(type_name)?.rows_one_by_one()),
            _ => None,
        });
        rows.min().unwrap_or(u32::MAX)
    }

    /// Seconds of the host before a pass: the graph, the mask, the embeddings.
    pub(super) fn before(&self, shape: PassShape) -> f64 {
        let (rows, sequences) = (f64::from(shape.rows), f64::from(shape.sequences.max(1)));
        let own = rows / sequences;
        let host = &self.profile.host;
        let mask = match self.model.inventory.kv.layers.is_empty() {
            true => 0.0,
            // the first token of a sequence is compared with all tokens, the others begin with the row before theirs
            false => {
                let kv_tokens = shape.kv_tokens as f64 + own;
                sequences * kv_tokens * host.mask_look
                    + (rows - sequences) * kv_tokens * host.mask_copy
            }
        };
        let width = f64::from(self.model.inventory.embedding_length);
        let embedded = rows * width;
        let element = match shape.rows >= MANY_EMBEDDINGS {
            true => host.shared_embedding,
            false => host.embedding,
        };
        let moved = at(embedded * 4.0, self.profile.link.pinned.median);
        self.profile.overheads.pass.median + mask + embedded * element + moved
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
