//! Machines and plans to try things on; models are `pipeshard_model::test_support`'s.

pub mod priced;

use crate::constants::machine::ASSUMED_DRAM_SHARE;
use crate::cost::ModelShape;
use crate::plan::{self, Placement, Plan, PlanInput};
use crate::profile::{
    HostCosts, HostMemory, Link, Origin, Overheads, Profile, ProfileKey, Quantity, Rates, Roofline,
    PROFILE_SCHEMA_VERSION,
};
use pipeshard_model::inventory::{DType, Inventory};

/// A gibibyte.
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
    /// The machine of the project's measurements: an H100 and 16 cores.
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

    /// Its profile.
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
            host: HostCosts::ASSUMED,
            curves: Vec::new(),
            learned: Vec::new(),
        }
    }
}

/// What the planner is asked for a model under a budget; f16 KV cache.
pub fn plan_input(inventory: &Inventory, budget: u64, context: u64, ubatch: u32) -> PlanInput {
    let units = plan::units_from_inventory(inventory, plan::default_small_threshold(inventory));
    let f16 = DType::from_name("f16").unwrap();
    let kv = inventory.kv.layers.iter().map(|layer| plan::KvLayer {
        layer: layer.layer,
        bytes: pipeshard_model::inventory::kv_bytes(layer, context, f16, f16),
    });
    PlanInput {
        scratch: plan::estimate_scratch(inventory, ubatch, context as u32, 0),
        reserve: 300 << 20,
        ..PlanInput::new(units, kv.collect(), budget)
    }
}

/// A plan for that.
pub fn planned(inventory: &Inventory, budget: u64, context: u64, ubatch: u32) -> Plan {
    plan::plan(&plan_input(inventory, budget, context, ubatch)).unwrap()
}

/// The model with everything on the device.
pub fn all_resident(inventory: &Inventory) -> Plan {
    planned(inventory, 1 << 42, 512, 64)
}

/// The model as the cost model takes it, with an f16 KV cache.
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

/// A machine by a few rates: bytes per second of the link, of what the CPU reads and of the device's memory, floating-point
/// operations per second of the device. Launches take 20 ns, for models of some MiB are to it what real ones are to a real one.
pub fn stated(link: f64, cpu: f64, membw: f64, flops: f64) -> Profile {
    let rates = Rates {
        pcie: link,
        pageable: link.min(8e9),
        cpu,
        dram: cpu * ASSUMED_DRAM_SHARE,
        membw,
        flops,
        launch: 20e-9,
    };
    rates.profile(ProfileKey::default())
}
