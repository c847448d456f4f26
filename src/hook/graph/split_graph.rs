//! What is known of the graph that a scheduler split last: written while it is decided about and split, read by its passes.

use super::divide::Divided;
use super::nodes::{is_computed, sources};
use super::routing::Routings;
use crate::lanes::mapped_file::FileId;
use crate::lanes::ring::GroupId;
use pipeshard_plan::plan::{Placement, UnitId};
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
    /// The most tokens of a KV cache that one of its attentions reads, those of all sequences together.
    pub kv_tokens: u64,
    /// [`super::super::residency::Generation::addresses`] that the device addresses are of; `None` when the graph has none.
    pub addresses: Option<u64>,
    /// The graph has not run yet.
    pub fresh: bool,
    /// Units that the graph reads, with where they are read.
    pub bound: Vec<(UnitId, Placement)>,
    /// Files that its passes read: streamed units, those that the CPU computes with, and embeddings lie in them.
    pub files: Vec<FileId>,
    /// Nodes with weights that were left to the scheduler.
    pub declined: u32,
    /// Attentions of the device over KV cache that is copied from host memory. Each begins a split: the copies take memory from
    /// there on, wherever else is cut. How much that is depends on the number of tokens, so compute buffers may still grow.
    pub over_host_kv: HashSet<usize>,
    /// What the device's backend is expected to take from its own pool for the operation that needs most of it, in bytes.
    pub pool_bytes: u64,
    /// Which groups are read in part, by whose choice.
    pub routings: Routings,
    /// Layers whose experts both processors compute.
    pub divided: Divided,
    /// Tensors that something reads which is not computed: the branches of a choice that the graph carries along.
    read_by_idle: HashSet<usize>,
    /// Those without an operation that something reads which is.
    read: HashSet<usize>,
}

impl SplitGraph {
    /// The streamed groups that a split reads; none where it reads none.
    pub fn groups_of_split(&self, split: usize) -> Option<&[GroupId]> {
        let groups = self.splits.get(split)?;
        (!groups.is_empty()).then_some(groups)
    }

    /// Forgets all: another graph comes.
    pub fn clear(&mut self) {
        self.group_of.clear();
        self.open_group = None;
        self.splits.clear();
        self.uses.clear();
        self.bound.clear();
        self.files.clear();
        self.rows = 0;
        self.kv_tokens = 0;
        self.addresses = None;
        self.declined = 0;
        self.over_host_kv.clear();
        self.pool_bytes = 0;
        self.routings.clear();
        self.divided.clear();
        self.read_by_idle.clear();
        self.read.clear();
        self.fresh = true;
    }

    /// `node` reads this group of the ring; `copied`: in this pass, so that a wait has to stand in front of it.
    pub fn reads_group(&mut self, node: usize, group: GroupId, copied: bool) {
        self.group_of.insert(node, (group, copied));
    }

    /// Reports whether it refers to places in the arena.
    pub fn refers_to_arena(&self) -> bool {
        self.addresses.is_some()
    }

    /// Reports whether a pass over it uses what there is one of: the ring, and the memory of fetched experts.
    pub fn uses_lanes(&self) -> bool {
        !self.uses.is_empty() || !self.divided.layers.is_empty()
    }

    /// Reports whether a new split must start at this node.
    pub fn cut(&mut self, node: usize) -> bool {
        match self.group_of.get(&node) {
            Some(&(group, true)) if self.open_group != Some(group) => {
                self.open_group = Some(group);
                true
            }
            _ => self.over_host_kv.contains(&node) || self.divided.cuts(node),
        }
    }

    /// Reports whether nothing that is computed reads this copy of an input.
    pub fn is_idle(&self, copy: usize) -> bool {
        self.read_by_idle.contains(&copy) && !self.read.contains(&copy)
    }

    /// The next split consists of these nodes.
    ///
    /// # Safety
    /// They and what they read are valid.
    pub unsafe fn add_split(&mut self, nodes: &[*mut ffi::ggml_tensor]) {
        for &node in nodes {
            let computed = is_computed(node);
            for source in sources(node) {
                match computed {
                    true if (*source).op == ffi::GGML_OP_NONE => self.read.insert(source as usize),
                    true => continue,
                    false => self.read_by_idle.insert(source as usize),
                };
            }
        }
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
