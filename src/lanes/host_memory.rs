//! Page-locking of the weights' host memory, in place.
//!
//! Copies from memory that the driver has not page-locked block the host and run at a fraction of the link's speed. llama.cpp
//! maps the file shared and read-only; such a mapping can be registered as it is, read-only, at about the speed of memory.
//! Registration is refused on many systems (limits of the operating system or a container, private mappings): then copies go
//! through a small page-locked staging ring instead, see [`super::copy`].

use super::device::Device;
use std::ffi::c_void;

/// Page-locking goes in steps of this many bytes: a refusal costs one step, not everything.
const STEP: usize = 1 << 30;

type RegisterFn = unsafe extern "C" fn(*mut c_void, usize) -> bool;
type UnregisterFn = unsafe extern "C" fn(*mut c_void);

/// A page-locked range of host addresses; unlocked when dropped.
#[derive(Debug)]
struct LockedRange {
    base: usize,
    bytes: usize,
    unregister: UnregisterFn,
}

impl Drop for LockedRange {
    fn drop(&mut self) {
        // SAFETY: the range was registered by the function's counterpart and is unregistered once, before the memory is
        // unmapped: the runtime drops it when llama.cpp announces that the weights go.
        unsafe { (self.unregister)(self.base as *mut c_void) }
    }
}

/// Which host memory is page-locked.
#[derive(Debug)]
pub struct LockedMemory {
    ranges: Vec<LockedRange>,
    refused: Option<String>,
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
            refused: None,
            step: step.clamp(1, 1 << 40).next_multiple_of(page_size()),
        }
    }

    /// Where, within `[base, base + bytes)`, one locked range ends and the next begins, as offsets. The driver refuses a copy
    /// that crosses such a place.
    pub fn seams(&self, base: *const u8, bytes: usize) -> Box<[usize]> {
        let inside = |r: &LockedRange| (r.base + r.bytes).checked_sub(base as usize);
        let ends = self.ranges.iter().filter_map(inside);
        let mut seams: Vec<usize> = ends.filter(|&at| at > 0 && at < bytes).collect();
        seams.sort_unstable();
        seams.into()
    }

    /// Page-locks the pages that hold `[base, base + bytes)`, as far as the driver allows.
    ///
    /// # Safety
    /// The range is mapped and stays so until this value is dropped.
    pub unsafe fn lock(&mut self, device: Device, base: *const u8, bytes: usize) {
        let page = page_size();
        let first = base as usize & !(page - 1);
        let end = (base as usize + bytes).next_multiple_of(page);
        let (register, unregister) = match registration(device) {
            Ok(functions) => functions,
            Err(why) => {
                self.refused.get_or_insert(why);
                return;
            }
        };
        let mut at = first;
        while at < end {
            // neighbouring ranges may share a page, which can be registered only once
            if let Some(range) = self
                .ranges
                .iter()
                .find(|r| at >= r.base && at < r.base + r.bytes)
            {
                at = range.base + range.bytes;
                continue;
            }
            let next = self
                .ranges
                .iter()
                .map(|r| r.base)
                .filter(|&b| b > at)
                .min()
                .unwrap_or(end);
            let step = self.step.min(end - at).min(next - at);
            if !register(at as *mut c_void, step) {
                self.refused.get_or_insert_with(|| {
                    format!("{} refused to page-lock {} MiB", device.name(), step >> 20)
                });
                return;
            }
            self.ranges.push(LockedRange {
                base: at,
                bytes: step,
                unregister,
            });
            at += step;
        }
    }

    /// Whether all of `[base, base + bytes)` is page-locked.
    pub fn covers(&self, base: *const u8, bytes: usize) -> bool {
        let (mut at, end) = (base as usize, base as usize + bytes);
        while at < end {
            match self
                .ranges
                .iter()
                .find(|r| at >= r.base && at < r.base + r.bytes)
            {
                Some(range) => at = range.base + range.bytes,
                None => return false,
            }
        }
        true
    }

    /// Page-locked bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.bytes as u64).sum()
    }

    /// Why some memory is not page-locked.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
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
            unregister: forget,
        });
        memory.ranges.push(LockedRange {
            base: 0x2000,
            bytes: 0x1000,
            unregister: forget,
        });
        assert!(memory.covers(0x1800 as *const u8, 0x1000));
        assert!(!memory.covers(0x2800 as *const u8, 0x1000));
        assert!(!memory.covers(0x800 as *const u8, 0x10));
        assert_eq!(memory.bytes(), 0x2000);
        assert_eq!(*memory.seams(0x1800 as *const u8, 0x1000), [0x800]);
        assert!(memory.seams(0x1000 as *const u8, 0x1000).is_empty());
    }
}
