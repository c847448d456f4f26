//! What an image or a piece of sound costs that is encoded ahead of a prompt.

use crate::constants::machine::ENCODER_SHARE;
use crate::profile::Profile;
use serde::{Deserialize, Serialize};

/// What an encoder does for one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EncodeWork {
    /// Floating-point operations.
    pub operations: f64,
    /// Kernels that the device runs.
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
        let computing = over(self.operations, profile.gpu.flops * ENCODER_SHARE) + launches;
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
    use crate::profile::{Quantity, Roofline};

    #[test]
    fn copies_run_while_layers_compute() {
        let mut profile = Profile::assumed();
        profile.link.pinned = Quantity::stated(10e9);
        profile.gpu = Roofline {
            flops: 1e12 / ENCODER_SHARE,
            launch: 0.0,
            ..profile.gpu
        };
        profile.overheads.launch = Quantity::stated(1e-6);
        profile.cpu.flops = 1e10;
        let work = EncodeWork {
            operations: 2e12,
            kernels: 1000,
            streamed: 1_000_000_000,
            first: 100_000_000,
            restored: 500_000_000,
        };
        let cost = work.cost(&profile);
        assert!((cost.computing - 2.001).abs() < 1e-9, "{cost:?}");
        assert!((cost.seconds - 2.011).abs() < 1e-9, "{cost:?}");
        assert!((cost.restoring - 0.05).abs() < 1e-9 && (cost.on_cpu - 200.0).abs() < 1e-9);
        // a small image waits for its weights
        let small = EncodeWork {
            operations: 1e9,
            ..work
        };
        assert!((small.cost(&profile).seconds - 0.11).abs() < 1e-9);
        assert_eq!(EncodeWork::default().cost(&profile), EncodeCost::default());
    }
}
