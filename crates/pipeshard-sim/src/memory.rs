//! The device's memory: addresses that mean nothing to the host, a capacity, and poison.
//!
//! Two ranges of the same length are reserved side by side. The lower one is never accessible: its addresses are what
//! ggml gets, so a host access to device memory faults at once. The upper one, the shadow, holds the bytes; the
//! distance between the two is constant. Only what is allocated is accessible in the shadow, with an inaccessible
//! page between neighbours, so a kernel that runs past a buffer or into freed memory faults as well.

use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::Arc;

use parking_lot::RwLock;

use pipeshard_model::size::ByteSize;

use super::faults::Faults;
use super::supply::{Supplied, Supply};

/// Alignment of everything that is allocated, in bytes.
pub(super) const ALIGNMENT: usize = 256;

/// What fresh memory is filled with: NaN as f32, f16 and bf16, and as the scales of quantised blocks.
const POISON: u8 = 0xFF;

/// Address space at least, so that fragmentation is not what fails an allocation.
const LEAST_SPAN: usize = 8 << 30;

#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("cannot reserve {} of address space for the simulated GPU: {source}; a limit such as ulimit -v is the usual reason, raise it or simulate less memory", ByteSize(*.bytes as u64))]
    Reserve { bytes: usize, source: io::Error },
    #[error("{asked} bytes asked for ({}), {free} free of {total}", ByteSize(*.asked))]
    OutOfMemory { asked: u64, free: u64, total: u64 },
    #[error("allocation {0} fails because the specification says so (failalloc)")]
    Injected(u64),
    #[error("{asked} bytes asked for ({}), which the program that has the GPU refuses to give", ByteSize(*.asked))]
    Refused { asked: u64 },
    #[error("the host has no memory left to simulate {} with: {source}", ByteSize(*.bytes as u64))]
    Host { bytes: usize, source: io::Error },
    #[error("{len} bytes at device address {address:#x} are not within an allocation")]
    BadAddress { address: usize, len: usize },
}

#[derive(Debug)]
struct Allocation {
    /// What may be touched, in bytes.
    size: usize,
    /// What it counts for against the capacity.
    charged: u64,
    /// Address space taken, guard page included; none of what came from elsewhere, whose address is where it really is.
    span: usize,
}

#[derive(Debug, Default)]
struct State {
    /// By start address.
    live: BTreeMap<usize, Allocation>,
    /// Address space to give out: start to length; disjoint and not touching.
    holes: BTreeMap<usize, usize>,
    used: u64,
    peak: u64,
    attempts: u64,
    allocations: u64,
    frees: u64,
    failures: u64,
}

/// Counts of allocations, for the device's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemoryCounts {
    pub current: u64,
    pub peak: u64,
    pub allocations: u64,
    pub frees: u64,
    pub failures: u64,
}

/// What the memory of a device is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryConfig {
    pub capacity: u64,
    /// In use from the start.
    pub context: u64,
    pub granularity: u64,
    pub poison: bool,
    pub fail_alloc: Option<Faults>,
}

pub(super) struct DeviceMemory {
    config: MemoryConfig,
    /// Who gives memory in its place.
    supply: Option<Arc<dyn Supply>>,
    base: usize,
    /// Length of each of the two ranges.
    span: usize,
    page: usize,
    state: RwLock<State>,
}

