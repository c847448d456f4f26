//! Several contexts and models, side by side and one after the other.

use super::setups::case;
use crate::matrix::feature::{as_it_is, Failure, Feature, Need, Outcome, Stage};
use crate::matrix::models;
use pipeshard_llama::{Batch, Context, LlamaError};

/// How often a model is loaded again.
const RELOADS: u32 = 100;
/// Growth of the process's memory over those that is put down to the allocator, in bytes.
const GROWTH_ALLOWED: u64 = 24 << 20;

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new(
        "contexts",
        "several contexts on one model",
        as_it_is,
        &[case(several_contexts)],
    ),
    Feature::new(
        "context-threads",
        "two contexts, driven from two threads",
        as_it_is,
        &[case(two_threads)],
    ),
    Feature::new(
        "two-models",
        "two models in one process",
        as_it_is,
        &[case(two_models)],
    )
    .needs(&[Need::Draft])
    .not_on_gpu(),
    Feature {
        repeats: RELOADS,
        ..Feature::new(
            "reload",
            "a model freed and loaded again, 100 times",
            as_it_is,
            &[case(reload)],
        )
        .not_on_gpu()
    },
];

fn several_contexts(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut first = stage.context(&model)?;
    let mut second = stage.context(&model)?;
    let long = stage.tokens(&model, 120, 70);
    let short = stage.tokens(&model, 121, 6);
    let mut in_first = stage.prompt("first", &mut first, 0, 0, &long)?;
    let mut in_second = stage.prompt("second", &mut second, 0, 0, &short)?;
    for i in 0..3 {
        let what = format!("step {i}");
        in_first = stage.generate(&what, &mut first, 0, 70 + i, in_first, 1)?;
        in_second = stage.generate(&what, &mut second, 0, 6 + i, in_second, 1)?;
    }
    // both are submitted before either is asked for its results
    let (mut a, mut b) = (Batch::of(0, 73, &long[..40]), Batch::of(0, 9, &long[..50]));
    first.decode(&mut a)?;
    second.decode(&mut b)?;
    stage.note_logits("overlapping, first", &first, &a)?;
    stage.note_logits("overlapping, second", &second, &b)?;
    drop(first);
    stage.generate("the other one is gone", &mut second, 0, 59, in_second, 2)?;
    let mut third = stage.context(&model)?;
    stage.prompt("a new one", &mut third, 0, 0, &long)?;
    stage.generate("beside a new one", &mut second, 0, 61, 5, 1)?;
    Ok(())
}

/// A prompt and some tokens without noting anything: all logits, one after the other.
fn alone(context: &mut Context<'_>, tokens: &[i32]) -> Result<Vec<f32>, LlamaError> {
    let mut all = Vec::new();
    for round in 0..3 {
        context.clear();
        context.decode(&mut Batch::of(0, 0, &tokens[round..]))?;
        all.extend_from_slice(context.logits(-1)?);
        for i in 0..4 {
            let token = pipeshard_llama::largest(context.logits(-1)?);
            let at = (tokens.len() - round) as i32 + i;
            context.decode(&mut Batch::of(0, at, &[token]))?;
            all.extend_from_slice(context.logits(-1)?);
        }
    }
    Ok(all)
}

fn two_threads(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut first = stage.context(&model)?;
    let mut second = stage.context(&model)?;
    let (long, short) = (stage.tokens(&model, 122, 60), stage.tokens(&model, 123, 35));
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| alone(&mut second, &short));
        (alone(&mut first, &long), other.join())
    });
    let second = second.map_err(|_| Failure::Failed("a thread panicked".to_string()))?;
    stage.note_floats("first", &first?);
    stage.note_floats("second", &second?);
    Ok(())
}

fn two_models(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let tokens = stage.tokens(&model, 124, 50);
    let next = stage.prompt("alone", &mut context, 0, 0, &tokens)?;
    {
        let other_model = stage.load_from(&models::draft(&stage.model_path))?;
        let mut other = stage.context(&other_model)?;
        let said = stage.prompt("the other", &mut other, 0, 0, &tokens)?;
        stage.generate("beside the other", &mut context, 0, 50, next, 2)?;
        stage.generate("the other", &mut other, 0, 50, said, 2)?;
        stage.prompt("prompt beside the other", &mut context, 0, 52, &tokens)?;
    }
    stage.generate("alone again", &mut context, 0, 102, next, 2)?;
    context.clear();
    stage.prompt("prompt alone again", &mut context, 0, 0, &tokens)?;
    Ok(())
}

/// Bytes of the process that are in memory and its own.
fn own_memory() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let kib = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Ok((kib("Private_Dirty:") + kib("Private_Clean:")) << 10)
}

fn reload(stage: &mut Stage) -> Outcome {
    let mut settled = 0;
    let rounds = stage.repeats.max(2);
    for round in 0..rounds {
        let model = stage.load()?;
        let mut context = stage.context(&model)?;
        let tokens = stage.tokens(&model, 125, 34);
        if round == 0 || round + 1 == rounds {
            let what = if round == 0 { "first" } else { "last" };
            let next = stage.prompt(what, &mut context, 0, 0, &tokens)?;
            stage.generate(what, &mut context, 0, 34, next, 1)?;
        } else {
            context.decode(&mut Batch::of(0, 0, &tokens))?;
        }
        drop(context);
        drop(model);
        if round == rounds / 3 {
            settled = own_memory()?;
        }
        let held = stage.library.device().map(|d| d["current_bytes"].as_u64());
        if let Some(Some(bytes)) = held.filter(|b| *b > Some(4096)) {
            return Err(Failure::Failed(format!(
                "{bytes} bytes of the device are still taken after the model was freed for the {round}. time"
            )));
        }
    }
    let now = own_memory()?;
    match now > settled + GROWTH_ALLOWED {
        true => Err(Failure::Failed(format!(
            "the process grew from {} to {} KiB while the model was freed and loaded {rounds} times",
            settled >> 10,
            now >> 10
        ))),
        false => Ok(()),
    }
}
