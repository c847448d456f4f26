//! Whether what was to be reached was.

use serde::Serialize;

use super::analysis::{Cell, Ratio};
use super::targets::{Figure, Kind, Target, TARGETS};
use super::types::{budget_text, Approach, Test};

impl Figure {
    fn at_most(self) -> bool {
        matches!(
            self,
            Figure::LoadTime | Figure::Peak | Figure::Unsteady | Figure::Planning
        )
    }

    fn of(self, cell: &Cell) -> Option<Ratio> {
        let plain = |value: f64| Ratio {
            value,
            deviation: 0.0,
        };
        match self {
            Figure::OfBound => cell.of_bound(cell.row(Approach::Pipeshard)?),
            Figure::OverBest => Some(cell.row(Approach::Pipeshard)?.times(cell.best_baseline()?)),
            Figure::OverLayers => {
                let ours = cell.row(Approach::Pipeshard)?;
                Some(ours.times(cell.row(Approach::Layers)?))
            }
            Figure::OverFit => {
                let ours = cell.row(Approach::Pipeshard)?;
                Some(ours.times(cell.row(Approach::FitMapped)?))
            }
            Figure::OfOverlap => {
                let theirs = cell.row(Approach::SamePlacement)?;
                let (ours, bound) = cell.twin.as_ref()?;
                let ratio = ours.times(theirs);
                let overlap = bound.overlap();
                Some(Ratio {
                    value: ratio.value / overlap,
                    deviation: ratio.deviation / overlap,
                })
            }
            Figure::OverStockInVram => {
                let ours = cell.row(Approach::PipeshardAll)?;
                Some(ours.times(cell.row(Approach::AllInVram)?))
            }
            Figure::LoadTime => {
                let ours = cell.row(Approach::Pipeshard)?;
                Some(cell.row(Approach::FitMapped)?.times(ours))
            }
            Figure::Peak => {
                let peak = cell.row(Approach::Pipeshard)?.peak?;
                Some(plain(peak as f64 / cell.budget? as f64))
            }
            Figure::Unsteady => {
                let counted = cell.row(Approach::Pipeshard)?.counted.as_ref()?;
                Some(plain((counted.reallocations + counted.other_waits) as f64))
            }
            Figure::Planning => {
                let counted = cell.row(Approach::Pipeshard)?.counted.as_ref()?;
                Some(plain(counted.planning_seconds?))
            }
        }
    }

    /// A value of this figure.
    fn text(self, value: f64) -> String {
        match self {
            Figure::OfBound | Figure::OfOverlap => format!("{:.0} %", value * 100.0),
            Figure::OverBest | Figure::OverLayers | Figure::OverFit | Figure::LoadTime => {
                format!("{value:.2}×")
            }
            Figure::OverStockInVram => format!("{:.1} %", value * 100.0),
            Figure::Peak => format!("{:.2} %", value * 100.0),
            Figure::Unsteady => format!("{value:.0}"),
            Figure::Planning => format!("{value:.2} s"),
        }
    }

    /// What it is a part or a multiple of.
    fn unit(self) -> &'static str {
        match self {
            Figure::OfBound => "of the bound",
            Figure::OfOverlap => "of overlap's gain",
            Figure::OverBest => "best stock",
            Figure::OverLayers => "-ngl",
            Figure::OverFit => "default --fit",
            Figure::OverStockInVram => "of stock",
            Figure::LoadTime => "mmap's time",
            Figure::Peak => "of the budget",
            Figure::Unsteady => "growths and waits",
            Figure::Planning => "for a context",
        }
    }
}

/// Whether a target was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Met {
    /// In every cell.
    Yes,
    /// Not in every cell, but where not, by less than one standard deviation.
    WithinSpread,
    /// No.
    No,
    /// Nothing was measured that tells.
    NotMeasured,
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What it is about.
    pub what: String,
    /// What was to be reached.
    pub target: String,
    /// The worst that was measured.
    pub worst: String,
    /// Where.
    pub at: String,
    /// Cells that met it, and all.
    pub cells: (usize, usize),
    /// Whether it was met.
    pub met: Met,
}

