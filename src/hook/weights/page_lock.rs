//! Which buffers hold tensors, and page-locking them.

use crate::arena::unit::LoadedUnit;
use crate::hook::config::Config;
use crate::hook::log;
use crate::lanes::available_memory::lockable_bytes;
use crate::lanes::device::{Device, Memory};
use crate::lanes::host_memory::{merged, pages_of, Limit, LockedMemory, NotLocked};
use crate::lanes::mapped_file::MappedFiles;
use pipeshard_sys as ffi;
use std::ops::Range;

/// The buffers that hold any of these tensors, each once.
unsafe fn buffers_of(tensors: &[*mut ffi::ggml_tensor]) -> Vec<ffi::ggml_backend_buffer_t> {
    let mut buffers: Vec<ffi::ggml_backend_buffer_t> = Vec::new();
    for &tensor in tensors {
        let buffer = (*tensor).buffer;
        if !buffer.is_null() && !buffers.contains(&buffer) {
            buffers.push(buffer);
        }
    }
    buffers
}

/// Bytes of the device's buffers that hold any of these tensors, each rounded up: the user's tensor overrides put them there.
///
/// # Safety
/// The tensors are valid.
pub unsafe fn device_bytes_of(tensors: &[*mut ffi::ggml_tensor], granularity: u64) -> u64 {
    let buffers = buffers_of(tensors).into_iter();
    let on_device = buffers.filter(|&buffer| !ffi::ggml_backend_buffer_is_host(buffer));
    let sizes = on_device.map(|buffer| ffi::ggml_backend_buffer_get_size(buffer) as u64);
    sizes.map(|size| size.next_multiple_of(granularity)).sum()
}

/// Reports whether a weight lies in memory that the driver made, page-locked.
///
/// # Safety
/// The weight is loaded.
unsafe fn made_pinned(unit: &LoadedUnit, device: Device) -> bool {
    Some(Memory::of((*unit.source()).buffer)) == device.pinned_memory()
}

/// How memory is page-locked.
#[derive(Debug, Clone, Copy)]
pub struct Locking {
    /// Never.
    off: bool,
    /// In steps of so many bytes, unless in the usual ones.
    step: Option<usize>,
    /// How many bytes may be, of memory that could be reclaimed.
    pub(super) lockable: fn() -> Option<u64>,
}

impl Default for Locking {
    fn default() -> Self {
        Locking {
            off: false,
            step: None,
            lockable: lockable_bytes,
        }
    }
}

impl Locking {
    /// As was asked for.
    pub fn new(config: &Config) -> Self {
        Locking {
            off: config.no_page_lock,
            step: config.debug.lock_step.map(|step| step as usize),
            ..Locking::default()
        }
    }

    /// Nothing locked yet.
    pub fn memory(&self) -> LockedMemory {
        self.step
            .map_or_else(LockedMemory::default, LockedMemory::with_step)
    }

    /// Why nothing is locked, if that was asked for.
    pub fn off(&self) -> Option<String> {
        self.off.then(|| "page-locking is switched off".to_string())
    }
}

/// Units by number: which of them are meant.
pub type Which<'a> = &'a [bool];

/// The page-locked part of a model.
pub struct Part<'a> {
    /// The number of its first unit.
    pub first: usize,
    /// Its units.
    pub units: &'a mut [LoadedUnit],
    /// What of its memory is locked.
    pub locked: &'a mut LockedMemory,
    /// The files that it is mapped from.
    pub files: &'a MappedFiles,
}

impl Part<'_> {
    /// The units that are meant.
    fn meant<'s>(&'s self, which: Which<'s>) -> impl Iterator<Item = &'s LoadedUnit> + 's {
        let first = self.first;
        let units = self.units.iter().enumerate();
        units.filter_map(move |(at, unit)| which.get(first + at)?.then_some(unit))
    }

    /// Notes in the units whether they are page-locked.
    ///
    /// # Safety
    /// They are loaded.
    pub unsafe fn note_pinned(&mut self, device: Device) {
        for unit in &mut *self.units {
            let (host, bytes) = (unit.host(), unit.bytes());
            let pinned = made_pinned(unit, device) || self.locked.covers(host, bytes);
            unit.set_pinned(pinned, self.locked.seams(host, bytes));
        }
    }
}

/// Page-locks models' memory.
#[derive(Default)]
pub struct PageLocks {
    /// How.
    pub locking: Locking,
    /// Why what is read from host memory is not page-locked.
    pub refused: Option<String>,
}

