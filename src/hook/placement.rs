//! A graph that is about to be split: which backend runs a node, and which copy of a weight it reads.
//!
//! Nodes whose weights are resident or streamed get the device's copy in place of the host's, which to the scheduler is a
//! weight like any other that lies in device memory: it is no input of a split and cuts nothing. Only where a streamed
//! group begins is a new split asked for, so that the wait for its copy stands in front of it.

use super::divide::{Divided, Divider};
use super::lookup;
use super::routing::Routings;
use super::runtime::Runtime;
use crate::arena::stacked_experts;
use crate::lanes::ring::GroupId;
use pipeshard_plan::plan::{Location, Placement, Plan, UnitClass, UnitId};
use pipeshard_sys as ffi;
use std::collections::{HashMap, HashSet};

/// What the hook knows of the graph that a scheduler split last.
#[derive(Debug, Default)]
pub struct SplitGraph {
    /// Nodes that read a group of the ring, and whether it is copied in this pass: what is kept there cuts nothing.
    group_of: HashMap<usize, (GroupId, bool)>,
    /// The group that the latest node with one read, while splits are being cut.
    open_group: Option<GroupId>,
    /// Streamed groups that each split reads.
    pub splits: Vec<Vec<GroupId>>,
    /// Each streamed group in order of first use, with the number of splits that read it.
    pub uses: Vec<(GroupId, u32)>,
    /// The most rows that an operation with large weights sees, the output head aside.
    pub rows: u32,
    /// The most cells of a cache that one of its attentions reads, those of all sequences together.
    pub cells: u64,
    /// [`Runtime::carving`] that the device addresses are from; `None` when the graph has none.
    pub carving: Option<u64>,
    /// The graph has not run yet.
    pub fresh: bool,
    /// Units that the graph reads, with where they are read.
    pub bound: Vec<(UnitId, Placement)>,
    /// Nodes with weights that were left to the scheduler.
    pub declined: u32,
    /// Attentions of the device over cells that are copied from host memory. Each begins a split: the copies take memory from
    /// there on, wherever else is cut. How much that is depends on the number of cells, so compute buffers may still grow.
    pub over_host_cells: HashSet<usize>,
    /// What the device's backend is expected to take from its own pool for the operation that needs most of it, in bytes.
    pub pool_bytes: u64,
    /// Which groups are read in part, by whose choice.
    pub routings: Routings,
    /// Layers whose experts both processors compute.
    pub divided: Divided,
}

impl SplitGraph {
    fn clear(&mut self) {
        self.group_of.clear();
        self.open_group = None;
        self.splits.clear();
        self.uses.clear();
        self.bound.clear();
        self.rows = 0;
        self.cells = 0;
        self.carving = None;
        self.declined = 0;
        self.over_host_cells.clear();
        self.pool_bytes = 0;
        self.routings.clear();
        self.divided.clear();
        self.fresh = true;
    }

    /// Must a new split start at this node?
    pub fn cut(&mut self, node: usize) -> bool {
        match self.group_of.get(&node) {
            Some(&(group, true)) if self.open_group != Some(group) => {
                self.open_group = Some(group);
                true
            }
            _ => self.over_host_cells.contains(&node) || self.divided.cuts(node),
        }
    }

