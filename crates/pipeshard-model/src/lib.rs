//! What a model consists of, how sizes are written, and how threads get their names.
//!
//! Values only: no device, no foreign code. Files are read by `pipeshard-gguf`, loaded models by the runtime; both hand over
//! what they find as [`inventory::LoadedTensor`] and [`inventory::KeyValues`].
#![forbid(unsafe_code)]

pub mod inventory;
pub mod size;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod threads;
