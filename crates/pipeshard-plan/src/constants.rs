//! Every number that the planner and its cost model assume, with its unit and its source.
//!
//! What a machine does is measured, and stands in its [`Profile`](crate::profile::Profile); what the host does for a pass is
//! [`HostCosts`](crate::profile::HostCosts). How much a plan depends on each figure is in `docs/notes/constants.md`, which
//! `scripts/sensitivity.py` writes.

/// How operations of a model are counted. From reading the graphs that llama.cpp b11549 builds.
pub mod graph {
    /// Small operations of a layer next to its products and its attention: norms, rotations, stores to the KV cache, sums, the
    /// activation. A count: what ggml's kernels fuse is already taken off.
    pub const SMALL_OPERATIONS: f64 = 10.0;
    /// Of these, the ones around attention: rotations and stores.
    pub const AROUND_ATTENTION: f64 = 4.0;
    /// What choosing experts and weighing their results adds.
    pub const AROUND_ROUTER: f64 = 5.0;
    /// Stores to a layer's KV cache: keys and values.
    pub const STORES: f64 = 2.0;
    /// Tokens from which on several threads look up embeddings: waking them is worth it. The hook obeys it, too.
    pub const MANY_EMBEDDINGS: u32 = 256;
    /// Tokens of a prompt's batch, by which it is decided whether the device attends to a KV cache in host memory.
    pub const MANY_TOKENS: u32 = 64;
}

/// What stated machines lose between data sheet and practice, as shares, and what is assumed where nothing is known.
pub mod machine {
    /// Of a link's rate. Measured: 54.7 of 63 GB/s on PCIe 5 x16 (H200, 2026-11-30), 25 of 31.5 on PCIe 4 x16 by published figures.
    pub const LINK_SHARE: f64 = 0.85;
    /// Of the host's memory, CPU and link together. By published STREAM results of desktops.
    pub const DRAM_SHARE: f64 = 0.8;
    /// Of the host's memory, the CPU alone: a little less than it and the link together.
    pub const CPU_SHARE: f64 = 0.72;
    /// Of a card's memory. By published figures of llama.cpp's generation on single cards.
    pub const MEMBW_SHARE: f64 = 0.9;
    /// Of a card's dense f16 arithmetic, in products of prompts.
    pub const FLOPS_SHARE: f64 = 0.6;
    /// Bytes of weights that a CPU reads per second: a desktop with two channels of memory.
    pub const ASSUMED_CPU: f64 = 50e9;
    /// What CPU and link read of the host's memory together, as a multiple of what the CPU reads alone.
    pub const ASSUMED_DRAM_SHARE: f64 = 1.15;
    /// Floating-point operations of a CPU per byte that it reads.
    pub const CPU_FLOPS_PER_BYTE: f64 = 8.0;
    /// Seconds of a hand-over to the CPU. Measured: 14 µs (H200, 2026-11-30).
    pub const ASSUMED_TO_CPU: f64 = 25e-6;
    /// Seconds of a hand-over to the device. Measured: 7 µs (H200, 2026-11-30).
    pub const ASSUMED_TO_GPU: f64 = 20e-6;
    /// Seconds of a CPU operation that does next to nothing. Measured: 1.7 µs with 15 threads (H200's host, 2026-11-30).
    pub const ASSUMED_CPU_OP: f64 = 4e-6;
    /// Seconds of an empty pass on the host. No profile measures it.
    pub const ASSUMED_PASS: f64 = 0.2e-3;
}

/// What makes one plan better than another: choices, not facts.
pub mod preference {
    /// How much more a change of the time per token counts than the same change of the time to the first one.
    pub const TOKEN_WEIGHT: f64 = 2.0;
    /// A prompt of fewer tokens counts for half, one of so many for the other half. The same for every size of the ubatch, or their
    /// scores could not be compared.
    pub const USUAL_PASS: u32 = 512;
    /// How much more a change of the conversation's score counts than the same change of a batch's time.
    pub const CONVERSATION_WEIGHT: f64 = 10.0;
    /// What a candidate has to gain on the best one, as a share of the score: less is rounding.
    pub const GAIN: f64 = 0.0005;
    /// Where everything fits, another size of the ubatch than the first has to gain so much, as a share of the score: else the model
    /// is computed as llama.cpp computes it by itself.
    pub const GAIN_ON_USUAL: f64 = 0.004;
    /// What decisions about other batches than the conversation's have to gain for these, as a share of their time.
    pub const BATCH_GAIN: f64 = 0.002;
    /// What they may cost the conversation, all together, as a share of its score.
    pub const HARMLESS: f64 = 0.002;
}

