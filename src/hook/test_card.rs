//! A simulated GPU for unit tests of what owns device memory.

use crate::lanes::device::Device;
use pipeshard_sim::{self as sim, SimSpec};
use pipeshard_sys as ffi;

/// A device of its own for one test.
pub(super) fn card(spec: &str) -> Device {
    let registry = sim::registry(SimSpec::parse(spec).expect("a valid specification"));
    assert!(!registry.is_null());
    // SAFETY: the registry has one device, which lives as long as the process.
    let raw = unsafe { ffi::ggml_backend_reg_dev_get(registry, 0) };
    Device::new(raw).expect("it has one device")
}
