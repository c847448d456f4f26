//! How long an operation takes: from its curve, from a similar one, or from the roofline.

use super::types::{Curve, Op, Processor, Profile, Roofline};
use pipeshard_model::inventory::expected_distinct;
use pipeshard_model::inventory::DType;

/// What an operation moves and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes of weights or KV cache that are read.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
}

impl Op {
    /// What `tokens` tokens read and compute.
    pub fn work(&self, tokens: u32) -> Work {
        let tokens_f = f64::from(tokens);
        let matrix = |type_name: &str, columns: u64, rows: u64| {
            let dtype = DType::from_name(type_name);
            dtype.map_or(0, |t| t.bytes([columns, rows, 1, 1])) as f64
        };
        match self {
            Op::Product {
                type_name,
                columns,
                rows,
            } => Work {
                bytes: matrix(type_name, *columns, *rows),
                flops: 2.0 * *columns as f64 * *rows as f64 * tokens_f,
            },
            Op::Experts {
                type_name,
                columns,
                rows,
                experts,
                used,
            } => Work {
                bytes: matrix(type_name, *columns, *rows)
                    * expected_distinct(*experts, *used, tokens),
                flops: 2.0 * *columns as f64 * *rows as f64 * tokens_f * f64::from(*used),
            },
            // activations are in caches or not: no figure of weights may come from them
            Op::Sum { columns } => Work {
                bytes: 0.0,
                flops: *columns as f64 * tokens_f,
            },
            Op::Attention {
                head,
                heads,
                kv_heads,
                type_k,
                type_v,
                kv_tokens,
            } => {
                let width = u64::from(*head) * u64::from(*kv_heads);
                Work {
                    bytes: matrix(type_k, width, *kv_tokens) + matrix(type_v, width, *kv_tokens),
                    flops: 4.0
                        * f64::from(*head)
                        * f64::from(*heads)
                        * *kv_tokens as f64
                        * tokens_f,
                }
            }
        }
    }

    /// Whether two operations differ in size alone.
    fn is_like(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Product { type_name: a, .. }, Op::Product { type_name: b, .. }) => a == b,
            (Op::Experts { type_name: a, .. }, Op::Experts { type_name: b, .. }) => a == b,
            (
                Op::Attention {
                    head: h,
                    type_k: k,
                    type_v: v,
                    ..
                },
                Op::Attention {
                    head,
                    type_k,
                    type_v,
                    ..
                },
            ) => (h, k, v) == (head, type_k, type_v),
            (Op::Sum { .. }, Op::Sum { .. }) => true,
            _ => false,
        }
    }
}

impl Roofline {
    /// Seconds for `work`, at best.
    pub fn seconds(&self, work: Work) -> f64 {
        let at = |amount: f64, rate: f64| if rate > 0.0 { amount / rate } else { 0.0 };
        self.launch + at(work.bytes, self.bytes).max(at(work.flops, self.flops))
    }
}

impl Curve {
    /// Seconds for `tokens` tokens, interpolated in the logarithm of both; `copy_busy`: while the copy lane is. Beyond the last
    /// point the time grows with the tokens.
    pub fn seconds(&self, tokens: u32, copy_busy: bool) -> Option<f64> {
        let time = |index: usize| {
            let point = &self.points[index];
            let busy = if copy_busy { point.copy_busy } else { None };
            // copies make nothing faster, whatever noise says
            busy.unwrap_or(0.0).max(point.seconds).max(1e-9)
        };
        let last = self.points.len().checked_sub(1)?;
        let tokens = tokens.max(1);
        let above = self.points.partition_point(|point| point.rows < tokens);
        if above == 0 {
            return Some(time(0));
        }
        if above > last {
            let most = f64::from(self.points[last].rows.max(1));
            return Some(time(last) * f64::from(tokens) / most);
        }
        let log = |rows: u32| f64::from(rows.max(1)).ln();
        let (low, high) = (self.points[above - 1].rows, self.points[above].rows);
        let share = (log(tokens) - log(low)) / (log(high) - log(low)).max(1e-12);
        Some((time(above - 1).ln() * (1.0 - share) + time(above).ln() * share).exp())
    }
}

impl Profile {
    /// The limits of a processor.
    pub fn roofline(&self, on: Processor) -> &Roofline {
        match on {
            Processor::Cpu => &self.cpu,
            Processor::Gpu => &self.gpu,
        }
    }

