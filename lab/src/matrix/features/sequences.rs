//! Several sequences in one context: batched, copied, shortened, shifted.

use super::setups::case;
use crate::matrix::feature::{Failure, Feature, Outcome, Setup, Stage};
use pipeshard_llama::{Batch, Context, Model};

const RECURRENT: &str = "parts of a recurrent state cannot be removed";

fn four_unified(s: &mut Setup) {
    s.context.sequences = 4;
    s.context.kv_unified = true;
    s.context.ctx = 512;
}

fn four_apart(s: &mut Setup) {
    s.context.sequences = 4;
    s.context.kv_unified = false;
    s.context.ctx = 1024;
}

fn shiftable(s: &mut Setup) {
    s.context.swa_full = true;
}

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new(
        "sequences-unified",
        "several sequences, one cache (-kvu)",
        four_unified,
        &[case(side_by_side)],
    ),
    Feature::new(
        "sequences-apart",
        "several sequences, a cache for each",
        four_apart,
        &[case(side_by_side)],
    ),
    Feature::new(
        "continuous",
        "continuous batching, one cache",
        four_unified,
        &[case(continuous)],
    ),
    Feature::new(
        "continuous-apart",
        "continuous batching, a cache for each sequence",
        four_apart,
        &[case(continuous)],
    ),
    Feature::new(
        "seq-copy",
        "copies of sequences",
        four_unified,
        &[case(copies)],
    ),
    Feature::new(
        "seq-copy-apart",
        "copies of sequences, a cache for each",
        four_apart,
        &[case(copies)],
    ),
    Feature::new(
        "seq-remove",
        "removal of parts of sequences",
        four_unified,
        &[case(removals)],
    ),
    Feature::new(
        "shift",
        "context shift (--context-shift)",
        shiftable,
        &[case(context_shift)],
    ),
    Feature::new(
        "self-extend",
        "grouped positions (self-extend)",
        shiftable,
        &[case(self_extend)],
    ),
];

/// One more token for each of some sequences in one batch: sequence, position and token of each, updated.
fn step(
    stage: &mut Stage,
    what: &str,
    context: &mut Context<'_>,
    running: &mut [(i32, i32, i32)],
) -> Outcome {
    let mut batch = Batch::new();
    for &(sequence, position, token) in running.iter() {
        batch.add(token, position, &[sequence], true);
    }
    let next = stage.decode(what, context, batch)?;
    for (run, token) in running.iter_mut().zip(next) {
        run.1 += 1;
        run.2 = token;
    }
    Ok(())
}

fn side_by_side(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let mut batch = Batch::new();
    let lengths = [20, 3, 41, 30];
    for (sequence, &length) in lengths.iter().enumerate() {
        let tokens = stage.tokens(&model, 10 + sequence as u64, length);
        for (i, &token) in tokens.iter().enumerate() {
            let last = i + 1 == tokens.len();
            batch.add(token, i as i32, &[sequence as i32], last);
        }
    }
    let next = stage.decode("four prompts", &mut context, batch)?;
    let starts = next.iter().enumerate();
    let mut running: Vec<_> = starts
        .map(|(i, &token)| (i as i32, lengths[i] as i32, token))
        .collect();
    for i in 0..4 {
        step(stage, &format!("step {i}"), &mut context, &mut running)?;
    }
    Ok(())
}

fn continuous(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let mut running: Vec<(i32, i32, i32)> = Vec::new();
    // before each step: who joins with how many tokens, and who leaves
    let joining: [Option<(i32, u32)>; 8] = [
        Some((0, 12)),
        None,
        Some((1, 50)),
        Some((2, 2)),
        None,
        Some((0, 70)),
        Some((3, 33)),
        None,
    ];
    let leaving = [None, None, None, None, Some(0), None, Some(1), None];
    for (i, (joins, leaves)) in joining.into_iter().zip(leaving).enumerate() {
        if let Some(sequence) = leaves {
            context.remove(sequence, -1, -1);
            running.retain(|r| r.0 != sequence);
        }
        let mut batch = Batch::new();
        for &(sequence, position, token) in &running {
            batch.add(token, position, &[sequence], true);
        }
        if let Some((sequence, length)) = joins {
            let tokens = stage.tokens(&model, 20 + i as u64, length);
            for (at, &token) in tokens.iter().enumerate() {
                batch.add(token, at as i32, &[sequence], at + 1 == tokens.len());
            }
            running.push((sequence, length as i32 - 1, 0));
        }
        let next = stage.decode(format!("step {i}"), &mut context, batch)?;
        for (run, token) in running.iter_mut().zip(next) {
            run.1 += 1;
            run.2 = token;
        }
    }
    Ok(())
}

