//! What an image or a piece of sound costs that is encoded ahead of a prompt.

use crate::profile::{Op, Processor, Profile};
use serde::{Deserialize, Serialize};

/// An operation that an encoder's graph has several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// What.
    pub op: Op,
    /// Rows that it is given.
    pub rows: u32,
    /// How often.
    pub times: f64,
}

/// What an encoder does for one image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodeWork {
    /// Floating-point operations.
    pub operations: f64,
    /// Products with weights, and attention.
    pub products: Vec<Times>,
    /// Bytes of activations that all other operations read and write.
    pub moved: f64,
    /// Kernels that the device runs for those.
    pub kernels: u64,
    /// Weights that are copied to the device for it, in bytes.
    pub streamed: u64,
    /// Those of them that have to be there before anything is computed, in bytes.
    pub first: u64,
    /// Weights of the language model that made way and are copied back after it, in bytes.
    pub restored: u64,
}

/// What that takes, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EncodeCost {
    /// The encode on the device: computing and copying at once.
    pub seconds: f64,
    /// Computing alone.
    pub computing: f64,
    /// Copying alone.
    pub copying: f64,
    /// Copying back what made way.
    pub restoring: f64,
    /// The same encode on the CPU.
    pub on_cpu: f64,
}

impl EncodeWork {
    /// What it takes on a machine. Weights are copied while layers compute whose weights are there; the CPU copies nothing.
    pub fn cost(&self, profile: &Profile) -> EncodeCost {
        let over = |amount: f64, rate: f64| match amount > 0.0 {
            true => amount / rate,
            false => 0.0,
        };
        let link = profile.link.pinned.median;
        let launches =
            self.kernels as f64 * profile.gpu.launch.max(profile.overheads.launch.median);
        let of =
            |what: &Times| what.times * profile.seconds(Processor::Gpu, &what.op, what.rows, false);
        let products: f64 = self.products.iter().map(of).sum();
        let computing = products + over(self.moved, profile.activations()) + launches;
        let copying = over(self.streamed as f64, link);
        EncodeCost {
            seconds: computing.max(copying) + over(self.first.min(self.streamed) as f64, link),
            computing,
            copying,
            restoring: over(self.restored as f64, link),
            on_cpu: over(self.operations, profile.cpu.flops),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Curve, Point, Quantity};

    fn product(columns: u64) -> Op {
        Op::Product {
            type_name: "f16".to_owned(),
            columns,
            rows: 1000,
        }
    }

    fn curve(op: Op, rows: u32, seconds: f64) -> Curve {
        let point = Point {
            rows,
            seconds,
            spread: 0.0,
            copy_busy: None,
        };
        Curve {
            on: Processor::Gpu,
            op,
            points: vec![point],
        }
    }

    #[test]
    fn what_was_measured_says_how_long_an_encode_takes() {
        let mut profile = Profile::assumed();
        profile.link.pinned = Quantity::stated(10e9);
        profile.gpu.launch = 0.0;
        profile.overheads.launch = Quantity::stated(1e-6);
        profile.cpu.flops = 1e10;
        // 12 bytes for each of a million values in 12 us: 1 TB/s
        let sum = curve(Op::Sum { columns: 1000 }, 1000, 12e-6);
        profile.curves = vec![curve(product(1000), 500, 1e-3), sum];
        let times = |rows, times| Times {
            op: product(1000),
            rows,
            times,
        };
        let work = EncodeWork {
            operations: 2e12,
            products: vec![times(500, 100.0), times(1000, 10.0)],
            moved: 5e9,
            kernels: 1000,
            streamed: 1_000_000_000,
            first: 100_000_000,
            restored: 500_000_000,
        };
        // beyond what was measured, twice the rows take twice the time
        let cost = work.cost(&profile);
        assert!((cost.computing - 0.126).abs() < 1e-9, "{cost:?}");
        assert!((cost.seconds - 0.136).abs() < 1e-9, "{cost:?}");
        assert!((cost.restoring - 0.05).abs() < 1e-9 && (cost.on_cpu - 200.0).abs() < 1e-9);
        // a small image waits for its weights
        let small = EncodeWork {
            products: vec![times(500, 1.0)],
            moved: 0.0,
            ..work
        };
        assert!((small.cost(&profile).seconds - 0.11).abs() < 1e-9);
        assert_eq!(EncodeWork::default().cost(&profile), EncodeCost::default());
        // without a measurement, half of what is read of weights
        profile.curves.clear();
        assert_eq!(profile.activations(), profile.gpu.bytes / 2.0);
    }
}
