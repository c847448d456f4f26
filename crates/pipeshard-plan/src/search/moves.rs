//! What is tried, as data: a descent goes through a list of moves, and keeps what helps.

use super::descent::{Descent, Move};
use crate::plan::Decisions;

const fn once(name: &'static str, propose: fn(&Descent) -> Vec<Decisions>) -> Move {
    Move {
        name,
        propose,
        repeats: false,
    }
}

const ORDER: Move = once("order of classes", |descent| descent.orders());
const LAYERS: Move = once("whole layers", |descent| descent.layers_first());
const KV: Move = once("KV cache on host", |descent| descent.kv_on_host());
const RING: Move = once("size of the ring", |descent| descent.rings());
const SHARE: Move = once("streamed per token", |descent| descent.shares());
const FETCHING: Move = once("experts fetched", |descent| descent.fetching());
/// Decided for less room than there turned out to be.
const WHOLE: Move = once("everything resident", |descent| {
    descent.everything_resident()
});
pub(super) const EVEN: Move = once("spread evenly", |descent| descent.even());
const EXCHANGE: Move = Move {
    name: "exchange blocks",
    propose: |descent| descent.exchanges(),
    repeats: true,
};

/// Everything that may be varied. Where the KV cache lies comes last: a search that begins with it gives up for weights what they
/// could have had in other ways.
pub(super) const ALL: [Move; 8] = [ORDER, LAYERS, RING, SHARE, FETCHING, EVEN, EXCHANGE, KV];
/// What needs no other compute buffers.
pub(super) const ADAPTING: [Move; 4] = [WHOLE, SHARE, RING, FETCHING];
/// What a size of the ubatch is chosen by where the rest is forced.
pub(super) const SHARES: [Move; 1] = [SHARE];

const MIB: u64 = 1 << 20;
/// Sizes of the ring that are tried in addition to the derived one, in MiB.
pub(super) const RINGS: [u64; 9] = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048];

impl Descent<'_> {
    /// Where the budget holds all weights: the decisions that leave them all the room.
    fn everything_resident(&self) -> Vec<Decisions> {
        if self.plan.budget < self.plan.full_budget {
            return Vec::new();
        }
        let whole = Decisions {
            ring_target: None,
            short_streams: Vec::new(),
            fetched_experts: 0,
            fetched_by_batches: Vec::new(),
            ..self.decisions.clone()
        };
        vec![whole]
    }

    fn rings(&self) -> Vec<Decisions> {
        let streamed: u64 = self.plan.ring.groups.iter().map(|group| group.bytes).sum();
        let most = streamed.next_power_of_two();
        let sizes = RINGS.iter().map(|size| size * MIB);
        let sizes = sizes.filter(|&bytes| bytes <= most).map(Some);
        let with = |ring_target| Decisions {
            ring_target,
            ..self.decisions.clone()
        };
        std::iter::once(None).chain(sizes).map(with).collect()
    }
}
