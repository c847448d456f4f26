//! `--mmproj` and `--image`: what an encoder takes while it computes, for how long, and what the language model gives it.
//!
//! The plan of the language model leaves the same room as a run's does ([`expected_of`]); what one image takes of it follows from its
//! size. Nothing is loaded: the header of the projector file has all that.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use super::question::{Question, Solution};
use pipeshard::hook::accounts::expected::Expected;
use pipeshard::hook::answers::encoder::expected_of;
use pipeshard::hook::tower::units::{plan_of_all, plan_within, units_of, Placed, Rounding};
use pipeshard::vision::header::{EncoderFile, EncoderShape, Kind};
use pipeshard_gguf::InventoryError;
use pipeshard_model::inventory::LoadedTensor;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::cost::{Costs, EncodeCost, EncodeWork, Workload};
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::Profile;

/// Pixels of an image, `1920x1080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pixels {
    /// From left to right.
    pub width: u64,
    /// From top to bottom.
    pub height: u64,
}

impl FromStr for Pixels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: u64 = 65_536;
        let side = |text: &str| {
            text.trim()
                .parse()
                .ok()
                .filter(|side| (1..=MOST).contains(side))
        };
        let sides = text.split_once(['x', 'X', '×']);
        let sides = sides.and_then(|(width, height)| side(width).zip(side(height)));
        let (width, height) = sides
            .ok_or("an image's size is written as WIDTHxHEIGHT in pixels, for example 1920x1080")?;
        Ok(Pixels { width, height })
    }
}

/// What a command says of images.
#[derive(Debug, Clone, Default, Args)]
pub struct ImageArgs {
    /// The file of an encoder of images, as --mmproj of llama.cpp's tools has it: the plan leaves it room
    #[arg(long, value_name = "FILE", conflicts_with_all = ["map", "save"])]
    pub mmproj: Option<PathBuf>,

    /// An image to predict for, in pixels [default: the largest that the encoder takes]
    #[arg(long, value_name = "WxH")]
    pub image: Option<Pixels>,

    /// Images of more tokens are scaled down, as with --image-max-tokens of llama.cpp's tools
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub image_max_tokens: Option<u32>,

    /// The CPU encodes
    #[arg(long)]
    pub no_mmproj_offload: bool,
}

