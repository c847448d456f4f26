//! The list of cases.

use super::feature::Feature;
use super::features;
use super::models::{Kind, MatrixModel, StandsFor, MODELS};

/// A budget, by what it leaves room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Budget {
    /// The smallest that works.
    Min,
    /// Some layers' KV in VRAM, the others' in host memory.
    KvHost,
    /// Between that and everything.
    Mid,
    /// Everything fits, to the byte.
    All,
}

impl Budget {
    /// All of them, small to large.
    pub const EACH: [Budget; 4] = [Budget::Min, Budget::KvHost, Budget::Mid, Budget::All];

    /// As in the names of cases.
    pub fn name(self) -> &'static str {
        match self {
            Budget::Min => "min",
            Budget::KvHost => "kv-host",
            Budget::Mid => "mid",
            Budget::All => "all",
        }
    }
}

/// The cases that share a reference.
#[derive(Debug, Clone)]
pub struct Group {
    /// The model.
    pub model: &'static MatrixModel,
    /// The feature.
    pub feature: &'static Feature,
    /// Threads of the CPU.
    pub threads: u32,
    /// Budgets, small to large.
    pub budgets: Vec<Budget>,
}

impl Group {
    /// The name of the case at a budget.
    pub fn case(&self, budget: Budget) -> String {
        format!(
            "{}/{}/{}/t{}",
            self.model.name,
            self.feature.name,
            budget.name(),
            self.threads
        )
    }

    /// The names of all cases.
    pub fn cases(&self) -> Vec<String> {
        self.budgets.iter().map(|&b| self.case(b)).collect()
    }
}

/// Which models a rule is for.
enum Models {
    Architectures,
    Types,
    These(&'static [&'static str]),
}

/// Which features a rule is for.
enum Features {
    Every,
    These(&'static [&'static str]),
}

/// Each of these models with each of these features that applies to it.
struct Rule {
    models: Models,
    features: Features,
    budgets: &'static [Budget],
    threads: &'static [u32],
    /// Also part of the quick run.
    quick: bool,
}

/// What every architecture is tried with.
const CORE: &[&str] = &[
    "generate",
    "fa-off",
    "kv-q8_0",
    "ubatch-8",
    "sequences-apart",
    "continuous",
    "seq-copy",
    "seq-remove",
    "shift",
    "state",
    "state-to-less",
    "state-from-stock",
    "lora",
    "control-vector",
    "embed-mean",
    "contexts",
    "mode-none",
    "abort",
];

const RULES: &[Rule] = &[
    Rule {
        models: Models::Architectures,
        features: Features::These(CORE),
        budgets: &Budget::EACH,
        threads: &[1],
        quick: false,
    },
    Rule {
        models: Models::These(&["llama", "qwen3moe", "gemma3"]),
        features: Features::Every,
        budgets: &Budget::EACH,
        threads: &[1],
        quick: false,
    },
    Rule {
        models: Models::These(&["llama"]),
        features: Features::These(LONG),
        budgets: &[Budget::Mid],
        threads: &[1],
        quick: false,
    },
    Rule {
        models: Models::These(&["bert", "bert-rank"]),
        features: Features::These(&["embed-none", "embed-cls", "embed-last", "rerank"]),
        budgets: &Budget::EACH,
        threads: &[1],
        quick: false,
    },
    Rule {
        models: Models::Types,
        features: Features::These(&["generate", "continuous"]),
        budgets: &[Budget::Min, Budget::Mid],
        threads: &[1],
        quick: false,
    },
    Rule {
        models: Models::These(&["llama", "qwen3moe"]),
        features: Features::These(&["generate", "continuous", "kv-q8_0"]),
        budgets: &[Budget::Min, Budget::Mid],
        threads: &[2, 8],
        quick: false,
    },
    Rule {
        models: Models::Architectures,
        features: Features::These(&["generate"]),
        budgets: &[Budget::Min, Budget::Mid],
        threads: &[1],
        quick: true,
    },
    Rule {
        // rope factors, which are weights, applied to KV cache in host memory
        models: Models::These(&["phi3"]),
        features: Features::These(&["shift"]),
        budgets: &[Budget::Min],
        threads: &[1],
        quick: true,
    },
    Rule {
        models: Models::These(&["bert", "bert-rank"]),
        features: Features::These(&["embed-mean", "rerank"]),
        budgets: &[Budget::Min],
        threads: &[1],
        quick: true,
    },
    Rule {
        models: Models::These(&["llama"]),
        features: Features::Every,
        budgets: &[Budget::KvHost],
        threads: &[1],
        quick: true,
    },
    Rule {
        models: Models::These(&["llama"]),
        features: Features::These(&["generate"]),
        budgets: &[Budget::Mid],
        threads: &[2],
        quick: true,
    },
];

