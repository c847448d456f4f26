//! A graph of an encoder that is about to be split: its weights are in host memory, and every operation on them reads the device's
//! copies. What [`super::decide`] is to a language model, where nothing is left to the CPU and rows do not matter.

use super::nodes::{is_view, sources, Backends};
use super::split_graph::SplitGraph;
use crate::arena::unit::LoadedUnit;
use crate::hook::pool_estimate::bytes_for;
use crate::lanes::ring::GroupId;
use pipeshard_plan::plan::{Location, Placement, Plan, UnitId};
use pipeshard_sys as ffi;
use std::collections::HashMap;

type Tensor = *mut ffi::ggml_tensor;

/// What nodes are decided from.
pub struct Binder<'a> {
    locations: Vec<Location>,
    index: &'a HashMap<usize, UnitId>,
    units: &'a [LoadedUnit],
    backends: Backends,
    /// By the device's copies, which views may refer to from when their graph was split before.
    copies: HashMap<usize, UnitId>,
}

impl<'a> Binder<'a> {
    /// `index` says which unit a loaded tensor is.
    pub fn new(
        plan: &Plan,
        index: &'a HashMap<usize, UnitId>,
        units: &'a [LoadedUnit],
        backends: Backends,
    ) -> Self {
        let copies = units.iter().enumerate();
        let copies = copies.map(|(at, unit)| (unit.device_tensor() as usize, UnitId(at as u32)));
        Binder {
            locations: plan.locations(),
            index,
            units,
            backends,
            copies: copies.collect(),
        }
    }

    /// Decides every node that reads weights, and describes the graph in `graph`, which is empty.
    ///
    /// # Safety
    /// `nodes` are those of a valid graph that the scheduler is about to split.
    pub unsafe fn bind(&self, graph: &mut SplitGraph, nodes: &[Tensor]) {
        // a view is computed with what reads it
        for &node in nodes.iter().filter(|&&node| !is_view(node)) {
            self.bind_node(graph, node);
        }
    }

    /// The unit that a tensor is, or is a view of.
    unsafe fn unit_of(&self, tensor: Tensor) -> Option<UnitId> {
        let root = (*tensor).view_src;
        let known = |of: Tensor| {
            let at = of as usize;
            self.index
                .get(&at)
                .or_else(|| self.copies.get(&at))
                .copied()
        };
        match root.is_null() {
            true => known(tensor),
            false => known(root),
        }
    }

    unsafe fn bind_node(&self, graph: &mut SplitGraph, node: Tensor) {
        let mut reads_any = false;
        let mut group: Option<GroupId> = None;
        let mut groups = 0;
        for source in sources(node) {
            let Some(id) = self.unit_of(source) else {
                continue;
            };
            reads_any = true;
            if let Location::Ring { group: of, .. } = self.locations[id.index()] {
                groups += usize::from(group != Some(of));
                group = Some(of);
            }
        }
        if !reads_any {
            return;
        }
        let device = self.backends.device;
        // one wait stands in front of an operation; none of mtmd's reads matrices of several layers
        if groups > 1 || !ffi::ggml_backend_supports_op(device, node) {
            graph.declined += 1;
            return;
        }
        ffi::ggml_backend_sched_set_tensor_backend(self.backends.sched, node, device);
        graph.pool_bytes = graph.pool_bytes.max(bytes_for(node));
        if let Some(group) = group {
            graph.reads_group(node as usize, group, true);
            graph.routings.read_whole(group);
        }
        for slot in (*node).src.iter_mut().filter(|slot| !slot.is_null()) {
            let Some(id) = self.unit_of(*slot) else {
                continue;
            };
            let placement = match self.locations[id.index()] {
                Location::Ring { .. } => Placement::Streamed,
                Location::Chunk { .. } | Location::Host => Placement::Resident,
            };
            graph.bound.push((id, placement));
            let copy = self.units[id.index()].device_tensor();
            match (**slot).view_src.is_null() {
                true => *slot = copy,
                false => self.point(*slot, copy),
            }
        }
    }

    /// Makes a view of a weight, and those that it is a view of, views of the device's copy.
    unsafe fn point(&self, view: Tensor, copy: Tensor) {
        let (sched, device) = (self.backends.sched, self.backends.device);
        let mut view = view;
        while !(*view).view_src.is_null() {
            (*view).view_src = copy;
            (*view).data = (*copy)
                .data
                .cast::<u8>()
                .wrapping_add((*view).view_offs)
                .cast();
            // the allocator writes it where it finds none
            (*view).buffer = std::ptr::null_mut();
            ffi::ggml_backend_sched_set_tensor_backend(sched, view, device);
            let from = (*view).src[0];
            if from.is_null() {
                return;
            }
            if (*from).view_src.is_null() {
                (*view).src[0] = copy;
                return;
            }
            view = from;
        }
    }
}