fn copies(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let tokens = stage.tokens(&model, 30, 50);
    let next = stage.prompt("prompt", &mut context, 0, 0, &tokens)?;
    context.copy(0, 1, -1, -1);
    context.copy(0, 2, -1, -1);
    let mut running = vec![(0, 50, next), (1, 50, next ^ 1), (2, 50, 7)];
    for i in 0..3 {
        step(stage, &format!("copies, {i}"), &mut context, &mut running)?;
    }
    context.remove(0, -1, -1);
    context.copy(1, 0, -1, -1);
    let more = stage.tokens(&model, 31, 40);
    stage.prompt("prompt behind a copy", &mut context, 0, 53, &more)?;
    context.keep(2);
    let mut running = vec![running[2]];
    step(stage, "the one that was kept", &mut context, &mut running)
}

fn removals(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let tokens = stage.tokens(&model, 40, 60);
    stage.prompt("prompt", &mut context, 0, 0, &tokens)?;
    if !context.remove(0, 40, -1) {
        return Err(Failure::Unsupported(RECURRENT.to_string()));
    }
    let more = stage.tokens(&model, 41, 36);
    let next = stage.prompt("behind the rest", &mut context, 0, 40, &more)?;
    context.copy(0, 1, 0, 30);
    context.remove(0, 10, 20);
    stage.generate("with a gap", &mut context, 0, 76, next, 2)?;
    let next = stage.prompt("a part that was copied", &mut context, 1, 30, &more)?;
    stage.generate("behind that", &mut context, 1, 66, next, 2)?;
    Ok(())
}

/// What may be shifted; else, why not.
fn shiftable_context<'m>(stage: &Stage, model: &'m Model) -> Outcome<Context<'m>> {
    let context = stage.context(model)?;
    match context.can_shift() {
        true => Ok(context),
        false => Err(Failure::Unsupported(
            "positions of this cache cannot be changed".to_string(),
        )),
    }
}

/// As llama-server does when the context is full: the first tokens stay, half of the others goes.
fn context_shift(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = shiftable_context(stage, &model)?;
    const KEPT: i32 = 8;
    let size = stage.setup.context.ctx as i32;
    let mut past = 0;
    for round in 0..5 {
        let tokens = stage.tokens(&model, 50 + round, 80);
        if past + 83 > size {
            let discarded = (past - KEPT) / 2;
            if !context.remove(0, KEPT, KEPT + discarded) {
                return Err(Failure::Unsupported(RECURRENT.to_string()));
            }
            context.shift(0, KEPT + discarded, past, -discarded);
            past -= discarded;
        }
        let what = format!("round {round}");
        let next = stage.prompt(&what, &mut context, 0, past, &tokens)?;
        past += 80;
        stage.generate(&what, &mut context, 0, past, next, 3)?;
        past += 3;
    }
    Ok(())
}

fn self_extend(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = shiftable_context(stage, &model)?;
    let tokens = stage.tokens(&model, 60, 64);
    stage.prompt("prompt", &mut context, 0, 0, &tokens)?;
    // positions in groups of two, and what follows directly
    context.divide(0, 0, 64, 2);
    let more = stage.tokens(&model, 61, 34);
    let next = stage.prompt("behind groups", &mut context, 0, 32, &more)?;
    stage.generate("behind groups", &mut context, 0, 66, next, 3)?;
    Ok(())
}