/// What takes long: left out of the quick run, and tried with one model at one budget.
const LONG: &[&str] = &["reload"];

/// What is tried on a real GPU in a quick run, where every architecture is tried with the first of them.
const GPU_QUICK: &[&str] = &[
    "generate",
    "fa-off",
    "kv-q8_0",
    "ubatch-8",
    "sequences-apart",
    "continuous",
    "seq-copy",
    "seq-remove",
    "shift",
    "state",
    "embed-mean",
    "contexts",
    "context-threads",
    "mode-none",
    "abort",
    "grammar",
];

/// What llama.cpp itself does not do: model, feature, and why.
const NOT_IN_LLAMA: &[(&str, &str, &str)] = &[
    (
        "qwen2vl",
        "shift",
        "positions of several dimensions cannot be changed",
    ),
    ("mamba2", "seq-remove", RECURRENT),
    ("granite-hybrid", "seq-remove", RECURRENT),
    (
        "granite-hybrid",
        "shift",
        "llama.cpp ends with an assertion of its own",
    ),
    ("qwen3next", "seq-remove", RECURRENT),
];

const RECURRENT: &str = "parts of a recurrent state cannot be removed";

/// What pipeshard refuses at start: model, feature, and a part of the sentence that says why.
const REFUSED: &[(&str, &str, &str)] = &[];

/// What is known to be wrong: model, feature, a part of what is seen, and what it comes from. A case that fails otherwise, or of
/// another feature, is a failure. Whoever mends one takes it out of this list.
const KNOWN_FAULTS: &[(&str, &str, &str, &str)] = &[(
    "phi3",
    "lora",
    "no budget was found at which some",
    ADAPTERS_COME_LATE,
)];

const ADAPTERS_COME_LATE: &str =
    "adapters need larger compute buffers than were foreseen when the KV cache was placed: between all of it on the host and \
     all of it on the device no budget works";

/// What a failure comes from, if that is known.
pub fn known_fault(model: &MatrixModel, feature: &Feature, seen: &str) -> Option<&'static str> {
    let found = KNOWN_FAULTS.iter().find(|(m, f, part, _)| {
        (*m == "*" || *m == model.name) && *f == feature.name && seen.contains(part)
    });
    found.map(|(_, _, _, why)| *why)
}

fn entry(
    table: &'static [(&'static str, &'static str, &'static str)],
    model: &MatrixModel,
    feature: &Feature,
) -> Option<&'static str> {
    let found = table
        .iter()
        .find(|(m, f, _)| (*m == "*" || *m == model.name) && *f == feature.name);
    found.map(|(_, _, why)| *why)
}

/// Why llama.cpp does not do this, if it does not.
pub fn not_in_llama(model: &MatrixModel, feature: &Feature) -> Option<&'static str> {
    entry(NOT_IN_LLAMA, model, feature)
}

/// What the sentence says with which pipeshard refuses this, if it does.
pub fn refused(model: &MatrixModel, feature: &Feature) -> Option<&'static str> {
    entry(REFUSED, model, feature)
}

/// Reports whether there is anything to try.
fn applies(model: &MatrixModel, feature: &Feature) -> bool {
    match feature.name {
        "n-cpu-moe" => model.kind == Kind::Mixture,
        "swa-full" => model.kind == Kind::Windowed || model.name == "gpt-oss",
        "rerank" => model.name == "bert-rank",
        name => model.kind != Kind::Encoder || name.starts_with("embed-"),
    }
}

/// The budgets that make sense.
fn budgets_of(feature: &Feature, wanted: &[Budget]) -> Vec<Budget> {
    let possible = |&b: &Budget| match b {
        Budget::KvHost if !feature.has_kv => Budget::Mid,
        Budget::Min | Budget::KvHost if !feature.has_smallest => Budget::Mid,
        other => other,
    };
    let mut budgets: Vec<Budget> = wanted.iter().map(possible).collect();
    budgets.sort();
    budgets.dedup();
    budgets
}

/// The list, or the quick part of it, grouped by reference.
pub fn groups(full: bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for rule in RULES.iter().filter(|r| full || r.quick) {
        for model in MODELS.iter().filter(|m| rule.takes_model(m)) {
            let features = features::all().filter(|f| rule.takes_feature(f) && applies(model, f));
            for feature in features {
                for &threads in rule.threads {
                    add(&mut groups, model, feature, threads, rule.budgets);
                }
            }
        }
    }
    groups
}

/// The quick part, and a tenth of the groups of the whole list with all their budgets: another tenth for each seed.
pub fn quick_and_tenth(seed: u64) -> Vec<Group> {
    let mut chosen = tenth(seed);
    let name = |group: &Group| (group.model.name, group.feature.name, group.threads);
    for quick in groups(false) {
        match chosen.iter_mut().find(|group| name(group) == name(&quick)) {
            Some(group) => {
                let budgets = [&group.budgets[..], &quick.budgets].concat();
                group.budgets = budgets_of(group.feature, &budgets);
            }
            None => chosen.push(quick),
        }
    }
    chosen
}

