//! The values that a profile consists of.

use super::host::HostCosts;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of the JSON form of [`Profile`]; a file of another version is measured again.
pub const PROFILE_SCHEMA_VERSION: u32 = 3;

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processor {
    /// ggml's CPU backend with the key's number of threads.
    Cpu,
    /// The device.
    Gpu,
}

/// Where a profile's figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Measured on this machine.
    Measured,
    /// Stated for a machine that is not here: a simulated GPU, a data sheet, an assumption.
    Stated,
}

/// What a profile belongs to. It is used only where all of it matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProfileKey {
    /// What the device calls itself.
    pub device: String,
    /// Where the card is on the PCI bus and how many lanes its slot has, as far as they are known: cards that call themselves the
    /// same may have links of different speed.
    #[serde(default)]
    pub slot: String,
    /// The driver's version, as far as it is known.
    pub driver: String,
    /// The processor's name.
    pub cpu: String,
    /// Threads that the CPU backend computes with.
    pub threads: u32,
    /// The build of llama.cpp and of pipeshard.
    pub build: String,
}

impl ProfileKey {
    /// The first part that differs: what it is, this key's and the other's.
    pub fn difference(&self, other: &ProfileKey) -> Option<(&'static str, String, String)> {
        let parts = [
            ("device", self.device.clone(), other.device.clone()),
            ("slot", self.slot.clone(), other.slot.clone()),
            ("driver", self.driver.clone(), other.driver.clone()),
            ("CPU", self.cpu.clone(), other.cpu.clone()),
            (
                "number of threads",
                self.threads.to_string(),
                other.threads.to_string(),
            ),
            ("build", self.build.clone(), other.build.clone()),
        ];
        parts.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

/// A measured figure: the median of some repetitions and how far they spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantity {
    /// The median.
    pub median: f64,
    /// Half the distance between the quartiles, as a share of the median; 0 for a stated figure.
    #[serde(default)]
    pub spread: f64,
}

impl Quantity {
    /// A figure without spread.
    pub fn stated(median: f64) -> Self {
        Quantity {
            median,
            spread: 0.0,
        }
    }
}

/// The link between host and device, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// To the device, from page-locked memory, the CPU idle.
    pub pinned: Quantity,
    /// The same while the CPU reads weights with all its threads.
    pub pinned_cpu_busy: Quantity,
    /// To the device, from ordinary memory.
    pub pageable: Quantity,
    /// To the host, into page-locked memory.
    pub back: Quantity,
    /// Page-locking a mapped file in place; 0 where it is not offered.
    pub register: Quantity,
}

/// The host's memory, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct HostMemory {
    /// What the CPU reads with all its threads while nothing else does.
    pub cpu: Quantity,
    /// What the CPU reads while the copy lane reads as well.
    pub cpu_copy_busy: Quantity,
}

/// What is paid besides bytes and products, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Overheads {
    /// From the last GPU kernel before a CPU split to the start of that split: synchronisation and a small copy to the host.
    pub to_cpu: Quantity,
    /// From the end of a CPU split to the first GPU kernel behind it: a small copy to the device and a launch.
    pub to_gpu: Quantity,
    /// A GPU kernel that does next to nothing, in a long row of such.
    pub launch: Quantity,
    /// A CPU operation that does next to nothing: waking and joining the threads.
    pub cpu_op: Quantity,
    /// How much longer the CPU takes for what it computes behind a rest in which its threads slept.
    #[serde(default)]
    pub cpu_wake: Quantity,
    /// A pass in which nothing is computed: what llama.cpp, the scheduler and the hook do on the host for each.
    pub pass: Quantity,
}

/// Bandwidth and arithmetic rate of a processor: what its operations cannot be faster than.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Bytes of weights or KV cache per second.
    pub bytes: f64,
    /// Floating-point operations per second in large products.
    pub flops: f64,
    /// What each operation costs besides, in seconds.
    pub launch: f64,
}

