//! What passes of one shape take while the cache grows.

use super::calibration::PassSeconds;
use super::table::Costs;
use super::types::PassShape;
use crate::plan::Plan;

/// Tokens in the cache for which the first pass besides the one over an empty cache is priced; each further one is for so many
/// times as many.
const FIRST: u64 = 256;
const STEP: u64 = 4;

/// Seconds of passes that differ in the tokens before them alone, priced for some and interpolated between.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    rows: u32,
    /// Tokens of each sequence in the cache, ascending, and what a pass takes then.
    knots: Vec<(u64, PassSeconds)>,
}

impl Forecast {
    /// Prices passes of a shape for caches of up to `most` tokens per sequence.
    pub fn of(costs: &Costs<'_>, plan: &Plan, shape: PassShape, most: u64) -> Forecast {
        let steps = std::iter::successors(Some(FIRST), |kv_tokens| kv_tokens.checked_mul(STEP));
        let between = steps.take_while(|kv_tokens| *kv_tokens < most);
        let last = (most > 0).then_some(most);
        let all = std::iter::once(0).chain(between).chain(last);
        let knots = all.map(|kv_tokens| {
            let cost = costs.pass(plan, PassShape { kv_tokens, ..shape });
            let (all, cpu) = (cost.seconds, cost.cpu);
            (kv_tokens, PassSeconds { all, cpu })
        });
        Forecast {
            rows: shape.rows,
            knots: knots.collect(),
        }
    }

    /// The same whatever is in the cache.
    #[cfg(any(test, feature = "test-support"))]
    pub fn constant(rows: u32, seconds: PassSeconds) -> Forecast {
        Forecast {
            rows,
            knots: vec![(0, seconds)],
        }
    }

    /// Tokens that each of the passes computes.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// What a pass takes whose sequences have so many tokens in the cache already.
    pub fn seconds(&self, kv_tokens: u64) -> PassSeconds {
        let above = self.knots.partition_point(|(knot, _)| *knot < kv_tokens);
        let known = |at: usize| self.knots.get(at).copied();
        match (above.checked_sub(1).and_then(known), known(above)) {
            (Some((low, from)), Some((high, to))) => {
                let share = (kv_tokens - low) as f64 / (high - low) as f64;
                let between = |from: f64, to: f64| from + (to - from) * share;
                PassSeconds {
                    all: between(from.all, to.all),
                    cpu: between(from.cpu, to.cpu),
                }
            }
            (Some((_, seconds)), None) | (None, Some((_, seconds))) => seconds,
            (None, None) => PassSeconds::default(),
        }
    }
}
