//! From the tensors of a model to the units of a plan.

use pipeshard_model::inventory::{Inventory, Role, TensorInfo};

use super::types::{Unit, UnitClass};

const MIB: u64 = 1 << 20;
/// In a model of a few MiB hardly any tensor is smaller than one, so the threshold shrinks with it.
const SMALL_SHARE: u64 = 4096;

/// Tensors of fewer bytes than this are small: 1 MiB, less for models under 4 GiB.
pub fn default_small_threshold(inventory: &Inventory) -> u64 {
    (inventory.weight_bytes() / SMALL_SHARE).min(MIB)
}

/// The units of a model, one per tensor and in the same order.
///
/// Norms, biases and other vectors are small whatever their size; other tensors are if they take
/// fewer than `small_threshold` bytes. Embeddings stay on the host, except that one which is also
/// the output head counts as the head: the host looks embeddings up anyway.
pub fn units_from_inventory(inventory: &Inventory, small_threshold: u64) -> Vec<Unit> {
    let unit = |tensor: &TensorInfo| Unit {
        name: tensor.name.clone(),
        layer: tensor.layer,
        class: class_of(tensor, inventory.tied_output, small_threshold),
        bytes: tensor.bytes,
        device_bytes: tensor.device_bytes,
        expert_count: match tensor.role {
            Role::Experts => u32::try_from(tensor.shape[2]).unwrap_or(u32::MAX),
            _ => 0,
        },
    };
    inventory.tensors.iter().map(unit).collect()
}

fn class_of(tensor: &TensorInfo, tied_output: bool, small_threshold: u64) -> UnitClass {
    if tensor.role == Role::TokenEmbedding {
        return if tied_output && tensor.name == "token_embd.weight" {
            UnitClass::Output
        } else {
            UnitClass::HostOnly
        };
    }
    let is_vector = !tensor.is_matrix() || tensor.name.ends_with(".bias");
    if tensor.role == Role::Norm || is_vector || tensor.bytes < small_threshold {
        return UnitClass::Small;
    }
    match tensor.role {
        Role::Attention | Role::Recurrent => UnitClass::Attention,
        Role::Experts => UnitClass::Experts,
        Role::Output => UnitClass::Output,
        Role::DenseFeedForward | Role::SharedExperts | Role::Router | Role::Other => {
            UnitClass::FeedForward
        }
        Role::TokenEmbedding | Role::Norm => UnitClass::Small,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_model::test_support as models;

    fn classes(inventory: &Inventory, threshold: u64) -> Vec<(String, UnitClass)> {
        let units = units_from_inventory(inventory, threshold);
        units.into_iter().map(|u| (u.name, u.class)).collect()
    }

    fn class(inventory: &Inventory, threshold: u64, name: &str) -> UnitClass {
        let found = classes(inventory, threshold);
        found.into_iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn classes_follow_roles_shapes_and_sizes() {
        let moe = models::moe();
        for (name, expected) in [
            ("token_embd.weight", UnitClass::HostOnly),
            ("blk.0.attn_norm.weight", UnitClass::Small),
            ("blk.0.attn_q.weight", UnitClass::Attention),
            ("blk.0.attn_q.bias", UnitClass::Small),
            ("blk.1.ffn_gate_inp.weight", UnitClass::FeedForward),
            ("blk.1.ffn_up_exps.weight", UnitClass::Experts),
            ("output_norm.weight", UnitClass::Small),
            ("output.weight", UnitClass::Output),
        ] {
            assert_eq!(class(&moe, 1024, name), expected, "{name}");
        }
        let router = "blk.1.ffn_gate_inp.weight";
        assert_eq!(class(&moe, u64::MAX, router), UnitClass::Small);
        let embedding = "token_embd.weight";
        assert_eq!(class(&moe, u64::MAX, embedding), UnitClass::HostOnly);
    }

    #[test]
    fn a_tied_embedding_is_the_output_head() {
        let dense = models::dense();
        assert!(dense.tied_output);
        assert_eq!(class(&dense, 0, "token_embd.weight"), UnitClass::Output);
    }

    #[test]
    fn units_keep_order_and_sizes() {
        let moe = models::moe();
        let units = units_from_inventory(&moe, MIB);
        assert_eq!(units.len(), moe.tensors.len());
        for (unit, tensor) in units.iter().zip(&moe.tensors) {
            assert_eq!(unit.name, tensor.name);
            assert_eq!(
                (unit.bytes, unit.device_bytes),
                (tensor.bytes, tensor.device_bytes)
            );
            let stacked = tensor.name.contains("_exps");
            assert_eq!(unit.expert_count, if stacked { 16 } else { 0 });
        }
    }

    #[test]
    fn the_threshold_shrinks_with_the_model() {
        let mut model = models::dense();
        assert_eq!(default_small_threshold(&model), model.weight_bytes() / 4096);
        model.tensors[0].bytes = 16 << 30;
        assert_eq!(default_small_threshold(&model), MIB);
    }
}