    /// Seconds that `op` takes for `tokens` tokens; `copy_busy`: while the copy lane reads host memory too.
    ///
    /// Where the operation itself was not measured, the next smaller and the next larger one of its kind and types say how much
    /// of the roofline is reached; without any, the roofline answers alone.
    pub fn seconds(&self, on: Processor, op: &Op, tokens: u32, copy_busy: bool) -> f64 {
        let roofline = self.roofline(on);
        let at_best = |op: &Op| roofline.seconds(op.work(tokens)).max(1e-12);
        let wanted = at_best(op);
        let curves = || self.curves.iter().filter(|curve| curve.on == on);
        let itself = curves().find(|curve| curve.op == *op);
        if let Some(seconds) = itself.and_then(|curve| curve.seconds(tokens, copy_busy)) {
            return seconds;
        }
        let like = curves().filter(|curve| curve.op.is_like(op));
        let mut like: Vec<(f64, f64)> = like
            .filter_map(|curve| {
                let at_best = at_best(&curve.op);
                let efficiency = at_best / curve.seconds(tokens, copy_busy)?;
                let distance = (at_best / wanted).ln();
                Some((distance, efficiency))
            })
            .collect();
        if like.is_empty() {
            let slower = match (on, copy_busy) {
                (Processor::Cpu, true) => self.copy_slows_cpu(),
                _ => 1.0,
            };
            return wanted * slower;
        }
        wanted / efficiency(&mut like)
    }

    /// Bytes of activations that the device reads and writes per second where it adds them, and the like. Where that was not measured, half
    /// of what it reads of weights.
    pub fn activations(&self) -> f64 {
        let mut curves = self.curves.iter().filter(|c| c.on == Processor::Gpu);
        let sums = curves.find_map(|curve| match (&curve.op, curve.points.last()) {
            (Op::Sum { columns }, Some(point)) => Some((*columns, *point)),
            _ => None,
        });
        match sums {
            // two are read, one is written, in 4 bytes
            Some((columns, point)) => {
                12.0 * columns as f64 * f64::from(point.rows) / point.seconds.max(1e-9)
            }
            None => self.gpu.bytes / 2.0,
        }
    }

    /// How much longer the CPU takes to read its weights while the copy lane is busy.
    pub fn copy_slows_cpu(&self) -> f64 {
        let (alone, busy) = (self.memory.cpu.median, self.memory.cpu_copy_busy.median);
        if alone > 0.0 && busy > 0.0 {
            (alone / busy).max(1.0)
        } else {
            1.0
        }
    }
}

