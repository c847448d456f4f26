//! What the environment asks for. Flags of the tools arrive here as well: they are turned into these variables before the
//! library is loaded.

use crate::lanes::choice::Allowed;
use crate::lanes::copy::DroppedWait;
use crate::plan_cache::{Place, PlaceError, PLAN_CACHE};
use crate::profile::FILE_VARIABLE;
use crate::report::is_model;
use crate::share::shares::Settings;
use pipeshard_model::size::{parse_count, ByteSize};
use pipeshard_plan::request::{StatedWorkload, WorkloadError};
use pipeshard_plan::search::Candidate;
use pipeshard_sim::{SimSpec, SpecError};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Passes in a trace unless told otherwise: a long prompt and what is generated after it.
const TRACE_PASSES: usize = 512;

/// Whether the switches for tests are there: some of them make wrong answers, so no release has them.
const TEST_HOOKS: bool = cfg!(any(test, feature = "test-hooks"));

/// What their names begin with.
const SWITCH: &str = "PIPESHARD_DEBUG_";

/// All of them.
const SWITCHES: [&str; 21] = [
    "PIPESHARD_DEBUG_CALIBRATE",
    "PIPESHARD_DEBUG_CANDIDATE",
    "PIPESHARD_DEBUG_CHOSEN_PERCENT",
    "PIPESHARD_DEBUG_CHUNK_BYTES",
    "PIPESHARD_DEBUG_COPY_BYTES",
    "PIPESHARD_DEBUG_CPU_CHOICE",
    "PIPESHARD_DEBUG_DECODE_STREAM",
    "PIPESHARD_DEBUG_DROP_WAIT",
    "PIPESHARD_DEBUG_EXPERT_ROWS",
    "PIPESHARD_DEBUG_FETCHED_EXPERTS",
    "PIPESHARD_DEBUG_FETCHED_ROWS",
    "PIPESHARD_DEBUG_FILL",
    "PIPESHARD_DEBUG_HELPERS",
    "PIPESHARD_DEBUG_LOCK_STEP",
    "PIPESHARD_DEBUG_NOISE",
    "PIPESHARD_DEBUG_OTHERS",
    "PIPESHARD_DEBUG_PANIC",
    "PIPESHARD_DEBUG_POOLS",
    "PIPESHARD_DEBUG_REWRITE",
    "PIPESHARD_DEBUG_STOCK_HAND_OVER",
    "PIPESHARD_DEBUG_TRACE_EVENTS",
];

/// The conversation that plans are weighed by.
pub const WORKLOAD: &str = "LLAMA_ARG_PIPESHARD_WORKLOAD";

/// Names those that share a budget.
const SHARE: &str = "PIPESHARD_SHARE";

/// Variables that turn everything on where nothing else does, as their flags do.
const IMPLYING: [&str; 7] = [
    "LLAMA_ARG_PIPESHARD_VRAM",
    WORKLOAD,
    "LLAMA_ARG_PIPESHARD_REPORT",
    "LLAMA_ARG_PIPESHARD_PLAN",
    "LLAMA_ARG_PIPESHARD_TRACE",
    "LLAMA_ARG_PIPESHARD_TRACE_PASSES",
    FILE_VARIABLE,
];

/// On or off, as files for containers write it.
fn truth(variable: &'static str, value: String) -> Result<bool, ConfigError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "on" | "true" | "yes" | "y" | "enabled" => Ok(true),
        "0" | "off" | "false" | "no" | "n" | "disabled" => Ok(false),
        _ => Err(ConfigError::Variable {
            variable,
            value,
            expected: "1, on, true, yes; 0, off, false, no",
        }),
    }
}

/// A variable as this process was given it: flags of its own have changed the environment since.
fn inherited(name: &str) -> Option<String> {
    let environment = std::fs::read("/proc/self/environ").ok()?;
    let mut entries = environment.split(|&byte| byte == 0);
    entries.find_map(|entry| {
        let value = std::str::from_utf8(entry).ok()?.strip_prefix(name)?;
        value.strip_prefix('=').map(str::to_owned)
    })
}

