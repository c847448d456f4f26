//! `pipeshard eval`: evaluates prompts of given lengths with llama.cpp, stock or with pipeshard, and keeps every logit.
//!
//! One process evaluates one configuration, because the scheduler hook and a simulated GPU belong to the process.
//! `pipeshard verify` and the tests start several and compare.

use crate::ffi;
use crate::size::ByteSize;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::ffi::{c_char, c_void, CStr, CString};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// What to evaluate, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pipeshard eval model.gguf --prompt 1,32,600 --generate 8 --vram 40M --sim vram=1G --logits out.f32"
)]
pub struct EvalArgs {
    /// The model (GGUF)
    pub model: PathBuf,
    /// Prompt lengths in tokens; each is evaluated from an empty context
    #[arg(
        long = "prompt",
        value_delimiter = ',',
        default_value = "1,7,31,32,33,600"
    )]
    pub prompts: Vec<u32>,
    /// Tokens to generate after each prompt, greedily
    #[arg(long, default_value_t = 8)]
    pub generate: u32,
    /// Context length in tokens
    #[arg(long, default_value_t = 1024)]
    pub ctx: u32,
    /// Tokens per ubatch
    #[arg(long, default_value_t = 512)]
    pub ubatch: u32,
    /// Rows of logits that one ubatch may ask for (0: as many as the batch has)
    #[arg(long, default_value_t = 1)]
    pub outputs: u32,
    /// Threads of the CPU
    #[arg(long, default_value_t = 2)]
    pub threads: i32,
    /// Run with pipeshard inside this budget; without it llama.cpp runs as it is
    #[arg(long)]
    pub vram: Option<ByteSize>,
    /// Simulate the GPU, for example vram=1G,pcie=25G
    #[arg(long)]
    pub sim: Option<String>,
    /// Layers on the GPU, without --vram (0: CPU only)
    #[arg(long, default_value_t = 0)]
    pub ngl: i32,
    /// Keep tensors whose name matches on the CPU, without --vram
    #[arg(long = "on-cpu", value_name = "REGEX")]
    pub on_cpu: Vec<String>,
    /// Load mode of the weights: mmap or none
    #[arg(long, default_value = "mmap")]
    pub load_mode: String,
    /// Flash attention: auto, on or off
    #[arg(long, default_value = "auto")]
    pub flash_attn: String,
    /// Change the budget before these generated tokens: STEP=SIZE, in every prompt
    #[arg(long = "budget-at", value_name = "STEP=SIZE", value_delimiter = ',')]
    pub budget_at: Vec<String>,
    /// Contexts on the one model, each evaluating every prompt, in turns token by token
    #[arg(long, default_value_t = 1)]
    pub contexts: usize,
    /// Seed of the prompts' tokens
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the logits, 32-bit floats one vocabulary after another, to this file
    #[arg(long)]
    pub logits: Option<PathBuf>,
    /// Show llama.cpp's log
    #[arg(long)]
    pub verbose: bool,
}

/// What one prompt gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptResult {
    /// Which context.
    pub context: usize,
    /// Length in tokens.
    pub prompt: u32,
    /// The tokens generated.
    pub tokens: Vec<i32>,
    /// Hash of the bits of all logits.
    pub logits_hash: String,
    /// Seconds until the prompt's logits were there.
    pub prompt_seconds: f64,
    /// Seconds for the generated tokens.
    pub generate_seconds: f64,
    /// What a simulated GPU counted during the prompt.
    pub device: Option<serde_json::Value>,
}

/// What an evaluation gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvalResult {
    /// Per prompt and context.
    pub results: Vec<PromptResult>,
    /// Graphs that llama.cpp used again.
    pub graphs_reused: i64,
    /// What pipeshard reports.
    pub report: Option<serde_json::Value>,
    /// The units that pipeshard made of the loaded weights.
    pub units: Option<serde_json::Value>,
}

struct Model(*mut ffi::llama_model);
struct Context(*mut ffi::llama_context);

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, after its contexts.
        unsafe { ffi::llama_model_free(self.0) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::llama_free(self.0) }
    }
}

