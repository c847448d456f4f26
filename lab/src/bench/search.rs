//! Where stock llama.cpp may be told to put weights, so that it stays within a budget.
//!
//! Every kind of placement has one number, the layers whose weights (or some of them) stay with the host. The fewest that
//! fit are computed from the sizes of the weights, the KV cache and an allowance for compute buffers, which starts as an
//! estimate and is replaced by what was measured.

use super::MIB;
use pipeshard_model::inventory::{kv_bytes, DType, Inventory, Role, TensorInfo};
use pipeshard_plan::plan::estimate_scratch;

/// A kind of placement. `head` leaves the output head to the CPU as well, which frees the memory of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The feed-forward weights of the first layers on the CPU (`-ot`).
    FeedForward {
        /// The output head too.
        head: bool,
    },
    /// The experts of the first layers on the CPU (`--n-cpu-moe`).
    Experts {
        /// The output head too.
        head: bool,
    },
    /// The first layers on the CPU, their KV cache included (`-ngl`).
    Layers,
}

/// A placement as llama.cpp takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Its short name, such as `ffn 27, head`.
    pub setting: String,
    /// The flags of `llama-bench`.
    pub flags: Vec<String>,
    /// Bytes of weights on the device.
    pub weights: u64,
    /// Bytes of KV cache on the device.
    pub kv: u64,
    /// Bytes of the largest tensor that the host keeps: stock copies it to the device when its turn comes.
    pub largest_on_host: u64,
}

/// What a placement has to make room for.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Tokens of context.
    pub context: u32,
    /// Tokens per ubatch.
    pub ubatch: u32,
}

const CONTEXT_PADDING: u64 = 256;
/// What a backend takes for itself while it computes, until it was measured.
const POOLS: u64 = 96 * MIB;

impl Strategy {
    /// The kinds that make sense for a model, the most promising first.
    pub fn of(inventory: &Inventory) -> Vec<Strategy> {
        let has = |role| inventory.tensors.iter().any(|t| t.role == role);
        let mut kinds = Vec::new();
        let mixture = has(Role::Experts);
        let heads: &[bool] = if inventory.tied_output {
            &[false]
        } else {
            &[false, true]
        };
        for &head in heads {
            if mixture {
                kinds.push(Strategy::Experts { head });
            } else if has(Role::DenseFeedForward) {
                kinds.push(Strategy::FeedForward { head });
            }
        }
        // whole layers are what dense models are cut by; of a mixture they take experts that are seldom read
        let at = if mixture {
            kinds.len()
        } else {
            kinds.len().min(1)
        };
        kinds.insert(at, Strategy::Layers);
        kinds
    }

    fn head_on_host(self) -> bool {
        match self {
            Strategy::FeedForward { head } | Strategy::Experts { head } => head,
            Strategy::Layers => false,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Strategy::FeedForward { .. } => "ffn",
            Strategy::Experts { .. } => "experts",
            Strategy::Layers => "layers",
        }
    }

    /// For people: `ffn` or `ffn, head`.
    pub fn name(self) -> String {
        let head = if self.head_on_host() { ", head" } else { "" };
        format!("{}{head}", self.word())
    }

    fn setting(self, layers: u32) -> String {
        let head = if self.head_on_host() { ", head" } else { "" };
        format!("{} {layers}{head}", self.word())
    }

    /// Reads a setting's short name.
    pub fn parse(setting: &str) -> Option<(Strategy, u32)> {
        let (rest, head) = match setting.strip_suffix(", head") {
            Some(rest) => (rest, true),
            None => (setting, false),
        };
        let (word, layers) = rest.split_once(' ')?;
        let strategy = match word {
            "ffn" => Strategy::FeedForward { head },
            "experts" => Strategy::Experts { head },
            "layers" if !head => Strategy::Layers,
            _ => return None,
        };
        Some((strategy, layers.parse().ok()?))
    }

