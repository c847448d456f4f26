//! What people try by hand for long contexts and for batches: whole layers, part of each layer, or the KV cache on the CPU.
//!
//! Filling a long context is slow where attention runs on the CPU, and costs the same for every placement. `llama-bench` keeps
//! the state of a context from one setting to the next, so that a setting with everything in VRAM fills it once and all
//! others of the same process start from there.

use std::process::Command;

use super::command::Side;
use super::estimate;
use super::job::{Form, Job};
use super::measure::{low_point, results_in_order};
use super::runner::Run;
use super::search::{Need, Placement};
use super::setup::{log_command, log_said};
use super::types::{Measurement, Outcome, Test};
use super::way::{Way, UBATCH};
use super::MIB;
use crate::process;
use pipeshard_cli::bench::memory::Sampler;
use pipeshard_model::inventory::Inventory;
use pipeshard_model::size::ByteSize;

/// Rows from which weights of the host are copied to the device, where page-locked ones are faster.
const OFFLOADED_ROWS: u32 = 32;
/// Part of a budget that a placement may be off by from one run to the next.
const MARGIN: u64 = 512;
const ATTEMPTS: usize = 3;

/// A placement for a budget.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The budget in bytes.
    pub budget: u64,
    /// The placement.
    pub placement: Placement,
}

/// One process of `llama-bench` that times a generation with several placements.
#[derive(Debug)]
struct Together {
    /// The settings in the order in which they are run: those that are wanted, or none for the others.
    settings: Vec<Option<usize>>,
    args: Vec<String>,
}

/// With `filled`, a setting with everything in VRAM comes first.
fn together(way: Way, inventory: &Inventory, list: &[Placed], filled: bool) -> Together {
    let (axis, everything) = way.axis(inventory);
    let value = |placed: &Placed| {
        let mut flags = placed.placement.flags.iter();
        flags.find(|f| *f == axis);
        flags.next().cloned().unwrap_or_default()
    };
    let first = filled.then(|| (everything.to_owned(), None));
    let wanted = list.iter().enumerate().map(|(i, p)| (value(p), Some(i)));
    let all: Vec<(String, Option<usize>)> = first.into_iter().chain(wanted).collect();
    let values: Vec<&str> = all.iter().map(|(value, _)| value.as_str()).collect();
    let mut args = vec![axis.to_owned(), values.join(",")];
    if axis != "-ngl" {
        args.extend(["-ngl".to_owned(), "999".to_owned()]);
    }
    let mut settings = Vec::new();
    // the KV cache is the inner loop of llama-bench
    for (_, index) in &all {
        match (way, filled) {
            (Way::HostKv, true) => settings.extend([None, *index]),
            _ => settings.push(*index),
        }
    }
    if way == Way::HostKv {
        let values = if filled { "0,1" } else { "1" };
        args.extend(["-nkvo".to_owned(), values.to_owned()]);
    }
    Together { settings, args }
}

