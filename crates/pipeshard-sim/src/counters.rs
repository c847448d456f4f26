//! What the simulated device saw, counted on its own side, and the entries of its timeline.

use serde::Serialize;

/// What a simulated GPU did since it was made, or since [`reset_counters`](super::reset_counters).
///
/// `*_ns` are nanoseconds of virtual time, `*bytes*` are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SimCounters {
    /// Copied from host to device, both sync and async.
    pub bytes_h2d: u64,
    /// The part of `bytes_h2d` that came from page-locked memory.
    pub bytes_h2d_pinned: u64,
    /// The part of `bytes_h2d` that came from other memory.
    pub bytes_h2d_pageable: u64,
    /// Copied from device to host, both sync and async.
    pub bytes_d2h: u64,
    /// The part of `bytes_d2h` that went to page-locked memory.
    pub bytes_d2h_pinned: u64,
    /// The part of `bytes_d2h` that went to other memory.
    pub bytes_d2h_pageable: u64,
    /// Copied within the device.
    pub bytes_d2d: u64,
    /// Asynchronous copies, in any direction.
    pub copies: u64,
    /// Copies through a buffer, for which the host waits.
    pub sync_copies: u64,
    /// Kernels: nodes of graphs that compute something.
    pub kernels: u64,
    /// Graphs.
    pub graphs: u64,
    /// Events recorded.
    pub events_recorded: u64,
    /// Waits of streams for events that were recorded before.
    pub events_waited: u64,
    /// Waits of streams for events that were not: they do nothing.
    pub events_never_recorded: u64,
    /// Times the host waited for a stream or an event and found work pending on the virtual clock.
    pub host_syncs: u64,
    /// Times the host waited for a stream or an event that had nothing left to do.
    pub host_syncs_idle: u64,
    /// Times the host was held by an async copy from or to memory that is not page-locked.
    pub pageable_waits: u64,
    /// Virtual time that the host spent in all these waits and in synchronous copies.
    pub host_wait_ns: u64,
    /// Allocations of device memory that worked.
    pub allocations: u64,
    /// Allocations of device memory that were freed.
    pub frees: u64,
    /// Allocations of device memory that failed.
    pub failed_allocations: u64,
    /// Device memory in use now, without the context.
    pub current_bytes: u64,
    /// The most device memory in use at one time, without the context.
    pub peak_bytes: u64,
    /// Host memory that is page-locked now.
    pub pinned_bytes: u64,
    /// Time the link was taken, both directions added.
    pub link_busy_ns: u64,
    /// Time the link was taken from host to device.
    pub link_busy_h2d_ns: u64,
    /// Time the link was taken from device to host.
    pub link_busy_d2h_ns: u64,
    /// Time of kernels and of copies within the device, all streams added.
    pub gpu_busy_ns: u64,
    /// From the last reset to the moment at which all that was submitted is done.
    pub elapsed_ns: u64,
    /// The host's clock.
    pub host_clock_ns: u64,
    /// Timeline entries that were dropped for lack of room.
    pub timeline_dropped: u64,
}

/// What kind of thing a timeline entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A copy from host to device.
    H2d,
    /// A copy from device to host.
    D2h,
    /// A copy within the device.
    D2d,
    /// The kernels of one graph.
    Graph,
    /// The host waiting for a stream, an event or a copy.
    HostWait,
    /// The host computing, as told by [`advance_host_clock`](super::advance_host_clock).
    HostWork,
}

/// One thing that a stream or the host did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimelineEntry {
    /// The stream, counted from 0 in the order in which they were made; nothing for the host.
    pub stream: Option<usize>,
    /// What was done.
    pub kind: EntryKind,
    /// When it began.
    pub start_ns: u64,
    /// When it was done.
    pub end_ns: u64,
    /// Bytes copied, or touched by kernels.
    pub bytes: u64,
    /// The tensor that was copied, or the last node of the graph.
    pub label: String,
}