/// A tenth of the groups of the whole list, rounded up, in its order.
pub fn tenth(seed: u64) -> Vec<Group> {
    let mut groups = groups(true);
    let place = |group: &Group| {
        let name = format!(
            "{seed} {}/{}/{}",
            group.model.name, group.feature.name, group.threads
        );
        crate::matrix::seed::hash(name.as_bytes())
    };
    let mut places: Vec<u64> = groups.iter().map(place).collect();
    places.sort_unstable();
    let last = places.get(groups.len().div_ceil(10) - 1).copied();
    groups.retain(|group| last.is_some_and(|last| place(group) <= last));
    groups
}

/// The list for a real GPU: what stock llama.cpp can be compared with at the same placement, at three budgets.
pub fn groups_on_gpu(full: bool) -> Vec<Group> {
    let comparable = |g: &Group| g.feature.comparable_on_gpu && g.feature.steps.len() == 1;
    let quick = |g: &Group| {
        let first = g.feature.name == GPU_QUICK[0] && g.model.stands_for == StandsFor::Architecture;
        let more = GPU_QUICK.contains(&g.feature.name) && g.model.name == MODELS[0].name;
        (first || more) && g.threads == 1
    };
    let mut groups = groups(true);
    groups.retain(|g| comparable(g) && (full || quick(g)));
    for group in &mut groups {
        group.budgets = vec![Budget::Min, Budget::Mid, Budget::All];
    }
    groups
}

fn add(
    groups: &mut Vec<Group>,
    model: &'static MatrixModel,
    feature: &'static Feature,
    threads: u32,
    budgets: &[Budget],
) {
    let same = |g: &&mut Group| {
        (g.model.name, g.feature.name, g.threads) == (model.name, feature.name, threads)
    };
    let mut wanted = budgets.to_vec();
    match groups.iter_mut().find(same) {
        Some(group) => {
            wanted.extend(&group.budgets);
            group.budgets = budgets_of(feature, &wanted);
        }
        None => groups.push(Group {
            model,
            feature,
            threads,
            budgets: budgets_of(feature, &wanted),
        }),
    }
}

impl Rule {
    fn takes_model(&self, model: &MatrixModel) -> bool {
        match self.models {
            Models::Architectures => model.stands_for == StandsFor::Architecture,
            Models::Types => model.stands_for == StandsFor::Type,
            Models::These(names) => names.contains(&model.name),
        }
    }

    fn takes_feature(&self, feature: &Feature) -> bool {
        match self.features {
            Features::Every => !LONG.contains(&feature.name),
            Features::These(names) => names.contains(&feature.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn names(full: bool) -> Vec<String> {
        groups(full).iter().flat_map(Group::cases).collect()
    }

    #[test]
    fn each_case_is_listed_once() {
        let full = names(true);
        let distinct: HashSet<&String> = full.iter().collect();
        assert_eq!(distinct.len(), full.len());
        let quick = names(false);
        assert!(quick.iter().all(|name| distinct.contains(name)));
        assert!(quick.len() < full.len() / 4);
    }

    #[test]
    fn a_real_gpu_gets_what_can_be_compared_there() {
        let (quick, full) = (groups_on_gpu(false), groups_on_gpu(true));
        assert!(quick.len() < full.len());
        for group in &full {
            assert_eq!(group.budgets.len(), 3);
            assert!(group.feature.comparable_on_gpu);
        }
        let models = quick.iter().map(|g| g.model.name);
        assert!(models.collect::<HashSet<_>>().len() > 10);
    }

    #[test]
    fn every_feature_and_every_model_is_tried() {
        let groups = groups(true);
        for feature in features::all() {
            assert!(groups.iter().any(|g| g.feature.name == feature.name));
        }
        for model in MODELS {
            assert!(groups.iter().any(|g| g.model.name == model.name));
        }
    }

    #[test]
    fn rules_and_exceptions_name_what_exists() {
        let known = |name: &str| features::named(name).is_some();
        let listed = CORE.iter().chain(LONG).chain(GPU_QUICK);
        assert!(listed.into_iter().all(|f| known(f)));
        for (model, feature, part, why) in KNOWN_FAULTS {
            assert!(*model == "*" || super::super::models::named(model).is_some());
            assert!(known(feature) && !part.is_empty() && !why.is_empty());
        }
        for (model, feature, why) in NOT_IN_LLAMA.iter().chain(REFUSED) {
            assert!(*model == "*" || super::super::models::named(model).is_some());
            assert!(known(feature) && !why.is_empty());
        }
    }
}
