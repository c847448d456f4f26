//! `pipeshard tune`: measures the machine again, applies what runs have shown, and replaces the plan that runs of a command follow.

use std::io::{self, Write};

use clap::Args;

use crate::no_gpu;
use crate::plan::{
    budget, machine, question, PlanArgs, PlanCommandError, PlannedMachine, Question,
};
use pipeshard::plan_cache::{CannotKeep, Place, PlanCache, Stored, PLAN_CACHE};
use pipeshard::profile::{
    build_name, default_threads, key_of, obtain, Cache, CacheError, ProfileError, Request,
};
use pipeshard_gguf::{inventory_of, InventoryError};
use pipeshard_model::inventory::Inventory;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::{operations, Effort, Profile};
use pipeshard_plan::request::{fingerprint, KeptPlan, Observation};

/// Arguments of `pipeshard tune`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pipeshard tune model.gguf --vram 6G -c 16384
  pipeshard tune model.gguf --vram 6G -c 16K -np 4 -ub 1024

Runs of the same command have the same plan, however fast they turn out to be. Where
a run says that it was slower than predicted, this measures the machine again, goes
by what runs of the model took, and replaces the plan. Give the flags of the run: its
budget, context, sequences, types of the KV cache, and -t. A few seconds are spent on
measuring, best while nothing else runs.")]
pub struct TuneArgs {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Why nothing was tuned.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// A flag of `pipeshard plan` that means nothing here.
    #[error("{0} is a flag of pipeshard plan and does nothing here; leave it out")]
    NotHere(&'static str),
    /// The model cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The question makes no sense.
    #[error(transparent)]
    Asked(#[from] PlanCommandError),
    /// No plan was found.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The machine cannot be measured.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Profiles cannot be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Plans cannot be kept.
    #[error(transparent)]
    Keep(#[from] CannotKeep),
    /// Nobody says where plans are kept.
    #[error("{0}")]
    Place(String),
    /// There is no GPU.
    #[error("{0}")]
    NoDevice(String),
    /// The result cannot be printed.
    #[error("cannot print what was found: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
///
/// # Errors
/// [`TuneError`]. Then runs follow the plan that they followed before.
pub fn run(args: &TuneArgs) -> Result<(), TuneError> {
    let args = &args.plan;
    refuse_others(args)?;
    let place = Place::from_env().map_err(|why| TuneError::Place(why.to_string()))?;
    let plans = place.open().map_err(TuneError::Place)?;
    let plans = plans.ok_or_else(|| {
        TuneError::Place(format!(
            "{PLAN_CACHE} is off, so there is no plan to replace; unset it"
        ))
    })?;
    let inventory = inventory_of(&args.model)?;
    let (before, now) = match args.sim {
        Some(_) => (machine(args)?, machine(args)?),
        None => measured(&inventory, args)?,
    };
    let text = tune(&inventory, args, &plans, before, now)?;
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn refuse_others(args: &PlanArgs) -> Result<(), TuneError> {
    let given = [
        ("--what-if", args.what_if.is_some()),
        ("--profile", args.profile.is_some()),
        ("--save", args.save.is_some()),
        ("--json", args.json),
        ("--details", args.details),
        ("--explain", args.explain),
        ("--map", args.map),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(TuneError::NotHere(flag)),
        None => Ok(()),
    }
}

/// This machine as it was known, and as it is measured now.
fn measured(
    inventory: &Inventory,
    args: &PlanArgs,
) -> Result<(PlannedMachine, PlannedMachine), TuneError> {
    let none = || TuneError::NoDevice(no_gpu::nothing_to_measure(Some(&args.model), args.vram));
    let device = no_gpu::first().ok_or_else(none)?;
    let cache = Cache::of_user()?;
    let threads = args.threads.unwrap_or_else(default_threads);
    let before = match cache.load(&key_of(device, threads)) {
        Stored::Valid(profile) => of_here(*profile),
        Stored::Nothing | Stored::Damaged(_) => PlannedMachine::assumed(),
    };
    let (free, _) = device.memory();
    let device_memory = budget(args)?.min(free);
    let (type_k, type_v) = (args.cache_type_k.name, args.cache_type_v.name);
    eprintln!("Measuring this machine, for some seconds");
    let obtained = obtain(&Request {
        device,
        operations: &operations(inventory, type_k, type_v, device_memory, Effort::Quick),
        threads,
        device_memory,
        simulated: None,
        file: None,
        effort: Effort::Quick,
        refresh: true,
        cache: Some(&cache),
        progress: &|_, _| {},
    })?;
    for note in &obtained.notes {
        eprintln!("{note}");
    }
    Ok((before, of_here(obtained.profile)))
}

fn of_here(profile: Profile) -> PlannedMachine {
    PlannedMachine {
        runs_here: true,
        ..PlannedMachine::of(profile, None)
    }
}

fn tune(
    inventory: &Inventory,
    args: &PlanArgs,
    plans: &PlanCache,
    before: PlannedMachine,
    mut now: PlannedMachine,
) -> Result<String, TuneError> {
    let budget = budget(args)?;
    let asked = question(inventory, args, &now)?;
    let old = old_plan(&asked, plans, budget, &before.profile);
    let model = fingerprint(inventory, &asked.request.memory.units);
    let (observed, files) = plans.observed(&model, &now.profile.key, &build_name());
    let shown = observed
        .iter()
        .filter_map(|run| run.shows(inventory, &now.profile))
        .collect::<Vec<_>>();
    let stated = now.profile.clone();
    shown.into_iter().for_each(|shown| now.profile.learn(shown));
    if args.sim.is_none() {
        // as runs will read it
        let cache = Cache::of_user()?;
        cache.store(&now.profile)?;
        if let Stored::Valid(kept) = cache.load(&now.profile.key) {
            now.profile = *kept;
        }
    }
    let found = asked.within(budget).solve(&now.profile)?;
    // a simulated GPU has the profile that its specification states, whatever runs have shown
    let key = match args.sim {
        Some(_) => asked.key(budget, &stated),
        None => asked.key(budget, &now.profile),
    };
    let new = KeptPlan::of(key, &found, true);
    plans.replace(&new)?;
    plans.forget_others(&new.key)?;
    plans.forget_observed(&files)?;
    Ok(told(args, &asked, budget, old.as_ref(), &new, &observed))
}

/// The plan that runs of the command have followed.
fn old_plan(
    asked: &Question,
    plans: &PlanCache,
    budget: u64,
    profile: &Profile,
) -> Option<KeptPlan> {
    let key = asked.key(budget, profile);
    match plans.load(&key) {
        Stored::Valid(kept) => Some(*kept),
        Stored::Nothing | Stored::Damaged(_) => {
            let found = asked.within(budget).solve(profile).ok()?;
            Some(KeptPlan::of(key, &found, false))
        }
    }
}

fn told(
    args: &PlanArgs,
    asked: &Question,
    budget: u64,
    old: Option<&KeptPlan>,
    new: &KeptPlan,
    observed: &[Observation],
) -> String {
    let first = |plan: &KeptPlan| crate::plan::time(plan.ttft);
    let rate = |plan: &KeptPlan| crate::plan::rate(plan.tps);
    let ubatch = |plan: &KeptPlan| plan.decided.ubatch.to_string();
    let row = |name: &str, of: &dyn Fn(&KeptPlan) -> String| {
        let before = old.map_or_else(|| "unknown".to_owned(), of);
        format!("  {name:<26}{before:<16}{}\n", of(new))
    };
    let mut text = format!(
        "{} in {}, context {}\n\n{:<28}{:<16}now\n",
        args.model.display(),
        ByteSize(budget),
        asked.request.context.tokens(),
        "Prediction",
        "before",
    );
    text += &row("first token", &first);
    text += &row("generation", &rate);
    text += &row("ubatch", &ubatch);
    text += "\n";
    text += &match observed.last() {
        None => "No run of this model was observed since it was tuned last.\n".to_owned(),
        Some(last) => format!(
            "{} of this model observed; in the last one a pass of {} token{} took {}, {} were predicted.\n",
            match observed.len() {
                1 => "One run".to_owned(),
                more => format!("{more} runs"),
            },
            last.shape.rows,
            if last.shape.rows == 1 { "" } else { "s" },
            crate::plan::time(last.seconds),
            crate::plan::time(last.predicted_seconds),
        ),
    };
    let same = old.is_some_and(|old| old.decided == new.decided);
    text += match same {
        true => "The plan is the same as before.\n",
        false => "The plan is another one: runs of this command follow it from here on.\n",
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use pipeshard_model::test_support as models;
    use pipeshard_plan::cost::PassShape;
    use pipeshard_plan::request::OBSERVATION_SCHEMA;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        tune: TuneArgs,
    }

    fn args(line: &str) -> PlanArgs {
        let words = ["tune"].into_iter().chain(line.split_whitespace());
        Tool::try_parse_from(words).unwrap().tune.plan
    }

    const LINE: &str = "m.gguf --sim vram=48M,pcie=2G,cpu=10G -c 1024 -t 2";

    fn observation(asked: &Question, profile: &Profile, slower: f64) -> Observation {
        let request = asked.within(48 << 20);
        let found = request.solve(profile).unwrap();
        let decode = found.prediction.decode;
        Observation {
            schema: OBSERVATION_SCHEMA,
            build: build_name(),
            model: fingerprint(request.inventory, &request.memory.units),
            machine: profile.key.clone(),
            experts_used: request.inventory.expert_used_count,
            cache_type_k: "f16".to_owned(),
            cache_type_v: "f16".to_owned(),
            plan: found.plan,
            shape: PassShape {
                rows: 1,
                sequences: 1,
                kv_tokens: 512,
                outputs: 1,
            },
            passes: 1000,
            seconds: decode.seconds * slower,
            cpu_seconds: decode.cpu * slower,
            predicted_seconds: decode.seconds,
        }
    }

    #[test]
    fn what_runs_have_shown_is_applied_once_and_the_plan_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let plans = PlanCache::in_folder(folder.path());
        let model = models::dense();
        let args = args(LINE);
        let here = || machine(&args).unwrap();
        let profile = here().profile;
        let asked = question(&model, &args, &here()).unwrap();
        let first = asked.within(48 << 20).solve(&profile).unwrap();
        let key = asked.key(48 << 20, &profile);
        plans
            .keep(KeptPlan::of(key.clone(), &first, false))
            .unwrap();
        let tuned = || tune(&model, &args, &plans, here(), here()).unwrap();

        let text = tuned();
        assert!(text.contains("No run of this model was observed"), "{text}");
        assert!(text.contains("The plan is the same as before"), "{text}");

        plans.note(&observation(&asked, &profile, 3.0)).unwrap();
        let text = tuned();
        assert!(text.contains("One run of this model observed"), "{text}");
        let Stored::Valid(kept) = plans.load(&key) else {
            panic!("nothing is kept");
        };
        assert!(kept.tuned && kept.tps < first.prediction.tps, "{text}");
        // what was observed is used up
        assert!(tuned().contains("No run of this model was observed"));
    }

    #[test]
    fn flags_that_mean_nothing_here_are_refused() {
        for flag in [
            "--json",
            "--map",
            "--explain",
            "--what-if pcie=1G",
            "--save x",
        ] {
            let line = match flag {
                "--map" => "m.gguf --map".to_owned(),
                _ => format!("{LINE} {flag}"),
            };
            let why = refuse_others(&args(&line)).unwrap_err().to_string();
            let name = flag.split(' ').next().unwrap();
            assert!(why.starts_with(name), "{why}");
        }
        assert!(refuse_others(&args(LINE)).is_ok());
    }
}