    fn keeps_on_host(self, tensor: &TensorInfo, layers: u32) -> bool {
        if tensor.role == Role::TokenEmbedding {
            return true;
        }
        let Some(layer) = tensor.layer else {
            return self.head_on_host() && tensor.name == "output.weight";
        };
        layer < layers
            && match self {
                Strategy::FeedForward { .. } => {
                    tensor.role == Role::DenseFeedForward
                        && ["ffn_up.", "ffn_down.", "ffn_gate."]
                            .iter()
                            .any(|part| tensor.name.contains(part))
                }
                Strategy::Experts { .. } => tensor.role == Role::Experts,
                Strategy::Layers => true,
            }
    }

    fn flags(self, layers: u32, all_layers: u32) -> Vec<String> {
        let words = |list: &[&str]| list.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let mut overrides = Vec::new();
        let mut flags = match self {
            Strategy::Layers => {
                let on_device = (all_layers + 1).saturating_sub(layers);
                return words(&["-ngl", &on_device.to_string()]);
            }
            Strategy::FeedForward { .. } => {
                if layers > 0 {
                    let list: Vec<String> = (0..layers).map(|l| l.to_string()).collect();
                    let pattern = format!(r"blk\.({})\.ffn_(up|down|gate)\.=CPU", list.join("|"));
                    overrides.push(pattern);
                }
                words(&["-ngl", "999"])
            }
            Strategy::Experts { .. } => words(&["-ngl", "999", "-ncmoe", &layers.to_string()]),
        };
        if self.head_on_host() {
            overrides.push(r"^output\.weight$=CPU".to_owned());
        }
        if !overrides.is_empty() {
            flags.extend(["-ot".to_owned(), overrides.join(";")]);
        }
        flags
    }

    /// The placement with that many layers on the host.
    pub fn placement(self, inventory: &Inventory, layers: u32, need: Need) -> Placement {
        let (mut weights, mut largest_on_host) = (0u64, 0u64);
        for tensor in &inventory.tensors {
            if self.keeps_on_host(tensor, layers) {
                if tensor.role != Role::TokenEmbedding {
                    largest_on_host = largest_on_host.max(tensor.device_bytes);
                }
            } else {
                weights = weights.saturating_add(tensor.device_bytes);
            }
        }
        if inventory.tied_output {
            let embedding = inventory.tensor("token_embd.weight");
            weights = weights.saturating_add(embedding.map_or(0, |t| t.device_bytes));
        }
        let first = if self == Strategy::Layers { layers } else { 0 };
        Placement {
            setting: self.setting(layers),
            flags: self.flags(layers, inventory.layer_count),
            weights,
            kv: kv_on_device(inventory, first, need),
            largest_on_host,
        }
    }

    /// The placement with the fewest layers on the host that fits into `budget` bytes, where compute buffers and pools take
    /// `beside` bytes, or what is estimated for them. None where nothing of this kind fits.
    pub fn fit(
        self,
        inventory: &Inventory,
        need: Need,
        budget: u64,
        beside: Option<u64>,
    ) -> Option<Placement> {
        let placements =
            (0..=inventory.layer_count).map(|layers| self.placement(inventory, layers, need));
        self.first_fit(placements, inventory, need, budget, beside)
    }

    /// The first of some placements that fits, as [`Strategy::fit`] has it.
    pub(super) fn first_fit(
        self,
        mut placements: impl Iterator<Item = Placement>,
        inventory: &Inventory,
        need: Need,
        budget: u64,
        beside: Option<u64>,
    ) -> Option<Placement> {
        placements.find(|placed| {
            let beside = beside.unwrap_or_else(|| self.guess(inventory, need, placed));
            let held = placed.weights.saturating_add(placed.kv);
            held.saturating_add(beside) <= budget
        })
    }

