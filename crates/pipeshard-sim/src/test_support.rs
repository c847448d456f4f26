//! What tests on a simulated GPU need, those of other crates too.

use std::sync::Once;

use pipeshard_sys as ffi;

/// Makes ggml's CPU backend known, as the tools do when they start. It lies in the tests' folder or one folder up.
pub fn load_cpu() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let exe = std::env::current_exe().expect("the path of this test");
        for dir in exe.ancestors().skip(1).take(2) {
            let path = std::ffi::CString::new(dir.to_string_lossy().as_bytes()).expect("a path");
            if super::compute::cpu_device().is_none() {
                // SAFETY: a string.
                unsafe { ffi::ggml_backend_load_all_from_path(path.as_ptr()) };
            }
        }
        assert!(
            super::compute::cpu_device().is_some(),
            "no CPU backend beside the tests"
        );
    });
}

/// Reports whether this much host memory is page-locked for a device, once tests that run at the same time are through:
/// what they lock in place is page-locked for all simulated devices.
pub fn page_locked_is(device: ffi::ggml_backend_dev_t, bytes: u64) -> bool {
    let begun = std::time::Instant::now();
    loop {
        let found = super::counters(device).pinned_bytes;
        if found == bytes || begun.elapsed() > std::time::Duration::from_secs(20) {
            return found == bytes;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
