//! Compares the measurements with each other.

use std::collections::BTreeSet;

use serde::Serialize;

use super::types::{Approach, Counted, Machine, Measurement, Outcome, Test, Work};

/// Median and standard deviation of some repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// The median: on a machine that others share, one repetition in some is disturbed.
    pub median: f64,
    /// The standard deviation; 0 for a single repetition.
    pub deviation: f64,
    /// How many.
    pub count: usize,
}

impl Stats {
    /// Of these values; none where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let square = |v: &f64| (v - mean) * (v - mean);
        let deviation = match count {
            1 => 0.0,
            _ => (values.iter().map(square).sum::<f64>() / (count - 1) as f64).sqrt(),
        };
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
        Some(Stats {
            median,
            deviation,
            count,
        })
    }

    /// Standard deviation as a part of the median.
    pub fn relative(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            self.deviation / self.median.abs()
        }
    }
}

/// A figure and by how much it may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The figure.
    pub value: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

/// One way to run a test, all its repetitions together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// How.
    pub approach: Approach,
    /// The placement; empty where llama.cpp or the plan chose.
    pub setting: String,
    /// Tokens per ubatch; none where the plan chose.
    pub ubatch: Option<u32>,
    /// Seconds for the prompt, for one generated token, or to the first token.
    pub time: Stats,
    /// The most device memory, less the bare context, in bytes.
    pub peak: Option<u64>,
    /// Bytes beyond the budget; for pipeshard only, baselines are thrown out.
    pub over: u64,
    /// What pipeshard counted.
    pub counted: Option<Counted>,
}

impl Row {
    /// Tokens per second, with their deviation.
    pub fn speed(&self, test: Test) -> Ratio {
        let tokens = match test.work {
            Work::Decode => f64::from(test.sequences),
            _ => f64::from(test.tokens) * f64::from(test.sequences),
        };
        let value = tokens / self.time.median.max(1e-12);
        Ratio {
            value,
            deviation: value * self.time.relative(),
        }
    }

    /// How many times as fast as `other` this is.
    pub fn times(&self, other: &Row) -> Ratio {
        let value = other.time.median / self.time.median.max(1e-12);
        let spread = self.time.relative().hypot(other.time.relative());
        Ratio {
            value,
            deviation: value * spread,
        }
    }
}

/// The least time that a prompt or a generated token can take with what was streamed for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// Seconds to compute. A prompt: with everything in VRAM, of the faster one of stock and pipeshard. A token: the CPU's share,
    /// which it cannot read faster, and then the device's, by the same measure.
    pub compute: f64,
    /// Seconds to copy what was streamed.
    pub link: f64,
    /// Seconds in which host memory delivers what the CPU and the link read of it. None for prompts: the CPU reads next to nothing.
    pub host_memory: Option<f64>,
}

impl Bound {
    /// Seconds: whichever takes longer.
    pub fn seconds(&self) -> f64 {
        let longer = self.compute.max(self.link);
        longer.max(self.host_memory.unwrap_or(0.0))
    }

    /// Of a generated token; `all_in_vram` are its seconds with everything in VRAM.
    fn of_token(counted: &Counted, machine: &Machine, all_in_vram: f64) -> Option<Self> {
        let (streamed, read) = (counted.bytes_streamed as f64, counted.read as f64);
        let by_cpu = (counted.read_from_host as f64 - streamed).max(0.0);
        if machine.cpu_read <= 0.0 || read <= 0.0 {
            return None;
        }
        Some(Bound {
            compute: by_cpu / machine.cpu_read + all_in_vram * (read - by_cpu).max(0.0) / read,
            link: streamed / machine.link(),
            host_memory: Some((streamed + by_cpu) / machine.host_memory()),
        })
    }

    /// All that overlapping copies with computation can give: one after the other, over the longer of the two.
    pub fn overlap(&self) -> f64 {
        (self.compute + self.link) / self.seconds().max(1e-12)
    }
}

/// A test at a budget: the best of each approach.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The model.
    pub model: String,
    /// The budget; none for everything in VRAM.
    pub budget: Option<u64>,
    /// The test; a generation's tokens are left out.
    pub test: Test,
    /// The best valid setting of each approach. For pipeshard that is the ubatch that the plan chose, where it was measured.
    pub rows: Vec<Row>,
    /// The best of pipeshard where a given ubatch did better than the plan's.
    pub given: Option<Row>,
    /// pipeshard with the ubatch that stock with the same placement was given, and its bound.
    pub twin: Option<(Row, Bound)>,
    /// What was thrown out, or failed, and why.
    pub rejected: Vec<String>,
    /// The bound of pipeshard's row.
    pub bound: Option<Bound>,
}

