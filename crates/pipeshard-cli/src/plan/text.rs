//! The answer in words, for a terminal. Colours are taken out again where nobody sees them.

use std::fmt::Write;

use super::answer::{Alternative, Answer};
use super::style::{heading, line, rate, time, wrapped, HEADING, QUIET, WIDTH};
use super::{image_text, phases};
use pipeshard_model::size::ByteSize;
use pipeshard_plan::cost::{Limit, PassCost, Prediction, Workload};

/// The answer, with escape sequences for colours.
pub fn render(answer: &Answer) -> String {
    let mut text = String::new();
    // writing to a String cannot fail
    let _ = write_all(&mut text, answer);
    text
}

fn write_all(text: &mut String, answer: &Answer) -> std::fmt::Result {
    let weights: u64 = answer.plan.units.iter().map(|unit| unit.bytes).sum();
    let name = answer.name.as_deref().unwrap_or(&answer.model);
    let name: String = name.chars().filter(|c| !c.is_control()).take(48).collect();
    writeln!(
        text,
        "{HEADING}{name}{HEADING:#} ({}, {} layers, {} of weights) in {HEADING}{}{HEADING:#} of device memory",
        answer.architecture,
        answer.layers,
        ByteSize(weights),
        ByteSize(answer.plan.budget)
    )?;
    let sequences = match answer.workload.sequences {
        0 | 1 => "one sequence".to_owned(),
        more => format!("{more} sequences"),
    };
    writeln!(
        text,
        "Context {} for {sequences}, ubatches of {}, KV cache {} and {}",
        answer.context, answer.ubatch, answer.cache_type_k, answer.cache_type_v
    )?;
    writeln!(text)?;
    for line in wrapped(&answer.profile.note, WIDTH) {
        writeln!(text, "{line}")?;
    }
    match &answer.alternative {
        None => predictions(text, answer)?,
        Some(other) => comparison(text, answer, other)?,
    }
    if let Some(image) = &answer.image {
        image_text::render(text, image)?;
    }
    phases::render(text, answer)?;
    let memory = answer.plan.explain_memory();
    let (title, rows) = memory.trim_end().split_once('\n').unwrap_or((&memory, ""));
    writeln!(text, "\n{HEADING}{title}{HEADING:#}\n{rows}")?;
    budgets(text, answer)
}

fn predictions(text: &mut String, answer: &Answer) -> std::fmt::Result {
    let predicted = &answer.prediction;
    heading(text, "Prediction", &["expected", "at best", "limited by"])?;
    let row = |text: &mut String, label: &str, cost: &PassCost, seconds: f64| {
        let best = format!(
            "{} ({})",
            time(cost.bound),
            percent(cost.bound, cost.seconds)
        );
        line(
            text,
            label,
            &[time(seconds), best, limit(cost.limit).to_owned()],
        )
    };
    row(
        text,
        &first_token(answer),
        &predicted.prompt,
        predicted.ttft,
    )?;
    let decode = &predicted.decode;
    row(text, &step(answer), decode, decode.seconds)?;
    line(text, &generation(answer), &[rate(predicted.tps)])?;
    line(text, &to_the_end(answer), &[time(predicted.e2el)])?;
    line(
        text,
        "weights moved per prompt pass",
        &[moved(per_pass(&answer.workload, predicted))],
    )?;
    line(
        text,
        "weights moved per token",
        &[moved(decode.bytes_streamed)],
    )
}

fn comparison(text: &mut String, answer: &Answer, other: &Alternative) -> std::fmt::Result {
    let (now, then) = (&answer.prediction, &other.prediction);
    let title: String = other
        .what_if
        .chars()
        .filter(|c| !c.is_control())
        .take(60)
        .collect();
    heading(text, "Prediction", &["now", "what if", "ratio"])?;
    let times = |label: &str, a: f64, b: f64| (label.to_owned(), time(a), time(b), ratio(a, b));
    let sizes = |label: &str, a: u64, b: u64| {
        (
            label.to_owned(),
            moved(a),
            moved(b),
            ratio(a as f64, b as f64),
        )
    };
    let words = |label: &str, a: &str, b: &str| {
        (label.to_owned(), a.to_owned(), b.to_owned(), String::new())
    };
    let rows = [
        words(
            "ubatch",
            &answer.workload.ubatch.to_string(),
            &other.workload.ubatch.to_string(),
        ),
        sizes("device memory", answer.plan.budget, other.budget),
        times(&first_token(answer), now.ttft, then.ttft),
        times("  at best", now.prompt.bound, then.prompt.bound),
        words(
            "  limited by",
            limit(now.prompt.limit),
            limit(then.prompt.limit),
        ),
        times(&step(answer), now.decode.seconds, then.decode.seconds),
        times("  at best", now.decode.bound, then.decode.bound),
        words(
            "  limited by",
            limit(now.decode.limit),
            limit(then.decode.limit),
        ),
        (
            generation(answer),
            rate(now.tps),
            rate(then.tps),
            ratio(now.tps, then.tps),
        ),
        times(&to_the_end(answer), now.e2el, then.e2el),
        sizes(
            "weights moved per prompt pass",
            per_pass(&answer.workload, now),
            per_pass(&other.workload, then),
        ),
        sizes(
            "weights moved per token",
            now.decode.bytes_streamed,
            then.decode.bytes_streamed,
        ),
    ];
    for (label, now, then, ratio) in rows {
        line(text, &label, &[now, then, ratio])?;
    }
    writeln!(text, "  {QUIET}what if: {title}{QUIET:#}")
}