/// With whom the budget is shared: `PIPESHARD_SHARE` names the group; children of a router that has a budget are one. `now`: variables;
/// `inherited`: as the process was given them.
fn share_of(
    config: &Config,
    now: impl Fn(&str) -> Option<String>,
    inherited: impl Fn(&str) -> Option<String>,
) -> Result<Option<Settings>, ConfigError> {
    let named = now(SHARE);
    let is_off = named
        .as_deref()
        .is_some_and(|name| matches!(name, "off" | "0"));
    if !config.attach || is_off {
        return Ok(None);
    }
    if let Some(group) = named {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        return match config.budget {
            Some(total) if group.chars().all(is_name) => Ok(Some(Settings { group, total })),
            Some(_) => Err(ConfigError::Variable {
                variable: SHARE,
                value: group,
                expected: "a name of letters, digits, - and _; off",
            }),
            None => Err(ConfigError::NothingToShare),
        };
    }
    let total =
        inherited("LLAMA_ARG_PIPESHARD_VRAM").and_then(|text| text.parse::<ByteSize>().ok());
    let is_child = now("LLAMA_SERVER_ROUTER_PORT").is_some();
    // SAFETY: no preconditions.
    let router = unsafe { libc::getppid() };
    Ok(total.filter(|_| is_child).map(|total| Settings {
        group: format!("router-{router}"),
        total: total.0,
    }))
}

/// Settings of one process.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Take over placement and copies (`LLAMA_ARG_PIPESHARD`).
    pub attach: bool,
    /// Budget in bytes (`LLAMA_ARG_PIPESHARD_VRAM`); `None`: what is free, less a margin.
    pub budget: Option<u64>,
    /// A simulated GPU in place of the real ones (`LLAMA_ARG_PIPESHARD_SIM`).
    pub sim: Option<SimSpec>,
    /// The device to use, as ggml names it; `None`: the first that can be used.
    pub device: Option<String>,
    /// Where the report goes as JSON (`LLAMA_ARG_PIPESHARD_REPORT`).
    pub report: Option<PathBuf>,
    /// Where a timeline of the lanes goes (`LLAMA_ARG_PIPESHARD_TRACE`).
    pub trace: Option<PathBuf>,
    /// How many passes are in it after the first: the latest (`LLAMA_ARG_PIPESHARD_TRACE_PASSES`).
    pub trace_passes: usize,
    /// A plan to follow in place of making one (`LLAMA_ARG_PIPESHARD_PLAN`).
    pub plan: Option<PathBuf>,
    /// The conversation that plans are weighed by (`LLAMA_ARG_PIPESHARD_WORKLOAD`).
    pub workload: StatedWorkload,
    /// Where plans are kept (`PIPESHARD_PLAN_CACHE`).
    pub plan_cache: Place,
    /// The machine's profile, in a file that the user names (`LLAMA_ARG_PIPESHARD_PROFILE`).
    pub profile: Option<PathBuf>,
    /// Where a profile is kept.
    pub profile_place: Place,
    /// Which ubatch contexts have.
    pub ubatch: Ubatch,
    /// Bytes kept for the backend's own pools (`PIPESHARD_RESERVE`).
    pub reserve: Option<u64>,
    /// Which devices may be used (`PIPESHARD_ANY_DEVICE`, `GGML_CUDA_ENABLE_UNIFIED_MEMORY`).
    pub devices: Allowed,
    /// Never page-lock; copies go through the staging ring (`PIPESHARD_PAGE_LOCK=off`).
    pub no_page_lock: bool,
    /// The budget is a share of what several processes have together.
    pub share: Option<Settings>,
    /// Other processes of the user may look at this one through a socket (`PIPESHARD_SOCKET`).
    pub socket: bool,
    /// Switches for tests.
    pub debug: Debug,
}