/// Why there is no answer about an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no encoder to plan for, or no room for the image.
    #[error("{0}")]
    Refused(String),
    /// The projector file cannot be read.
    #[error(transparent)]
    File(#[from] InventoryError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// What an encoder takes, and how long.
#[derive(Debug, Clone, Serialize)]
pub struct ImageAnswer {
    /// The projector file.
    pub file: String,
    /// llama.cpp's name for what it is.
    pub projector: String,
    /// The image that was asked about; none for the largest that there may be.
    pub image: Option<Pixels>,
    /// Pixels that it is scaled to; none where it is cut into parts, or that is not known.
    pub scaled: Option<Pixels>,
    /// Patches of a graph.
    pub rows: u64,
    /// Tokens that the language model sees; none where the image is cut into parts.
    pub tokens: Option<u64>,
    /// Bytes of the file's weights.
    pub weights: u64,
    /// The CPU encodes, as with `--no-mmproj-offload`: all below is zero but for its time.
    pub on_cpu: bool,
    /// Where weights are while it is encoded.
    pub placed: Placed,
    /// Compute buffers, in bytes: at least what a run takes.
    pub scratch: u64,
    /// The most device memory that is held while it is encoded, in bytes.
    pub vision_peak: u64,
    /// The same while the language model computes.
    pub language_peak: u64,
    /// The larger of the two.
    pub peak: u64,
    /// The smallest budget in which this image is encoded on the device, in bytes.
    pub minimum_budget: u64,
    /// Seconds.
    pub encode: EncodeCost,
    /// What llama.cpp evaluates for a question about it, one by one, in tokens: the text ahead of it, the image, the text behind it.
    pub prompts: Vec<u32>,
    /// Seconds to the first token of such a question, without reading and scaling the image.
    pub ttft: f64,
    /// The same where the CPU encodes, by the plan at hand.
    pub ttft_on_cpu: f64,
}

/// The encoder of a command.
#[derive(Debug, Clone)]
pub struct Encoder {
    path: String,
    shape: EncoderShape,
    tensors: Vec<LoadedTensor>,
    expected: Expected,
    image: Option<Pixels>,
    limit: u64,
    rounding: Rounding,
    on_cpu: bool,
}

fn failed(why: String) -> ImageError {
    ImageError::Refused(why)
}

impl Encoder {
    /// Reads what `--mmproj` names; none where it was not given.
    ///
    /// # Errors
    /// Flags that need it, a file that cannot be read, or one without an encoder of images.
    pub fn of(
        args: &ImageArgs,
        rounding: Rounding,
        real: bool,
    ) -> Result<Option<Self>, ImageError> {
        let Some(path) = &args.mmproj else {
            let needs = [
                (args.image.is_some(), "--image"),
                (args.image_max_tokens.is_some(), "--image-max-tokens"),
                (args.no_mmproj_offload, "--no-mmproj-offload"),
            ];
            return match needs.iter().find(|(given, _)| *given) {
                Some((_, flag)) => Err(failed(format!(
                    "{flag} says something about an encoder of images, and none was given: name its file with --mmproj FILE"
                ))),
                None => Ok(None),
            };
        };
        let file = EncoderFile::read(path)?;
        let shape = file.encoder(Kind::Images).cloned();
        let shape = shape.ok_or_else(|| {
            failed(format!(
                "{} has no encoder of images, so there is nothing to plan for --mmproj: leave it out, or give another file",
                path.display()
            ))
        })?;
        let limit = args.image_max_tokens.map_or(0, u64::from);
        let expected = match args.no_mmproj_offload {
            true => Expected::default(),
            false => expected_of(&file, limit, rounding, real),
        };
        Ok(Some(Encoder {
            path: shown(path),
            shape,
            tensors: file.tensors,
            expected,
            image: args.image,
            limit,
            rounding,
            on_cpu: args.no_mmproj_offload,
        }))
    }

    /// What plans leave to it: next to the language model, and in turn with its weights.
    pub fn room(&self) -> (u64, u64) {
        (self.expected.total(), self.expected.in_turn())
    }

    /// No context fits next to that: expects smaller images, by so many bytes. False where there is nothing left to give.
    pub fn give_way(&mut self, error: &PlanError) -> bool {
        let missing = match error {
            PlanError::BudgetTooSmall {
                budget, minimum, ..
            } => minimum.checked_sub(*budget),
            _ => return false,
        };
        self.expected.give_way(missing)
    }

    /// Rows of the graph that is planned for, the image's size and its tokens, as far as they are known.
    fn rows(&self) -> (u64, Option<Pixels>, Option<u64>) {
        let Some(image) = self.image else {
            let rows = self.shape.rows(self.limit);
            return (rows, None, None);
        };
        match self.shape.scaled((image.width, image.height), self.limit) {
            Some(scaled) => {
                let size = Pixels {
                    width: scaled.width,
                    height: scaled.height,
                };
                (scaled.rows, Some(size), Some(scaled.tokens))
            }
            None => (self.shape.rows(self.limit), None, None),
        }
    }

    /// Rows, tokens where they are known, and the least device memory of the graph that is planned for: weights of a layer or two, and
    /// compute buffers, which come last.
    fn needs(&self) -> Result<(u64, Option<u64>, u64, u64), PlanError> {
        let (rows, _, tokens) = self.rows();
        let scratch = match self.image {
            Some(_) => self.shape.scratch_of(rows),
            None => self.shape.scratch(rows),
        };
        let scratch = scratch.next_multiple_of(self.rounding.granularity);
        let all = plan_of_all(&units_of(&self.tensors), self.rounding)?;
        Ok((rows, tokens, all.minimum_budget + scratch, scratch))
    }

    /// The language model has no plan, with or without an image: a refusal that names what both need.
    pub fn no_room(&self, question: &Question, profile: &Profile, error: PlanError) -> ImageError {
        let (PlanError::BudgetTooSmall { budget, .. }, false) = (&error, self.on_cpu) else {
            return error.into();
        };
        match self.needs() {
            Ok((rows, tokens, least, _)) => {
                let minimum = self.minimum(question, profile, least);
                failed(self.refusal(*budget, minimum, least, (rows, tokens)))
            }
            Err(error) => error.into(),
        }
    }

    /// What one image takes under a plan of the language model.
    ///
    /// # Errors
    /// The image has no room in the budget: what would work.
    pub fn answer(
        &self,
        question: &Question,
        solved: &Solution,
        profile: &Profile,
    ) -> Result<ImageAnswer, ImageError> {
        let (_, scaled, _) = self.rows();
        let (rows, tokens, least, scratch) = self.needs()?;
        let units = units_of(&self.tensors);
        let all = plan_of_all(&units, self.rounding)?;
        let (budget, ledger) = (solved.plan.budget, &solved.plan.ledger);
        let language_peak = ledger.total();
        let minimum_budget = self.minimum(question, profile, least);
        let mut answer = ImageAnswer {
            file: self.path.clone(),
            projector: self.shape.projector.clone(),
            image: self.image,
            scaled,
            rows,
            tokens,
            weights: self.tensors.iter().map(|tensor| tensor.nbytes).sum(),
            on_cpu: self.on_cpu,
            placed: Placed::default(),
            scratch: 0,
            vision_peak: 0,
            language_peak,
            peak: language_peak,
            minimum_budget,
            encode: EncodeCost::default(),
            prompts: prompts(tokens, solved.workload.prompt),
            ttft: 0.0,
            ttft_on_cpu: 0.0,
        };
        let (products, moved) = self.shape.passes(rows);
        let mut work = EncodeWork {
            products,
            moved,
            operations: self.shape.operations(rows),
            kernels: self.shape.kernels(rows),
            ..EncodeWork::default()
        };
        if !self.on_cpu {
            // as a run does it: the ring makes way, then residents from the end, no more than is missing
            let comfortable = scratch + (2 * all.minimum_budget).min(all.ledger.total());
            let mut language = language_peak;
            if language + comfortable > budget {
                language -= ledger.slots;
            }
            let missing = (language + least).saturating_sub(budget);
            if missing > ledger.resident {
                return Err(failed(self.refusal(
                    budget,
                    minimum_budget,
                    least,
                    (rows, tokens),
                )));
            }
            language -= missing;
            work.restored = missing;
            let tower = plan_within(&units, budget - language - scratch, self.rounding)?;
            answer.placed = Placed::of(&units, &tower);
            answer.scratch = scratch;
            answer.vision_peak = language + tower.ledger.total() + scratch;
            answer.peak = answer.vision_peak.max(language_peak);
            work.streamed = answer.placed.streamed + answer.placed.resident;
            work.first = tower.ring.groups.first().map_or(0, |group| group.bytes);
        }
        answer.encode = work.cost(profile);
        let costs = Costs::new(question.request.shape(), profile);
        let evaluated = |&prompt: &u32| {
            let workload = Workload {
                prompt,
                sequences: 1,
                ..solved.workload
            };
            costs.first_token(&solved.plan, workload)
        };
        let prompt: f64 = answer.prompts.iter().map(evaluated).sum();
        answer.ttft_on_cpu = answer.encode.on_cpu + prompt;
        answer.ttft = match self.on_cpu {
            true => answer.ttft_on_cpu,
            false => answer.encode.seconds + answer.encode.restoring + prompt,
        };
        Ok(answer)
    }

    /// The smallest budget that leaves so much to the encoder.
    fn minimum(&self, question: &Question, profile: &Profile, in_turn: u64) -> u64 {
        let mut question = question.clone();
        question.kept = None;
        question.request.memory.in_turn = match self.on_cpu {
            true => 0,
            false => in_turn,
        };
        match question.solve(1, profile) {
            Err(PlanError::BudgetTooSmall { minimum, .. }) => minimum,
            Err(PlanError::FixedDoesNotFit { needed, .. }) => needed,
            _ => 0,
        }
    }

    fn refusal(
        &self,
        budget: u64,
        minimum: u64,
        least: u64,
        (rows, tokens): (u64, Option<u64>),
    ) -> String {
        let of_image = match tokens {
            Some(tokens) => format!("an image of {tokens} tokens"),
            None => format!("an image of {rows} patches"),
        };
        let room = self
            .shape
            .scratch_of(rows)
            .saturating_sub(minimum.saturating_sub(budget));
        let most = tokens.unwrap_or(rows / self.shape.rows_per_token.max(1));
        let fewer = self.shape.tokens_within(room, most.saturating_sub(1));
        let fewer = fewer.filter(|&fewer| fewer >= self.shape.least_tokens);
        let fewer = fewer.map(|few| format!("limit images with --image-max-tokens {few}, "));
        format!(
            "{of_image} needs {} on the device while it is encoded, and {} leave too little for it: raise the budget to --vram {} \
             ({minimum} bytes), {}or leave the encoder to the CPU with --no-mmproj-offload, which takes longer",
            ByteSize(least),
            ByteSize(budget),
            ByteSize(minimum).to_flag(),
            fewer.unwrap_or_default()
        )
    }
}

/// What is evaluated for a question about an image, one by one. `most`: the prompt that the plan is for, which is all that is known of an
/// image that llama.cpp cuts into parts.
fn prompts(tokens: Option<u64>, most: u32) -> Vec<u32> {
    /// What chat templates have ahead of an image, or a short question and the head of the answer behind it.
    const TEXT: u32 = 16;
    let tokens = tokens.and_then(|tokens| u32::try_from(tokens).ok());
    tokens.map_or(vec![most], |tokens| vec![TEXT, tokens, TEXT])
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_images_are_two_numbers() {
        let size = |width, height| Ok(Pixels { width, height });
        assert_eq!("2560x1440".parse(), size(2560, 1440));
        assert_eq!("1X1".parse(), size(1, 1));
        for wrong in [
            "", "100", "100x", "0x10", "axb", "1x2x3", "70000x10", "-1x5",
        ] {
            let said = wrong.parse::<Pixels>().expect_err(wrong);
            assert!(said.contains("1920x1080"), "{said}");
        }
    }
}