impl Cell {
    /// The row of an approach.
    pub fn row(&self, approach: Approach) -> Option<&Row> {
        self.rows.iter().find(|row| row.approach == approach)
    }

    /// pipeshard's row.
    pub fn ours(&self) -> Option<&Row> {
        self.row(Approach::Pipeshard)
            .or_else(|| self.row(Approach::PipeshardAll))
    }

    /// The fastest baseline.
    pub fn best_baseline(&self) -> Option<&Row> {
        let rows = self.rows.iter().filter(|row| row.approach.is_baseline());
        rows.min_by(|a, b| a.time.median.total_cmp(&b.time.median))
    }

    /// Part of the bound that pipeshard reached, 1 at most in theory.
    pub fn of_bound(&self, row: &Row) -> Option<Ratio> {
        let bound = self.bound_of(row)?;
        let value = bound.seconds() / row.time.median.max(1e-12);
        Some(Ratio {
            value,
            deviation: value * row.time.relative(),
        })
    }

    fn bound_of(&self, row: &Row) -> Option<Bound> {
        (row.approach == Approach::Pipeshard)
            .then_some(self.bound)
            .flatten()
    }
}

/// All settings of one test, each with all its repetitions.
pub fn rows(
    measurements: &[Measurement],
    model: &str,
    budget: Option<u64>,
    test: Test,
) -> Vec<Row> {
    let mut rows: Vec<(Row, Vec<f64>)> = Vec::new();
    let of_cell = measurements.iter().filter(|m| {
        m.model == model && m.budget == budget && m.test.comparable() == test && m.is_valid()
    });
    for m in of_cell {
        let unit = match m.test.work {
            Work::Decode => f64::from(m.test.tokens.max(1)),
            _ => 1.0,
        };
        let over = match m.outcome {
            Outcome::OverBudget { bytes } => bytes,
            _ => 0,
        };
        let seconds = m.seconds.iter().map(|s| s / unit);
        let known = rows.iter_mut().find(|(row, _)| {
            (row.approach, &row.setting, row.ubatch) == (m.approach, &m.setting, m.ubatch)
        });
        match known {
            Some((row, all)) => {
                all.extend(seconds);
                row.peak = row.peak.max(m.peak);
                row.over = row.over.max(over);
            }
            None => {
                let row = Row {
                    approach: m.approach,
                    setting: m.setting.clone(),
                    ubatch: m.ubatch,
                    time: Stats {
                        median: 0.0,
                        deviation: 0.0,
                        count: 0,
                    },
                    peak: m.peak,
                    over,
                    counted: m.counted.clone(),
                };
                rows.push((row, seconds.collect()));
            }
        }
    }
    // a setting that went over the budget in any round is none that keeps to it
    let threw = |row: &Row| {
        measurements.iter().any(|m| {
            m.model == model
                && m.budget == budget
                && m.test.comparable() == test
                && m.approach.is_baseline()
                && matches!(m.outcome, Outcome::OverBudget { .. })
                && (m.approach, &m.setting, m.ubatch) == (row.approach, &row.setting, row.ubatch)
        })
    };
    rows.into_iter()
        .filter(|(row, _)| !threw(row))
        .filter_map(|(row, all)| {
            Some(Row {
                time: Stats::of(&all)?,
                ..row
            })
        })
        .collect()
}

fn fastest<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<&'a Row> {
    rows.min_by(|a, b| a.time.median.total_cmp(&b.time.median))
}

