//! What is said where an encoder's memory has no room: what is needed and what there is, and what would work.

use crate::hook::encoders::Encoder;
use crate::hook::refusal::Refusal;
use crate::vision::header::EncoderShape;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::PlanError;

/// An encoder's memory that has no room.
pub struct Refused {
    /// Whose it is.
    pub what: String,
    /// What it is for.
    pub of: String,
    /// Bytes.
    pub needed: u64,
    /// Those of them that a smaller image needs as well.
    pub fixed: u64,
    /// Bytes that will be needed in addition.
    pub coming: u64,
    /// The encoder and tokens of the image, if less of them would need less.
    pub image: Option<(EncoderShape, u64)>,
}

impl Refused {
    /// Compute buffers of an encoder's latest graph, and `more`; of how many bytes is still to be said.
    pub fn compute_buffers(encoder: Option<&Encoder>, more: &str) -> Self {
        let image = encoder.and_then(Encoder::limited);
        let image = image.map(|(shape, tokens)| (shape.clone(), tokens));
        let of_image = image.as_ref();
        let of_image = of_image.map(|(_, tokens)| format!(" of an image of {tokens} tokens"));
        Refused {
            what: encoder.map(Encoder::name).unwrap_or_default(),
            of: format!("compute buffers{}{more}", of_image.unwrap_or_default()),
            needed: 0,
            fixed: 0,
            coming: 0,
            image,
        }
    }

    /// Says so. `error`: why planning failed.
    pub fn refusal(&self, budget: u64, error: &PlanError) -> Refusal {
        let Refused { what, of, .. } = self;
        let needed = ByteSize(self.needed);
        let Some(minimum) = error.enough() else {
            return format!("{what} needs {needed} for {of}: {error}").into();
        };
        let left = self.needed.saturating_sub(minimum.saturating_sub(budget));
        let enough = minimum.saturating_add(self.coming);
        let room = left.saturating_sub(self.fixed);
        let fewer = self.image.as_ref().and_then(|(shape, tokens)| {
            let fewer = shape.tokens_within(room, tokens.saturating_sub(1))?;
            (fewer >= shape.least_tokens).then_some(fewer)
        });
        let fewer = fewer.map(|few| format!("limit images with --image-max-tokens {few}, "));
        let text = format!(
            "{what} needs {needed} for {of}, and {} of the budget of {} are left for it: raise that to --pipeshard-vram {} ({enough} \
             bytes), {}or leave the encoder to the CPU with --no-mmproj-offload, which takes longer",
            ByteSize(left),
            ByteSize(budget),
            ByteSize(enough).to_flag(),
            fewer.unwrap_or_default()
        );
        Refusal {
            text,
            minimum: Some(enough),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    use crate::vision::header::tests::qwen;

    fn refused(tokens: Option<u64>) -> String {
        let refused = Refused {
            what: "the encoder".to_owned(),
            of: "compute buffers".to_owned(),
            needed: 500 * MIB,
            fixed: 0,
            coming: 0,
            image: tokens.map(|tokens| (qwen(), tokens)),
        };
        let error = PlanError::BudgetTooSmall {
            budget: 1000 * MIB,
            minimum: 1300 * MIB,
            contributors: Vec::new(),
        };
        refused.refusal(1000 * MIB, &error).text
    }

    #[test]
    fn a_refusal_says_what_would_work() {
        let said = refused(Some(4000));
        for part in [
            "needs 500 MiB for compute buffers",
            "200 MiB of the budget of 1000 MiB are left",
            "--pipeshard-vram 1300M (1363148800 bytes)",
            // four patches each, of 4.5 times 1,280 values
            "--image-max-tokens 2273,",
            "--no-mmproj-offload",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!refused(None).contains("--image-max-tokens"));
        assert!(!refused(Some(16)).contains("--image-max-tokens"));
    }
}
