//! Who holds how much device memory.
//!
//! The arena's own chunks are counted where they are allocated; the rest is announced by the hook: KV per owner and layer,
//! compute buffers per scheduler; weights and compute buffers of encoders of images and sound per encoder.

use pipeshard_plan::plan::KvPlacement;
use std::collections::BTreeMap;

/// Bytes of device memory per class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByClass {
    /// Residents' chunks.
    pub resident: u64,
    /// The ring of slots.
    pub slots: u64,
    /// KV cache and recurrent state.
    pub kv: u64,
    /// Compute buffers of language models.
    pub scratch: u64,
    /// Encoders of images and sound: their weights and compute buffers.
    pub vision: u64,
    /// The backend's own memory: pools, work spaces.
    pub other: u64,
}

impl ByClass {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.resident + self.slots + self.kv + self.scratch + self.vision + self.other
    }

    fn max(self, o: ByClass) -> ByClass {
        ByClass {
            resident: self.resident.max(o.resident),
            slots: self.slots.max(o.slots),
            kv: self.kv.max(o.kv),
            scratch: self.scratch.max(o.scratch),
            vision: self.vision.max(o.vision),
            other: self.other.max(o.other),
        }
    }
}

/// Device memory that a tenant holds, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holdings {
    /// Residents' chunks and the ring, while there is an arena.
    pub arena: Option<(u64, u64)>,
    /// The runtime's own, and weights that the user put there.
    pub own: u64,
    /// For experts that are fetched.
    pub fetched: u64,
}

impl Holdings {
    /// What can be lent to another tenant: residents, the ring, and experts' memory.
    pub fn lendable(&self) -> u64 {
        let (residents, ring) = self.arena.unwrap_or_default();
        residents + ring + self.fetched
    }
}

/// One owner's KV, layer by layer.
#[derive(Debug, Clone)]
struct KvOwner {
    model: usize,
    layers: Vec<KvPlacement>,
    /// What its layers on the device asked for, in bytes.
    asked: u64,
}

/// Device memory of an encoder of images or sound, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfEncoder {
    /// What it keeps whatever it does.
    pub own: u64,
    /// Its weights.
    pub weights: u64,
    /// Its scheduler's compute buffers.
    pub scratch: u64,
    /// It takes turns with the language model: nothing but its own stays where that needs the room.
    pub in_turn: bool,
}

impl OfEncoder {
    fn total(&self) -> u64 {
        self.own + self.weights + self.scratch
    }

    fn for_good(&self) -> u64 {
        match self.in_turn {
            true => self.own,
            false => self.total(),
        }
    }
}

/// What is accounted for.
#[derive(Debug, Default)]
pub struct Ledger {
    kv: BTreeMap<usize, KvOwner>,
    /// Owners in the order in which they appeared.
    kv_order: Vec<usize>,
    scratch: BTreeMap<usize, u64>,
    /// By their schedulers.
    encoders: BTreeMap<usize, OfEncoder>,
    arena: (u64, u64),
    other: u64,
    peak: ByClass,
    peak_total: u64,
}

impl Ledger {
    /// What `bytes` more of KV of `owner` take on the device. All of its layers there are one allocation, which is rounded up to
    /// `granularity`.
    pub fn kv_takes(&self, owner: usize, bytes: u64, granularity: u64) -> u64 {
        let asked = self.kv.get(&owner).map_or(0, |kv| kv.asked);
        let rounded = |bytes: u64| bytes.next_multiple_of(granularity);
        rounded(asked + bytes) - rounded(asked)
    }

    /// Notes one layer's KV of `owner`: what it asked for, and what that takes.
    pub fn add_kv(&mut self, owner: usize, model: usize, asked: u64, placement: KvPlacement) {
        if !self.kv.contains_key(&owner) {
            self.kv_order.push(owner);
        }
        let entry = self.kv.entry(owner).or_insert_with(|| KvOwner {
            model,
            layers: Vec::new(),
            asked: 0,
        });
        entry.asked += if placement.device { asked } else { 0 };
        entry.layers.push(placement);
        self.note();
    }

    /// Forgets the KV of `owner`.
    pub fn remove_kv(&mut self, owner: usize) {
        self.kv.remove(&owner);
        self.kv_order.retain(|&o| o != owner);
    }

    /// Reports whether `owner` is known.
    pub fn has_kv(&self, owner: usize) -> bool {
        self.kv.contains_key(&owner)
    }

