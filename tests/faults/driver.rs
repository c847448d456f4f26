//! A process that drives llama.cpp through a scenario and goes on where a batch fails: this test binary, started again.
//!
//! `pipeshard eval` ends with the first failure. Here what comes after it matters: later batches, the destructors, the
//! model loaded again. Everything that was computed is printed, one line per batch, to be compared with stock llama.cpp.

use crate::common::{self, finish, Finished};
use pipeshard_sys as ffi;
use std::ffi::{c_char, c_void, CStr, CString};
use std::path::Path;
use std::process::Command;

/// Names the scenario in the environment of the process that plays it.
const SCENARIO: &str = "FAULTS_SCENARIO";
/// Names the model.
const MODEL: &str = "FAULTS_MODEL";

/// The scenario that this process is to play, if it was started for one.
pub fn scenario() -> Option<String> {
    std::env::var(SCENARIO).ok()
}

/// The model to play it with.
pub fn model_path() -> String {
    std::env::var(MODEL).expect("the starter names a model")
}

/// A scenario to be played by a process of its own.
#[derive(Clone)]
pub struct Play {
    scenario: String,
    model: std::path::PathBuf,
    env: Vec<(String, String)>,
}

impl Play {
    pub fn new(scenario: &str, model: &Path) -> Self {
        Play {
            scenario: scenario.to_string(),
            model: model.to_path_buf(),
            env: Vec::new(),
        }
    }

    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    /// With pipeshard, inside `budget` bytes of a simulated GPU of 1 GiB with further properties.
    pub fn within(self, budget: u64, properties: &str) -> Self {
        let comma = if properties.is_empty() { "" } else { "," };
        self.env("LLAMA_ARG_PIPESHARD", 1)
            .env("LLAMA_ARG_PIPESHARD_VRAM", budget)
            .env(
                "LLAMA_ARG_PIPESHARD_SIM",
                format!("vram=1G{comma}{properties}"),
            )
    }

    /// The same on a device that has no byte more than the budget.
    pub fn within_all(self, budget: u64) -> Self {
        self.within(budget, "")
            .env("LLAMA_ARG_PIPESHARD_SIM", format!("vram={budget}"))
    }

    pub fn run(&self) -> Finished {
        let mut command = common::tool(common::LAB);
        let mut player = Command::new(std::env::current_exe().expect("this test binary"));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => player.env(name, value),
                None => player.env_remove(name),
            };
        }
        command = player;
        command.args([
            "--exact",
            "plays_a_scenario",
            "--nocapture",
            "--test-threads=1",
        ]);
        command
            .env(SCENARIO, &self.scenario)
            .env(MODEL, &self.model)
            // a thousand lines that nobody reads take longer than the scenario
            .env("RUST_BACKTRACE", "0");
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        finish(&mut command)
    }

    /// Plays it, and expects that the process ends by itself and well.
    pub fn lines(&self) -> Vec<String> {
        let finished = self.run();
        assert!(
            finished.succeeded(),
            "{:?}\n{}",
            finished.status,
            finished.stderr
        );
        lines(&finished)
    }
}

/// What a player printed: its own lines, not those of the test harness.
pub fn lines(finished: &Finished) -> Vec<String> {
    let own = finished.stdout.lines().filter_map(|l| l.split_once("» "));
    own.map(|(_, line)| line.to_string()).collect()
}

/// Prints a line for the process that started this one.
pub fn say(line: &str) {
    println!("» {line}");
}

unsafe extern "C" fn quiet(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == ffi::GGML_LOG_LEVEL_ERROR || level == ffi::GGML_LOG_LEVEL_WARN {
        eprint!("{}", CStr::from_ptr(text).to_string_lossy());
    }
}

/// Loads the backends, pipeshard's library among them where the environment asks for it.
pub fn load_backends() {
    let folder = CString::new(common::tools().display().to_string()).expect("a path");
    // SAFETY: plain calls with valid strings.
    unsafe {
        ffi::llama_log_set(Some(quiet), std::ptr::null_mut());
        ffi::ggml_backend_load_all_from_path(folder.as_ptr());
        ffi::llama_backend_init();
    }
}