    fn guess(self, inventory: &Inventory, need: Need, placement: &Placement) -> u64 {
        // the tools reserve one row of logits, pipeshard or not
        let outputs = u32::from(!self.head_on_host());
        estimate_scratch(inventory, need.ubatch, need.context, outputs)
            .saturating_add(2 * placement.largest_on_host)
            .saturating_add(POOLS)
    }
}

fn kv_on_device(inventory: &Inventory, first: u32, need: Need) -> u64 {
    let Some(f16) = DType::from_name("f16") else {
        return 0;
    };
    let kv_tokens = u64::from(need.context).next_multiple_of(CONTEXT_PADDING);
    let layers = inventory.kv.layers.iter().filter(|kv| kv.layer >= first);
    layers
        .map(|kv| {
            kv_bytes(
                kv,
                kv.kv_tokens(kv_tokens, u64::from(need.ubatch), 1),
                f16,
                f16,
            )
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::tests::inventory;

    const NEED: Need = Need {
        context: 512,
        ubatch: 512,
    };

    #[test]
    fn settings_can_be_read_again() {
        for strategy in [
            Strategy::FeedForward { head: true },
            Strategy::FeedForward { head: false },
            Strategy::Experts { head: true },
            Strategy::Layers,
        ] {
            assert_eq!(Strategy::parse(&strategy.setting(7)), Some((strategy, 7)));
        }
        assert_eq!(Strategy::parse("-48 MiB"), None);
        assert_eq!(Strategy::parse(""), None);
    }

    #[test]
    fn more_layers_on_the_host_take_less_of_the_device() {
        let dense = inventory("tiny-llama");
        for strategy in Strategy::of(&dense) {
            let none = strategy.placement(&dense, 0, NEED);
            let all = strategy.placement(&dense, dense.layer_count, NEED);
            assert!(all.weights < none.weights, "{strategy:?}");
            assert!(all.largest_on_host > 0);
            let one = strategy.placement(&dense, 1, NEED);
            let budget = one.weights + one.kv + 1000;
            let fitted = strategy.fit(&dense, NEED, budget, Some(1000)).unwrap();
            assert_eq!(fitted.setting, strategy.setting(1));
            assert_eq!(strategy.fit(&dense, NEED, 1000, Some(1000)), None);
        }
    }

    #[test]
    fn flags_name_exactly_what_was_counted() {
        let dense = inventory("tiny-llama");
        let placed = Strategy::FeedForward { head: true }.placement(&dense, 2, NEED);
        let overrides = placed.flags.last().unwrap();
        let patterns: Vec<regex::Regex> = overrides
            .split(';')
            .map(|o| regex::Regex::new(o.strip_suffix("=CPU").unwrap()).unwrap())
            .collect();
        let on_device = dense.tensors.iter().filter(|t| {
            t.role != Role::TokenEmbedding && !patterns.iter().any(|p| p.is_match(&t.name))
        });
        let bytes: u64 = on_device.map(|t| t.device_bytes).sum();
        assert_eq!(placed.weights, bytes);
        let layers = Strategy::Layers.placement(&dense, dense.layer_count, NEED);
        assert_eq!((layers.kv, &layers.flags[1][..]), (0, "1"));
    }

    #[test]
    fn mixtures_leave_experts_on_the_host() {
        let mixture = inventory("tiny-qwen3moe");
        let kinds = Strategy::of(&mixture);
        assert!(matches!(kinds[0], Strategy::Experts { .. }));
        let placed = kinds[0].placement(&mixture, 2, NEED);
        assert!(placed.flags.windows(2).any(|w| w == ["-ncmoe", "2"]));
        let experts = mixture.tensors.iter().filter(|t| t.role == Role::Experts);
        let held: u64 = experts
            .filter(|t| t.layer < Some(2))
            .map(|t| t.device_bytes)
            .sum();
        let none = kinds[0].placement(&mixture, 0, NEED);
        assert_eq!(none.weights - placed.weights, held);
    }
}
