//! Memory from elsewhere: a host program's own allocator, as a library with ggml-cuda would have it called in place of `cudaMalloc` and
//! `cudaMallocHost`. What it gives for the device's memory is memory that the host can read, so accesses to it do not fault.

/// What was answered to a request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supplied {
    /// Nobody else gives memory: take the device's own.
    Own,
    /// Memory as large as was asked for, which goes back where it came from.
    Memory(*mut u8),
    /// There is none.
    Refused,
}

/// Gives memory, and is told of streams. Called with locks held: it may call nothing of the device.
pub trait Supply: Send + Sync {
    /// Memory of the device.
    fn device(&self, size: usize) -> Supplied;
    /// Takes it back, when all work on the device is done.
    fn release_device(&self, memory: *mut u8);
    /// Page-locked memory of the host.
    fn host(&self, size: usize) -> Supplied;
    /// Takes it back, likewise. False if it was not given here.
    fn release_host(&self, memory: *mut u8) -> bool;
    /// There is a stream of this address from now on.
    fn stream_opened(&self, stream: usize);
    /// It is about to go.
    fn stream_closed(&self, stream: usize);
}
