//! What is said where an encoder's memory has no room: what is needed and what there is, and what would work.

use crate::hook::encoders::Encoder;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::PlanError;

/// Compute buffers of images of other shapes are up to so much larger than the number of their patches says, in percent.
const PACKING: u64 = 25;
/// Fewer tokens tell a model nothing of an image.
const FEW_TOKENS: u64 = 16;

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
    /// Tokens of the image, if less of them would need less.
    pub tokens: Option<u64>,
}

impl Refused {
    /// Compute buffers of an encoder's latest graph, and `more`; of how many bytes is still to be said.
    pub fn compute_buffers(encoder: Option<&Encoder>, more: &str) -> Self {
        let tokens = encoder.and_then(Encoder::tokens);
        let of_image = tokens.map(|tokens| format!(" of an image of {tokens} tokens"));
        Refused {
            what: encoder.map(Encoder::name).unwrap_or_default(),
            of: format!("compute buffers{}{more}", of_image.unwrap_or_default()),
            needed: 0,
            fixed: 0,
            coming: 0,
            tokens,
        }
    }

    /// Returns the sentence. `error`: why planning failed.
    pub fn sentence(&self, budget: u64, error: &PlanError) -> String {
        let Refused { what, of, .. } = self;
        let needed = ByteSize(self.needed);
        let minimum = match error {
            PlanError::BudgetTooSmall { minimum, .. } => *minimum,
            PlanError::FixedDoesNotFit { needed, .. } => *needed,
            other => return format!("{what} needs {needed} for {of}: {other}"),
        };
        let left = self.needed.saturating_sub(minimum.saturating_sub(budget));
        let enough = minimum.saturating_add(self.coming);
        let fitting = |tokens: u64| {
            let of_image = |bytes: u64| u128::from(bytes.saturating_sub(self.fixed));
            let fit = u128::from(tokens) * of_image(left) * 100;
            (fit / of_image(self.needed).max(1) / u128::from(100 + PACKING)) as u64
        };
        let fewer = self.tokens.map(fitting).filter(|&few| few >= FEW_TOKENS);
        let fewer = fewer.map(|few| format!("limit images with --image-max-tokens {few}, "));
        format!(
            "{what} needs {needed} for {of}, and {} of the budget of {} are left for it: raise that to --pipeshard-vram {} ({enough} \
             bytes), {}or leave the encoder to the CPU with --no-mmproj-offload, which takes longer",
            ByteSize(left),
            ByteSize(budget),
            ByteSize(enough).to_flag(),
            fewer.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn refused(tokens: Option<u64>) -> String {
        let refused = Refused {
            what: "the encoder".to_owned(),
            of: "compute buffers".to_owned(),
            needed: 500 * MIB,
            fixed: 0,
            coming: 0,
            tokens,
        };
        let error = PlanError::BudgetTooSmall {
            budget: 1000 * MIB,
            minimum: 1300 * MIB,
            contributors: Vec::new(),
        };
        refused.sentence(1000 * MIB, &error)
    }

    #[test]
    fn a_refusal_says_what_would_work() {
        let said = refused(Some(4000));
        for part in [
            "needs 500 MiB for compute buffers",
            "200 MiB of the budget of 1000 MiB are left",
            "--pipeshard-vram 1300M (1363148800 bytes)",
            // 1,600 would fit if compute buffers went by the number of patches alone
            "--image-max-tokens 1280,",
            "--no-mmproj-offload",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!refused(None).contains("--image-max-tokens"));
        assert!(!refused(Some(20)).contains("--image-max-tokens"));
    }
}
