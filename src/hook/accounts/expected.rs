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
}

impl Expected {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.scratch)
    }

    /// A context has no room beside them: expects compute buffers of a quarter, then none. False where none were expected.
    pub fn give_way(&mut self) -> bool {
        /// Smaller ones are no reason why a context has no room.
        const LITTLE: u64 = 32 << 20;
        if self.scratch == 0 {
            return false;
        }
        let quarter = self.scratch / 4;
        self.scratch = if quarter < LITTLE { 0 } else { quarter };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_until_only_weights_are_left() {
        let mut expected = Expected {
            weights: 1000,
            scratch: 400 << 20,
        };
        let mut left = Vec::new();
        while expected.give_way() {
            left.push(expected.scratch);
        }
        assert_eq!(left, [100 << 20, 0]);
        assert_eq!(expected.total(), 1000);
    }
}
