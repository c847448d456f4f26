//! The results as pictures: time to first token by prompt, generation by budget, speedup by prompt, and both speeds by budget.

use std::collections::BTreeSet;
use std::path::Path;

use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

use super::analysis::Cell;
use super::types::{budget_text, Approach, Test, Work};

const PANEL: (u32, u32) = (460, 340);

/// A line of a panel.
struct Line {
    label: String,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// A chart of a picture.
struct Panel {
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<Line>,
    scale: Scale,
}

/// How values are laid out on both axes.
#[derive(Clone, Copy)]
enum Scale {
    /// By powers, for what doubles from one point to the next.
    Log,
    /// From zero on.
    Linear,
}

fn colour(approach: Approach) -> RGBColor {
    match approach {
        Approach::Pipeshard => RGBColor(0, 90, 181),
        Approach::FitMapped => RGBColor(150, 150, 150),
        Approach::FitLocked => RGBColor(230, 159, 0),
        Approach::Search | Approach::Layers => RGBColor(213, 94, 0),
        Approach::Part => RGBColor(86, 180, 233),
        Approach::HostKv => RGBColor(240, 228, 66),
        Approach::SamePlacement => RGBColor(204, 121, 167),
        Approach::AllInVram | Approach::PipeshardAll => RGBColor(0, 158, 115),
    }
}

const SHOWN: [Approach; 4] = [
    Approach::FitMapped,
    Approach::FitLocked,
    Approach::Search,
    Approach::Pipeshard,
];

fn lines(value: impl Fn(Approach) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |&approach: &Approach| Line {
        label: approach.title().to_owned(),
        colour: colour(approach),
        points: value(approach),
    };
    let lines = SHOWN.iter().map(line);
    lines.filter(|line| !line.points.is_empty()).collect()
}

/// Models and budgets in order.
fn keys(cells: &[Cell]) -> Vec<(&str, u64)> {
    let keys: BTreeSet<(&str, u64)> = cells
        .iter()
        .filter_map(|c| Some((c.model.as_str(), c.budget?)))
        .collect();
    keys.into_iter().collect()
}

fn first_token(cells: &[Cell]) -> Vec<Panel> {
    let panel = |(model, budget): (&str, u64)| Panel {
        title: format!("{model}, {}", budget_text(Some(budget))),
        x: "tokens of the prompt",
        y: "time to first token, s",
        scale: Scale::Log,
        lines: lines(|approach| {
            of(cells, model, Some(budget), Work::Prompt)
                .filter_map(|c| Some((f64::from(c.test.tokens), c.row(approach)?.time.median)))
                .collect()
        }),
    };
    keys(cells).into_iter().map(panel).collect()
}

fn generation(cells: &[Cell]) -> Vec<Panel> {
    let models: BTreeSet<&str> = cells.iter().map(|c| c.model.as_str()).collect();
    let panel = |model: &str| Panel {
        title: model.to_owned(),
        x: "budget, GiB",
        y: "generated tokens per second",
        scale: Scale::Log,
        lines: lines(|approach| {
            let of_model = cells.iter().filter(|c| c.model == model);
            let decodes = of_model.filter(|c| c.test == Test::decode(0, 0));
            decodes
                .filter_map(|c| {
                    let gib = c.budget? as f64 / (1u64 << 30) as f64;
                    Some((gib, c.row(approach)?.speed(c.test).value))
                })
                .collect()
        }),
    };
    models.into_iter().map(panel).collect()
}

fn speedup(cells: &[Cell]) -> Vec<Panel> {
    let panel = |(model, budget): (&str, u64)| Panel {
        title: format!("{model}, {}", budget_text(Some(budget))),
        x: "tokens of the prompt",
        y: "pipeshard, times as fast",
        scale: Scale::Log,
        lines: lines(|approach| {
            of(cells, model, Some(budget), Work::Prompt)
                .filter_map(|c| {
                    let ratio = c.row(Approach::Pipeshard)?.times(c.row(approach)?);
                    Some((f64::from(c.test.tokens), ratio.value))
                })
                .collect()
        })
        .into_iter()
        .filter(|line| line.label != Approach::Pipeshard.title())
        .map(|line| Line {
            label: format!("as {}", line.label),
            ..line
        })
        .collect(),
    };
    keys(cells).into_iter().map(panel).collect()
}

/// The longest prompt and generation by budget, for readers who look at one picture.
fn by_budget(cells: &[Cell]) -> Vec<Panel> {
    let prompts = cells.iter().filter(|c| c.test.work == Work::Prompt);
    let longest = prompts.map(|c| c.test.tokens).max().unwrap_or(0);
    let models: BTreeSet<&str> = cells.iter().map(|c| c.model.as_str()).collect();
    let panel = |model: &str, test: Test, what: &str| Panel {
        title: format!("{model}: {what}"),
        x: "VRAM budget, GiB",
        y: "tokens per second",
        scale: Scale::Linear,
        lines: lines(|approach| {
            let here = cells.iter().filter(|c| c.model == model && c.test == test);
            here.filter_map(|c| {
                let gib = c.budget? as f64 / (1u64 << 30) as f64;
                Some((gib, c.row(approach)?.speed(c.test).value))
            })
            .collect()
        }),
    };
    let panels = models.into_iter().map(|model| {
        [
            panel(
                model,
                Test::prompt(longest),
                &format!("prompt of {longest} tokens"),
            ),
            panel(model, Test::decode(0, 0), "generation"),
        ]
    });
    panels.flatten().collect()
}

fn of<'a>(
    cells: &'a [Cell],
    model: &'a str,
    budget: Option<u64>,
    work: Work,
) -> impl Iterator<Item = &'a Cell> {
    cells
        .iter()
        .filter(move |c| c.model == model && c.budget == budget && c.test.work == work)
}

