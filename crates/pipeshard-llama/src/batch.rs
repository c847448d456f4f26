//! Batches.

use pipeshard_sys as ffi;

/// Tokens to be evaluated together, each with its position, its sequences, and whether its results are wanted.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<Vec<i32>>,
    wanted: Vec<i8>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Tokens of one sequence from position `from` on; results are wanted for the last one.
    pub fn of(sequence: i32, from: i32, tokens: &[i32]) -> Self {
        let mut batch = Batch::new();
        for (i, &token) in tokens.iter().enumerate() {
            batch.add(token, from + i as i32, &[sequence], i + 1 == tokens.len());
        }
        batch
    }

    /// Adds a token.
    pub fn add(&mut self, token: i32, position: i32, sequences: &[i32], wanted: bool) {
        self.tokens.push(token);
        self.positions.push(position);
        self.sequences.push(sequences.to_vec());
        self.wanted.push(i8::from(wanted));
    }

    /// Wants the results of every token.
    pub fn all_wanted(mut self) -> Self {
        self.wanted.fill(1);
        self
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Reports whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Indices of the tokens whose results are wanted.
    pub fn wanted(&self) -> Vec<i32> {
        let wanted = self.wanted.iter().enumerate().filter(|(_, &w)| w != 0);
        wanted.map(|(i, _)| i as i32).collect()
    }

    /// The last `count` tokens, or fewer, as a batch of their own; the others stay.
    pub fn split_off(&mut self, at: usize) -> Batch {
        Batch {
            tokens: self.tokens.split_off(at),
            positions: self.positions.split_off(at),
            sequences: self.sequences.split_off(at),
            wanted: self.wanted.split_off(at),
        }
    }

    /// Calls `use_it` with C's view of the batch, which is valid during the call.
    pub(super) fn with_raw<T>(&mut self, use_it: impl FnOnce(ffi::llama_batch) -> T) -> T {
        let mut counts: Vec<i32> = self.sequences.iter().map(|s| s.len() as i32).collect();
        let mut lists: Vec<*mut i32> = self.sequences.iter_mut().map(|s| s.as_mut_ptr()).collect();
        use_it(ffi::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: self.wanted.as_mut_ptr(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_wants_its_last_result() {
        let mut batch = Batch::of(3, 5, &[10, 11, 12]);
        assert_eq!(batch.wanted(), [2]);
        batch.with_raw(|raw| {
            assert_eq!(raw.n_tokens, 3);
            // SAFETY: the view is valid during the call.
            unsafe {
                assert_eq!(*raw.pos.add(2), 7);
                assert_eq!(**raw.seq_id.add(1), 3);
                assert_eq!((*raw.logits, *raw.logits.add(2)), (0, 1));
            }
        });
        let tail = batch.split_off(1);
        assert_eq!((batch.len(), tail.len()), (1, 2));
        assert_eq!(tail.wanted(), [1]);
        assert_eq!(tail.all_wanted().wanted(), [0, 1]);
    }
}
