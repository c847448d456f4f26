//! The results as CSV, and as one JSON document.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::analysis::{end_to_end, Cell};
use super::placements::Point;
use super::table::ANSWER;
use super::types::{Machine, Test, Work};
use super::verdicts::Verdict;

/// All that is known, for programs.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    /// Version of this form.
    pub schema_version: u32,
    /// The machine.
    pub machine: &'a Machine,
    /// The tests, each with the best of each approach.
    pub cells: &'a [Cell],
    /// What became of the targets.
    pub targets: &'a [Verdict],
    /// Placements that the planner chose, or was told to take.
    pub placements: &'a [Point],
    /// What was left out, and why.
    pub not_measured: &'a [String],
}

/// Writes the summary.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_json(path: &Path, summary: &Summary) -> io::Result<()> {
    let text = serde_json::to_string_pretty(summary)?;
    std::fs::write(path, text + "\n")
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    budget_bytes: Option<u64>,
    test: String,
    approach: &'a str,
    setting: &'a str,
    ubatch: Option<u32>,
    repetitions: usize,
    ttft_seconds: Option<f64>,
    tokens_per_second: Option<f64>,
    relative_deviation: f64,
    end_to_end_seconds: Option<f64>,
    load_seconds: Option<f64>,
    peak_bytes: Option<u64>,
    over_budget_bytes: u64,
    streamed_bytes: Option<u64>,
    part_of_bound: Option<f64>,
    pipeshard_times_as_fast: Option<f64>,
}

/// Writes one line for each row of the tables.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_csv(path: &Path, cells: &[Cell]) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    for cell in cells {
        for row in cell.rows.iter().chain(&cell.given) {
            let work = cell.test.work;
            let of = |wanted, value| (work == wanted).then_some(value);
            let at = |depth: u32| {
                let wanted = (&cell.model, cell.budget, Test::decode(0, depth));
                let mut of = cells.iter();
                of.find(|c| (&c.model, c.budget, c.test) == wanted)
            };
            // after this prompt, where that was measured
            let decode = at(cell.test.tokens).or_else(|| at(0));
            let decode = decode.and_then(|c| c.row(row.approach));
            let ours = cell.ours().filter(|_| !row.approach.is_ours());
            writer.serialize(Line {
                model: &cell.model,
                budget_bytes: cell.budget,
                test: cell.test.to_string(),
                approach: row.approach.title(),
                setting: &row.setting,
                ubatch: row.ubatch,
                repetitions: row.time.count,
                ttft_seconds: of(Work::Prompt, row.time.median),
                tokens_per_second: (work != Work::FirstToken).then(|| row.speed(cell.test).value),
                relative_deviation: row.time.relative(),
                end_to_end_seconds: match work {
                    Work::Prompt => end_to_end(row, decode, ANSWER),
                    _ => None,
                },
                load_seconds: of(Work::FirstToken, row.time.median),
                peak_bytes: row.peak,
                over_budget_bytes: row.over,
                streamed_bytes: row.counted.as_ref().map(|c| c.bytes_streamed),
                part_of_bound: cell.of_bound(row).map(|r| r.value),
                pipeshard_times_as_fast: ours.map(|o| o.times(row).value),
            })?;
        }
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::super::analysis::{cells, tests::measured};
    use super::super::types::Approach;
    use super::*;

    #[test]
    fn a_line_for_each_row_under_a_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.csv");
        let all = [
            measured(Approach::FitMapped, "a, b", 1, &[4.0]),
            measured(Approach::Pipeshard, "", 1, &[2.0]),
        ];
        let cells = cells(&all, &["m".to_owned()], &Machine::default());
        write_csv(&path, &cells).unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        let header = reader.headers().unwrap().clone();
        let at = |name| header.iter().position(|h| h == name).unwrap();
        let lines: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(&lines[0][at("setting")], "a, b");
        assert_eq!(&lines[0][at("pipeshard_times_as_fast")], "2.0");
        assert_eq!(&lines[1][at("ttft_seconds")], "2.0");
        assert_eq!(&lines[1][at("pipeshard_times_as_fast")], "");
    }
}
