//! Saving and restoring, within a process, across budgets, and between stock llama.cpp and pipeshard.

use super::setups::case;
use crate::matrix::feature::{Feature, Outcome, Setup, Side, Stage, Step};

const fn roomy(run: fn(&mut Stage) -> Outcome) -> Step {
    Step {
        side: Side::Roomy,
        run,
    }
}

const fn stock(run: fn(&mut Stage) -> Outcome) -> Step {
    Step {
        side: Side::Stock,
        run,
    }
}

fn two_sequences(s: &mut Setup) {
    s.context.sequences = 2;
    s.context.ctx = 512;
}

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new(
        "state",
        "sessions and slots, saved and restored",
        two_sequences,
        &[case(within_a_process)],
    ),
    Feature::new(
        "state-to-more",
        "saved, restored under a larger budget",
        two_sequences,
        &[case(save), roomy(restore)],
    )
    .not_on_gpu(),
    Feature::new(
        "state-to-less",
        "saved, restored under a smaller budget",
        two_sequences,
        &[roomy(save), case(restore)],
    )
    .not_on_gpu(),
    Feature::new(
        "state-from-stock",
        "saved by stock llama.cpp, restored",
        two_sequences,
        &[stock(save), case(restore)],
    )
    .not_on_gpu(),
    Feature::new(
        "state-to-stock",
        "saved, restored by stock llama.cpp",
        two_sequences,
        &[case(save), stock(restore)],
    )
    .not_on_gpu(),
];

const FIRST: u32 = 60;
const SECOND: u32 = 33;

fn fill(stage: &mut Stage, context: &mut pipeshard_llama::Context<'_>, vocabulary: i32) -> Outcome {
    let first = pipeshard_llama::random_tokens(70, FIRST, vocabulary);
    let second = pipeshard_llama::random_tokens(71, SECOND, vocabulary);
    stage.prompt("first", context, 0, 0, &first)?;
    stage.prompt("second", context, 1, 0, &second)?;
    Ok(())
}

/// Both sequences go on.
fn go_on(stage: &mut Stage, what: &str, context: &mut pipeshard_llama::Context<'_>) -> Outcome {
    stage.generate(&format!("{what}, first"), context, 0, FIRST as i32, 3, 2)?;
    stage.generate(&format!("{what}, second"), context, 1, SECOND as i32, 4, 2)?;
    Ok(())
}

fn within_a_process(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    fill(stage, &mut context, model.vocabulary())?;
    let whole = context.state();
    let second = context.sequence_state(1);
    stage.note_bytes("the second sequence", &second);
    context.clear();
    let other = stage.tokens(&model, 72, 40);
    stage.prompt("something else", &mut context, 0, 0, &other)?;
    context.set_state(&whole)?;
    go_on(stage, "restored", &mut context)?;
    context.remove(0, -1, -1);
    context.set_sequence_state(0, &second)?;
    stage.generate(
        "the second as the first",
        &mut context,
        0,
        SECOND as i32,
        5,
        2,
    )?;
    Ok(())
}

fn save(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    fill(stage, &mut context, model.vocabulary())?;
    let tokens = stage.tokens(&model, 70, FIRST);
    context.save(&stage.folder.join("session"), &tokens)?;
    context.save_sequence(&stage.folder.join("slot"), 1, &tokens[..5])?;
    let whole = context.state();
    let second = context.sequence_state(1);
    stage.note_bytes("the second sequence", &second);
    std::fs::write(stage.folder.join("state"), whole)?;
    std::fs::write(stage.folder.join("sequence"), second)?;
    Ok(())
}

fn restore(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let tokens = context.restore(&stage.folder.join("session"), 1000)?;
    stage.note_tokens("tokens of the session", tokens);
    go_on(stage, "from the session file", &mut context)?;
    context.clear();
    context.set_state(&std::fs::read(stage.folder.join("state"))?)?;
    go_on(stage, "from the state", &mut context)?;
    context.clear();
    let tokens = context.restore_sequence(&stage.folder.join("slot"), 0, 1000)?;
    stage.note_tokens("tokens of the slot", tokens);
    stage.generate("from the slot file", &mut context, 0, SECOND as i32, 6, 2)?;
    context.set_sequence_state(1, &std::fs::read(stage.folder.join("sequence"))?)?;
    stage.generate("from the sequence", &mut context, 1, SECOND as i32, 7, 2)?;
    let more = stage.tokens(&model, 73, 40);
    stage.prompt(
        "a prompt behind it",
        &mut context,
        1,
        SECOND as i32 + 2,
        &more,
    )?;
    Ok(())
}
