//! How long tests should take on a machine with a link of 50 GB/s.

use super::job::Job;
use super::types::{Approach, Test, Work};
use pipeshard_model::inventory::{Inventory, Role};

/// What a model means for times.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Bytes of its file.
    pub bytes: u64,
    /// Part of its weights that one token uses.
    pub active: f64,
}

impl Facts {
    /// Bytes that stay with the host under a budget.
    pub(super) fn on_host(self, budget: Option<u64>) -> f64 {
        budget.map_or(0.0, |b| self.bytes.saturating_sub(b * 9 / 10) as f64)
    }

    /// Seconds for one generated token.
    pub fn token(self, budget: Option<u64>) -> f64 {
        0.003 + self.on_host(budget) * self.active / 65e9
    }
}

/// Bytes of weights that one token reads: of all, or of those with these names. Of experts it reads those that it uses, and of the
/// embeddings a row, which does not count.
pub fn read_per_token(inventory: &Inventory, names: Option<&[String]>) -> u64 {
    let tensors = inventory.tensors.iter();
    let named = tensors.filter(|t| names.is_none_or(|names| names.contains(&t.name)));
    let read = named.filter(|t| t.role != Role::TokenEmbedding || inventory.tied_output);
    let bytes = read.map(|t| match t.role {
        Role::Experts => {
            let all = u64::from(inventory.expert_count.max(1));
            t.bytes / all * u64::from(inventory.expert_used_count)
        }
        _ => t.bytes,
    });
    bytes.sum()
}

pub(super) const START: f64 = 1.2;
pub(super) const MAPPED_LINK: f64 = 6e9;
const LOCKED_LINK: f64 = 30e9;
pub(super) const LOCKING: f64 = 1.6e9;
const COMPUTE: f64 = 9000.0;
/// Bytes of KV cache for a token, of the larger models.
const KV_TOKEN: f64 = 131_072.0;
/// Bytes per second at which a CPU attends.
const HOST_ATTENTION: f64 = 40e9;
const STATE_COPY: f64 = 4e9;

/// Seconds that a test of a job takes once.
pub fn test_seconds(job: &Job, facts: Facts, test: Test) -> f64 {
    let tokens = f64::from(test.tokens);
    let ubatch = f64::from(job.ubatch.unwrap_or(2048)).max(1.0);
    let streamed = facts.on_host(job.budget) / link_of(job.approach);
    match test.work {
        Work::Decode => tokens * pass_seconds(facts, job.budget, test),
        Work::Prompt => (tokens / ubatch).ceil() * streamed + prompt_seconds(tokens) + 0.02,
        Work::FirstToken => streamed + 0.2,
    }
}

/// Bytes per second at which an approach reads the host's weights.
fn link_of(approach: Approach) -> f64 {
    match approach {
        Approach::FitMapped | Approach::Layers | Approach::Part | Approach::HostKv => MAPPED_LINK,
        Approach::AllInVram | Approach::FitLocked | Approach::Search | Approach::SamePlacement => {
            LOCKED_LINK
        }
        Approach::Pipeshard | Approach::PipeshardAll => 45e9,
    }
}

/// Seconds to compute a prompt, attention included.
fn prompt_seconds(tokens: f64) -> f64 {
    tokens / COMPUTE * (1.0 + tokens / 65536.0)
}

/// Seconds for one generated token of each sequence of a test.
pub fn pass_seconds(facts: Facts, budget: Option<u64>, test: Test) -> f64 {
    // of a mixture of experts several sequences use more of them
    let active = (facts.active * f64::from(test.sequences)).min(1.0);
    let kv_tokens = f64::from(test.depth) * f64::from(test.sequences);
    Facts { active, ..facts }.token(budget) + kv_tokens * KV_TOKEN / HOST_ATTENTION
}

/// Seconds for one process that generates with a placement for each of these budgets.
pub fn place_seconds(facts: Facts, budgets: &[u64], test: Test, repetitions: u32) -> f64 {
    let depth = f64::from(test.depth);
    let fill = prompt_seconds(depth);
    let state = depth * KV_TOKEN / STATE_COPY;
    let all = facts.bytes as f64;
    let runs = f64::from(repetitions);
    let of = |&budget: &u64| {
        let load = 1.0 + (all - facts.on_host(Some(budget))) / MAPPED_LINK;
        let tokens = f64::from(test.tokens) * runs + 1.0;
        load + tokens * pass_seconds(facts, Some(budget), test) + runs * state
    };
    START + all / MAPPED_LINK + fill + state + budgets.iter().map(of).sum::<f64>()
}