/// Switches for tests, all off by default.
#[derive(Debug, Clone, Default)]
pub struct Debug {
    /// An event wait to leave out (`PIPESHARD_DEBUG_DROP_WAIT`).
    pub dropped_wait: Option<DroppedWait>,
    /// Seed of dummy transfers that shift the lanes (`PIPESHARD_DEBUG_NOISE`).
    pub noise: Option<u64>,
    /// Fill new device memory with 0xFF (`PIPESHARD_DEBUG_FILL=1`).
    pub fill: bool,
    /// Rewrite each graph into an equivalent one (`PIPESHARD_DEBUG_REWRITE=1`).
    pub rewrite: bool,
    /// How large chunks of residents become (`PIPESHARD_DEBUG_CHUNK_BYTES`).
    pub chunk_bytes: Option<u64>,
    /// The most that one copy command moves (`PIPESHARD_DEBUG_COPY_BYTES`).
    pub copy_bytes: Option<u64>,
    /// Every operation runs where stock llama.cpp with the same residents runs it (`PIPESHARD_LIKE_STOCK=1`).
    pub like_stock: bool,
    /// Results go between device and CPU as the scheduler copies them, with a wait on each side of each
    /// (`PIPESHARD_DEBUG_STOCK_HAND_OVER=1`).
    pub stock_hand_over: bool,
    /// Page-lock in steps of this many bytes (`PIPESHARD_DEBUG_LOCK_STEP`).
    pub lock_step: Option<u64>,
    /// A call of a callback that panics (`PIPESHARD_DEBUG_PANIC`).
    pub panic_at: Option<String>,
    /// Stream experts from this many rows on (`PIPESHARD_DEBUG_EXPERT_ROWS`).
    pub expert_rows: Option<u32>,
    /// Fetch chosen experts only while at most this share of them is expected (`PIPESHARD_DEBUG_CHOSEN_PERCENT`).
    pub chosen_percent: Option<u32>,
    /// So many of a token's experts are fetched by the device where the CPU has them (`PIPESHARD_DEBUG_FETCHED_EXPERTS`).
    pub fetched_experts: Option<u32>,
    /// The same for each token of batches of up to so many (`PIPESHARD_DEBUG_FETCHED_ROWS`).
    pub fetched_rows: Option<u32>,
    /// A plan that is taken whatever it is predicted to cost (`PIPESHARD_DEBUG_CANDIDATE`).
    pub candidate: Option<Candidate>,
    /// Percent of the ring that decode streams through (`PIPESHARD_DEBUG_DECODE_STREAM`).
    pub decode_stream: Option<u32>,
    /// MiB that a simulated GPU's backend takes for itself after the first pass (`PIPESHARD_DEBUG_POOLS`).
    pub pools_mib: Option<u32>,
    /// MiB of a simulated GPU that another program takes and gives back (`PIPESHARD_DEBUG_OTHERS`).
    pub others_mib: Option<u32>,
    /// Trace the simulated GPU as if it were a real one, by events (`PIPESHARD_DEBUG_TRACE_EVENTS=1`).
    pub trace_events: bool,
    /// Compare what passes take with what was predicted on a simulated GPU, too, by the wall clock
    /// (`PIPESHARD_DEBUG_CALIBRATE=1`).
    pub calibrate: bool,
    /// Experts are chosen by the CPU, as for a device that cannot sort (`PIPESHARD_DEBUG_CPU_CHOICE=1`).
    pub cpu_choice: bool,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A size that is none.
    #[error("{setting}: {why}")]
    Size {
        /// The flag and its variable.
        setting: &'static str,
        /// What is wrong with it.
        why: pipeshard_model::size::ParseSizeError,
    },
    /// A group without a total.
    #[error("PIPESHARD_SHARE names those that share a budget, and --pipeshard-vram (LLAMA_ARG_PIPESHARD_VRAM) does not say which: give it")]
    NothingToShare,
    /// The specification of the simulated GPU.
    #[error("--pipeshard-sim (LLAMA_ARG_PIPESHARD_SIM): {0}")]
    Sim(SpecError),
    /// A saved plan that is not one, or needs more than the budget.
    #[error("--pipeshard-plan (LLAMA_ARG_PIPESHARD_PLAN): {path} is not followed: {why}")]
    Plan {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file that would be written over is a model.
    #[error("{setting}: {path} is a model (GGUF) and would be overwritten; give another file")]
    Overwrites {
        /// The flag and its variable.
        setting: &'static str,
        /// The file.
        path: String,
    },
    /// A workload that is none.
    #[error("{WORKLOAD}: {0}")]
    Workload(WorkloadError),
    /// A place for plans that is none.
    #[error(transparent)]
    PlanCache(#[from] PlaceError),
    /// Another variable.
    #[error("{variable}: invalid value '{value}' (expected: {expected})")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// A switch for tests, in a build that has none.
    #[error(
        "{variable} is a switch for tests, which this build of pipeshard does not have (cargo's feature test-hooks); unset it"
    )]
    NoTestHooks {
        /// Its name.
        variable: String,
    },
    /// A switch for tests that does not exist.
    #[error("unknown switch {variable}; docs/development.md lists all")]
    NoSuchSwitch {
        /// Its name.
        variable: String,
    },
    /// An unknown plan.
    #[error("PIPESHARD_DEBUG_CANDIDATE: unknown plan '{name}'; known: {names}")]
    Candidate {
        /// What it holds.
        name: String,
        /// What it may hold.
        names: String,
    },
}

/// Whether contexts have the ubatch that they were given, or one that suits the plan.
#[derive(Debug, Clone, Default)]
pub enum Ubatch {
    /// What a variable says when a context is made: llama.cpp's parser finds the ubatch in flags, variables and presets, after this
    /// library was loaded.
    #[default]
    AsTheToolSays,
    /// What the host says ahead of each context: true for one that suits the plan.
    AsTheHostSays(Arc<AtomicBool>),
}

