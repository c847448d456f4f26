//! What commands say where there is no GPU: one message, with the command that still works.

use pipeshard::lanes::device::Device;
use pipeshard_model::size::ByteSize;
use std::path::Path;

/// The GPU that commands measure or compare on, none where ggml finds none. Loads ggml's backends.
pub fn first() -> Option<Device> {
    // ggml-cuda page-locks in place only where this is set
    std::env::set_var("GGML_CUDA_REGISTER_HOST", "1");
    pipeshard_llama::start(false);
    Device::first_gpu()
}

const FOUND_NONE: &str = "no GPU was found (a driver, or ggml's library for it, may be missing)";

/// Nothing can be measured: `model` can be planned for.
pub fn nothing_to_measure(model: Option<&Path>, vram: Option<ByteSize>) -> String {
    let model = model.map_or_else(|| "MODEL".to_owned(), |path| path.display().to_string());
    let vram = vram.map_or_else(|| "6G".to_owned(), ByteSize::to_flag);
    format!(
        "{FOUND_NONE}, so there is nothing to measure. What works is a plan for a stated machine:\n  \
         pipeshard plan {model} --vram {vram} --profile desktop-16g"
    )
}

/// Nothing can be compared, but on a simulated GPU.
pub fn nothing_to_compare(command: &str, model: &Path, vram: ByteSize) -> String {
    // a simulated GPU has the memory that is used of it
    let card = ByteSize(vram.0.saturating_mul(2).max(8 << 30));
    format!(
        "{FOUND_NONE}, so there is nothing to compare on. What works is a simulated one:\n  \
         pipeshard {command} {} --vram {} --sim vram={}",
        model.display(),
        vram.to_flag(),
        card.to_flag()
    )
}

/// Where the figures of a plan come from.
pub const PLANNED_WITHOUT: &str =
    "No GPU was found: predictions for an assumed machine; --profile desktop-16g names another.";
