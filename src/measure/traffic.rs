//! The link: how fast it is, and keeping it busy while something else is measured.

use std::ffi::c_void;
use std::time::Instant;

use super::clock::{rate, seconds_of, Pace};
use super::copies::{page_locked, Copies, SharedPages};
use super::error::MeasureError;
use super::graph::Tensor;
use crate::lanes::copy::COPY_BYTES;
use crate::lanes::device::{Buffer, Device, Stream};
use crate::lanes::host_memory::LockedMemory;
use pipeshard_plan::profile::{Link, Quantity};
use pipeshard_sys as ffi;

/// Bytes of one copy command, as streaming weights has them.
const COMMAND: u64 = COPY_BYTES as u64;
/// The same where copies accompany another measurement: they end soon after it.
const BESIDE_COMMAND: u64 = 4 << 20;
/// The most that is copied during another measurement, in bytes.
const MOST_COPIED: f64 = 16e9;
/// Attempts to make copies last longer than what they accompany.
const ATTEMPTS: u32 = 4;
/// The factor by which more copies are submitted than the other measurement is expected to need.
const MARGIN: f64 = 1.25;

/// A copy lane of its own, and page-locked memory to copy from.
pub(super) struct Traffic<'b> {
    copies: Copies<'b>,
    pinned: Option<Buffer>,
    mapped: Option<LockedPages>,
    /// Bytes per second from page-locked memory, nothing else going on; 0 without such memory.
    idle: f64,
}

/// Memory as weights lie in it: the pages of a mapped file, page-locked in place. The device may get them more slowly while the CPU
/// reads as well, for there are more of them to find than of a buffer that the driver made.
struct LockedPages {
    // unlocked before it is unmapped
    _locked: LockedMemory,
    pages: SharedPages,
}

impl LockedPages {
    /// None where the driver refuses.
    fn new(device: Device, bytes: u64) -> Option<Self> {
        let pages = SharedPages::new(bytes)?;
        let mut locked = LockedMemory::default();
        // SAFETY: the mapping has that size, and outlives the lock, which is declared before it.
        unsafe { locked.lock(device, pages.base(), bytes as usize) }.ok()?;
        Some(LockedPages {
            _locked: locked,
            pages,
        })
    }
}

/// A time that was measured while copies were under way, and their bytes per second meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Beside {
    pub seconds: f64,
    pub link: f64,
}

