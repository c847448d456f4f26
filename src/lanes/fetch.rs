//! Chosen experts on their way to the device, while the CPU computes others of the same layer.
//!
//! A stream of its own, so that they do not wait for the copy lane's queue. Layers take turns in a kit of memory: the
//! copies for it wait until the device has read what it held before, and the device waits until it is filled.

use crate::lanes::copy::{bytes_tensor, host_buffer, pieces, DroppedWait};
use crate::lanes::device::{Buffer, Device, Event, Stream};
use pipeshard_plan::plan::{FetchLayout, FetchShape, NUMBERS_BYTES};
use pipeshard_sys as ffi;

/// Bytes of an expert's number.
const NUMBER: usize = 4;

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

/// The tokens of a pass, and how their choices follow each other in memory.
#[derive(Debug, Clone, Copy)]
pub struct ChoiceLayout {
    /// Tokens.
    pub rows: usize,
    /// Bytes from the choice of one token to that of the next.
    pub stride: usize,
    /// Experts that are fetched for each.
    pub experts: usize,
}

impl ChoiceLayout {
    /// Bytes from the first number of all to the last that is fetched.
    fn bytes(&self) -> usize {
        self.rows.saturating_sub(1) * self.stride + NUMBER * self.experts
    }
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
    /// For each token, where in the kit its experts are; and what that is copied to.
    numbers: Buffer,
    numbers_target: Box<ffi::ggml_tensor>,
    numbers_sent: bool,
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
    /// Adds what `fetcher`, if present, has fetched.
    pub fn and(self, fetcher: Option<&ExpertFetcher>) -> Self {
        let more = fetcher.map_or(FetchCounters::default(), |fetcher| fetcher.counters);
        FetchCounters {
            experts: self.experts + more.experts,
            bytes: self.bytes + more.bytes,
        }
    }
}

/// Puts chosen experts, of so many that there are, in ascending order, each once.
fn hold(
    held: &mut Vec<u32>,
    chosen: impl Iterator<Item = i32>,
    experts: u32,
) -> Result<(), NoSuchExpert> {
    held.clear();
    for expert in chosen {
        match u32::try_from(expert) {
            Ok(known) if known < experts => held.push(known),
            _ => return Err(NoSuchExpert { expert, experts }),
        }
    }
    held.sort_unstable();
    held.dedup();
    Ok(())
}

/// The place of an expert that is held.
fn place_of(held: &[u32], expert: i32) -> u32 {
    held.partition_point(|&held| i64::from(held) < i64::from(expert)) as u32
}

