//! What was to be reached, in one place.

use super::types::Work;

/// What a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// pipeshard's part of max(compute, link).
    OfBound,
    /// How many times as fast as the fastest baseline.
    OverBest,
    /// How many times as fast as the most whole layers that fit, `-ngl`.
    OverLayers,
    /// How many times as fast as `--fit` with the file mapped.
    OverFit,
    /// How many times as fast as stock with the same placement, as a part of what overlap can give.
    OfOverlap,
    /// How many times as fast as stock, everything in VRAM on both sides.
    OverStockInVram,
    /// Seconds to the first token, as a part of `--fit`'s with the file mapped: at most.
    LoadTime,
    /// The most device memory, as a part of the budget: at most.
    Peak,
    /// Compute buffers that grew and waits that should not be: at most.
    Unsteady,
    /// Seconds of planning for each context: at most.
    Planning,
}

/// Models that a target is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every token uses all weights.
    Dense,
    /// A token uses some experts.
    Mixture,
    /// Both.
    Any,
}

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is about, for people.
    pub what: &'static str,
    /// Models that it is for.
    pub kind: Kind,
    /// Work that it is for.
    pub work: Option<Work>,
    /// Prompts that it is for, in tokens: from, to.
    pub tokens: (u32, u32),
    /// Tokens in the context before, from, to.
    pub depth: (u32, u32),
    /// Sequences side by side; none for whatever was measured.
    pub sequences: Option<u32>,
    /// Of a further grid: not named where nothing of it was measured.
    pub further: bool,
    /// The figure.
    pub figure: Figure,
    /// The least, or the most for those that are *at most*.
    pub limit: f64,
}

const ALL_TOKENS: (u32, u32) = (0, u32::MAX);

const fn deep(what: &'static str, depth: u32, figure: Figure, limit: f64) -> Target {
    Target {
        what,
        kind: Kind::Any,
        work: Some(Work::Decode),
        tokens: ALL_TOKENS,
        depth: (depth, u32::MAX),
        sequences: Some(1),
        further: true,
        figure,
        limit,
    }
}

const fn batch(what: &'static str, sequences: u32, limit: f64) -> Target {
    Target {
        kind: Kind::Mixture,
        depth: (1, 1023),
        sequences: Some(sequences),
        ..deep(what, 1, Figure::OverLayers, limit)
    }
}

const fn prompt(
    what: &'static str,
    kind: Kind,
    tokens: (u32, u32),
    figure: Figure,
    limit: f64,
) -> Target {
    Target {
        what,
        kind,
        work: Some(Work::Prompt),
        tokens,
        depth: (0, 0),
        sequences: None,
        further: false,
        figure,
        limit,
    }
}

/// All targets. They are ratios of one run at equal measured VRAM.
pub const TARGETS: &[Target] = &[
    prompt(
        "dense prompt, 2048",
        Kind::Dense,
        (2048, 2048),
        Figure::OfBound,
        0.90,
    ),
    prompt(
        "dense prompt, 2048",
        Kind::Dense,
        (2048, 2048),
        Figure::OfOverlap,
        0.85,
    ),
    prompt(
        "dense prompt, 4096 up",
        Kind::Dense,
        (4096, u32::MAX),
        Figure::OfBound,
        0.85,
    ),
    prompt(
        "dense prompt, 4096 up",
        Kind::Dense,
        (4096, u32::MAX),
        Figure::OverFit,
        5.0,
    ),
    prompt(
        "dense prompt, 4096 up",
        Kind::Dense,
        (4096, u32::MAX),
        Figure::OverBest,
        1.8,
    ),
    prompt(
        "dense prompt, 512",
        Kind::Dense,
        (512, 512),
        Figure::OfBound,
        0.97,
    ),
    prompt(
        "dense prompt, 512",
        Kind::Dense,
        (512, 512),
        Figure::OverBest,
        1.2,
    ),
    prompt(
        "experts' prompt, 4096",
        Kind::Mixture,
        (4096, 4096),
        Figure::OfBound,
        0.90,
    ),
    prompt(
        "experts' prompt, 4096",
        Kind::Mixture,
        (4096, 4096),
        Figure::OverBest,
        1.3,
    ),
    prompt(
        "short prompts, 8 to 128",
        Kind::Any,
        (8, 128),
        Figure::OverBest,
        1.0,
    ),
    Target {
        what: "generation",
        kind: Kind::Any,
        work: Some(Work::Decode),
        tokens: ALL_TOKENS,
        depth: (0, 0),
        sequences: None,
        further: false,
        figure: Figure::OverBest,
        limit: 1.0,
    },
    Target {
        what: "everything fits",
        kind: Kind::Any,
        work: None,
        tokens: ALL_TOKENS,
        depth: ALL_TOKENS,
        sequences: None,
        further: false,
        figure: Figure::OverStockInVram,
        limit: 0.99,
    },
    Target {
        what: "peak device memory",
        kind: Kind::Any,
        work: None,
        tokens: ALL_TOKENS,
        depth: ALL_TOKENS,
        sequences: None,
        further: false,
        figure: Figure::Peak,
        limit: 1.0,
    },
    Target {
        what: "load and first token",
        kind: Kind::Any,
        work: Some(Work::FirstToken),
        tokens: ALL_TOKENS,
        depth: ALL_TOKENS,
        sequences: None,
        further: false,
        figure: Figure::LoadTime,
        limit: 1.1,
    },
    Target {
        what: "steady state",
        kind: Kind::Any,
        work: None,
        tokens: ALL_TOKENS,
        depth: ALL_TOKENS,
        sequences: None,
        further: false,
        figure: Figure::Unsteady,
        limit: 0.0,
    },
    Target {
        what: "planning",
        kind: Kind::Any,
        work: None,
        tokens: ALL_TOKENS,
        depth: ALL_TOKENS,
        sequences: None,
        further: true,
        figure: Figure::Planning,
        limit: 0.5,
    },
    deep("generation behind 16K", 15_000, Figure::OverLayers, 3.0),
    deep("generation behind a prompt", 1, Figure::OverBest, 1.0),
    batch("1 sequence side by side", 1, 1.3),
    batch("4 sequences side by side", 4, 1.5),
    batch("16 sequences side by side", 16, 1.7),
    batch("64 sequences side by side", 64, 3.7),
];