impl<'b> Traffic<'b> {
    /// Opens the lane: it copies to `room` bytes at `offset` of a buffer on the device.
    pub fn open(
        device: Device,
        (buffer, offset, room): (&'b Buffer, u64, u64),
        pinned_bytes: u64,
    ) -> Result<Self, MeasureError> {
        let stream = Stream::open(device).ok_or_else(|| MeasureError::NotOpened(device.name()))?;
        let command = COMMAND.min(room).min(pinned_bytes).max(1);
        Ok(Traffic {
            copies: Copies::new(stream, (buffer, offset), command)?,
            pinned: page_locked(device, pinned_bytes),
            mapped: LockedPages::new(device, pinned_bytes),
            idle: 0.0,
        })
    }

    /// Page-locked memory: its first byte and size.
    pub fn pinned(&self) -> Option<(*mut u8, u64)> {
        self.pinned.as_ref().map(|b| (b.base(), b.size()))
    }

    /// The source of copies during another measurement: memory like that of weights, where available.
    fn source(&self) -> Option<(*mut u8, u64)> {
        let pinned = self.pinned()?;
        let mapped = self.mapped.as_ref();
        Some(mapped.map_or(pinned, |mapped| (mapped.pages.base(), pinned.1)))
    }

    /// Bytes per second of copies of `span` bytes each.
    ///
    /// # Safety
    /// As for [`Copies::timed`].
    unsafe fn rate(&self, source: (*mut u8, u64), span: u64, back: bool, pace: Pace) -> Quantity {
        let mut moved = 0;
        let time = pace.repeat(|| {
            let (bytes, seconds) = self.copies.timed(source, span, back);
            moved = bytes;
            Ok::<_, MeasureError>(seconds)
        });
        time.map_or(Quantity::default(), |time| rate(moved as f64, time))
    }

    /// Measures the link, nothing else going on. What the device does not offer stays 0.
    pub fn measure(&mut self, device: Device, span: u64, pace: Pace) -> Result<Link, MeasureError> {
        let mut link = Link::default();
        if let Some((base, size)) = self.pinned() {
            let source = (base, size);
            // SAFETY: the buffer is host memory of that size and this value's own.
            unsafe { self.rate(source, self.copies.command(), false, pace) };
            self.measure_again(&mut link, span, pace);
            self.idle = link.pinned.median;
        }
        let ordinary = SharedPages::new(span).ok_or(MeasureError::HostMemory(span))?;
        let source = (ordinary.base(), span);
        // SAFETY: the mapping has that size, and copies to the device only read it.
        link.pageable = unsafe { self.rate(source, span, false, pace) };
        let mut locked = LockedMemory::default();
        // SAFETY: the mapping outlives the lock, which is declared later and dropped first.
        let time = seconds_of(|| unsafe {
            // whether it worked is asked for below
            let _ = locked.lock(device, ordinary.base(), span as usize);
            Ok::<_, MeasureError>(())
        })?;
        if locked.covers(ordinary.base(), span as usize) {
            link.register = Quantity::stated(span as f64 / time);
        }
        Ok(link)
    }

    /// Measures the link from and to page-locked memory at a later moment, and keeps the faster of both: what disturbs a copy makes it
    /// slower.
    pub fn measure_again(&self, link: &mut Link, span: u64, pace: Pace) {
        let Some((base, size)) = self.pinned() else {
            return;
        };
        let faster = |a: Quantity, b: Quantity| if b.median > a.median { b } else { a };
        let (source, span) = ((base, size), span.min(size));
        // SAFETY: the buffer is host memory of that size and this value's own.
        unsafe {
            link.pinned = faster(link.pinned, self.rate(source, span, false, pace));
            link.back = faster(link.back, self.rate(source, span, true, pace));
        }
    }

    /// Copies page-locked bytes to the device, `pieces` of them (offset and length), to one place after the other, and waits.
    ///
    /// # Safety
    /// `target` is a tensor of the device with room for all pieces.
    pub unsafe fn fill(&self, target: Tensor, base: *mut u8, pieces: &[(usize, usize)]) {
        let mut at = 0;
        for &(from, bytes) in pieces {
            let source: *const c_void = base.wrapping_add(from).cast();
            ffi::ggml_backend_tensor_set_async(
                self.copies.stream().raw(),
                target.raw(),
                source,
                at,
                bytes,
            );
            at += bytes;
        }
        self.copies.stream().synchronize();
    }

    /// Runs `once`, which waits for what it does, while copies are under way from its beginning to its end. They are meant to last
    /// for `lasting` seconds, which becomes what is enough. `None` without page-locked memory, or the copies could not
    /// be made to last.
    pub fn beside(
        &self,
        lasting: &mut f64,
        mut once: impl FnMut() -> Result<(), MeasureError>,
    ) -> Result<Option<Beside>, MeasureError> {
        let (Some(source), true) = (self.source(), self.idle > 0.0) else {
            return Ok(None);
        };
        for _ in 0..ATTEMPTS {
            let command = BESIDE_COMMAND.min(self.copies.command());
            let wanted = (self.idle * *lasting).clamp(command as f64 * 2.0, MOST_COPIED);
            let start = Instant::now();
            // SAFETY: host memory of that size and this value's own, which is read only; the stream is waited for below.
            let moved = unsafe { self.copies.submit(source, (wanted as u64, command), false) };
            let begin = Instant::now();
            let done = once();
            let end = Instant::now();
            self.copies.stream().synchronize();
            let tail = end.elapsed().as_secs_f64();
            done?;
            let overlap = (end - start).as_secs_f64().max(1e-9);
            // a stream that has nothing left to do answers in less than a command takes
            if tail <= command as f64 / self.idle {
                *lasting *= 2.0;
                continue;
            }
            let link = during(moved as f64, overlap, tail, self.idle);
            *lasting = overlap * link / self.idle * MARGIN;
            return Ok(Some(Beside {
                seconds: (end - begin).as_secs_f64().max(1e-9),
                link,
            }));
        }
        Ok(None)
    }
}

/// The rate of copies while something else went on, which took `overlap` seconds, if they ended `tail` seconds after it at the rate
/// `idle`: at most the average of both.
fn during(moved: f64, overlap: f64, tail: f64, idle: f64) -> f64 {
    let average = moved / (overlap + tail);
    let rest = (moved - tail * idle) / overlap;
    match rest > 0.0 {
        true => rest.min(average),
        false => average,
    }
}

#[cfg(test)]
mod tests {
    use super::during;

    #[test]
    fn what_is_copied_behind_the_end_does_not_count() {
        // 10 units per second alone; 20 in 3 seconds and 10 in the last one
        assert_eq!(during(30.0, 3.0, 1.0, 10.0), 20.0 / 3.0);
        assert_eq!(
            during(60.0, 3.0, 1.0, 10.0),
            15.0,
            "never more than the average"
        );
        assert_eq!(during(5.0, 3.0, 1.0, 10.0), 1.25, "nor less than nothing");
    }
}
