//! Sums that a person can check.

use crate::cost::lane::Lane;
use crate::cost::pass::Start;
use crate::cost::{pass_cost, Costs, Limit, PassCost, PassShape};
use crate::plan::{self, Placement, Plan, StreamGroup};
use crate::profile::HostCosts;
use crate::profile::Processor;
use crate::test_support::{all_resident, place, shape, Machine};
use pipeshard_model::inventory::Inventory;
use pipeshard_model::test_support::{Decoder, SMALL};

const MIB: f64 = 1_048_576.0;
/// Bytes of the feed-forward weights of a layer of [`SMALL`].
const FFN: f64 = 12.0 * MIB;
const ATTENTION: f64 = 6.0 * MIB;
const HEAD: f64 = 8.0 * MIB;

/// Only what is asked for costs anything: a rate of 0 is none.
const FREE: Machine = Machine {
    link: 0.0,
    link_cpu_busy: 0.0,
    cpu: 0.0,
    cpu_copy_busy: 0.0,
    gpu: 0.0,
    gpu_flops: 0.0,
    cpu_flops: 0.0,
    hand_over: 0.0,
    launch: 0.0,
    pass: 0.0,
};

const ONE: PassShape = PassShape {
    rows: 1,
    sequences: 1,
    kv_tokens: 100,
    outputs: 1,
};

/// What the host does before a pass of [`ONE`].
const BEFORE_ONE: f64 =
    101.0 * HostCosts::ASSUMED.mask_look + 1024.0 * HostCosts::ASSUMED.embedding;

fn cost(machine: Machine, inventory: &Inventory, plan: &Plan, pass: PassShape) -> PassCost {
    pass_cost(plan, &shape(inventory), &machine.profile(), pass)
}

#[track_caller]
fn close(found: f64, expected: f64) {
    let off = (found - expected).abs();
    assert!(
        off <= 1e-9 * expected.abs() + 1e-15,
        "{found}, not {expected}"
    );
}

#[test]
fn a_pass_in_device_memory_costs_its_launches_its_bytes_and_the_host() {
    let model = SMALL.inventory();
    let plan = all_resident(&model);
    let launches = Machine {
        launch: 1.0,
        ..FREE
    };
    let found = cost(launches, &model, &plan, ONE);
    // per layer seven products, attention, ten small operations; the last norm with its sum, the head
    let expected = 2.0 * (7.0 + 1.0 + 10.0) + 2.0 + 1.0;
    close(found.gpu, expected);
    close(found.seconds, expected + BEFORE_ONE);
    close(found.bound, expected);
    assert_eq!((found.hand_overs, found.bytes_streamed), (0, 0));
    assert_eq!((found.cpu, found.link, found.limit), (0.0, 0.0, Limit::Gpu));

    let pass = Machine { pass: 3.0, ..FREE };
    close(cost(pass, &model, &plan, ONE).seconds, 3.0 + BEFORE_ONE);

    let bytes = Machine { gpu: 1e9, ..FREE };
    let weights = 2.0 * (FFN + ATTENTION) + HEAD;
    let kv_bytes = 2.0 * 101.0 * 2.0 * 512.0 * 2.0;
    // what products leave is read once, four bytes an element; ten small operations read and write the stream
    let products = 2.0 * (2.0 * 1024.0 + 2.0 * 512.0 + 2.0 * 2048.0 + 1024.0) + 4096.0;
    let small = 2.0 * (2.0 * 10.0) * 1024.0 + 2.0 * 2.0 * 1024.0;
    let expected = (weights + kv_bytes + 4.0 * (products + small)) / 1e9;
    close(cost(bytes, &model, &plan, ONE).gpu, expected);

    let arithmetic = Machine {
        gpu_flops: 1e12,
        ..FREE
    };
    let pass = PassShape {
        rows: 64,
        kv_tokens: 0,
        ..ONE
    };
    // the last layer's feed-forward network and the head see one row, and attention 32 tokens on average
    let (ffn, attention, head) = (FFN / 2.0, ATTENTION / 2.0, HEAD / 2.0);
    let products = 64.0 * (2.0 * attention + ffn) + ffn + head;
    let attention = 2.0 * 64.0 * 32.0 * 4.0 * 1024.0 / 2.0;
    let found = cost(arithmetic, &model, &plan, pass);
    close(found.gpu, (2.0 * products + 2.0 * attention) / 1e12);
}

