//! A conversation as bytes: what was said, what the KV cache holds, and the cache itself.

use super::activity::Activity;
use super::conversation::{Conversation, Message};
use super::evaluate::{Piece, Work};
use crate::failure::{Code, Failure};
use crate::media::{Bitmap, Shape};
use crate::model::Model;
use pipeshard_sys::BUILD_ID;
use serde_json::{json, Value};

/// What a saved conversation begins with; the last byte counts versions of the layout.
const MAGIC: [u8; 8] = *b"PSHARDS\x01";

/// Lengths of the parts behind it: the head (JSON), bytes of all images, the KV cache.
const LENGTHS: usize = 3 * size_of::<u64>();

fn damaged(what: &str) -> Failure {
    Failure::new(
        Code::File,
        format!("the saved conversation cannot be used: {what}"),
    )
}

fn head_of_media(bitmap: &Bitmap) -> Value {
    let shape = bitmap.shape();
    json!({ "width": shape.width, "height": shape.height, "sound": shape.is_sound, "bytes": bitmap.bytes().len() })
}

fn head_of_piece(piece: &Piece) -> Value {
    match piece {
        Piece::Token(token) => json!(token),
        Piece::Media {
            id,
            positions,
            tokens,
        } => json!({ "id": id, "positions": positions, "tokens": tokens }),
    }
}

fn piece_of(head: &Value) -> Option<Piece> {
    if let Some(token) = head.as_i64() {
        return Some(Piece::Token(i32::try_from(token).ok()?));
    }
    Some(Piece::Media {
        id: head["id"].as_str()?.to_owned(),
        positions: i32::try_from(head["positions"].as_i64()?).ok()?,
        tokens: u32::try_from(head["tokens"].as_u64()?).ok()?,
    })
}

/// Takes so many bytes from the front.
fn take<'b>(bytes: &mut &'b [u8], count: u64) -> Option<&'b [u8]> {
    let (front, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(front)
}

fn messages_of(head: &Value, bytes: &mut &[u8]) -> Result<Vec<Message>, Failure> {
    let list = head
        .as_array()
        .ok_or_else(|| damaged("it has no messages"))?;
    let message = |head: &Value| {
        let text = |name: &str| head[name].as_str().map(str::to_owned);
        let media = head["media"].as_array().map_or(&[][..], Vec::as_slice);
        let bitmap = |head: &Value| {
            let number = |name: &str| head[name].as_u64();
            let shape = Shape {
                width: u32::try_from(number("width")?).ok()?,
                height: u32::try_from(number("height")?).ok()?,
                is_sound: head["sound"].as_bool()?,
            };
            let length = number("bytes")?;
            let expected = match shape.is_sound {
                true => length,
                false => 3 * u64::from(shape.width) * u64::from(shape.height),
            };
            let bytes = take(bytes, length).filter(|_| length == expected)?;
            Bitmap::new(shape, bytes).ok()
        };
        Some(Message {
            role: text("role")?,
            text: text("text")?,
            media: media.iter().map(bitmap).collect::<Option<_>>()?,
        })
    };
    let messages: Option<Vec<Message>> = list.iter().map(message).collect();
    messages.ok_or_else(|| damaged("a message is damaged"))
}

impl Work {
    /// The conversation as bytes.
    pub fn saved(&mut self, model: &Model) -> Vec<u8> {
        let conversation = &self.conversation;
        let messages = conversation.messages.iter().map(|message| {
            let media: Vec<Value> = message.media.iter().map(head_of_media).collect();
            json!({ "role": message.role, "text": message.text, "media": media })
        });
        let head = json!({
            "build": BUILD_ID,
            "model": model.identity(),
            "messages": messages.collect::<Vec<_>>(),
            "text": conversation.text,
            "tokens": conversation.tokens,
            "without_roles": conversation.without_roles,
            "held": self.held.iter().map(head_of_piece).collect::<Vec<_>>(),
        });
        let head = head.to_string().into_bytes();
        let media = conversation.messages.iter().flat_map(|m| &m.media);
        let media: Vec<u8> = media.flat_map(Bitmap::bytes).copied().collect();
        let cache = self.cache();
        let mut all = MAGIC.to_vec();
        for part in [&head, &media, &cache] {
            all.extend((part.len() as u64).to_le_bytes());
        }
        for part in [head, media, cache] {
            all.extend(part);
        }
        all
    }

    /// Takes over what [`Work::saved`] gave.
    ///
    /// # Errors
    /// It is damaged, or of another model or build, or too large. The session is as it was, but where the KV cache is refused, which
    /// leaves it empty.
    pub fn restore(&mut self, activity: &Activity, bytes: &[u8]) -> Result<(), Failure> {
        let mut rest = bytes;
        let not_one = || damaged("it is none, or of another version of pipeshard");
        let magic = take(&mut rest, MAGIC.len() as u64).ok_or_else(not_one)?;
        if magic != MAGIC {
            return Err(not_one());
        }
        let cut = || damaged("its end is missing");
        let lengths = take(&mut rest, LENGTHS as u64).ok_or_else(cut)?;
        let length = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&lengths[i * 8..][..8]);
            u64::from_le_bytes(eight)
        };
        let head = take(&mut rest, length(0)).ok_or_else(cut)?;
        let mut media = take(&mut rest, length(1)).ok_or_else(cut)?;
        let cache = take(&mut rest, length(2)).ok_or_else(cut)?;
        let head: Value =
            serde_json::from_slice(head).map_err(|_| damaged("its head is damaged"))?;
        if head["build"] != BUILD_ID || head["model"] != activity.model.identity() {
            return Err(damaged(
                "it is of another model, or of another build of pipeshard",
            ));
        }
        let held = head["held"].as_array().map_or(&[][..], Vec::as_slice);
        let held: Option<Vec<Piece>> = held.iter().map(piece_of).collect();
        let held = held.ok_or_else(|| damaged("its tokens are damaged"))?;
        let room = self.room;
        if super::evaluate::taken(&held) >= room {
            return Err(Failure::new(
                Code::ContextFull,
                format!("the saved conversation has more tokens than the {room} that the session has room for"),
            ));
        }
        let tokens = head["tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let token = |token: &Value| token.as_i64().and_then(|token| i32::try_from(token).ok());
        let tokens: Option<Vec<i32>> = tokens.iter().map(token).collect();
        let conversation = Conversation {
            tokens: tokens.ok_or_else(|| damaged("its tokens are damaged"))?,
            messages: messages_of(&head["messages"], &mut media)?,
            coming: Vec::new(),
            text: head["text"].as_str().unwrap_or_default().to_owned(),
            without_roles: head["without_roles"].as_bool().unwrap_or(false),
        };
        self.wake(activity)?;
        self.forget();
        if !held.is_empty() {
            let taken = self.context()?.set_sequence_state(0, cache);
            taken.map_err(|_| {
                damaged("llama.cpp refuses its KV cache: the session's cache may have other types")
            })?;
        }
        self.held = held;
        self.conversation = conversation;
        Ok(())
    }
}