pub struct Model(*mut ffi::llama_model);
// SAFETY: llama.cpp reads a loaded model from several threads.
unsafe impl Sync for Model {}

impl Model {
    pub fn load(path: &str) -> Option<Self> {
        let path = CString::new(path).expect("a path");
        // SAFETY: valid arguments.
        let model = unsafe {
            let mut params = ffi::llama_model_default_params();
            let mut no_devices = [std::ptr::null_mut()];
            params.use_extra_bufts = false;
            if std::env::var_os("LLAMA_ARG_PIPESHARD").is_none() {
                params.n_gpu_layers = 0;
                params.devices = no_devices.as_mut_ptr();
            }
            if std::env::var_os("FAULTS_NO_MMAP").is_some() {
                params.load_mode = ffi::LLAMA_LOAD_MODE_NONE;
            }
            ffi::llama_model_load_from_file(path.as_ptr(), params)
        };
        (!model.is_null()).then_some(Model(model))
    }

    pub fn context(&self) -> Option<Context> {
        self.context_with(|_| ())
    }

    /// One of other parameters than most.
    pub fn context_with(
        &self,
        change: impl FnOnce(&mut ffi::llama_context_params),
    ) -> Option<Context> {
        // SAFETY: the model is alive, and its contexts are freed before it.
        unsafe {
            let mut params = ffi::llama_context_default_params();
            params.n_ctx = 256;
            params.n_batch = 128;
            params.n_ubatch = 128;
            params.n_outputs_max = 1;
            params.n_threads = 1;
            params.n_threads_batch = 1;
            change(&mut params);
            let context = ffi::llama_init_from_model(self.0, params);
            let vocabulary = ffi::llama_vocab_n_tokens(ffi::llama_model_get_vocab(self.0));
            (!context.is_null()).then_some(Context(context, vocabulary))
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::llama_model_free(self.0) }
    }
}

pub struct Context(*mut ffi::llama_context, i32);
// SAFETY: one thread at a time drives a context.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Batch {
    /// A hash of the logits' bits, and the likeliest token.
    Logits(u64, i32),
    /// There are logits, but they are no numbers.
    NotANumber,
    /// llama_decode's code.
    Failed(i32),
}

impl Context {
    pub fn clear(&self) {
        // SAFETY: alive.
        unsafe { ffi::llama_memory_clear(ffi::llama_get_memory(self.0), true) }
    }

