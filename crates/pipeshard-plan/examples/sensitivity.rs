//! How much plans depend on each figure of a profile: `sensitivity` prints a table, one row for each figure doubled and halved;
//! `sensitivity --plans` prints a line for each point, to compare builds whose constants differ (`scripts/sensitivity.py`).
//!
//! A point is a model on a machine with a context and a budget. The plan that is found with the changed figure is priced with the
//! true one: what it loses is what a wrong figure costs.

use std::process::ExitCode;

use pipeshard_model::inventory::{kv_bytes, DType, Inventory};
use pipeshard_model::test_support::{LLAMA_8B, QWEN_30B_A3B};
use pipeshard_plan::constants::conversation::GENERATED;
use pipeshard_plan::cost::{Costs, Workload};
use pipeshard_plan::plan::{estimate_scratch, usual_prompt, KvLayer, Plan};
use pipeshard_plan::profile::{Machine, Profile};
use pipeshard_plan::search::{search, Found, SearchInput, UbatchOption};
use pipeshard_plan::test_support::{plan_input, shape, GIB};

const MACHINES: [&str; 2] = ["laptop-12g", "desktop-16g"];
const CONTEXTS: [u64; 3] = [4096, 16384, 65536];
const BUDGETS: [u64; 3] = [3, 5, 9];
const UBATCHES: [u32; 2] = [512, 2048];

/// A figure: its name, and where it stands in a profile.
type Figure = (&'static str, fn(&mut Profile, f64));

/// All that a plan may depend on but the time of operations.
const FIGURES: [Figure; 19] = [
    ("link, page-locked memory", |p, by| {
        p.link.pinned.median *= by
    }),
    ("  while the CPU reads weights", |p, by| {
        p.link.pinned_cpu_busy.median *= by
    }),
    ("CPU reads weights", |p, by| p.cpu.bytes *= by),
    ("  while the link is busy", |p, by| {
        p.memory.cpu_copy_busy.median *= by
    }),
    ("GPU memory", |p, by| p.gpu.bytes *= by),
    ("GPU arithmetic", |p, by| p.gpu.flops *= by),
    ("hand-over to the CPU", |p, by| {
        p.overheads.to_cpu.median *= by
    }),
    ("hand-over to the GPU", |p, by| {
        p.overheads.to_gpu.median *= by
    }),
    ("tiny operation of the GPU", |p, by| {
        p.overheads.launch.median *= by
    }),
    ("tiny operation of the CPU", |p, by| {
        p.overheads.cpu_op.median *= by
    }),
    ("empty pass", |p, by| p.overheads.pass.median *= by),
    ("`mask_look`", |p, by| p.host.mask_look *= by),
    ("`mask_copy`", |p, by| p.host.mask_copy *= by),
    ("`embedding`", |p, by| {
        p.host.embedding *= by;
        p.host.shared_embedding *= by;
    }),
    ("`submit_experts`", |p, by| p.host.submit_experts *= by),
    ("`store_row`", |p, by| p.host.store_row *= by),
    ("`store_float`", |p, by| p.host.store_float *= by),
    ("`sampling`", |p, by| p.host.sampling *= by),
    ("`rest`", |p, by| p.host.rest *= by),
];

struct Point<'a> {
    name: String,
    model: &'a Inventory,
    profile: Profile,
    context: u64,
    budget: u64,
}

