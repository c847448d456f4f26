//! The copy lane: host to device copies of weights, in chunks, on a stream of their own.

use super::device::{Buffer, Device, Event, Memory, Stream};
use super::staging::StagingRing;
use pipeshard_sys as ffi;
use std::ffi::c_void;
use std::ops::Range;

/// One copy command moves at most this many bytes, so that an activation never waits for a whole group of experts. A command
/// has a fixed cost: an H100 on PCIe 5 streamed a prompt at 6900, 7100 and 7800 tokens per second with commands of 4, 16
/// and 64 MiB.
pub const COPY_BYTES: usize = 64 << 20;
/// Size of a slot of the staging ring, for sources that are not page-locked.
const STAGING_BYTES: usize = 4 << 20;
/// Slots of the staging ring: one is filled by the host while the device reads others.
const STAGING_SLOTS: usize = 4;
/// The padding of most types in one command: 512 elements of 4 bytes, with room to spare.
const ZEROS_BYTES: u64 = 16 << 10;

/// An event wait that a mutation test leaves out, to show that the tests notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DroppedWait {
    /// Compute does not wait until a group is filled.
    Filled,
    /// The copy lane does not wait until a group was read.
    Read,
    /// Residents are used before their upload is complete.
    Upload,
    /// Device memory is freed or moved while it may be in use.
    Drain,
    /// A staging slot is reused before its copy was made.
    Staging,
    /// Chosen experts are looked at before the device has told them.
    Choice,
    /// The CPU computes before the device's results are there.
    Results,
    /// Host memory is written again before it was copied to the device.
    Sources,
}

impl DroppedWait {
    /// Parses the value of the environment switch.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "filled" => DroppedWait::Filled,
            "read" => DroppedWait::Read,
            "upload" => DroppedWait::Upload,
            "drain" => DroppedWait::Drain,
            "staging" => DroppedWait::Staging,
            "choice" => DroppedWait::Choice,
            "results" => DroppedWait::Results,
            "sources" => DroppedWait::Sources,
            _ => return None,
        })
    }
}

/// A weight in host memory and the device tensor that receives it.
#[derive(Debug, Clone, Copy)]
pub struct CopyTask {
    /// First byte in host memory.
    pub host: *const u8,
    /// Length in bytes.
    pub bytes: usize,
    /// The source is page-locked.
    pub pinned: bool,
    /// Offsets that no single copy may cross, ascending.
    pub seams: *const [usize],
    /// The device tensor, with its buffer and address set.
    pub device: *mut ffi::ggml_tensor,
    /// The bytes after the tensor, which kernels read and which must be zero, as a separate tensor.
    pub tail: Option<*mut ffi::ggml_tensor>,
}

struct StagingBlock {
    memory: Buffer,
    copied: Event,
}

/// Deterministic noise on the lanes: dummy transfers of random length that shift copies and kernels against each other.
struct Noise {
    state: u64,
    source: Buffer,
    target: Buffer,
    tensor: Box<ffi::ggml_tensor>,
}

/// What the copy lane has moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyCounters {
    /// Copy commands submitted.
    pub copies: u64,
    /// Bytes of weights copied.
    pub bytes: u64,
    /// Bytes that went through the staging ring.
    pub staged_bytes: u64,
    /// Times the host waited for a staging slot.
    pub staging_waits: u64,
}

/// The copy lane of one device.
pub struct Copier {
    device: Device,
    stream: Stream,
    zeros: Buffer,
    staging: StagingRing<StagingBlock>,
    noise: Option<Noise>,
    /// The most that one command copies.
    pub copy_bytes: usize,
    /// Left out on purpose by a mutation test.
    pub dropped: Option<DroppedWait>,
    /// What was moved so far.
    pub counters: CopyCounters,
}

// SAFETY: the raw pointers inside (noise tensor) point to memory owned by the same value.
unsafe impl Send for Copier {}

impl Copier {
    /// Opens the lane: a stream on `device` and a page-locked block of zeros.
    pub fn open(
        device: Device,
        dropped: Option<DroppedWait>,
        noise_seed: Option<u64>,
    ) -> Result<Self, String> {
        let stream = Stream::open(device)
            .ok_or_else(|| format!("{} refused a second stream", device.name()))?;
        let zeros = host_buffer(device, ZEROS_BYTES)?;
        zeros.clear(0);
        let mut copier = Copier {
            device,
            stream,
            zeros,
            staging: StagingRing::default(),
            noise: None,
            copy_bytes: COPY_BYTES,
            dropped,
            counters: CopyCounters::default(),
        };
        if let Some(seed) = noise_seed {
            copier.noise = Some(Noise::new(device, seed)?);
        }
        Ok(copier)
    }

