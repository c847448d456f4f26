//! How far the placement that the planner chose is from the best of those that it was told to take.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::analysis::Stats;
use super::table::{rate, table, ANSWER};
use super::types::{budget_text, Approach, Measurement, Predicted, Test, Work};

/// The chosen placement may be slower than the best by this part.
const WITHIN: f64 = 0.05;

/// One placement at one point: a prompt and the generation after it, from one load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placed {
    /// Its name; empty for what the planner chose by itself.
    pub name: String,
    /// Seconds to the first token.
    pub ttft: Stats,
    /// Seconds for a generated token.
    pub token: Stats,
    /// What was predicted.
    pub predicted: Option<Predicted>,
}

impl Placed {
    /// Seconds for the prompt and an answer.
    pub fn answer(&self) -> f64 {
        self.ttft.median + f64::from(ANSWER) * self.token.median
    }
}

/// A model, a budget and a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The model.
    pub model: String,
    /// The budget in bytes.
    pub budget: Option<u64>,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// All placements that were measured.
    pub placements: Vec<Placed>,
}

/// By how much the chosen placement is slower than the best.
#[derive(Debug, Clone, PartialEq)]
struct Gap<'a> {
    part: f64,
    best: &'a str,
}

impl Point {
    fn chosen(&self) -> Option<&Placed> {
        self.placements.iter().find(|p| p.name.is_empty())
    }

    fn gap(&self, seconds: impl Fn(&Placed) -> f64) -> Option<Gap<'_>> {
        let chosen = seconds(self.chosen()?);
        let best = self
            .placements
            .iter()
            .min_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
        Some(Gap {
            part: chosen / seconds(best).max(1e-12) - 1.0,
            best: &best.name,
        })
    }
}

/// All points with a measured prompt and the generation after it.
pub fn points(measurements: &[Measurement]) -> Vec<Point> {
    let ours = || {
        let valid = measurements.iter().filter(|m| m.is_valid());
        valid.filter(|m| m.approach == Approach::Pipeshard && m.ubatch.is_none())
    };
    let keys: BTreeSet<(String, Option<u64>, u32)> = ours()
        .filter(|m| m.test.work == Work::Decode && m.test.depth > 0 && m.test.sequences == 1)
        .map(|m| (m.model.clone(), m.budget, m.test.depth))
        .collect();
    let point = |(model, budget, prompt): (String, Option<u64>, u32)| {
        let here = || ours().filter(|m| m.model == model && m.budget == budget);
        let names: BTreeSet<&str> = here().map(|m| m.setting.as_str()).collect();
        let placed = |name: &str| {
            let of = |test: Test| {
                let mut seconds = Vec::new();
                let mut predicted = None;
                for m in here().filter(|m| m.setting == name && m.test.comparable() == test) {
                    let unit = match test.work {
                        Work::Decode => f64::from(m.test.tokens.max(1)),
                        _ => 1.0,
                    };
                    seconds.extend(m.seconds.iter().map(|s| s / unit));
                    predicted = m.counted.as_ref().and_then(|c| c.predicted).or(predicted);
                }
                Some((Stats::of(&seconds)?, predicted))
            };
            let (ttft, predicted) = of(Test::prompt(prompt))?;
            let (token, _) = of(Test::decode(0, prompt))?;
            Some(Placed {
                name: name.to_owned(),
                ttft,
                token,
                predicted,
            })
        };
        let placements = names.into_iter().filter_map(placed).collect();
        Point {
            placements,
            model: model.clone(),
            budget,
            prompt,
        }
    };
    let points = keys.into_iter().map(point);
    points.filter(|p| !p.placements.is_empty()).collect()
}

fn name_of(name: &str) -> &str {
    match name {
        "" => "chosen",
        name => name,
    }
}

fn at(point: &Point, name: &str) -> String {
    format!(
        "{}, {}, pp{}, {}",
        point.model,
        budget_text(point.budget),
        point.prompt,
        name_of(name)
    )
}

pub(super) fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

pub(super) fn verdict(met: bool) -> &'static str {
    if met {
        "met"
    } else {
        "NOT met"
    }
}

