//! Chosen experts on their way to the device, while the CPU computes others of the same layer.
//!
//! A stream of its own, so that they do not wait behind what the copy lane has in hand. Two kits of memory take turns: the copies
//! for a kit wait until the device has read what it held before, and the device waits until it is filled.

use crate::ffi;
use crate::lanes::copy::{bytes_tensor, host_buffer, pieces, DroppedWait};
use crate::lanes::device::{Buffer, Device, Event, Stream};
use crate::plan::{FetchLayout, KITS, NUMBERS_BYTES};

/// One tensor of a layer's experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertStack {
    /// Its first expert in host memory; the others follow.
    pub host: *const u8,
    /// Bytes of an expert.
    pub each: usize,
    /// How many there are.
    pub experts: u32,
    /// Offsets that no single copy may cross, ascending.
    pub seams: *const [usize],
    /// The device tensor that receives those that are fetched, side by side.
    pub target: *mut ffi::ggml_tensor,
}

/// Which memory a layer's experts are fetched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KitId {
    /// Index in [`FetchLayout::kits`].
    pub kind: usize,
    /// Which of its kits.
    pub turn: usize,
}

/// The router's choice makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchExpert {
    /// What was read back.
    pub expert: i32,
    /// How many there are.
    pub experts: u32,
}

#[derive(Debug)]
struct Kit {
    filled: Event,
    read: Event,
    /// The latter has been recorded.
    was_read: bool,
}

/// What was fetched.
#[derive(Debug, Clone, Copy, Default)]
pub struct FetchCounters {
    /// Experts, one tensor of each at a time.
    pub experts: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl FetchCounters {
    /// With what `fetcher`, if there is one, has fetched besides.
    pub fn and(self, fetcher: Option<&ExpertFetcher>) -> Self {
        let more = fetcher.map_or(FetchCounters::default(), |fetcher| fetcher.counters);
        FetchCounters {
            experts: self.experts + more.experts,
            bytes: self.bytes + more.bytes,
        }
    }
}

/// Fetches experts.
#[derive(Debug)]
pub struct ExpertFetcher {
    stream: Stream,
    memory: Buffer,
    layout: FetchLayout,
    fetched: u32,
    kits: Vec<[Kit; KITS]>,
    /// The choice, as it comes back from the device.
    chosen: Buffer,
    dropped: Option<DroppedWait>,
    /// What was fetched so far.
    pub counters: FetchCounters,
}

// SAFETY: used under the runtime's lock only; it holds handles that its fields own, and no other pointers.
unsafe impl Send for ExpertFetcher {}

impl ExpertFetcher {
    /// Memory for `fetched` experts of each tensor of a layer, as `layout` says.
    pub fn open(
        device: Device,
        layout: FetchLayout,
        fetched: u32,
        dropped: Option<DroppedWait>,
    ) -> Result<Self, String> {
        let refused = |what: &str| format!("{} refused {what} for fetched experts", device.name());
        let stream = Stream::open(device).ok_or_else(|| refused("a stream"))?;
        let memory = Buffer::allocate(device.memory_type(), layout.bytes);
        let memory = memory.ok_or_else(|| refused("memory"))?.holds_weights();
        // what kernels read behind the last expert
        memory.clear(0);
        let event = || Event::new(device).ok_or_else(|| refused("an event"));
        let kit = || -> Result<Kit, String> {
            Ok(Kit {
                filled: event()?,
                read: event()?,
                was_read: false,
            })
        };
        let kinds = layout.kits.iter().map(|_| Ok([kit()?, kit()?]));
        let kits = kinds.collect::<Result<_, String>>()?;
        let chosen = host_buffer(device, NUMBERS_BYTES)?;
        chosen.clear(0);
        let fetcher = ExpertFetcher {
            stream,
            memory,
            layout,
            fetched,
            kits,
            chosen,
            dropped,
            counters: FetchCounters::default(),
        };
        fetcher.write_numbers();
        Ok(fetcher)
    }

