//! Blocks of host memory that take turns: one is filled by the host while the device reads others.

/// The blocks, and whose turn it is.
#[derive(Debug)]
pub struct StagingRing<B> {
    blocks: Vec<B>,
    next: usize,
    /// Blocks from which a copy was submitted: the first so many.
    used: usize,
}

impl<B> Default for StagingRing<B> {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            next: 0,
            used: 0,
        }
    }
}

impl<B> StagingRing<B> {
    /// Adds a block, before the first turn.
    pub fn push(&mut self, block: B) {
        self.blocks.push(block);
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Reports whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The block whose turn it is, free to be filled: where a copy from it was submitted before, `until_copied` has
    /// waited for that copy. The caller submits the next copy from it. Nothing if there are no blocks.
    pub fn take(&mut self, until_copied: impl FnOnce(&B)) -> Option<&B> {
        let index = self.next;
        let block = self.blocks.get(index)?;
        if index < self.used {
            until_copied(block);
        }
        self.used = self.used.max(index + 1);
        self.next = (index + 1) % self.blocks.len();
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_take_turns_and_are_waited_for_from_the_second_on() {
        let mut ring = StagingRing::default();
        assert!(ring.take(|_: &u32| ()).is_none());
        for block in 0..3 {
            ring.push(block);
        }
        let mut waited = Vec::new();
        let taken: Vec<u32> = (0..7)
            .filter_map(|_| ring.take(|block| waited.push(*block)).copied())
            .collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(waited, [0, 1, 2, 0]);
    }
}