fn budgets(text: &mut String, answer: &Answer) -> std::fmt::Result {
    heading(text, "Other budgets", &["first token", "generation", ""])?;
    let now = &answer.prediction;
    for row in &answer.budgets {
        let budget = ByteSize(row.budget).to_string();
        let this = row.budget == answer.plan.budget;
        let Some(then) = &row.prediction else {
            line(text, &budget, &["too small".to_owned()])?;
            continue;
        };
        let change = |a: f64, b: f64| match this {
            true => String::new(),
            false => format!(" {:>6}", changed(a, b)),
        };
        let note = if this { "this plan" } else { "" };
        line(
            text,
            &budget,
            &[
                time(then.ttft) + &change(now.ttft, then.ttft),
                rate(then.tps) + &change(now.tps, then.tps),
                note.to_owned(),
            ],
        )?;
    }
    Ok(())
}

fn first_token(answer: &Answer) -> String {
    match answer.workload.sequences {
        0 | 1 => format!("first token, after {}", answer.workload.prompt),
        more => format!("first tokens, after {more} x {}", answer.workload.prompt),
    }
}

fn step(answer: &Answer) -> String {
    match answer.workload.sequences {
        0 | 1 => "each token after it".to_owned(),
        more => format!("each {more} tokens after them"),
    }
}

fn generation(answer: &Answer) -> String {
    match answer.workload.sequences {
        0 | 1 => "generation".to_owned(),
        more => format!("generation, all {more} sequences"),
    }
}

fn to_the_end(answer: &Answer) -> String {
    format!("all of an answer of {} tokens", answer.workload.generated)
}

/// Weights that one pass of the prompt moves.
fn per_pass(workload: &Workload, prediction: &Prediction) -> u64 {
    let tokens = u64::from(workload.prompt) * u64::from(workload.sequences.max(1));
    let passes = tokens.div_ceil(u64::from(workload.ubatch.max(1))).max(1);
    prediction.prompt.bytes_streamed / passes
}

fn moved(bytes: u64) -> String {
    match bytes {
        0 => "none".to_owned(),
        bytes => ByteSize(bytes).to_string(),
    }
}

/// What limits a pass, in a word.
pub fn limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Link => "link",
        Limit::Dram => "host memory",
        Limit::Gpu => "GPU",
        Limit::Cpu => "CPU",
    }
}

fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.0} %", 100.0 * part / whole),
        false => "-".to_owned(),
    }
}

fn changed(from: f64, to: f64) -> String {
    match from > 0.0 {
        true => format!("{:+.0} %", 100.0 * (to / from - 1.0)),
        false => String::new(),
    }
}

fn ratio(from: f64, to: f64) -> String {
    match from > 0.0 {
        true => format!("{:.2}", to / from),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (seconds, said) in [
            (312.4, "312 s"),
            (31.24, "31.2 s"),
            (3.124, "3.12 s"),
            (0.3124, "312 ms"),
            (0.0312, "31.2 ms"),
            (0.00312, "3.12 ms"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(time(seconds), said);
        }
        assert_eq!(rate(5.678), "5.68 tok/s");
        assert_eq!(rate(56.78), "56.8 tok/s");
        assert_eq!(changed(2.0, 3.0), "+50 %");
        assert_eq!(ratio(2.0, 3.0), "1.50");
        assert_eq!(ratio(0.0, 3.0), "");
    }

    #[test]
    fn lines_are_broken_at_blanks() {
        assert_eq!(wrapped("0-3, 7, 9-10", 7), ["0-3, 7,", "9-10"]);
        assert_eq!(wrapped("unbreakable", 3), ["unbreakable"]);
    }
}
