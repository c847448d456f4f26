//! What units and caches take in device memory, and where they lie in it: the same for a plan that is made as for one that is
//! applied again.

use super::chunks::{round_up, Packer};
use super::types::{Chunk, KvPlacement, Ledger, PlanInput, Ring, StreamGroup, UnitClass, UnitId};

/// An input with the sizes that its units have in device memory.
pub(super) struct DeviceMemory<'a> {
    input: &'a PlanInput,
    /// Aligned sizes per unit.
    pub(super) sizes: Vec<u64>,
    /// Units that are always resident.
    pub(super) small: Vec<UnitId>,
    /// Bytes of their chunk.
    pub(super) small_bytes: u64,
}

impl<'a> DeviceMemory<'a> {
    pub(super) fn new(input: &'a PlanInput) -> Self {
        let size = |bytes: u64| round_up(bytes.max(1), input.alignment);
        let units = input.units.iter();
        let sizes: Vec<u64> = units.map(|unit| size(unit.device_bytes)).collect();
        let is_small = |id: &UnitId| input.units[id.index()].class == UnitClass::Small;
        let every = (0..sizes.len()).map(|index| UnitId(index as u32));
        let small: Vec<UnitId> = every.filter(is_small).collect();
        let small_sum = small.iter().map(|id| sizes[id.index()]).sum();
        DeviceMemory {
            input,
            sizes,
            small,
            small_bytes: round_up(small_sum, input.granularity),
        }
    }

    /// Bytes of units side by side.
    pub(super) fn bytes_of(&self, ids: &[UnitId]) -> u64 {
        ids.iter().map(|id| self.sizes[id.index()]).sum()
    }

    /// Bytes of caches of these sizes.
    pub(super) fn kv_bytes(&self, layers: impl Iterator<Item = u64>) -> u64 {
        let aligned = layers.map(|bytes| round_up(bytes, self.input.alignment));
        round_up(aligned.sum(), self.input.granularity)
    }

    /// Bytes of the caches that are on the device.
    pub(super) fn kv_on_device(&self, kv: &[KvPlacement]) -> u64 {
        let device = kv.iter().filter(|layer| layer.device);
        self.kv_bytes(device.map(|layer| layer.bytes))
    }

    /// Units one after the other in chunks of the target's size.
    pub(super) fn chunks(&self, ids: &[UnitId]) -> Vec<Chunk> {
        self.packed(ids, self.input.chunk_target)
    }

    fn packed(&self, ids: &[UnitId], target: u64) -> Vec<Chunk> {
        let mut packer = Packer::new(target, self.input.granularity);
        for &id in ids {
            packer.push(id, self.sizes[id.index()]);
        }
        packer.into_chunks()
    }

    /// Returns all chunks, if the small units and `large` others are resident.
    pub(super) fn resident_chunks(&self, large: &[UnitId]) -> Vec<Chunk> {
        let mut chunks = self.packed(&self.small, u64::MAX);
        chunks.extend(self.chunks(large));
        chunks
    }

    /// Returns all residents, if the small units and `large` others are resident.
    pub(super) fn residents(&self, large: &[UnitId]) -> Vec<UnitId> {
        self.small.iter().chain(large).copied().collect()
    }

    /// A ring that uses `used` bytes, with groups at these offsets.
    pub(super) fn ring(&self, groups: &[Vec<UnitId>], offsets: &[u64], used: u64) -> Ring {
        let group = |(ids, &offset): (&Vec<UnitId>, &u64)| {
            let mut next = offset;
            let place = |&id: &UnitId| {
                let at = next;
                next += self.sizes[id.index()];
                (id, at)
            };
            StreamGroup {
                offset,
                units: ids.iter().map(place).collect(),
                bytes: self.bytes_of(ids),
            }
        };
        Ring {
            bytes: round_up(used, self.input.granularity),
            groups: groups.iter().zip(offsets).map(group).collect(),
        }
    }

    /// What the budget goes to.
    pub(super) fn ledger(
        &self,
        chunks: &[Chunk],
        ring: &Ring,
        kv: &[KvPlacement],
        fetch_bytes: u64,
    ) -> Ledger {
        Ledger {
            resident: chunks.iter().map(|chunk| chunk.bytes).sum(),
            slots: ring.bytes,
            kv: self.kv_on_device(kv),
            scratch: self.input.scratch,
            reserve: self.input.reserve + fetch_bytes,
            encoders: self.input.encoders,
        }
    }
}