#[test]
fn what_the_cpu_computes_is_handed_over_and_back() {
    let model = SMALL.inventory();
    let mut plan = all_resident(&model);
    place(&mut plan, Placement::Host, |name| {
        name.starts_with("blk.0.ffn_")
    });
    let machine = Machine {
        cpu: 1e9,
        hand_over: 0.5,
        ..FREE
    };
    let found = cost(machine, &model, &plan, ONE);
    // the activation and the down projection's result are written to memory, too
    let cpu = (FFN + 4.0 * (2.0 * 2048.0 + 1024.0)) / 1e9;
    close(found.cpu, cpu);
    assert_eq!(found.hand_overs, 2);
    close(found.hand_over_seconds, 1.0);
    close(found.seconds, cpu + 1.0 + BEFORE_ONE);
    close(found.bound, cpu);
    assert_eq!(found.limit, Limit::Cpu);

    // one projection alone: the activation goes back between, and again
    place(&mut plan, Placement::Resident, |name| {
        name == "blk.0.ffn_up.weight"
    });
    assert_eq!(cost(machine, &model, &plan, ONE).hand_overs, 4);
    // a head on the CPU is not handed back
    place(&mut plan, Placement::Resident, |name| name.contains("ffn"));
    place(&mut plan, Placement::Host, |name| name == "output.weight");
    assert_eq!(cost(machine, &model, &plan, ONE).hand_overs, 1);
    // norms stay on the device: between attention and feed-forward the stream goes there and back
    place(&mut plan, Placement::Host, |name| {
        name.starts_with("blk.0.") || name == "output.weight"
    });
    let found = cost(machine, &model, &plan, ONE);
    // q, k, v; the output projection; the network; the head
    assert_eq!(found.hand_overs, 2 + 2 + 2 + 1);
}

#[test]
fn hand_overs_move_activations() {
    let model = SMALL.inventory();
    let mut plan = all_resident(&model);
    place(&mut plan, Placement::Host, |name| {
        name.starts_with("blk.0.ffn_")
    });
    let machine = Machine { link: 1e6, ..FREE };
    let rows = 8;
    let pass = PassShape {
        rows,
        kv_tokens: 0,
        ..ONE
    };
    let found = cost(machine, &model, &plan, pass);
    close(found.hand_over_seconds, 2.0 * 8.0 * 1024.0 * 4.0 / 1e6);
}

#[test]
fn attention_over_kv_on_the_host_is_the_cpus_or_waits_for_its_copy() {
    let model = SMALL.inventory();
    let mut plan = all_resident(&model);
    plan.kv[1].device = false;
    plan.host_kv_min_rows = 2;
    let machine = Machine {
        cpu: 1e9,
        hand_over: 0.5,
        ..FREE
    };
    let pass = PassShape {
        kv_tokens: 10_000,
        ..ONE
    };
    let found = cost(machine, &model, &plan, pass);
    assert_eq!(found.hand_overs, 2);
    // keys and values in f16, and four small operations over the result
    let kv_bytes = 10_001.0 * 2.0 * 512.0 * 2.0;
    close(found.cpu, (kv_bytes + 4.0 * 2.0 * 1024.0 * 4.0) / 1e9);

    plan.host_kv_min_rows = 1;
    let link = Machine {
        link: 1e9,
        ..machine
    };
    let copied = cost(link, &model, &plan, pass);
    // one thread of the CPU puts the token's key and value there first
    assert_eq!(copied.hand_overs, 2);
    close(copied.cpu, 2.0 * 0.4e-6 + 1024.0 * 0.15e-9);
    close(copied.gpu, kv_bytes / 1e9);
    let costs = |machine: Machine, kv_tokens, sequences| {
        let profile = machine.profile();
        Costs::new(shape(&model), &profile).device_attends_from(kv_tokens, sequences)
    };
    // each way at the same speed, but the CPU reads the KV cache once for all tokens
    let slow = Machine { cpu: 1e8, ..link };
    assert_eq!(costs(slow, 10_000, 1), 1);
    let slow = Machine { link: 1e8, ..link };
    assert_eq!(costs(slow, 10_000, 1), u32::MAX);
}

