//! Choosing tokens, stopping, measuring.

use super::setups::case;
use crate::matrix::feature::{as_it_is, Failure, Feature, Outcome, Stage};
use pipeshard_llama::{Batch, LlamaError, Sampler, Stop};

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new(
        "samplers",
        "samplers: penalties, top-k, top-p, temperature",
        as_it_is,
        &[case(samplers)],
    ),
    Feature::new(
        "grammar",
        "a grammar (--grammar)",
        as_it_is,
        &[case(grammar)],
    ),
    Feature::new(
        "sample-in-graph",
        "sampling in the graph (--backend-sampling)",
        |s| s.context.outputs = 1,
        &[case(in_graph)],
    )
    .not_on_gpu(),
    Feature::new(
        "abort",
        "an aborted generation, then another",
        as_it_is,
        &[case(abort)],
    ),
    Feature::new(
        "perf",
        "performance counters, other threads, synchronising",
        as_it_is,
        &[case(measured)],
    ),
];

fn sampled(
    stage: &mut Stage,
    make: impl Fn(&pipeshard_llama::Model) -> Result<Sampler, LlamaError>,
) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let mut sampler = make(&model)?;
    let tokens = stage.tokens(&model, 110, 40);
    stage.prompt("prompt", &mut context, 0, 0, &tokens)?;
    let mut chosen = Vec::new();
    for i in 0..10 {
        let token = sampler.sample(&context, -1);
        chosen.push(token);
        let batch = Batch::of(0, 40 + i, &[token]);
        stage.decode(format!("token {i}"), &mut context, batch)?;
    }
    stage.note_tokens("chosen", chosen);
    Ok(())
}

fn samplers(stage: &mut Stage) -> Outcome {
    sampled(stage, |model| {
        let sampler = Sampler::new().penalties(model, 32, 1.2).top_k(40);
        Ok(sampler.top_p(0.9).temperature(0.8).random(5))
    })
}

fn grammar(stage: &mut Stage) -> Outcome {
    sampled(stage, |model| {
        let rules = "root ::= word (\" \" word)*\nword ::= [a-z]+";
        Ok(Sampler::new().grammar(model, rules)?.greedy())
    })
}

fn in_graph(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    // the context keeps it to the end of the process
    let sampler: &'static Sampler = Box::leak(Box::new(Sampler::new().top_k(20).greedy()));
    context.sample_in_graph(0, sampler)?;
    let tokens = stage.tokens(&model, 111, 40);
    context.decode(&mut Batch::of(0, 0, &tokens))?;
    context.synchronize();
    let mut chosen = Vec::new();
    let mut token = context.sampled_in_graph(-1);
    for i in 0..5 {
        chosen.push(token);
        context.decode(&mut Batch::of(0, 40 + i, &[token]))?;
        context.synchronize();
        token = context.sampled_in_graph(-1);
    }
    stage.note_tokens("chosen", chosen);
    Ok(())
}

/// Which pass is aborted, and where, depends on what the CPU computes; what comes after does not.
fn abort(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let stop: &'static Stop = Box::leak(Box::new(Stop::never()));
    context.stop_on(stop);
    let tokens = stage.tokens(&model, 112, 90);
    for checks in [0, 3, 11] {
        for length in [90, 5] {
            stop.after(checks);
            match context.decode(&mut Batch::of(0, 0, &tokens[..length])) {
                Ok(()) | Err(LlamaError::Decode { code: 2, .. }) => {}
                Err(error) => return Err(error.into()),
            }
            context.synchronize();
            stop.after(i64::MAX);
            context.remove(0, -1, -1);
            let what = format!("{length} after a stop at check {checks}");
            let next = stage.prompt(&what, &mut context, 0, 0, &tokens[..length])?;
            stage.generate(&what, &mut context, 0, length as i32, next, 1)?;
            if !context.remove(0, -1, -1) {
                return Err(Failure::Failed("a sequence was not removed".to_string()));
            }
        }
    }
    Ok(())
}

fn measured(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let threads = stage.setup.context.threads;
    let tokens = stage.tokens(&model, 113, 40);
    context.reset_performance();
    let next = stage.prompt("prompt", &mut context, 0, 0, &tokens)?;
    context.synchronize();
    context.synchronize();
    context.set_threads(threads);
    context.reset_performance();
    stage.generate("generated", &mut context, 0, 40, next, 3)?;
    let reused = context.graphs_reused();
    match reused >= 0 {
        true => Ok(()),
        false => Err(Failure::Failed(format!("{reused} graphs reused"))),
    }
}
