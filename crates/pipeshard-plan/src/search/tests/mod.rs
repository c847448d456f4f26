mod brute;
mod grid;

use super::score::weigh;
use super::*;
use crate::cost::Workload;
use crate::plan::{
    plan, units_from_inventory, Decisions, KvLayer, Plan, PlanInput, UnitClass, UnitId,
};
use crate::profile::Profile;
use crate::test_support::{shape, stated};
use pipeshard_model::inventory::{Inventory, Role};
use pipeshard_model::test_support as models;

const MIB: u64 = 1 << 20;

/// A machine on which models of a few MiB are to it what real ones are to a real one.
fn slow(pcie_mb: u64, cpu_mb: u64) -> Profile {
    stated(pcie_mb as f64 * 1e6, cpu_mb as f64 * 1e6, 2e9, 100e9)
}

fn input(inventory: &Inventory, kv_tokens: u64, budget: u64) -> PlanInput {
    let units = units_from_inventory(inventory, 64 << 10);
    let kv = inventory.kv.layers.iter().map(|layer| KvLayer {
        layer: layer.layer,
        bytes: kv_tokens * u64::from(layer.k_elements + layer.v_elements) * 2,
    });
    PlanInput {
        granularity: 64 << 10,
        chunk_target: MIB,
        group_target: MIB,
        ..PlanInput::new(units, kv.collect(), budget)
    }
}

fn talk(prompt: u32, generated: u32) -> Workload {
    Workload {
        prompt,
        generated,
        sequences: 1,
        ubatch: 512,
    }
}

fn run(inventory: &Inventory, profile: &Profile, input: &PlanInput, workload: Workload) -> Found {
    search(&SearchInput {
        input,
        model: shape(inventory),
        profile,
        workload,
        ubatches: &[UbatchOption {
            ubatch: workload.ubatch,
            scratch: MIB,
            pools: 0,
            kv: None,
            output_on_host: false,
        }],
        forced: None,
    })
    .unwrap()
}

/// The first layers of a model.
fn cut(mut model: Inventory, layers: u32) -> Inventory {
    model
        .tensors
        .retain(|tensor| tensor.layer.is_none_or(|layer| layer < layers));
    model.kv.layers.retain(|layer| layer.layer < layers);
    model.layer_count = layers;
    model
}

/// The model with a layer repeated so often, and tensors of other names alike.
fn repeat(model: &Inventory, layers: u32) -> Inventory {
    let mut long = cut(model.clone(), 1);
    let first: Vec<_> = long
        .tensors
        .iter()
        .filter(|t| t.layer == Some(0))
        .cloned()
        .collect();
    let at = long
        .tensors
        .iter()
        .rposition(|t| t.layer == Some(0))
        .unwrap()
        + 1;
    let mut more = Vec::new();
    for layer in 1..layers {
        for tensor in &first {
            let mut tensor = tensor.clone();
            tensor.layer = Some(layer);
            tensor.name = tensor.name.replace("blk.0.", &format!("blk.{layer}."));
            more.push(tensor);
        }
        let kv = pipeshard_model::inventory::KvLayer {
            layer,
            ..long.kv.layers[0]
        };
        long.kv.layers.push(kv);
    }
    long.tensors.splice(at..at, more);
    long.layer_count = layers;
    long
}

#[test]
fn a_fast_link_carries_part_of_what_the_cpu_would_read() {
    let model = models::dense();
    let streamed = |pcie, cpu| {
        let profile = slow(pcie, cpu);
        let found = run(
            &model,
            &profile,
            &input(&model, 1024, 32 * MIB),
            talk(64, 256),
        );
        found.prediction.decode.bytes_streamed
    };
    assert!(streamed(2000, 300) > 0);
    assert_eq!(streamed(20, 1000), 0);
}