#[test]
fn windows_bound_the_kv_cache() {
    let mut model = SMALL.inventory();
    let costs = |model: &Inventory, kv_tokens| {
        let profile = Machine { cpu: 1e9, ..FREE }.profile();
        Costs::new(shape(model), &profile).attention_seconds(0, 1, kv_tokens, Processor::Cpu)
    };
    close(costs(&model, 999), 1000.0 * 2048.0 / 1e9);
    model.kv.layers[0].window = Some(64);
    close(costs(&model, 999), 65.0 * 2048.0 / 1e9);
    close(costs(&model, 9), 10.0 * 2048.0 / 1e9);
    // latent attention stores no values
    model.kv.layers[0] = pipeshard_model::inventory::KvLayer {
        layer: 0,
        k_elements: 576,
        v_elements: 0,
        window: None,
    };
    close(costs(&model, 999), 1000.0 * 576.0 * 2.0 / 1e9);
}

#[test]
fn sequences_look_at_their_own_tokens() {
    let model = SMALL.inventory();
    let plan = all_resident(&model);
    let machine = Machine {
        gpu_flops: 1e9,
        ..FREE
    };
    let at = |rows, sequences, kv_tokens| {
        let pass = PassShape {
            rows,
            sequences,
            kv_tokens,
            outputs: 1,
        };
        cost(machine, &model, &plan, pass).gpu
    };
    let of_attention =
        |rows, sequences, kv_tokens| at(rows, sequences, kv_tokens) - at(rows, sequences, 0);
    close(
        of_attention(8, 8, 1000),
        8.0 * of_attention(1, 1, 1000) - 0.0,
    );
}

/// A plan with so much room beyond the smallest budget.
fn tight(model: &Inventory, room: u64) -> Plan {
    let mut input = crate::test_support::plan_input(model, 0, 512, 64);
    let Err(plan::PlanError::BudgetTooSmall { minimum, .. }) = plan::plan(&input) else {
        panic!("no budget is enough");
    };
    input.budget = minimum + room;
    plan::plan(&input).unwrap()
}

/// Whether something else takes turns in the group's place.
fn shares(plan: &Plan, group: &StreamGroup) -> bool {
    let overlaps = |other: &&StreamGroup| {
        group.offset < other.offset + other.bytes && other.offset < group.offset + group.bytes
    };
    plan.ring.groups.iter().filter(overlaps).count() > 1
}

/// Rows that stream, and nothing else: no result is wanted.
const MANY: PassShape = PassShape {
    rows: 64,
    sequences: 1,
    kv_tokens: 0,
    outputs: 0,
};

#[test]
fn a_streamed_pass_takes_as_long_as_its_copies() {
    let model = Decoder { layers: 8, ..SMALL }.inventory();
    let plan = tight(&model, 40 << 20);
    let groups = &plan.ring.groups;
    let streamed: u64 = groups.iter().map(|g| g.bytes).sum();
    assert!(
        groups.iter().all(|g| shares(&plan, g)) && groups.len() > 6,
        "{groups:?}"
    );
    let machine = Machine { link: 1e9, ..FREE };
    let found = cost(machine, &model, &plan, MANY);
    close(found.seconds, streamed as f64 / 1e9);
    close(found.bound, found.seconds);
    assert_eq!(found.bytes_streamed, streamed);
    assert_eq!((found.limit, found.hand_overs), (Limit::Link, 0));

    let profile = machine.profile();
    let costs = Costs::new(shape(&model), &profile);
    let first = |start| costs.first_pass(&plan, MANY, start).seconds;
    // what lies in the ring already need not be copied
    let ahead: u64 = plan.ring.first_lap().iter().map(|g| g.bytes).sum();
    let before = costs.before(MANY);
    close(first(Start::Empty), (streamed as f64 / 1e9).max(before));
    close(
        first(Start::Filled),
        before + (streamed - ahead) as f64 / 1e9,
    );
}