/// Looks at every target. `is_mixture` tells of a model, by its name, whether it has experts.
pub fn verdicts(cells: &[Cell], is_mixture: impl Fn(&str) -> bool) -> Vec<Verdict> {
    let verdict = |target: &Target| {
        let applies = |cell: &&Cell| {
            let kind = match target.kind {
                Kind::Any => true,
                Kind::Dense => !is_mixture(&cell.model),
                Kind::Mixture => is_mixture(&cell.model),
            };
            let work = target.work.is_none_or(|work| work == cell.test.work);
            let (from, to) = target.tokens;
            let (shallow, deep) = target.depth;
            let depth = (shallow..=deep).contains(&cell.test.depth);
            let sequences = target.sequences.is_none_or(|n| n == cell.test.sequences);
            kind && work && depth && sequences && (from..=to).contains(&cell.test.tokens)
        };
        let sign = if target.figure.at_most() { -1.0 } else { 1.0 };
        // by how much the target is exceeded, in its own direction
        let margin = |ratio: &Ratio| sign * (ratio.value - target.limit);
        let found: Vec<(Ratio, &Cell)> = cells
            .iter()
            .filter(applies)
            .filter_map(|cell| Some((target.figure.of(cell)?, cell)))
            .collect();
        let met = |(ratio, _): &&(Ratio, &Cell)| margin(ratio) >= 0.0;
        let close = |(ratio, _): &(Ratio, &Cell)| margin(ratio) + ratio.deviation >= 0.0;
        let worst = found
            .iter()
            .min_by(|a, b| margin(&a.0).total_cmp(&margin(&b.0)));
        let count = found.iter().filter(met).count();
        let relation = if target.figure.at_most() {
            "≤"
        } else {
            "≥"
        };
        Verdict {
            what: target.what.to_owned(),
            target: format!(
                "{relation} {} {}",
                target.figure.text(target.limit),
                target.figure.unit()
            ),
            worst: worst.map_or_else(String::new, |(ratio, _)| {
                let spread = match ratio.deviation > 0.0 {
                    true => format!(
                        " ±{:.0} %",
                        100.0 * ratio.deviation / ratio.value.max(1e-12)
                    ),
                    false => String::new(),
                };
                target.figure.text(ratio.value) + &spread
            }),
            at: worst.map_or_else(String::new, |(_, cell)| {
                format!(
                    "{}, {}, {}",
                    cell.model,
                    budget_text(cell.budget),
                    cell.test
                )
            }),
            cells: (count, found.len()),
            met: match (count == found.len(), found.iter().all(close)) {
                _ if found.is_empty() => Met::NotMeasured,
                (true, _) => Met::Yes,
                (false, true) => Met::WithinSpread,
                (false, false) => Met::No,
            },
        }
    };
    let all = TARGETS.iter().map(|target| (target, verdict(target)));
    all.filter(|(target, verdict)| !target.further || verdict.met != Met::NotMeasured)
        .map(|(_, verdict)| verdict)
        .chain(one_token_or_two(cells))
        .collect()
}