unsafe extern "C" fn quiet(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == ffi::GGML_LOG_LEVEL_ERROR || level == ffi::GGML_LOG_LEVEL_WARN {
        eprint!("{}", CStr::from_ptr(text).to_string_lossy());
    }
}

/// Functions of libpipeshard.so, by name.
#[derive(Default)]
struct Library {
    set_budget: Option<unsafe extern "C" fn(u64) -> bool>,
    report: Option<unsafe extern "C" fn() -> *mut c_char>,
    units: Option<unsafe extern "C" fn() -> *mut c_char>,
    device: Option<unsafe extern "C" fn() -> *mut c_char>,
    reset_device: Option<unsafe extern "C" fn()>,
    free: Option<unsafe extern "C" fn(*mut c_char)>,
}

impl Library {
    fn find() -> Self {
        // SAFETY: the registry lives as long as the process; hook/library.rs gives the functions these signatures, and a
        // null pointer becomes None.
        unsafe {
            let registry = ffi::ggml_backend_reg_by_name(c"pipeshard".as_ptr());
            if registry.is_null() {
                return Library::default();
            }
            let get = |name: &CStr| ffi::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            type Text = Option<unsafe extern "C" fn() -> *mut c_char>;
            let text = |name: &CStr| std::mem::transmute::<*mut c_void, Text>(get(name));
            Library {
                set_budget: std::mem::transmute::<
                    *mut c_void,
                    Option<unsafe extern "C" fn(u64) -> bool>,
                >(get(c"pipeshard_set_budget")),
                report: text(c"pipeshard_report"),
                units: text(c"pipeshard_units"),
                device: text(c"pipeshard_simulated_device"),
                reset_device: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn()>>(
                    get(c"pipeshard_reset_simulated_device"),
                ),
                free: std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn(*mut c_char)>>(
                    get(c"pipeshard_free"),
                ),
            }
        }
    }

    fn json(
        &self,
        function: Option<unsafe extern "C" fn() -> *mut c_char>,
    ) -> Option<serde_json::Value> {
        let (function, free) = (function?, self.free?);
        // SAFETY: the text is NUL-terminated and ours until it is given back.
        unsafe {
            let text = function();
            if text.is_null() {
                return None;
            }
            let value = serde_json::from_str(&CStr::from_ptr(text).to_string_lossy()).ok();
            free(text);
            value
        }
    }

    fn report(&self) -> Option<serde_json::Value> {
        self.json(self.report)
    }

    fn device(&self) -> Option<serde_json::Value> {
        self.json(self.device)
    }

    fn reset_device(&self) {
        if let Some(reset) = self.reset_device {
            // SAFETY: takes no arguments; no pass is being submitted.
            unsafe { reset() }
        }
    }
}

/// Runs the command: prints the result as JSON.
pub fn run(args: EvalArgs) -> Result<(), String> {
    let result = evaluate(&args)?;
    let text = serde_json::to_string(&result).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}

/// Evaluates in this process.
pub fn evaluate(args: &EvalArgs) -> Result<EvalResult, String> {
    let set = |name: &str, value: &str| std::env::set_var(name, value);
    if let Some(budget) = args.vram {
        set("LLAMA_ARG_PIPESHARD", "1");
        set("LLAMA_ARG_PIPESHARD_VRAM", &budget.0.to_string());
    }
    if let Some(sim) = &args.sim {
        set("LLAMA_ARG_PIPESHARD_SIM", sim);
    }
    // SAFETY: llama.cpp's API, called from one thread with valid arguments; objects are freed in reverse order.
    unsafe {
        if !args.verbose {
            ffi::llama_log_set(Some(quiet), std::ptr::null_mut());
        }
        ffi::ggml_backend_load_all();
        ffi::llama_backend_init();
        let model = load(args)?;
        let library = Library::find();
        let contexts: Vec<Context> = (0..args.contexts)
            .map(|_| new_context(args, &model))
            .collect::<Result<_, _>>()?;
        let mut logits_file = match &args.logits {
            Some(path) => {
                let file =
                    std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
                Some(std::io::BufWriter::new(file))
            }
            None => None,
        };
        let mut results = Vec::new();
        for &prompt in &args.prompts {
            results.extend(run_prompt(
                args,
                &model,
                &contexts,
                &library,
                prompt,
                &mut logits_file,
            )?);
        }
        if let Some(mut file) = logits_file {
            file.flush().map_err(|e| e.to_string())?;
        }
        let graphs_reused = contexts
            .iter()
            .map(|c| i64::from(ffi::llama_perf_context(c.0).n_reused))
            .sum();
        let report = library.report();
        let units = library.json(library.units);
        Ok(EvalResult {
            results,
            graphs_reused,
            report,
            units,
        })
    }
}

