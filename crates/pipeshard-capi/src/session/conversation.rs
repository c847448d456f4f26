//! What was said: messages, or a text without roles, and the images in it.

use crate::boundary::c_text;
use crate::failure::{Code, Failure};
use crate::media::{Bitmap, Part, MARKER};
use crate::model::Model;
use pipeshard_sys as ffi;

/// A message. Its text has a marker for each of its images.
pub struct Message {
    pub role: String,
    pub text: String,
    pub media: Vec<Bitmap>,
}

/// A conversation.
#[derive(Default)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Images for the message that comes next.
    pub coming: Vec<Bitmap>,
    /// Text without roles that is not in `tokens` yet.
    pub text: String,
    /// Text without roles so far, and what was said behind it; not all of it may have been evaluated.
    pub tokens: Vec<i32>,
    /// The session has text without roles.
    pub without_roles: bool,
}

const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

impl Conversation {
    /// Adds a message, or text without a role.
    ///
    /// # Errors
    /// The model has no template, the role is none, or the session has the other kind.
    pub fn add(&mut self, model: &Model, role: Option<&str>, text: &str) -> Result<(), Failure> {
        let Some(role) = role else {
            if !self.messages.is_empty() {
                return Err(Failure::invalid(
                    "the session has messages; text without a role is for sessions without: open another, or clear this one",
                ));
            }
            if !self.coming.is_empty() {
                return Err(Failure::invalid(
                    "images belong to messages: give the text a role",
                ));
            }
            self.without_roles = true;
            self.text.push_str(text);
            return Ok(());
        };
        if !ROLES.contains(&role) {
            return Err(Failure::invalid(format!(
                "role is '{role}'; it is one of {}, or NULL",
                ROLES.join(", ")
            )));
        }
        if self.without_roles {
            return Err(Failure::invalid(
                "the session has text without roles; messages are for sessions without: open another, or clear this one",
            ));
        }
        if model.chat.is_none() {
            return Err(Failure::new(
                Code::Unsupported,
                "the model has no chat template: pass one in pipeshard_model_config.chat_template, or text with role NULL",
            ));
        }
        let media = std::mem::take(&mut self.coming);
        let markers = text.matches(MARKER).count();
        let text = match (markers, media.len()) {
            (0, images) => format!("{}{text}", MARKER.repeat(images)),
            (markers, images) if markers == images => text.to_owned(),
            (markers, images) => {
                self.coming = media;
                return Err(Failure::invalid(format!(
                    "the text says {MARKER} {markers} times, and {images} images or sounds were added ahead of it"
                )));
            }
        };
        self.messages.push(Message {
            role: role.to_owned(),
            text,
            media,
        });
        Ok(())
    }

    /// The messages as JSON.
    pub fn json(&self) -> serde_json::Value {
        let messages = self
            .messages
            .iter()
            .map(|message| serde_json::json!({ "role": message.role, "content": message.text }));
        messages.collect()
    }

    /// All of the prompt for an answer to the messages.
    ///
    /// # Errors
    /// The template refuses the messages, or an image cannot be used.
    pub fn prompt(&self, model: &Model) -> Result<Vec<Part>, Failure> {
        if self.messages.is_empty() {
            return Err(Failure::invalid(
                "there is nothing to answer: add a message first",
            ));
        }
        let chat = model
            .chat
            .as_ref()
            .ok_or_else(|| Failure::new(Code::Unsupported, "the model has no chat template"))?;
        let text = chat.render(&self.json().to_string()).map_err(|why| {
            Failure::invalid(format!("the chat template refuses the messages: {why}"))
        })?;
        let media: Vec<&Bitmap> = self.messages.iter().flat_map(|m| &m.media).collect();
        if media.is_empty() {
            return Ok(vec![Part::Tokens(tokens_of(model, &text, true)?)]);
        }
        model.with_encoder(|encoder| encoder.parts(&text, &media))
    }
}

/// The tokens of a text. `beginning`: with those that the model wants at the beginning.
///
/// # Errors
/// The text is too long.
pub fn tokens_of(model: &Model, text: &str, beginning: bool) -> Result<Vec<i32>, Failure> {
    let c = c_text(text);
    let too_long = || Failure::invalid("the text is too long");
    let length = i32::try_from(text.len()).map_err(|_| too_long())?;
    let vocabulary = model.llama.raw_vocabulary();
    let mut tokens = vec![0; text.len() / 2 + 16];
    loop {
        let room = i32::try_from(tokens.len()).map_err(|_| too_long())?;
        // SAFETY: the model is alive; text and room are as long as said.
        let count = unsafe {
            ffi::llama_tokenize(
                vocabulary,
                c.as_ptr(),
                length,
                tokens.as_mut_ptr(),
                room,
                beginning,
                true,
            )
        };
        match usize::try_from(count) {
            Ok(count) => {
                tokens.truncate(count);
                return Ok(tokens);
            }
            // so many are needed
            Err(_) => tokens.resize(count.unsigned_abs() as usize, 0),
        }
    }
}
