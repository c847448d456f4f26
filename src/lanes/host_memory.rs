//! Page-locking of the weights' host memory, in place.
//!
//! Copies from memory that the driver has not page-locked block the host and run at a fraction of the link's speed. llama.cpp
//! maps the file shared and read-only; such a mapping can be registered as it is, read-only, at about the speed of memory.
//! Registration is refused on many systems (limits of the operating system or a container, private mappings): then copies go
//! through a small page-locked staging ring instead, see [`super::copy`].

use super::device::Device;
use std::ffi::c_void;
use std::ops::Range;

/// Page-locking goes in steps of this many bytes: a refusal costs one step, not everything.
const STEP: usize = 1 << 30;

type RegisterFn = unsafe extern "C" fn(*mut c_void, usize) -> bool;
type UnregisterFn = unsafe extern "C" fn(*mut c_void);

/// A page-locked range of host addresses; unlocked when dropped.
#[derive(Debug)]
struct LockedRange {
    base: usize,
    bytes: usize,
    /// Its pages could be reclaimed if they were not locked.
    reclaimable: bool,
    unregister: UnregisterFn,
}

impl LockedRange {
    fn end(&self) -> usize {
        self.base + self.bytes
    }

    fn contains(&self, address: usize) -> bool {
        (self.base..self.end()).contains(&address)
    }
}

impl Drop for LockedRange {
    fn drop(&mut self) {
        // SAFETY: the range was registered by the function's counterpart and is unregistered once, before the memory is
        // unmapped: the runtime drops it when llama.cpp announces that the weights go.
        unsafe { (self.unregister)(self.base as *mut c_void) }
    }
}

/// Why some memory is not page-locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotLocked {
    /// The driver refuses, or cannot.
    Refused(String),
    /// The system would have too little memory left.
    NoRoom,
}

/// How many bytes of reclaimable memory may be page-locked in addition to what others have locked.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// In all; `None` if unknown.
    pub lockable: &'a dyn Fn() -> Option<u64>,
    /// What others of this process have locked.
    pub elsewhere: u64,
}

/// Which host memory is page-locked.
#[derive(Debug)]
pub struct LockedMemory {
    /// Whole pages, disjoint.
    ranges: Vec<LockedRange>,
    step: usize,
}

impl Default for LockedMemory {
    fn default() -> Self {
        Self::with_step(STEP)
    }
}

impl LockedMemory {
    /// Nothing page-locked yet; locks in steps of `step` bytes, rounded up to pages.
    pub fn with_step(step: usize) -> Self {
        LockedMemory {
            ranges: Vec::new(),
            step: step.clamp(1, 1 << 40).next_multiple_of(page_size()),
        }
    }

    /// Where, within `[base, base + bytes)`, one locked range ends and the next begins, as offsets. The driver refuses a copy
    /// that crosses such a place.
    pub fn seams(&self, base: *const u8, bytes: usize) -> Box<[usize]> {
        let inside = |r: &LockedRange| r.end().checked_sub(base as usize);
        let ends = self.ranges.iter().filter_map(inside);
        let mut seams: Vec<usize> = ends.filter(|&at| at > 0 && at < bytes).collect();
        seams.sort_unstable();
        seams.into()
    }