/// The conversation that plans are made for where the user describes none.
pub mod conversation {
    /// Sizes of the ubatch that a plan may choose, in tokens, llama.cpp's own first.
    pub const UBATCHES: [u32; 4] = [512, 1024, 2048, 4096];
    /// Tokens that are generated.
    pub const GENERATED: u32 = 64;
    /// The most tokens of its prompt.
    pub const LONGEST_PROMPT: u32 = 16384;
    /// Contexts of so few tokens are made for one prompt.
    pub const SHORT_CONTEXT: u64 = 128;
}

/// Values that the search tries. More of them cost time: a search of the 30B takes a quarter of a second.
pub mod tried {
    /// Shares of the ring that short batches stream through, in percent.
    pub const SHARES: [u32; 13] = [0, 10, 20, 30, 40, 50, 60, 65, 70, 75, 80, 90, 100];
    /// Batch sizes, in tokens, that may have a share of their own.
    pub const BATCHES: [u32; 4] = [2, 4, 8, 16];
    /// Batches of up to so many tokens may have their experts divided between the device and the CPU.
    pub const FETCHED_ROWS: [u32; 5] = [2, 4, 7, 8, 16];
    /// So many more experts than for a single token are worth trying for each of several.
    pub const MORE_FETCHED: u32 = 2;
    /// Batch sizes, in tokens, from which on everything may be streamed.
    pub const THRESHOLDS: [u32; 8] = [2, 4, 8, 16, 32, 64, 128, 256];
    /// Sizes of the ring, in MiB, next to the derived one.
    pub const RINGS: [u64; 9] = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048];
    /// Numbers of layers on the host.
    pub const LAYER_STEPS: usize = 16;
    /// Numbers of layers with their KV cache on the host.
    pub const KV_STEPS: usize = 8;
    /// Times that all moves are gone through, at most.
    pub const ROUNDS: usize = 4;
    /// Proposals of a move that repeats, at most.
    pub const REPEATED: usize = 64;
}

/// The ring where nothing is searched for.
pub mod ring {
    /// It takes one part of so many of the room for weights, within the limits below. That is no loss: short batches use what it
    /// holds, and between two prompts or ubatches, while the host prepares the next, the link fills it.
    pub const RING_SHARE: u64 = 4;
    /// It holds so many of the largest group, if it can.
    pub const RING_GROUPS: u64 = 3;
    /// It is no larger than this in bytes, unless [`RING_GROUPS`] need it.
    pub const RING_MAX: u64 = 1536 << 20;
}

/// What is concluded from runs.
pub mod runs {
    /// Passes from which on a difference between prediction and run is reported.
    pub const ENOUGH_PASSES: u64 = 8;
    /// The share by which the measured time may differ from the predicted one.
    pub const TOLERANCE: f64 = 0.25;
    /// So many passes count as much as all that was known before. Measured: another program disturbed 14 passes once.
    pub const CONVINCING: f64 = 32.0;
    /// Operations of up to so many tokens take the CPU as many times as long as passes of single tokens did.
    pub const FEW: f64 = 4.0;
    /// Operations of at least so many tokens are limited by arithmetic, and take what was measured.
    pub const MANY: f64 = 64.0;
    /// How often the CPU's factor is looked for with the link's rate that was found, and the other way round.
    pub const ROUNDS: u32 = 3;
    /// Halvings of the range in which the link's rate is looked for.
    pub const HALVINGS: u32 = 8;
    /// The CPU's part of a pass says something where it is at least this share of it.
    pub const PART: f64 = 0.1;
    /// The link moves at least this share of what the profile says it moves while the CPU computes. Where a plan hardly waits for
    /// copies, a little more time would otherwise mean a link that hardly moves.
    pub const LEAST_LINK: f64 = 0.5;
    /// What the CPU takes is within this factor of what was measured, in either direction.
    pub const MOST_CPU: f64 = 4.0;
    /// A pass depends on the link if the slowest and the fastest one make it differ by this share.
    pub const DEPENDS: f64 = 0.02;
}