/// A pass of one token is never slower than a pass of two: it could be computed as that. None where neither was measured.
fn one_token_or_two(cells: &[Cell]) -> Option<Verdict> {
    let of = |cell: &Cell, tokens| {
        (cell.test == Test::prompt(tokens)).then(|| cell.row(Approach::Pipeshard).cloned())?
    };
    let pairs = cells.iter().filter_map(|cell| {
        let one = of(cell, 1)?;
        let two = cells.iter().find_map(|other| {
            let same = other.model == cell.model && other.budget == cell.budget;
            same.then(|| of(other, 2))?
        })?;
        Some((two.times(&one), cell))
    });
    let pairs: Vec<(Ratio, &Cell)> = pairs.collect();
    let (worst, cell) = pairs
        .iter()
        .max_by(|a, b| a.0.value.total_cmp(&b.0.value))?;
    let close = |(ratio, _): &(Ratio, &Cell)| ratio.value - ratio.deviation <= 1.0;
    let met = pairs.iter().filter(|(ratio, _)| ratio.value <= 1.0).count();
    Some(Verdict {
        what: "one token or two".to_owned(),
        target: "≤ 1.00× a pass of two".to_owned(),
        worst: format!(
            "{:.2}× ±{:.0} %",
            worst.value,
            worst.deviation / worst.value * 100.0
        ),
        at: format!("{}, {}", cell.model, budget_text(cell.budget)),
        cells: (met, pairs.len()),
        met: match (met == pairs.len(), pairs.iter().all(close)) {
            (true, _) => Met::Yes,
            (false, true) => Met::WithinSpread,
            (false, false) => Met::No,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::analysis::{cells, tests::measured};
    use super::super::types::{Machine, Measurement, Outcome};
    use super::*;

    fn judge(measurements: &[Measurement], what: &str) -> Vec<Verdict> {
        let machine = Machine {
            link_pinned: 1000.0,
            ..Machine::default()
        };
        let cells = cells(measurements, &["m".to_owned()], &machine);
        let all = verdicts(&cells, |_| false);
        all.into_iter().filter(|v| v.what == what).collect()
    }

    #[test]
    fn a_target_is_met_missed_or_within_the_spread() {
        let dense = |ours: &[f64]| {
            let all = [
                measured(Approach::AllInVram, "", 1, &[1.0]),
                measured(Approach::Search, "ffn 1", 1, &[1.3]),
                measured(Approach::Pipeshard, "", 1, ours),
            ];
            let verdicts = judge(&all, "dense prompt, 512");
            verdicts.iter().map(|v| v.met).collect::<Vec<_>>()
        };
        // the bound is 1 s: the link and the GPU both take that long
        assert_eq!(dense(&[1.0, 1.0]), [Met::Yes, Met::Yes]);
        assert_eq!(dense(&[1.05, 1.05]), [Met::No, Met::Yes]);
        assert_eq!(dense(&[1.0, 1.1]), [Met::WithinSpread, Met::Yes]);
        assert_eq!(dense(&[1.2, 1.2]), [Met::No, Met::No]);
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let verdicts = judge(
            &[measured(Approach::Pipeshard, "", 1, &[1.0])],
            "generation",
        );
        assert_eq!(verdicts[0].met, Met::NotMeasured);
        assert_eq!(verdicts[0].cells, (0, 0));
    }

    #[test]
    fn pipeshard_over_its_budget_misses_the_target_for_memory() {
        let mut ours = measured(Approach::Pipeshard, "", 1, &[1.0]);
        assert_eq!(
            judge(&[ours.clone()], "peak device memory")[0].met,
            Met::Yes
        );
        ours.peak = Some(101);
        ours.outcome = Outcome::OverBudget { bytes: 1 };
        let verdict = &judge(&[ours], "peak device memory")[0];
        assert_eq!(verdict.met, Met::No);
        assert!(verdict.worst.contains("101.00 %"), "{verdict:?}");
        assert!(verdict.at.contains("pp512"), "{verdict:?}");
    }

    #[test]
    fn one_token_is_not_slower_than_two() {
        let pass = |tokens, seconds: &[f64]| {
            let mut m = measured(Approach::Pipeshard, "", 1, seconds);
            m.test = Test::prompt(tokens);
            m
        };
        let judged = |one: &[f64], two: &[f64]| {
            let verdicts = judge(&[pass(1, one), pass(2, two)], "one token or two");
            verdicts.iter().map(|v| v.met).collect::<Vec<_>>()
        };
        assert_eq!(judged(&[1.0, 1.0], &[1.1, 1.1]), [Met::Yes]);
        assert_eq!(judged(&[1.3, 1.3], &[1.0, 1.0]), [Met::No]);
        assert_eq!(judged(&[1.01, 1.2], &[1.0, 1.2]), [Met::WithinSpread]);
        assert!(judge(&[pass(1, &[1.0])], "one token or two").is_empty());
    }

    #[test]
    fn load_is_measured_the_other_way_round() {
        let run = |approach, seconds| {
            let mut m = measured(approach, "", 1, &[seconds]);
            m.test = super::super::types::Test::first_token(32);
            m
        };
        let slow = [run(Approach::FitMapped, 1.0), run(Approach::Pipeshard, 1.2)];
        assert_eq!(judge(&slow, "load and first token")[0].met, Met::No);
        let fast = [
            run(Approach::FitMapped, 1.0),
            run(Approach::Pipeshard, 1.05),
        ];
        assert_eq!(judge(&fast, "load and first token")[0].met, Met::Yes);
    }
}
