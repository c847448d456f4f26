//! `pipeshard plan`: what would live where, without loading the model and without a device.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::inventory::{kv_bytes, DType, Inventory, InventoryError};
use crate::plan::{
    default_small_threshold, estimate_scratch, plan, units_from_inventory, KvLayer, Plan,
    PlanError, PlanInput, UnitClass, UnitId,
};
use crate::size::ByteSize;

/// llama.cpp rounds a context up to this many cells.
const CONTEXT_PADDING: u64 = 256;

/// Arguments of `pipeshard plan`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  pipeshard plan model.gguf --vram 4G
  pipeshard plan model.gguf --vram 4G --ctx 32768 --cache-type-k q8_0 --cache-type-v q8_0
  pipeshard plan model.gguf --vram 6G --ubatch 2048 --reserve 96M
  pipeshard plan model.gguf --vram 4G --json | jq .plan.ledger

Sizes are written as 4G, 1.5G, 1500M or plain bytes; K, M and G are powers of 1024.
The model is not loaded and no device is opened. Compute buffers are therefore
estimated from the shapes of the weights; a run measures them and may plan a little
more or less.")]
pub struct PlanArgs {
    /// The model, a GGUF file (the first one, if it is split)
    pub model: PathBuf,

    /// The most device memory to use, for example 4G or 1500M
    #[arg(long, value_name = "SIZE", visible_alias = "pipeshard-vram")]
    pub vram: ByteSize,

    /// Tokens of context; 0 takes what the model was trained for
    #[arg(
        short = 'c',
        long,
        value_name = "N",
        default_value_t = 0,
        visible_alias = "ctx-size"
    )]
    pub ctx: u32,

    /// Tokens of a prompt that are computed at a time
    #[arg(
        long, value_name = "N", default_value_t = 512, visible_alias = "ubatch-size",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub ubatch: u32,

    /// Type of the keys in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_k: &'static DType,

    /// Type of the values in the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type)]
    pub cache_type_v: &'static DType,

    /// What the device's backend keeps for itself; some 208M and more on a GPU
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub reserve: ByteSize,

    /// What the device's driver rounds allocations up to
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = granularity)]
    pub granularity: ByteSize,

    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

/// Why `pipeshard plan` has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum PlanCommandError {
    /// The model cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The context to plan for is unknown.
    #[error(
        "the model does not say what context it was trained for: give one, for example --ctx 4096"
    )]
    NoContext,
    /// The result cannot be printed.
    #[error("cannot print the plan: {0}")]
    Output(#[from] io::Error),
}

fn cache_type(name: &str) -> Result<&'static DType, String> {
    const USABLE: [&str; 9] = [
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
    ];
    let usable = USABLE.contains(&name).then(|| DType::from_name(name));
    let no_type = || {
        format!(
            "a KV cache has no such type; use one of {}",
            USABLE.join(", ")
        )
    };
    usable.flatten().ok_or_else(no_type)
}

