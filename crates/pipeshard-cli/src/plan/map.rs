//! Budgets and contexts, and what is predicted for each: Markdown, for the documentation.

use std::fmt::Write;

use super::machine::PlannedMachine;
use super::style::{rate, time};
use super::text::limit;
use super::{machine, PlanArgs, PlanCommandError};
use pipeshard_model::inventory::Inventory;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::MACHINES;

const GIB: u64 = 1 << 30;
const BUDGETS: [u64; 4] = [2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB];
const CONTEXTS: [u32; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];

/// A section for each machine: the one that `--profile` names, or all that have names.
///
/// # Errors
/// A profile that cannot be used.
pub fn render(inventory: &Inventory, args: &PlanArgs) -> Result<String, PlanCommandError> {
    let machines: Vec<(PlannedMachine, Option<u64>)> = match &args.profile {
        Some(_) => vec![(machine(args)?, None)],
        None => (MACHINES.iter())
            .map(|machine| (PlannedMachine::named(machine), Some(machine.vram)))
            .collect(),
    };
    let name = inventory.name.as_deref().unwrap_or(&inventory.architecture);
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let mut text = format!(
        "## {name}\n\n{}, {} layers, {} of weights; KV cache {} and {}.\n",
        inventory.architecture,
        inventory.layer_count,
        ByteSize(inventory.weight_bytes()),
        args.cache_type_k.name,
        args.cache_type_v.name
    );
    for (machine, vram) in &machines {
        // writing to a String cannot fail
        let _ = writeln!(
            text,
            "\n### {}\n\n{}\n",
            machine.profile.key.device, machine.source
        );
        let budgets: Vec<u64> = (BUDGETS.into_iter())
            .filter(|&budget| vram.is_none_or(|vram| budget <= vram))
            .collect();
        let names = budgets
            .iter()
            .map(|&budget| format!(" {} |", ByteSize(budget)));
        let _ = writeln!(text, "| context |{}", names.collect::<String>());
        let _ = writeln!(text, "|---:|{}", "---|".repeat(budgets.len()));
        for context in CONTEXTS {
            let cells = budgets.iter().map(|&budget| {
                let found = best(inventory, args, machine, context, budget);
                format!(" {} |", found.unwrap_or_else(|why| why))
            });
            let _ = writeln!(text, "| {}K |{}", context >> 10, cells.collect::<String>());
        }
    }
    Ok(text)
}

/// What is predicted, or why there is nothing.
fn best(
    inventory: &Inventory,
    args: &PlanArgs,
    machine: &PlannedMachine,
    context: u32,
    budget: u64,
) -> Result<String, String> {
    let asked = PlanArgs {
        ctx: context,
        prompt_tokens: Some(context / 4 * 3),
        ..args.clone()
    };
    let question = super::question(inventory, &asked, machine).map_err(|e| e.to_string())?;
    match question.solve(budget, &machine.profile) {
        Ok(solved) => {
            let found = &solved.prediction;
            Ok(format!(
                "{}, {} ({}, {})",
                time(found.ttft),
                rate(found.tps),
                limit(found.prompt.limit),
                limit(found.decode.limit)
            ))
        }
        Err(PlanError::BudgetTooSmall { minimum, .. }) => {
            Err(format!("needs {}", ByteSize(minimum).to_flag()))
        }
        Err(error) => Err(error.to_string()),
    }
}
