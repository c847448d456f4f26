//! LoRA adapters.

use super::model::path_text;
use super::{LlamaError, Model};
use pipeshard_sys as ffi;
use std::marker::PhantomData;
use std::path::Path;

/// An adapter of a model, which frees it in its own end.
#[derive(Clone, Copy)]
pub struct Lora<'m> {
    raw: *mut ffi::llama_adapter_lora,
    model: PhantomData<&'m Model>,
}

impl<'m> Lora<'m> {
    /// Loads an adapter.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn load(model: &'m Model, path: &Path) -> Result<Self, LlamaError> {
        let text = path_text(path)?;
        // SAFETY: the model is alive, the text is valid during the call.
        let raw = unsafe { ffi::llama_adapter_lora_init(model.raw(), text.as_ptr()) };
        match raw.is_null() {
            true => Err(LlamaError::Refused {
                what: format!("the adapter {}", path.display()),
            }),
            false => Ok(Lora {
                raw,
                model: PhantomData,
            }),
        }
    }

    pub(super) fn raw(&self) -> *mut ffi::llama_adapter_lora {
        self.raw
    }
}