fn granularity(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("allocations cannot be multiples of zero bytes".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Output<'a> {
    model: String,
    architecture: &'a str,
    context: u64,
    ubatch: u32,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    plan: &'a Plan,
}

/// Plans and prints to standard output.
///
/// # Errors
///
/// A model that cannot be read, a budget that is too small, an output that cannot be written to.
pub fn run(args: PlanArgs) -> Result<(), PlanCommandError> {
    let inventory = Inventory::from_gguf(&args.model)?;
    let text = render(&inventory, &args)?;
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn render(inventory: &Inventory, args: &PlanArgs) -> Result<String, PlanCommandError> {
    let context = context(inventory, args)?;
    let plan = plan_for(inventory, args, context)?;
    if args.json {
        let output = Output {
            model: args.model.display().to_string(),
            architecture: &inventory.architecture,
            context,
            ubatch: args.ubatch,
            cache_type_k: args.cache_type_k.name,
            cache_type_v: args.cache_type_v.name,
            plan: &plan,
        };
        let json = serde_json::to_string_pretty(&output).map_err(io::Error::from)?;
        return Ok(json + "\n");
    }
    Ok(format!(
        "Context {context}, micro-batch {}, KV cache {} and {}\n{}",
        args.ubatch,
        args.cache_type_k.name,
        args.cache_type_v.name,
        plan.explain()
    ))
}

/// Cells of the KV cache.
fn context(inventory: &Inventory, args: &PlanArgs) -> Result<u64, PlanCommandError> {
    let wanted = match args.ctx {
        0 => inventory.context_length,
        wanted => wanted,
    };
    match wanted {
        0 => Err(PlanCommandError::NoContext),
        wanted => Ok(u64::from(wanted).next_multiple_of(CONTEXT_PADDING)),
    }
}

/// The plan with the output head's logits in device memory; where that leaves no room for the
/// head itself, the plan with both on the host.
fn plan_for(inventory: &Inventory, args: &PlanArgs, context: u64) -> Result<Plan, PlanError> {
    let units = units_from_inventory(inventory, default_small_threshold(inventory));
    let ubatch = u64::from(args.ubatch);
    let kv = inventory.kv.layers.iter().map(|layer| KvLayer {
        layer: layer.layer,
        bytes: kv_bytes(
            layer,
            layer.cells(context, ubatch, 1),
            args.cache_type_k,
            args.cache_type_v,
        ),
    });
    let kv: Vec<KvLayer> = kv.collect();
    let cells = u32::try_from(context).unwrap_or(u32::MAX);
    let input = |outputs| PlanInput {
        scratch: estimate_scratch(inventory, args.ubatch, cells, outputs),
        scratch_estimated: true,
        reserve: args.reserve.0,
        granularity: args.granularity.0,
        output_on_host: outputs == 0,
        ..PlanInput::new(units.clone(), kv.clone(), args.vram.0)
    };
    let with_head = input(args.ubatch);
    if let Ok(found) = plan(&with_head) {
        let is_head = |id: &UnitId| found.units[id.index()].class == UnitClass::Output;
        if found.residents.iter().any(is_head) {
            return Ok(found);
        }
    }
    let mut headless = plan(&input(0))?;
    let unlimited = PlanInput {
        budget: u64::MAX,
        ..with_head
    };
    headless.full_budget = plan(&unlimited)?.full_budget;
    Ok(headless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::models;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        args: PlanArgs,
    }

    fn args(line: &str) -> Result<PlanArgs, clap::Error> {
        let words = ["plan"].into_iter().chain(line.split_whitespace());
        Tool::try_parse_from(words).map(|tool| tool.args)
    }

    #[test]
    fn shows_a_table() {
        let args = args("m.gguf --vram 40M --ctx 1000 --ubatch 64 --granularity 64K").unwrap();
        insta::assert_snapshot!(render(&models::dense(), &args).unwrap());
    }

    #[test]
    fn prints_json() {
        let args = args("m.gguf --vram 40M -c 1024 --cache-type-k q8_0 --json").unwrap();
        let text = render(&models::moe(), &args).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["context"], 1024);
        assert_eq!(json["cache_type_k"], "q8_0");
        assert_eq!(json["plan"]["budget"], 40 << 20);
        assert_eq!(json["plan"]["scratch_estimated"], true);
        let plan: Plan = serde_json::from_value(json["plan"].clone()).unwrap();
        assert!(plan.ledger.total() <= plan.budget);
    }

    #[test]
    fn the_context_defaults_to_the_models() {
        let default = args("m.gguf --vram 1G").unwrap();
        assert_eq!(context(&models::dense(), &default).unwrap(), 4096);
        let typed = args("m.gguf --vram 1G --ctx-size 1000").unwrap();
        assert_eq!(context(&models::dense(), &typed).unwrap(), 1024);
        let mut silent = models::dense();
        silent.context_length = 0;
        let error = context(&silent, &default).unwrap_err();
        assert!(error.to_string().contains("--ctx 4096"));
    }

    #[test]
    fn the_cache_grows_with_context_and_type() {
        let kv = |line: &str| {
            let args = args(&format!("m.gguf --vram 4G {line}")).unwrap();
            let context = context(&models::dense(), &args).unwrap();
            plan_for(&models::dense(), &args, context)
                .unwrap()
                .ledger
                .kv
        };
        assert_eq!(kv("--ctx 1024"), 8 * 1024 * 1024 * 2);
        assert_eq!(kv("--ctx 2048"), 2 * kv("--ctx 1024"));
        assert_eq!(
            kv("--ctx 1024 --cache-type-v f32"),
            kv("--ctx 1024") * 3 / 2
        );
    }

    #[test]
    fn layers_with_a_window_cache_less() {
        let args = args("m.gguf --vram 4G --ctx 4096 --ubatch 64").unwrap();
        let mut model = models::dense();
        for layer in &mut model.kv.layers[..4] {
            layer.window = Some(128);
        }
        let kv = plan_for(&model, &args, 4096).unwrap().ledger.kv;
        assert_eq!(kv, 4 * (4096 + 256) * 1024 * 2);
    }

    #[test]
    fn the_minimum_that_is_named_works() {
        for model in [models::dense(), models::moe()] {
            let tiny = args("m.gguf --vram 1M --ctx 1024").unwrap();
            let error = render(&model, &tiny).unwrap_err();
            let PlanCommandError::Plan(PlanError::BudgetTooSmall { minimum, .. }) = error else {
                panic!("{error}");
            };
            let named = ByteSize(minimum).to_flag();
            let enough = args(&format!("m.gguf --vram {named} --ctx 1024")).unwrap();
            render(&model, &enough).unwrap();
            let less = args(&format!("m.gguf --vram {} --ctx 1024", minimum - 1)).unwrap();
            render(&model, &less).unwrap_err();
        }
    }

    #[test]
    fn the_head_and_its_logits_go_together() {
        let with = args("m.gguf --vram 4G --ctx 1024 --ubatch 512").unwrap();
        let all = plan_for(&models::dense(), &with, 1024).unwrap();
        assert!(all.ledger.scratch >= 512 * 8192 * 4);
        let tight = ByteSize(all.full_budget - 1);
        let without = PlanArgs {
            vram: tight,
            ..with
        };
        let most = plan_for(&models::dense(), &without, 1024).unwrap();
        assert!(most.ledger.scratch < all.ledger.scratch);
        let prompt = most.tier(512).unwrap();
        assert_eq!(prompt.placements[0], crate::plan::Placement::Host);
    }

    #[test]
    fn bad_arguments_are_explained() {
        for (line, part) in [
            ("m.gguf", "--vram"),
            ("m.gguf --vram 4X", "'4X' is no size"),
            (
                "m.gguf --vram 1G --cache-type-k q2_K",
                "use one of f32, f16",
            ),
            ("m.gguf --vram 1G --ubatch 0", "0 is not in"),
            ("m.gguf --vram 1G --granularity 0", "multiples of zero"),
            ("--vram 1G", "<MODEL>"),
        ] {
            let message = args(line).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn a_model_that_is_missing_is_an_error() {
        let args = args("no/such/model.gguf --vram 1G").unwrap();
        let error = run(args).unwrap_err();
        assert!(error.to_string().contains("no/such/model.gguf"), "{error}");
    }
}