    /// How many contexts have KV: as many as there are caches of one layer. A context may have several owners, one for layers with
    /// a sliding window for example.
    pub fn contexts(&self) -> usize {
        let mut caches: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        for kv in self.kv.values() {
            for layer in &kv.layers {
                *caches.entry((kv.model, layer.layer)).or_default() += 1;
            }
        }
        caches.into_values().max().unwrap_or(0)
    }

    /// Reports whether the KV of this layer that was made last is on the host.
    pub fn layer_on_host(&self, model: usize, layer: u32) -> bool {
        self.kv_order
            .iter()
            .rev()
            .filter_map(|owner| self.kv.get(owner))
            .filter(|kv| kv.model == model)
            .flat_map(|kv| kv.layers.iter().rev())
            .find(|placement| placement.layer == layer)
            .is_some_and(|placement| !placement.device)
    }

    /// All KV, in the order in which it was made.
    pub fn kv_placements(&self) -> Vec<KvPlacement> {
        self.kv_order
            .iter()
            .filter_map(|o| self.kv.get(o))
            .flat_map(|kv| kv.layers.iter().copied())
            .collect()
    }

    /// Notes the compute buffers of a scheduler: `bytes` in all. Buffers never shrink.
    pub fn set_scratch(&mut self, sched: usize, bytes: u64) {
        self.expect_scratch(sched, bytes);
        self.note();
    }

    /// The same for buffers that are made when the arena has made room for them: what is held by then is noted when that is done.
    pub fn expect_scratch(&mut self, sched: usize, bytes: u64) {
        let entry = self.scratch.entry(sched).or_default();
        *entry = (*entry).max(bytes);
    }

    /// The same after buffers were refused or given up: they are `bytes` as they are.
    pub fn restore_scratch(&mut self, sched: usize, bytes: u64) {
        match bytes {
            0 => self.scratch.remove(&sched),
            bytes => self.scratch.insert(sched, bytes),
        };
    }

    /// Bytes of compute buffers of one scheduler.
    pub fn scratch_of(&self, sched: usize) -> u64 {
        self.scratch.get(&sched).copied().unwrap_or(0)
    }

    /// Forgets a scheduler's compute buffers.
    pub fn remove_scratch(&mut self, sched: usize) {
        self.scratch.remove(&sched);
    }

    /// Bytes of all compute buffers.
    pub fn scratch(&self) -> u64 {
        self.scratch.values().sum()
    }

    /// What the encoder with this scheduler holds from here on, or is about to. All zero: nothing. `held`: by now.
    pub fn set_encoder(&mut self, sched: usize, bytes: OfEncoder, held: bool) {
        match bytes.total() == 0 {
            true => self.encoders.remove(&sched),
            false => self.encoders.insert(sched, bytes),
        };
        if held {
            self.note();
        }
    }

    /// Compute buffers that the encoder with this scheduler holds now, in bytes.
    pub fn set_encoder_scratch(&mut self, sched: usize, scratch: u64) {
        let holds = OfEncoder {
            scratch,
            ..self.encoder(sched)
        };
        self.set_encoder(sched, holds, true);
    }

    /// What the encoder with this scheduler holds.
    pub fn encoder(&self, sched: usize) -> OfEncoder {
        self.encoders.get(&sched).copied().unwrap_or_default()
    }

    /// Bytes of all encoders.
    pub fn encoders(&self) -> u64 {
        self.encoders.values().map(OfEncoder::total).sum()
    }

    /// Bytes that encoders hold for good.
    pub fn encoders_for_good(&self) -> u64 {
        self.encoders.values().map(OfEncoder::for_good).sum()
    }

    /// Notes the arena: bytes of residents and of the ring.
    pub fn set_arena(&mut self, resident: u64, slots: u64) {
        self.arena = (resident, slots);
        self.note();
    }

    /// Notes what the backend holds on its own account.
    pub fn set_other(&mut self, bytes: u64) {
        self.other = bytes;
        self.note();
    }

    /// Nothing is held any more, but by encoders, which say so themselves. Peaks stay.
    pub fn forget_all(&mut self) {
        self.kv.clear();
        self.kv_order.clear();
        self.scratch.clear();
        self.arena = (0, 0);
    }

    /// What is held now.
    pub fn now(&self) -> ByClass {
        ByClass {
            resident: self.arena.0,
            slots: self.arena.1,
            kv: self
                .kv
                .values()
                .flat_map(|kv| &kv.layers)
                .filter(|p| p.device)
                .map(|p| p.bytes)
                .sum(),
            scratch: self.scratch(),
            vision: self.encoders(),
            other: self.other,
        }
    }