    /// The next split consists of these nodes.
    pub fn add_split(&mut self, nodes: &[*mut ffi::ggml_tensor]) {
        let mut groups: Vec<GroupId> = Vec::new();
        for node in nodes {
            if let Some(&(group, _)) = self.group_of.get(&(*node as usize)) {
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        for &group in &groups {
            match self.uses.iter_mut().find(|u| u.0 == group) {
                Some(entry) => entry.1 += 1,
                None => self.uses.push((group, 1)),
            }
        }
        self.splits.push(groups);
        self.divided.add_split(nodes);
    }
}

/// The backends that a scheduler offers us.
#[derive(Clone, Copy)]
pub(super) struct Backends {
    pub(super) sched: ffi::ggml_backend_sched_t,
    pub(super) device: ffi::ggml_backend_t,
    pub(super) cpu: ffi::ggml_backend_t,
}

/// A weight, the number of experts stacked in it, and the indices of those that are read.
type Choice = (*mut ffi::ggml_tensor, u32, *mut ffi::ggml_tensor);

/// What the nodes of one graph are decided from.
struct Decider<'a> {
    plan: &'a Plan,
    locations: Vec<Location>,
    index: &'a HashMap<usize, UnitId>,
    units: &'a mut [crate::arena::unit::LoadedUnit],
    backends: Backends,
    /// Nodes that were sent to the CPU.
    on_cpu: HashMap<usize, ()>,
    /// Experts are chosen on the CPU, for a test.
    cpu_choice: bool,
    graph: &'a mut SplitGraph,
    /// The graph has operations that stream their weights.
    streaming: bool,
    /// See [`super::config::Debug::like_stock`].
    like_stock: bool,
    /// Lookups that threads share.
    lookups: u64,
}

impl Runtime {
    /// Decides every node of a graph that is about to be split. `measuring`: it will never run.
    ///
    /// # Safety
    /// `sched` is a live, registered scheduler and `graph` a valid graph that it is about to split.
    pub unsafe fn graph_begin(
        &mut self,
        sched: ffi::ggml_backend_sched_t,
        graph: *mut ffi::ggml_cgraph,
        measuring: bool,
    ) -> Result<(), String> {
        let Some(entry) = self.scheds.get(&(sched as usize)) else {
            return Ok(());
        };
        let Some(&device) = entry.device_backends.first() else {
            return Ok(());
        };
        let backends = Backends {
            sched,
            device,
            cpu: entry.cpu_backend,
        };
        if self.config.debug.rewrite {
            self.outcome.rewritten_nodes += super::rewrite::identity(graph);
        }
        let nodes = graph_nodes(graph);
        if !nodes
            .iter()
            .any(|&n| sources(n).any(|s| self.index.contains_key(&(s as usize))))
        {
            if let Some(entry) = self.scheds.get_mut(&(sched as usize)) {
                entry.graph.clear();
            }
            return Ok(());
        }
        if let Some(failure) = self.device_failure() {
            return Err(failure);
        }
        if measuring {
            self.plan_for_measuring()?;
            self.place_for_measuring();
        } else {
            self.note_written_files();
            if self.carved.is_none() {
                self.units.iter_mut().for_each(|u| u.unplace());
            }
            self.prepare_fetching();
            self.carve()?;
        }
        let (Some(plan), Some(entry)) = (&self.plan, self.scheds.get_mut(&(sched as usize))) else {
            return Err("no plan".to_string());
        };
        entry.graph.clear();
        let mut decider = Decider {
            plan,
            locations: plan.locations(),
            index: &self.index,
            units: &mut self.units,
            backends,
            on_cpu: HashMap::new(),
            cpu_choice: self.config.debug.cpu_choice,
            graph: &mut entry.graph,
            streaming: false,
            like_stock: self.config.debug.like_stock,
            lookups: 0,
        };
        for &node in nodes {
            decider.count_rows(node);
            decider.count_cells(node);
        }
        let tier = plan.tier(decider.graph.rows.max(1));
        decider.streaming = tier.is_some_and(|t| t.placements.contains(&Placement::Streamed));
        for &node in nodes {
            decider.decide(node);
        }
        self.outcome.rewritten_nodes += match measuring {
            true => 0,
            false => decider.lookups,
        };
        let few = decider.graph.rows > 0 && plan.fetched_for(decider.graph.rows) > 0;
        if let (false, true, Some(fetcher)) = (measuring, few, &self.fetcher) {
            let divider = Divider {
                index: &self.index,
                units: decider.units,
                shared: &plan.shared_with_device(decider.graph.rows),
                fetcher,
                backends,
                on_cpu: &decider.on_cpu,
            };
            let replaced = decider.graph.bound.len();
            let (divided, nodes) = divider.divide(graph, &mut entry.nodes, replaced);
            entry.graph.divided = divided;
            self.outcome.rewritten_nodes += nodes;
        }
        self.pools.expect_product(entry.graph.pool_bytes);
        if !measuring {
            if let Some(device) = self.device {
                self.choices.reserve(device, entry.graph.routings.bytes())?;
            }
            entry.graph.carving = Some(self.carving);
            self.outcome.note_graph(&entry.graph, &self.plan_units);
        }
        Ok(())
    }

