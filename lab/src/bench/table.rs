//! The results as text for a terminal of 120 columns.

use std::fmt::Write;

use comfy_table::{presets, CellAlignment, Table};

use super::analysis::{end_to_end, setting_text, Cell, Ratio, Row};
use super::types::{budget_text, Approach, Machine, Test, Work};
use super::verdicts::{Met, Verdict};
use super::MIB;
use pipeshard_model::size::ByteSize;

/// Generated tokens in the figure for a whole answer.
pub const ANSWER: u32 = 128;

/// All that is known, for people.
pub fn render(machine: &Machine, cells: &[Cell], verdicts: &[Verdict], notes: &[String]) -> String {
    let mut text = String::new();
    machine_lines(&mut text, machine);
    let mut seen: Vec<(&str, Option<u64>)> = Vec::new();
    for cell in cells {
        let key = (cell.model.as_str(), cell.budget);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let block: Vec<&Cell> = cells
            .iter()
            .filter(|c| (c.model.as_str(), c.budget) == key)
            .collect();
        let title = match cell.budget {
            Some(_) => format!("{} within {}", cell.model, budget_text(cell.budget)),
            None => format!("{}, everything in VRAM", cell.model),
        };
        let _ = write!(text, "\n{title}\n{}\n", block_table(&block));
        for line in block.iter().flat_map(|c| &c.rejected) {
            let _ = writeln!(text, "  {line}");
        }
    }
    let _ = write!(text, "\n{}", legend());
    if !notes.is_empty() {
        let _ = write!(text, "\nNot measured\n");
        for note in notes {
            let _ = writeln!(text, "  {note}");
        }
    }
    let _ = write!(text, "\nTargets\n{}\n", verdict_table(verdicts));
    // the table pads its last column
    text.lines()
        .map(|l| l.trim_end().to_owned() + "\n")
        .collect()
}

fn machine_lines(text: &mut String, machine: &Machine) {
    let gb = |rate: f64| match rate > 0.0 {
        true => format!("{:.1}", rate / 1e9),
        false => "–".to_owned(),
    };
    let _ = writeln!(
        text,
        "{}; {}, {} threads",
        machine.device, machine.cpu, machine.threads
    );
    let _ = writeln!(
        text,
        "link, GB/s: {} page-locked, {} page-locked in place, {} pageable, {} back; page-locking {} GB/s",
        gb(machine.link_pinned),
        gb(machine.link_registered),
        gb(machine.link_pageable),
        gb(machine.link_back),
        gb(machine.register_rate),
    );
    let _ = writeln!(
        text,
        "host memory, GB/s: {} by the CPU alone, {} by the CPU and {} by the link at the same time",
        gb(machine.cpu_read),
        gb(machine.cpu_read_copying),
        gb(machine.link_cpu_reading),
    );
    let _ = writeln!(
        text,
        "bare context {}, in no figure below; memory by {}",
        ByteSize(machine.context),
        machine.memory_source
    );
    if machine.simulated {
        let _ = writeln!(text, "A simulated GPU: all times are those of this CPU.");
    }
}

fn legend() -> String {
    format!(
        "MiB: the most device memory, less the bare context. TTFT: ms for the prompt, and of a load s until the prompt is\n\
         evaluated. E2EL: s for the prompt and {ANSWER} tokens. ours: how many times as fast pipeshard is. GB: streamed for\n\
         one prompt or token. bound: part reached of what link, host memory and processors allow. ±: standard deviation\n\
         over all repetitions.\n"
    )
}

pub(super) fn table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for index in 0..header.len() {
        if let Some(column) = table.column_mut(index) {
            if index >= left {
                column.set_cell_alignment(CellAlignment::Right);
            }
            column.set_padding((0, 1));
        }
    }
    table
}

fn block_table(block: &[&Cell]) -> Table {
    let mut table = table(
        &[
            "test", "how", "setting", "MiB", "TTFT", "token/s", "±", "E2EL", "ours", "GB", "bound",
        ],
        3,
    );
    for cell in block {
        let mut first = true;
        let given = cell.given.iter();
        for row in cell.rows.iter().chain(given) {
            let test = if first {
                cell.test.to_string()
            } else {
                String::new()
            };
            first = false;
            let decode = block
                .iter()
                .find(|c| c.test == Test::decode(0, cell.test.tokens))
                .or_else(|| block.iter().find(|c| c.test == Test::decode(0, 0)))
                .and_then(|c| Some((c.test.depth, c.row(row.approach)?)));
            table.add_row(cells_of(cell, row, decode).into_iter().fold(
                vec![test],
                |mut all, text| {
                    all.push(text);
                    all
                },
            ));
        }
    }
    table
}

