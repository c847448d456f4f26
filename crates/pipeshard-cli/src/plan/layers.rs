//! What lives where, layer by layer: layers that are placed alike share a row.

use std::collections::BTreeSet;

use pipeshard_plan::plan::{Placement, Plan, Tier, UnitClass};

/// Layers that are placed alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRow {
    /// For example `0-11, 14`.
    pub layers: String,
    /// What becomes of each class that the model has in layers, in the order of [`columns`]; `None` where these layers have none.
    pub parts: Vec<Option<Part>>,
    /// Where the KV cache is; `None` where there is none.
    pub kv_on_device: Option<bool>,
}

/// What becomes of the weights of one class in one layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Share of the bytes that is resident, in percent; 0 and 100 are exact.
    pub resident: u32,
    /// What prompts do with the rest.
    pub prompt: BTreeSet<Placement>,
    /// What generation does with the rest.
    pub decode: BTreeSet<Placement>,
    /// Of the experts that each token chooses, the device fetches some.
    pub fetched: bool,
}

/// The classes that a model has in its layers, in the order in which tables show them.
pub fn columns(plan: &Plan) -> Vec<UnitClass> {
    let classes = [
        UnitClass::Attention,
        UnitClass::FeedForward,
        UnitClass::Experts,
    ];
    let mut found = classes.to_vec();
    found.retain(|class| {
        let mut units = plan.units.iter();
        units.any(|unit| unit.class == *class && unit.layer.is_some())
    });
    found
}

/// The rows, in the order of their first layers; `rows`: what a pass of generation computes at once.
pub fn layer_rows(plan: &Plan, rows: u32) -> Vec<LayerRow> {
    let (Some(prompt), Some(decode)) = (plan.tiers.last(), plan.tier(rows.max(1))) else {
        return Vec::new();
    };
    let layers: BTreeSet<u32> = (plan.units.iter().filter_map(|unit| unit.layer))
        .chain(plan.kv.iter().map(|kv| kv.layer))
        .collect();
    let columns = columns(plan);
    let shared = plan.shared_with_device(rows);
    let mut found: Vec<(Vec<u32>, LayerRow)> = Vec::new();
    for layer in layers {
        let part = |class: &UnitClass| part(plan, (prompt, decode), &shared, *class, Some(layer));
        let row = LayerRow {
            layers: String::new(),
            parts: columns.iter().map(part).collect(),
            kv_on_device: (plan.kv.iter().find(|kv| kv.layer == layer)).map(|kv| kv.device),
        };
        match found.iter_mut().find(|(_, known)| *known == row) {
            Some((alike, _)) => alike.push(layer),
            None => found.push((vec![layer], row)),
        }
    }
    let named = |(layers, row): (Vec<u32>, LayerRow)| LayerRow {
        layers: ranges(&layers),
        ..row
    };
    found.into_iter().map(named).collect()
}

/// What becomes of the output head.
pub fn head(plan: &Plan, rows: u32) -> Option<Part> {
    let (prompt, decode) = (plan.tiers.last()?, plan.tier(rows.max(1))?);
    part(plan, (prompt, decode), &[], UnitClass::Output, None)
}

fn part(
    plan: &Plan,
    (prompt, decode): (&Tier, &Tier),
    shared: &[bool],
    class: UnitClass,
    layer: Option<u32>,
) -> Option<Part> {
    let (mut all, mut resident) = (0_u64, 0_u64);
    let (mut prompts, mut decodes) = (BTreeSet::new(), BTreeSet::new());
    let mut fetched = false;
    for (index, unit) in plan.units.iter().enumerate() {
        if unit.class != class || unit.layer != layer {
            continue;
        }
        all += unit.bytes;
        fetched |= shared.get(index).copied().unwrap_or(false);
        match (prompt.placements[index], decode.placements[index]) {
            (Placement::Resident, _) => resident += unit.bytes,
            (in_prompts, in_decode) => {
                prompts.insert(in_prompts);
                decodes.insert(in_decode);
            }
        }
    }
    if all == 0 {
        return None;
    }
    let percent = u32::try_from(resident * 100 / all).unwrap_or(99);
    Some(Part {
        resident: if prompts.is_empty() {
            100
        } else {
            percent.min(99)
        },
        prompt: prompts,
        decode: decodes,
        fetched,
    })
}

/// `0-3, 7, 9-10` of rising numbers.
pub fn ranges(numbers: &[u32]) -> String {
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
    use pipeshard_plan::plan::{plan, units_from_inventory, PlanInput};

    #[test]
    fn neighbours_become_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[0, 1, 2, 4, 6, 7]), "0-2, 4, 6-7");
    }

    #[test]
    fn rows_cover_every_layer_once_and_say_what_the_plan_says() {
        let units = units_from_inventory(&models::dense(), 1024);
        let full = plan(&PlanInput::new(units.clone(), Vec::new(), 1 << 40)).unwrap();
        let all = layer_rows(&full, 1);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].layers, "0-7");
        assert!(all[0]
            .parts
            .iter()
            .flatten()
            .all(|part| part.resident == 100));
        let middle = (full.minimum_budget + full.full_budget) / 2;
        let some = plan(&PlanInput::new(units, Vec::new(), middle)).unwrap();
        let rows = layer_rows(&some, 1);
        let mut named: Vec<u32> = Vec::new();
        for row in &rows {
            for range in row.layers.split(", ") {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                named.extend(first.parse::<u32>().unwrap()..=last.parse().unwrap());
            }
        }
        named.sort_unstable();
        assert_eq!(named, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(rows.len() > 1);
        let resident: u64 = some
            .residents
            .iter()
            .map(|id| some.units[id.index()].bytes)
            .sum();
        let ffn = |row: &LayerRow| row.parts[1].as_ref().unwrap().resident;
        assert!(resident > 0 && rows.iter().any(|row| ffn(row) < 100));
    }
}
