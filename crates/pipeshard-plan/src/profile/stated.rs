//! Profiles that nobody measured: of machines that are not here, and where nothing is known.

use super::host::HostCosts;
use super::types::{
    HostMemory, Link, Origin, Overheads, Profile, ProfileKey, Quantity, Roofline,
    PROFILE_SCHEMA_VERSION,
};
use crate::constants::machine::{
    ASSUMED_CPU, ASSUMED_CPU_OP, ASSUMED_DRAM_SHARE, ASSUMED_PASS, ASSUMED_TO_CPU, ASSUMED_TO_GPU,
    CPU_FLOPS_PER_BYTE,
};

/// Rates of a machine, all of them stated. Bytes, floating-point operations and seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// To the device and back, from page-locked memory, per second.
    pub pcie: f64,
    /// To the device from ordinary memory, per second.
    pub pageable: f64,
    /// Weights that the CPU reads per second.
    pub cpu: f64,
    /// What CPU and copy lane read of the host's memory together, per second.
    pub dram: f64,
    /// The device's own memory, per second.
    pub membw: f64,
    /// Of the device in large products, per second.
    pub flops: f64,
    /// What each kernel costs besides its work, in seconds.
    pub launch: f64,
}

/// What two readers get of a memory that gives `dram` to both: what each wants, or its share of what there is.
pub(super) fn shared(cpu: f64, link: f64, dram: f64) -> (f64, f64) {
    let wanted = cpu + link;
    let share = if wanted > dram && wanted > 0.0 {
        dram / wanted
    } else {
        1.0
    };
    (cpu * share, link * share)
}

impl Rates {
    /// The profile of a machine with these rates. It has no curves: its rooflines answer for every operation.
    pub fn profile(&self, key: ProfileKey) -> Profile {
        let (cpu_busy, link_busy) = shared(self.cpu, self.pcie, self.dram);
        Profile {
            schema_version: PROFILE_SCHEMA_VERSION,
            origin: Origin::Stated,
            key,
            link: Link {
                pinned: Quantity::stated(self.pcie),
                pinned_cpu_busy: Quantity::stated(link_busy),
                pageable: Quantity::stated(self.pageable),
                back: Quantity::stated(self.pcie),
                register: Quantity::stated(0.0),
            },
            memory: HostMemory {
                cpu: Quantity::stated(self.cpu),
                cpu_copy_busy: Quantity::stated(cpu_busy),
            },
            overheads: Overheads {
                to_cpu: Quantity::stated(ASSUMED_TO_CPU),
                to_gpu: Quantity::stated(ASSUMED_TO_GPU),
                launch: Quantity::stated(self.launch),
                cpu_op: Quantity::stated(ASSUMED_CPU_OP),
                cpu_wake: Quantity::stated(0.0),
                pass: Quantity::stated(ASSUMED_PASS),
            },
            cpu: Roofline {
                bytes: self.cpu,
                flops: self.cpu * CPU_FLOPS_PER_BYTE,
                launch: ASSUMED_CPU_OP,
            },
            gpu: Roofline {
                bytes: self.membw,
                flops: self.flops,
                launch: self.launch,
            },
            host: HostCosts::ASSUMED,
            curves: Vec::new(),
            learned: Vec::new(),
        }
    }
}

impl Profile {
    /// What is assumed where nothing is known: a fast card on PCIe 4 x16 in a desktop with two memory channels.
    pub fn assumed() -> Self {
        let rates = Rates {
            pcie: 25e9,
            pageable: 8e9,
            cpu: ASSUMED_CPU,
            dram: ASSUMED_CPU * ASSUMED_DRAM_SHARE,
            membw: 700e9,
            flops: 120e12,
            launch: 3e-6,
        };
        rates.profile(ProfileKey {
            device: "an assumed card".to_owned(),
            cpu: "an assumed desktop".to_owned(),
            ..ProfileKey::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn two_readers_never_get_more_than_there_is(cpu in 1e6..1e12, link in 1e6..1e12, dram in 1e6..1e12) {
            let (a, b) = shared(cpu, link, dram);
            prop_assert!(a <= cpu && b <= link && a + b <= dram.min(cpu + link) * 1.000_001);
            prop_assert!((a / cpu - b / link).abs() < 1e-9);
        }
    }
}