/// The share of the roofline that is reached at distance 0, from pairs of distance (a logarithm of size) and share: interpolated
/// between the nearest on either side, or that of the nearest.
fn efficiency(like: &mut [(f64, f64)]) -> f64 {
    like.sort_by(|a, b| a.0.total_cmp(&b.0));
    let above = like.partition_point(|(distance, _)| *distance < 0.0);
    let nearest = |index: usize| like.get(index).copied();
    let below = above.checked_sub(1).and_then(nearest);
    match (below, nearest(above)) {
        (Some((low, small)), Some((high, large))) => {
            let weight = -low / (high - low);
            (small.ln() * (1.0 - weight) + large.ln() * weight).exp()
        }
        (Some((_, share)), None) | (None, Some((_, share))) => share,
        (None, None) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Point;
    use proptest::prelude::*;

    fn point((rows, seconds): (u32, f64)) -> Point {
        Point {
            rows,
            seconds,
            spread: 0.0,
            copy_busy: Some(seconds * 1.5),
        }
    }

    fn product(columns: u64, rows: u64) -> Op {
        Op::Product {
            type_name: "f16".to_owned(),
            columns,
            rows,
        }
    }

    fn curve(op: Op, points: &[(u32, f64)]) -> Curve {
        Curve {
            on: Processor::Gpu,
            op,
            points: points.iter().copied().map(point).collect(),
        }
    }

    /// Points by rising rows, with times in any order.
    fn points() -> impl Strategy<Value = Vec<(u32, f64)>> {
        let rows = proptest::collection::btree_set(1u32..5000, 1..8);
        rows.prop_flat_map(|rows| {
            let times = proptest::collection::vec(1e-7f64..1.0, rows.len());
            times.prop_map(move |times| rows.iter().copied().zip(times).collect())
        })
    }

    proptest! {
        #[test]
        fn a_curve_goes_through_its_points_and_stays_between_them(points in points(), tokens in 1u32..10_000) {
            let curve = curve(product(64, 64), &points);
            for (rows, seconds) in &points {
                let at = curve.seconds(*rows, false).unwrap();
                prop_assert!((at / seconds - 1.0).abs() < 1e-9);
                let busy = curve.seconds(*rows, true).unwrap();
                prop_assert!((busy / seconds - 1.5).abs() < 1e-9);
            }
            let at = curve.seconds(tokens, false).unwrap();
            prop_assert!(at.is_finite() && at > 0.0);
            let low = points.iter().rev().find(|p| p.0 <= tokens);
            let high = points.iter().find(|p| p.0 >= tokens);
            match (low, high) {
                (Some(low), Some(high)) => {
                    let (least, most) = (low.1.min(high.1), low.1.max(high.1));
                    prop_assert!(at >= least * 0.999_999 && at <= most * 1.000_001);
                }
                (None, Some(first)) => prop_assert_eq!(at, first.1),
                _ => prop_assert!(at > points[points.len() - 1].1),
            }
        }

        #[test]
        fn more_tokens_never_take_less_where_the_points_rise(points in points(), a in 1u32..10_000, b in 1u32..10_000) {
            let mut points = points;
            let mut times: Vec<f64> = points.iter().map(|p| p.1).collect();
            times.sort_by(f64::total_cmp);
            points.iter_mut().zip(times).for_each(|(point, time)| point.1 = time);
            let curve = curve(product(64, 64), &points);
            let at = |tokens: u32| curve.seconds(tokens, false).unwrap();
            prop_assert!(at(a.min(b)) <= at(a.max(b)) * 1.000_001);
        }

        #[test]
        fn a_profile_always_has_an_answer(columns in 1u64..40_000, rows in 1u64..200_000, tokens in 0u32..100_000, busy: bool, known in points()) {
            let mut profile = Profile::assumed();
            profile.curves = vec![curve(product(4096, 4096), &known), curve(product(64, 64), &[])];
            for on in [Processor::Cpu, Processor::Gpu] {
                let seconds = profile.seconds(on, &product(columns, rows), tokens, busy);
                prop_assert!(seconds.is_finite() && seconds > 0.0, "{}", seconds);
            }
        }
    }

    #[test]
    fn a_measured_operation_is_looked_up_and_a_similar_one_is_scaled() {
        let mut profile = Profile::assumed();
        profile.gpu.launch = 0.0;
        let best = |op: &Op| profile.gpu.seconds(op.work(1));
        let (small, large) = (product(1024, 1024), product(4096, 4096));
        // one reaches a quarter of the roofline, the other all of it
        let curves = vec![
            curve(small.clone(), &[(1, 4.0 * best(&small))]),
            curve(large.clone(), &[(1, best(&large))]),
            curve(product(2048, 2048), &[]),
        ];
        let between = product(2048, 2048);
        let expected = 2.0 * best(&between);
        let beyond = product(8192, 8192);
        let expected_beyond = best(&beyond);
        profile.curves = curves;
        let at = |op: &Op| profile.seconds(Processor::Gpu, op, 1, false);
        assert!((at(&small) / best_of(&profile, &small) - 4.0).abs() < 1e-9);
        assert!((at(&between) / expected - 1.0).abs() < 1e-9);
        assert!((at(&beyond) / expected_beyond - 1.0).abs() < 1e-9);
    }

    fn best_of(profile: &Profile, op: &Op) -> f64 {
        profile.gpu.seconds(op.work(1))
    }

    #[test]
    fn equal_sizes_are_told_apart() {
        let mut profile = Profile::assumed();
        let (wide, tall) = (product(4096, 14336), product(14336, 4096));
        profile.curves = vec![
            curve(wide.clone(), &[(1, 1e-3)]),
            curve(tall.clone(), &[(1, 2e-3)]),
        ];
        let at = |op: &Op| profile.seconds(Processor::Gpu, op, 1, false);
        assert!((at(&wide) - 1e-3).abs() < 1e-9, "{}", at(&wide));
        assert!((at(&tall) - 2e-3).abs() < 1e-9, "{}", at(&tall));
    }

    #[test]
    fn a_busy_copy_lane_slows_the_cpu_where_nothing_was_measured() {
        let profile = Profile::assumed();
        let at = |busy| profile.seconds(Processor::Cpu, &product(4096, 4096), 1, busy);
        assert!(at(true) > at(false) * 1.2);
    }
}