    /// The lane's stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Makes the staging ring, before the first pass, when some source is not page-locked.
    pub fn prepare_staging(&mut self) -> Result<(), String> {
        while self.staging.len() < STAGING_SLOTS {
            let memory = host_buffer(self.device, STAGING_BYTES as u64)?;
            let copied = Event::new(self.device)
                .ok_or_else(|| format!("{} refused an event", self.device.name()))?;
            self.staging.push(StagingBlock { memory, copied });
        }
        Ok(())
    }

    /// Submits the copy of a whole weight, its padding included. Returns before the copy is made.
    ///
    /// # Safety
    /// The task's pointers are valid, and stay so until the copy is complete.
    pub unsafe fn submit(&mut self, task: &CopyTask) {
        self.submit_range(task, 0..task.bytes);
    }

    /// Submits the copy of a range of bytes of a weight to where they belong, and of its padding if the range is its end.
    ///
    /// # Safety
    /// As for [`Copier::submit`].
    pub unsafe fn submit_range(&mut self, task: &CopyTask, range: Range<usize>) {
        self.disturb(self.stream.raw());
        let stop = range.end.min(task.bytes);
        let direct = task.pinned || self.staging.is_empty();
        let most = if direct {
            self.copy_bytes
        } else {
            STAGING_BYTES
        };
        for (begin, end) in pieces(range.start, stop, &*task.seams) {
            let mut offset = begin;
            while offset < end {
                let source = task.host.add(offset);
                let length = most.min(end - offset);
                if direct {
                    self.set_async(task.device, source, offset, length);
                } else {
                    self.submit_staged(task.device, source, offset, length);
                }
                offset += length;
            }
        }
        if let Some(tail) = task.tail.filter(|_| stop == task.bytes) {
            let (length, most) = (ffi::ggml_nbytes(tail), ZEROS_BYTES as usize);
            for offset in (0..length).step_by(most) {
                let bytes = most.min(length - offset);
                self.set_async(tail, self.zeros.base(), offset, bytes);
            }
        }
        self.counters.bytes += stop.saturating_sub(range.start) as u64;
    }

    unsafe fn set_async(
        &mut self,
        tensor: *mut ffi::ggml_tensor,
        source: *const u8,
        offset: usize,
        bytes: usize,
    ) {
        self.counters.copies += 1;
        set_async(self.stream.raw(), tensor, source, offset, bytes);
    }

    unsafe fn submit_staged(
        &mut self,
        tensor: *mut ffi::ggml_tensor,
        source: *const u8,
        offset: usize,
        bytes: usize,
    ) {
        let (dropped, waits) = (self.dropped, &mut self.counters.staging_waits);
        let block = self.staging.take(|used: &StagingBlock| {
            if dropped != Some(DroppedWait::Staging) {
                *waits += 1;
                used.copied.synchronize();
            }
        });
        let Some(block) = block else { return };
        let memory = block.memory.base();
        std::ptr::copy_nonoverlapping(source, memory, bytes);
        self.counters.copies += 1;
        set_async(self.stream.raw(), tensor, memory, offset, bytes);
        block.copied.record(self.stream.raw());
        self.counters.staged_bytes += bytes as u64;
    }

    /// Puts a dummy transfer of random length on `backend`'s stream, when noise is on.
    ///
    /// # Safety
    /// `backend` is a live backend of the lane's device.
    pub unsafe fn disturb(&mut self, backend: ffi::ggml_backend_t) {
        if let Some(noise) = &mut self.noise {
            let bytes = noise.next_length();
            ffi::ggml_backend_tensor_set_async(
                backend,
                &mut *noise.tensor,
                noise.source.base().cast::<c_void>(),
                0,
                bytes,
            );
        }
    }

    /// Device memory that the lane itself holds, in bytes (debugging noise only).
    pub fn device_bytes(&self) -> u64 {
        self.noise.as_ref().map_or(0, |noise| noise.target.size())
    }
}

/// A range of bytes in parts that cross no seam. `seams` are ascending.
pub(super) fn pieces(
    from: usize,
    to: usize,
    seams: &[usize],
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let inside = seams.iter().copied();
    let mut seams = inside.filter(move |&seam| from < seam && seam < to);
    let mut begin = from;
    std::iter::from_fn(move || {
        (begin < to).then(|| {
            let end = seams.next().unwrap_or(to);
            (std::mem::replace(&mut begin, end), end)
        })
    })
}

