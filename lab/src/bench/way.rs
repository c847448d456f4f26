//! Kinds of placement that people try by hand: whole layers, part of each layer, or the KV cache on the CPU.

use super::search::{Need, Placement, Strategy};
use super::types::Approach;
use pipeshard_model::inventory::{Inventory, Role};

/// Tokens per ubatch of these baselines: the default, with the least memory for logits.
pub const UBATCH: u32 = 512;
const HOST_KV: &str = ", nkvo";

/// A kind of placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The most whole layers that fit, `-ngl`.
    Layers,
    /// Feed-forward weights (`-ot`) or experts (`--n-cpu-moe`) of the first layers on the CPU.
    Part,
    /// The same with the KV cache in host memory, `-nkvo`.
    HostKv,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 3] = [Way::Layers, Way::Part, Way::HostKv];

    /// Under which name its measurements are kept.
    pub fn approach(self) -> Approach {
        match self {
            Way::Layers => Approach::Layers,
            Way::Part => Approach::Part,
            Way::HostKv => Approach::HostKv,
        }
    }

    pub(super) fn strategy(self, inventory: &Inventory) -> Strategy {
        let experts = inventory.tensors.iter().any(|t| t.role == Role::Experts);
        match (self, experts) {
            (Way::Layers, _) => Strategy::Layers,
            (_, true) => Strategy::Experts { head: false },
            (_, false) => Strategy::FeedForward { head: false },
        }
    }

    /// The flag of `llama-bench` that tells one such placement from another, and the value with everything in VRAM.
    pub(super) fn axis(self, inventory: &Inventory) -> (&'static str, &'static str) {
        match self.strategy(inventory) {
            Strategy::Layers => ("-ngl", "999"),
            Strategy::FeedForward { .. } => ("-ot", ""),
            Strategy::Experts { .. } => ("-ncmoe", "0"),
        }
    }

    /// The placement with that many layers, or parts of them, on the host.
    pub fn placement(self, inventory: &Inventory, layers: u32, need: Need) -> Placement {
        let placed = self.strategy(inventory).placement(inventory, layers, need);
        match self {
            Way::HostKv => Placement {
                setting: placed.setting + HOST_KV,
                kv: 0,
                ..placed
            },
            _ => placed,
        }
    }

    /// The placement that a setting names.
    pub(super) fn of_setting(
        self,
        inventory: &Inventory,
        setting: &str,
        need: Need,
    ) -> Option<Placement> {
        let (_, layers) = Strategy::parse(setting.strip_suffix(HOST_KV).unwrap_or(setting))?;
        let placed = self.placement(inventory, layers, need);
        (placed.setting == setting).then_some(placed)
    }

    /// The placement with the least on the host that fits next to compute buffers and pools of `beside` bytes, or of what is
    /// estimated for them.
    pub fn fit(
        self,
        inventory: &Inventory,
        need: Need,
        budget: u64,
        beside: Option<u64>,
    ) -> Option<Placement> {
        let placements =
            (0..=inventory.layer_count).map(|layers| self.placement(inventory, layers, need));
        let strategy = self.strategy(inventory);
        strategy.first_fit(placements, inventory, need, budget, beside)
    }
}