#[test]
fn what_a_token_reads_comes_before_what_it_seldom_reads() {
    let model = models::moe();
    let found = run(
        &model,
        &slow(300, 600),
        &input(&model, 1024, 40 * MIB),
        talk(16, 200),
    );
    let count = |class| {
        let of_class = |id: &&UnitId| found.plan.units[id.index()].class == class;
        found.plan.residents.iter().filter(of_class).count()
    };
    let attention = model
        .tensors
        .iter()
        .filter(|t| t.role == Role::Attention && t.is_matrix());
    assert_eq!(count(UnitClass::Attention), attention.count());
}

#[test]
fn a_cache_that_is_read_for_every_token_comes_before_weights() {
    let model = models::dense();
    let kv_tokens = 16384;
    let found = run(
        &model,
        &slow(300, 600),
        &input(&model, kv_tokens, 300 * MIB),
        talk(12000, 200),
    );
    assert!(found.plan.kv.iter().all(|layer| layer.device));
    assert!(found.decisions.kv_on_host.is_empty());
}

#[test]
fn what_fits_needs_no_search() {
    let model = models::dense();
    let found = run(
        &model,
        &slow(300, 600),
        &input(&model, 1024, 1024 * MIB),
        talk(64, 64),
    );
    assert!(found.plan.ring.groups.is_empty());
    assert!(found.priced < 5, "{}", found.priced);
}

#[test]
fn larger_ubatches_are_chosen_for_long_prompts_that_stream() {
    let model = repeat(&models::dense(), 24);
    let profile = stated(100e6, 1e9, 2e9, 2e12);
    let options = [512, 1024, 2048, 4096].map(|ubatch| UbatchOption {
        ubatch,
        scratch: u64::from(ubatch) << 10,
        pools: 0,
        kv: None,
        output_on_host: false,
    });
    let chosen = |prompt, generated, mib| {
        let input = input(&model, 8192, mib * MIB);
        let wanted = SearchInput {
            input: &input,
            model: shape(&model),
            profile: &profile,
            workload: talk(prompt, generated),
            ubatches: &options,
            forced: None,
        };
        search(&wanted).unwrap().ubatch
    };
    assert!(chosen(4096, 1, 450) >= 2048);
    assert!(chosen(256, 64, 450) <= 1024);
    // everything fits, and larger sizes gain next to nothing: the size that llama.cpp would take
    assert_eq!(chosen(500, 64, 4000), 512);
}

#[test]
fn a_search_prices_few_plans_however_many_layers_there_are() {
    let model = repeat(&models::moe(), 94);
    let size = model.weight_bytes() / 3;
    let input = input(&model, 4096, size + 94 * 4096 * 2048);
    let found = run(&model, &slow(300, 600), &input, talk(3072, 64));
    assert!(found.priced < 400, "{}", found.priced);
}

#[test]
fn what_is_forced_has_a_name_and_mostly_a_plan_of_its_own() {
    for model in [models::dense(), models::moe()] {
        let profile = slow(300, 600);
        let input = PlanInput {
            scratch: MIB,
            ..input(&model, 1024, 36 * MIB)
        };
        let mut distinct = Vec::new();
        for (name, candidate) in Candidate::ALL {
            assert_eq!(Candidate::named(name), Some(candidate));
            let wanted = SearchInput {
                input: &input,
                model: shape(&model),
                profile: &profile,
                workload: talk(256, 64),
                ubatches: &[UbatchOption {
                    ubatch: 512,
                    scratch: MIB,
                    pools: 0,
                    kv: None,
                    output_on_host: false,
                }],
                forced: Some(candidate),
            };
            let forced = search(&wanted).unwrap();
            if !distinct.contains(&forced.plan) {
                distinct.push(forced.plan);
            }
        }
        assert!(distinct.len() >= 5, "{}", distinct.len());
    }
}

fn usual_ubatch() -> UbatchOption {
    UbatchOption {
        ubatch: 512,
        scratch: MIB,
        pools: 0,
        kv: None,
        output_on_host: false,
    }
}

/// A mixture of experts with half of them on the host, on a machine whose link and CPU get so many bytes per second while both read.
fn fetched(together: f64) -> Found {
    let (model, profile, input) = half_on_host(together);
    run(&model, &profile, &input, talk(64, 64))
}

