//! The same prompts and tokens with model and context made in different ways.

use crate::matrix::feature::{as_it_is, Feature, Need, Outcome, Setup, Side, Stage, Step};
use crate::matrix::models;
use pipeshard_llama::{Batch, FlashAttention, LoadMode, Side as Memory};
use pipeshard_sys as ffi;

/// A step at the case's budget.
pub(super) const fn case(run: fn(&mut Stage) -> Outcome) -> Step {
    Step {
        side: Side::Case,
        run,
    }
}

const GENERATE: &[Step] = &[case(generate)];

fn q8_0_cache(s: &mut Setup) {
    s.context.kv_types = (ffi::GGML_TYPE_Q8_0, ffi::GGML_TYPE_Q8_0);
    s.context.flash_attention = FlashAttention::On;
}

fn q4_0_cache(s: &mut Setup) {
    s.context.kv_types = (ffi::GGML_TYPE_Q4_0, ffi::GGML_TYPE_Q4_0);
    s.context.flash_attention = FlashAttention::On;
}

fn q8_0_keys(s: &mut Setup) {
    s.context.kv_types.0 = ffi::GGML_TYPE_Q8_0;
    s.context.flash_attention = FlashAttention::Off;
}

fn f32_cache(s: &mut Setup) {
    s.context.kv_types = (ffi::GGML_TYPE_F32, ffi::GGML_TYPE_F32);
}

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature::new("generate", "prompts and generation", as_it_is, GENERATE),
    Feature::new(
        "fa-on",
        "flash attention on (-fa on)",
        |s| s.context.flash_attention = FlashAttention::On,
        GENERATE,
    ),
    Feature::new(
        "fa-off",
        "flash attention off (-fa off)",
        |s| s.context.flash_attention = FlashAttention::Off,
        GENERATE,
    ),
    Feature::new(
        "kv-q8_0",
        "KV cache q8_0 (-ctk q8_0 -ctv q8_0)",
        q8_0_cache,
        GENERATE,
    ),
    Feature::new(
        "kv-q4_0",
        "KV cache q4_0 (-ctk q4_0 -ctv q4_0)",
        q4_0_cache,
        GENERATE,
    ),
    Feature::new(
        "kv-k-q8_0",
        "keys q8_0 without flash attention",
        q8_0_keys,
        GENERATE,
    ),
    Feature::new("kv-f32", "KV cache f32", f32_cache, GENERATE),
    Feature {
        has_kv: false,
        comparable_on_gpu: false,
        ..Feature::new(
            "no-kv-offload",
            "KV cache in host memory (-nkvo)",
            |s| s.context.offload_kqv = false,
            GENERATE,
        )
    },
    Feature::new(
        "no-op-offload",
        "no offloading of operations (--no-op-offload)",
        |s| s.context.op_offload = false,
        GENERATE,
    )
    .not_on_gpu(),
    Feature::new(
        "swa-full",
        "full cache for sliding windows (--swa-full)",
        |s| s.context.swa_full = true,
        GENERATE,
    ),
    Feature {
        has_prompts: false,
        ..Feature::new(
            "ubatch-8",
            "ubatches of 8 (-ub 8)",
            |s| s.context.ubatch = 8,
            GENERATE,
        )
    },
    Feature::new(
        "ubatch-batch",
        "ubatches as large as batches",
        |s| s.context.ubatch = s.context.batch,
        GENERATE,
    ),
    Feature::new(
        "logits-all",
        "logits of all tokens",
        as_it_is,
        &[case(logits_of_all)],
    )
    .not_on_gpu(),
    Feature::new(
        "one-output",
        "one row of logits reserved, as servers do",
        |s| s.context.outputs = 1,
        GENERATE,
    ),
    Feature::new(
        "mode-none",
        "file read into buffers (--no-mmap)",
        |s| s.model.load_mode = LoadMode::None,
        GENERATE,
    ),
    Feature::new(
        "mode-mlock",
        "file read and locked (--mlock)",
        |s| s.model.load_mode = LoadMode::Mlock,
        GENERATE,
    ),
    Feature::new(
        "mode-mmap-mlock",
        "file mapped and locked",
        |s| s.model.load_mode = LoadMode::MmapMlock,
        GENERATE,
    ),
    Feature::new(
        "mode-direct-io",
        "direct I/O",
        |s| s.model.load_mode = LoadMode::DirectIo,
        GENERATE,
    ),
    Feature::new(
        "no-host",
        "no page-locked buffers (--no-host)",
        |s| s.model.no_host = true,
        GENERATE,
    ),
    Feature::new(
        "parts",
        "model in several files",
        as_it_is,
        &[case(from_parts)],
    )
    .needs(&[Need::Parts]),
    Feature {
        check: Some(feed_forward_on_host),
        ..Feature::new(
            "ot-host",
            "tensors kept on the host (-ot …=CPU)",
            |s| override_tensors(s, "blk\\.[01]\\.ffn_.*\\.weight", Memory::Host),
            GENERATE,
        )
        .not_on_gpu()
    },
    Feature {
        check: Some(experts_on_host),
        ..Feature::new(
            "n-cpu-moe",
            "experts kept on the host (--n-cpu-moe)",
            |s| override_tensors(s, "blk\\.[01]\\.ffn_(up|down|gate)_exps", Memory::Host),
            GENERATE,
        )
        .not_on_gpu()
    },
    Feature {
        check: Some(attention_is_no_unit),
        ..Feature::new(
            "ot-device",
            "tensors put on the GPU (-ot …=GPU)",
            |s| override_tensors(s, "blk\\.0\\.attn_.*", Memory::Device),
            GENERATE,
        )
        .not_on_gpu()
    },
];

