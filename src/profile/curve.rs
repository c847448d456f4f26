//! How long an operation takes: from its curve, from a similar one, or from the roofline.

use super::types::{Curve, Op, Processor, Profile, Roofline};
use crate::inventory::expected_distinct;
use crate::inventory::DType;

/// What an operation moves and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes of weights or KV cells that are read.
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
            Op::Attention {
                head,
                heads,
                kv_heads,
                type_k,
                type_v,
                cells,
            } => {
                let width = u64::from(*head) * u64::from(*kv_heads);
                Work {
                    bytes: matrix(type_k, width, *cells) + matrix(type_v, width, *cells),
                    flops: 4.0 * f64::from(*head) * f64::from(*heads) * *cells as f64 * tokens_f,
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
            busy.unwrap_or(point.seconds).max(1e-9)
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
    /// Where the operation itself was not measured, the nearest one of its kind and types is scaled by what both cost on the
    /// roofline; without any, the roofline answers alone.
    pub fn seconds(&self, on: Processor, op: &Op, tokens: u32, copy_busy: bool) -> f64 {
        let roofline = self.roofline(on);
        let at_best = |op: &Op| roofline.seconds(op.work(tokens)).max(1e-12);
        let wanted = at_best(op);
        let curves = self.curves.iter().filter(|curve| curve.on == on);
        let like = curves.filter(|curve| curve.op.is_like(op));
        let distance = |curve: &&Curve| (at_best(&curve.op) / wanted).ln().abs();
        let nearest = like.min_by(|a, b| distance(a).total_cmp(&distance(b)));
        match nearest.and_then(|curve| Some((curve, curve.seconds(tokens, copy_busy)?))) {
            Some((curve, seconds)) if curve.op == *op => seconds,
            Some((curve, seconds)) => seconds * wanted / at_best(&curve.op),
            None => {
                let slower = match (on, copy_busy) {
                    (Processor::Cpu, true) => self.copy_slows_cpu(),
                    _ => 1.0,
                };
                wanted * slower
            }
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
