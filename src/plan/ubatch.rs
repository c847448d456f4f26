//! The size of the ubatch, where the user gave none.
//!
//! A prompt streams everything that is not resident once per ubatch, so larger ones move fewer bytes; they need larger compute
//! buffers, which push out residents, and decode then reads more from host memory. The size is chosen by what a
//! conversation costs: a prompt that fills three quarters of the context, and [`GENERATED_TOKENS`] after it.

/// Tokens that are generated for each prompt, in the conversation that is priced.
const GENERATED_TOKENS: f64 = 32.0;
/// Sizes beside the one that llama.cpp would use.
const SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// What the machine does per second. The defaults are a fast card on PCIe 4 x16 in a desktop with two memory channels: they
/// weigh a prompt against decode, and only their ratios matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Bytes over the link to the device.
    pub link: f64,
    /// Bytes of weights that the CPU reads while it decodes.
    pub cpu: f64,
    /// Floating-point operations of the device in large products.
    pub flops: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            link: 25e9,
            cpu: 50e9,
            flops: 120e12,
        }
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UbatchInput {
    /// The context in tokens.
    pub context: u32,
    /// Tokens that llama.cpp hands over at a time: no ubatch is larger.
    pub batch: u32,
    /// The size that llama.cpp would use; the choice is never smaller.
    pub default: u32,
    /// Device memory for weights and compute buffers, in bytes.
    pub room: u64,
    /// Weights that may be resident, in bytes.
    pub weights: u64,
    /// Of these, bytes that one token reads: fewer where experts are chosen.
    pub weights_per_token: u64,
    /// Products that one token needs, in floating-point operations.
    pub flops_per_token: f64,
    /// What the machine does per second.
    pub rates: Rates,
}

/// The ubatch for `input`; `scratch` says how many bytes of compute buffers a size needs.
pub fn choose_ubatch(input: &UbatchInput, scratch: impl Fn(u32) -> u64) -> u32 {
    let limit = input.batch.min(input.context);
    let mut best = (input.default, seconds(input, input.default, &scratch));
    for size in SIZES {
        let possible = size > input.default && size <= limit && scratch(size) < input.room;
        let cost = seconds(input, size, &scratch);
        if possible && cost < best.1 {
            best = (size, cost);
        }
    }
    best.0
}

/// What the conversation costs with ubatches of `size` tokens.
fn seconds(input: &UbatchInput, size: u32, scratch: &impl Fn(u32) -> u64) -> f64 {
    let room = input.room.saturating_sub(scratch(size));
    let host = input.weights.saturating_sub(room) as f64;
    let prompt = (f64::from(input.context) * 0.75).max(1.0);
    let passes = (prompt / f64::from(size.max(1))).ceil();
    let compute = prompt * input.flops_per_token / input.rates.flops;
    let streaming = passes * host / input.rates.link;
    let share = input.weights_per_token as f64 / (input.weights as f64).max(1.0);
    let decode = GENERATED_TOKENS * host * share / input.rates.cpu;
    compute.max(streaming) + decode
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    /// The shape of an 8B model in f16 with `room` bytes for its weights and compute buffers.
    fn dense(room: u64, context: u32) -> UbatchInput {
        UbatchInput {
            context,
            batch: 4096,
            default: 512,
            room,
            weights: 14 * GIB,
            weights_per_token: 14 * GIB,
            flops_per_token: 15e9,
            rates: Rates::default(),
        }
    }

    fn scratch(size: u32) -> u64 {
        u64::from(size) * 160_000
    }

    #[test]
    fn what_fits_keeps_the_default() {
        assert_eq!(choose_ubatch(&dense(20 * GIB, 32768), scratch), 512);
    }

    #[test]
    fn long_contexts_stream_in_larger_ubatches_than_short_ones() {
        let chosen =
            [1024, 4096, 32768].map(|context| choose_ubatch(&dense(4 * GIB, context), scratch));
        assert!(chosen[0] < chosen[2], "{chosen:?}");
        assert!(chosen[1] <= chosen[2] && chosen[2] >= 2048, "{chosen:?}");
    }

    #[test]
    fn a_prompt_that_fits_into_one_ubatch_gets_one() {
        for gib in [3, 4, 6] {
            assert_eq!(
                choose_ubatch(&dense(gib * GIB, 4096), scratch),
                4096,
                "{gib}"
            );
        }
    }

    #[test]
    fn no_room_for_larger_buffers_keeps_the_default() {
        let input = dense(100 << 20, 32768);
        assert_eq!(choose_ubatch(&input, |size| u64::from(size) << 18), 512);
    }

    proptest! {
        #[test]
        fn stays_within_what_was_asked_for(
            context in 1u32..200_000, batch in 1u32..9000, default in 1u32..9000, room in 0u64..64 * GIB,
            weights in 0u64..200 * GIB, per_row in 0u64..1_000_000,
        ) {
            let input = UbatchInput { context, batch, default, room, weights, weights_per_token: weights / 2, ..dense(0, 1) };
            let chosen = choose_ubatch(&input, |size| u64::from(size) * per_row);
            prop_assert!(chosen == default || (chosen > default && chosen <= batch && chosen <= context));
        }
    }
}