fn override_tensors(s: &mut Setup, pattern: &str, memory: Memory) {
    s.model.overrides.push((pattern.to_string(), memory));
}

/// The class of each unit whose name matches.
fn classes(evidence: &serde_json::Value, pattern: &str) -> Result<Vec<String>, String> {
    let regex = regex::Regex::new(pattern).map_err(|e| e.to_string())?;
    let units = evidence["units"].as_array().ok_or("no units")?;
    let matching = units
        .iter()
        .filter(|u| regex.is_match(u["name"].as_str().unwrap_or_default()));
    Ok(matching
        .map(|u| u["class"].as_str().unwrap_or_default().to_string())
        .collect())
}

fn all_on_host(evidence: &serde_json::Value, pattern: &str) -> Result<(), String> {
    let classes = classes(evidence, pattern)?;
    let elsewhere = classes.iter().filter(|c| *c != "host_only").count();
    match elsewhere {
        0 => Ok(()),
        n => Err(format!(
            "{n} of {} weights that the user keeps on the host may be placed on the device",
            classes.len()
        )),
    }
}

fn feed_forward_on_host(evidence: &serde_json::Value) -> Result<(), String> {
    all_on_host(evidence, "^blk\\.[01]\\.ffn_.*\\.weight")
}

fn experts_on_host(evidence: &serde_json::Value) -> Result<(), String> {
    all_on_host(evidence, "^blk\\.[01]\\.ffn_(up|down|gate)_exps")
}

fn attention_is_no_unit(evidence: &serde_json::Value) -> Result<(), String> {
    match classes(evidence, "^blk\\.0\\.attn_")?.len() {
        0 => Ok(()),
        n => Err(format!(
            "{n} weights that the user put on the GPU were loaded elsewhere"
        )),
    }
}

/// Prompts of several lengths, around the number of rows from which weights are streamed, and some tokens after each.
pub(super) fn generate(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    for (seed, length) in [(1, 1), (2, 7), (3, 33), (4, 100)] {
        context.clear();
        let tokens = stage.tokens(&model, seed, length);
        let what = format!("prompt of {length}");
        let next = stage.prompt(&what, &mut context, 0, 0, &tokens)?;
        stage.generate(&what, &mut context, 0, length as i32, next, 3)?;
    }
    Ok(())
}

fn logits_of_all(stage: &mut Stage) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    for (seed, length) in [(1, 5), (2, 90)] {
        context.clear();
        let tokens = stage.tokens(&model, seed, length);
        let batch = Batch::of(0, 0, &tokens).all_wanted();
        stage.decode(format!("all of {length}"), &mut context, batch)?;
    }
    Ok(())
}

fn from_parts(stage: &mut Stage) -> Outcome {
    stage.model_path = models::part(&stage.model_path, 0);
    generate(stage)
}