#[test]
fn kv_and_weights_share_the_link() {
    let model = Decoder { layers: 8, ..SMALL }.inventory();
    let mut plan = tight(&model, 40 << 20);
    for kv in &mut plan.kv {
        kv.device = false;
    }
    plan.host_kv_min_rows = 1;
    let streamed: u64 = plan.ring.groups.iter().map(|g| g.bytes).sum();
    let machine = Machine { link: 1e9, ..FREE };
    let pass = PassShape {
        kv_tokens: 500,
        ..MANY
    };
    let found = cost(machine, &model, &plan, pass);
    // those of the batch come along, whichever of its tokens looks at them
    let given = (pass.kv_tokens + u64::from(pass.rows)) as f64;
    let kv_bytes = 8.0 * given * 2.0 * 512.0 * 2.0;
    close(found.seconds, (streamed as f64 + kv_bytes) / 1e9);
    close(found.link, found.seconds);
    close(found.bound, found.seconds);
    assert_eq!(found.bytes_streamed, streamed);
}

#[test]
fn a_copy_goes_on_when_the_link_is_free_again() {
    let machine = Machine { link: 1.0, ..FREE };
    let mut lane = Lane::new(&machine.profile(), 1);
    lane.submit(0, 10.0, 0.0);
    lane.advance(2.0, false);
    lane.hold(2.0, 3.0);
    lane.advance(6.0, false);
    close(lane.finish(0), 13.0);
    close(lane.busy, 13.0);
}

#[test]
fn copies_for_the_next_pass_begin_when_the_host_is_through_with_this_one() {
    let model = Decoder { layers: 8, ..SMALL }.inventory();
    let plan = tight(&model, 40 << 20);
    let streamed: u64 = plan.ring.groups.iter().map(|g| g.bytes).sum();
    let pass = PassShape { outputs: 1, ..MANY };
    // the head is the CPU's, and the host's last word in a pass
    let machine = Machine {
        link: 1e9,
        cpu: 1e8,
        ..FREE
    };
    let head = (HEAD + 4.0 * 4096.0) / 1e8;
    let found = cost(machine, &model, &plan, pass);
    close(found.cpu, head);
    close(
        found.seconds,
        streamed as f64 / 1e9 + head + found.hand_over_seconds,
    );
    // the device computes beside the copies, in the second pass as in the first
    let launch = 0.5 * streamed as f64 / 1e9 / (8.0 * 18.0);
    let machine = Machine { launch, ..machine };
    let busy = cost(machine, &model, &plan, pass);
    let more = busy.seconds - found.seconds;
    assert!(more < 0.2 * busy.gpu, "{busy:?} {found:?}");
}

#[test]
fn the_link_waits_for_places_and_the_device_for_copies() {
    // two groups of 12 MiB that share no place with their neighbours, in a ring of two, four in all
    let model = Decoder { layers: 4, ..SMALL }.inventory();
    let mut input = crate::test_support::plan_input(&model, 1 << 30, 512, 64);
    input.ring_target = Some(24 << 20);
    input.group_target = 12 << 20;
    let fixed = input.scratch + input.reserve;
    let attention = 4 * (6 << 20);
    input.budget = fixed + attention + (24 << 20) + (8 << 20);
    let plan = plan::plan(&input).unwrap();
    let ffn = plan
        .ring
        .groups
        .iter()
        .filter(|g| g.bytes == 12 << 20)
        .count();
    assert_eq!((ffn, plan.ring.groups.len()), (4, 4), "{:?}", plan.ring);
    assert_eq!(plan.ring.bytes, 24 << 20);
    // a second for each launch: 14 where a group is not waited for; the link brings one in 5
    let (launch, copy) = (1.0, 5.0);
    let machine = Machine {
        launch,
        link: FFN / copy,
        ..FREE
    };
    let profile = machine.profile();
    let costs = Costs::new(shape(&model), &profile);
    let pass = PassShape {
        outputs: 64,
        ..MANY
    };
    let found = costs.first_pass(&plan, pass, Start::Empty);
    // every layer has eight launches of products and attention and ten more, longer than a copy: only the first is waited for
    let layer = 18.0;
    let norm_and_attention = 3.0 + 4.0 + 1.0 + 4.0 + 3.0;
    // the head is the CPU's
    let handed = 64.0 * 1024.0 * 4.0 / (FFN / copy);
    let before = costs.before(pass);
    let waited = (copy - before - norm_and_attention).max(0.0);
    assert_eq!(waited, 0.0);
    close(found.seconds, before + 4.0 * layer + 3.0 + handed);

    // a slow link: each group's copy begins when the one two before it has been read
    let copy = 100.0;
    let machine = Machine {
        launch,
        link: FFN / copy,
        ..FREE
    };
    let profile = machine.profile();
    let costs = Costs::new(shape(&model), &profile);
    let found = costs.first_pass(&plan, pass, Start::Empty);
    let rest = layer - norm_and_attention;
    let handed = 64.0 * 1024.0 * 4.0 / (FFN / copy);
    close(found.seconds, 4.0 * copy + rest + 3.0 + handed);
}

