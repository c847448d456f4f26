//! Three properties of every search, over models, machines, contexts and budgets: the score never gets worse with a larger budget, no
//! fixed size of the ubatch beats the one that is chosen, and a pass of one token is not slower than a pass of two.

use super::*;
use crate::cost::{Costs, PassShape};
use crate::plan::{estimate_scratch, usual_prompt, Plan};
use crate::profile::Machine;
use crate::test_support::plan_input;
use pipeshard_model::inventory::{kv_bytes, DType};
use pipeshard_model::test_support::{Decoder, LLAMA_8B, QWEN_235B_A22B, QWEN_30B_A3B};
use std::time::{Duration, Instant};

/// How much worse the score may be than with a smaller budget.
const BUDGET: f64 = 1.005;
/// How much worse it may be than with a fixed size of the ubatch.
const FIXED: f64 = 1.01;
/// How much longer a pass of one token may take than a pass of two.
const ONE_ROW: f64 = 1.01;

/// A small model with a large vocabulary, sliding windows, and the embedding as its head.
fn gemma(layers: u32) -> Inventory {
    let decoder = Decoder {
        type_name: "f16",
        layers,
        width: 640,
        queries: 1024,
        keys: 256,
        feed_forward: 2048,
        experts: (0, 0),
        vocabulary: 262_144,
    };
    let mut model = decoder.inventory();
    model.tensors.retain(|tensor| tensor.role != Role::Output);
    model.tied_output = true;
    for layer in &mut model.kv.layers {
        layer.window = (layer.layer % 6 != 5).then_some(512);
    }
    model
}

/// A model in a context on a machine.
struct Case<'a> {
    name: String,
    model: &'a Inventory,
    profile: Profile,
    context: u64,
}

impl Case<'_> {
    fn kv(&self, ubatch: u32) -> Vec<KvLayer> {
        let f16 = DType::from_name("f16").unwrap();
        let layers = self.model.kv.layers.iter().map(|layer| {
            let kv_tokens = layer.kv_tokens(self.context, ubatch.into(), 1);
            KvLayer {
                layer: layer.layer,
                bytes: kv_bytes(layer, kv_tokens, f16, f16),
            }
        });
        layers.collect()
    }

    fn found(&self, budget: u64, ubatches: &[u32]) -> Option<Found> {
        let context = u32::try_from(self.context).unwrap();
        let option = |&ubatch: &u32| UbatchOption {
            ubatch,
            scratch: estimate_scratch(self.model, ubatch, context, 0),
            pools: 0,
            kv: Some(self.kv(ubatch)),
            output_on_host: false,
        };
        let options: Vec<UbatchOption> = ubatches.iter().map(option).collect();
        let wanted = SearchInput {
            input: &plan_input(self.model, budget, self.context, ubatches[0]),
            model: shape(self.model),
            profile: &self.profile,
            workload: talk(usual_prompt(self.context), 64),
            ubatches: &options,
            forced: None,
        };
        search(&wanted).ok()
    }

    /// Seconds of a pass of so many tokens behind the usual prompt.
    fn pass(&self, plan: &Plan, rows: u32) -> f64 {
        let costs = Costs::new(shape(self.model), &self.profile);
        let kv_tokens = usual_prompt(self.context).into();
        let shape = PassShape {
            rows,
            sequences: 1,
            kv_tokens,
            outputs: 1,
        };
        costs.pass(plan, shape).seconds
    }

    /// From the smallest budget that works to a fifth more than what everything needs, in so many equal ratios.
    fn budgets(&self, steps: u32) -> Vec<u64> {
        let everything = plan(&plan_input(self.model, 1 << 44, self.context, 512)).unwrap();
        let least = everything.minimum_budget as f64;
        let ratio = everything.full_budget as f64 * 1.2 / least;
        let at = |step| least * ratio.powf(f64::from(step) / f64::from(steps));
        let whole = |budget: f64| (budget as u64).next_multiple_of(MIB);
        (0..=steps).map(|step| whole(at(step))).collect()
    }
}

/// What a grid has shown.
#[derive(Default)]
struct Report {
    points: u32,
    /// Ratios of scores, the worst ones first, and where.
    budgets: Vec<(f64, String)>,
    fixed: Vec<(f64, String)>,
    rows: Vec<(f64, String)>,
    slowest: Duration,
    all: Duration,
}

