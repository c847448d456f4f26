//! A report for programs that watch a running server: Prometheus' text format and a small JSON object.

use std::fmt::{Display, Write};

use serde::Serialize;

use super::types::Report;
use super::vision::EncoderReport;

/// What a sample says about itself, as label and value.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// What `GET /props` shows.
#[derive(Debug, Serialize)]
struct Props<'a> {
    engaged: bool,
    reason: Option<&'a str>,
    version: &'a str,
    build: &'a str,
    device: &'a str,
    budget: u64,
    minimum_budget: u64,
    held: u64,
    errors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    vision: Option<PropsOfVision>,
}

/// What it shows of encoders.
#[derive(Debug, Serialize)]
struct PropsOfVision {
    encodes: u64,
    seconds: f64,
    bytes_streamed: u64,
    phase_peak: u64,
}

impl Report {
    /// The report in Prometheus' text format, version 0.0.4. All names begin with `pipeshard_`; sizes are bytes.
    pub fn to_prometheus(&self) -> String {
        let mut text = Exposition::default();
        let about = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("build", &self.build),
            ("device", &self.device),
        ];
        text.gauge("info", "What runs, in the labels")
            .sample(&about, 1);
        text.gauge("engaged", "1 where passes run under a plan, 0 where not")
            .sample(&[], u64::from(self.engaged));
        self.memory_metrics(&mut text);
        self.work_metrics(&mut text);
        self.vision_metrics(&mut text);
        self.prediction_metrics(&mut text);
        self.life_metrics(&mut text);
        text.0
    }

    fn memory_metrics(&self, text: &mut Exposition) {
        text.gauge("budget_bytes", "The most device memory that may be held")
            .sample(&[], self.budget);
        text.gauge(
            "minimum_budget_bytes",
            "The smallest budget that the latest plan could have been made for",
        )
        .sample(&[], self.minimum_budget);
        let held = [
            ("resident", self.held.resident),
            ("kv", self.held.kv),
            ("slots", self.held.slots),
            ("scratch", self.held.scratch),
            ("vision", self.held.vision),
            ("other", self.held.other),
        ];
        text.gauge("held_bytes", "Device memory held now")
            .each("class", &held);
        let peak = [
            ("resident", self.peak.resident),
            ("kv", self.peak.kv),
            ("slots", self.peak.slots),
            ("scratch", self.peak.scratch),
            ("vision", self.peak.vision),
            ("other", self.peak.other),
        ];
        text.gauge(
            "peak_bytes",
            "The most device memory that each class held; classes peak at different times",
        )
        .each("class", &peak);
        text.gauge(
            "peak_total_bytes",
            "The most device memory that was held at one time",
        )
        .sample(&[], self.peak.total);
        text.gauge("page_locked_bytes", "Host memory that is page-locked")
            .sample(&[], self.page_locked_bytes);
    }

    fn work_metrics(&self, text: &mut Exposition) {
        let passes = [
            ("prompt", self.passes.prompt),
            ("decode", self.passes.decode),
        ];
        text.counter(
            "passes_total",
            "Micro-batches computed, by whether an operation saw 32 rows or more (prompt)",
        )
        .each("tier", &passes);
        let counters = [
            (
                "graph_reuses_total",
                "Passes that ran a graph that had run before",
                self.graph_reuses,
            ),
            (
                "streamed_bytes_total",
                "Weights copied into slots",
                self.bytes_streamed,
            ),
            (
                "uploaded_bytes_total",
                "Weights copied to residents",
                self.bytes_uploaded,
            ),
            (
                "staged_bytes_total",
                "The part of both that was not page-locked and went through the staging ring",
                self.staged_bytes,
            ),
            ("copies_total", "Copies of streamed groups", self.copies),
            (
                "stalls_total",
                "Splits for whose weights no copy had been submitted yet",
                self.stalls,
            ),
        ];
        for (name, help, value) in counters {
            text.counter(name, help).sample(&[], value);
        }
        let waits = [
            ("hand_over", self.host_waits.hand_overs),
            ("user_input", self.host_waits.user_inputs),
            ("expert_choice", self.host_waits.expert_choices),
            ("staging", self.host_waits.staging),
        ];
        text.counter("host_waits_total", "Times the host waited for the device")
            .each("reason", &waits);
        text.gauge(
            "units",
            "Tensors by where the latest graph of the tier read them",
        );
        for (tier, units) in [
            ("prompt", &self.units.prompt),
            ("decode", &self.units.decode),
        ] {
            let placements = [
                ("resident", units.resident),
                ("kept", units.kept),
                ("streamed", units.streamed),
                ("host", units.host),
            ];
            for (placement, count) in placements {
                text.named("units", &[("tier", tier), ("placement", placement)], count);
            }
        }
    }

    fn vision_metrics(&self, text: &mut Exposition) {
        let Some(vision) = &self.vision else {
            return;
        };
        let counters = [
            (
                "vision_encodes_total",
                "Images, slices, pairs of frames or pieces of sound that were encoded on the device",
                vision.encodes,
            ),
            (
                "vision_rows_total",
                "Rows of activations (patches of images) in all of them",
                vision.rows,
            ),
            (
                "vision_windows_total",
                "Windows that were attended to in one batch, without a mask",
                vision.windows_batched,
            ),
            (
                "vision_masks_skipped_total",
                "Masks that were neither filled nor copied",
                vision.masks_skipped,
            ),
        ];
        for (name, help, value) in counters {
            text.counter(name, help).sample(&[], value);
        }
        text.counter(
            "vision_seconds_total",
            "Time from the first split of each encode until its result was read",
        )
        .sample(&[], vision.encode_us as f64 / 1e6);
        text.counter(
            "vision_streamed_bytes_total",
            "Weights of encoders copied to the device",
        )
        .sample(&[], vision.bytes_streamed);
        let of_all = |of: fn(&EncoderReport) -> u64| vision.encoders.iter().map(of).sum::<u64>();
        let places = [
            ("resident", of_all(|encoder| encoder.resident)),
            ("streamed", of_all(|encoder| encoder.streamed)),
        ];
        text.gauge(
            "vision_weights_bytes",
            "Weights of encoders by what happens to them while something is encoded",
        )
        .each("place", &places);
        text.gauge(
            "vision_phase_peak_bytes",
            "The most device memory that was held while something was encoded, by all",
        )
        .sample(&[], vision.phase_peak);
    }

    fn prediction_metrics(&self, text: &mut Exposition) {
        if let Some(predicted) = &self.predicted {
            text.gauge(
                "predicted_ttft_seconds",
                "Predicted time to the first token",
            )
            .sample(&[], predicted.ttft);
            text.gauge(
                "predicted_tokens_per_second",
                "Predicted rate of generation",
            )
            .sample(&[], predicted.tps);
        }
        let Some(compared) = &self.calibration else {
            return;
        };
        let kinds = [("prompt", &compared.prompt), ("decode", &compared.decode)];
        text.counter(
            "compared_passes_total",
            "Passes whose time was compared with what was predicted for them",
        )
        .each("tier", &kinds.map(|(tier, times)| (tier, times.passes)));
        text.gauge("measured_pass_seconds", "Average time of these passes")
            .each(
                "tier",
                &kinds.map(|(tier, times)| (tier, times.measured_seconds_per_pass)),
            );
        text.gauge(
            "predicted_pass_seconds",
            "Average predicted time of these passes",
        )
        .each(
            "tier",
            &kinds.map(|(tier, times)| (tier, times.predicted_seconds_per_pass)),
        );
        text.gauge(
            "measured_pass_cpu_seconds",
            "Average time of the CPU's part of these passes",
        )
        .each(
            "tier",
            &kinds.map(|(tier, times)| (tier, times.measured_cpu_seconds_per_pass)),
        );
        text.gauge(
            "predicted_pass_cpu_seconds",
            "Average predicted time of the CPU's part of these passes",
        )
        .each(
            "tier",
            &kinds.map(|(tier, times)| (tier, times.predicted_cpu_seconds_per_pass)),
        );
    }

    fn life_metrics(&self, text: &mut Exposition) {
        let counters = [
            ("models_total", "Models loaded", self.models),
            ("contexts_total", "Contexts opened", self.contexts),
            (
                "budget_changes_total",
                "Changes of the budget",
                self.budget_changes,
            ),
            (
                "replans_total",
                "Plans made again for a pass, after the first",
                self.replans,
            ),
            (
                "recarvings_total",
                "Times that device memory took another shape while in use",
                self.recarvings,
            ),
            (
                "reallocations_total",
                "Compute buffers that grew after they had been reserved; 0 in a healthy process",
                self.reallocations_after_reserve,
            ),
            (
                "declined_nodes_total",
                "Operations on weights that the device does not support",
                self.declined_nodes,
            ),
            (
                "errors_total",
                "Errors; the log has the messages",
                self.errors.len() as u64,
            ),
        ];
        for (name, help, value) in counters {
            text.counter(name, help).sample(&[], value);
        }
    }

    /// What a client has to know, as JSON: whether pipeshard is engaged and if not why, version, device, budget.
    pub fn to_props(&self) -> String {
        let props = Props {
            engaged: self.engaged,
            reason: self.reason.as_deref(),
            version: env!("CARGO_PKG_VERSION"),
            build: &self.build,
            device: &self.device,
            budget: self.budget,
            minimum_budget: self.minimum_budget,
            held: self.held.total(),
            errors: self.errors.len(),
            vision: self.vision.as_ref().map(|vision| PropsOfVision {
                encodes: vision.encodes,
                seconds: vision.encode_us as f64 / 1e6,
                bytes_streamed: vision.bytes_streamed,
                phase_peak: vision.phase_peak,
            }),
        };
        serde_json::to_string(&props).expect("a struct of numbers and texts")
    }
}

