//! A report as text for a terminal of 80 columns.

use pipeshard_model::size::ByteSize;

use super::types::{Report, SavedPlanUse, UnitCounts};

const WIDTH: usize = 80;
const INDENT: usize = 18;
/// Becomes a blank when the lines have been broken.
const NO_BREAK: &str = "\u{a0}";

impl Report {
    /// A few lines, none wider than 80 columns; the first says whether pipeshard was engaged, or
    /// why not.
    pub fn render_table(&self) -> String {
        let mut text = String::new();
        if self.engaged {
            let device = match self.device.as_str() {
                "" => "an unnamed device",
                name => name,
            };
            let first = format!("pipeshard: engaged on {device}");
            wrap(&mut text, "", 2, &first);
            if let Some(plan) = &self.saved_plan {
                field(&mut text, "saved plan", &followed(plan));
            }
            self.memory(&mut text);
            self.work(&mut text);
            self.prediction(&mut text);
        } else {
            let reason = match &self.reason {
                Some(reason) => reason.as_str(),
                None => "nothing was computed",
            };
            let first = format!("pipeshard: off, because {reason}");
            wrap(&mut text, "", 2, &first);
        }
        for error in &self.errors {
            field(&mut text, "error", error);
        }
        text
    }

    fn prediction(&self, text: &mut String) {
        let Some(predicted) = &self.predicted else {
            return;
        };
        field(text, "predicted", &predicted.sentence());
        let Some(calibration) = &self.calibration else {
            return;
        };
        if let Some(compared) = calibration.sentence() {
            field(text, "measured", &compared);
        }
        if let Some(warning) = calibration.warning(predicted.profile) {
            field(text, "prediction off", &warning);
        }
    }

    fn memory(&self, text: &mut String) {
        let peak = &self.peak;
        let held = format!("peak {} of {}", size(peak.total), size(self.budget));
        field(text, "device memory", &held);
        let classes = [
            ("resident", peak.resident),
            ("KV", peak.kv),
            ("slots", peak.slots),
            ("scratch", peak.scratch),
            ("vision", peak.vision),
            ("other", peak.other),
        ];
        let held = classes.iter().filter(|(_, bytes)| *bytes > 0);
        let held: Vec<String> = held.map(|(name, bytes)| named(name, *bytes)).collect();
        if !held.is_empty() {
            field(text, "", &held.join(", "));
        }
        if self.context_bytes > 0 {
            let context = size(self.context_bytes);
            field(
                text,
                "",
                &format!("outside the budget: {context} for the bare device"),
            );
        }
        let mut locked = size(self.page_locked_bytes);
        if let Some(why) = &self.page_lock_refused {
            locked += &format!("; refused beyond that, because {why}");
        }
        field(text, "page-locked", &locked);
    }

