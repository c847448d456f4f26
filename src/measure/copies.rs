//! Copies between the host and a device, and host memory of the kinds that weights lie in.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Instant;

use super::error::MeasureError;
use super::graph::{Graph, Tensor};
use crate::lanes::device::{Buffer, Device, Memory, Stream};
use pipeshard_sys as ffi;

/// Page-locked memory; none where the device offers none.
pub fn page_locked(device: Device, bytes: u64) -> Option<Buffer> {
    let pinned = Buffer::allocate(device.pinned_memory()?, bytes)?;
    // a backend that is refused page-locked memory hands out ordinary memory
    // SAFETY: the buffer is live.
    let ordinary = unsafe { Memory::of(pinned.raw()) } == Memory::host();
    (!ordinary).then_some(pinned)
}

/// Copies of one size, all to (or from) one place on the device.
pub struct Copies<'b> {
    stream: Stream,
    // the commands' target; the graph holds its tensor
    _graph: Graph<'b>,
    target: Tensor,
    command: u64,
}

impl<'b> Copies<'b> {
    /// Copies of `command` bytes, to an offset in a buffer on the device that has room for one.
    pub fn new(
        stream: Stream,
        (buffer, offset): (&'b Buffer, u64),
        command: u64,
    ) -> Result<Self, MeasureError> {
        let graph = Graph::new(1)?;
        let target = graph.tensor(ffi::GGML_TYPE_I8, [command as i64, 1, 1], buffer, offset)?;
        Ok(Copies {
            stream,
            _graph: graph,
            target,
            command,
        })
    }

    /// Bytes of one copy, at most.
    pub(super) fn command(&self) -> u64 {
        self.command
    }

    /// The stream that copies are submitted to.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Submits copies of `command` bytes each, no more than [`Copies::command`], and of at least `bytes` in all, going round in
    /// `source`; with `back`, from the device. Says how many bytes.
    ///
    /// # Safety
    /// `source` points to as many readable bytes as it says, writable ones for `back`, until the stream is waited for.
    pub(super) unsafe fn submit(
        &self,
        (source, size): (*mut u8, u64),
        (bytes, command): (u64, u64),
        back: bool,
    ) -> u64 {
        let commands = bytes.div_ceil(command);
        let places = (size / command).max(1);
        for index in 0..commands {
            let address: *mut c_void = source
                .wrapping_add(((index % places) * command) as usize)
                .cast();
            let (stream, tensor, length) = (self.stream.raw(), self.target.raw(), command as usize);
            if back {
                ffi::ggml_backend_tensor_get_async(stream, tensor, address, 0, length);
            } else {
                ffi::ggml_backend_tensor_set_async(stream, tensor, address, 0, length);
            }
        }
        commands * command
    }

    /// Copies at least `bytes` and waits: how many they were, and the seconds that they took.
    ///
    /// # Safety
    /// As for [`Copies::submit`].
    pub unsafe fn timed(&self, source: (*mut u8, u64), bytes: u64, back: bool) -> (u64, f64) {
        let start = Instant::now();
        let moved = self.submit(source, (bytes, self.command), back);
        self.stream.synchronize();
        (moved, start.elapsed().as_secs_f64().max(1e-9))
    }
}

/// Shared, read-only memory, as that of a mapped file is. Every page of it is there; it is unmapped when dropped.
pub struct SharedPages {
    base: *mut u8,
    bytes: usize,
}

impl SharedPages {
    /// Pages of no file. None where the host has no memory.
    pub(super) fn new(bytes: u64) -> Option<Self> {
        let anonymous = (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
        let pages = Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, anonymous)?;
        for at in (0..pages.bytes).step_by(4096) {
            // SAFETY: inside the mapping, which is writable.
            unsafe { pages.base.add(at).write_volatile((at >> 12) as u8) };
        }
        // SAFETY: the whole mapping; only reading is allowed from now on, as for a model's file.
        unsafe { libc::mprotect(pages.base.cast(), pages.bytes, libc::PROT_READ) };
        Some(pages)
    }

    /// The first `bytes` of a file, mapped as llama.cpp maps a model. None where it cannot be, or is shorter.
    pub fn of_file(path: &Path, bytes: u64) -> Option<Self> {
        let file = File::open(path).ok()?;
        if file.metadata().ok()?.len() < bytes {
            return None;
        }
        let pages = Self::map(bytes, libc::PROT_READ, (libc::MAP_SHARED, file.as_raw_fd()))?;
        let mut sum = 0u8;
        for at in (0..pages.bytes).step_by(4096) {
            // SAFETY: inside the mapping.
            sum = sum.wrapping_add(unsafe { pages.base.add(at).read_volatile() });
        }
        std::hint::black_box(sum);
        Some(pages)
    }

    fn map(bytes: u64, access: i32, (kind, file): (i32, RawFd)) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes > 0)?;
        // SAFETY: a new mapping without an address of its own; a file may be closed afterwards.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, file, 0) };
        let base = (base != libc::MAP_FAILED).then_some(base.cast())?;
        Some(SharedPages { base, bytes })
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_from_its_start_if_it_is_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let content: Vec<u8> = (0..3 * 4096).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let pages = SharedPages::of_file(&path, 8192).unwrap();
        // SAFETY: the mapping has that size.
        let seen = unsafe { std::slice::from_raw_parts(pages.base(), 8192) };
        assert_eq!(seen, &content[..8192]);
        assert!(SharedPages::of_file(&path, 4 * 4096).is_none());
        assert!(SharedPages::of_file(&folder.path().join("none"), 1).is_none());
        assert!(SharedPages::of_file(&path, 0).is_none());
    }
}