    /// Fetched experts lie in the order in which they were chosen: the first is number 0 to the device.
    fn write_numbers(&self) {
        let numbers: Vec<i32> = (0..self.fetched as i32).collect();
        let mut tensor = bytes_tensor(&self.memory, self.memory.base(), NUMBERS_BYTES);
        // SAFETY: the tensor lies in this memory and is at least as long as the numbers, which are read before this returns.
        unsafe {
            ffi::ggml_backend_tensor_set(
                &mut *tensor,
                numbers.as_ptr().cast(),
                0,
                4 * numbers.len(),
            )
        };
    }

    /// How many experts it fetches for a token and layer, and where they go.
    pub fn shape(&self) -> (u32, &FetchLayout) {
        (self.fetched, &self.layout)
    }

    /// The memory that they go to.
    pub fn memory(&self) -> &Buffer {
        &self.memory
    }

    /// The stream that they come on.
    pub fn stream(&self) -> ffi::ggml_backend_t {
        self.stream.raw()
    }

    /// Waits until nothing is under way.
    pub fn synchronize(&self) {
        self.stream.synchronize();
    }

    /// Begins to find out what a token has chosen. True if the host has to wait for `compute` before [`Self::fetch`].
    ///
    /// # Safety
    /// `indices` has memory and has been computed, or will be by what `compute`, a live backend, was given; it has at least as many
    /// numbers in a row as are fetched. `made_by` is the backend that computes it.
    pub unsafe fn ask(
        &self,
        compute: ffi::ggml_backend_t,
        made_by: ffi::ggml_backend_t,
        indices: *const ffi::ggml_tensor,
    ) -> bool {
        let bytes = 4 * self.fetched as usize;
        if made_by == compute {
            ffi::ggml_backend_tensor_get_async(
                compute,
                indices,
                self.chosen.base().cast(),
                0,
                bytes,
            );
            return true;
        }
        ffi::ggml_backend_tensor_get(indices, self.chosen.base().cast(), 0, bytes);
        false
    }

    /// Submits the copies of the first chosen experts to a kit, behind what still reads it.
    ///
    /// # Safety
    /// What was asked for has arrived. The stacks' memory is page-locked and stays until the copies are made; their targets lie in
    /// the kit.
    pub unsafe fn fetch(&mut self, kit: KitId, stacks: &[ExpertStack]) -> Result<(), NoSuchExpert> {
        let stream = self.stream.raw();
        let chosen = self.chosen.base().cast::<i32>();
        let state = &self.kits[kit.kind][kit.turn];
        if state.was_read && self.dropped != Some(DroppedWait::Read) {
            state.read.hold(stream);
        }
        for stack in stacks {
            for place in 0..self.fetched as usize {
                let expert = chosen.add(place).read_unaligned();
                let known = usize::try_from(expert).ok();
                let known = known.filter(|&expert| expert < stack.experts as usize);
                let Some(known) = known else {
                    return Err(NoSuchExpert {
                        expert,
                        experts: stack.experts,
                    });
                };
                let from = known * stack.each;
                for (begin, end) in pieces(from, from + stack.each, &*stack.seams) {
                    let to = place * stack.each + (begin - from);
                    let source = stack.host.add(begin).cast();
                    let length = end - begin;
                    ffi::ggml_backend_tensor_set_async(stream, stack.target, source, to, length);
                }
                self.counters.experts += 1;
                self.counters.bytes += stack.each as u64;
            }
        }
        state.filled.record(stream);
        Ok(())
    }

    /// Makes `compute` wait until the kit is filled.
    ///
    /// # Safety
    /// `compute` is a live backend of the device; the kit was fetched to.
    pub unsafe fn wait_until_filled(&self, kit: KitId, compute: ffi::ggml_backend_t) {
        if self.dropped != Some(DroppedWait::Filled) {
            self.kits[kit.kind][kit.turn].filled.hold(compute);
        }
    }

    /// What reads the kit was submitted to `compute`.
    ///
    /// # Safety
    /// `compute` is a live backend of the device.
    pub unsafe fn was_read(&mut self, kit: KitId, compute: ffi::ggml_backend_t) {
        let state = &mut self.kits[kit.kind][kit.turn];
        state.read.record(compute);
        state.was_read = true;
    }
}
