//! Models to try things on, as inventories: [`dense`] and [`moe`] of some MiB, and whatever [`Decoder`] describes.

use crate::inventory::{
    canonical_order, layer_of, role_of, DType, Inventory, KvGeometry, KvLayer, Role, TensorInfo,
};

/// A tensor by its name, which says what it is for.
fn tensor(name: String, type_name: &str, shape: [u64; 3]) -> TensorInfo {
    let dtype = DType::from_name(type_name).unwrap();
    let shape = [shape[0], shape[1], shape[2], 1];
    TensorInfo {
        layer: layer_of(&name),
        role: role_of(&name),
        type_name: dtype.name.to_owned(),
        ggml_type: dtype.id,
        shape,
        bytes: dtype.bytes(shape),
        device_bytes: dtype.device_bytes(shape),
        name,
    }
}

/// A model of these tensors. Each layer caches keys and values with the given number of elements.
fn inventory(architecture: &str, layers: u32, cached: u32, tensors: Vec<TensorInfo>) -> Inventory {
    let kv = |layer| KvLayer {
        layer,
        k_elements: cached,
        v_elements: cached,
        window: None,
    };
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
        file_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        tensors,
        kv: KvGeometry {
            layers: (0..layers).map(kv).collect(),
        },
    }
}

fn attention(tensors: &mut Vec<TensorInfo>, layer: u32) {
    let mut add = |name: &str, shape| {
        tensors.push(tensor(format!("blk.{layer}.{name}"), "f16", shape));
    };
    add("attn_norm.weight", [512, 1, 1]);
    for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        add(&format!("{part}.weight"), [512, 512, 1]);
    }
    add("attn_q.bias", [512, 1, 1]);
    add("ffn_norm.weight", [512, 1, 1]);
}

/// A dense model of 8 layers with a tied output head: 44 MiB.
pub fn dense() -> Inventory {
    let mut tensors = vec![tensor(
        "token_embd.weight".to_owned(),
        "f16",
        [512, 8192, 1],
    )];
    for layer in 0..8 {
        attention(&mut tensors, layer);
        for (part, shape) in [
            ("ffn_gate", [512, 1536, 1]),
            ("ffn_up", [512, 1536, 1]),
            ("ffn_down", [1536, 512, 1]),
        ] {
            tensors.push(tensor(format!("blk.{layer}.{part}.weight"), "f16", shape));
        }
    }
    tensors.push(tensor("output_norm.weight".to_owned(), "f16", [512, 1, 1]));
    inventory("llama", 8, 512, tensors)
}

/// A mixture of 16 experts in 4 layers, the output head on its own.
pub fn moe() -> Inventory {
    let vocabulary = [512, 8192, 1];
    let mut tensors = vec![tensor("token_embd.weight".to_owned(), "f16", vocabulary)];
    for layer in 0..4 {
        attention(&mut tensors, layer);
        for (part, shape) in [
            ("ffn_gate_inp", [512, 16, 1]),
            ("ffn_gate_exps", [512, 256, 16]),
            ("ffn_up_exps", [512, 256, 16]),
            ("ffn_down_exps", [256, 512, 16]),
        ] {
            tensors.push(tensor(format!("blk.{layer}.{part}.weight"), "f16", shape));
        }
    }
    tensors.push(tensor("output_norm.weight".to_owned(), "f16", [512, 1, 1]));
    tensors.push(tensor("output.weight".to_owned(), "f16", vocabulary));
    Inventory {
        expert_count: 16,
        expert_used_count: 2,
        ..inventory("qwen3moe", 4, 512, tensors)
    }
}

/// The shape of a decoder.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    pub type_name: &'static str,
    pub layers: u32,
    pub width: u64,
    pub queries: u64,
    pub keys: u64,
    pub feed_forward: u64,
    /// Experts and how many a token uses; 0 for a dense model.
    pub experts: (u64, u32),
    pub vocabulary: u64,
}

pub const LLAMA_8B: Decoder = Decoder {
    type_name: "f16",
    layers: 32,
    width: 4096,
    queries: 4096,
    keys: 1024,
    feed_forward: 14336,
    experts: (0, 0),
    vocabulary: 128_256,
};

pub const QWEN_30B_A3B: Decoder = Decoder {
    type_name: "q4_0",
    layers: 48,
    width: 2048,
    queries: 4096,
    keys: 512,
    feed_forward: 768,
    experts: (128, 8),
    vocabulary: 151_936,
};

pub const QWEN_235B_A22B: Decoder = Decoder {
    type_name: "q2_K",
    layers: 94,
    width: 4096,
    queries: 8192,
    keys: 512,
    feed_forward: 1536,
    experts: (128, 8),
    vocabulary: 151_936,
};

/// A model small enough for sums by hand: f16, products of 1 to 4 MiB.
pub const SMALL: Decoder = Decoder {
    type_name: "f16",
    layers: 2,
    width: 1024,
    queries: 1024,
    keys: 512,
    feed_forward: 2048,
    experts: (0, 0),
    vocabulary: 4096,
};

impl Decoder {
    /// A model of this shape.
    pub fn inventory(&self) -> Inventory {
        let mut tensors = Vec::new();
        let mut add = |name: String, type_name: &str, shape: [u64; 3]| {
            tensors.push(tensor(name, type_name, shape));
        };
        let (width, feed_forward) = (self.width, self.feed_forward);
        let (experts, used) = self.experts;
        let vocabulary = [width, self.vocabulary, 1];
        add("token_embd.weight".to_owned(), self.type_name, vocabulary);
        for layer in 0..self.layers {
            let mut add = |base: &str, type_name: &str, shape: [u64; 3]| {
                add(format!("blk.{layer}.{base}.weight"), type_name, shape);
            };
            add("attn_norm", "f32", [width, 1, 1]);
            add("attn_q", self.type_name, [width, self.queries, 1]);
            add("attn_k", self.type_name, [width, self.keys, 1]);
            add("attn_v", self.type_name, [width, self.keys, 1]);
            add("attn_output", self.type_name, [self.queries, width, 1]);
            add("ffn_norm", "f32", [width, 1, 1]);
            let suffix = if experts > 0 { "_exps" } else { "" };
            if experts > 0 {
                add("attn_q_norm", "f32", [128, 1, 1]);
                add("attn_k_norm", "f32", [128, 1, 1]);
                add("ffn_gate_inp", "f32", [width, experts, 1]);
            }
            for (base, columns, rows) in [
                ("ffn_gate", width, feed_forward),
                ("ffn_up", width, feed_forward),
                ("ffn_down", feed_forward, width),
            ] {
                let shape = [columns, rows, experts.max(1)];
                add(&format!("{base}{suffix}"), self.type_name, shape);
            }
        }
        add("output_norm.weight".to_owned(), "f32", [width, 1, 1]);
        add("output.weight".to_owned(), self.type_name, vocabulary);
        tensors.sort_by(canonical_order);
        Inventory {
            context_length: 131_072,
            embedding_length: width as u32,
            vocabulary_size: self.vocabulary as u32,
            expert_count: experts as u32,
            expert_used_count: used,
            ..inventory("llama", self.layers, self.keys as u32, tensors)
        }
    }
}
