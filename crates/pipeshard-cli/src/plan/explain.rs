//! `--explain`: what was tried, and why the plan won.

use std::fmt::Write;

use super::question::Explanation;
use super::style::{heading, line, rate, time, wrapped, WIDTH};
use pipeshard_plan::search::UbatchScore;

/// What was tried, in tables for a terminal, with escape sequences for colours.
pub fn render(explained: &Explanation) -> String {
    let mut text = String::new();
    // writing to a String cannot fail
    let _ = write_all(&mut text, explained);
    text
}

fn write_all(text: &mut String, explained: &Explanation) -> std::fmt::Result {
    let chosen = &explained.chosen;
    let columns = ["score", "first token", "generation"];
    heading(text, "Best plan for each ubatch", &columns)?;
    for best in &explained.ubatches {
        let mut label = format!("ubatch {}", best.ubatch);
        if best.output_on_host {
            label += ", output head on CPU";
        }
        let score = match is_chosen(chosen, best) {
            true => format!("{} chosen", time(best.score)),
            false => time(best.score),
        };
        line(text, &label, &[score, time(best.ttft), rate(best.tps)])?;
    }
    for sentence in [why(explained), SCORE.to_owned()] {
        for line in wrapped(&sentence, WIDTH - 2) {
            writeln!(text, "  {line}")?;
        }
    }
    let title = format!("Moves for ubatch {}", chosen.ubatch);
    heading(text, &title, &["plans / better", "score before", "after"])?;
    let mut moves = 0;
    for tried in &explained.tried {
        if (tried.ubatch, tried.output_on_host) != (chosen.ubatch, chosen.output_on_host) {
            continue;
        }
        moves += 1;
        let after = match tried.accepted {
            0 => String::new(),
            _ => format!(
                "{} {}",
                time(tried.after),
                percent_more(tried.before, tried.after)
            ),
        };
        line(
            text,
            tried.what,
            &[
                format!("{} / {}", tried.priced, tried.accepted),
                time(tried.before),
                after,
            ],
        )?;
    }
    let all = if moves == 0 {
        "Nothing was varied: everything fits. "
    } else {
        ""
    };
    writeln!(
        text,
        "  {all}{} plans were priced for all ubatches together.",
        explained.priced
    )
}

const SCORE: &str =
    "Score: the cube root of the time to the first token times the square of the time per token; \
                     less is better.";

fn is_chosen(chosen: &UbatchScore, other: &UbatchScore) -> bool {
    (chosen.ubatch, chosen.output_on_host) == (other.ubatch, other.output_on_host)
}

/// Why the plan won, in a sentence.
fn why(explained: &Explanation) -> String {
    let chosen = &explained.chosen;
    let others = explained.ubatches.iter();
    let others = others.filter(|other| !is_chosen(chosen, other));
    let Some(next) = others.min_by(|a, b| a.score.total_cmp(&b.score)) else {
        return format!("Only ubatch {} is possible.", chosen.ubatch);
    };
    let head = match (chosen.output_on_host, next.output_on_host) {
        (true, false) => " with the output head on the device",
        (false, true) => " with the output head on the CPU",
        _ => "",
    };
    if next.score < chosen.score {
        return format!(
            "Everything fits with ubatch {}, as llama.cpp computes it by itself; the score of ubatch {}{head} is too little \
             better to change that.",
            chosen.ubatch, next.ubatch
        );
    }
    format!(
        "Ubatch {} has the lowest score. Compared with ubatch {}{head}, the next best: time to first token {}, generation {}.",
        chosen.ubatch,
        next.ubatch,
        percent_more(next.ttft, chosen.ttft),
        percent_more(next.tps, chosen.tps)
    )
}

/// How much more or less that is, in percent.
fn percent_more(from: f64, to: f64) -> String {
    if from > 0.0 {
        format!("{:+.1} %", 100.0 * (to / from - 1.0))
    } else {
        String::new()
    }
}