unsafe fn load(args: &EvalArgs) -> Result<Model, String> {
    let mut params = ffi::llama_model_default_params();
    params.use_extra_bufts = false;
    params.load_mode = match args.load_mode.as_str() {
        "mmap" => ffi::LLAMA_LOAD_MODE_MMAP,
        "none" => ffi::LLAMA_LOAD_MODE_NONE,
        other => return Err(format!("--load-mode {other}: expected mmap or none")),
    };
    let mut no_devices = [std::ptr::null_mut()];
    let patterns: Vec<CString> = args
        .on_cpu
        .iter()
        .map(|p| CString::new(p.as_str()).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let mut overrides: Vec<ffi::llama_model_tensor_buft_override> = patterns
        .iter()
        .map(|p| ffi::llama_model_tensor_buft_override {
            pattern: p.as_ptr(),
            buft: ffi::ggml_backend_cpu_buffer_type(),
        })
        .collect();
    overrides.push(ffi::llama_model_tensor_buft_override {
        pattern: std::ptr::null(),
        buft: std::ptr::null_mut(),
    });
    if args.vram.is_none() {
        params.n_gpu_layers = args.ngl;
        if args.ngl == 0 {
            params.devices = no_devices.as_mut_ptr();
        }
        if !args.on_cpu.is_empty() {
            params.tensor_buft_overrides = overrides.as_ptr();
        }
    }
    let path = CString::new(args.model.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    let model = ffi::llama_model_load_from_file(path.as_ptr(), params);
    match model.is_null() {
        true => Err(format!(
            "{} could not be loaded (see above)",
            args.model.display()
        )),
        false => Ok(Model(model)),
    }
}

unsafe fn new_context(args: &EvalArgs, model: &Model) -> Result<Context, String> {
    let mut params = ffi::llama_context_default_params();
    params.n_ctx = args.ctx;
    params.n_batch = args
        .ubatch
        .max(args.prompts.iter().copied().max().unwrap_or(1));
    params.n_ubatch = args.ubatch;
    params.n_outputs_max = args.outputs;
    params.n_threads = args.threads;
    params.n_threads_batch = args.threads;
    params.no_perf = false;
    params.flash_attn_type = match args.flash_attn.as_str() {
        "auto" => ffi::LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on" => ffi::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off" => ffi::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        other => return Err(format!("--flash-attn {other}: expected auto, on or off")),
    };
    let context = ffi::llama_init_from_model(model.0, params);
    match context.is_null() {
        true => Err("no context could be made (see above)".to_string()),
        false => Ok(Context(context)),
    }
}

/// One context's way through a prompt.
struct Run {
    tokens: Vec<i32>,
    hash: u64,
    next: i32,
    prompt_seconds: f64,
    generate_seconds: f64,
    device: Option<serde_json::Value>,
}

impl Run {
    fn new() -> Self {
        Run {
            tokens: Vec::new(),
            hash: FNV_START,
            next: 0,
            prompt_seconds: 0.0,
            generate_seconds: 0.0,
            device: None,
        }
    }
}

fn budget_changes(args: &EvalArgs) -> Result<Vec<(u32, ByteSize)>, String> {
    let parse = |change: &String| {
        let (at, size) = change.split_once('=').ok_or("expected STEP=SIZE")?;
        let at = at.parse().map_err(|_| format!("'{at}' is no step"))?;
        let size = size.parse::<ByteSize>().map_err(|e| e.to_string())?;
        Ok((at, size))
    };
    let changes = args
        .budget_at
        .iter()
        .map(|c| parse(c).map_err(|why: String| format!("--budget-at {c}: {why}")));
    changes.collect()
}

unsafe fn run_prompt(
    args: &EvalArgs,
    model: &Model,
    contexts: &[Context],
    library: &Library,
    prompt: u32,
    file: &mut Option<std::io::BufWriter<std::fs::File>>,
) -> Result<Vec<PromptResult>, String> {
    let vocabulary = ffi::llama_vocab_n_tokens(ffi::llama_model_get_vocab(model.0));
    let changes = budget_changes(args)?;
    let mut runs: Vec<Run> = contexts.iter().map(|_| Run::new()).collect();
    library.reset_device();
    // every context's batch is submitted before any result is asked for, so that passes overlap
    let start = Instant::now();
    for (index, context) in contexts.iter().enumerate() {
        ffi::llama_memory_clear(ffi::llama_get_memory(context.0), true);
        decode(
            context,
            &mut prompt_tokens(args.seed + index as u64, prompt, vocabulary),
        )?;
    }
    for (context, run) in contexts.iter().zip(&mut runs) {
        take_logits(context, vocabulary, run, file)?;
        run.prompt_seconds = start.elapsed().as_secs_f64();
        run.device = library.device();
    }
    for step in 0..args.generate {
        let start = Instant::now();
        for (index, (context, run)) in contexts.iter().zip(&mut runs).enumerate() {
            run.tokens.push(run.next);
            // with several contexts the budget changes while the first one's batch is still being computed
            if index == contexts.len().min(2) - 1 {
                for &(_, size) in changes.iter().filter(|c| c.0 == step) {
                    if !library.set_budget.is_some_and(|set| set(size.0)) {
                        return Err(format!("the budget could not be changed to {size}"));
                    }
                }
            }
            decode(context, &mut [run.next])?;
        }
        for (context, run) in contexts.iter().zip(&mut runs) {
            take_logits(context, vocabulary, run, file)?;
            run.generate_seconds += start.elapsed().as_secs_f64();
        }
    }
    Ok(runs
        .into_iter()
        .enumerate()
        .map(|(context, run)| PromptResult {
            context,
            prompt,
            tokens: run.tokens,
            logits_hash: format!("{:016x}", run.hash),
            prompt_seconds: run.prompt_seconds,
            generate_seconds: run.generate_seconds,
            device: run.device,
        })
        .collect())
}

unsafe fn decode(context: &Context, tokens: &mut [i32]) -> Result<(), String> {
    let count = i32::try_from(tokens.len()).map_err(|e| e.to_string())?;
    match ffi::llama_decode(
        context.0,
        ffi::llama_batch_get_one(tokens.as_mut_ptr(), count),
    ) {
        0 => Ok(()),
        code => Err(format!(
            "llama_decode of {count} tokens failed with {code} (see above)"
        )),
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

unsafe fn take_logits(
    context: &Context,
    vocabulary: i32,
    run: &mut Run,
    file: &mut Option<std::io::BufWriter<std::fs::File>>,
) -> Result<(), String> {
    let pointer = ffi::llama_get_logits_ith(context.0, -1);
    if pointer.is_null() {
        return Err("llama.cpp gave no logits".to_string());
    }
    let logits = std::slice::from_raw_parts(pointer, vocabulary as usize);
    if let Some(bad) = logits.iter().find(|l| l.is_nan()) {
        return Err(format!(
            "a logit is {bad}: weights or activations were read that were never written"
        ));
    }
    run.next = logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(i, _)| i as i32);
    for logit in logits {
        for byte in logit.to_bits().to_le_bytes() {
            run.hash = (run.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if let Some(file) = file {
            file.write_all(&logit.to_le_bytes())
                .map_err(|e| format!("the logits could not be written: {e}"))?;
        }
    }
    Ok(())
}

/// Tokens that look like nothing in particular, the same for the same seed.
fn prompt_tokens(seed: u64, count: u32, vocabulary: i32) -> Vec<i32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % vocabulary.max(1) as u64) as i32
        })
        .collect()
}