#[test]
fn the_cpu_is_slower_while_the_link_is_busy() {
    let model = Decoder { layers: 8, ..SMALL }.inventory();
    let mut plan = tight(&model, 40 << 20);
    let in_ring = |name: &str, plan: &Plan| {
        let groups = plan.ring.groups.iter().flat_map(|g| &g.units);
        groups
            .clone()
            .any(|(id, _)| plan.units[id.index()].name == name)
    };
    let host = plan
        .units
        .iter()
        .find(|u| u.name.contains("attn_q.w") && !in_ring(&u.name, &plan));
    let host = host.unwrap().name.clone();
    place(&mut plan, Placement::Host, |name| name == host);
    let machine = |busy| Machine {
        link: 1e8,
        cpu: 1e9,
        cpu_copy_busy: busy,
        ..FREE
    };
    let pass = PassShape {
        outputs: 64,
        ..MANY
    };
    let alone = cost(machine(1e9), &model, &plan, pass);
    let shared = cost(machine(0.5e9), &model, &plan, pass);
    let head = (HEAD + 64.0 * 4096.0 * 4.0) / 1e9;
    let busy = alone.cpu - head;
    assert!(
        shared.cpu > 1.3 * busy + head && shared.cpu < 2.0 * alone.cpu,
        "{alone:?} {shared:?}"
    );
}

#[test]
fn chosen_experts_are_copied_in_part_and_behind_the_router() {
    let moe = Decoder {
        experts: (32, 2),
        feed_forward: 512,
        layers: 3,
        ..SMALL
    };
    let model = moe.inventory();
    let mut input = crate::test_support::plan_input(&model, 1 << 30, 512, 64);
    input.stream_min_rows = 4;
    input.budget = input.scratch + input.reserve + (200 << 20);
    let plan = plan::plan(&input).unwrap();
    let moved: Vec<_> = plan
        .ring
        .groups
        .iter()
        .filter(|g| shares(&plan, g))
        .collect();
    let experts: Vec<_> = moved.iter().filter(|g| g.bytes == 32 << 20).collect();
    assert!(experts.len() > 4, "{} groups", experts.len());
    let machine = Machine {
        link: 1e9,
        hand_over: 0.25,
        ..FREE
    };
    let at = |rows| {
        cost(
            machine,
            &model,
            &plan,
            PassShape {
                rows,
                outputs: rows,
                ..MANY
            },
        )
    };
    let (few, many) = (at(4), at(64));
    let all: u64 = moved.iter().map(|g| g.bytes).sum();
    assert_eq!(many.bytes_streamed, all);
    let share = 1.0 - (1.0 - 2.0 / 32.0f64).powi(4);
    let expected = experts.len() as f64 * share * 32.0 * MIB;
    let dense = all as f64 - experts.len() as f64 * 32.0 * MIB;
    assert!(
        (few.bytes_streamed as f64 - expected - dense).abs() < 2.0,
        "{few:?}"
    );
    // a wait per layer whose experts are fetched, beside the head's hand-over if there is one
    let layers: std::collections::HashSet<_> = experts
        .iter()
        .map(|g| plan.units[g.units[0].0.index()].layer)
        .collect();
    let waits = layers.len() as f64 * 0.25;
    let moved = few.hand_over_seconds - f64::from(few.hand_overs) * 0.25 - waits;
    assert!((0.0..1e-2).contains(&moved), "{few:?}");
}

#[test]
fn the_last_layer_computes_what_is_wanted() {
    let model = SMALL.inventory();
    let plan = all_resident(&model);
    let machine = Machine {
        gpu_flops: 1e9,
        ..FREE
    };
    let at = |outputs| {
        let pass = PassShape {
            rows: 64,
            outputs,
            ..ONE
        };
        cost(machine, &model, &plan, pass).gpu
    };
    close(at(64) - at(0), 64.0 * (FFN + HEAD) / 1e9);
}
