//! What is in VRAM, streamed, and left to the CPU: one table for the prompt and one for generation.

use std::collections::BTreeSet;
use std::fmt::Write;

use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{Placement, Plan, UnitClass};

use super::answer::Answer;
use super::style::{trim, DEVICE, HEADING, HOST, QUIET, STREAMED};

/// Width of the first column.
const LABEL: usize = 24;
/// Width of each of the three other columns.
const COLUMN: usize = 24;

/// Bytes that are treated alike, and the layers that they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of weights, or of the KV cache.
    pub bytes: u64,
    /// The layers, by number; none for what belongs to no layer.
    pub layers: BTreeSet<u32>,
}

impl Share {
    fn add(&mut self, bytes: u64, layer: Option<u32>) {
        self.bytes += bytes;
        self.layers.extend(layer);
    }

    /// For example `336 MiB, layers 0-1`.
    fn text(&self) -> String {
        let size = ByteSize(self.bytes);
        if self.bytes == 0 {
            return "-".to_owned();
        }
        let numbers: Vec<u32> = self.layers.iter().copied().collect();
        match numbers.len() {
            0 => size.to_string(),
            1 => format!("{size}, layer {}", numbers[0]),
            count => {
                let named = format!("{size}, layers {}", ranges(&numbers));
                match named.len() + 2 <= COLUMN {
                    true => named,
                    false => format!("{size}, {count} layers"),
                }
            }
        }
    }
}

/// One row: a class of weights, or the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// In VRAM without a copy in this phase: resident, or left in the ring by the prompt.
    pub vram: Share,
    /// Copied into VRAM, once per pass.
    pub streamed: Share,
    /// Used by the CPU, from host memory.
    pub cpu: Share,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Row {
            name,
            vram: Share::default(),
            streamed: Share::default(),
            cpu: Share::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.vram.bytes + self.streamed.bytes + self.cpu.bytes == 0
    }
}

/// What a pass of a phase finds where: one row for each class of weights, and one for the KV cache.
pub fn rows(plan: &Plan, phase: Phase) -> Vec<Row> {
    // short ubatches may be below the tier that plans call "prompt"
    let Some(tier) = plan.tier(phase.rows()) else {
        return Vec::new();
    };
    let shared = plan.shared_with_device(phase.rows());
    let experts = plan.units.iter().any(|u| u.class == UnitClass::Experts);
    let mut rows = [
        Row::new("attention"),
        Row::new(match experts {
            true => "router, shared experts",
            false => "feed-forward",
        }),
        Row::new(match shared.contains(&true) {
            true => "experts (GPU helps CPU)",
            false => "experts",
        }),
        Row::new("output head"),
        Row::new("embeddings, norms"),
        Row::new("KV cache"),
    ];
    for (unit, placement) in plan.units.iter().zip(&tier.placements) {
        let row = &mut rows[match unit.class {
            UnitClass::Attention => 0,
            UnitClass::FeedForward => 1,
            UnitClass::Experts => 2,
            UnitClass::Output => 3,
            UnitClass::Small | UnitClass::HostOnly => 4,
        }];
        // norms are everywhere, so naming their layers says nothing
        let named = !matches!(unit.class, UnitClass::Small | UnitClass::HostOnly);
        let share = match placement {
            Placement::Resident | Placement::Kept => &mut row.vram,
            Placement::Streamed => &mut row.streamed,
            Placement::Host => &mut row.cpu,
        };
        share.add(unit.bytes, unit.layer.filter(|_| named));
    }
    let copied = phase.rows() >= plan.host_kv_min_rows;
    for kv in &plan.kv {
        let share = match (kv.device, copied) {
            (true, _) => &mut rows[5].vram,
            (false, true) => &mut rows[5].streamed,
            (false, false) => &mut rows[5].cpu,
        };
        share.add(kv.bytes, Some(kv.layer));
    }
    rows.into_iter().filter(|row| !row.is_empty()).collect()
}

/// A phase of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Passes of a prompt, of `ubatch` tokens each.
    Prompt {
        /// Tokens per pass.
        ubatch: u32,
    },
    /// Passes with one token of each sequence.
    Generation {
        /// Sequences that generate together.
        sequences: u32,
    },
}

impl Phase {
    fn rows(self) -> u32 {
        match self {
            Phase::Prompt { ubatch } => ubatch.max(1),
            Phase::Generation { sequences } => sequences.max(1),
        }
    }

    fn title(self) -> String {
        match self {
            Phase::Prompt { ubatch } => format!("Prompt, per {ubatch} tokens"),
            Phase::Generation { sequences: 0 | 1 } => "Generation, per token".to_owned(),
            Phase::Generation { sequences } => format!("Generation, per {sequences} tokens"),
        }
    }
}