impl PageLocks {
    /// Page-locks what is read from host memory from here on, and for the time being what is about to be uploaded; where there is too
    /// little room, what is not needed any more gives way. Notes in the units whether they are locked. Answers why some that are read
    /// are not.
    ///
    /// # Safety
    /// The units are loaded, and nothing is being copied from them.
    pub unsafe fn lock_for(
        &mut self,
        parts: &mut [Part<'_>],
        device: Device,
        read: Which<'_>,
        uploaded: Which<'_>,
    ) -> Option<String> {
        if let Some(why) = self.locking.off() {
            return Some(why);
        }
        let mut refused = self.lock_units(parts, device, read).err();
        if refused.is_some() {
            let needed = pages(parts, read);
            let whole = |range: Range<usize>| {
                let holds =
                    |pages: &Range<usize>| pages.start <= range.start && range.end <= pages.end;
                needed.iter().any(holds)
            };
            if keep(parts, whole) {
                refused = self.lock_units(parts, device, read).err();
            }
        }
        if refused.is_none() {
            // what is not goes through the staging ring, once
            let _ = self.lock_units(parts, device, uploaded);
        }
        for part in &mut *parts {
            part.note_pinned(device);
        }
        let wanted: usize = pages(parts, read).iter().map(Range::len).sum();
        let locked = parts.iter().map(|part| part.locked.bytes()).sum();
        let why = refused.map(|refused| describe(&refused, locked, wanted as u64));
        if why != self.refused {
            self.refused.clone_from(&why);
            if let Some(why) = &why {
                log::warn(&format!(
                    "{why}; streamed weights go through a small staging ring, which is slower"
                ));
            }
        }
        why
    }

    /// Unlocks what was only locked to be uploaded.
    ///
    /// # Safety
    /// As for [`Self::lock_for`].
    pub unsafe fn unlock_others(&self, parts: &mut [Part<'_>], device: Device, read: Which<'_>) {
        let needed = pages(parts, read);
        let touched = |range: Range<usize>| {
            let touches = |pages: &Range<usize>| pages.start < range.end && range.start < pages.end;
            needed.iter().any(touches)
        };
        if keep(parts, touched) {
            for part in parts {
                part.note_pinned(device);
            }
        }
    }

    unsafe fn lock_units(
        &self,
        parts: &mut [Part<'_>],
        device: Device,
        which: Which<'_>,
    ) -> Result<(), NotLocked> {
        let locked = |part: &Part<'_>| part.locked.reclaimable_bytes();
        for at in 0..parts.len() {
            let all: u64 = parts.iter().map(locked).sum();
            let elsewhere = all - locked(&parts[at]);
            let part = &mut parts[at];
            let meant = part.meant(which).filter(|unit| !made_pinned(unit, device));
            let pages = meant.map(|unit| pages_of(unit.host() as usize, unit.bytes()));
            for pages in merged(pages.collect()) {
                let reclaimable = part
                    .files
                    .reclaimable(pages.start as *const u8, pages.len());
                let limit = reclaimable.then_some(Limit {
                    lockable: &self.locking.lockable,
                    elsewhere,
                });
                part.locked.lock_pages(device, pages, limit)?;
            }
        }
        Ok(())
    }
}

/// The pages of the given units, whichever part locked them.
fn pages(parts: &[Part<'_>], which: Which<'_>) -> Vec<Range<usize>> {
    let units = parts.iter().flat_map(|part| part.meant(which));
    merged(
        units
            .map(|unit| pages_of(unit.host() as usize, unit.bytes()))
            .collect(),
    )
}

/// Unlocks the ranges that are not to be kept. True if there were some.
fn keep(parts: &mut [Part<'_>], kept: impl Fn(Range<usize>) -> bool) -> bool {
    let unlocked = parts.iter_mut().map(|part| part.locked.keep(&kept));
    // all of them: what `any` would leave is still locked
    unlocked.filter(|&unlocked| unlocked).count() > 0
}

fn describe(why: &NotLocked, locked: u64, wanted: u64) -> String {
    let (locked, wanted) = (locked >> 20, wanted >> 20);
    match why {
        NotLocked::Refused(why) => format!("{why}: {locked} of {wanted} MiB are page-locked"),
        NotLocked::NoRoom => format!(
            "page-locking stopped at {locked} of {wanted} MiB, before the system or the container runs out of memory: give it more, or \
             take a smaller model"
        ),
    }
}