impl Ubatch {
    /// Reports whether the context that is made now was given no ubatch, so that the plan's is used.
    pub fn is_free(&self) -> bool {
        match self {
            Ubatch::AsTheToolSays => {
                std::env::var_os("LLAMA_ARG_PIPESHARD_UBATCH").is_some_and(|value| value == "auto")
            }
            Ubatch::AsTheHostSays(free) => free.load(Ordering::Relaxed),
        }
    }
}

impl Debug {
    /// Reports whether plans are others than those of the same command without switches: such plans are not kept.
    pub fn changes_plans(&self) -> bool {
        let numbers = [
            self.expert_rows,
            self.chosen_percent,
            self.fetched_experts,
            self.fetched_rows,
            self.decode_stream,
        ];
        self.candidate.is_some()
            || self.chunk_bytes.is_some()
            || self.noise.is_some()
            || self.like_stock
            || numbers.iter().any(Option::is_some)
    }
}

/// The file of that name; `%p` stands for the number of the process, so that processes with the same settings (the children of a router)
/// have files of their own.
fn file_of_process(name: &str) -> PathBuf {
    PathBuf::from(name.replace("%p", &std::process::id().to_string()))
}

impl Config {
    /// Refuses files to be written that are models: swapped arguments, most likely.
    ///
    /// # Errors
    /// [`ConfigError::Overwrites`].
    pub fn check_outputs(&self) -> Result<(), ConfigError> {
        let outputs = [
            (
                "--pipeshard-report (LLAMA_ARG_PIPESHARD_REPORT)",
                &self.report,
            ),
            ("--pipeshard-trace (LLAMA_ARG_PIPESHARD_TRACE)", &self.trace),
        ];
        let written = outputs
            .into_iter()
            .filter_map(|(s, path)| Some((s, path.as_deref()?)));
        for (setting, path) in written {
            if is_model(path) {
                return Err(ConfigError::Overwrites {
                    setting,
                    path: path.display().to_string(),
                });
            }
        }
        Ok(())
    }

