//! A profile as text for a terminal.

use std::fmt::Write;

use comfy_table::{presets, CellAlignment, Table};

use pipeshard_plan::profile::{Curve, Op, Origin, Processor, Profile, Quantity};

/// Three digits and a unit.
fn si(value: f64, unit: &str) -> String {
    let steps = [
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
    ];
    if !(value > 0.0 && value.is_finite()) {
        return "–".to_owned();
    }
    let step = steps.iter().find(|(size, _)| value >= *size * 0.9995);
    let (size, prefix) = step.copied().unwrap_or((1e-9, "n"));
    let scaled = value / size;
    let digits = match scaled {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$} {prefix}{unit}")
}

fn spread(spread: f64) -> String {
    match spread > 0.0 {
        true => format!("±{:.0} %", spread * 100.0),
        false => String::new(),
    }
}

fn rate(quantity: Quantity) -> [String; 2] {
    [si(quantity.median, "B/s"), spread(quantity.spread)]
}

fn time(quantity: Quantity) -> [String; 2] {
    [si(quantity.median, "s"), spread(quantity.spread)]
}

/// All of a profile, in at most 100 columns.
pub fn render(profile: &Profile) -> String {
    let mut text = String::new();
    header(&mut text, profile);
    let _ = writeln!(text, "\n{}", rates(profile));
    learned(&mut text, profile);
    operations(&mut text, profile);
    // the table pads its last column
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

fn header(text: &mut String, profile: &Profile) {
    let key = &profile.key;
    let origin = match profile.origin {
        Origin::Measured => "Measured",
        Origin::Stated => "Stated, not measured",
    };
    let _ = writeln!(text, "{origin}");
    let mut line = |what: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {what:<8}{value}");
        }
    };
    line("GPU", &key.device);
    line("driver", &key.driver);
    let threads = match key.threads {
        0 => key.cpu.clone(),
        n => format!("{}, {n} threads", key.cpu),
    };
    line("CPU", &threads);
    line("build", &key.build);
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// What is measured of the machine itself.
fn rates(profile: &Profile) -> Table {
    let mut table = plain();
    let mut row = |what: &str, [value, spread]: [String; 2]| {
        table.add_row([what.to_owned(), value, spread]);
    };
    let (link, memory, paid) = (profile.link, profile.memory, profile.overheads);
    row("link, page-locked memory to GPU", rate(link.pinned));
    row("  while the CPU reads weights", rate(link.pinned_cpu_busy));
    row("link, ordinary memory to GPU", rate(link.pageable));
    row("link, GPU to page-locked memory", rate(link.back));
    row("page-locking", rate(link.register));
    row("CPU reads weights", rate(memory.cpu));
    row("  while the link is busy", rate(memory.cpu_copy_busy));
    row("hand-over to the CPU", time(paid.to_cpu));
    row("hand-over to the GPU", time(paid.to_gpu));
    row("tiny operation of the GPU", time(paid.launch));
    row("tiny operation of the CPU", time(paid.cpu_op));
    row("CPU after a rest, extra", time(paid.cpu_wake));
    row("pass in which nothing is computed", time(paid.pass));
    let stated = |seconds| time(Quantity::stated(seconds));
    row(
        "an element of an embedding, CPU",
        stated(profile.host.embedding),
    );
    row(
        "storing KV on the host, a token",
        stated(profile.host.store_row),
    );
    row("  and each of its floats", stated(profile.host.store_float));
    for (name, line) in [("GPU", profile.gpu), ("CPU", profile.cpu)] {
        let best = [si(line.bytes, "B/s"), String::new()];
        row(&format!("{name}, the most it reads"), best);
        let best = [si(line.flops, "FLOP/s"), String::new()];
        row(&format!("{name}, the most it computes"), best);
    }
    right(&mut table, [1, 2]);
    table
}

/// What runs have shown to be otherwise.
fn learned(text: &mut String, profile: &Profile) {
    if profile.learned.is_empty() {
        return;
    }
    let mut table = plain();
    table.set_header([
        "  from runs",
        "CPU slowdown",
        "link during CPU work",
        "passes",
    ]);
    for known in &profile.learned {
        table.add_row([
            format!("  {}", known.model),
            format!("{:.2}", known.cpu),
            known
                .link_during_cpu
                .map_or("–".to_owned(), |link| si(link, "B/s")),
            known.passes.to_string(),
        ]);
    }
    right(&mut table, [1, 2, 3]);
    let _ = writeln!(text, "\n{table}");
}

/// One block per operation: both processors by batch size.
fn operations(text: &mut String, profile: &Profile) {
    let mut seen: Vec<&Op> = Vec::new();
    for curve in &profile.curves {
        if seen.contains(&&curve.op) {
            continue;
        }
        seen.push(&curve.op);
        let _ = writeln!(text, "\n{}", curve.op);
        let of = |on: Processor| {
            let same = |c: &&Curve| c.on == on && c.op == curve.op;
            profile.curves.iter().find(same)
        };
        let (gpu, cpu) = (of(Processor::Gpu), of(Processor::Cpu));
        if [gpu, cpu].iter().flatten().all(|c| c.points.is_empty()) {
            let _ = writeln!(text, "  cannot be measured here");
            continue;
        }
        let _ = writeln!(text, "{}", operation(&curve.op, gpu, cpu));
    }
}