/// What the points say, for people; nothing where there are none.
pub fn render(points: &[Point]) -> String {
    let mut text = String::new();
    let compared: Vec<&Point> = points.iter().filter(|p| p.placements.len() > 1).collect();
    if !compared.is_empty() {
        let header = [
            "model", "budget", "best", "prompt", "TTFT", "token/s", "E2EL", "behind", "of pp",
            "of tg",
        ];
        let mut table = table(&header, 3);
        for point in &compared {
            let Some(chosen) = point.chosen() else {
                continue;
            };
            let gap = point.gap(Placed::answer);
            let part = |gap: Option<Gap>| gap.map_or_else(String::new, |g| percent(g.part));
            table.add_row([
                point.model.clone(),
                budget_text(point.budget),
                gap.as_ref()
                    .map_or_else(String::new, |g| name_of(g.best).to_owned()),
                point.prompt.to_string(),
                format!("{:.0}", chosen.ttft.median * 1e3),
                rate(1.0 / chosen.token.median.max(1e-12)),
                format!("{:.2}", chosen.answer()),
                part(gap),
                part(point.gap(|p| p.ttft.median)),
                part(point.gap(|p| p.token.median)),
            ]);
        }
        let _ = write!(
            text,
            "\nThe placement that was chosen, and the best of all that were tried\n{table}\n\
             TTFT: ms. E2EL: s for the prompt and {ANSWER} tokens. behind: by how much the chosen placement is slower than the\n\
             best for both together; of pp, of tg: than the best for the prompt, for generation alone.\n"
        );
        let gaps = compared
            .iter()
            .filter_map(|p| Some((p.gap(Placed::answer)?, *p)));
        let gaps: Vec<(Gap, &Point)> = gaps.collect();
        let within = gaps.iter().filter(|(gap, _)| gap.part <= WITHIN).count();
        let worst = gaps.iter().max_by(|a, b| a.0.part.total_cmp(&b.0.part));
        if let Some((gap, point)) = worst {
            let _ = writeln!(
                text,
                "Chosen within {} of the best: at {within} of {} points, at worst {} behind ({}): {}",
                percent(WITHIN),
                gaps.len(),
                percent(gap.part),
                at(point, gap.best),
                verdict(within == gaps.len())
            );
        }
    }
    text
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    budget_bytes: Option<u64>,
    prompt: u32,
    placement: &'a str,
    ttft_seconds: f64,
    ttft_relative_deviation: f64,
    tokens_per_second: f64,
    tokens_relative_deviation: f64,
    end_to_end_seconds: f64,
    predicted_ttft_seconds: Option<f64>,
    predicted_tokens_per_second: Option<f64>,
}

/// Writes a line for each placement at each point.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_csv(path: &Path, points: &[Point]) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    for point in points {
        for placed in &point.placements {
            writer.serialize(Line {
                model: &point.model,
                budget_bytes: point.budget,
                prompt: point.prompt,
                placement: name_of(&placed.name),
                ttft_seconds: placed.ttft.median,
                ttft_relative_deviation: placed.ttft.relative(),
                tokens_per_second: 1.0 / placed.token.median.max(1e-12),
                tokens_relative_deviation: placed.token.relative(),
                end_to_end_seconds: placed.answer(),
                predicted_ttft_seconds: placed.predicted.and_then(|p| p.ttft),
                predicted_tokens_per_second: placed.predicted.and_then(|p| p.tps),
            })?;
        }
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::measured;
    use super::*;

    fn both(name: &str, ttft: f64, token: f64, predicted: (f64, f64)) -> [Measurement; 2] {
        let mut prompt = measured(Approach::Pipeshard, name, 1, &[ttft]);
        prompt.test = Test::prompt(1000);
        let mut decode = measured(Approach::Pipeshard, name, 1, &[token * 10.0]);
        decode.test = Test::decode(10, 1000);
        for m in [&mut prompt, &mut decode] {
            let counted = m.counted.as_mut().unwrap();
            counted.predicted = Some(Predicted {
                ttft: Some(predicted.0),
                tps: Some(predicted.1),
            });
        }
        [prompt, decode]
    }

    #[test]
    fn the_chosen_placement_is_compared_with_the_best_from_one_load() {
        let all = [
            both("", 1.0, 0.1, (1.1, 10.0)),
            both("kv-first", 2.0, 0.05, (1.0, 20.0)),
            both("layers-first", 0.5, 0.2, (0.5, 4.0)),
        ]
        .concat();
        let points = points(&all);
        assert_eq!(points.len(), 1);
        let gap = points[0].gap(Placed::answer).unwrap();
        assert_eq!(gap.best, "kv-first");
        // 13.8 s against 8.4 s
        assert!((gap.part - (13.8 / 8.4 - 1.0)).abs() < 1e-9, "{gap:?}");
        let prompt = points[0].gap(|p| p.ttft.median).unwrap();
        assert_eq!((prompt.best, prompt.part), ("layers-first", 1.0));
        let text = render(&points);
        assert!(
            text.contains("at 0 of 1 points, at worst 64 % behind"),
            "{text}"
        );
        assert!(text.lines().all(|l| l.chars().count() < 170), "{text}");
    }

    #[test]
    fn without_a_generation_behind_it_there_is_no_point() {
        let [prompt, _] = both("", 1.0, 0.1, (1.0, 10.0));
        assert!(points(&[prompt]).is_empty());
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn a_line_for_each_placement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.csv");
        let all = [
            both("", 1.0, 0.1, (1.1, 10.0)),
            both("a", 2.0, 0.1, (1.1, 10.0)),
        ]
        .concat();
        write_csv(&path, &points(&all)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(",1000,chosen,1.0,0.0,10.0,"), "{text}");
    }
}