impl Run<'_> {
    /// Finds placements of a kind that fit into each of these budgets by running them; what was measured corrects what was
    /// assumed, in an earlier run too.
    pub(super) fn place(
        &mut self,
        model: usize,
        budgets: &[u64],
        way: Way,
        test: Test,
        form: Form,
        what: &str,
    ) -> Result<(), String> {
        let need = Need {
            context: test.context(),
            ubatch: UBATCH,
        };
        for attempt in 0..ATTEMPTS {
            let mut list = Vec::new();
            for &budget in budgets {
                match self.next_placement(model, budget, way, test, need) {
                    Next::Try(placement) => list.push(Placed { budget, placement }),
                    Next::Done => {}
                    Next::Never(least) => {
                        let why = format!(
                            "{what}: nothing of this kind fits into {}; it takes {} at least",
                            ByteSize(budget),
                            ByteSize(least.next_multiple_of(MIB))
                        );
                        if !self.notes.contains(&why) {
                            self.notes.push(why);
                        }
                    }
                }
            }
            if list.is_empty() {
                return Ok(());
            }
            let estimate = self.place_seconds(model, test, &list);
            if attempt > 0 && !self.clock.has_time_for(estimate) {
                return Ok(());
            }
            match form {
                Form::Batched => {
                    for placed in &list {
                        self.run_job(&batched(model, way, test, placed))?;
                    }
                }
                // a simulated device counts for a whole process
                _ if self.settings.simulated.is_some() => {
                    for placed in list.chunks(1) {
                        self.run_together(model, way, test, placed, estimate)?;
                    }
                }
                _ => self.run_together(model, way, test, &list, estimate)?,
            }
        }
        Ok(())
    }

    /// What to try next for a budget, by all that was measured.
    fn next_placement(&self, model: usize, budget: u64, way: Way, test: Test, need: Need) -> Next {
        let Some(inventory) = self.inventories.get(model) else {
            return Next::Done;
        };
        let name = self.name(model);
        let of_way = |m: &&Measurement| {
            m.model == name
                && m.approach == way.approach()
                && m.test.comparable() == test.comparable()
        };
        let measured: Vec<&Measurement> = self.store.measurements.iter().filter(of_way).collect();
        let here = || measured.iter().filter(|m| m.budget == Some(budget));
        // what compute buffers and pools took: the placement itself is known
        let took = |m: &&&Measurement| {
            let placed = way.of_setting(inventory, &m.setting, need)?;
            Some(m.peak?.saturating_sub(placed.weights + placed.kv) + budget / MARGIN)
        };
        let beside = here().filter_map(|m| took(&m)).max();
        let beside = beside.or_else(|| measured.iter().filter_map(|m| took(&m)).max());
        let least = way.placement(inventory, inventory.layer_count, need);
        let least_held = least.weights + least.kv;
        let fitted = way.fit(inventory, need, budget, beside).or_else(|| {
            // what was assumed may be too much: the least that this kind can take tells
            (here().next().is_none() && least_held < budget).then_some(least.clone())
        });
        let Some(fitted) = fitted else {
            let tried = here().find(|m| m.setting == least.setting);
            let tried = tried.and_then(|m| m.peak);
            return Next::Never(tried.unwrap_or(least_held + beside.unwrap_or(0)));
        };
        let best = here().filter(|m| m.is_valid()).filter_map(|m| m.peak).max();
        let held_before = here().filter(|m| m.is_valid()).filter_map(|m| {
            let placed = way.of_setting(inventory, &m.setting, need)?;
            Some(placed.weights)
        });
        if held_before.max() >= Some(fitted.weights) {
            return Next::Done;
        }
        let room = best.map(|peak| budget.saturating_sub(peak));
        let tried = here().any(|m| m.setting == fitted.setting);
        // another few per cent of the weights in VRAM are not worth a run
        if tried || room.is_some_and(|room| room < budget / 10) {
            return Next::Done;
        }
        Next::Try(fitted)
    }

    fn place_seconds(&self, model: usize, test: Test, list: &[Placed]) -> f64 {
        let budgets: Vec<u64> = list.iter().map(|placed| placed.budget).collect();
        estimate::place_seconds(self.fact(model), &budgets, test, self.tools.repetitions)
    }

    fn run_together(
        &mut self,
        model: usize,
        way: Way,
        test: Test,
        list: &[Placed],
        estimate: f64,
    ) -> Result<(), String> {
        let (Some(inventory), Some(spec)) = (
            self.inventories.get(model),
            self.settings.grid.models.get(model),
        ) else {
            return Ok(());
        };
        let need = Need {
            context: test.context(),
            ubatch: UBATCH,
        };
        let kv = Way::Part.placement(inventory, 0, need).kv;
        let all_fit = inventory.file_bytes.saturating_add(kv) + 2048 * MIB < self.machine.free;
        let filled = all_fit && self.settings.simulated.is_none();
        let process = together(way, inventory, list, filled);
        let side = Side::in_folder(&self.settings.folder);
        side.clear();
        let path = spec.path.clone();
        let mut command: Command = self.tools.deep_command(&path, test, UBATCH, &process.args);
        self.tools.count_into(&mut command, &side);
        log_command(&mut self.log, &command);
        let limit = self.clock.limit_for(estimate);
        let idle = self.source.settled();
        let sampler = Sampler::start(&self.source);
        let finished = process::run(&mut command, limit);
        if let Ok(finished) = &finished {
            self.clock
                .note(estimate, finished.start.elapsed().as_secs_f64());
            log_said(&mut self.log, finished);
        }
        let counted_peak = side.counted_peak();
        let results = finished.as_ref().map(|f| results_in_order(f, test));
        let mut told = vec![false; list.len()];
        for (position, wanted) in process.settings.iter().enumerate() {
            let Some((index, placed)) = wanted.and_then(|i| Some((i, list.get(i)?))) else {
                continue;
            };
            if std::mem::replace(&mut told[index], true) {
                continue;
            }
            let result = results.as_ref().ok().and_then(|r| r.get(position));
            let peak = counted_peak.or_else(|| {
                let result = result?;
                let from = low_point(&sampler, result);
                Some(self.beyond(sampler.peak(from, result.to)?, idle))
            });
            let outcome = match (&finished, result, peak) {
                (Err(why), _, _) => failed(why.clone()),
                (Ok(finished), None, _) => failed(finished.complaint()),
                (_, _, None) => failed("its device memory could not be measured".to_owned()),
                (_, _, Some(peak)) if peak > placed.budget => Outcome::OverBudget {
                    bytes: peak - placed.budget,
                },
                _ => Outcome::Valid,
            };
            let measurement = Measurement {
                model: self.name(model),
                budget: Some(placed.budget),
                approach: way.approach(),
                setting: placed.placement.setting.clone(),
                ubatch: Some(UBATCH),
                test,
                round: 1,
                seconds: result.map(|r| r.seconds.clone()).unwrap_or_default(),
                peak,
                counted: None,
                outcome,
            };
            self.keep(measurement)?;
        }
        Ok(())
    }
}