    /// Gives tensors of the device that have no place an address, so that nobody thinks that compute buffers have to hold them.
    pub fn place_for_measuring(&mut self) {
        let Some(placeholder) = &self.placeholder else {
            return;
        };
        for unit in self.units.iter_mut() {
            // SAFETY: the unit owns its device tensor.
            if unsafe { (*unit.device_tensor()).data.is_null() } {
                unit.place_for_measuring(placeholder);
            }
        }
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

    /// How many cells attention reads.
    unsafe fn count_cells(&mut self, node: *mut ffi::ggml_tensor) {
        // a softmax with a mask is that of attention; it has its cells in a row
        let (of, at) = match (*node).op {
            ffi::GGML_OP_FLASH_ATTN_EXT => ((*node).src[1], 1),
            ffi::GGML_OP_SOFT_MAX if !(*node).src[1].is_null() => (node, 0),
            _ => return,
        };
        if !of.is_null() {
            let (cells, streams) = ((*of).ne[at].max(0) as u64, (*of).ne[3].max(0) as u64);
            self.graph.cells = self.graph.cells.max(cells.saturating_mul(streams));
        }
    }

    unsafe fn decide(&mut self, node: *mut ffi::ggml_tensor) {
        if is_view(node) || lookup::looks_up(node) {
            if lookup::share(node) {
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
                    self.graph.over_host_cells.insert(node as usize);
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
                // The last layer of a prompt sees few rows; what it reads streams with the rest all the same: the CPU would have to
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

    /// Is this fused attention over cells that are copied to the device for it?
    unsafe fn attends_on_device(&self, node: *mut ffi::ggml_tensor) -> bool {
        (*node).op == ffi::GGML_OP_FLASH_ATTN_EXT
            && self.graph.rows >= self.plan.host_cells_min_rows
            && ffi::ggml_backend_supports_op(self.backends.device, node)
    }

    /// Fused attention over cells that are not in host memory stays on the device, also where all that it reads was computed by
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
        self.graph.pool_bytes = self.graph.pool_bytes.max(super::pools::bytes_for(node));
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
                    self.graph.group_of.insert(node as usize, (group, copied));
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

    /// If the node should fetch only chosen experts: of which weight, how many it has, and by whose choice.
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

    /// Does the node add to or scale what the CPU computed?
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

    /// Does the node compute on KV cells that live in host memory? On the device it pulls all of them over the link, or, where a
    /// context shift rotates them in place, does not reach them at all.
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

/// The nodes of a graph.
///
/// # Safety
/// `graph` is a valid graph that outlives the slice and is not changed meanwhile.
pub unsafe fn graph_nodes<'a>(graph: *mut ffi::ggml_cgraph) -> &'a [*mut ffi::ggml_tensor] {
    let count = ffi::ggml_graph_n_nodes(graph).max(0) as usize;
    let nodes = ffi::ggml_graph_nodes(graph);
    match nodes.is_null() || count == 0 {
        true => &[],
        false => std::slice::from_raw_parts(nodes, count),
    }
}

pub(super) unsafe fn sources(
    node: *mut ffi::ggml_tensor,
) -> impl Iterator<Item = *mut ffi::ggml_tensor> {
    (*node).src.into_iter().filter(|s| !s.is_null())
}

/// What a tensor is a view or a converted copy of: attention does not always read the cells themselves.
unsafe fn origin(tensor: *mut ffi::ggml_tensor) -> *mut ffi::ggml_tensor {
    let mut tensor = tensor;
    loop {
        let copied = matches!((*tensor).op, ffi::GGML_OP_CPY | ffi::GGML_OP_CONT);
        let from = match copied {
            true => (*tensor).src[0],
            false => (*tensor).view_src,
        };
        if from.is_null() {
            return tensor;
        }
        tensor = from;
    }
}

pub(super) unsafe fn is_view(node: *const ffi::ggml_tensor) -> bool {
    matches!(
        (*node).op,
        ffi::GGML_OP_VIEW | ffi::GGML_OP_RESHAPE | ffi::GGML_OP_PERMUTE | ffi::GGML_OP_TRANSPOSE
    )
}

/// Rows of activations that an operation with weights sees; the count by which ggml's backends decide what to offload.
unsafe fn rows(node: *const ffi::ggml_tensor) -> u32 {
    let ne = (*node).ne;
    let rows = match (*node).op {
        ffi::GGML_OP_MUL_MAT => ne[1],
        ffi::GGML_OP_MUL_MAT_ID | ffi::GGML_OP_ROPE => ne[2],
        _ => ne[1].saturating_mul(ne[2]).saturating_mul(ne[3]),
    };
    rows.clamp(0, i64::from(u32::MAX)) as u32
}
