//! Small models as inventories.

use crate::inventory::{Inventory, KvGeometry, KvLayer, Role, TensorInfo};

fn tensor(name: String, layer: Option<u32>, role: Role, shape: [u64; 3]) -> TensorInfo {
    let bytes = 2 * shape.iter().product::<u64>();
    TensorInfo {
        name,
        layer,
        role,
        type_name: "f16".to_owned(),
        ggml_type: 1,
        shape: [shape[0], shape[1], shape[2], 1],
        bytes,
        device_bytes: bytes,
    }
}

fn inventory(architecture: &str, layers: u32, tensors: Vec<TensorInfo>) -> Inventory {
    let kv = |layer| KvLayer {
        layer,
        k_elements: 512,
        v_elements: 512,
        window: None,
    };
    let weight_bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    Inventory {
        architecture: architecture.to_owned(),
        name: None,
        layer_count: layers,
        context_length: 4096,
        embedding_length: 512,
        vocabulary_size: 8192,
        expert_count: 0,
        expert_used_count: 0,
        tied_output: !tensors.iter().any(|tensor| tensor.role == Role::Output),
        tensors,
        kv: KvGeometry {
            layers: (0..layers).map(kv).collect(),
        },
        file_bytes: weight_bytes,
    }
}

fn attention(tensors: &mut Vec<TensorInfo>, layer: u32) {
    let named = |name: &str| format!("blk.{layer}.{name}");
    let at = Some(layer);
    tensors.push(tensor(
        named("attn_norm.weight"),
        at,
        Role::Norm,
        [512, 1, 1],
    ));
    for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        let weight = named(&format!("{part}.weight"));
        tensors.push(tensor(weight, at, Role::Attention, [512, 512, 1]));
    }
    tensors.push(tensor(
        named("attn_q.bias"),
        at,
        Role::Attention,
        [512, 1, 1],
    ));
    tensors.push(tensor(
        named("ffn_norm.weight"),
        at,
        Role::Norm,
        [512, 1, 1],
    ));
}

/// A dense model of 8 layers with a tied output head: 44 MiB.
pub(crate) fn dense() -> Inventory {
    let embedding = [512, 8192, 1];
    let mut tensors = vec![tensor(
        "token_embd.weight".to_owned(),
        None,
        Role::TokenEmbedding,
        embedding,
    )];
    for layer in 0..8 {
        attention(&mut tensors, layer);
        for (part, shape) in [
            ("ffn_gate", [512, 1536, 1]),
            ("ffn_up", [512, 1536, 1]),
            ("ffn_down", [1536, 512, 1]),
        ] {
            let name = format!("blk.{layer}.{part}.weight");
            let role = Role::DenseFeedForward;
            tensors.push(tensor(name, Some(layer), role, shape));
        }
    }
    let norm = "output_norm.weight".to_owned();
    tensors.push(tensor(norm, None, Role::Norm, [512, 1, 1]));
    inventory("llama", 8, tensors)
}

/// A mixture of 16 experts in 4 layers, the output head on its own.
pub(crate) fn moe() -> Inventory {
    let vocabulary = [512, 8192, 1];
    let embedding = "token_embd.weight".to_owned();
    let mut tensors = vec![tensor(embedding, None, Role::TokenEmbedding, vocabulary)];
    for layer in 0..4 {
        attention(&mut tensors, layer);
        let router = format!("blk.{layer}.ffn_gate_inp.weight");
        tensors.push(tensor(router, Some(layer), Role::Router, [512, 16, 1]));
        for (part, shape) in [
            ("ffn_gate_exps", [512, 256, 16]),
            ("ffn_up_exps", [512, 256, 16]),
            ("ffn_down_exps", [256, 512, 16]),
        ] {
            let name = format!("blk.{layer}.{part}.weight");
            tensors.push(tensor(name, Some(layer), Role::Experts, shape));
        }
    }
    let norm = "output_norm.weight".to_owned();
    tensors.push(tensor(norm, None, Role::Norm, [512, 1, 1]));
    let head = "output.weight".to_owned();
    tensors.push(tensor(head, None, Role::Output, vocabulary));
    Inventory {
        expert_count: 16,
        expert_used_count: 2,
        ..inventory("qwen3moe", 4, tensors)
    }
}
