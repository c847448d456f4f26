//! The timeline of a run on the simulated GPU: complete, in order, and with a link that is busy.

mod common;

use common::{scratch, synthetic, tool, Answers, Eval, LAB};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A device whose link is what a prompt waits for.
const SLOW_LINK: &str = "pcie=1G";

/// A slice of a trace file; times in microseconds.
#[derive(Debug, Clone)]
struct Slice {
    row: u64,
    category: String,
    name: String,
    start: f64,
    end: f64,
    args: Value,
}

/// A trace file as a viewer understands it.
struct Trace {
    slices: Vec<Slice>,
    /// Names of rows by number.
    rows: HashMap<u64, String>,
    /// Counters: name, time, value.
    counters: Vec<(String, f64, f64)>,
    /// Begins and ends of arrows by what they have in common.
    arrows: HashMap<String, Vec<(String, u64, f64)>>,
    left_out: u64,
}

/// Two times that differ by the rounding of a file's numbers only.
const ROUNDING: f64 = 0.002;

impl Trace {
    fn read(path: &Path) -> Trace {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{e}"));
        Trace::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Checks each event as the format describes it.
    fn parse(text: &str) -> Result<Trace, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let events = json["traceEvents"].as_array().ok_or("no traceEvents")?;
        let mut trace = Trace {
            slices: Vec::new(),
            rows: HashMap::new(),
            counters: Vec::new(),
            arrows: HashMap::new(),
            left_out: json["otherData"]["passes_left_out"]
                .as_u64()
                .ok_or("no otherData")?,
        };
        for event in events {
            let number = |name: &str| event[name].as_f64().ok_or(format!("no {name}: {event}"));
            let text = |name: &str| {
                let text = event[name].as_str().ok_or(format!("no {name}: {event}"));
                text.map(str::to_string)
            };
            let row = || event["tid"].as_u64().ok_or(format!("no tid: {event}"));
            if event["pid"] != 1 {
                return Err(format!("no pid: {event}"));
            }
            match text("ph")?.as_str() {
                "M" => {
                    if text("name")? == "thread_name" {
                        let name = event["args"]["name"].as_str().ok_or("a row has no name")?;
                        trace.rows.insert(row()?, name.to_string());
                    }
                }
                "X" => trace.slices.push(Slice {
                    row: row()?,
                    category: text("cat")?,
                    name: text("name")?,
                    start: number("ts")?,
                    end: number("ts")? + number("dur")?,
                    args: event["args"].clone(),
                }),
                "C" => {
                    let value = event["args"]["bytes"]
                        .as_f64()
                        .ok_or("a counter counts bytes")?;
                    trace.counters.push((text("name")?, number("ts")?, value));
                }
                "s" | "f" => {
                    let ends = trace.arrows.entry(text("id")?).or_default();
                    ends.push((text("ph")?, row()?, number("ts")?));
                }
                other => return Err(format!("an event of kind {other}: {event}")),
            }
        }
        for slice in &trace.slices {
            if !trace.rows.contains_key(&slice.row) {
                return Err(format!("a row without a name: {slice:?}"));
            }
            if slice.end < slice.start || slice.start < 0.0 {
                return Err(format!("a slice that ends before it begins: {slice:?}"));
            }
        }
        Ok(trace)
    }

    fn of<'a>(&'a self, category: &'a str) -> impl Iterator<Item = &'a Slice> {
        self.slices.iter().filter(move |s| s.category == category)
    }

    fn row_of(&self, slice: &Slice) -> &str {
        &self.rows[&slice.row]
    }

    /// Two slices of a row that are in each other's way: on the host's row one may contain another, elsewhere nothing may.
    fn overlap(&self) -> Option<(Slice, Slice)> {
        for (&row, name) in &self.rows {
            let of_row = |s: &&Slice| s.row == row && s.end > s.start;
            let mut slices: Vec<&Slice> = self.slices.iter().filter(of_row).collect();
            slices.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
            let mut open: Vec<&Slice> = Vec::new();
            for slice in slices {
                open.retain(|o| o.end > slice.start + ROUNDING);
                let contained = |o: &&Slice| name == "host" && slice.end <= o.end + ROUNDING;
                if let Some(other) = open.iter().find(|o| !contained(o)) {
                    return Some(((*other).clone(), slice.clone()));
                }
                open.push(slice);
            }
        }
        None
    }

