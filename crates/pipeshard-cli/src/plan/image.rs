//! `--mmproj` and `--image`: what an encoder takes while it computes, for how long, and what the language model gives it.
//!
//! The plan of the language model leaves the same room as a run's does ([`expected_of`]); what one image takes of it follows from its
//! size. Nothing is loaded: the header of the projector file has all that.

use std::fmt::Write;
use std::path::Path;

use super::picture::{ImageAnswer, Pixels};
use super::question::{Question, Solution};
use super::text::{heading, line, time, wrapped, WIDTH};
use pipeshard::hook::accounts::expected::Expected;
use pipeshard::hook::answers::encoder::expected_of;
use pipeshard::hook::tower::units::{plan_of_all, plan_within, units_of, Placed, Rounding};
use pipeshard::vision::header::{EncoderFile, EncoderShape, Kind};
use pipeshard_gguf::InventoryError;
use pipeshard_model::inventory::LoadedTensor;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::cost::{EncodeCost, EncodeWork};
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::Profile;

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

/// What is said of an encoder on the command line.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its file.
    pub mmproj: Option<&'a Path>,
    /// An image.
    pub image: Option<Pixels>,
    /// The most tokens of one.
    pub limit: Option<u32>,
    /// The CPU encodes.
    pub on_cpu: bool,
}

/// Why there is nothing to say of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No encoder, or no room: what to do.
    #[error("{0}")]
    Refused(String),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] InventoryError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

fn failed(why: String) -> ImageError {
    ImageError::Refused(why)
}

impl Encoder {
    /// Reads what `--mmproj` names; none where it was not given.
    ///
    /// # Errors
    /// Flags that need it, a file that cannot be read, or one without an encoder of images.
    pub fn of(args: Asked<'_>, rounding: Rounding, real: bool) -> Result<Option<Self>, ImageError> {
        let Some(path) = args.mmproj else {
            let needs = [
                (args.image.is_some(), "--image"),
                (args.limit.is_some(), "--image-max-tokens"),
                (args.on_cpu, "--no-mmproj-offload"),
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
        let limit = args.limit.map_or(0, u64::from);
        let expected = match args.on_cpu {
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
            on_cpu: args.on_cpu,
        }))
    }

    /// What plans leave to it: beside the language model, and in turn with its weights.
    pub fn room(&self) -> (u64, u64) {
        (self.expected.total(), self.expected.in_turn())
    }

    /// No context has room beside that: expects smaller images, by so many bytes. False where there is nothing left to give.
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
            ttft: 0.0,
            ttft_on_cpu: 0.0,
        };
        let mut work = EncodeWork {
            operations: self.shape.operations(rows),
            kernels: self.shape.kernels(rows),
            ..EncodeWork::default()
        };
        if !self.on_cpu {
            // as a run does it: the ring makes way, then residents from the end, no more than is missing
            let comfortable = scratch + (2 * all.minimum_budget).min(all.ledger.total());
            let mut beside = language_peak;
            if beside + comfortable > budget {
                beside -= ledger.slots;
            }
            let missing = (beside + least).saturating_sub(budget);
            if missing > ledger.resident {
                return Err(failed(self.refusal(
                    budget,
                    minimum_budget,
                    least,
                    (rows, tokens),
                )));
            }
            beside -= missing;
            work.restored = missing;
            let tower = plan_within(&units, budget - beside - scratch, self.rounding)?;
            answer.placed = Placed::of(&units, &tower);
            answer.scratch = scratch;
            answer.vision_peak = beside + tower.ledger.total() + scratch;
            answer.peak = answer.vision_peak.max(language_peak);
            work.streamed = answer.placed.streamed + answer.placed.resident;
            work.first = tower.ring.groups.first().map_or(0, |group| group.bytes);
        }
        answer.encode = work.cost(profile);
        let prompt = solved.prediction.ttft;
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

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The answer's part about images, in words; `prompt`: tokens of the prompt that contains it.
pub fn render(image: &ImageAnswer, prompt: u32) -> String {
    let mut text = String::new();
    // writing to a String cannot fail
    let _ = write_all(&mut text, image, prompt);
    text
}

fn write_all(text: &mut String, image: &ImageAnswer, prompt: u32) -> std::fmt::Result {
    let title = match (image.image, image.tokens) {
        (Some(Pixels { width, height }), Some(tokens)) => {
            format!("Image of {width}x{height}, {tokens} tokens")
        }
        (Some(Pixels { width, height }), None) => format!("Image of {width}x{height}, in parts"),
        (None, _) => "Largest image".to_owned(),
    };
    heading(
        text,
        &title,
        &[if image.on_cpu {
            "on the CPU"
        } else {
            "on the device"
        }],
    )?;
    let mut row = |label: &str, value: String| line(text, label, &[value]);
    let size = |bytes: u64| ByteSize(bytes).to_string();
    row(
        "encoder, weights in host memory",
        format!("{}, {}", image.projector, size(image.weights)),
    )?;
    if !image.on_cpu {
        row("  resident while it computes", size(image.placed.resident))?;
        row(
            "  streamed",
            format!(
                "{} through {}",
                size(image.placed.streamed),
                size(image.placed.ring)
            ),
        )?;
        row("compute buffers (estimated)", size(image.scratch))?;
        row("device memory while it computes", size(image.vision_peak))?;
        row("  for the language model", size(image.language_peak))?;
        row("  peak, the larger of both", size(image.peak))?;
    }
    row(
        "encode",
        time(if image.on_cpu {
            image.encode.on_cpu
        } else {
            image.encode.seconds
        }),
    )?;
    row(&format!("first token, after {prompt}"), time(image.ttft))?;
    if !image.on_cpu {
        row(
            "  with --no-mmproj-offload",
            format!(
                "{} (encode {})",
                time(image.ttft_on_cpu),
                time(image.encode.on_cpu)
            ),
        )?;
        let minimum = ByteSize(image.minimum_budget).to_flag();
        row("smallest budget for this image", minimum)?;
    }
    if image.image.is_some() && image.tokens.is_none() {
        let note = "How many parts the image becomes, and how many tokens, llama.cpp decides; the figures are those of the largest part.";
        for words in wrapped(note, WIDTH - 2) {
            writeln!(text, "  {words}")?;
        }
    }
    Ok(())
}