fn half_on_host(together: f64) -> (Inventory, Profile, PlanInput) {
    let mut profile = slow(500, 500);
    profile.link.pinned_cpu_busy.median = 500e6 * together;
    profile.memory.cpu_copy_busy.median = 500e6 * together;
    let model = repeat(&models::moe(), 24).using_experts(4);
    let input = PlanInput {
        scratch: MIB,
        ..input(&model, 1024, 120 * MIB)
    };
    (model, profile, input)
}

#[test]
fn room_for_fetched_experts_goes_back_to_weights_that_turn_out_to_fit() {
    let (model, profile, mut input) = half_on_host(1.0);
    let small = run(&model, &profile, &input, talk(64, 64));
    assert!(small.plan.fetched_experts > 0);
    input.budget = small.plan.full_budget;
    let option = usual_ubatch();
    let wanted = SearchInput {
        input: &input,
        model: shape(&model),
        profile: &profile,
        workload: talk(64, 64),
        ubatches: std::slice::from_ref(&option),
        forced: None,
    };
    let adapted = adapt(&wanted, small.decisions).unwrap();
    assert_eq!(adapted.plan.ring.groups, []);
}

#[test]
fn experts_are_fetched_where_link_and_cpu_do_not_take_from_each_other() {
    let apart = fetched(1.0);
    assert!(
        (1..4).contains(&apart.plan.fetched_experts),
        "{:?}",
        apart.decisions
    );
    assert!(apart.plan.shared_with_device(1).contains(&true));
    assert!(apart.prediction.decode.bytes_streamed > 0);
    // several tokens side by side as well, up to where both would read nearly all experts
    let batches = &apart.plan.fetched_by_batches;
    let rows = batches.last().map_or(0, |batch| batch.rows);
    assert!((2..=16).contains(&rows), "{:?}", apart.decisions);
    assert!(apart.plan.shared_with_device(rows).contains(&true));
    assert!(batches.windows(2).all(|pair| pair[0].rows < pair[1].rows));
    let shared = fetched(0.5);
    assert_eq!(shared.plan.fetched_experts, 0, "{:?}", shared.decisions);
    assert_eq!(shared.plan.fetched_by_batches, []);
    assert!(apart.prediction.tps > shared.prediction.tps * 1.05);
}

#[test]
fn tensors_are_spread_singly_where_a_small_ring_holds_copies_back() {
    // computing a layer takes about as long as copying it, and the ring holds no more than one
    let model = repeat(&models::dense(), 16);
    let profile = stated(2e9, 2e9, 2e12, 2e12);
    let workload = talk(512, 1);
    let large: u64 = model.tensors.iter().map(|tensor| tensor.bytes).sum();
    let input = input(&model, 512, large * 3 / 5);
    let costs = Costs::new(shape(&model), &profile);
    let option = usual_ubatch();
    let wanted = SearchInput {
        input: &input,
        model: shape(&model),
        profile: &profile,
        workload,
        ubatches: std::slice::from_ref(&option),
        forced: None,
    };
    let layer: u64 = model
        .tensors
        .iter()
        .filter(|tensor| tensor.layer == Some(3))
        .map(|tensor| tensor.bytes)
        .sum();
    let decisions = Decisions {
        ring_target: Some(layer),
        ..Decisions::default()
    };
    let mut search = Descent::new(&wanted, &option, &costs, decisions).unwrap();
    let before = search.best();
    search.run(&[moves::EVEN]);
    let after = search.best();
    assert!(after.ttft < 0.95 * before.ttft, "{before:?} {after:?}");
    // layers are alike: each has about as much on the device as every other
    let resident = |layer: u32| {
        let residents = search.plan.residents.iter();
        residents
            .map(|id| &search.plan.units[id.index()])
            .filter(|unit| unit.layer == Some(layer) && unit.class == UnitClass::FeedForward)
            .count()
    };
    let counts: Vec<usize> = (0..16).map(resident).collect();
    let (least, most) = (counts.iter().min(), counts.iter().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
}