impl DeviceMemory {
    pub fn new(config: MemoryConfig, supply: Option<Arc<dyn Supply>>) -> Result<Self, MemoryError> {
        let page = page_size();
        let capacity = usize::try_from(config.capacity).unwrap_or(usize::MAX);
        let span = capacity
            .saturating_mul(4)
            .max(LEAST_SPAN)
            .next_multiple_of(page);
        let reserve = |bytes: usize| {
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing one.
            let base = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    bytes,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                let source = io::Error::last_os_error();
                return Err(MemoryError::Reserve { bytes, source });
            }
            Ok(base as usize)
        };
        let base = reserve(span.saturating_mul(2))?;
        let mut state = State::default();
        state.holes.insert(base, span);
        Ok(Self {
            config,
            supply,
            base,
            span,
            page,
            state: RwLock::new(state),
        })
    }

    /// Free and total bytes.
    pub fn free_and_total(&self) -> (u64, u64) {
        let used = self.state.read().used;
        (self.available(used), self.config.capacity)
    }

    pub fn counts(&self) -> MemoryCounts {
        let state = self.state.read();
        MemoryCounts {
            current: state.used,
            peak: state.peak,
            allocations: state.allocations,
            frees: state.frees,
            failures: state.failures,
        }
    }

    /// Begins to count anew; what is in use stays so.
    pub fn reset_counts(&self) {
        let mut state = self.state.write();
        state.peak = state.used;
        state.allocations = 0;
        state.frees = 0;
        state.failures = 0;
    }

    /// A device address of `size` bytes, all of them poisoned.
    pub fn allocate(&self, size: usize) -> Result<usize, MemoryError> {
        let mut state = self.state.write();
        match self.try_allocate(&mut state, size) {
            Ok(address) => {
                state.allocations += 1;
                Ok(address)
            }
            Err(error) => {
                state.failures += 1;
                Err(error)
            }
        }
    }

    /// Takes back what [`allocate`](Self::allocate) gave. From here on every access to it faults.
    pub fn free(&self, address: usize) -> Result<(), MemoryError> {
        let mut state = self.state.write();
        let Some(allocation) = state.live.remove(&address) else {
            return Err(MemoryError::BadAddress { address, len: 0 });
        };
        if allocation.span == 0 {
            if let Some(supply) = &self.supply {
                supply.release_device(address as *mut u8);
            }
            state.used -= allocation.charged;
            state.frees += 1;
            return Ok(());
        }
        let shadow = (address + self.span) as *mut libc::c_void;
        // SAFETY: the range is part of this object's own mapping and no allocation uses it any more. Mapping it anew
        // gives the memory back and takes the access away in one step.
        let mapped = unsafe {
            libc::mmap(
                shadow,
                allocation.span,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            log::error!(
                "freed memory of the simulated GPU stays accessible: {}",
                io::Error::last_os_error()
            );
        }
        state.used -= allocation.charged;
        state.frees += 1;
        state.give_back(address, allocation.span);
        Ok(())
    }

    /// Reports whether an address is one of this device's, allocated or not.
    pub fn owns(&self, address: usize) -> bool {
        (self.base..self.base + self.span).contains(&address)
            || self.supply.is_some() && self.translate(address, 0).is_ok()
    }

    /// Where the `len` bytes at a device address really are. They must lie within one allocation.
    pub fn translate(&self, address: usize, len: usize) -> Result<*mut u8, MemoryError> {
        let state = self.state.read();
        let before = state.live.range(..=address).next_back();
        let inside = before.filter(|(start, allocation)| {
            let offset = address - **start;
            offset <= allocation.size && len <= allocation.size - offset
        });
        match inside {
            Some((_, allocation)) if allocation.span == 0 => Ok(address as *mut u8),
            Some(_) => Ok((address + self.span) as *mut u8),
            None => Err(MemoryError::BadAddress { address, len }),
        }
    }

    fn available(&self, used: u64) -> u64 {
        self.config
            .capacity
            .saturating_sub(self.config.context)
            .saturating_sub(used)
    }

    fn try_allocate(&self, state: &mut State, size: usize) -> Result<usize, MemoryError> {
        state.attempts += 1;
        if self
            .config
            .fail_alloc
            .is_some_and(|f| f.hit(state.attempts))
        {
            return Err(MemoryError::Injected(state.attempts));
        }
        let free = self.available(state.used);
        let out_of_memory = MemoryError::OutOfMemory {
            asked: size as u64,
            free,
            total: self.config.capacity,
        };
        let charged = (size as u64).checked_next_multiple_of(self.config.granularity);
        let charged = match charged {
            Some(charged) if charged <= free => charged,
            _ => return Err(out_of_memory),
        };
        match self.supply.as_ref().map(|supply| supply.device(size)) {
            None | Some(Supplied::Own) => {}
            Some(Supplied::Refused) => return Err(MemoryError::Refused { asked: size as u64 }),
            Some(Supplied::Memory(memory)) => {
                if self.config.poison {
                    // SAFETY: as large as was asked for, and not yet known to anyone else.
                    unsafe { ptr::write_bytes(memory, POISON, size) };
                }
                state.note(memory as usize, size, charged, 0);
                return Ok(memory as usize);
            }
        }
        // No more than the capacity, so neither of these overflows.
        let accessible = size.next_multiple_of(self.page);
        let span = accessible + self.page;
        let Some(address) = state.take_hole(span) else {
            return Err(out_of_memory);
        };
        if let Err(source) = self.open_shadow(address, accessible) {
            state.give_back(address, span);
            return Err(MemoryError::Host {
                bytes: accessible,
                source,
            });
        }
        state.note(address, size, charged, span);
        Ok(address)
    }

    fn open_shadow(&self, address: usize, len: usize) -> io::Result<()> {
        let shadow = address + self.span;
        // SAFETY: the range was just taken out of the holes, so it is this object's own mapping and nothing uses it.
        let failed = unsafe {
            libc::mprotect(
                shadow as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        if self.config.poison {
            // SAFETY: the range was made writable above and is not yet known to anyone else.
            unsafe { ptr::write_bytes(shadow as *mut u8, POISON, len) };
        }
        Ok(())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: both ranges are this object's own mapping, and what used them is gone with their owner.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.span * 2) };
    }
}

impl State {
    fn note(&mut self, address: usize, size: usize, charged: u64, span: usize) {
        self.used += charged;
        self.peak = self.peak.max(self.used);
        let allocation = Allocation {
            size,
            charged,
            span,
        };
        self.live.insert(address, allocation);
    }

    /// The lowest hole that is large enough: addresses come back, as they do on a real card.
    fn take_hole(&mut self, span: usize) -> Option<usize> {
        let (&start, &len) = self.holes.iter().find(|(_, len)| **len >= span)?;
        self.holes.remove(&start);
        if len > span {
            self.holes.insert(start + span, len - span);
        }
        Some(start)
    }

    fn give_back(&mut self, start: usize, span: usize) {
        let (mut start, mut span) = (start, span);
        if let Some((&before, &len)) = self.holes.range(..start).next_back() {
            if before + len == start {
                self.holes.remove(&before);
                start = before;
                span += len;
            }
        }
        if let Some(len) = self.holes.remove(&(start + span)) {
            span += len;
        }
        self.holes.insert(start, span);
    }
}

/// Bytes in a page of the host's memory.
pub(super) fn page_size() -> usize {
    // SAFETY: no arguments that could be wrong.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(capacity: u64) -> MemoryConfig {
        MemoryConfig {
            capacity,
            context: 0,
            granularity: 256,
            poison: true,
            fail_alloc: None,
        }
    }

    fn memory(config: MemoryConfig) -> DeviceMemory {
        DeviceMemory::new(config, None).expect("address space for a small device")
    }

    fn bytes(memory: &DeviceMemory, address: usize, len: usize) -> Vec<u8> {
        let at = memory.translate(address, len).expect("a live address");
        // SAFETY: translate() vouches for the range, and only this thread uses it.
        unsafe { std::slice::from_raw_parts(at, len) }.to_vec()
    }

    #[test]
    fn the_capacity_is_exact_to_the_byte() {
        let memory = memory(MemoryConfig {
            context: 1000,
            granularity: 1,
            ..config(5000)
        });
        assert_eq!(memory.free_and_total(), (4000, 5000));
        let error = memory.allocate(4001).expect_err("one byte too many");
        let message = "4001 bytes asked for (3.91 KiB), 4000 free of 5000";
        assert_eq!(error.to_string(), message);
        let all = memory.allocate(4000).expect("exactly what is free");
        assert_eq!(memory.free_and_total(), (0, 5000));
        memory.allocate(1).expect_err("nothing is free");
        memory.free(all).expect("it was allocated");
        assert_eq!(memory.free_and_total(), (4000, 5000));
        let counts = memory.counts();
        assert_eq!((counts.current, counts.peak), (0, 4000));
        assert_eq!(
            (counts.allocations, counts.frees, counts.failures),
            (1, 1, 2)
        );
        memory.reset_counts();
        assert_eq!(memory.counts(), MemoryCounts::default());
    }

    #[test]
    fn allocations_count_rounded_up() {
        let memory = memory(MemoryConfig {
            granularity: 2 << 20,
            ..config(8 << 20)
        });
        memory.allocate(1).expect("room");
        assert_eq!(memory.free_and_total().0, 6 << 20);
        memory.allocate((4 << 20) + 1).expect("room, exactly");
        assert_eq!(memory.free_and_total().0, 0);
    }

    #[test]
    fn fresh_memory_is_poison_whoever_had_it_before() {
        let memory = memory(config(1 << 20));
        let first = memory.allocate(300).expect("room");
        assert_eq!(first % ALIGNMENT, 0);
        assert!(bytes(&memory, first, 300).iter().all(|b| *b == 0xFF));
        let at = memory.translate(first, 300).expect("a live address");
        // SAFETY: translate() vouches for the range, and only this thread uses it.
        unsafe { ptr::write_bytes(at, 7, 300) };
        memory.free(first).expect("it was allocated");
        let again = memory.allocate(300).expect("room");
        assert_eq!(again, first, "addresses come back");
        assert!(bytes(&memory, again, 300).iter().all(|b| *b == 0xFF));
        assert!(f32::from_ne_bytes([0xFF; 4]).is_nan());
    }

    #[test]
    fn only_live_memory_has_a_place() {
        let memory = memory(config(1 << 20));
        let a = memory.allocate(1000).expect("room");
        assert!(memory.owns(a) && !memory.owns(memory.base + memory.span));
        assert!(memory.translate(a, 1000).is_ok());
        assert!(memory.translate(a + 1000, 0).is_ok());
        assert!(memory.translate(a, 1001).is_err());
        assert!(memory.translate(a + 999, 2).is_err());
        assert!(memory.translate(a.wrapping_sub(1), 1).is_err());
        assert!(memory.translate(a, usize::MAX).is_err());
        memory.free(a).expect("it was allocated");
        assert!(memory.translate(a, 1).is_err());
        assert!(memory.free(a).is_err(), "freed twice");
    }

    #[test]
    fn the_host_faults_on_device_addresses_and_on_freed_shadow() {
        let memory = memory(config(1 << 20));
        let live = memory.allocate(4096).expect("room");
        memory.allocate(4096).expect("room for a neighbour");
        let shadow = memory.translate(live, 1).expect("a live address") as usize;
        assert!(!readable(live), "the host can read a device address");
        assert!(readable(shadow));
        assert!(!readable(shadow + 4096), "no guard page");
        memory.free(live).expect("it was allocated");
        assert!(!readable(shadow), "freed memory can be read");
    }

    /// Asks the kernel to read a byte for us: it says "bad address" where we would fault.
    fn readable(address: usize) -> bool {
        let mut pipe = [0; 2];
        // SAFETY: pipe2() fills two descriptors, which are closed below; write() reads one byte and reports a bad
        // address as an error.
        unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), 0), 0);
            let written = libc::write(pipe[1], address as *const libc::c_void, 1);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            written == 1
        }
    }

    #[test]
    fn the_chosen_allocation_fails_once() {
        let memory = memory(MemoryConfig {
            fail_alloc: Faults::parse("2"),
            ..config(1 << 20)
        });
        memory.allocate(1).expect("the first");
        let error = memory.allocate(1).expect_err("the second");
        assert!(error.to_string().contains("failalloc"), "{error}");
        memory.allocate(1).expect("the third");
    }

    proptest! {
        #[test]
        fn allocations_never_overlap_and_the_books_balance(steps in proptest::collection::vec((any::<bool>(), 1usize..20_000), 1..80)) {
            let memory = memory(config(100_000));
            let mut live: Vec<(usize, usize)> = Vec::new();
            for (allocate, size) in steps {
                if allocate || live.is_empty() {
                    if let Ok(address) = memory.allocate(size) {
                        for (other, len) in &live {
                            prop_assert!(address + size <= *other || other + len <= address);
                        }
                        live.push((address, size));
                    }
                } else {
                    let (address, _) = live.swap_remove(size % live.len());
                    memory.free(address).expect("it was allocated");
                }
                let charged: u64 = live.iter().map(|(_, len)| (*len as u64).next_multiple_of(256)).sum();
                prop_assert_eq!(memory.free_and_total().0, 100_000 - charged);
            }
            for (address, _) in live {
                memory.free(address).expect("it was allocated");
            }
            prop_assert_eq!(memory.state.read().holes.len(), 1);
        }
    }
}