fn cells_of(cell: &Cell, row: &Row, decode: Option<(u32, &Row)>) -> Vec<String> {
    let test = cell.test;
    let none = String::new;
    let spread = format!("{:.0}%", 100.0 * row.time.relative());
    let time = match test.work {
        Work::Prompt => format!("{:.0}", row.time.median * 1e3),
        Work::FirstToken => format!("{:.2} s", row.time.median),
        Work::Decode => none(),
    };
    let speed = match test.work {
        Work::FirstToken => none(),
        _ => rate(row.speed(test).value),
    };
    let answer = match test.work {
        Work::Prompt => end_to_end(row, decode.map(|(_, row)| row), ANSWER)
            .map_or_else(none, |s| format!("{s:.2}")),
        _ => none(),
    };
    let ours = match cell.ours() {
        Some(ours) if !row.approach.is_ours() => multiple(ours.times(row)),
        _ => none(),
    };
    // from one load with the generation after it: it is not known which of the two took the bytes
    let behind = decode.is_some_and(|(at, _)| at > 0);
    let streamed = row.counted.as_ref().map(|c| c.bytes_streamed);
    let streamed = match streamed {
        Some(bytes) if row.approach == Approach::Pipeshard && test.depth == 0 && !behind => {
            let per = if test.work == Work::Decode { "/t" } else { "" };
            format!("{:.2}{per}", bytes as f64 / 1e9)
        }
        _ => none(),
    };
    let bound = match cell.row(Approach::Pipeshard) == Some(row) {
        true => cell
            .of_bound(row)
            .map_or_else(none, |r| format!("{:.0}%", r.value * 100.0)),
        false => none(),
    };
    let peak = row.peak.map_or_else(
        || "–".to_owned(),
        |bytes| {
            let mark = if row.over > 0 { "!" } else { "" };
            format!("{}{mark}", bytes.div_ceil(MIB))
        },
    );
    vec![
        row.approach.title().to_owned(),
        setting_text(&row.setting, row.ubatch),
        peak,
        time,
        speed,
        spread,
        answer,
        ours,
        streamed,
        bound,
    ]
}

/// Tokens per second in three or four digits.
pub fn rate(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn multiple(ratio: Ratio) -> String {
    format!("{:.2}×", ratio.value)
}

fn verdict_table(verdicts: &[Verdict]) -> Table {
    let mut table = table(&["what", "target", "worst", "where", "met", ""], 6);
    for verdict in verdicts {
        let met = match verdict.met {
            Met::Yes => "met",
            Met::WithinSpread => "within spread",
            Met::No => "NOT met",
            Met::NotMeasured => "not measured",
        };
        let (met_in, all) = verdict.cells;
        table.add_row([
            verdict.what.clone(),
            verdict.target.clone(),
            verdict.worst.clone(),
            verdict.at.clone(),
            met.to_owned(),
            match all {
                0 => String::new(),
                _ => format!("{met_in}/{all}"),
            },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::analysis::{cells, tests::measured};
    use super::super::types::{Measurement, Outcome};
    use super::super::verdicts::verdicts;
    use super::*;

    /// A cell of an imagined machine, with a placement that took too much.
    fn measurements() -> Vec<Measurement> {
        let model = "qwen3-30b-a3b q4_0".to_owned();
        let budget = Some(4u64 << 30);
        let mut all = Vec::new();
        let mut add = |approach, setting: &str, ubatch, test: Test, seconds: &[f64], peak: u64| {
            let mut m = measured(approach, setting, 1, seconds);
            m.model.clone_from(&model);
            m.budget = m.budget.and(budget);
            m.ubatch = ubatch;
            m.test = test;
            m.peak = Some(peak * MIB);
            if let Some(over) = m.budget.and_then(|b| (peak * MIB).checked_sub(b + 1)) {
                m.outcome = Outcome::OverBudget { bytes: over + 1 };
            }
            if let Some(counted) = &mut m.counted {
                counted.bytes_streamed = match test.work {
                    Work::Prompt => 11_300_000_000,
                    _ => 0,
                };
            }
            all.push(m);
        };
        let (pp, tg, load) = (
            Test::prompt(4096),
            Test::decode(16, 0),
            Test::first_token(32),
        );
        add(
            Approach::AllInVram,
            "",
            Some(4096),
            pp,
            &[0.19, 0.20],
            18553,
        );
        add(Approach::PipeshardAll, "", Some(4096), pp, &[0.195], 18560);
        add(Approach::FitMapped, "", Some(2048), pp, &[3.1, 3.3], 4049);
        add(Approach::FitMapped, "", Some(2048), tg, &[2.9], 3900);
        add(
            Approach::Search,
            "ffn 26, head",
            Some(4096),
            pp,
            &[0.41],
            4160,
        );
        add(
            Approach::Search,
            "ffn 27, head",
            Some(4096),
            pp,
            &[0.55, 0.56],
            4080,
        );
        add(
            Approach::Search,
            "ffn 27, head",
            Some(4096),
            tg,
            &[2.7],
            4080,
        );
        add(Approach::Pipeshard, "", None, pp, &[0.24, 0.25], 4090);
        add(Approach::Pipeshard, "", Some(4096), pp, &[0.23], 4090);
        add(Approach::Pipeshard, "", None, tg, &[2.6], 4090);
        add(Approach::FitMapped, "", Some(2048), load, &[3.0], 4000);
        add(Approach::Pipeshard, "", None, load, &[3.5], 4097);
        all
    }

    fn rendered() -> String {
        let machine = Machine {
            device: "An imagined card".to_owned(),
            cpu: "an imagined processor".to_owned(),
            threads: 16,
            context: 527 * MIB,
            memory_source: "NVML, sampled every 5 ms".to_owned(),
            link_pinned: 55e9,
            link_registered: 54.8e9,
            link_pageable: 7.9e9,
            link_back: 53e9,
            register_rate: 31e9,
            ..Machine::default()
        };
        let cells = cells(
            &measurements(),
            &["qwen3-30b-a3b q4_0".to_owned()],
            &machine,
        );
        let verdicts = verdicts(&cells, |_| false);
        let notes = ["qwen3-30b-a3b q4_0, 8 GiB, stock --fit, locked: time was up".to_owned()];
        render(&machine, &cells, &verdicts, &notes)
    }

    #[test]
    fn shows_a_table_that_fits() {
        let text = rendered();
        let widest = text.lines().map(|l| l.chars().count()).max();
        assert!(widest <= Some(120), "{widest:?}\n{text}");
        insta::assert_snapshot!(text);
    }
}
