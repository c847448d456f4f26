//! [`super::shape`] on a simulated GPU that has no more memory than the budget.

use super::shape;
use crate::arena::unit::LoadedUnit;
use crate::hook::accounts::Accounts;
use crate::hook::config::Config;
use crate::hook::gate::NewShape;
use crate::hook::planning::planner::Planner;
use crate::hook::residency::Residency;
use crate::hook::telemetry::counters::Counters;
use crate::hook::tenant::Tenant;
use crate::hook::test_card::card;
use crate::hook::weights::Weights;
use crate::lanes::device::Device;
use crate::lanes::fetch::ChoiceLayout;
use crate::trace::Recorder;
use pipeshard_plan::plan::{plan, Plan, PlanInput, Unit, UnitClass};
use pipeshard_sys as ffi;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// Eight layers with a weight of a MiB each, and one with a stack of four experts of a quarter of one.
fn units() -> Vec<Unit> {
    let unit = |layer, class, expert_count| Unit {
        name: format!("blk.{layer}.weight"),
        layer: Some(layer),
        class,
        bytes: MIB,
        device_bytes: MIB,
        expert_count,
    };
    let weights = (0..8).map(|layer| unit(layer, UnitClass::FeedForward, 0));
    weights.chain([unit(8, UnitClass::Experts, 4)]).collect()
}

/// The same in host memory. Tensors and memory live as long as the process.
fn loaded(units: &[Unit]) -> Vec<LoadedUnit> {
    let memory: u64 = units.iter().map(|unit| unit.bytes + 4096).sum();
    // SAFETY: the context has room for the tensors, which are valid for ever.
    unsafe {
        let context = ffi::ggml_init(ffi::ggml_init_params {
            mem_size: memory as usize,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: false,
        });
        let tensor = |unit: &Unit| {
            let (experts, kind) = (unit.expert_count.max(1), ffi::GGML_TYPE_F32);
            let rows = unit.bytes / 4 / 256 / u64::from(experts);
            ffi::ggml_new_tensor_3d(context, kind, 256, rows as i64, experts.into())
        };
        let load = |unit: &Unit| LoadedUnit::new(tensor(unit), unit.device_bytes);
        units.iter().map(load).collect()
    }
}

/// A plan for a budget of so many MiB that leaves the experts to the CPU, but for `fetched` of each token's.
fn planned(budget: u64, fetched: u32) -> Plan {
    let mut input = PlanInput::new(units(), Vec::new(), budget * MIB);
    input.chunk_target = MIB;
    input.granularity = 1;
    let mut made = plan(&input).expect("it fits");
    made.fetched_experts = fetched;
    made
}

struct House {
    device: Device,
    accounts: Accounts,
    tenant: Tenant,
    counters: Counters,
}

/// A tenant on a card with so much memory.
fn house(vram: &str) -> House {
    let config = Arc::new(Config::default());
    let device = card(&format!("vram={vram},granularity=1"));
    let mut residency = Residency::new(Arc::clone(&config), Recorder::default());
    residency.attach(device);
    residency.open(device).expect("it has lanes");
    let described = units();
    House {
        device,
        accounts: Accounts::new(Arc::clone(&config)),
        tenant: Tenant {
            weights: Weights::of_test(loaded(&described), described),
            residency,
            planner: Planner::new(config, None),
        },
        counters: Counters::default(),
    }
}

impl House {
    fn take(&mut self, plan: &Plan) {
        self.tenant.planner.set(plan.clone());
        let proof = NewShape::of_test();
        let (accounts, tenant) = (&mut self.accounts, &mut self.tenant);
        shape::take(accounts, tenant, &mut self.counters, proof).expect("there is a plan");
    }
}

#[test]
fn what_is_in_the_way_gives_way_before_memory_is_taken() {
    let mut house = house("8400K");
    house.take(&planned(8, 0));
    assert!(house.tenant.residency.fetcher().is_none());
    // four experts at a time fit next to five MiB, not next to eight
    let divided = planned(5, 4);
    house.take(&divided);
    assert_eq!(house.counters.errors(), &[] as &[String]);
    assert!(house.tenant.residency.fetcher().is_some());
    assert!(house.tenant.residency.has_shape(&divided));
    // and back
    house.take(&planned(8, 0));
    assert_eq!(house.counters.errors(), &[] as &[String]);
    assert!(house.tenant.residency.fetcher().is_none());
}

#[test]
fn memory_of_fetched_experts_is_asked_for_once() {
    let mut house = house("5500K");
    let divided = planned(5, 4);
    house.tenant.planner.set(divided.clone());
    let proof = NewShape::of_test();
    let residency = &mut house.tenant.residency;
    let units = house.tenant.weights.units_mut();
    residency
        .carve(&divided, units, proof)
        .expect("it has room");
    let described = house.tenant.weights.described();
    assert!(residency.open_fetcher(&divided, described, proof).is_err());
    residency.begin_generation();
    // the plan still says so, a saved one for example: every graph would drain the lanes, and none would be used again
    let (addresses, reuse) = (
        residency.generation().addresses(),
        residency.generation().reuse(),
    );
    assert!(residency.has_shape(&divided));
    residency.release_other_fetcher(&divided, proof);
    assert_eq!(residency.open_fetcher(&divided, described, proof), Ok(()));
    assert!(residency.fetcher().is_none());
    let now = (
        residency.generation().addresses(),
        residency.generation().reuse(),
    );
    assert_eq!(now, (addresses, reuse));
    // other ones are another question
    assert!(!residency.has_shape(&planned(5, 1)));
}

#[test]
fn graphs_with_fetched_experts_do_not_survive_their_memory() {
    let mut house = house("16M");
    house.take(&planned(5, 1));
    let before = house.tenant.residency.generation().addresses();
    // the arena stays as it is
    house.take(&planned(5, 2));
    assert_eq!(house.tenant.residency.recarvings(), 0);
    assert!(house.tenant.residency.generation().addresses() > before);
}

#[test]
fn the_host_waits_for_fetched_experts_outside_of_the_lock() {
    let mut house = house("16M");
    house.take(&planned(5, 1));
    let waits = || {
        let counted = pipeshard_sim::counters(house.device.raw());
        counted.host_syncs + counted.host_syncs_idle
    };
    let before = waits();
    let fetcher = house.tenant.residency.fetcher_mut();
    let fetcher = fetcher.expect("the plan fetches experts");
    let (lane, nothing) = (
        fetcher.stream(),
        ChoiceLayout {
            rows: 0,
            stride: 0,
            experts: 1,
        },
    );
    // SAFETY: the lane is live; nothing is chosen, so no memory is read.
    unsafe {
        assert!(!fetcher.await_numbers(0, lane));
        fetcher.fetch(0, &[], nothing).expect("nothing is chosen");
        // its numbers are still on their way: somebody has to wait, but not here
        assert!(fetcher.await_numbers(0, lane));
        fetcher.fetch(0, &[], nothing).expect("nothing is chosen");
    }
    assert_eq!(waits(), before);
}
