//! The profile of a simulated GPU, which is what its specification states.

use pipeshard_plan::constants::machine::{ASSUMED_CPU, ASSUMED_DRAM_SHARE};
use pipeshard_plan::profile::{Profile, ProfileKey, Rates};
use pipeshard_sim::SimSpec;

/// The profile of a simulated GPU, from its specification. Where that says nothing about the CPU, 50 GB/s are assumed; CPU
/// and link together get `dram` bytes per second of the host's memory, or 1.15 times what the CPU gets alone.
pub fn of_simulated(spec: &SimSpec, threads: u32, dram: Option<f64>) -> Profile {
    let cpu = spec.cpu.map_or(ASSUMED_CPU, |rate| rate as f64);
    let rates = Rates {
        pcie: spec.pcie as f64,
        pageable: spec.pageable as f64,
        cpu,
        dram: dram.unwrap_or(cpu * ASSUMED_DRAM_SHARE),
        membw: spec.membw as f64,
        flops: spec.flops as f64,
        launch: spec.launch_ns as f64 * 1e-9,
    };
    rates.profile(ProfileKey {
        device: spec.to_string(),
        driver: "simulated".to_owned(),
        cpu: "stated".to_owned(),
        threads,
        ..ProfileKey::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_plan::profile::{Op, Origin, Processor};

    #[test]
    fn a_simulated_gpu_is_as_fast_as_it_says() {
        let spec =
            SimSpec::parse("vram=8G,pcie=12G,flops=20T,membw=300G,launch=3us,cpu=40G").unwrap();
        let profile = of_simulated(&spec, 8, None);
        assert_eq!(profile.origin, Origin::Stated);
        assert_eq!(profile.link.pinned.median, 12e9);
        assert_eq!(profile.memory.cpu.median, 40e9);
        let both = profile.memory.cpu_copy_busy.median + profile.link.pinned_cpu_busy.median;
        assert!((both - 46e9).abs() < 1.0, "{both}");
        let op = Op::Product {
            type_name: "f16".to_owned(),
            columns: 4096,
            rows: 4096,
        };
        let seconds = profile.seconds(Processor::Gpu, &op, 1, false);
        assert!((seconds - (3e-6 + 4096.0 * 4096.0 * 2.0 / 300e9)).abs() < 1e-12);
    }

    #[test]
    fn enough_memory_bandwidth_slows_nobody_down() {
        let spec = SimSpec::parse("vram=8G,pcie=12G,cpu=40G").unwrap();
        let profile = of_simulated(&spec, 8, Some(80e9));
        assert_eq!(profile.memory.cpu_copy_busy.median, 40e9);
        assert_eq!(profile.link.pinned_cpu_busy.median, 12e9);
    }
}
