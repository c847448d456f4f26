//! What the lanes were busy with, as figures.

use pipeshard_model::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Figures from a trace. Times are in nanoseconds, busy shares between 0 and 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimelineSummary {
    /// Times are those of the simulated GPU's virtual clocks, in which the CPU takes none.
    pub virtual_time: bool,
    /// Points in the lanes whose time was not taken.
    pub untimed: u64,
    /// Passes that are not in the figures, because of the limit on records or passes.
    pub passes_left_out: u64,
    /// Per tier that has run.
    pub tiers: Vec<TierTimeline>,
}

/// The passes of one tier. Shares are of the time of passes, from the begin on the host until the device was through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierTimeline {
    /// `prompt`, `decode`, or `other` for graphs without weights.
    pub name: String,
    /// Passes looked at. The first of the process is only among them if the tier has no other.
    pub passes: u64,
    /// Mean time of a pass.
    pub pass_ns: u64,
    /// Median time of a pass.
    pub pass_ns_median: u64,
    /// Mean time from the end of the pass before to the begin of a pass on the host.
    pub between_ns: u64,
    /// Weights that arrived per pass, in bytes.
    pub bytes_per_pass: u64,
    /// Rate of the link while it was busy, in bytes per second.
    pub link_rate: u64,
    /// Copies of weights were on their way.
    pub link_busy: f64,
    /// A compute stream computed.
    pub compute_busy: f64,
    /// A compute stream had nothing to do but wait for weights.
    pub compute_waits: f64,
    /// The CPU computed splits.
    pub cpu_busy: f64,
    /// The host waited for the device.
    pub host_waits: f64,
    /// The host was in the runtime's callbacks.
    pub host_callbacks: f64,
    /// The host copied inputs and submitted splits.
    pub host_submits: f64,
    /// The longest times within passes in which no weights were on their way, longest first.
    pub gaps: Vec<LinkGap>,
}

/// A time in which no weights were on their way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkGap {
    /// The number of the pass, counted from 1.
    pub pass: u64,
    /// When it began, since the trace did.
    pub at_ns: u64,
    /// How long it was.
    pub ns: u64,
    /// What was copied next; none if that was in another pass.
    pub next: Option<String>,
    /// The part in which the next copy had not even been submitted; in the rest it waited for its place.
    pub not_submitted_ns: u64,
    /// What the other lanes did meanwhile.
    pub lanes: Vec<LaneDuringGap>,
}

/// A lane during a gap of the link.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneDuringGap {
    /// Its name.
    pub lane: String,
    /// The share of the gap in which it was busy (or the host waited).
    pub busy: f64,
    /// What took most of that.
    pub with: String,
}

impl TimelineSummary {
    /// A table for a terminal of 80 columns.
    pub fn render_table(&self) -> String {
        let mut text = String::new();
        let clock = match self.virtual_time {
            true => "virtual time",
            false => "device times to some 20 us",
        };
        line(&mut text, format_args!("timeline ({clock})"));
        if self.passes_left_out + self.untimed > 0 {
            line(
                &mut text,
                format_args!(
                    "  not in it: {} passes, {} times",
                    self.passes_left_out, self.untimed
                ),
            );
        }
        line(
            &mut text,
            format_args!(
                "  {:<8}{:>7}{:>11}{:>11}{:>11}{:>13}",
                "tier", "passes", "pass", "median", "between", "link"
            ),
        );
        for tier in &self.tiers {
            line(
                &mut text,
                format_args!(
                    "  {:<8}{:>7}{:>11}{:>11}{:>11}{:>13}",
                    tier.name,
                    tier.passes,
                    time(tier.pass_ns),
                    time(tier.pass_ns_median),
                    time(tier.between_ns),
                    format!("{:.2} GB/s", tier.link_rate as f64 / 1e9),
                ),
            );
        }
        line(
            &mut text,
            format_args!(
                "  {:<8}{:>8}{:>9}{:>9}{:>9}{:>12}{:>11}{:>10}",
                "busy", "link", "compute", "waits", "CPU", "host waits", "callbacks", "submits"
            ),
        );
        for tier in &self.tiers {
            line(
                &mut text,
                format_args!(
                    "  {:<8}{:>8}{:>9}{:>9}{:>9}{:>12}{:>11}{:>10}",
                    tier.name,
                    share(tier.link_busy),
                    share(tier.compute_busy),
                    share(tier.compute_waits),
                    share(tier.cpu_busy),
                    share(tier.host_waits),
                    share(tier.host_callbacks),
                    share(tier.host_submits),
                ),
            );
        }
        for tier in self.tiers.iter().filter(|t| !t.gaps.is_empty()) {
            line(
                &mut text,
                format_args!("  longest gaps of the link, {}:", tier.name),
            );
            for gap in &tier.gaps {
                gap.render(&mut text);
            }
        }
        text
    }
}

impl LinkGap {
    fn render(&self, text: &mut String) {
        let next = match &self.next {
            Some(next) => format!("before {}", shortened(next, 40)),
            None => "until the pass's end".to_string(),
        };
        line(
            text,
            format_args!("  {:>10} in pass {}, {next}", time(self.ns), self.pass),
        );
        if self.not_submitted_ns > 0 {
            let late = time(self.not_submitted_ns);
            line(text, format_args!("             not submitted for {late}"));
        }
        for lane in self.lanes.iter().filter(|lane| lane.busy > 0.0) {
            line(
                text,
                format_args!(
                    "             {} {}: {}",
                    lane.lane,
                    share(lane.busy),
                    shortened(&lane.with, 40)
                ),
            );
        }
    }
}

fn line(text: &mut String, what: std::fmt::Arguments) {
    // writing to a string does not fail
    let _ = writeln!(text, "{what}");
}

fn share(of_one: f64) -> String {
    format!("{:.1} %", of_one * 100.0)
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        _ => format!("{:.2} ms", ns as f64 / 1e6),
    }
}

fn shortened(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_string(),
    }
}

impl TierTimeline {
    /// The tier in one line: what a pass takes and what is busy meanwhile.
    pub fn in_one_line(&self) -> String {
        format!(
            "{}: {} a pass, {} between; link {} at {}/s, GPU {}, CPU {}",
            self.name,
            time(self.pass_ns),
            time(self.between_ns),
            share(self.link_busy),
            ByteSize(self.link_rate),
            share(self.compute_busy),
            share(self.cpu_busy),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_a_terminal() {
        let gap = LinkGap {
            pass: 123,
            ns: 16_543_210,
            next: Some("blk.35.ffn_down_exps.weight, blk.35.ffn_gate_exps.weight".to_string()),
            not_submitted_ns: 1_234,
            lanes: vec![LaneDuringGap {
                lane: "compute 0".to_string(),
                busy: 0.25,
                with: "123: ffn_moe_gate_up_weighted_and_more_than_fits-35".to_string(),
            }],
            ..LinkGap::default()
        };
        let tier = TierTimeline {
            name: "prompt".to_string(),
            passes: 100_000,
            pass_ns: 10_987_654_321,
            pass_ns_median: 9_999_900,
            between_ns: 12_345_678,
            link_rate: 123_450_000_000,
            link_busy: 1.0,
            compute_busy: 1.0,
            gaps: vec![gap.clone(), LinkGap { next: None, ..gap }],
            ..TierTimeline::default()
        };
        let summary = TimelineSummary {
            untimed: 3,
            tiers: vec![tier],
            ..TimelineSummary::default()
        };
        let table = summary.render_table();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for part in [
            "123.45 GB/s",
            "10987.65 ms",
            "9999.9",
            "100.0 %",
            "not submitted",
        ] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