    /// A split that was computed before a copy that it reads had ended.
    fn too_early(&self) -> Option<(Slice, Slice)> {
        let mut latest: HashMap<&str, &Slice> = HashMap::new();
        // slices are in order of submission
        for slice in &self.slices {
            match slice.category.as_str() {
                "copy" => {
                    latest.insert(&slice.name, slice);
                }
                "split" => {
                    let reads = slice.args["reads"].as_array().into_iter().flatten();
                    for name in reads.filter_map(Value::as_str) {
                        let copy = latest[name];
                        if slice.start + ROUNDING < copy.end {
                            return Some((copy.clone(), slice.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// From the begin of the first to the end of the last of these passes.
    fn window(&self, tier: &str) -> (f64, f64) {
        let passes = || self.of("pass").filter(|p| p.args["tier"] == tier);
        let begin = passes().map(|p| p.start).fold(f64::INFINITY, f64::min);
        (begin, passes().map(|p| p.end).fold(0.0, f64::max))
    }

    /// How much of a window slices of these categories take, in microseconds.
    fn busy(&self, categories: &[&str], (begin, end): (f64, f64)) -> f64 {
        let of = |s: &&Slice| categories.contains(&s.category.as_str());
        let mut slices: Vec<&Slice> = self.slices.iter().filter(of).collect();
        slices.sort_by(|a, b| a.start.total_cmp(&b.start));
        let (mut busy, mut until) = (0.0, begin);
        for slice in slices {
            busy += (slice.end.min(end) - slice.start.max(until)).max(0.0);
            until = until.max(slice.end);
        }
        busy
    }
}

/// Evaluates with a trace.
fn traced(eval: &Eval, name: &str) -> (Answers, Trace, PathBuf) {
    let path = scratch("traces").join(format!("{name}.json"));
    // an old one shall not pass for a new one
    let _ = std::fs::remove_file(&path);
    let shown = path.display().to_string();
    let answers = eval
        .clone()
        .env("LLAMA_ARG_PIPESHARD_TRACE", &shown)
        .answers();
    let trace = Trace::read(&path);
    (answers, trace, path)
}

/// The smallest budget beside which all KV is on the device and hardly a weight is.
fn all_streamed(eval: &Eval) -> u64 {
    let eval = eval.clone().prompts(&[1]).generate(0);
    eval.within(2 << 30, "").answers().report().minimum_budget
}

fn small() -> Eval {
    Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[96, 33])
        .arg("ubatch", 32)
        .generate(3)
}

#[test]
fn the_link_is_busy_while_a_prompt_streams() {
    let eval = Eval::of(&synthetic("tiny-llama", &[]))
        .prompts(&[2048])
        .arg("ubatch", 512)
        .arg("ctx", 2304)
        .generate(0);
    let budget = all_streamed(&eval);
    // computing takes a seventh of the time: one after the other would show
    let device = format!("{SLOW_LINK},flops=10T");
    let (ours, trace, path) = traced(&eval.within(budget, &device), "prompt");
    ours.assert_healthy(budget);
    let report = ours.report();
    assert_eq!(report.passes.prompt, 4);
    assert!(report.units.prompt.streamed > 30, "{:?}", report.units);

    // weights and the user's inputs, mostly the mask, share the link
    let window = trace.window("prompt");
    let length = window.1 - window.0;
    let busy = trace.busy(&["copy", "hand_over"], window);
    assert!(
        busy >= 0.95 * length,
        "the link was busy for {busy} of {length} us"
    );
    assert_eq!(report.stalls, 0);
    // weights alone keep it for most of that
    let weights = trace.busy(&["copy"], window);
    assert!(weights >= 0.85 * length, "{weights} of {length} us");
    // the device counted the same on its own side, with what was copied ahead after the last pass
    let after = trace.busy(&["copy"], (window.1, f64::INFINITY));
    let counted = ours.device_in(0, "link_busy_h2d_ns") as f64 / 1e3;
    let apart = (busy + after - counted).abs();
    assert!(
        apart < 0.01 * counted,
        "{busy} + {after}, counted {counted}"
    );

    // the report's figures say the same
    let figures = report.timeline.as_ref().expect("a trace was asked for");
    assert!(figures.virtual_time);
    let prompt = &figures.tiers[0];
    assert_eq!((prompt.name.as_str(), prompt.passes), ("prompt", 3));
    let later = |s: &&Slice| s.args["pass"].as_u64() > Some(1);
    let later: Vec<&Slice> = trace.of("pass").filter(later).collect();
    let sum: f64 = later.iter().map(|p| p.end - p.start).sum();
    let shares = later
        .iter()
        .map(|p| trace.busy(&["copy"], (p.start, p.end)));
    let share = shares.sum::<f64>() / sum;
    assert!(
        (prompt.link_busy - share).abs() < 1e-3,
        "{prompt:?} {share}"
    );
    assert!(prompt.gaps[0].ns >= prompt.gaps[1].ns);

    // and so does the tool that reads the file
    let shown = common::finish(tool(LAB).arg("trace").arg(&path));
    assert!(shown.succeeded(), "{}", shown.stderr);
    let busy = format!("{:.1} %", prompt.link_busy * 100.0);
    for part in ["virtual time", "prompt", &busy, "longest gaps"] {
        assert!(shown.stdout.contains(part), "{part} in\n{}", shown.stdout);
    }
}

#[test]
fn everything_that_was_counted_is_in_it_once_and_in_order() {
    let eval = small();
    let budget = all_streamed(&eval);
    let alone = eval.clone().within(budget, SLOW_LINK).answers();
    let (ours, trace, _) = traced(&eval.within(budget, SLOW_LINK), "complete");
    ours.assert_healthy(budget);
    let report = ours.report();
    let count = |category: &str| trace.of(category).count() as u64;
    assert!(report.copies > 20 && report.splits > 50);
    assert_eq!(count("copy"), report.copies);
    assert_eq!(count("split"), report.splits);
    assert_eq!(count("pass"), report.passes.prompt + report.passes.decode);
    assert_eq!(count("host_wait_hand_over"), report.host_waits.hand_overs);
    assert_eq!(count("host_wait_user_input"), report.host_waits.user_inputs);
    let bytes = trace.of("copy").map(|s| s.args["bytes"].as_u64().unwrap());
    assert_eq!(bytes.sum::<u64>(), report.bytes_streamed);
    let uploads = trace
        .of("upload")
        .map(|s| s.args["bytes"].as_u64().unwrap());
    assert_eq!(uploads.sum::<u64>(), report.bytes_uploaded);
    assert_eq!(trace.left_out, 0);
    let graphs = trace
        .of("split")
        .filter(|s| trace.row_of(s) == "compute stream");
    assert!(graphs.count() > 20);
    assert!(trace.of("split").any(|s| trace.row_of(s) == "CPU splits"));
    assert!(trace.of("split").all(|s| s.name.len() > 3));

    assert!(trace.overlap().is_none(), "{:?}", trace.overlap());
    assert!(trace.too_early().is_none(), "{:?}", trace.too_early());
    for ends in trace.arrows.values() {
        let [(from, copy, begin), (to, split, end)] = &ends[..] else {
            panic!("{ends:?}");
        };
        assert_eq!((from.as_str(), to.as_str()), ("s", "f"));
        assert!(trace.rows[copy] == "copy lane" && trace.rows[split] == "compute stream");
        assert!(begin <= end);
    }
    let of = |name: &str| {
        let counter = trace.counters.iter().filter(|c| c.0 == name);
        counter.map(|c| c.2).collect::<Vec<f64>>()
    };
    assert_eq!(of("bytes in flight to the ring").last(), Some(&0.0));
    let streamed = report.bytes_streamed as f64;
    assert_eq!(of("bytes streamed").last(), Some(&streamed));

    // and nothing came out otherwise, nor later, because somebody looked
    assert_eq!(alone.outcome(), ours.outcome());
    let devices = |answers: &Answers| {
        let results = answers.eval.results.iter();
        results.map(|r| r.device.clone()).collect::<Vec<_>>()
    };
    assert_eq!(devices(&alone), devices(&ours));
    assert_eq!(alone.report().timeline, None);
}

#[test]
fn a_missing_wait_shows() {
    let eval = small();
    let budget = all_streamed(&eval);
    // what is read too early shall be wrong, and not end the run
    let eval = eval
        .within(budget, &format!("{SLOW_LINK},poison=off"))
        .env("PIPESHARD_DEBUG_DROP_WAIT", "filled");
    let (_, trace, _) = traced(&eval, "missing-wait");
    assert!(trace.too_early().is_some());
}

#[test]
fn events_are_enough_for_a_device_without_virtual_clocks() {
    let eval = small();
    let budget = all_streamed(&eval);
    let alone = eval.clone().within(budget, "").answers();
    let eval = eval
        .within(budget, "delay=300")
        .env("PIPESHARD_DEBUG_TRACE_EVENTS", "1");
    let (ours, trace, _) = traced(&eval, "events");
    assert_eq!(alone.outcome(), ours.outcome());
    let report = ours.report();
    let figures = report.timeline.as_ref().expect("a trace was asked for");
    assert!(!figures.virtual_time);
    assert_eq!((figures.untimed, figures.passes_left_out), (0, 0));
    assert_eq!(trace.of("copy").count() as u64, report.copies);
    assert_eq!(trace.of("split").count() as u64, report.splits);
    assert!(trace.overlap().is_none(), "{:?}", trace.overlap());
    assert!(trace.too_early().is_none(), "{:?}", trace.too_early());
    // pauses make every copy last, and the CPU takes time on this clock
    let lasting = trace.of("copy").filter(|c| c.end > c.start).count();
    assert!(
        lasting as u64 * 10 >= report.copies * 9,
        "{lasting} of {}",
        report.copies
    );
    let figures = &figures.tiers[0];
    assert!(
        figures.link_busy > 0.1 && figures.compute_busy > 0.1,
        "{figures:?}"
    );
    assert!(
        figures.link_busy <= 1.0 && figures.compute_busy <= 1.0,
        "{figures:?}"
    );
}

#[test]
fn contexts_have_a_track_each() {
    let eval = small().arg("contexts", 2);
    let budget = all_streamed(&eval);
    let (ours, trace, _) = traced(&eval.within(budget, SLOW_LINK), "contexts");
    let report = ours.report();
    let splits_on = |row: &str| {
        let splits = trace.of("split").filter(|s| trace.row_of(s) == row);
        splits.count()
    };
    assert!(splits_on("compute stream") > 20);
    assert_eq!(splits_on("compute stream"), splits_on("compute stream 2"));
    assert_eq!(trace.of("copy").count() as u64, report.copies);
    assert_eq!(trace.of("split").count() as u64, report.splits);
    assert!(trace.too_early().is_none(), "{:?}", trace.too_early());
}

#[test]
fn of_many_passes_the_first_and_the_last_are_kept() {
    let eval = small().env("LLAMA_ARG_PIPESHARD_TRACE_PASSES", "2");
    let budget = all_streamed(&eval);
    let (ours, trace, _) = traced(&eval.within(budget, ""), "few");
    let passes = ours.report().passes;
    let all = passes.prompt + passes.decode;
    let kept: Vec<u64> = trace
        .of("pass")
        .map(|p| p.args["pass"].as_u64().unwrap())
        .collect();
    assert_eq!(kept, [1, all - 1, all]);
    assert_eq!(trace.left_out, all - 3);
    assert!(trace.overlap().is_none(), "{:?}", trace.overlap());
}

#[test]
fn a_trace_that_cannot_be_written_or_read_says_so() {
    let eval = small().prompts(&[33]).generate(0);
    let budget = all_streamed(&eval);
    let missing = scratch("traces").join("missing/trace.json");
    let shown = missing.display().to_string();
    let ours = eval
        .within(budget, "")
        .env("LLAMA_ARG_PIPESHARD_TRACE", &shown)
        .answers();
    assert!(
        ours.said.contains("cannot write the trace"),
        "{}",
        ours.said
    );
    assert!(ours.said.contains("missing/trace.json"), "{}", ours.said);

    let foreign = scratch("traces").join("foreign.json");
    std::fs::write(&foreign, "{\"traceEvents\":[]}").unwrap();
    for (path, what) in [
        (&foreign, "is not a pipeshard trace"),
        (&missing, "cannot read"),
    ] {
        let refused = common::finish(tool(LAB).arg("trace").arg(path));
        assert!(refused.failed_cleanly());
        assert!(refused.stderr.contains(what), "{}", refused.stderr);
    }
}

#[test]
fn files_that_are_no_trace_are_told_from_those_that_are() {
    let event = |event: &str| {
        format!("{{\"otherData\":{{\"passes_left_out\":0}},\"traceEvents\":[{event}]}}")
    };
    let row = r#"{"ph":"M","pid":1,"tid":2,"name":"thread_name","args":{"name":"host"}}"#;
    let slice = |rest: &str| {
        event(&format!(
            r#"{row},{{"ph":"X","pid":1,"tid":2,"cat":"c","name":"n"{rest}}}"#
        ))
    };
    assert!(Trace::parse(&slice(r#","ts":1.5,"dur":2"#)).is_ok());
    assert!(Trace::parse(&slice(r#","ts":1.5,"dur":-2"#)).is_err());
    assert!(Trace::parse(&slice(r#","ts":1.5"#)).is_err());
    assert!(Trace::parse(&event(
        r#"{"ph":"X","pid":1,"tid":9,"cat":"c","name":"n","ts":1,"dur":1}"#
    ))
    .is_err());
    assert!(Trace::parse("[,]").is_err());
}
