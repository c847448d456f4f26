//! Encoders of images and sound that are about to be loaded: plans leave room for them.
//!
//! They come when the language model's context is made, and its cells have their places. So what they will take is expected before:
//! their weights by the file, their compute buffers, for the largest image that there may be, by an estimate. Where no context has
//! room beside all that, it expects smaller images. From the first batch on that runs beside them only what they hold is left alone:
//! weights of the language model use the rest, and give way to a larger image.

/// What encoders are expected to hold in all, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// Their weights.
    pub weights: u64,
    /// Compute buffers for the largest image, and what the backend takes for it.
    pub scratch: u64,
    /// By how much that becomes less each time that a context has no room.
    step: Option<u64>,
}

impl Expected {
    /// These, for the largest image.
    pub fn new(weights: u64, scratch: u64) -> Self {
        Expected {
            weights,
            scratch,
            step: None,
        }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.scratch)
    }

    /// A context has no room beside them: expects compute buffers of so much less, in the end none. False where none were expected.
    pub fn give_way(&mut self) -> bool {
        /// Tries until nothing is left, each of which makes a context again.
        const STEPS: u64 = 4;
        if self.scratch == 0 {
            return false;
        }
        let step = *self.step.get_or_insert(self.scratch.div_ceil(STEPS));
        self.scratch = self.scratch.saturating_sub(step);
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
        while expected.give_way() {
            left.push(expected.scratch);
        }
        assert_eq!(left, [300 << 20, 200 << 20, 100 << 20, 0]);
        assert_eq!(expected.total(), 1000);
    }
}
