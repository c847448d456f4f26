//! The answer in words, for a terminal. Colours are taken out again where nobody sees them.

use std::collections::BTreeSet;
use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::answer::{Alternative, Answer};
use super::layers::{columns, head, layer_rows, Part};
use pipeshard_model::size::ByteSize;
use pipeshard_plan::cost::{Limit, PassCost, Prediction, Workload};
use pipeshard_plan::plan::{Placement, UnitClass};

/// No line is wider.
pub const WIDTH: usize = 96;
const LABEL: usize = 34;
const HEADING: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const DEVICE: Style = AnsiColor::Green.on_default();
const STREAMED: Style = AnsiColor::Yellow.on_default();
const HOST: Style = AnsiColor::Magenta.on_default();

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
    layers(text, answer)?;
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

fn layers(text: &mut String, answer: &Answer) -> std::fmt::Result {
    let plan = &answer.plan;
    let rows = layer_rows(plan, answer.workload.sequences);
    let classes = columns(plan);
    let class_name = |class: &UnitClass| match class {
        UnitClass::Attention => "attention",
        UnitClass::FeedForward if classes.contains(&UnitClass::Experts) => "router, shared",
        UnitClass::FeedForward => "FFN",
        _ => "experts",
    };
    let mut header = vec!["KV cache".to_owned()];
    header.extend(classes.iter().map(|class| class_name(class).to_owned()));
    type Cell = (String, Style);
    let mut cells: Vec<(String, Vec<Cell>)> = Vec::new();
    for row in &rows {
        let kv = match row.kv_on_device {
            None => (String::new(), QUIET),
            Some(true) => ("device".to_owned(), DEVICE),
            Some(false) => ("host".to_owned(), HOST),
        };
        let parts = row.parts.iter().map(cell);
        cells.push((row.layers.clone(), [kv].into_iter().chain(parts).collect()));
    }
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let of_column = cells
                .iter()
                .map(|(_, cells)| cells[column].0.chars().count());
            of_column.chain([header[column].len()]).max().unwrap_or(0) + 2
        })
        .collect();
    let longest = cells
        .iter()
        .map(|(layers, _)| layers.len())
        .max()
        .unwrap_or(0);
    let room = WIDTH.saturating_sub(widths.iter().sum::<usize>() + 4);
    let first = longest.clamp(6, room.max(12)) + 2;
    write!(text, "\n{HEADING}{:<width$}", "Layers", width = first + 2)?;
    for (name, width) in header.iter().zip(&widths) {
        write!(text, "{name:<width$}")?;
    }
    trim(text);
    writeln!(text, "{HEADING:#}")?;
    for (layers, cells) in &cells {
        let mut names = wrapped(layers, first - 2).into_iter();
        write!(text, "  {:<first$}", names.next().unwrap_or_default())?;
        for ((cell, style), width) in cells.iter().zip(&widths) {
            write!(
                text,
                "{style}{cell}{style:#}{:gap$}",
                "",
                gap = width - cell.chars().count()
            )?;
        }
        trim(text);
        writeln!(text)?;
        for more in names {
            writeln!(text, "  {more}")?;
        }
    }
    if let Some(part) = head(plan, answer.workload.sequences) {
        let (cell, style) = cell(&Some(part));
        writeln!(text, "  {:<first$}{style}{cell}{style:#}", "output")?;
    }
    let shown = |sign: &str| {
        cells
            .iter()
            .any(|(_, c)| c.iter().any(|c| c.0.contains(sign)))
    };
    if shown("/") {
        let note = "a/b: a for prompts, b for decode; CPU: computed by the CPU from host memory";
        writeln!(text, "  {QUIET}{note}{QUIET:#}")?;
    }
    if shown("slots") {
        let note = "slots: still in the streaming ring from the last prompt";
        writeln!(text, "  {QUIET}{note}{QUIET:#}")?;
    }
    if shown("+CPU") || shown("+slots") {
        let note = "a+b: some weights as a, the others as b";
        writeln!(text, "  {QUIET}{note}{QUIET:#}")?;
    }
    if shown("+fetched") {
        let note =
            "fetched: the device fetches and computes some of a token's experts while the CPU computes the rest";
        writeln!(text, "  {QUIET}{note}{QUIET:#}")?;
    }
    if shown("%") {
        let note = "40% + a: 40% of the bytes are resident, the rest as a";
        writeln!(text, "  {QUIET}{note}{QUIET:#}")?;
    }
    Ok(())
}

fn cell(part: &Option<Part>) -> (String, Style) {
    let Some(part) = part else {
        return (String::new(), QUIET);
    };
    let word = |placement: &Placement| match placement {
        Placement::Resident => "resident",
        Placement::Kept => "slots",
        Placement::Streamed => "streamed",
        Placement::Host => "CPU",
    };
    let words = |placements: &BTreeSet<Placement>| {
        let words: Vec<&str> = placements.iter().map(word).collect();
        words.join("+")
    };
    let (prompt, mut decode) = (words(&part.prompt), words(&part.decode));
    if part.fetched {
        decode += "+fetched";
    }
    let rest = match prompt == decode {
        true => prompt,
        false => format!("{prompt}/{decode}"),
    };
    let style = match part.prompt.contains(&Placement::Host) {
        true => HOST,
        false => STREAMED,
    };
    match part.resident {
        100 => ("resident".to_owned(), DEVICE),
        0 => (rest, style),
        share => (format!("{share}% + {rest}"), style),
    }
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

pub fn heading(text: &mut String, title: &str, columns: &[&str]) -> std::fmt::Result {
    write!(text, "\n{HEADING}{title:<width$}", width = LABEL + 2)?;
    for column in columns {
        write!(text, "{column:<20}")?;
    }
    trim(text);
    writeln!(text, "{HEADING:#}")
}

pub fn line(text: &mut String, label: &str, cells: &[String]) -> std::fmt::Result {
    write!(text, "  {label:<LABEL$}")?;
    for cell in cells {
        write!(text, "{cell:<20}")?;
    }
    trim(text);
    writeln!(text)
}

/// Takes blanks from the end.
fn trim(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
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

/// Three digits and a unit.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "-".to_owned(),
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Three digits of tokens per second.
pub fn rate(tokens: f64) -> String {
    match tokens {
        t if !t.is_finite() => "-".to_owned(),
        t if t >= 100.0 => format!("{t:.0} tok/s"),
        t if t >= 10.0 => format!("{t:.1} tok/s"),
        t => format!("{t:.2} tok/s"),
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

/// Lines of at most `width` characters, broken at blanks.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
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
