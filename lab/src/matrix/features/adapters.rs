//! LoRA adapters and control vectors.

use super::setups::case;
use crate::matrix::feature::{as_it_is, Feature, Need, Outcome, Stage};
use crate::matrix::models;
use pipeshard_llama::{Context, Lora};

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new(
        "lora",
        "LoRA from the start (--lora)",
        as_it_is,
        &[case(from_the_start)],
    )
    .needs(&[Need::Loras])
    .not_on_gpu(),
    Feature::new(
        "lora-swap",
        "LoRA swapped, scaled, combined and removed",
        as_it_is,
        &[case(swapped)],
    )
    .needs(&[Need::Loras])
    .not_on_gpu(),
    Feature::new(
        "control-vector",
        "control vectors (--control-vector)",
        as_it_is,
        &[case(control_vector)],
    ),
];

/// A prompt that is streamed, one that is not, and two tokens.
fn answer(stage: &mut Stage, what: &str, context: &mut Context<'_>, vocabulary: i32) -> Outcome {
    context.clear();
    let long = pipeshard_llama::random_tokens(80, 40, vocabulary);
    let short = pipeshard_llama::random_tokens(81, 5, vocabulary);
    stage.prompt(&format!("{what}, 40"), context, 0, 0, &long)?;
    let next = stage.prompt(&format!("{what}, 5"), context, 0, 40, &short)?;
    stage.generate(what, context, 0, 45, next, 2)?;
    Ok(())
}

fn from_the_start(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let lora = Lora::load(&model, &models::lora(&stage.model_path, models::RANKS[0]))?;
    let mut context = stage.context(&model)?;
    context.set_loras(&[(lora, 1.0)])?;
    answer(stage, "adapted", &mut context, model.vocabulary())
}

fn swapped(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let vocabulary = model.vocabulary();
    answer(stage, "none", &mut context, vocabulary)?;
    let first = Lora::load(&model, &models::lora(&stage.model_path, models::RANKS[0]))?;
    context.set_loras(&[(first, 1.0)])?;
    answer(stage, "first", &mut context, vocabulary)?;
    let second = Lora::load(&model, &models::lora(&stage.model_path, models::RANKS[1]))?;
    context.set_loras(&[(second, 0.7)])?;
    answer(stage, "second", &mut context, vocabulary)?;
    context.set_loras(&[(first, 0.3), (second, 1.2)])?;
    answer(stage, "both", &mut context, vocabulary)?;
    context.set_loras(&[(first, 0.0)])?;
    answer(stage, "scaled by nothing", &mut context, vocabulary)?;
    context.set_loras(&[])?;
    answer(stage, "removed", &mut context, vocabulary)
}

fn control_vector(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let vocabulary = model.vocabulary();
    let layers = model.layers();
    let width = model.embedding();
    let values: Vec<f32> = (0..width * (layers as usize - 1))
        .map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 0.2)
        .collect();
    context.set_control_vector(&values, 1, layers)?;
    answer(stage, "all layers", &mut context, vocabulary)?;
    context.set_control_vector(&values, 2, 2)?;
    answer(stage, "one layer", &mut context, vocabulary)?;
    context.set_control_vector(&[], 0, 0)?;
    answer(stage, "cleared", &mut context, vocabulary)
}
