//! Which device computes: the first that can, by its kind and by whose backend it is of.

use super::device::{Device, Kind};

/// Backends, by the names of their registries, that are known to copy and compute side by side on a card with memory of its own.
const KNOWN: [&str; 5] = ["CUDA", "ROCm", "MUSA", "Vulkan", "SIM"];
/// Those that read `GGML_CUDA_ENABLE_UNIFIED_MEMORY`.
const CUDA_LIKE: [&str; 3] = ["CUDA", "ROCm", "MUSA"];

/// What the environment says about devices.
#[derive(Debug, Default, Clone, Copy)]
pub struct Allowed {
    /// Devices of any backend (`PIPESHARD_ANY_DEVICE=1`).
    pub any: bool,
    /// `GGML_CUDA_ENABLE_UNIFIED_MEMORY` is set.
    pub unified_memory: bool,
}

/// Why a device is not used, and what to do; `None` if it may be used. `registry`: the name of its backend's.
pub fn refusal(registry: &str, kind: Kind, allowed: Allowed) -> Option<String> {
    if allowed.unified_memory && CUDA_LIKE.contains(&registry) {
        return Some(
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY is set: device memory then lies in host memory as well, and no budget holds; unset it, or \
             leave out --pipeshard"
                .to_owned(),
        );
    }
    if allowed.any {
        return None;
    }
    if kind == Kind::Integrated {
        return Some(
            "it is integrated and computes from host memory, so streaming gains nothing; leave out --pipeshard".to_owned(),
        );
    }
    if !KNOWN.contains(&registry) {
        let why = match registry {
            "RPC" => "weights would be streamed over the network for every pass",
            _ => "this backend was not tested with pipeshard",
        };
        return Some(format!(
            "{why} ({registry}); leave out --pipeshard, or set PIPESHARD_ANY_DEVICE=1 to try it anyway"
        ));
    }
    None
}

/// What is said where there is none.
const NO_GPU: &str = "no GPU was found (a driver, or ggml's library for it, may be missing). This command runs on the CPU, as \
    stock llama.cpp, without its --pipeshard flags and LLAMA_ARG_PIPESHARD variables";

/// Why there is no device, in so few words that it can be said again in the report.
pub fn in_short(why: &str) -> &str {
    match why == NO_GPU {
        true => "no GPU was found",
        false => why,
    }
}

/// The first device of `devices` that may be used, and how many there are of those. Else why there is none.
pub fn choose(devices: &[Device], allowed: Allowed) -> Result<(Device, usize), String> {
    let why = |device: &Device| refusal(&device.registry(), device.kind(), allowed);
    let usable: Vec<&Device> = devices.iter().filter(|d| why(d).is_none()).collect();
    if let Some(&&first) = usable.first() {
        return Ok((first, usable.len()));
    }
    match devices.iter().find_map(|d| why(d).map(|why| (d, why))) {
        Some((device, why)) => Err(format!(
            "{} ({}) is not used with --pipeshard: {why}",
            device.name(),
            device.description()
        )),
        None => Err(NO_GPU.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard_sim::{registry, SimSpec};
    use pipeshard_sys as ffi;

    #[test]
    fn devices_that_cannot_work_are_refused_with_the_right_advice() {
        let usual = Allowed::default();
        let any = Allowed { any: true, ..usual };
        let unified = Allowed {
            unified_memory: true,
            ..usual
        };
        for registry in KNOWN {
            assert_eq!(refusal(registry, Kind::Discrete, usual), None, "{registry}");
        }
        for registry in ["RPC", "HTP", "MTL", "SYCL", "OpenCL", "CANN", ""] {
            let why = refusal(registry, Kind::Discrete, usual).unwrap_or_default();
            assert!(why.contains("PIPESHARD_ANY_DEVICE=1"), "{registry}: {why}");
            assert!(why.contains(registry), "{registry}: {why}");
            assert_eq!(refusal(registry, Kind::Discrete, any), None);
        }
        let why = refusal("RPC", Kind::Discrete, usual).unwrap_or_default();
        assert!(why.contains("network"), "{why}");
        let why = refusal("CUDA", Kind::Integrated, usual).unwrap_or_default();
        assert!(
            why.contains("integrated") && why.contains("leave out"),
            "{why}"
        );
        for registry in CUDA_LIKE {
            let why = refusal(registry, Kind::Discrete, unified).unwrap_or_default();
            assert!(why.contains("GGML_CUDA_ENABLE_UNIFIED_MEMORY"), "{why}");
        }
        assert_eq!(refusal("Vulkan", Kind::Discrete, unified), None);
    }

    fn card(spec: &str) -> Device {
        let registry = registry(SimSpec::parse(spec).expect("a valid specification"));
        // SAFETY: the registry has one device, which lives as long as the process.
        let raw = unsafe { ffi::ggml_backend_reg_dev_get(registry, 0) };
        Device::new(raw).expect("it has one device")
    }

    #[test]
    fn the_first_of_several_is_used() {
        let cards = [card("vram=8M"), card("vram=16M")];
        assert_eq!(choose(&cards, Allowed::default()), Ok((cards[0], 2)));
        let none = choose(&[], Allowed::default()).unwrap_err();
        assert!(none.contains("no GPU was found"), "{none}");
    }
}
