//! Saving and restoring what a context holds.

use super::context::refused_unless;
use super::model::path_text;
use super::{Context, LlamaError};
use pipeshard_sys as ffi;
use std::path::Path;

impl Context<'_> {
    /// Everything that the context holds, as bytes.
    pub fn state(&mut self) -> Vec<u8> {
        // SAFETY: the buffer is as large as said.
        unsafe {
            let mut bytes = vec![0; ffi::llama_state_get_size(self.raw())];
            let written = ffi::llama_state_get_data(self.raw(), bytes.as_mut_ptr(), bytes.len());
            bytes.truncate(written);
            bytes
        }
    }

    /// Takes over what [`Context::state`] gave.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn set_state(&mut self, bytes: &[u8]) -> Result<(), LlamaError> {
        // SAFETY: the bytes are valid during the call.
        let read = unsafe { ffi::llama_state_set_data(self.raw(), bytes.as_ptr(), bytes.len()) };
        refused_unless(read == bytes.len(), || "the state".to_string())
    }

    /// What one sequence holds, as bytes.
    pub fn sequence_state(&mut self, sequence: i32) -> Vec<u8> {
        // SAFETY: the buffer is as large as said.
        unsafe {
            let mut bytes = vec![0; ffi::llama_state_seq_get_size(self.raw(), sequence)];
            let written = ffi::llama_state_seq_get_data(
                self.raw(),
                bytes.as_mut_ptr(),
                bytes.len(),
                sequence,
            );
            bytes.truncate(written);
            bytes
        }
    }

    /// Puts what [`Context::sequence_state`] gave into a sequence.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn set_sequence_state(&mut self, sequence: i32, bytes: &[u8]) -> Result<(), LlamaError> {
        // SAFETY: the bytes are valid during the call.
        let read = unsafe {
            ffi::llama_state_seq_set_data(self.raw(), bytes.as_ptr(), bytes.len(), sequence)
        };
        refused_unless(read != 0, || format!("the state of sequence {sequence}"))
    }

    /// Saves everything, with the tokens that led to it.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn save(&mut self, path: &Path, tokens: &[i32]) -> Result<(), LlamaError> {
        let text = path_text(path)?;
        // SAFETY: text and tokens are valid during the call.
        let saved = unsafe {
            ffi::llama_state_save_file(self.raw(), text.as_ptr(), tokens.as_ptr(), tokens.len())
        };
        refused_unless(saved, || format!("writing {}", path.display()))
    }

    /// Restores what [`Context::save`] wrote, and returns the tokens.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn restore(&mut self, path: &Path, capacity: usize) -> Result<Vec<i32>, LlamaError> {
        let text = path_text(path)?;
        let (mut tokens, mut count) = (vec![0; capacity], 0);
        // SAFETY: text and tokens are valid during the call.
        let read = unsafe {
            ffi::llama_state_load_file(
                self.raw(),
                text.as_ptr(),
                tokens.as_mut_ptr(),
                capacity,
                &mut count,
            )
        };
        tokens.truncate(count);
        refused_unless(read, || format!("reading {}", path.display())).map(|()| tokens)
    }

    /// Saves one sequence, with the tokens that led to it.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn save_sequence(
        &mut self,
        path: &Path,
        sequence: i32,
        tokens: &[i32],
    ) -> Result<(), LlamaError> {
        let text = path_text(path)?;
        // SAFETY: text and tokens are valid during the call.
        let written = unsafe {
            ffi::llama_state_seq_save_file(
                self.raw(),
                text.as_ptr(),
                sequence,
                tokens.as_ptr(),
                tokens.len(),
            )
        };
        refused_unless(written != 0, || format!("writing {}", path.display()))
    }

    /// Restores into a sequence what [`Context::save_sequence`] wrote, and returns the tokens.
    ///
    /// # Errors
    /// [`LlamaError::Refused`].
    pub fn restore_sequence(
        &mut self,
        path: &Path,
        sequence: i32,
        capacity: usize,
    ) -> Result<Vec<i32>, LlamaError> {
        let text = path_text(path)?;
        let (mut tokens, mut count) = (vec![0; capacity], 0);
        // SAFETY: text and tokens are valid during the call.
        let read = unsafe {
            ffi::llama_state_seq_load_file(
                self.raw(),
                text.as_ptr(),
                sequence,
                tokens.as_mut_ptr(),
                capacity,
                &mut count,
            )
        };
        tokens.truncate(count);
        refused_unless(read != 0, || format!("reading {}", path.display())).map(|()| tokens)
    }
}