fn failed(reason: String) -> Outcome {
    Outcome::Failed { reason }
}

enum Next {
    Try(Placement),
    Done,
    /// It takes so many bytes at least.
    Never(u64),
}

/// The job of `llama-batched-bench` with a placement.
fn batched(model: usize, way: Way, test: Test, placed: &Placed) -> Job {
    let mut job = Job::new(model, Some(placed.budget), way.approach(), vec![test]).ubatch(UBATCH);
    job.form = Form::Batched;
    job.setting.clone_from(&placed.placement.setting);
    job.flags.clone_from(&placed.placement.flags);
    if way == Way::HostKv {
        job.flags.push("-nkvo".to_owned());
    }
    if test.sequences >= OFFLOADED_ROWS {
        job.flags.extend(["-lm".to_owned(), "none".to_owned()]);
    }
    job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::tests::inventory;

    const NEED: Need = Need {
        context: 512,
        ubatch: UBATCH,
    };

    #[test]
    fn a_cache_in_host_memory_makes_room_for_weights() {
        let dense = inventory("tiny-llama");
        let all = Way::Part.placement(&dense, 0, NEED);
        let budget = all.weights + all.kv / 2 + 1000;
        let part = Way::Part.fit(&dense, NEED, budget, Some(1000)).unwrap();
        let host = Way::HostKv.fit(&dense, NEED, budget, Some(1000)).unwrap();
        assert!(host.weights > part.weights);
        assert_eq!((host.kv, host.setting.as_str()), (0, "ffn 0, nkvo"));
        let again = Way::HostKv.of_setting(&dense, &host.setting, NEED);
        assert_eq!(again, Some(host.clone()));
        assert_eq!(Way::Part.of_setting(&dense, &host.setting, NEED), None);
    }

    #[test]
    fn one_process_has_a_setting_that_fills_and_those_that_are_wanted() {
        let args = |name: &str, way: Way, filled| {
            let model = inventory(name);
            let list = [2, 1].map(|layers| Placed {
                budget: 1,
                placement: way.placement(&model, layers, NEED),
            });
            let process = together(way, &model, &list, filled);
            (process.args.join(" "), process.settings)
        };
        let layers = inventory("tiny-llama").layer_count;
        let (text, settings) = args("tiny-llama", Way::Layers, true);
        assert_eq!(text, format!("-ngl 999,{},{}", layers - 1, layers));
        assert_eq!(settings, [None, Some(0), Some(1)]);
        let (text, settings) = args("tiny-qwen3moe", Way::Part, false);
        assert_eq!(text, "-ncmoe 2,1 -ngl 999");
        assert_eq!(settings, [Some(0), Some(1)]);
        let (text, settings) = args("tiny-llama", Way::HostKv, true);
        assert!(text.starts_with("-ot ,blk"), "{text}");
        assert!(text.ends_with("-ngl 999 -nkvo 0,1"), "{text}");
        // the cache in VRAM first, with every placement
        assert_eq!(settings, [None, None, None, Some(0), None, Some(1)]);
    }
}
