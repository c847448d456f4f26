//! Encoders of images and sound that are about to be loaded: plans leave room for them.
//!
//! They come when the language model's context is made, and its KV cache is placed. So what they will take is expected before:
//! their weights by the file, their compute buffers, for the largest image that there may be, by an estimate. Where no context has
//! room next to all that, it expects smaller images. From the first batch on that runs next to them only what they hold is
//! kept: weights of the language model use the rest, and give way to a larger image.

/// What encoders are expected to hold, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// Their weights, of those that keep them on the device.
    pub weights: u64,
    /// Compute buffers for the largest image, and what the backend takes for it.
    pub scratch: u64,
    /// The same of those that take turns with the language model: the least that weights need, and compute buffers.
    turns: (u64, u64),
    /// By how much both become less each time that a context has no room, and nobody knows how much is missing.
    step: Option<(u64, u64)>,
}

impl Expected {
    /// These, for the largest image.
    pub fn new(weights: u64, scratch: u64) -> Self {
        Expected {
            weights,
            scratch,
            ..Expected::default()
        }
    }

    /// The same with one that takes turns with the language model, and with others of the kind.
    pub fn and_in_turn(self, weights: u64, scratch: u64) -> Self {
        let other = scratch.saturating_add(weights) > self.in_turn();
        Expected {
            turns: match other {
                true => (weights, scratch),
                false => self.turns,
            },
            ..self
        }
    }

    /// What they hold in addition to the language model.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.scratch)
    }

    /// What one takes while weights of the language model make way.
    pub fn in_turn(&self) -> u64 {
        self.turns.0.saturating_add(self.turns.1)
    }

    /// Compute buffers of one that takes turns.
    pub fn scratch_in_turn(&self) -> u64 {
        self.turns.1
    }

    /// The least that its weights need.
    pub fn weights_in_turn(&self) -> u64 {
        self.turns.0
    }

    /// A context does not fit next to them: `missing` bytes, where that is known. Expects smaller compute buffers, in the end none. False
    /// where none were expected.
    pub fn give_way(&mut self, missing: Option<u64>) -> bool {
        /// Tries until nothing is left; each try makes a context again.
        const STEPS: u64 = 4;
        if self.scratch == 0 && self.turns.1 == 0 {
            return false;
        }
        if let Some(missing) = missing.filter(|&missing| missing > 0 && self.turns.1 > 0) {
            // the largest image that does have room: what is kept for it is all that it may take
            let before = self.turns.1;
            self.turns.1 = before.saturating_sub(missing);
            let share = u128::from(self.scratch) * u128::from(self.turns.1) / u128::from(before);
            self.scratch = share as u64;
            return true;
        }
        let steps = (self.scratch.div_ceil(STEPS), self.turns.1.div_ceil(STEPS));
        let step = *self.step.get_or_insert(steps);
        self.scratch = self.scratch.saturating_sub(step.0);
        self.turns.1 = self.turns.1.saturating_sub(step.1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_until_only_weights_are_left() {
        let mut expected = Expected::new(1000, 400 << 20);
        let mut left = Vec::new();
        while expected.give_way(None) {
            left.push(expected.scratch);
        }
        assert_eq!(left, [300 << 20, 200 << 20, 100 << 20, 0]);
        assert_eq!(expected.total(), 1000);
    }

    #[test]
    fn only_the_largest_of_those_that_take_turns_counts() {
        let expected = Expected::new(7, 0).and_in_turn(100, 400);
        let mut expected = expected.and_in_turn(300, 100).and_in_turn(200, 350);
        assert_eq!((expected.total(), expected.in_turn()), (7, 550));
        while expected.give_way(None) {}
        assert_eq!((expected.total(), expected.in_turn()), (7, 200));
    }

    #[test]
    fn what_is_missing_is_what_it_gives() {
        let mut expected = Expected::new(7, 40).and_in_turn(100, 400);
        assert!(expected.give_way(Some(100)));
        assert_eq!((expected.total(), expected.in_turn()), (37, 400));
        assert!(expected.give_way(Some(1000)));
        assert_eq!((expected.total(), expected.in_turn()), (7, 100));
        assert!(!expected.give_way(Some(1)));
    }
}
