//! Machines and models to try.

use crate::cost::ModelShape;
use crate::inventory::{
    canonical_order, layer_of, role_of, DType, Inventory, KvGeometry, KvLayer, Role, TensorInfo,
};
use crate::plan::{self, Placement, Plan, PlanInput};
use crate::profile::{
    HostMemory, Link, Origin, Overheads, Profile, ProfileKey, Quantity, Roofline,
    PROFILE_SCHEMA_VERSION,
};

pub const GIB: u64 = 1 << 30;

/// Rates in bytes per second, arithmetic in operations per second, the rest in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub link: f64,
    pub link_cpu_busy: f64,
    pub cpu: f64,
    pub cpu_copy_busy: f64,
    pub gpu: f64,
    pub gpu_flops: f64,
    pub cpu_flops: f64,
    pub hand_over: f64,
    pub launch: f64,
    pub pass: f64,
}

impl Machine {
    /// The one that the project was measured on: an H100 beside 16 cores.
    pub fn measured() -> Self {
        Machine {
            link: 55e9,
            link_cpu_busy: 51e9,
            cpu: 90e9,
            cpu_copy_busy: 71e9,
            gpu: 2.5e12,
            gpu_flops: 500e12,
            cpu_flops: 1.5e12,
            hand_over: 80e-6,
            launch: 3e-6,
            pass: 500e-6,
        }
    }

    pub fn profile(&self) -> Profile {
        let stated = Quantity::stated;
        Profile {
            schema_version: PROFILE_SCHEMA_VERSION,
            origin: Origin::Stated,
            key: ProfileKey::default(),
            link: Link {
                pinned: stated(self.link),
                pinned_cpu_busy: stated(self.link_cpu_busy),
                pageable: stated(self.link / 5.0),
                back: stated(self.link),
                register: stated(0.0),
            },
            memory: HostMemory {
                cpu: stated(self.cpu),
                cpu_copy_busy: stated(self.cpu_copy_busy),
            },
            overheads: Overheads {
                to_cpu: stated(self.hand_over),
                to_gpu: stated(self.hand_over),
                launch: stated(self.launch),
                cpu_op: stated(self.launch),
                cpu_wake: stated(0.0),
                pass: stated(self.pass),
            },
            cpu: Roofline {
                bytes: self.cpu,
                flops: self.cpu_flops,
                launch: self.launch,
            },
            gpu: Roofline {
                bytes: self.gpu,
                flops: self.gpu_flops,
                launch: self.launch,
            },
            curves: Vec::new(),
            learned: Vec::new(),
        }
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
    pub fn inventory(&self) -> Inventory {
        let mut tensors = Vec::new();
        let mut add = |name: String, type_name: &str, shape: [u64; 3]| {
            let dtype = DType::from_name(type_name).unwrap();
            let shape = [shape[0], shape[1], shape[2], 1];
            tensors.push(TensorInfo {
                layer: layer_of(&name),
                role: role_of(&name),
                type_name: dtype.name.to_owned(),
                ggml_type: dtype.id,
                shape,
                bytes: dtype.bytes(shape),
                device_bytes: dtype.device_bytes(shape),
                name,
            });
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
        let kv = |layer| KvLayer {
            layer,
            k_elements: self.keys as u32,
            v_elements: self.keys as u32,
            window: None,
        };
        Inventory {
            architecture: "llama".to_owned(),
            name: None,
            layer_count: self.layers,
            context_length: 131_072,
            embedding_length: width as u32,
            vocabulary_size: self.vocabulary as u32,
            expert_count: experts as u32,
            expert_used_count: used,
            tied_output: !tensors.iter().any(|t: &TensorInfo| t.role == Role::Output),
            file_bytes: tensors.iter().map(|t| t.bytes).sum(),
            tensors,
            kv: KvGeometry {
                layers: (0..self.layers).map(kv).collect(),
            },
        }
    }
}

/// What the planner is asked for a model under a budget; f16 cells.
pub fn plan_input(inventory: &Inventory, budget: u64, context: u64, ubatch: u32) -> PlanInput {
    let units = plan::units_from_inventory(inventory, plan::default_small_threshold(inventory));
    let f16 = DType::from_name("f16").unwrap();
    let kv = inventory.kv.layers.iter().map(|layer| plan::KvLayer {
        layer: layer.layer,
        bytes: crate::inventory::kv_bytes(layer, context, f16, f16),
    });
    PlanInput {
        scratch: plan::estimate_scratch(inventory, ubatch, context as u32, 0),
        reserve: 300 << 20,
        ..PlanInput::new(units, kv.collect(), budget)
    }
}

pub fn planned(inventory: &Inventory, budget: u64, context: u64, ubatch: u32) -> Plan {
    plan::plan(&plan_input(inventory, budget, context, ubatch)).unwrap()
}

/// The model with everything on the device.
pub fn all_resident(inventory: &Inventory) -> Plan {
    planned(inventory, 1 << 42, 512, 64)
}

pub fn shape(inventory: &Inventory) -> ModelShape<'_> {
    ModelShape {
        inventory,
        type_k: "f16",
        type_v: "f16",
    }
}

/// Another placement for the units whose names `of` picks, in every tier.
pub fn place(plan: &mut Plan, placement: Placement, of: impl Fn(&str) -> bool) {
    for tier in &mut plan.tiers {
        for (unit, placed) in plan.units.iter().zip(&mut tier.placements) {
            if of(&unit.name) {
                *placed = placement;
            }
        }
    }
}
