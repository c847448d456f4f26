//! A smaller model drafts, the larger one checks.

use super::setups::case;
use crate::matrix::feature::{as_it_is, Failure, Feature, Need, Outcome, Stage};
use crate::matrix::models;
use pipeshard_llama::Batch;

/// All features of this family.
pub const FEATURES: &[Feature] = &[Feature::new(
    "speculative",
    "speculative decoding with a draft model (-md)",
    as_it_is,
    &[case(drafted)],
)
.needs(&[Need::Draft])
.not_on_gpu()];

fn drafted(stage: &mut Stage) -> Outcome {
    let target_model = stage.load()?;
    let draft_model = stage.load_from(&models::draft(&stage.model_path))?;
    let mut target = stage.context(&target_model)?;
    let mut draft = stage.context(&draft_model)?;
    let tokens = stage.tokens(&target_model, 90, 48);
    let mut next = stage.prompt("target's prompt", &mut target, 0, 0, &tokens)?;
    stage.prompt("draft's prompt", &mut draft, 0, 0, &tokens)?;
    let mut past = 48;
    for round in 0..6 {
        // every other draft begins with what the target would say, so that some of it is accepted
        let mut drafts = Vec::new();
        let mut token = next;
        for i in 0..4 {
            let batch = Batch::of(0, past + i, &[token]);
            let said = stage.decode(format!("draft {round}.{i}"), &mut draft, batch)?;
            token = said[0];
            drafts.push(token);
        }
        let mut checked = vec![next];
        checked.extend(&drafts);
        let batch = Batch::of(0, past, &checked).all_wanted();
        let says = stage.decode(format!("check {round}"), &mut target, batch)?;
        let mut accepted = drafts
            .iter()
            .zip(&says)
            .take_while(|(draft, says)| draft == says)
            .count() as i32;
        // random models hardly ever agree: now and then the draft is taken for right
        if round % 2 == 1 {
            accepted = accepted.max(2);
        }
        past += accepted + 1;
        next = says[accepted as usize];
        if !target.remove(0, past, -1) || !draft.remove(0, past, -1) {
            return Err(Failure::Unsupported(
                "a recurrent state cannot be rolled back".to_string(),
            ));
        }
        // the draft has not seen the last token that it drafted itself
        if accepted == 4 {
            let mut batch = Batch::of(0, past - 1, &drafts[3..]);
            draft.decode(&mut batch)?;
        }
    }
    Ok(())
}
