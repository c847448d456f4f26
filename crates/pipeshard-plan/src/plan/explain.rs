//! A plan as text for a terminal of 80 columns.

use std::fmt::Write;

use pipeshard_model::size::ByteSize;

use super::types::{Placement, Plan, Tier, UnitClass};

/// Layers per line of the map.
const MAP_WIDTH: usize = 64;

impl Plan {
    /// What lives where, as a short table, a map of the layers and the ledger; no line is wider
    /// than 80 columns.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    /// What the budget is spent on; no line is wider than 80 columns.
    pub fn explain_memory(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_ledger(&mut text);
        text.trim_start().to_owned()
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let weights = self.units.iter().map(|unit| unit.bytes).sum();
        writeln!(
            text,
            "Plan for {} of weights under a budget of {}",
            ByteSize(weights),
            ByteSize(self.budget)
        )?;
        for tier in &self.tiers {
            writeln!(text)?;
            self.write_tier(text, tier)?;
        }
        if let Some(last) = self.tiers.last() {
            self.write_map(text, last)?;
        }
        self.write_ledger(text)
    }

    fn write_tier(&self, text: &mut String, tier: &Tier) -> std::fmt::Result {
        let rows = match (tier.min_rows, tier.max_rows) {
            (min, None) => format!("{min} rows and more"),
            (min, Some(max)) if min == max => format!("{min} row"),
            (min, Some(max)) => format!("{min} to {max} rows"),
        };
        writeln!(text, "{}: {rows}", tier.name)?;
        writeln!(
            text,
            "  {:<11}{:>16}{:>16}{:>16}{:>16}",
            "class", "resident", "in slots", "streamed", "host"
        )?;
        for class in UnitClass::ALL {
            let mut cells = [(0u64, 0u64); 4];
            for (unit, placement) in self.units.iter().zip(&tier.placements) {
                if unit.class == class {
                    let (count, bytes) = &mut cells[*placement as usize];
                    *count += 1;
                    *bytes += unit.bytes;
                }
            }
            if cells.iter().all(|&(count, _)| count == 0) {
                continue;
            }
            write!(text, "  {:<11}", class.label())?;
            for (count, bytes) in cells {
                match count {
                    0 => write!(text, "{:>16}", "-")?,
                    _ => write!(text, "{:>5}{:>11}", count, ByteSize(bytes))?,
                }
            }
            writeln!(text)?;
        }
        let shared = self.shared_with_device(tier.min_rows);
        if shared.contains(&true) {
            let batches = self.fetched_by_batches.iter();
            let batches = batches.filter(|batch| tier.contains(batch.rows));
            let each = batches.map(|batch| format!("{} of {}", batch.experts, batch.rows));
            let single = tier.contains(1).then(|| self.fetched_experts.to_string());
            let all: Vec<String> = single.into_iter().chain(each).collect();
            writeln!(
                text,
                "  Of the experts that a token chooses in a layer on the host, so many are fetched: {}",
                all.join(", ")
            )?;
        }
        Ok(())
    }

    /// One letter per layer and class.
    fn write_map(&self, text: &mut String, tier: &Tier) -> std::fmt::Result {
        let layers = self.units.iter().filter_map(|unit| unit.layer);
        let layers = layers.chain(self.kv.iter().map(|layer| layer.layer));
        let mut layers: Vec<u32> = layers.collect();
        layers.sort_unstable();
        layers.dedup();
        let classes = [
            (UnitClass::Attention, "attn"),
            (UnitClass::FeedForward, "ffn"),
            (UnitClass::Experts, "exps"),
        ];
        let classes = classes.iter().filter(|(class, _)| {
            let mut units = self.units.iter();
            units.any(|unit| unit.class == *class && unit.layer.is_some())
        });
        for part in layers.chunks(MAP_WIDTH) {
            let (first, last) = (part[0], part[part.len() - 1]);
            writeln!(text, "\n{}: layers {first} to {last}", tier.name)?;
            for (class, label) in classes.clone() {
                let letters = part.iter().map(|&layer| self.letter(tier, *class, layer));
                writeln!(text, "  {label:<5}{}", letters.collect::<String>())?;
            }
            if !self.kv.is_empty() {
                let letters = part.iter().map(|&layer| self.kv_letter(layer));
                writeln!(text, "  {:<5}{}", "kv", letters.collect::<String>())?;
            }
        }
        if layers.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "  R resident, K in slots, S streamed, H host, + mixed; KV: V VRAM, H host"
        )
    }

    fn letter(&self, tier: &Tier, class: UnitClass, layer: u32) -> char {
        let of_layer = self.units.iter().zip(&tier.placements);
        let mut found: Vec<Placement> = of_layer
            .filter(|(unit, _)| unit.class == class && unit.layer == Some(layer))
            .map(|(_, placement)| *placement)
            .collect();
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [] => '.',
            [Placement::Resident] => 'R',
            [Placement::Kept] => 'K',
            [Placement::Streamed] => 'S',
            [Placement::Host] => 'H',
            _ => '+',
        }
    }

    fn kv_letter(&self, layer: u32) -> char {
        let mut of_layer = self.kv.iter().filter(|kv| kv.layer == layer);
        match of_layer.next() {
            None => '.',
            Some(kv) if kv.device => 'V',
            Some(_) => 'H',
        }
    }

    fn write_ledger(&self, text: &mut String) -> std::fmt::Result {
        let ledger = &self.ledger;
        let host_kv = self.kv.iter().filter(|kv| !kv.device).map(|kv| kv.bytes);
        let scratch = match self.scratch_estimated {
            true => "scratch (estimated)",
            false => "scratch",
        };
        let resident = format!("resident weights in {}", count(self.chunks.len(), "chunk"));
        let slots = format!(
            "slots for {}",
            count(self.ring.groups.len(), "streamed group")
        );
        let kv = match host_kv.sum() {
            0 => "KV cache".to_owned(),
            host => format!("KV cache (and {} on the host)", ByteSize(host)),
        };
        writeln!(text, "\nDevice memory")?;
        for (what, bytes) in [
            (resident.as_str(), ledger.resident),
            (slots.as_str(), ledger.slots),
            (kv.as_str(), ledger.kv),
            (scratch, ledger.scratch),
            ("backend reserve", ledger.reserve),
            ("encoders of images and sound", ledger.encoders),
        ] {
            if bytes > 0 || what == kv {
                writeln!(text, "  {what:<48}{:>12}", ByteSize(bytes))?;
            }
        }
        let spare = self.budget.saturating_sub(ledger.total());
        writeln!(
            text,
            "  {:<48}{:>12}",
            format!("total, {} of the budget unused", ByteSize(spare)),
            ByteSize(ledger.total())
        )?;
        writeln!(
            text,
            "Smallest budget that works: {}. All weights resident from: {}.",
            ByteSize(self.minimum_budget).to_flag(),
            ByteSize(self.full_budget).to_flag()
        )
    }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
