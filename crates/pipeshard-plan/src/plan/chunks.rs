//! Packing residents into chunks of device memory.

use super::types::{Chunk, UnitId};

/// Rounds up to a multiple; the planner checks beforehand that its sums leave room for this.
pub(super) fn round_up(value: u64, multiple: u64) -> u64 {
    value.div_ceil(multiple) * multiple
}

/// Packs units one after the other; a chunk ends where the next unit would pass the target, so
/// boundaries depend on the sequence alone and not on where it stops.
#[derive(Debug, Clone)]
pub(super) struct Packer {
    target: u64,
    granularity: u64,
    chunks: Vec<Chunk>,
    closed: u64,
    used: u64,
}

impl Packer {
    pub(super) fn new(target: u64, granularity: u64) -> Self {
        Self {
            target,
            granularity,
            chunks: Vec::new(),
            closed: 0,
            used: 0,
        }
    }

    /// Adds a unit of `size` bytes, which is a multiple of the alignment.
    pub(super) fn push(&mut self, id: UnitId, size: u64) {
        if self.used > 0 && self.used + size > self.target {
            self.closed += round_up(self.used, self.granularity);
            self.used = 0;
        }
        if self.used == 0 {
            self.chunks.push(Chunk {
                bytes: 0,
                units: Vec::new(),
            });
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.units.push((id, self.used));
            self.used += size;
            chunk.bytes = round_up(self.used, self.granularity);
        }
    }

    /// Bytes of all chunks so far.
    pub(super) fn bytes(&self) -> u64 {
        self.closed + round_up(self.used, self.granularity)
    }

    pub(super) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_do_not_depend_on_where_the_sequence_stops() {
        let sizes = [40, 24, 8, 100, 60, 4, 4];
        let pack = |count: usize| {
            let mut packer = Packer::new(64, 16);
            for (id, &size) in sizes.iter().take(count).enumerate() {
                packer.push(UnitId(id as u32), size);
            }
            let bytes = packer.bytes();
            let chunks = packer.into_chunks();
            assert_eq!(bytes, chunks.iter().map(|c| c.bytes).sum::<u64>());
            chunks
        };
        let full = pack(sizes.len());
        let bytes: Vec<u64> = full.iter().map(|c| c.bytes).collect();
        assert_eq!(bytes, [64, 16, 112, 64, 16]);
        assert_eq!(full[0].units, [(UnitId(0), 0), (UnitId(1), 40)]);
        for count in 0..sizes.len() {
            let part = pack(count);
            let whole = part.len().saturating_sub(1);
            assert_eq!(part[..whole], full[..whole]);
        }
    }
}