    /// Reports whether what passes take is compared with what was predicted: not on virtual clocks.
    pub fn on_wall_clock(&self) -> bool {
        self.sim.is_none() || self.debug.calibrate
    }

    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        let set = std::env::vars_os().filter(|(_, value)| !value.is_empty());
        check_switches(
            TEST_HOOKS,
            set.filter_map(|(name, _)| name.into_string().ok()),
        )?;
        let now = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let config = Self::from_lookup(now)?;
        let share = share_of(&config, now, inherited)?;
        Ok(Config { share, ..config })
    }

    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let size = |setting: &'static str, text: String| {
            let parsed = text.parse::<ByteSize>();
            parsed
                .map(|s| s.0)
                .map_err(|why| ConfigError::Size { setting, why })
        };
        let on_or_off = |variable: &'static str| {
            let value = get(variable);
            value.map(|value| truth(variable, value)).transpose()
        };
        let on = |variable: &'static str| on_or_off(variable).map(|on| on == Some(true));
        let switch = |name: &str| get(name).filter(|_| TEST_HOOKS);
        let switched_on = |name: &'static str| TEST_HOOKS && on(name).unwrap_or(false);
        let bad = |variable, expected| {
            move |value: String| ConfigError::Variable {
                variable,
                value,
                expected,
            }
        };
        let number = |variable: &'static str| {
            let parse = |v: String| v.parse().map_err(|_| bad(variable, "a whole number")(v));
            switch(variable).map(parse).transpose()
        };
        let implied = IMPLYING.iter().any(|name| get(name).is_some());
        let attach = on_or_off("LLAMA_ARG_PIPESHARD")?.unwrap_or(implied);
        let budget = get("LLAMA_ARG_PIPESHARD_VRAM")
            .map(|v| size("--pipeshard-vram (LLAMA_ARG_PIPESHARD_VRAM)", v))
            .transpose()?;
        Ok(Config {
            attach,
            budget,
            plan: get("LLAMA_ARG_PIPESHARD_PLAN")
                .filter(|_| attach)
                .map(PathBuf::from),
            sim: get("LLAMA_ARG_PIPESHARD_SIM")
                .map(|text| SimSpec::parse(&text).map_err(ConfigError::Sim))
                .transpose()?,
            device: None,
            report: get("LLAMA_ARG_PIPESHARD_REPORT").map(|name| file_of_process(&name)),
            trace: get("LLAMA_ARG_PIPESHARD_TRACE").map(|name| file_of_process(&name)),
            trace_passes: get("LLAMA_ARG_PIPESHARD_TRACE_PASSES")
                .map(|v| {
                    let passes = parse_count(&v).ok().and_then(|n| usize::try_from(n).ok());
                    passes
                        .ok_or_else(|| bad("LLAMA_ARG_PIPESHARD_TRACE_PASSES", "a whole number")(v))
                })
                .transpose()?
                .unwrap_or(TRACE_PASSES),
            workload: get(WORKLOAD)
                .map(|text| text.parse().map_err(ConfigError::Workload))
                .transpose()?
                .unwrap_or_default(),
            plan_cache: Place::read(get(PLAN_CACHE).as_deref())?,
            profile: get(FILE_VARIABLE).map(PathBuf::from),
            profile_place: Place::Usual,
            ubatch: Ubatch::AsTheToolSays,
            reserve: get("PIPESHARD_RESERVE")
                .map(|v| size("PIPESHARD_RESERVE", v))
                .transpose()?,
            devices: Allowed {
                any: on("PIPESHARD_ANY_DEVICE")?,
                unified_memory: get("GGML_CUDA_ENABLE_UNIFIED_MEMORY").is_some(),
            },
            no_page_lock: on_or_off("PIPESHARD_PAGE_LOCK")? == Some(false),
            share: None,
            socket: on_or_off("PIPESHARD_SOCKET")? != Some(false),
            debug: Debug {
                dropped_wait: switch("PIPESHARD_DEBUG_DROP_WAIT")
                    .map(|v| {
                        DroppedWait::parse(&v).ok_or_else(|| {
                            bad(
                                "PIPESHARD_DEBUG_DROP_WAIT",
                                "filled, read, upload, drain, staging, choice, results, sources",
                            )(v)
                        })
                    })
                    .transpose()?,
                noise: switch("PIPESHARD_DEBUG_NOISE")
                    .map(|v| {
                        v.parse()
                            .map_err(|_| bad("PIPESHARD_DEBUG_NOISE", "a whole number")(v))
                    })
                    .transpose()?,
                fill: switched_on("PIPESHARD_DEBUG_FILL"),
                rewrite: switched_on("PIPESHARD_DEBUG_REWRITE"),
                chunk_bytes: switch("PIPESHARD_DEBUG_CHUNK_BYTES")
                    .map(|v| size("PIPESHARD_DEBUG_CHUNK_BYTES", v))
                    .transpose()?,
                copy_bytes: switch("PIPESHARD_DEBUG_COPY_BYTES")
                    .map(|v| size("PIPESHARD_DEBUG_COPY_BYTES", v))
                    .transpose()?,
                like_stock: on("PIPESHARD_LIKE_STOCK")?,
                stock_hand_over: switched_on("PIPESHARD_DEBUG_STOCK_HAND_OVER"),
                lock_step: switch("PIPESHARD_DEBUG_LOCK_STEP")
                    .map(|v| size("PIPESHARD_DEBUG_LOCK_STEP", v))
                    .transpose()?,
                panic_at: switch("PIPESHARD_DEBUG_PANIC"),
                expert_rows: number("PIPESHARD_DEBUG_EXPERT_ROWS")?,
                chosen_percent: number("PIPESHARD_DEBUG_CHOSEN_PERCENT")?,
                fetched_experts: number("PIPESHARD_DEBUG_FETCHED_EXPERTS")?,
                fetched_rows: number("PIPESHARD_DEBUG_FETCHED_ROWS")?,
                candidate: switch("PIPESHARD_DEBUG_CANDIDATE")
                    .map(|name| {
                        Candidate::named(&name).ok_or_else(|| {
                            let names = Candidate::ALL.map(|(name, _)| name).join(", ");
                            ConfigError::Candidate { name, names }
                        })
                    })
                    .transpose()?,
                decode_stream: number("PIPESHARD_DEBUG_DECODE_STREAM")?,
                pools_mib: number("PIPESHARD_DEBUG_POOLS")?,
                others_mib: number("PIPESHARD_DEBUG_OTHERS")?,
                trace_events: switched_on("PIPESHARD_DEBUG_TRACE_EVENTS"),
                calibrate: switched_on("PIPESHARD_DEBUG_CALIBRATE"),
                cpu_choice: switched_on("PIPESHARD_DEBUG_CPU_CHOICE"),
            },
        })
    }
}

/// Refuses switches for tests where there are none, and names that none of them has.
fn check_switches(hooks: bool, names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    for variable in names.filter(|name| name.starts_with(SWITCH)) {
        if !hooks {
            return Err(ConfigError::NoTestHooks { variable });
        }
        if !SWITCHES.contains(&variable.as_str()) {
            return Err(ConfigError::NoSuchSwitch { variable });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
