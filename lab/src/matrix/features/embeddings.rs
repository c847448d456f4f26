//! Embeddings and ranking.

use super::setups::case;
use crate::matrix::feature::{Feature, Outcome, Setup, Stage};
use pipeshard_llama::Batch;
use pipeshard_sys as ffi;

fn pooled(s: &mut Setup, pooling: ffi::llama_pooling_type) {
    s.context.embeddings = true;
    s.context.pooling = pooling;
    s.context.sequences = 4;
    s.context.kv_unified = true;
    // an encoder wants whole sequences in one ubatch
    s.context.ubatch = s.context.batch;
}

const fn embeddings(feature: Feature) -> Feature {
    Feature {
        has_kv: false,
        ..feature
    }
}

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    embeddings(Feature::new(
        "embed-none",
        "embeddings of tokens (--pooling none)",
        |s| pooled(s, ffi::LLAMA_POOLING_TYPE_NONE),
        &[case(of_tokens)],
    )),
    embeddings(Feature::new(
        "embed-mean",
        "embeddings (--pooling mean)",
        |s| pooled(s, ffi::LLAMA_POOLING_TYPE_MEAN),
        &[case(of_sequences)],
    )),
    embeddings(Feature::new(
        "embed-cls",
        "embeddings (--pooling cls)",
        |s| pooled(s, ffi::LLAMA_POOLING_TYPE_CLS),
        &[case(of_sequences)],
    )),
    embeddings(Feature::new(
        "embed-last",
        "embeddings (--pooling last)",
        |s| pooled(s, ffi::LLAMA_POOLING_TYPE_LAST),
        &[case(of_sequences)],
    )),
    embeddings(Feature::new(
        "rerank",
        "reranking (--rerank)",
        |s| pooled(s, ffi::LLAMA_POOLING_TYPE_RANK),
        &[case(ranks)],
    )),
];

/// Sequences of these lengths in one batch.
fn texts(vocabulary: i32, lengths: &[u32]) -> Batch {
    let mut batch = Batch::new();
    for (sequence, &length) in lengths.iter().enumerate() {
        let tokens = pipeshard_llama::random_tokens(100 + u64::from(length), length, vocabulary);
        for (i, &token) in tokens.iter().enumerate() {
            batch.add(token, i as i32, &[sequence as i32], true);
        }
    }
    batch
}

const BATCHES: [&[u32]; 3] = [&[20, 41, 9], &[5], &[70, 3]];

fn of_tokens(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    for (i, lengths) in BATCHES.into_iter().enumerate() {
        context.clear();
        let mut batch = texts(model.vocabulary(), lengths);
        context.decode(&mut batch)?;
        let mut all = Vec::new();
        for index in batch.wanted() {
            all.extend_from_slice(context.token_embedding(index)?);
        }
        stage.note_floats(format!("batch {i}"), &all);
    }
    Ok(())
}

fn pooled_results(stage: &mut Stage, count: Option<usize>) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    for (i, lengths) in BATCHES.into_iter().enumerate() {
        context.clear();
        let mut batch = texts(model.vocabulary(), lengths);
        context.decode(&mut batch)?;
        for sequence in 0..lengths.len() {
            let floats = context.sequence_embedding(sequence as i32, count)?.to_vec();
            stage.note_floats(format!("batch {i}, sequence {sequence}"), &floats);
        }
    }
    Ok(())
}

fn of_sequences(stage: &mut Stage) -> Outcome {
    pooled_results(stage, None)
}

fn ranks(stage: &mut Stage) -> Outcome {
    let classes = stage.load()?.classes();
    pooled_results(stage, Some(classes))
}