impl Point<'_> {
    fn workload(&self, ubatch: u32) -> Workload {
        Workload {
            sequences: 1,
            prompt: usual_prompt(self.context),
            generated: GENERATED,
            ubatch,
        }
    }

    fn found(&self, profile: &Profile) -> Option<Found> {
        let f16 = DType::from_name("f16")?;
        let kv = |ubatch: u32| {
            let layers = self.model.kv.layers.iter();
            let of = |layer: &pipeshard_model::inventory::KvLayer| KvLayer {
                layer: layer.layer,
                bytes: kv_bytes(
                    layer,
                    layer.kv_tokens(self.context, ubatch.into(), 1),
                    f16,
                    f16,
                ),
            };
            layers.map(of).collect()
        };
        let option = |&ubatch: &u32| UbatchOption {
            ubatch,
            scratch: estimate_scratch(self.model, ubatch, self.context as u32, 0),
            pools: 0,
            kv: Some(kv(ubatch)),
            output_on_host: false,
        };
        let options: Vec<UbatchOption> = UBATCHES.iter().map(option).collect();
        search(&SearchInput {
            input: &plan_input(self.model, self.budget, self.context, UBATCHES[0]),
            model: shape(self.model),
            profile,
            workload: self.workload(UBATCHES[0]),
            ubatches: &options,
            forced: None,
        })
        .ok()
    }

    /// The score of a plan by the true profile, in seconds.
    fn score(&self, plan: &Plan, ubatch: u32) -> f64 {
        let costs = Costs::new(shape(self.model), &self.profile);
        costs.predict(plan, self.workload(ubatch)).score()
    }
}

/// How many plans differ, and what the worst of them loses by the true figures.
fn changed(points: &[(Point, Found)], figure: fn(&mut Profile, f64), by: f64) -> (usize, f64) {
    let (mut different, mut worst) = (0, 1.0_f64);
    for (point, truly) in points {
        let mut profile = point.profile.clone();
        figure(&mut profile, by);
        let Some(found) = point.found(&profile) else {
            continue;
        };
        if found.plan != truly.plan {
            different += 1;
            let with = point.score(&found.plan, found.ubatch);
            worst = worst.max(with / point.score(&truly.plan, truly.ubatch));
        }
    }
    (different, worst)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let only_plans = match arguments.as_slice() {
        [] => false,
        [flag] if flag == "--plans" => true,
        _ => {
            eprintln!("usage: sensitivity [--plans]");
            return ExitCode::from(2);
        }
    };
    let models = [
        ("8b", LLAMA_8B.inventory()),
        ("30b-a3b", QWEN_30B_A3B.inventory()),
    ];
    let mut points = Vec::new();
    for (name, model) in &models {
        for machine in MACHINES {
            let Some(known) = Machine::named(machine) else {
                continue;
            };
            for context in CONTEXTS {
                for budget in BUDGETS {
                    let point = Point {
                        name: format!("{name} {machine} {context} {budget}G"),
                        model,
                        profile: known.profile(8),
                        context,
                        budget: budget * GIB,
                    };
                    if let Some(found) = point.found(&point.profile) {
                        points.push((point, found));
                    }
                }
            }
        }
    }
    if only_plans {
        for (point, found) in &points {
            let placed: Vec<_> = found
                .plan
                .tiers
                .iter()
                .map(|tier| &tier.placements)
                .collect();
            let kv: Vec<bool> = found.plan.kv.iter().map(|layer| layer.device).collect();
            let what = format!(
                "{placed:?} {kv:?} {} {}",
                found.plan.ring.bytes, found.ubatch
            );
            let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
            let predicted = found.prediction;
            println!(
                "{:<28} {hash:016x} {:.4} {:.3}",
                point.name, predicted.ttft, predicted.tps
            );
        }
        return ExitCode::SUCCESS;
    }
    println!(
        "| figure | plans changed if doubled | most lost | plans changed if halved | most lost |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (name, figure) in FIGURES {
        let (up, lost_up) = changed(&points, figure, 2.0);
        let (down, lost_down) = changed(&points, figure, 0.5);
        let percent = |lost: f64| format!("{:.1} %", (lost - 1.0) * 100.0);
        println!(
            "| {name} | {up} of {n} | {} | {down} of {n} | {} |",
            percent(lost_up),
            percent(lost_down),
            n = points.len()
        );
    }
    ExitCode::SUCCESS
}
