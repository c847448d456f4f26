//! A conversation: the prompt in passes over a growing cache, then one token after the other.

use super::pass::Start;
use super::table::Costs;
use super::types::{PassCost, PassShape, Prediction, Workload};
use crate::plan::Plan;

/// Passes that differ only in the tokens before them.
struct Alike {
    rows: u32,
    sequences: u32,
    outputs: u32,
    kv_tokens: Vec<u64>,
}

impl Costs<'_> {
    /// What a conversation costs under a plan. The prompt's first pass finds the ring filled as far as it reaches: the link had
    /// time before.
    pub fn predict(&self, plan: &Plan, workload: Workload) -> Prediction {
        let prompt = self.prompts(plan, workload);
        self.predict_behind(plan, workload, prompt)
    }

    /// The same where it is known what the prompts of all sequences cost.
    pub(crate) fn predict_behind(
        &self,
        plan: &Plan,
        workload: Workload,
        prompt: PassCost,
    ) -> Prediction {
        let sequences = workload.sequences.max(1);
        let decode = self.pass(
            plan,
            PassShape {
                rows: sequences,
                sequences,
                kv_tokens: u64::from(workload.prompt) + u64::from(workload.generated / 2),
                outputs: sequences,
            },
        );
        let ttft = prompt.seconds + self.sampling(sequences);
        Prediction {
            ttft,
            tps: f64::from(sequences) / decode.seconds.max(f64::MIN_POSITIVE),
            e2el: ttft + f64::from(workload.generated.saturating_sub(1)) * decode.seconds,
            prompt,
            decode,
        }
    }

    /// Seconds to the first token alone, as in [`Costs::predict`].
    pub fn first_token(&self, plan: &Plan, workload: Workload) -> f64 {
        self.prompts(plan, workload).seconds + self.sampling(workload.sequences.max(1))
    }

    /// The prompts of all sequences.
    pub(crate) fn prompts(&self, plan: &Plan, workload: Workload) -> PassCost {
        let each = u64::from(workload.prompt);
        let tokens = each * u64::from(workload.sequences.max(1));
        self.prompt(plan, each, tokens, workload.ubatch.max(1))
    }

    fn sampling(&self, sequences: u32) -> f64 {
        let vocabulary = f64::from(self.model.inventory.vocabulary_size);
        self.profile.host.sampling * vocabulary * f64::from(sequences)
    }

    /// All passes of prompts of `each` tokens, one behind the other, `tokens` in all.
    fn prompt(&self, plan: &Plan, each: u64, tokens: u64, ubatch: u32) -> PassCost {
        let mut kinds: Vec<Alike> = Vec::new();
        let mut first = None;
        let mut at = 0;
        while at < tokens {
            let shape = pass_at(at, each, tokens, ubatch);
            at += u64::from(shape.rows);
            if first.is_none() {
                first = Some(shape);
                continue;
            }
            let like = |kind: &&mut Alike| {
                (kind.rows, kind.sequences, kind.outputs)
                    == (shape.rows, shape.sequences, shape.outputs)
            };
            match kinds.iter_mut().find(like) {
                Some(kind) => kind.kv_tokens.push(shape.kv_tokens),
                None => kinds.push(Alike {
                    rows: shape.rows,
                    sequences: shape.sequences,
                    outputs: shape.outputs,
                    kv_tokens: vec![shape.kv_tokens],
                }),
            }
        }
        let nothing = PassShape {
            rows: 0,
            sequences: 1,
            kv_tokens: 0,
            outputs: 0,
        };
        let Some(first) = first else {
            return self.pass(plan, nothing).times(0.0);
        };
        let mut sum = self.first_pass(plan, first, Start::Filled);
        for kind in &kinds {
            sum = sum.plus(&self.alike(plan, kind));
        }
        sum
    }

    /// The sum over passes that are alike: three are priced, the others interpolated.
    fn alike(&self, plan: &Plan, kind: &Alike) -> PassCost {
        let mut kv_tokens = kind.kv_tokens.clone();
        kv_tokens.sort_unstable();
        let price = |kv_tokens: u64| {
            self.pass(
                plan,
                PassShape {
                    rows: kind.rows,
                    sequences: kind.sequences,
                    kv_tokens,
                    outputs: kind.outputs,
                },
            )
        };
        let last = kv_tokens.len() - 1;
        let mut knots = vec![kv_tokens[0], kv_tokens[last / 2], kv_tokens[last]];
        knots.dedup();
        let priced: Vec<PassCost> = knots.iter().map(|&kv_tokens| price(kv_tokens)).collect();
        // each pass counts for the knots on either side, by its distance to them
        let mut weights = vec![0.0; knots.len()];
        for kv_tokens in kv_tokens {
            let above = knots.partition_point(|&knot| knot < kv_tokens);
            match above {
                0 => weights[0] += 1.0,
                above => {
                    let (low, high) = (knots[above - 1], knots[above]);
                    let share = (kv_tokens - low) as f64 / (high - low) as f64;
                    weights[above - 1] += 1.0 - share;
                    weights[above] += share;
                }
            }
        }
        let weighted = priced
            .iter()
            .zip(&weights)
            .map(|(cost, &by)| cost.times(by));
        let sum = weighted.reduce(|sum, cost| sum.plus(&cost));
        sum.unwrap_or_else(|| price(0).times(0.0))
    }
}

/// The pass that begins with token `at` of all prompts together.
fn pass_at(at: u64, each: u64, tokens: u64, ubatch: u32) -> PassShape {
    let rows = (tokens - at).min(u64::from(ubatch));
    let each = each.max(1);
    let end = at + rows;
    let ended = end / each - at / each;
    let touched = end.div_ceil(each) - at / each;
    let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    PassShape {
        rows: small(rows),
        sequences: small(touched).max(1),
        // where several sequences share a pass, only the first has tokens before it
        kv_tokens: (at % each) / touched.max(1),
        outputs: small(ended),
    }
}

impl PassCost {
    /// The same so many times; the limit stays.
    fn times(&self, count: f64) -> PassCost {
        PassCost {
            seconds: self.seconds * count,
            gpu: self.gpu * count,
            cpu: self.cpu * count,
            link: self.link * count,
            hand_overs: (f64::from(self.hand_overs) * count).round() as u32,
            hand_over_seconds: self.hand_over_seconds * count,
            bytes_streamed: (self.bytes_streamed as f64 * count).round() as u64,
            bound: self.bound * count,
            limit: self.limit,
        }
    }

    /// One behind the other; the limit is that of the longer one.
    fn plus(&self, other: &PassCost) -> PassCost {
        PassCost {
            seconds: self.seconds + other.seconds,
            gpu: self.gpu + other.gpu,
            cpu: self.cpu + other.cpu,
            link: self.link + other.link,
            hand_overs: self.hand_overs.saturating_add(other.hand_overs),
            hand_over_seconds: self.hand_over_seconds + other.hand_over_seconds,
            bytes_streamed: self.bytes_streamed.saturating_add(other.bytes_streamed),
            bound: self.bound + other.bound,
            limit: match other.bound > self.bound {
                true => other.limit,
                false => self.limit,
            },
        }
    }
}
