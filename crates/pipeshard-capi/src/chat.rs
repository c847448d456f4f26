//! Chat templates and grammars, by src/chat.cpp.

use crate::boundary::c_text;
use pipeshard_llama::Model;
use pipeshard_sys as ffi;
use std::ffi::{c_char, CStr};
use std::ptr::NonNull;

enum Templates {}

extern "C" {
    fn pipeshard_chat_open(
        model: *const ffi::llama_model,
        instead: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut Templates;
    fn pipeshard_chat_close(templates: *mut Templates);
    fn pipeshard_chat_is_explicit(templates: *const Templates) -> bool;
    fn pipeshard_chat_render(
        templates: *const Templates,
        messages: *const c_char,
        answer: bool,
        error: *mut *mut c_char,
    ) -> *mut c_char;
    fn pipeshard_chat_grammar(schema: *const c_char, error: *mut *mut c_char) -> *mut c_char;
    fn pipeshard_chat_free(text: *mut c_char);
}

/// A text of chat.cpp's.
unsafe fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
    pipeshard_chat_free(text);
    Some(copy)
}

/// Calls a function of chat.cpp that returns a text.
fn text(call: impl FnOnce(*mut *mut c_char) -> *mut c_char) -> Result<String, String> {
    let mut error = std::ptr::null_mut();
    let made = call(&mut error);
    // SAFETY: both are null or texts of chat.cpp's, which nobody else has.
    let (made, error) = unsafe { (taken(made), taken(error)) };
    made.ok_or_else(|| error.unwrap_or_else(|| "there is no memory left".to_owned()))
}

/// The template of a model's conversations.
pub struct Chat(NonNull<Templates>);

// SAFETY: it is not changed after it was made; rendering only reads it.
unsafe impl Send for Chat {}
// SAFETY: as above.
unsafe impl Sync for Chat {}

impl Drop for Chat {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { pipeshard_chat_close(self.0.as_ptr()) }
    }
}

impl Chat {
    /// The model's own template, or the one given.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn open(model: &Model, instead: Option<&str>) -> Result<Self, String> {
        let instead = instead.map(c_text);
        let instead = instead.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        let mut error = std::ptr::null_mut();
        // SAFETY: the model is alive, the text lives through the call.
        let made = unsafe { pipeshard_chat_open(model.raw(), instead, &mut error) };
        // SAFETY: null or a text of chat.cpp's.
        let error = unsafe { taken(error) };
        NonNull::new(made)
            .map(Chat)
            .ok_or_else(|| error.unwrap_or_default())
    }

    /// Reports whether the model brought a template, or one was given.
    pub fn is_explicit(&self) -> bool {
        // SAFETY: alive.
        unsafe { pipeshard_chat_is_explicit(self.0.as_ptr()) }
    }

    /// The text of a conversation, up to where the answer begins. `messages`: JSON.
    ///
    /// # Errors
    /// What the template says, or what is wrong with it.
    pub fn render(&self, messages: &str) -> Result<String, String> {
        let messages = c_text(messages);
        // SAFETY: alive; the text lives through the call.
        text(|error| unsafe {
            pipeshard_chat_render(self.0.as_ptr(), messages.as_ptr(), true, error)
        })
    }
}

/// A grammar for answers that follow a JSON schema.
///
/// # Errors
/// What is wrong with the schema.
pub fn grammar_of(schema: &str) -> Result<String, String> {
    let schema = c_text(schema);
    // SAFETY: the text lives through the call.
    text(|error| unsafe { pipeshard_chat_grammar(schema.as_ptr(), error) })
}