/// A text that grows family by family.
#[derive(Default)]
struct Exposition(String);

/// One family, whose head is written.
struct Family<'a> {
    text: &'a mut Exposition,
    name: &'static str,
}

impl Exposition {
    fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        self.line(format_args!("# HELP pipeshard_{name} {help}"));
        self.line(format_args!("# TYPE pipeshard_{name} {kind}"));
        Family { text: self, name }
    }

    fn named(&mut self, name: &str, labels: Labels, value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("pipeshard_{name} {value}"));
        }
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        self.line(format_args!(
            "pipeshard_{name}{{{}}} {value}",
            labels.join(",")
        ));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a text in memory takes every line");
    }
}

impl Family<'_> {
    fn sample(self, labels: Labels, value: impl Display) {
        self.text.named(self.name, labels, value);
    }

    fn each<V: Display>(self, label: &str, values: &[(&str, V)]) {
        for (of, value) in values {
            self.text.named(self.name, &[(label, of)], value);
        }
    }
}

/// A label's value: backslash, quotation mark and line feed are the only characters that the format escapes.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::calibration::{CalibrationCounts, PassTimes};
    use super::super::types::*;
    use super::super::vision::{EncoderReport, VisionReport};
    use std::collections::HashSet;

    fn report() -> Report {
        Report {
            engaged: true,
            build: "b11549-1a2b".to_owned(),
            device: "SIM0 (\"a\\b\"\nc)".to_owned(),
            budget: 40 << 20,
            held: MemoryHeld {
                resident: 1,
                kv: 2,
                slots: 3,
                scratch: 4,
                vision: 6,
                other: 5,
            },
            bytes_streamed: u64::MAX,
            passes: PassCounts {
                decode: 7,
                prompt: 8,
            },
            host_waits: HostWaits {
                hand_overs: 9,
                user_inputs: 10,
                expert_choices: 12,
                staging: 11,
            },
            vision: Some(VisionReport {
                encodes: 14,
                encode_us: 3_000_000,
                bytes_streamed: 17,
                phase_peak: 18,
                windows_batched: 15,
                encoders: vec![EncoderReport {
                    resident: 19,
                    streamed: 20,
                    ..EncoderReport::default()
                }],
                masks_skipped: 16,
                ..VisionReport::default()
            }),
            errors: vec!["one".to_owned(), "two".to_owned()],
            predicted: Some(super::super::calibration::tests::predicted()),
            calibration: Some(CalibrationCounts {
                decode: PassTimes {
                    passes: 13,
                    measured_seconds_per_pass: 0.25,
                    predicted_seconds_per_pass: 0.125,
                    ..PassTimes::default()
                },
                ..CalibrationCounts::default()
            }),
            ..Report::default()
        }
    }

    fn value<V: std::str::FromStr<Err: std::fmt::Debug>>(text: &str, sample: &str) -> V {
        let start = format!("pipeshard_{sample} ");
        let line = text.lines().find(|l| l.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{sample} is missing:\n{text}"));
        line[start.len()..].parse().unwrap()
    }

    #[test]
    fn samples_have_the_values_of_the_report() {
        let text = report().to_prometheus();
        for (sample, expected) in [
            ("engaged", 1),
            ("budget_bytes", 40 << 20),
            ("held_bytes{class=\"resident\"}", 1),
            ("held_bytes{class=\"kv\"}", 2),
            ("held_bytes{class=\"slots\"}", 3),
            ("held_bytes{class=\"scratch\"}", 4),
            ("held_bytes{class=\"vision\"}", 6),
            ("held_bytes{class=\"other\"}", 5),
            ("vision_encodes_total", 14),
            ("vision_seconds_total", 3),
            ("vision_streamed_bytes_total", 17),
            ("vision_phase_peak_bytes", 18),
            ("vision_weights_bytes{place=\"resident\"}", 19),
            ("vision_weights_bytes{place=\"streamed\"}", 20),
            ("vision_windows_total", 15),
            ("vision_masks_skipped_total", 16),
            ("streamed_bytes_total", u64::MAX),
            ("passes_total{tier=\"decode\"}", 7),
            ("passes_total{tier=\"prompt\"}", 8),
            ("host_waits_total{reason=\"hand_over\"}", 9),
            ("host_waits_total{reason=\"user_input\"}", 10),
            ("host_waits_total{reason=\"staging\"}", 11),
            ("errors_total", 2),
            ("compared_passes_total{tier=\"decode\"}", 13),
        ] {
            assert_eq!(value::<u64>(&text, sample), expected, "{sample}");
        }
        for (sample, expected) in [
            ("predicted_ttft_seconds", 2.5),
            ("predicted_tokens_per_second", 40.0),
            ("measured_pass_seconds{tier=\"decode\"}", 0.25),
            ("predicted_pass_seconds{tier=\"decode\"}", 0.125),
        ] {
            assert_eq!(value::<f64>(&text, sample), expected, "{sample}");
        }
        let off = Report::off("a test").to_prometheus();
        assert_eq!(value::<u64>(&off, "engaged"), 0);
        assert!(!off.contains("predicted"), "{off}");
    }

    #[test]
    fn every_family_is_described_once_and_has_samples_behind_it() {
        let text = report().to_prometheus();
        let (mut families, mut samples) = (HashSet::new(), HashSet::new());
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let mut words = help.strip_prefix("# HELP ").unwrap().splitn(2, ' ');
            let name = words.next().unwrap();
            assert!(!words.next().unwrap().is_empty(), "{name} has no help");
            assert!(families.insert(name), "{name} is there twice");
            let kind = lines.next().unwrap();
            let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let mut count = 0;
            while let Some(sample) = lines.next_if(|l| !l.starts_with('#')) {
                let (series, value) = sample.rsplit_once(' ').unwrap();
                assert_eq!(series.split('{').next(), Some(name));
                assert!(samples.insert(series), "{series} is there twice");
                let number: f64 = value.parse().unwrap();
                assert!(number.is_finite());
                count += 1;
            }
            assert!(count > 0, "{name} has no sample");
        }
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn labels_are_escaped() {
        let text = report().to_prometheus();
        assert!(text.contains(r#"device="SIM0 (\"a\\b\"\nc)"} 1"#), "{text}");
    }

    #[test]
    fn props_say_why_it_is_off() {
        let read = |report: &Report| -> serde_json::Value {
            serde_json::from_str(&report.to_props()).unwrap()
        };
        let off = read(&Report::off("there is no GPU"));
        assert_eq!(off["engaged"], false);
        assert_eq!(off["reason"], "there is no GPU");
        let on = read(&report());
        assert_eq!(on["engaged"], true);
        assert_eq!(on["reason"], serde_json::Value::Null);
        assert_eq!(on["budget"], 40 << 20);
        assert_eq!(on["held"], 21);
        assert_eq!(on["vision"]["encodes"], 14);
        assert_eq!(on["vision"]["seconds"], 3.0);
        assert!(off["vision"].is_null());
        assert_eq!(on["version"], env!("CARGO_PKG_VERSION"));
    }
}