/// Why baselines of a cell do not count.
fn rejections(of_cell: &[&Measurement]) -> Vec<String> {
    let told = of_cell.iter().filter_map(|m| {
        let what = format!(
            "{} {} {}",
            m.test,
            m.approach.title(),
            setting_text(&m.setting, m.ubatch)
        );
        match &m.outcome {
            Outcome::OverBudget { bytes } if m.approach.is_baseline() => Some(format!(
                "{what}: thrown out, {:.0} MiB over the budget",
                (*bytes as f64 / super::MIB as f64).max(1.0)
            )),
            Outcome::Failed { reason } => Some(format!("{what}: failed: {reason}")),
            _ => None,
        }
    });
    told.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A setting and a ubatch in few words.
pub fn setting_text(setting: &str, ubatch: Option<u32>) -> String {
    let ubatch = ubatch.map_or_else(String::new, |u| format!("ub {u}"));
    match (setting.is_empty(), ubatch.is_empty()) {
        (true, true) => String::new(),
        (false, true) => setting.to_owned(),
        (true, false) => ubatch,
        (false, false) => format!("{setting}, {ubatch}"),
    }
}

/// Groups everything for comparison: by model, budget and test, in that order.
pub fn cells(measurements: &[Measurement], models: &[String], machine: &Machine) -> Vec<Cell> {
    let mut cells = Vec::new();
    for model in models {
        let of_model = || measurements.iter().filter(|m| &m.model == model);
        let keys: BTreeSet<(Option<u64>, Test)> = of_model()
            .map(|m| (m.budget, m.test.comparable()))
            .collect();
        for (budget, test) in keys {
            let all = rows(measurements, model, budget, test);
            let of = |approach| {
                all.iter()
                    .filter(move |row: &&Row| row.approach == approach)
            };
            let mut best = Vec::new();
            let mut given = None;
            for approach in Approach::ALL {
                let fast = fastest(of(approach));
                let row = match approach {
                    Approach::Pipeshard => {
                        let plans =
                            of(approach).find(|row| row.ubatch.is_none() && row.setting.is_empty());
                        if let (Some(plans), Some(fast)) = (plans, fast) {
                            given = (fast.time.median < plans.time.median).then(|| fast.clone());
                        }
                        plans.or(fast)
                    }
                    _ => fast,
                };
                best.extend(row.cloned());
            }
            let same = best.iter().find(|r| r.approach == Approach::SamePlacement);
            let twin =
                same.and_then(|same| of(Approach::Pipeshard).find(|r| r.ubatch == same.ubatch));
            let twin = twin.cloned();
            let ceiling = rows(measurements, model, None, test);
            let compute = fastest(ceiling.iter().filter(|row| {
                matches!(row.approach, Approach::AllInVram | Approach::PipeshardAll)
            }));
            let link = machine.link();
            let bound_of = |row: &Row| {
                let (counted, compute) = (row.counted.as_ref()?, compute?.time.median);
                match test.work {
                    _ if link <= 0.0 => None,
                    Work::Prompt => Some(Bound {
                        compute,
                        link: counted.bytes_streamed as f64 / link,
                        host_memory: None,
                    }),
                    Work::Decode if test.depth == 0 && test.sequences == 1 => {
                        Bound::of_token(counted, machine, compute)
                    }
                    _ => None,
                }
            };
            let ours = best.iter().find(|r| r.approach == Approach::Pipeshard);
            let bound = ours.and_then(bound_of);
            let twin = twin.and_then(|row| bound_of(&row).map(|bound| (row, bound)));
            let of_cell: Vec<&Measurement> = of_model()
                .filter(|m| m.budget == budget && m.test.comparable() == test)
                .collect();
            cells.push(Cell {
                model: model.clone(),
                budget,
                test,
                rows: best,
                given,
                twin,
                rejected: rejections(&of_cell),
                bound,
            });
        }
    }
    cells
}

/// Seconds from the end of the request to the last of `tokens` generated ones.
pub fn end_to_end(prompt: &Row, decode: Option<&Row>, tokens: u32) -> Option<f64> {
    Some(prompt.time.median + decode?.time.median * f64::from(tokens))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A measurement of a prompt of 512 tokens.
    pub fn measured(approach: Approach, setting: &str, round: u32, seconds: &[f64]) -> Measurement {
        Measurement {
            model: "m".to_owned(),
            budget: match approach {
                Approach::AllInVram | Approach::PipeshardAll => None,
                _ => Some(100),
            },
            approach,
            setting: setting.to_owned(),
            ubatch: (!approach.is_ours()).then_some(512),
            test: Test::prompt(512),
            round,
            seconds: seconds.to_vec(),
            peak: Some(90),
            counted: approach.is_ours().then(|| Counted {
                bytes_streamed: 1000,
                ..Counted::default()
            }),
            outcome: Outcome::Valid,
        }
    }

    fn machine() -> Machine {
        Machine {
            link_pinned: 1000.0,
            ..Machine::default()
        }
    }

    fn cell(measurements: &[Measurement]) -> Cell {
        let cells = cells(measurements, &["m".to_owned()], &machine());
        let at_budget = cells.into_iter().find(|c| c.budget.is_some());
        at_budget.unwrap()
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        let stats = Stats::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((stats.median, stats.deviation), (2.0, 1.0));
        assert_eq!(Stats::of(&[5.0]).unwrap().deviation, 0.0);
        // one that was disturbed does not count for the figure, but for its spread
        let disturbed = Stats::of(&[9.0, 2.0, 1.0]).unwrap();
        assert!(disturbed.median == 2.0 && disturbed.deviation > 4.0);
        assert_eq!(Stats::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Stats::of(&[]), None);
    }

    #[test]
    fn rounds_of_a_setting_are_one_row_and_the_best_setting_stands() {
        let cell = cell(&[
            measured(Approach::Search, "ffn 1", 1, &[4.0]),
            measured(Approach::Search, "ffn 1", 2, &[6.0]),
            measured(Approach::Search, "ffn 2", 1, &[7.0]),
            measured(Approach::Pipeshard, "", 1, &[2.0, 2.0]),
        ]);
        let best = cell.best_baseline().unwrap();
        assert_eq!((best.setting.as_str(), best.time.median), ("ffn 1", 5.0));
        let ratio = cell.ours().unwrap().times(best);
        assert_eq!(ratio.value, 2.5);
        assert!(ratio.deviation > 0.5);
    }

    #[test]
    fn a_baseline_over_the_budget_is_thrown_out_and_named() {
        let mut over = measured(Approach::Search, "ffn 0", 1, &[1.0]);
        over.outcome = Outcome::OverBudget { bytes: 3 << 20 };
        let again = measured(Approach::Search, "ffn 0", 2, &[1.0]);
        let cell = cell(&[over, again, measured(Approach::Search, "ffn 1", 1, &[4.0])]);
        assert_eq!(cell.best_baseline().unwrap().setting, "ffn 1");
        let text = cell.rejected.join("\n");
        assert!(
            text.contains("ffn 0, ub 512: thrown out, 3 MiB over"),
            "{text}"
        );
    }

    #[test]
    fn the_bound_is_the_longer_of_link_and_compute() {
        let ours = measured(Approach::Pipeshard, "", 1, &[2.0]);
        let slow_gpu = cell(&[ours.clone(), measured(Approach::AllInVram, "", 1, &[1.5])]);
        let row = slow_gpu.ours().unwrap().clone();
        assert_eq!(slow_gpu.of_bound(&row).unwrap().value, 0.75);
        let fast_gpu = cell(&[ours, measured(Approach::AllInVram, "", 1, &[0.5])]);
        assert_eq!(fast_gpu.of_bound(&row).unwrap().value, 0.5);
        assert_eq!(fast_gpu.bound.unwrap().overlap(), 1.5);
    }

    #[test]
    fn a_tokens_bound_is_the_longest_of_link_memory_and_both_processors_in_turn() {
        let counted = Counted {
            bytes_streamed: 200,
            read_from_host: 600,
            read: 1000,
            ..Counted::default()
        };
        let machine = Machine {
            link_pinned: 100.0,
            cpu_read: 200.0,
            cpu_read_copying: 120.0,
            link_cpu_reading: 60.0,
            ..Machine::default()
        };
        // 400 by the CPU in 2 s, then 600 by the device in 0.6 of its 0.5 s
        let bound = Bound::of_token(&counted, &machine, 0.5).unwrap();
        assert_eq!((bound.compute, bound.link), (2.3, 2.0));
        // 600 at 200 per second: more than both get of it when they read at the same time
        assert_eq!(bound.host_memory, Some(3.0));
        assert_eq!(bound.seconds(), 3.0);
        let unknown = Machine::default();
        assert_eq!(Bound::of_token(&counted, &unknown, 0.5), None);
    }

    #[test]
    fn the_plans_ubatch_stands_and_a_better_one_is_told() {
        let mut given = measured(Approach::Pipeshard, "", 1, &[1.0]);
        given.ubatch = Some(4096);
        let cell = cell(&[given, measured(Approach::Pipeshard, "", 1, &[2.0])]);
        assert_eq!(cell.ours().unwrap().time.median, 2.0);
        assert_eq!(cell.given.unwrap().ubatch, Some(4096));
    }

    #[test]
    fn generations_of_different_length_compare_by_token() {
        let mut short = measured(Approach::FitMapped, "", 1, &[8.0]);
        short.test = Test::decode(8, 0);
        let mut long = measured(Approach::Pipeshard, "", 1, &[32.0]);
        long.test = Test::decode(64, 0);
        let cell = cell(&[short, long]);
        let ratio = cell.ours().unwrap().times(cell.best_baseline().unwrap());
        assert_eq!(ratio.value, 2.0);
        assert_eq!(cell.ours().unwrap().speed(cell.test).value, 2.0);
    }
}