    pub fn decode(&self, tokens: &[i32]) -> Batch {
        let mut tokens = tokens.to_vec();
        // SAFETY: alive; the batch refers to tokens that live until the call returns.
        let logits = unsafe {
            let batch = ffi::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            let code = ffi::llama_decode(self.0, batch);
            if code != 0 {
                return Batch::Failed(code);
            }
            let logits = ffi::llama_get_logits_ith(self.0, -1);
            assert!(!logits.is_null());
            std::slice::from_raw_parts(logits, self.1 as usize)
        };
        if logits.iter().any(|l| l.is_nan()) {
            return Batch::NotANumber;
        }
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in logits.iter().flat_map(|l| l.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        Batch::Logits(hash, likeliest.map_or(0, |(i, _)| i as i32))
    }

    /// Takes tokens `from` to `to` out and moves those behind them there.
    pub fn shift(&self, from: i32, to: i32) {
        // SAFETY: alive; all tokens are those of sequence 0.
        unsafe {
            let memory = ffi::llama_get_memory(self.0);
            assert!(ffi::llama_memory_seq_rm(memory, 0, from, to));
            ffi::llama_memory_seq_add(memory, 0, to, -1, from - to);
        }
    }

    /// Keeps sequence 0 as it is, in device memory where there is some.
    pub fn keep(&self) -> Vec<u8> {
        let flags = ffi::LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
        // SAFETY: alive; the buffer is as large as said.
        unsafe {
            let mut kept = vec![0; ffi::llama_state_seq_get_size_ext(self.0, 0, flags)];
            let (at, length) = (kept.as_mut_ptr(), kept.len());
            let written = ffi::llama_state_seq_get_data_ext(self.0, at, length, 0, flags);
            assert!(written > 0);
            kept
        }
    }

    /// Goes back to what [`Self::keep`] has kept.
    pub fn take_back(&self, kept: &[u8]) {
        let flags = ffi::LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
        // SAFETY: alive; the bytes are valid during the call.
        unsafe {
            assert!(ffi::llama_memory_seq_rm(
                ffi::llama_get_memory(self.0),
                0,
                -1,
                -1
            ));
            let (at, length) = (kept.as_ptr(), kept.len());
            let read = ffi::llama_state_seq_set_data_ext(self.0, at, length, 0, flags);
            assert!(read > 0);
        }
    }

    /// Tokens of a prompt that looks like nothing in particular.
    pub fn prompt(&self, seed: u32, count: u32) -> Vec<i32> {
        let token = |i: u32| {
            let mixed = (seed * 1000 + i + 1).wrapping_mul(2_654_435_761) >> 7;
            (mixed % self.1 as u32) as i32
        };
        (0..count).map(token).collect()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, before its model.
        unsafe { ffi::llama_free(self.0) }
    }
}

/// A function of libpipeshard.so, by name.
fn function(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the registry lives as long as the process.
    unsafe {
        let registry = ffi::ggml_backend_reg_by_name(c"pipeshard".as_ptr());
        if registry.is_null() {
            return None;
        }
        let found = ffi::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
        (!found.is_null()).then_some(found)
    }
}

/// Changes the budget; false without pipeshard, or where it is refused.
pub fn set_budget(bytes: u64) -> bool {
    type SetBudget = unsafe extern "C" fn(u64) -> bool;
    // SAFETY: the library gives the function this signature.
    function(c"pipeshard_set_budget")
        .is_some_and(|f| unsafe { std::mem::transmute::<*mut c_void, SetBudget>(f)(bytes) })
}

/// A text that a function without arguments makes.
fn text(name: &CStr) -> Option<String> {
    type Text = unsafe extern "C" fn() -> *mut c_char;
    // SAFETY: the library gives these functions this signature.
    let made = unsafe { std::mem::transmute::<*mut c_void, Text>(function(name)?)() };
    taken(made)
}

/// A text of the library, which is given back.
fn taken(made: *mut c_char) -> Option<String> {
    type Free = unsafe extern "C" fn(*mut c_char);
    let free = function(c"pipeshard_free")?;
    if made.is_null() {
        return None;
    }
    // SAFETY: the text is ours until it is given back, with the function for that.
    unsafe {
        let text = CStr::from_ptr(made).to_string_lossy().into_owned();
        std::mem::transmute::<*mut c_void, Free>(free)(made);
        Some(text)
    }
}

/// pipeshard's report so far.
pub fn report() -> Option<pipeshard::report::Report> {
    let text = text(c"pipeshard_report")?;
    Some(serde_json::from_str(&text).expect("a report of this build"))
}

/// Bytes that the simulated GPU has handed out.
pub fn device_bytes() -> Option<u64> {
    let counters: serde_json::Value =
        serde_json::from_str(&text(c"pipeshard_simulated_device")?).expect("JSON");
    counters["current_bytes"].as_u64()
}

/// Status and answer of a request as llama-server hands it on; none without pipeshard.
pub fn ask(path: &str, body: &str) -> Option<(i32, serde_json::Value)> {
    type Ask = unsafe extern "C" fn(*const c_char, *const c_char, *mut i32) -> *mut c_char;
    let ask = function(c"pipeshard_http")?;
    let (path, body) = (CString::new(path).ok()?, CString::new(body).ok()?);
    let mut status = 0;
    // SAFETY: the library gives the function this signature; all pointers are valid during the call.
    let made = unsafe {
        std::mem::transmute::<*mut c_void, Ask>(ask)(path.as_ptr(), body.as_ptr(), &mut status)
    };
    Some((status, serde_json::from_str(&taken(made)?).expect("JSON")))
}