    fn work(&self, text: &mut String) {
        let passes = format!(
            "{} prompt, {} decode; {} reused their graph",
            self.passes.prompt, self.passes.decode, self.graph_reuses
        );
        field(text, "passes", &passes);
        let mut streamed = format!(
            "{} in {}, {}",
            size(self.bytes_streamed),
            count(self.copies, "copy", "copies"),
            count(self.stalls, "stall", "stalls"),
        );
        if self.staged_bytes > 0 {
            streamed += &format!("; {} through staging", size(self.staged_bytes));
        }
        field(text, "streamed", &streamed);
        let experts = &self.experts;
        if experts.copied > 0 || experts.reused > 0 {
            let chosen = format!(
                "{} copied, {} reused; {} not moved",
                experts.copied,
                experts.reused,
                size(experts.bytes_saved)
            );
            field(text, "chosen experts", &chosen);
        }
        if experts.fetched > 0 {
            let (number, bytes) = (experts.fetched, size(experts.bytes_fetched));
            let beside = format!("{number} fetched while the CPU computed others; {bytes}");
            field(text, "shared experts", &beside);
        }
        if self.attentions_over_host_kv > 0 {
            let number = self.attentions_over_host_kv;
            let over = format!("{number} on the device over KV cache in host memory");
            field(text, "attentions", &over);
        }
        if let Some(vision) = &self.vision {
            field(text, "vision", &vision.sentence());
        }
        let uploaded = format!("{} into residents", size(self.bytes_uploaded));
        field(text, "uploaded", &uploaded);
        for (label, units) in [
            ("prompt weights", &self.units.prompt),
            ("decode weights", &self.units.decode),
        ] {
            if !units.is_empty() {
                field(text, label, &placements(units));
            }
        }
        for tier in self.timeline.iter().flat_map(|t| &t.tiers) {
            field(text, "timeline", &tier.in_one_line());
        }
        let waits = &self.host_waits;
        let waited = format!(
            "{} for hand-overs, {} for user inputs, {}{} for staging",
            waits.hand_overs,
            waits.user_inputs,
            match waits.expert_choices {
                0 => String::new(),
                choices => format!("{choices} for chosen experts, "),
            },
            waits.staging
        );
        field(text, "host waits", &waited);
        let rare = [
            (self.budget_changes, "change of budget", "changes of budget"),
            (self.replans, "new plan", "new plans"),
            (
                self.reallocations_after_reserve,
                "reallocation after the reserve",
                "reallocations after the reserve",
            ),
        ];
        let rare = rare.iter().filter(|(number, ..)| *number > 0);
        let rare: Vec<String> = rare.map(|(n, one, many)| count(*n, one, many)).collect();
        if !rare.is_empty() {
            field(text, "while running", &rare.join(", "));
        }
    }
}

fn followed(plan: &SavedPlanUse) -> String {
    match plan.dropped {
        0 => format!("{}, all its {} residents", plan.file, plan.residents),
        dropped => format!(
            "{}; {dropped} of its {} residents ({}) had no room",
            plan.file,
            plan.residents,
            size(plan.dropped_bytes)
        ),
    }
}

/// A size whose unit stays on the line of its number.
fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string().replace(' ', NO_BREAK)
}

fn named(name: &str, bytes: u64) -> String {
    format!("{name}{NO_BREAK}{}", size(bytes))
}