/// # Safety
/// The pointers are valid, and stay so until the copy is complete.
unsafe fn set_async(
    backend: ffi::ggml_backend_t,
    tensor: *mut ffi::ggml_tensor,
    source: *const u8,
    offset: usize,
    bytes: usize,
) {
    ffi::ggml_backend_tensor_set_async(backend, tensor, source.cast::<c_void>(), offset, bytes);
}

/// Host memory for transfers: page-locked where the device has some.
pub fn host_buffer(device: Device, bytes: u64) -> Result<Buffer, String> {
    device
        .pinned_memory()
        .and_then(|pinned| Buffer::allocate(pinned, bytes))
        .or_else(|| Buffer::allocate(Memory::host(), bytes))
        .ok_or_else(|| format!("no host memory for a staging buffer of {} KiB", bytes >> 10))
}

impl Noise {
    const BYTES: u64 = 8 << 20;

    fn new(device: Device, seed: u64) -> Result<Self, String> {
        let refused = || format!("{} refused memory for debugging noise", device.name());
        let source = host_buffer(device, Self::BYTES)?;
        source.clear(0);
        let target = Buffer::allocate(device.memory_type(), Self::BYTES).ok_or_else(refused)?;
        let tensor = bytes_tensor(&target, target.base(), Self::BYTES);
        Ok(Noise {
            state: seed | 1,
            source,
            target,
            tensor,
        })
    }

    fn next_length(&mut self) -> usize {
        // xorshift64: any sequence will do, as long as a seed repeats it
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % Self::BYTES).max(1) as usize
    }
}

/// A tensor of `bytes` bytes at `address` in `buffer`.
pub fn bytes_tensor(buffer: &Buffer, address: *mut u8, bytes: u64) -> Box<ffi::ggml_tensor> {
    // SAFETY: an all-zero ggml_tensor is valid (type F32, no sources); the fields that matter are set below.
    let mut tensor: Box<ffi::ggml_tensor> = Box::new(unsafe { std::mem::zeroed() });
    let length = bytes as usize;
    tensor.type_ = ffi::GGML_TYPE_I8;
    tensor.ne = [bytes as i64, 1, 1, 1];
    tensor.nb = [1, length, length, length];
    tensor.buffer = buffer.raw();
    tensor.data = address.cast();
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_sim::{registry, SimSpec};

    #[test]
    fn no_piece_crosses_a_seam() {
        let seams = [10, 20, 35];
        let of = |from, to| pieces(from, to, &seams).collect::<Vec<_>>();
        assert_eq!(of(0, 5), [(0, 5)]);
        assert_eq!(of(5, 25), [(5, 10), (10, 20), (20, 25)]);
        assert_eq!(of(10, 20), [(10, 20)]);
        assert_eq!(of(40, 41), [(40, 41)]);
        assert_eq!(of(7, 7), []);
    }

    #[test]
    fn padding_is_zeroed_however_long_it_is() {
        let registry = registry(SimSpec::parse("vram=8M").expect("a valid specification"));
        // SAFETY: the registry has one device, which lives as long as the process.
        let raw = unsafe { ffi::ggml_backend_reg_dev_get(registry, 0) };
        let device = Device::new(raw).expect("it has one device");
        let mut copier = Copier::open(device, None, None).expect("it has room");
        let (weight, padding) = (256u64, 5 * ZEROS_BYTES / 2);
        let target = Buffer::allocate(device.memory_type(), weight + padding).expect("room");
        target.clear(0xff);
        let mut tensor = bytes_tensor(&target, target.base(), weight);
        let behind = target.base().wrapping_add(weight as usize);
        let mut tail = bytes_tensor(&target, behind, padding);
        let host = vec![7u8; weight as usize];
        let task = CopyTask {
            host: host.as_ptr(),
            bytes: host.len(),
            pinned: false,
            seams: &[],
            device: &mut *tensor,
            tail: Some(&mut *tail),
        };
        let mut found = vec![1u8; padding as usize];
        // SAFETY: the task's pointers are valid until the lane is waited for; the tensor has memory of that length.
        unsafe {
            copier.submit(&task);
            copier.stream().synchronize();
            let place = found.as_mut_ptr().cast::<c_void>();
            ffi::ggml_backend_tensor_get(&*tail, place, 0, found.len());
        }
        assert!(found.iter().all(|&byte| byte == 0));
    }
}
