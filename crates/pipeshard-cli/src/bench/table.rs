//! The comparison as a table that fits a terminal.

use super::process::Measured;
use super::rows::{Comparison, Row};
use comfy_table::{presets, CellAlignment, Table};
use pipeshard_model::size::ByteSize;

/// A figure of all rounds.
type Figure = fn(&Measured) -> f64;

const PROMPT: Figure = |m| m.prompt_per_second;
const GENERATE: Figure = |m| m.generated_per_second;

/// Middle, and half of the way from the lowest to the highest.
fn middle(row: &Row, figure: Figure) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = row.rounds.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    let (first, last) = (values.first()?, values.last()?);
    let middle = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    Some((middle, (last - first) / 2.0))
}

fn spread(row: &Row, figure: Figure) -> String {
    middle(row, figure).map_or("-".to_owned(), |(middle, half)| {
        format!("{middle:.1} ±{half:.1}")
    })
}

/// The best of stock's rows.
fn best(comparison: &Comparison, figure: Figure) -> Option<f64> {
    let stock = comparison.rows.iter().filter(|row| !row.ours);
    let values = stock.filter_map(|row| Some(middle(row, figure)?.0));
    values.max_by(f64::total_cmp)
}

/// The whole text.
pub fn of(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "VRAM MiB", "prompt t/s", "TTFT s", "generate t/s"]);
    for row in &comparison.rows {
        let peak = row.rounds.iter().filter_map(|m| m.peak_bytes).max();
        let ttft: Figure = |m| m.ttft_seconds;
        table.add_row([
            row.name.clone(),
            peak.map_or("-".to_owned(), |bytes| (bytes >> 20).to_string()),
            spread(row, PROMPT),
            middle(row, ttft).map_or("-".to_owned(), |(s, _)| format!("{s:.2}")),
            spread(row, GENERATE),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![table.to_string()];
    for row in &comparison.rows {
        if let Some(why) = &row.failure {
            lines.push(format!("{}: {why}", row.name));
        }
    }
    lines.push(String::new());
    let ours = &comparison.rows[0];
    let ratio = |figure: Figure| {
        let (ours, best) = (middle(ours, figure)?.0, best(comparison, figure)?);
        Some(ours / best)
    };
    lines.push(match (ratio(PROMPT), ratio(GENERATE)) {
        (Some(prompt), Some(generate)) => format!(
            "pipeshard over the best stock row: prompt {prompt:.2} times, generation {generate:.2} times"
        ),
        _ => "no stock row ran within that memory, so there is nothing to compare with".to_owned(),
    });
    if comparison.simulated {
        lines.push("the GPU is simulated: these times are those of this machine's CPU".to_owned());
    }
    let held = ByteSize(comparison.stock_held_to);
    lines.push(match comparison.measured_memory {
        true => format!(
            "stock was limited to {held}, the peak of pipeshard with a budget of {}",
            ByteSize(comparison.budget)
        ),
        false => format!(
            "how much memory was taken is not known here: stock was held to the budget of {held}"
        ),
    });
    lines.push(format!(
        "{} tokens of prompt, {} generated, {} in the context before; ± is half the range of the rounds",
        comparison.prompt, comparison.generate, comparison.depth
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ours: bool, speeds: &[f64], peak: u64) -> Row {
        let mut row = Row::new(name.to_owned(), ours, Vec::new());
        row.rounds = speeds
            .iter()
            .map(|&speed| Measured {
                prompt_per_second: speed * 100.0,
                generated_per_second: speed,
                ttft_seconds: 20.0 / speed,
                peak_bytes: Some(peak << 20),
            })
            .collect();
        row
    }

    fn comparison(rows: Vec<Row>) -> Comparison {
        Comparison {
            budget: 4 << 30,
            prompt: 2048,
            generate: 64,
            depth: 0,
            stock_held_to: 4600 << 20,
            measured_memory: true,
            simulated: false,
            rows,
        }
    }

    #[test]
    fn ratios_are_to_the_best_stock_row() {
        let mut failed = row("-ngl 99", false, &[], 0);
        failed.failure = Some("out of memory".to_owned());
        let rows = vec![
            row("pipeshard", true, &[10.0, 12.0], 4600),
            row("--fit, mapped, -ub 512", false, &[4.0, 5.0], 4590),
            row("--fit, page-locked, -ub 512", false, &[5.0, 6.0], 4595),
            failed,
        ];
        insta::assert_snapshot!(of(&comparison(rows)));
    }

    #[test]
    fn without_a_stock_row_there_is_no_ratio() {
        let text = of(&comparison(vec![row("pipeshard", true, &[10.0], 4600)]));
        assert!(text.contains("nothing to compare with"), "{text}");
    }
}