fn operation(op: &Op, gpu: Option<&Curve>, cpu: Option<&Curve>) -> Table {
    let mut table = plain();
    table.set_header([
        "  tokens", "GPU", "", "reads", "computes", "CPU", "", "reads", "computes",
    ]);
    let points = |curve: Option<&Curve>| curve.map_or_else(Vec::new, |c| c.points.clone());
    let (gpu, cpu) = (points(gpu), points(cpu));
    let mut batches: Vec<u32> = gpu.iter().chain(&cpu).map(|point| point.rows).collect();
    batches.sort_unstable();
    batches.dedup();
    for tokens in batches {
        let work = op.work(tokens);
        let mut cells = vec![tokens.to_string()];
        for points in [&gpu, &cpu] {
            match points.iter().find(|point| point.rows == tokens) {
                Some(point) => cells.extend([
                    si(point.seconds, "s"),
                    spread(point.spread),
                    si(work.bytes / point.seconds, "B/s"),
                    si(work.flops / point.seconds, "F/s"),
                ]),
                None => cells.extend(["–".to_owned(), String::new(), String::new(), String::new()]),
            }
        }
        table.add_row(cells);
        let busy = |points: &[pipeshard_plan::profile::Point]| {
            let point = points.iter().find(|point| point.rows == tokens);
            point.and_then(|point| point.copy_busy)
        };
        let (gpu_busy, cpu_busy) = (busy(&gpu), busy(&cpu));
        if gpu_busy.or(cpu_busy).is_some() {
            let mut cells = vec!["link busy".to_owned()];
            for seconds in [gpu_busy, cpu_busy] {
                let read = seconds.map_or_else(String::new, |s| si(work.bytes / s, "B/s"));
                let time = seconds.map_or_else(String::new, |s| si(s, "s"));
                cells.extend([time, String::new(), read, String::new()]);
            }
            table.add_row(cells);
        }
    }
    right(&mut table, 0..9);
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use pipeshard_plan::profile::{Learned, Point, ProfileKey};

    /// A profile as one of an H100 might look.
    pub(in crate::profile) fn example() -> Profile {
        let mut profile = Profile::assumed();
        profile.origin = Origin::Measured;
        profile.key = ProfileKey {
            device: "NVIDIA H100 80GB HBM3".to_owned(),
            slot: "0000:3b:00.0 x16".to_owned(),
            driver: "550.54.15".to_owned(),
            cpu: "Intel(R) Xeon(R) Platinum 8480+".to_owned(),
            threads: 16,
            build: "0.2.0 b11549".to_owned(),
        };
        profile.link.pinned.spread = 0.004;
        profile.link.register = Quantity::stated(4.2e9);
        let point = |rows, seconds, copy_busy| Point {
            rows,
            seconds,
            spread: 0.021,
            copy_busy,
        };
        let product = Op::Product {
            type_name: "q4_0".to_owned(),
            columns: 4096,
            rows: 14336,
        };
        let experts = Op::Experts {
            type_name: "q4_0".to_owned(),
            columns: 2048,
            rows: 768,
            experts: 128,
            used: 8,
        };
        let attention = Op::Attention {
            head: 128,
            heads: 32,
            kv_heads: 8,
            type_k: "q8_0".to_owned(),
            type_v: "f16".to_owned(),
            kv_tokens: 16384,
        };
        let curve = |on, op: &Op, points| Curve {
            on,
            op: op.clone(),
            points,
        };
        profile.curves = vec![
            curve(
                Processor::Gpu,
                &product,
                vec![
                    point(1, 1.52e-5, Some(1.6e-5)),
                    point(64, 3.3e-5, None),
                    point(2048, 5.3e-4, None),
                ],
            ),
            curve(
                Processor::Cpu,
                &product,
                vec![point(1, 3.1e-4, Some(4.6e-4)), point(64, 9.1e-3, None)],
            ),
            curve(Processor::Gpu, &experts, vec![point(1, 1.1e-5, None)]),
            curve(Processor::Cpu, &experts, vec![point(1, 9.9e-5, None)]),
            curve(Processor::Gpu, &attention, vec![]),
            curve(Processor::Cpu, &attention, vec![]),
        ];
        profile.learned = vec![
            Learned {
                model: "48 layers of 2048, 128 experts, q4_0".to_owned(),
                cpu: 1.35,
                link_during_cpu: Some(26e9),
                passes: 3014,
            },
            Learned {
                model: "32 layers of 4096, f16".to_owned(),
                cpu: 0.73,
                link_during_cpu: None,
                passes: 28,
            },
        ];
        profile
    }

    #[test]
    fn shows_a_table_that_fits() {
        let text = render(&example());
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn stated_ones_say_so() {
        assert!(render(&Profile::assumed()).starts_with("Stated, not measured\n"));
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases = [
            (1.234e9, "1.23 GB"),
            (12.34e9, "12.3 GB"),
            (123.4e9, "123 GB"),
            (999.9e6, "1.00 GB"),
            (1.5e-5, "15.0 µB"),
            (0.0, "–"),
            (f64::NAN, "–"),
        ];
        for (value, text) in cases {
            assert_eq!(si(value, "B"), text);
        }
    }
}
