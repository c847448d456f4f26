//! The known schedulers of ggml: their backends, the graph that each split last, and what goes between its backends.
//!
//! Written by [`super::answers::graph`] while a graph is split, read by [`super::answers::pass`]. Knows of no plan.

use super::graph::routing::ChoiceReader;
use super::graph::split_graph::SplitGraph;
use crate::lanes::copy::DroppedWait;
use crate::lanes::device::Device;
use crate::lanes::hand_over::HandOver;
use crate::lanes::run_ahead::RunAhead;
use crate::rewrite::TensorContext;
use pipeshard_sys as ffi;
use std::collections::HashMap;

/// A scheduler.
pub struct Sched {
    /// Its backends on our device.
    pub device_backends: Vec<ffi::ggml_backend_t>,
    /// Its CPU backend, the last in its list.
    pub cpu_backend: ffi::ggml_backend_t,
    /// The graph that was split last.
    pub graph: SplitGraph,
    /// Tensors that were put into the graph.
    pub nodes: Option<TensorContext>,
    /// What goes between the two.
    pub hand_over: HandOver,
    /// How far the host is ahead of the device, where a pass may be ended early.
    pub run_ahead: RunAhead,
    /// How the choice of experts comes back from the device.
    pub choices: ChoiceReader,
}

// SAFETY: the backends are used under the runtime's lock, while the scheduler lives; everything else may change threads by itself.
unsafe impl Send for Sched {}

/// All schedulers.
#[derive(Default)]
pub struct Schedulers {
    by_address: HashMap<usize, Sched>,
}

/// Reports whether `backend` computes on `device`.
///
/// # Safety
/// `backend` is a live backend.
pub unsafe fn computes_on(backend: ffi::ggml_backend_t, device: Option<Device>) -> bool {
    device.is_some_and(|d| ffi::ggml_backend_get_device(backend) == d.raw())
}

impl Schedulers {
    /// Reports whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// A scheduler was made. One without backends is none.
    ///
    /// # Safety
    /// `sched` is a live scheduler.
    pub unsafe fn add(
        &mut self,
        sched: ffi::ggml_backend_sched_t,
        device: Option<Device>,
        dropped: Option<DroppedWait>,
    ) {
        let count = ffi::ggml_backend_sched_get_n_backends(sched);
        let backends = (0..count).map(|i| ffi::ggml_backend_sched_get_backend(sched, i));
        let backends: Vec<_> = backends.collect();
        let Some(&cpu_backend) = backends.last() else {
            return;
        };
        let ours = |&backend: &ffi::ggml_backend_t| computes_on(backend, device);
        let added = Sched {
            device_backends: backends.iter().copied().filter(ours).collect(),
            cpu_backend,
            graph: SplitGraph::default(),
            nodes: None,
            hand_over: HandOver::new(dropped),
            run_ahead: RunAhead::default(),
            choices: ChoiceReader::default(),
        };
        self.by_address.insert(sched as usize, added);
    }

    /// A scheduler is about to be freed.
    pub fn remove(&mut self, sched: usize) {
        self.by_address.remove(&sched);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.by_address.clear();
    }

    /// A scheduler.
    pub fn get(&self, sched: usize) -> Option<&Sched> {
        self.by_address.get(&sched)
    }

    /// The same, to write.
    pub fn get_mut(&mut self, sched: usize) -> Option<&mut Sched> {
        self.by_address.get_mut(&sched)
    }

    /// A scheduler and its compute lane, if it computes on the device.
    pub fn lanes_of(&mut self, sched: usize) -> Option<(&mut Sched, ffi::ggml_backend_t)> {
        let entry = self.by_address.get_mut(&sched)?;
        let compute = *entry.device_backends.first()?;
        Some((entry, compute))
    }

    /// Reports whether it is known.
    pub fn knows(&self, sched: usize) -> bool {
        self.by_address.contains_key(&sched)
    }

    /// Reports whether a pass over the latest graph of `sched` uses what there is one of.
    pub fn uses_lanes(&self, sched: usize) -> bool {
        let entry = self.by_address.get(&sched);
        entry.is_some_and(|entry| entry.graph.uses_lanes())
    }

    /// Device memory of the compute buffers of `sched` as it is, each rounded up by `rounded`, in bytes.
    ///
    /// # Safety
    /// `sched` is a live scheduler.
    pub unsafe fn scratch_there_is(&self, sched: usize, rounded: impl Fn(u64) -> u64) -> u64 {
        let raw = sched as ffi::ggml_backend_sched_t;
        let entry = self.by_address.get(&sched);
        let backends = entry.iter().flat_map(|entry| &entry.device_backends);
        let sizes = backends.map(|&b| ffi::ggml_backend_sched_get_buffer_size(raw, b) as u64);
        sizes.map(rounded).sum()
    }

    /// Reports whether the latest graph of `sched` refers to the arena.
    pub fn refers_to_arena(&self, sched: usize) -> bool {
        let entry = self.by_address.get(&sched);
        entry.is_some_and(|entry| entry.graph.refers_to_arena())
    }

    /// Waits for what `sched` submitted, in place of an event at the end of its pass.
    pub fn synchronize(&self, sched: usize) {
        let entry = self.by_address.get(&sched);
        for &backend in entry.iter().flat_map(|entry| &entry.device_backends) {
            // SAFETY: the scheduler is in a pass, so its backends are alive.
            unsafe { ffi::ggml_backend_synchronize(backend) }
        }
    }
}

#[cfg(test)]
impl Schedulers {
    /// A scheduler that splits and submits nothing by itself.
    pub(super) fn add_of_test(&mut self, sched: usize, compute: ffi::ggml_backend_t) {
        let added = Sched {
            device_backends: vec![compute],
            cpu_backend: std::ptr::null_mut(),
            graph: SplitGraph::default(),
            nodes: None,
            hand_over: HandOver::new(None),
            run_ahead: RunAhead::default(),
            choices: ChoiceReader::default(),
        };
        self.by_address.insert(sched, added);
    }
}