impl Report {
    fn add(&mut self, case: &Case, steps: u32, ubatches: &[u32], every: usize) {
        let mut best: Option<(f64, u64)> = None;
        for (step, budget) in case.budgets(steps).into_iter().enumerate() {
            let began = Instant::now();
            let Some(found) = case.found(budget, ubatches) else {
                continue;
            };
            let took = began.elapsed();
            self.slowest = self.slowest.max(took);
            self.all += took;
            self.points += 1;
            let says = |found: &Found| {
                let predicted = &found.prediction;
                let device = found.plan.kv.iter().filter(|layer| layer.device).count();
                format!(
                    "ubatch {}, {:.3} s, {:.2} tokens/s, KV of {device} layers, ring of {} MiB",
                    found.ubatch,
                    predicted.ttft,
                    predicted.tps,
                    found.plan.ring.bytes >> 20
                )
            };
            let place = format!("{} {} MiB: {}", case.name, budget >> 20, says(&found));
            let [one, two] = [1, 2].map(|rows| case.pass(&found.plan, rows));
            self.rows.push((one / two, place.clone()));
            if let Some((score, smaller)) = best {
                let place = format!("{} MiB beats {place}", smaller >> 20);
                self.budgets.push((found.score / score, place));
            }
            if best.is_none_or(|(score, _)| found.score < score) {
                best = Some((found.score, budget));
            }
            for &ubatch in ubatches.iter().filter(|_| step % every == 0) {
                if let Some(fixed) = case.found(budget, &[ubatch]) {
                    let place = format!("{place}; {}", says(&fixed));
                    self.fixed.push((found.score / fixed.score, place));
                }
            }
        }
    }

    fn check(mut self) {
        for (what, list, most) in [
            ("larger budgets", &mut self.budgets, BUDGET),
            ("fixed ubatches", &mut self.fixed, FIXED),
            ("single tokens", &mut self.rows, ONE_ROW),
        ] {
            list.sort_by(|a, b| b.0.total_cmp(&a.0));
            let worse = list.iter().filter(|(ratio, _)| *ratio > most).count();
            println!(
                "{what}: {} compared, {worse} worse than {most}:",
                list.len()
            );
            for (ratio, place) in list.iter().take(worse.max(3)) {
                println!("  {ratio:.4} {place}");
            }
        }
        println!(
            "{} searches, {:?} on average, {:?} at most",
            self.points,
            self.all / self.points.max(1),
            self.slowest
        );
        assert!(self.points > 0);
        for (list, most) in [
            (&self.budgets, BUDGET),
            (&self.fixed, FIXED),
            (&self.rows, ONE_ROW),
        ] {
            let worst = list.first().map_or(1.0, |(ratio, _)| *ratio);
            assert!(worst <= most, "{worst} {:?}", list.first());
        }
    }
}

fn cases<'a>(
    models: &'a [(&str, Inventory)],
    machines: &'a [&str],
    contexts: &'a [u64],
) -> impl Iterator<Item = Case<'a>> {
    models.iter().flat_map(move |(name, model)| {
        machines.iter().flat_map(move |machine| {
            contexts.iter().map(move |&context| Case {
                name: format!("{name}, {machine}, {} K,", context >> 10),
                model,
                profile: Machine::named(machine).unwrap().profile(8),
                context,
            })
        })
    })
}

/// A model of the same shape with fewer layers.
fn short(decoder: Decoder, layers: u32) -> Inventory {
    Decoder { layers, ..decoder }.inventory()
}

#[test]
fn a_larger_budget_and_a_free_ubatch_are_never_worse() {
    let models = [
        ("8b", short(LLAMA_8B, 5)),
        ("30b-a3b", short(QWEN_30B_A3B, 5)),
        ("270m", gemma(6)),
    ];
    let mut report = Report::default();
    for case in cases(&models, &["laptop-12g", "desktop-16g"], &[4096, 65536]) {
        report.add(&case, 8, &[512, 2048], 2);
    }
    report.check();
}

/// The same with whole models. `PIPESHARD_GRID` names some of them; minutes, with `--release`.
#[test]
#[ignore = "takes minutes"]
fn the_same_for_whole_models() {
    let mut models = vec![
        ("8b", LLAMA_8B.inventory()),
        ("30b-a3b", QWEN_30B_A3B.inventory()),
        ("235b-a22b", QWEN_235B_A22B.inventory()),
        ("270m", gemma(18)),
    ];
    if let Ok(wanted) = std::env::var("PIPESHARD_GRID") {
        models.retain(|(name, _)| wanted.split(',').any(|one| one == *name));
    }
    let mut report = Report::default();
    for case in cases(
        &models,
        &["laptop-12g", "desktop-16g"],
        &[4096, 16384, 65536],
    ) {
        report.add(&case, 14, &[512, 1024, 2048], 1);
    }
    report.check();
}