/// An operation whose time is worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Op {
    /// A product with a matrix of weights. `rows` of a [`Point`] are tokens.
    Product {
        /// ggml's name of the weights' type.
        type_name: String,
        /// Elements per row of the matrix: what each token brings.
        columns: u64,
        /// Rows of the matrix: what each token takes away.
        rows: u64,
    },
    /// A product with chosen experts of a stack. `rows` of a [`Point`] are tokens, of which each uses `used` experts, chosen at
    /// random: as broadly as a trained router does.
    Experts {
        /// ggml's name of the weights' type.
        type_name: String,
        /// Elements per row of an expert's matrix.
        columns: u64,
        /// Rows of an expert's matrix.
        rows: u64,
        /// Experts in the stack.
        experts: u32,
        /// Experts that a token uses.
        used: u32,
    },
    /// Attention over a KV cache of `kv_tokens` tokens (flash attention). `rows` of a [`Point`] are the tokens that look back.
    Attention {
        /// Elements of a head's key.
        head: u32,
        /// Query heads.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// ggml's name of the keys' type.
        type_k: String,
        /// ggml's name of the values' type.
        type_v: String,
        /// Tokens in the cache.
        kv_tokens: u64,
    },
    /// Two matrices of activations are added: what most operations of an encoder are like that are no products. `rows` of a [`Point`] are
    /// rows of both.
    Sum {
        /// Values in a row.
        columns: u64,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Product {
                type_name,
                columns,
                rows,
            } => write!(f, "{type_name} {columns}×{rows}"),
            Op::Experts {
                type_name,
                columns,
                rows,
                experts,
                used,
            } => write!(
                f,
                "{used} of {experts} experts {type_name} {columns}×{rows}"
            ),
            Op::Sum { columns } => write!(f, "sum of rows of {columns}"),
            Op::Attention {
                head,
                heads,
                kv_heads,
                type_k,
                type_v,
                kv_tokens,
            } => {
                write!(f, "attention {heads}/{kv_heads}×{head} {type_k}")?;
                if type_k != type_v {
                    write!(f, "+{type_v}")?;
                }
                write!(f, ", {kv_tokens} tokens in the KV cache")
            }
        }
    }
}

/// How long an operation takes at one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Tokens.
    pub rows: u32,
    /// Median seconds, nothing else going on.
    pub seconds: f64,
    /// As [`Quantity::spread`].
    #[serde(default)]
    pub spread: f64,
    /// Median seconds while the copy lane is busy, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_busy: Option<f64>,
}

/// An operation on one processor over batch sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Who computes.
    pub on: Processor,
    /// What.
    pub op: Op,
    /// By rising number of rows.
    pub points: Vec<Point>,
}

/// What runs of a model have shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// The model, as [`model_label`](super::model_label) calls it.
    pub model: String,
    /// How many times as long as measured the CPU takes for operations of a few tokens.
    pub cpu: f64,
    /// Bytes per second that the link moves while the CPU computes; none where no run said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_during_cpu: Option<f64>,
    /// Passes that said so.
    pub passes: u64,
}

/// What this machine does per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`PROFILE_SCHEMA_VERSION`] of the build that made it.
    pub schema_version: u32,
    /// Where the figures come from.
    pub origin: Origin,
    /// What it belongs to.
    pub key: ProfileKey,
    /// The link.
    pub link: Link,
    /// The host's memory.
    pub memory: HostMemory,
    /// What is paid besides.
    pub overheads: Overheads,
    /// What the host does next to products; assumed in profiles of older builds.
    #[serde(default)]
    pub host: HostCosts,
    /// The CPU's limits.
    pub cpu: Roofline,
    /// The device's limits.
    pub gpu: Roofline,
    /// What was measured, operation by operation.
    pub curves: Vec<Curve>,
    /// What runs have shown to be otherwise, model by model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
}

impl Profile {
    /// Adds curves, each in place of one of the same operation on the same processor.
    pub fn merge(&mut self, curves: Vec<Curve>) {
        for curve in curves {
            let same = |known: &&mut Curve| known.on == curve.on && known.op == curve.op;
            match self.curves.iter_mut().find(same) {
                Some(known) => *known = curve,
                None => self.curves.push(curve),
            }
        }
    }
}