/// Writes `ttft.svg`, `tps.svg`, `speedup.svg` and `budgets.svg` into a folder; a picture without a line is left out.
///
/// # Errors
/// Where a file cannot be written.
pub fn write_all(folder: &Path, cells: &[Cell]) -> Result<(), String> {
    for (name, panels) in [
        ("ttft.svg", first_token(cells)),
        ("tps.svg", generation(cells)),
        ("speedup.svg", speedup(cells)),
        ("budgets.svg", by_budget(cells)),
    ] {
        let panels: Vec<Panel> = panels.into_iter().filter(|p| !p.lines.is_empty()).collect();
        if !panels.is_empty() {
            let path = folder.join(name);
            draw(&path, &panels).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

fn draw(path: &Path, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((rows, columns)).iter().zip(panels) {
        let all = panel.lines.iter().flat_map(|line| &line.points);
        let (mut x, mut y) = ((f64::MAX, f64::MIN), (f64::MAX, f64::MIN));
        for point in all {
            x = (x.0.min(point.0), x.1.max(point.0));
            y = (y.0.min(point.1), y.1.max(point.1));
        }
        let mut chart = ChartBuilder::on(area);
        chart
            .caption(&panel.title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(48);
        match panel.scale {
            Scale::Log => {
                let x = ((x.0 * 0.85)..(x.1 * 1.15)).log_scale();
                let y = ((y.0 * 0.7)..(y.1 * 1.6)).log_scale();
                draw_panel(&mut chart.build_cartesian_2d(x, y)?, panel)?;
            }
            // the legend has room above the lines
            Scale::Linear => {
                let (x, y) = (0.0..(x.1 * 1.05), 0.0..(y.1 * 1.4));
                draw_panel(&mut chart.build_cartesian_2d(x, y)?, panel)?;
            }
        }
    }
    root.present()?;
    Ok(())
}

fn draw_panel<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    panel: &Panel,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|value| value.to_string())
        .y_label_formatter(&|value| value.to_string())
        .max_light_lines(1)
        .light_line_style(WHITE)
        .label_style(("sans-serif", 11))
        .draw()?;
    for line in &panel.lines {
        let colour = line.colour;
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(&line.label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        let dots = line
            .points
            .iter()
            .map(|&at| Circle::new(at, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 11))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::analysis::{cells, tests::measured};
    use super::super::types::{Machine, Measurement};
    use super::*;

    #[test]
    fn pictures_have_a_line_for_each_approach() {
        let mut all: Vec<Measurement> = Vec::new();
        for (tokens, factor) in [(512, 1.0), (2048, 3.0)] {
            for (approach, seconds) in [(Approach::FitMapped, 4.0), (Approach::Pipeshard, 2.0)] {
                let mut m = measured(approach, "", 1, &[seconds * factor]);
                m.test = Test::prompt(tokens);
                all.push(m);
            }
        }
        let cells = cells(&all, &["m".to_owned()], &Machine::default());
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), &cells).unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let ttft = read("ttft.svg");
        assert!(ttft.contains("stock --fit, mmap") && ttft.contains("pipeshard"));
        let lines = |stroke: &str| {
            let drawn = ttft.lines().filter(|l| l.starts_with("<polyline"));
            drawn.filter(|l| l.contains(stroke)).count()
        };
        // the line itself, and its sample in the legend
        assert_eq!((lines("#005AB5"), lines("#969696")), (2, 2), "{ttft}");
        assert!(read("speedup.svg").contains("as stock --fit, mmap"));
        assert!(!folder.path().join("tps.svg").exists());
    }
}