fn placements(units: &UnitCounts) -> String {
    let kept = match units.kept {
        0 => String::new(),
        kept => format!("{kept} in slots, "),
    };
    format!(
        "{} resident, {kept}{} streamed, {} on the host",
        units.resident, units.streamed, units.host
    )
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn field(text: &mut String, label: &str, value: &str) {
    let label = format!("  {label:<width$}", width = INDENT - 2);
    wrap(text, &label, INDENT, value);
}

/// Appends lines of at most [`WIDTH`] columns: `first` and as many words as fit, then the rest
/// after `indent` blanks. A word that is longer than a line is broken.
fn wrap(text: &mut String, first: &str, indent: usize, words: &str) {
    let mut line = first.to_owned();
    let mut used = first.chars().count();
    let mut begun = false;
    let mut start_line = |line: &mut String, used: &mut usize| {
        text.push_str(line.replace(NO_BREAK, " ").trim_end());
        text.push('\n');
        *line = " ".repeat(indent);
        *used = indent;
    };
    let breaks = |c: char| c.is_whitespace() && !NO_BREAK.contains(c);
    for word in words.split(breaks).filter(|word| !word.is_empty()) {
        // Control characters have no width and no business here.
        let mut rest: Vec<char> = word.chars().filter(|c| !c.is_control()).collect();
        if begun && used + 1 + rest.len() > WIDTH {
            start_line(&mut line, &mut used);
            begun = false;
        }
        if begun {
            line.push(' ');
            used += 1;
        }
        while used + rest.len() > WIDTH {
            let tail = rest.split_off(WIDTH - used);
            line.extend(rest);
            start_line(&mut line, &mut used);
            rest = tail;
        }
        used += rest.len();
        line.extend(rest);
        begun = true;
    }
    start_line(&mut line, &mut used);
}

#[cfg(test)]
mod tests {
    use super::super::calibration::{self, CalibrationCounts};
    use super::super::types::*;
    use super::*;
    use proptest::prelude::*;

    fn engaged() -> Report {
        Report {
            engaged: true,
            build: "b1234".to_owned(),
            device: "SIM0".to_owned(),
            budget: 40 << 20,
            peak: MemoryPeak {
                resident: 12 << 20,
                kv: 8 << 20,
                slots: 6 << 20,
                scratch: 9 << 20,
                vision: 0,
                other: 0,
                total: 35 << 20,
            },
            context_bytes: 300 << 20,
            passes: PassCounts {
                decode: 31,
                prompt: 1,
            },
            graph_reuses: 29,
            bytes_streamed: 70 << 20,
            bytes_uploaded: 12 << 20,
            copies: 40,
            stalls: 1,
            host_waits: HostWaits {
                hand_overs: 62,
                user_inputs: 32,
                ..HostWaits::default()
            },
            units: UnitPlacements {
                decode: UnitCounts {
                    kept: 4,
                    resident: 100,
                    streamed: 0,
                    host: 120,
                },
                prompt: UnitCounts {
                    kept: 0,
                    resident: 100,
                    streamed: 119,
                    host: 1,
                },
            },
            page_locked_bytes: 98 << 20,
            ..Report::default()
        }
    }

    #[test]
    fn a_run_reads_well() {
        insta::assert_snapshot!(engaged().render_table());
    }

    #[test]
    fn trouble_shows() {
        let report = Report {
            page_locked_bytes: 0,
            staged_bytes: 82 << 20,
            page_lock_refused: Some("the system allows 64 KiB of locked memory".to_owned()),
            budget_changes: 1,
            replans: 2,
            reallocations_after_reserve: 1,
            experts: ExpertCounts {
                copied: 812,
                reused: 40,
                bytes_saved: 130 << 20,
                ..ExpertCounts::default()
            },
            host_waits: HostWaits {
                expert_choices: 48,
                ..engaged().host_waits
            },
            errors: vec!["an allocation of 64 MiB failed".to_owned()],
            predicted: Some(calibration::tests::predicted()),
            calibration: Some(CalibrationCounts {
                decode: calibration::tests::times(0.5, true),
                prompt: calibration::tests::times(0.1, false),
            }),
            ..engaged()
        };
        insta::assert_snapshot!(report.render_table());
    }

    #[test]
    fn the_first_line_says_why_it_is_off() {
        let table = Report::off("there is no GPU and no --pipeshard-sim").render_table();
        let expected = "pipeshard: off, because there is no GPU and no --pipeshard-sim\n";
        assert_eq!(table, expected);
        let table = Report::default().render_table();
        assert_eq!(table, "pipeshard: off, because nothing was computed\n");
    }

    #[test]
    fn long_words_are_broken() {
        let mut text = String::new();
        wrap(&mut text, "ab", 4, &"x".repeat(160));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("ab{}", "x".repeat(78)));
        assert_eq!(lines[1], format!("    {}", "x".repeat(76)));
        assert_eq!(lines[2], format!("    {}", "x".repeat(6)));
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_a_terminal(
            device in ".{0,200}", reason in prop::option::of("[a-z ]{0,300}"),
            errors in prop::collection::vec("[a-z]{0,90} .{0,90}", 0..3),
            numbers in any::<[u64; 6]>(), engaged in any::<bool>(),
        ) {
            let [total, budget, context, streamed, copies, locked] = numbers;
            let report = Report {
                engaged,
                device,
                page_lock_refused: reason.clone(),
                reason,
                errors,
                budget,
                peak: MemoryPeak { total, resident: budget, kv: total, ..MemoryPeak::default() },
                context_bytes: context,
                bytes_streamed: streamed,
                copies,
                stalls: copies,
                page_locked_bytes: locked,
                experts: ExpertCounts { copied: copies, reused: total, bytes_saved: total, ..ExpertCounts::default() },
                host_waits: HostWaits {
                    hand_overs: copies,
                    user_inputs: copies,
                    expert_choices: copies,
                    staging: copies,
                },
                ..super::tests::engaged()
            };
            let table = report.render_table();
            let first = if engaged { "pipeshard: engaged" } else { "pipeshard: off" };
            prop_assert!(table.starts_with(first));
            for line in table.lines() {
                prop_assert!(line.chars().count() <= WIDTH, "{}", line);
            }
        }
    }
}
