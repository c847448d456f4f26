//! A graph that is about to be split: which backend runs a node, and which copy of a weight it reads.
//!
//! Nodes whose weights are resident or streamed get the device's copy in place of the host's, which to the scheduler is a
//! weight like any other in device memory: it is not an input of a split and cuts nothing. Only where a streamed
//! group begins is a new split asked for, so that the wait for its copy stands in front of it.

use super::lookup;
use super::nodes::{is_computed, is_view, origin, rows, sources, Backends};
use super::split_graph::SplitGraph;
use crate::arena::stacked_experts;
use crate::arena::unit::LoadedUnit;
use crate::hook::config::Debug;
use crate::hook::pool_estimate::bytes_for;
use pipeshard_plan::plan::{Location, Placement, Plan, UnitClass, UnitId};
use pipeshard_sys as ffi;
use std::collections::HashMap;

/// A weight, the number of experts stacked in it, and the indices of those that are read.
type Choice = (*mut ffi::ggml_tensor, u32, *mut ffi::ggml_tensor);

/// What the nodes of one graph are decided from.
struct Decider<'a> {
    plan: &'a Plan,
    locations: Vec<Location>,
    index: &'a HashMap<usize, UnitId>,
    units: &'a [LoadedUnit],
    backends: Backends,
    /// Nodes that were sent to the CPU.
    on_cpu: HashMap<usize, ()>,
    /// Experts are chosen on the CPU, for a test.
    cpu_choice: bool,
    graph: &'a mut SplitGraph,
    /// The graph has operations that stream their weights.
    streaming: bool,
    /// See [`crate::hook::config::Debug::like_stock`].
    like_stock: bool,
    /// Lookups that threads share.
    lookups: u64,
}

/// What nodes are decided from.
pub struct Given<'a> {
    /// Where weights are.
    pub plan: &'a Plan,
    /// Which unit a loaded tensor is.
    pub index: &'a HashMap<usize, UnitId>,
    /// The units.
    pub units: &'a [LoadedUnit],
    /// Who computes.
    pub backends: Backends,
    /// Switches for tests.
    pub debug: &'a Debug,
}

/// The result, in addition to the graph's description.
pub struct Decided {
    /// Nodes that were sent to the CPU.
    pub on_cpu: HashMap<usize, ()>,
    /// Lookups that threads share.
    pub lookups: u64,
}

/// Decides every node of a graph that is about to be split, and describes it in `graph`, which is empty.
///
/// # Safety
/// `nodes` are those of a valid graph that the scheduler in `given` is about to split.
pub unsafe fn decide(
    given: Given<'_>,
    graph: &mut SplitGraph,
    nodes: &[*mut ffi::ggml_tensor],
) -> Decided {
    let plan = given.plan;
    let mut decider = Decider {
        plan,
        locations: plan.locations(),
        index: given.index,
        units: given.units,
        backends: given.backends,
        on_cpu: HashMap::new(),
        cpu_choice: given.debug.cpu_choice,
        graph,
        streaming: false,
        like_stock: given.debug.like_stock,
        lookups: 0,
    };
    for &node in nodes {
        decider.count_rows(node);
        decider.count_kv_tokens(node);
    }
    let tier = plan.tier(decider.graph.rows.max(1));
    decider.streaming = tier.is_some_and(|t| t.placements.contains(&Placement::Streamed));
    for &node in nodes {
        decider.decide(node);
    }
    Decided {
        on_cpu: decider.on_cpu,
        lookups: decider.lookups,
    }
}