    /// Splits `[base, base + bytes)` into pieces, as offsets. Each piece lies in one locked range or outside of all. The
    /// driver refuses a copy of more than one of them.
    pub fn pieces(
        &self,
        base: *const u8,
        bytes: usize,
    ) -> impl Iterator<Item = Range<usize>> + Clone + '_ {
        let (base, end) = (base as usize, base as usize + bytes);
        let piece_from = move |at: usize| {
            let inside = self.ranges.iter().find(|range| range.contains(at));
            let stop = match inside {
                Some(range) => Some(range.end()),
                None => self
                    .ranges
                    .iter()
                    .map(|range| range.base)
                    .filter(|&next| next > at)
                    .min(),
            };
            (at < end).then(|| at..stop.map_or(end, |stop| stop.min(end)))
        };
        let pieces = std::iter::successors(piece_from(base), move |last| piece_from(last.end));
        pieces.map(move |piece| piece.start - base..piece.end - base)
    }

    /// Page-locks the pages that hold `[base, base + bytes)`.
    ///
    /// # Errors
    /// Why some are not; those before them are.
    ///
    /// # Safety
    /// The range is mapped and stays so until this value is dropped.
    pub unsafe fn lock(
        &mut self,
        device: Device,
        base: *const u8,
        bytes: usize,
    ) -> Result<(), NotLocked> {
        let pages = pages_of(base as usize, bytes);
        self.lock_pages(device, pages, None)
    }

    /// Page-locks whole pages, step by step, those that are not locked yet. `limit`: for pages that could be reclaimed.
    ///
    /// # Errors
    /// As for [`Self::lock`].
    ///
    /// # Safety
    /// As for [`Self::lock`].
    pub unsafe fn lock_pages(
        &mut self,
        device: Device,
        pages: Range<usize>,
        limit: Option<Limit<'_>>,
    ) -> Result<(), NotLocked> {
        let (register, unregister) = registration(device).map_err(NotLocked::Refused)?;
        let mut at = pages.start;
        while at < pages.end {
            // neighbouring ranges may share a page, which can be registered only once
            if let Some(range) = self.ranges.iter().find(|range| range.contains(at)) {
                at = range.end();
                continue;
            }
            let later = self.ranges.iter().map(|range| range.base);
            let next = later.filter(|&base| base > at).min();
            let end = next.unwrap_or(pages.end).min(pages.end);
            let step = self.step.min(end - at);
            if let Some(limit) = limit {
                let locked = limit.elsewhere + self.reclaimable_bytes();
                let after = locked.saturating_add(step as u64);
                if (limit.lockable)().is_some_and(|most| after > most) {
                    return Err(NotLocked::NoRoom);
                }
            }
            if !register(at as *mut c_void, step) {
                return Err(NotLocked::Refused(format!(
                    "{} refused to page-lock {} MiB",
                    device.name(),
                    step >> 20
                )));
            }
            self.ranges.push(LockedRange {
                base: at,
                bytes: step,
                reclaimable: limit.is_some(),
                unregister,
            });
            at += step;
        }
        Ok(())
    }

    /// Unlocks the ranges that are not to be kept. True if there were some.
    pub fn keep(&mut self, kept: impl Fn(Range<usize>) -> bool) -> bool {
        let before = self.ranges.len();
        self.ranges.retain(|range| kept(range.base..range.end()));
        self.ranges.len() < before
    }

    /// Reports whether all of `[base, base + bytes)` is page-locked.
    pub fn covers(&self, base: *const u8, bytes: usize) -> bool {
        let (mut at, end) = (base as usize, base as usize + bytes);
        while at < end {
            match self.ranges.iter().find(|range| range.contains(at)) {
                Some(range) => at = range.end(),
                None => return false,
            }
        }
        true
    }

    /// Page-locked bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.bytes as u64).sum()
    }

    /// Those of them that could be reclaimed if they were not locked.
    pub fn reclaimable_bytes(&self) -> u64 {
        let counted = self.ranges.iter().filter(|range| range.reclaimable);
        counted.map(|range| range.bytes as u64).sum()
    }
}

/// The pages that hold `[base, base + bytes)`.
pub fn pages_of(base: usize, bytes: usize) -> Range<usize> {
    let page = page_size();
    base & !(page - 1)..(base + bytes).next_multiple_of(page)
}

/// The same pages as as few ranges as possible, ascending.
pub fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size)
        .ok()
        .filter(|s| s.is_power_of_two())
        .unwrap_or(4096)
}

fn registration(device: Device) -> Result<(RegisterFn, UnregisterFn), String> {
    let register = device.proc_address(c"ggml_backend_register_host_buffer");
    let unregister = device.proc_address(c"ggml_backend_unregister_host_buffer");
    if register.is_null() || unregister.is_null() {
        return Err(format!(
            "the backend of {} cannot page-lock memory in place",
            device.name()
        ));
    }
    // SAFETY: backends that offer these names give them these signatures (ggml-backend.h: ggml_backend_*_host_buffer).
    unsafe {
        Ok((
            std::mem::transmute::<*mut c_void, RegisterFn>(register),
            std::mem::transmute::<*mut c_void, UnregisterFn>(unregister),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn forget(_: *mut c_void) {}

    #[test]
    fn covers_needs_every_byte() {
        let mut memory = LockedMemory::default();
        memory.ranges.push(LockedRange {
            base: 0x1000,
            bytes: 0x1000,
            reclaimable: false,
            unregister: forget,
        });
        memory.ranges.push(LockedRange {
            base: 0x2000,
            bytes: 0x1000,
            reclaimable: false,
            unregister: forget,
        });
        assert!(memory.covers(0x1800 as *const u8, 0x1000));
        assert!(!memory.covers(0x2800 as *const u8, 0x1000));
        assert!(!memory.covers(0x800 as *const u8, 0x10));
        assert_eq!(memory.bytes(), 0x2000);
        assert_eq!(*memory.seams(0x1800 as *const u8, 0x1000), [0x800]);
        assert!(memory.seams(0x1000 as *const u8, 0x1000).is_empty());
        let pieces = |base: usize, bytes| {
            let pieces = memory.pieces(base as *const u8, bytes);
            pieces
                .map(|piece| (piece.start, piece.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(pieces(0x1800, 0x400), [(0, 0x400)]);
        assert_eq!(pieces(0x4000, 0x400), [(0, 0x400)]);
        let through_all = [
            (0, 0x800),
            (0x800, 0x1800),
            (0x1800, 0x2800),
            (0x2800, 0x3000),
        ];
        assert_eq!(pieces(0x800, 0x3000), through_all);
    }

    #[test]
    fn neighbours_become_one_range() {
        let page = page_size();
        assert_eq!(pages_of(page + 1, page), page..3 * page);
        let ranges = vec![
            5 * page..6 * page,
            0..page,
            2 * page..5 * page,
            3 * page..4 * page,
        ];
        assert_eq!(merged(ranges), [0..page, 2 * page..6 * page]);
    }
}