/// Both tables, or one where the phases are alike.
pub fn render(text: &mut String, answer: &Answer) -> std::fmt::Result {
    let workload = &answer.workload;
    let tokens = (workload.prompt.max(1)).saturating_mul(workload.sequences.max(1));
    let prompt = Phase::Prompt {
        ubatch: workload.ubatch.min(tokens),
    };
    let generation = Phase::Generation {
        sequences: workload.sequences,
    };
    let [first, second] = [prompt, generation].map(|phase| rows(&answer.plan, phase));
    match first == second {
        true => table(text, "Prompt and generation", &first),
        false => {
            table(text, &prompt.title(), &first)?;
            table(text, &generation.title(), &second)
        }
    }
}

fn table(text: &mut String, title: &str, rows: &[Row]) -> std::fmt::Result {
    write!(text, "\n{HEADING}{title:<width$}", width = LABEL + 2)?;
    for column in ["in VRAM", "streamed into VRAM", "computed by the CPU"] {
        write!(text, "{column:<COLUMN$}")?;
    }
    trim(text);
    writeln!(text, "{HEADING:#}")?;
    let mut all = Row::new("all weights");
    for row in rows {
        if row.name == "KV cache" {
            line(text, &all)?;
        }
        line(text, row)?;
        all.vram.bytes += row.vram.bytes;
        all.streamed.bytes += row.streamed.bytes;
        all.cpu.bytes += row.cpu.bytes;
    }
    match rows.last().map(|row| row.name) {
        Some("KV cache") | None => Ok(()),
        Some(_) => line(text, &all),
    }
}

fn line(text: &mut String, row: &Row) -> std::fmt::Result {
    write!(text, "  {:<LABEL$}", row.name)?;
    for (share, style) in [
        (&row.vram, DEVICE),
        (&row.streamed, STREAMED),
        (&row.cpu, HOST),
    ] {
        let said = share.text();
        let style = if share.bytes == 0 { QUIET } else { style };
        let gap = COLUMN.saturating_sub(said.chars().count());
        write!(text, "{style}{said}{style:#}{:gap$}", "")?;
    }
    trim(text);
    writeln!(text)
}

/// `0-3, 7, 9-10` of rising numbers.
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_model::test_support as models;
    use pipeshard_plan::plan::{plan, units_from_inventory, KvLayer, PlanInput};

    #[test]
    fn neighbours_become_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[0, 1, 2, 4, 6, 7]), "0-2, 4, 6-7");
    }

    fn input(budget: u64) -> PlanInput {
        let units = units_from_inventory(&models::dense(), 1024);
        let kv = (0..8).map(|layer| KvLayer {
            layer,
            bytes: 1 << 20,
        });
        PlanInput::new(units, kv.collect(), budget)
    }

    const PROMPT: Phase = Phase::Prompt { ubatch: 512 };
    const TOKEN: Phase = Phase::Generation { sequences: 1 };

    #[test]
    fn every_byte_of_every_phase_is_in_one_place() {
        let full = plan(&input(1 << 40)).unwrap();
        for percent in [0, 20, 50, 80, 100] {
            let between = full.full_budget - full.minimum_budget;
            let plan = plan(&input(full.minimum_budget + between * percent / 100)).unwrap();
            let weights: u64 = plan.units.iter().map(|unit| unit.bytes).sum();
            let kv: u64 = plan.kv.iter().map(|kv| kv.bytes).sum();
            for phase in [PROMPT, TOKEN] {
                let rows = rows(&plan, phase);
                let sum = |row: &Row| row.vram.bytes + row.streamed.bytes + row.cpu.bytes;
                assert_eq!(rows.iter().map(sum).sum::<u64>(), weights + kv);
                // resident weights are in VRAM in every phase
                let held = rows.iter().map(|row| row.vram.bytes).sum::<u64>();
                let resident = plan.residents.iter();
                let resident: u64 = resident.map(|id| plan.units[id.index()].bytes).sum();
                assert!(held >= resident, "{percent} {phase:?}");
            }
        }
    }

    #[test]
    fn short_ubatches_are_treated_as_their_number_of_rows_asks_for() {
        let lowest = plan(&input(1 << 40)).unwrap().minimum_budget;
        let few = PlanInput {
            stream_min_rows: 128,
            ..input(lowest)
        };
        let plan = plan(&few).unwrap();
        let streamed = |ubatch| {
            let rows = rows(&plan, Phase::Prompt { ubatch });
            rows[1].streamed.bytes
        };
        assert_eq!(streamed(127), 0);
        assert!(streamed(128) > 0);
    }

    #[test]
    fn a_cache_on_the_host_is_streamed_or_left_to_the_cpu_by_the_rows_of_a_pass() {
        let mut plan = plan(&input(1 << 40)).unwrap();
        plan.kv[7].device = false;
        plan.host_kv_min_rows = 32;
        let cache = |phase| rows(&plan, phase).pop().unwrap();
        assert_eq!(cache(PROMPT).vram.text(), "7 MiB, layers 0-6");
        assert_eq!(cache(PROMPT).streamed.text(), "1 MiB, layer 7");
        assert_eq!(cache(TOKEN).streamed.text(), "-");
        assert_eq!(cache(TOKEN).cpu.text(), "1 MiB, layer 7");
    }
}
