//! A profile as a picture: rooflines, and what was reached below them.

use std::path::Path;

use plotters::prelude::*;

use pipeshard_plan::profile::{Point, Processor, Profile};

const SIZE: (u32, u32) = (900, 520);
const CPU: RGBColor = RGBColor(213, 94, 0);
const GPU: RGBColor = RGBColor(0, 90, 181);

/// The picture cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the plot {path} cannot be written: {reason}")]
pub struct PlotError {
    path: String,
    reason: String,
}

/// A measured point: operations per byte, operations per second.
type Reached = (f64, f64);

fn reached(profile: &Profile, on: Processor) -> Vec<Reached> {
    let curves = profile.curves.iter().filter(|curve| curve.on == on);
    let points = curves.flat_map(|curve| {
        let point = |p: &Point| {
            let work = curve.op.work(p.rows);
            (work.flops / work.bytes, work.flops / p.seconds)
        };
        curve.points.iter().map(point)
    });
    points
        .filter(|(x, y)| x.is_finite() && y.is_finite() && *x > 0.0 && *y > 0.0)
        .collect()
}

/// Draws the rooflines of both processors and of the link over operations per byte of weights, with all measured points.
///
/// # Errors
/// Where the file cannot be written.
pub fn draw(profile: &Profile, path: &Path) -> Result<(), PlotError> {
    let text = picture(profile).map_err(|reason| PlotError {
        path: path.display().to_string(),
        reason,
    })?;
    std::fs::write(path, text).map_err(|error| PlotError {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn picture(profile: &Profile) -> Result<String, String> {
    let mut text = String::new();
    paint(profile, &mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn paint(profile: &Profile, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let lines = [
        ("GPU", GPU, profile.gpu.bytes, profile.gpu.flops),
        ("CPU", CPU, profile.cpu.bytes, profile.cpu.flops),
        (
            "GPU, weights over the link",
            RGBColor(0, 158, 115),
            profile.link.pinned.median,
            profile.gpu.flops,
        ),
    ];
    let points = [
        (GPU, reached(profile, Processor::Gpu)),
        (CPU, reached(profile, Processor::Cpu)),
    ];
    let (low_x, high_x) = (0.5, 20_000.0);
    let usable = lines.iter().filter(|l| l.2 > 0.0 && l.3 > 0.0);
    let tops = usable.clone().map(|l| l.3).fold(1e9, f64::max);
    let floors = usable.clone().map(|l| low_x * l.2).fold(f64::MAX, f64::min);
    let lowest = points.iter().flat_map(|(_, p)| p).map(|p| p.1);
    let floor = lowest.fold(floors, f64::min).clamp(1e6, tops / 10.0);
    let mut chart = ChartBuilder::on(&area)
        .caption(&profile.key.device, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(
            (low_x..high_x).log_scale(),
            (floor / 2.0..tops * 2.0).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("operations per byte of weights or KV cache")
        .y_desc("operations per second")
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (label, colour, bytes, flops) in usable {
        let steps = 200;
        let at = |i: u32| low_x * f64::powf(high_x / low_x, f64::from(i) / f64::from(steps));
        let line = (0..=steps).map(|i| (at(i), (at(i) * bytes).min(*flops)));
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line, style))?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    for (colour, points) in points {
        let marks = points
            .into_iter()
            .map(|p| Circle::new(p, 3, colour.mix(0.7).filled()));
        chart.draw_series(marks)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::example;
    use super::*;

    #[test]
    fn every_point_is_drawn() {
        let profile = example();
        let points: usize = profile.curves.iter().map(|curve| curve.points.len()).sum();
        let picture = picture(&profile).unwrap();
        assert_eq!(picture.matches("<circle").count(), points);
        assert!(picture.contains("NVIDIA H100") && picture.contains("weights over the link"));
    }

    #[test]
    fn a_profile_without_figures_is_drawn_too() {
        let mut profile = Profile::assumed();
        profile.gpu = Default::default();
        profile.cpu = Default::default();
        profile.link = Default::default();
        assert!(picture(&profile).is_ok());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/plot.svg");
        let why = draw(&example(), &path).unwrap_err().to_string();
        assert!(why.contains("missing/plot.svg"), "{why}");
        draw(&example(), &folder.path().join("plot.svg")).unwrap();
    }
}