impl Decider<'_> {
    /// How many rows the graph's operations with large weights see.
    unsafe fn count_rows(&mut self, node: *mut ffi::ggml_tensor) {
        if is_view(node) || lookup::looks_up(node) {
            return;
        }
        let ids = sources(node).filter_map(|source| self.index.get(&(source as usize)));
        let mut classes = ids.map(|id| self.plan.units[id.index()].class);
        if classes.any(|class| !matches!(class, UnitClass::Small | UnitClass::Output)) {
            self.graph.rows = self.graph.rows.max(rows(node));
        }
    }

    /// How many tokens of the KV cache attention reads.
    unsafe fn count_kv_tokens(&mut self, node: *mut ffi::ggml_tensor) {
        // a softmax with a mask is that of attention; its row has one element per KV token
        let (of, at) = match (*node).op {
            ffi::GGML_OP_FLASH_ATTN_EXT => ((*node).src[1], 1),
            ffi::GGML_OP_SOFT_MAX if !(*node).src[1].is_null() => (node, 0),
            _ => return,
        };
        if !of.is_null() {
            let (kv_tokens, streams) = ((*of).ne[at].max(0) as u64, (*of).ne[3].max(0) as u64);
            self.graph.kv_tokens = self.graph.kv_tokens.max(kv_tokens.saturating_mul(streams));
        }
    }

    unsafe fn decide(&mut self, node: *mut ffi::ggml_tensor) {
        if is_view(node) || lookup::looks_up(node) {
            if is_computed(node) && lookup::share(node) {
                let (sched, cpu) = (self.backends.sched, self.backends.cpu);
                ffi::ggml_backend_sched_set_tensor_backend(sched, node, cpu);
                self.lookups += 1;
            }
            return;
        }
        let choice_for_cpu = self.cpu_choice && (*node).op == ffi::GGML_OP_ARGSORT;
        if self.reads_host_kv(node) || choice_for_cpu {
            match self.attends_on_device(node) {
                true => {
                    self.graph.over_host_kv.insert(node as usize);
                    self.run_on_device(node, Placement::Resident);
                }
                false => self.run_on_cpu(node),
            }
            return;
        }
        let mut large = None;
        let mut small = false;
        for source in sources(node) {
            if let Some(&id) = self.index.get(&(source as usize)) {
                match self.plan.units[id.index()].class {
                    UnitClass::Small => small = true,
                    _ => large = Some(id),
                }
            }
        }
        if large.is_none() && !small {
            self.keep_attention_on_device(node);
            return;
        }
        if !ffi::ggml_backend_supports_op(self.backends.device, node) {
            self.graph.declined += 1;
            return;
        }
        let rows = rows(node);
        let placement = match large {
            Some(id) => {
                // The last layer of a prompt sees few rows; what it reads streams with the rest anyway: the CPU would have to
                // wake up for it.
                let of_layer = self.plan.units[id.index()].class != UnitClass::Output;
                let rows = match of_layer && self.streaming && !self.like_stock {
                    true => self.graph.rows,
                    false => rows,
                };
                let tier = self.plan.tier(rows.max(1));
                tier.map_or(Placement::Host, |t| t.placements[id.index()])
            }
            // a bias stays with the product that it is added to; stock goes by where the bias is
            None if !self.like_stock && self.follows_cpu(node) => Placement::Host,
            None => Placement::Resident,
        };
        match placement {
            Placement::Host => self.run_on_cpu(node),
            Placement::Resident | Placement::Kept | Placement::Streamed => {
                self.run_on_device(node, placement)
            }
        }
    }

    /// Reports whether this is fused attention over KV cache that is copied to the device for it.
    unsafe fn attends_on_device(&self, node: *mut ffi::ggml_tensor) -> bool {
        (*node).op == ffi::GGML_OP_FLASH_ATTN_EXT
            && self.graph.rows >= self.plan.host_kv_min_rows
            && ffi::ggml_backend_supports_op(self.backends.device, node)
    }

    /// Fused attention over KV cache that is not in host memory stays on the device, also where all that it reads was computed by
    /// the CPU: llama.cpp asks where the layer's attention went, and gives up fusing for the whole model if it is elsewhere.
    unsafe fn keep_attention_on_device(&mut self, node: *mut ffi::ggml_tensor) {
        let fused = (*node).op == ffi::GGML_OP_FLASH_ATTN_EXT;
        if fused && ffi::ggml_backend_supports_op(self.backends.device, node) {
            self.run_on_device(node, Placement::Resident);
        }
    }

    /// The node runs on the CPU and reads the weights where they lie.
    unsafe fn run_on_cpu(&mut self, node: *mut ffi::ggml_tensor) {
        ffi::ggml_backend_sched_set_tensor_backend(self.backends.sched, node, self.backends.cpu);
        self.on_cpu.insert(node as usize, ());
        for source in sources(node) {
            if let Some(&id) = self.index.get(&(source as usize)) {
                self.graph.bound.push((id, Placement::Host));
            }
        }
    }

    /// The node runs on the device and reads the device's copies.
    unsafe fn run_on_device(&mut self, node: *mut ffi::ggml_tensor, placement: Placement) {
        ffi::ggml_backend_sched_set_tensor_backend(self.backends.sched, node, self.backends.device);
        self.graph.pool_bytes = self.graph.pool_bytes.max(bytes_for(node));
        // what is kept in the ring is there as a whole
        let choice = match placement {
            Placement::Streamed => self.chosen_experts(node),
            _ => None,
        };
        for slot in (*node).src.iter_mut().filter(|s| !s.is_null()) {
            let Some(&id) = self.index.get(&(*slot as usize)) else {
                continue;
            };
            match self.locations[id.index()] {
                Location::Chunk { .. } => self.graph.bound.push((id, Placement::Resident)),
                Location::Ring { group, .. } => {
                    let copied = placement == Placement::Streamed;
                    self.graph.reads_group(node as usize, group, copied);
                    match choice {
                        Some((source, experts, indices)) if source == *slot => {
                            self.graph.routings.read_chosen(group, experts, indices);
                        }
                        _ => self.graph.routings.read_whole(group),
                    }
                    self.graph.bound.push((id, placement));
                }
                Location::Host => continue,
            }
            *slot = self.units[id.index()].device_tensor();
        }
    }

    /// If the node should fetch only chosen experts: the weight, its number of experts, and the tensor with the choice.
    unsafe fn chosen_experts(&self, node: *mut ffi::ggml_tensor) -> Option<Choice> {
        let [source, _, indices, ..] = (*node).src;
        if (*node).op != ffi::GGML_OP_MUL_MAT_ID || indices.is_null() {
            return None;
        }
        let id = self.index.get(&(source as usize))?;
        let Location::Ring { group, .. } = self.locations[id.index()] else {
            return None;
        };
        let experts = stacked_experts(&self.plan.ring.groups[group], self.units)?;
        let ([used, lists, ..], rows) = ((*indices).ne, rows(node));
        let is_list = (*indices).type_ == ffi::GGML_TYPE_I32
            && (lists, (*indices).ne[2], (*indices).ne[3]) == (i64::from(rows), 1, 1);
        let tier = self.plan.tier(rows.max(1)).filter(|_| is_list)?;
        tier.fetches_chosen(experts, u32::try_from(used).ok()?, rows)
            .then_some((source, experts, indices))
    }

    /// Reports whether the node adds to or scales what the CPU computed.
    unsafe fn follows_cpu(&self, node: *mut ffi::ggml_tensor) -> bool {
        let mut producer = (*node).src[0];
        while !producer.is_null() && is_view(producer) {
            producer = match (*producer).view_src.is_null() {
                true => (*producer).src[0],
                false => (*producer).view_src,
            };
        }
        self.on_cpu.contains_key(&(producer as usize))
    }

    /// Reports whether the node computes on KV cache in host memory. On the device it pulls all of it over the link, or, where
    /// a context shift rotates them in place, does not reach them at all.
    unsafe fn reads_host_kv(&self, node: *mut ffi::ggml_tensor) -> bool {
        if !matches!(
            (*node).op,
            ffi::GGML_OP_FLASH_ATTN_EXT | ffi::GGML_OP_MUL_MAT | ffi::GGML_OP_ROPE
        ) {
            return false;
        }
        sources(node).any(|source| {
            let root = origin(source);
            let buffer = (*root).buffer;
            (*root).op == ffi::GGML_OP_NONE
                && !buffer.is_null()
                && ffi::ggml_backend_buffer_get_usage(buffer)
                    != ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
                && ffi::ggml_backend_buffer_is_host(buffer)
        })
    }
}
