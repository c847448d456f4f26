//! What is answered about an image, in words.

use std::fmt::Write;

use super::image::{ImageAnswer, Pixels};
use super::style::{heading, line, time, wrapped, WIDTH};
use pipeshard_model::size::ByteSize;

/// The answer's part about images, in words.
pub fn render(text: &mut String, image: &ImageAnswer) -> std::fmt::Result {
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
    let evaluated: Vec<String> = image.prompts.iter().map(u32::to_string).collect();
    let label = format!("first token, after {}", evaluated.join(" + "));
    row(&label, time(image.ttft))?;
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