/// Neighbouring places that one command fills, with their experts, which are ascending: two, which are always the same distance
/// apart, unless page-locked memory ends between them.
fn commands<'a>(
    held: &'a [u32],
    each: usize,
    seams: &'a [usize],
) -> impl Iterator<Item = (usize, &'a [u32])> + 'a {
    let mut place = 0;
    std::iter::from_fn(move || {
        let rest = held.get(place..).filter(|rest| !rest.is_empty())?;
        let in_one = |pair: &[u32]| {
            let (from, to) = (pair[0] as usize * each, (pair[1] as usize + 1) * each);
            !seams.iter().any(|&seam| from < seam && seam < to)
        };
        let count = match rest {
            [_, _, ..] if in_one(&rest[..2]) => 2,
            _ => 1,
        };
        let first = place;
        place += count;
        Some((first, &rest[..count]))
    })
}

/// Fetches experts.
#[derive(Debug)]
pub struct ExpertFetcher {
    stream: Stream,
    memory: Buffer,
    layout: FetchLayout,
    shape: FetchShape,
    kits: Vec<Kit>,
    /// The choice, as it comes back from the device.
    chosen: Buffer,
    /// By place in the kit, its expert: ascending, each once.
    held: Vec<u32>,
    dropped: Option<DroppedWait>,
    /// What was fetched so far.
    pub counters: FetchCounters,
}

// SAFETY: used under the runtime's lock only; it holds handles that its fields own, and no other pointers.
unsafe impl Send for ExpertFetcher {}

impl ExpertFetcher {
    /// Memory for what `shape` says of each tensor of a layer, as `layout` has it. `stacked`: experts of a tensor, at most.
    pub fn open(
        device: Device,
        layout: FetchLayout,
        shape: FetchShape,
        stacked: u32,
        dropped: Option<DroppedWait>,
    ) -> Result<Self, String> {
        let refused = |what: &str| format!("{} refused {what} for fetched experts", device.name());
        let stream = Stream::open(device).ok_or_else(|| refused("a stream"))?;
        let memory = Buffer::allocate(device.memory_type(), layout.bytes);
        let memory = memory.ok_or_else(|| refused("memory"))?.holds_weights();
        // what kernels read after the last expert
        memory.clear(0);
        let event = || Event::new(device).ok_or_else(|| refused("an event"));
        let kit = |at: u64| -> Result<Kit, String> {
            let numbers = host_buffer(device, NUMBERS_BYTES)?;
            numbers.clear(0);
            let target = memory.base().wrapping_add(at as usize);
            Ok(Kit {
                filled: event()?,
                read: event()?,
                was_read: false,
                numbers,
                numbers_target: bytes_tensor(&memory, target, NUMBERS_BYTES),
                numbers_sent: false,
            })
        };
        let kits = layout.kits.iter().map(|held| kit(held.numbers));
        let kits = kits.collect::<Result<_, String>>()?;
        // a token's choice may be a part of all experts in order
        let row = NUMBER as u64 * u64::from(stacked.max(shape.most()));
        let chosen = host_buffer(device, row * u64::from(shape.rows()))?;
        chosen.clear(0);
        Ok(ExpertFetcher {
            stream,
            memory,
            layout,
            kits,
            chosen,
            held: Vec::with_capacity(shape.most() as usize),
            shape,
            dropped,
            counters: FetchCounters::default(),
        })
    }

    /// How many experts it fetches for a layer.
    pub fn shape(&self) -> &FetchShape {
        &self.shape
    }

    /// Where they go.
    pub fn layout(&self) -> &FetchLayout {
        &self.layout
    }

    /// Reports whether it can fetch for so many tokens whose choices lie like that.
    pub fn serves(&self, choice: ChoiceLayout) -> bool {
        let fetched = choice.rows * choice.experts;
        (1..=self.shape.most() as usize).contains(&fetched)
            && self.chosen.size() >= choice.bytes() as u64
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

    /// Begins to find out what the tokens have chosen. True if the host has to wait for `compute` before [`Self::fetch`].
    ///
    /// # Safety
    /// `indices` has memory and has been computed, or will be by what `compute`, a live backend, was given; it has at least as many
    /// numbers in a row as are fetched, and lies as `choice` says, for which [`Self::serves`]. `made_by` is the backend that computes
    /// it.
    pub unsafe fn ask(
        &self,
        compute: ffi::ggml_backend_t,
        made_by: ffi::ggml_backend_t,
        indices: *const ffi::ggml_tensor,
        choice: ChoiceLayout,
    ) -> bool {
        let bytes = choice.bytes();
        let target = self.chosen.base().cast();
        if made_by == compute {
            ffi::ggml_backend_tensor_get_async(compute, indices, target, 0, bytes);
            return true;
        }
        ffi::ggml_backend_tensor_get(indices, target, 0, bytes);
        false
    }

    /// Sees to it that who waits for `compute` from here on waits for what was last fetched to a kit, too, whose numbers
    /// [`Self::fetch`] writes anew. True if somebody has to. As a rule the device has waited for it before: not so after a pass that
    /// failed.
    ///
    /// # Safety
    /// `compute` is a live backend of the device.
    pub unsafe fn await_numbers(&self, kit: usize, compute: ffi::ggml_backend_t) -> bool {
        let state = &self.kits[kit];
        if state.numbers_sent {
            state.filled.hold(compute);
        }
        state.numbers_sent
    }

    /// Submits the copies of the first experts that each token has chosen to a kit, after everything that still reads it; what
    /// several have chosen once. Waits for nothing.
    ///
    /// # Safety
    /// The host has waited for what [`Self::await_numbers`] said. What was asked for has arrived, in the same layout. The stacks' memory is page-locked and stays until the copies are made;
    /// their targets lie in the kit.
    pub unsafe fn fetch(
        &mut self,
        kit: usize,
        stacks: &[ExpertStack],
        choice: ChoiceLayout,
    ) -> Result<(), NoSuchExpert> {
        let stream = self.stream.raw();
        let state = &mut self.kits[kit];
        if state.was_read && self.dropped != Some(DroppedWait::Read) {
            state.read.hold(stream);
        }
        let experts = stacks.iter().map(|stack| stack.experts).min().unwrap_or(0);
        let each = choice.experts;
        let chosen = self.chosen.base();
        let all = (0..choice.rows).flat_map(|row| (0..each).map(move |place| (row, place)));
        let all = all.map(|(row, place)| {
            let at = chosen.add(row * choice.stride + NUMBER * place);
            at.cast::<i32>().read_unaligned()
        });
        hold(&mut self.held, all.clone(), experts)?;
        let numbers = state.numbers.base().cast::<u32>();
        for (index, expert) in all.enumerate() {
            numbers
                .add(index)
                .write_unaligned(place_of(&self.held, expert));
        }
        let bytes = NUMBER * choice.rows * each;
        let target = &mut *state.numbers_target;
        ffi::ggml_backend_tensor_set_async(stream, target, numbers.cast(), 0, bytes);
        state.numbers_sent = true;
        for stack in stacks {
            self.copy(stream, stack);
        }
        let fetched = (stacks.len() * self.held.len()) as u64;
        self.counters.experts += fetched;
        let bytes = stacks.iter().map(|stack| stack.each as u64).sum::<u64>();
        self.counters.bytes += bytes * self.held.len() as u64;
        let state = &self.kits[kit];
        state.filled.record(stream);
        Ok(())
    }

    /// Submits the copies of one tensor's experts that have places.
    ///
    /// # Safety
    /// As for [`Self::fetch`]; the experts exist.
    unsafe fn copy(&self, stream: ffi::ggml_backend_t, stack: &ExpertStack) {
        let (each, target) = (stack.each, stack.target);
        for (place, experts) in commands(&self.held, each, &*stack.seams) {
            let from = experts[0] as usize * each;
            if let [first, second] = *experts {
                let (source, apart) = (stack.host.add(from).cast(), (second - first) as usize);
                let (to, stride) = (place * each, apart * each);
                ffi::ggml_backend_tensor_set_2d_async(
                    stream, target, source, to, each, 2, each, stride,
                );
                continue;
            }
            for (begin, end) in pieces(from, from + each, &*stack.seams) {
                let (source, to) = (stack.host.add(begin).cast(), place * each + (begin - from));
                ffi::ggml_backend_tensor_set_async(stream, target, source, to, end - begin);
            }
        }
    }

    /// Makes `compute` wait until the kit is filled.
    ///
    /// # Safety
    /// `compute` is a live backend of the device; the kit was fetched to.
    pub unsafe fn wait_until_filled(&self, kit: usize, compute: ffi::ggml_backend_t) {
        if self.dropped != Some(DroppedWait::Filled) {
            self.kits[kit].filled.hold(compute);
        }
    }

    /// What reads the kit was submitted to `compute`.
    ///
    /// # Safety
    /// `compute` is a live backend of the device.
    pub unsafe fn was_read(&mut self, kit: usize, compute: ffi::ggml_backend_t) {
        let state = &mut self.kits[kit];
        state.read.record(compute);
        state.was_read = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_tokens_choose_has_one_place() {
        let mut held = Vec::with_capacity(6);
        for chosen in [[5, 2, 5, 7, 2, 0], [1, 1, 6, 1, 1, 1]] {
            assert_eq!(hold(&mut held, chosen.into_iter(), 8), Ok(()));
            assert!(held.windows(2).all(|pair| pair[0] < pair[1]), "{held:?}");
            assert!(chosen
                .iter()
                .all(|&expert| held[place_of(&held, expert) as usize] == expert as u32));
        }
        assert_eq!(held, [1, 6]);
        for expert in [8, -1] {
            let wrong = Err(NoSuchExpert { expert, experts: 8 });
            assert_eq!(hold(&mut held, [1, expert].into_iter(), 8), wrong);
        }
    }

    #[test]
    fn a_command_fills_two_places_unless_page_locked_memory_ends_between_them() {
        let of = |held, seams| commands(held, 10, seams).collect::<Vec<_>>();
        assert_eq!(of(&[], &[]), []);
        assert_eq!(of(&[3], &[]), [(0, &[3][..])]);
        let held = &[1, 4, 5, 7, 9];
        assert_eq!(of(held, &[]), [(0, &[1, 4][..]), (2, &[5, 7]), (4, &[9])]);
        // in front of the first, between the third and the fourth, and in the fifth
        assert_eq!(
            of(held, &[10, 60, 95]),
            [(0, &[1, 4][..]), (2, &[5]), (3, &[7]), (4, &[9])]
        );
    }

    #[test]
    fn choices_are_read_from_the_first_to_the_last() {
        let of = |rows| ChoiceLayout {
            rows,
            stride: 512,
            experts: 4,
        };
        assert_eq!(of(1).bytes(), 16);
        assert_eq!(of(3).bytes(), 1040);
    }
}