    /// The most that each class ever held.
    pub fn peak(&self) -> ByClass {
        self.peak
    }

    /// Starts the peaks of the classes afresh; that of the sum stays.
    pub fn forget_class_peaks(&mut self) {
        self.peak = ByClass::default();
    }

    /// The most that was ever held at once.
    pub fn peak_total(&self) -> u64 {
        self.peak_total
    }

    fn note(&mut self) {
        let now = self.now();
        self.peak = self.peak.max(now);
        self.peak_total = self.peak_total.max(now.total());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(layer: u32, device: bool, bytes: u64) -> KvPlacement {
        KvPlacement {
            layer,
            device,
            bytes,
        }
    }

    #[test]
    fn counts_what_is_on_the_device_and_remembers_the_peak() {
        let mut ledger = Ledger::default();
        ledger.add_kv(1, 9, 100, kv(0, true, 100));
        ledger.add_kv(1, 9, 100, kv(1, false, 100));
        ledger.set_scratch(7, 50);
        ledger.set_scratch(7, 20);
        ledger.set_arena(300, 40);
        assert_eq!(ledger.now().total(), 490);
        ledger.remove_kv(1);
        ledger.remove_scratch(7);
        assert_eq!(ledger.now().total(), 340);
        assert_eq!(ledger.peak_total(), 490);
        assert_eq!(ledger.peak().kv, 100);
    }

    #[test]
    fn a_context_may_have_several_owners_of_kv() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.contexts(), 0);
        // one for layers that see everything, one for those with a window
        ledger.add_kv(1, 9, 100, kv(5, true, 100));
        ledger.add_kv(2, 9, 100, kv(0, true, 100));
        ledger.add_kv(2, 9, 100, kv(1, true, 100));
        assert_eq!(ledger.contexts(), 1);
        ledger.add_kv(3, 9, 100, kv(5, true, 100));
        assert_eq!(ledger.contexts(), 2);
        ledger.remove_kv(3);
        assert_eq!(ledger.contexts(), 1);
    }

    #[test]
    fn encoders_are_a_class_of_their_own() {
        let mut ledger = Ledger::default();
        let loaded = OfEncoder {
            weights: 100,
            ..OfEncoder::default()
        };
        ledger.set_encoder(7, loaded, true);
        // only looked whether it fits
        let wanted = OfEncoder {
            scratch: 900,
            ..loaded
        };
        ledger.set_encoder(7, wanted, false);
        assert_eq!((ledger.now().vision, ledger.peak().vision), (1000, 100));
        assert_eq!((ledger.scratch(), ledger.now().total()), (0, 1000));
        let in_turn = OfEncoder {
            own: 2,
            in_turn: true,
            ..wanted
        };
        assert_eq!(ledger.encoders_for_good(), 1000);
        ledger.set_encoder(7, in_turn, false);
        assert_eq!((ledger.encoders(), ledger.encoders_for_good()), (1002, 2));
        ledger.set_encoder(7, OfEncoder::default(), true);
        assert_eq!((ledger.encoders(), ledger.peak_total()), (0, 100));
    }

    #[test]
    fn layers_of_one_allocation_are_rounded_up_once() {
        let mut ledger = Ledger::default();
        for (layer, takes) in [(0, 128), (1, 128), (2, 0), (3, 128)] {
            assert_eq!(ledger.kv_takes(1, 80, 128), takes, "layer {layer}");
            ledger.add_kv(1, 9, 80, kv(layer, true, takes));
        }
        // 320 bytes
        assert_eq!(ledger.now().kv, 384);
        // another owner's are another allocation
        assert_eq!(ledger.kv_takes(2, 80, 128), 128);
    }

    #[test]
    fn the_latest_kv_of_a_layer_tells_where_its_attention_runs() {
        let mut ledger = Ledger::default();
        ledger.add_kv(1, 9, 100, kv(0, true, 100));
        assert!(!ledger.layer_on_host(9, 0));
        ledger.add_kv(2, 9, 100, kv(0, false, 100));
        assert!(ledger.layer_on_host(9, 0));
        assert!(!ledger.layer_on_host(8, 0));
        ledger.remove_kv(2);
        assert!(!ledger.layer_on_host(9, 0));
    }
}
