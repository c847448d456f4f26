//! The header's functions about sessions.

use super::conversation::Conversation;
use super::evaluate::Work;
use super::generate::Wish;
use super::Session;
use crate::boundary::{call, handle, optional, read, required, to_c, write};
use crate::failure::{CError, Code, Failure};
use crate::handles::Table;
use crate::media::{Bitmap, Encoder};
use crate::model::{CModel, MODELS};
use crate::types::{Event, GenerateConfig, Media, PieceFn, SessionConfig, State, WakeupFn};
use std::ffi::{c_char, c_int, c_void};
use std::time::Duration;

/// C's name for a handle.
pub enum CSession {}

/// All that are open.
static SESSIONS: Table<Session> = Table::new();

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_open(
    model: *mut CModel,
    config: *const SessionConfig,
    session: *mut *mut CSession,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let place = handle(session, "session")?;
        let model = MODELS.get(model, "model")?;
        let opened = Session::open(model, &read(config, "pipeshard_session_config")?)?;
        *place = SESSIONS.open(opened);
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_close(session: *mut CSession) {
    call(std::ptr::null_mut(), || {
        if let Some(session) = SESSIONS.close(session) {
            session.activity.close();
        }
        Ok(())
    });
}

/// Does something short with a session that is not busy.
unsafe fn with_session<T>(
    session: *const CSession,
    work: impl FnOnce(&Session, &mut Work) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let session = SESSIONS.get(session, "session")?;
    let busy = session.activity.begin()?;
    session.alone(&busy, |held| work(&session, held))
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_add(
    session: *mut CSession,
    role: *const c_char,
    message: *const c_char,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let (role, message) = (optional(role, "role")?, required(message, "text")?);
        with_session(session, |session, work| {
            work.conversation
                .add(&session.activity.model, role, message)
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_add_media(
    session: *mut CSession,
    media: *const Media,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if media.is_null() {
            return Err(Failure::invalid("media is NULL"));
        }
        let media = read(media, "pipeshard_media")?;
        with_session(session, |session, work| {
            // files are read by the encoder, which a sleeping session has not
            work.wake(&session.activity)?;
            let of_encoder = |encoder: &Encoder| Bitmap::of(&media, encoder);
            let bitmap = session.activity.model.with_encoder(of_encoder)?;
            work.conversation.coming.push(bitmap);
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_clear(
    session: *mut CSession,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        with_session(session, |_, work| {
            work.forget();
            work.conversation = Conversation::default();
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_truncate(
    session: *mut CSession,
    count: u32,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        with_session(session, |_, work| {
            // what the KV cache holds of them is taken out when the next answer begins
            work.conversation.messages.truncate(count as usize);
            work.conversation.coming.clear();
            Ok(())
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_save(
    session: *mut CSession,
    data: *mut *mut c_char,
    size: *mut usize,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let (Some(data), Some(size)) = (data.as_mut(), size.as_mut()) else {
            return Err(Failure::invalid("data or size is NULL"));
        };
        (*data, *size) = (std::ptr::null_mut(), 0);
        let bytes = with_session(session, |session, work| {
            Ok(work.saved(&session.activity.model))
        })?;
        let made = to_c(&bytes);
        if made.is_null() {
            return Err(Failure::new(
                Code::NoMemory,
                "the host has no memory left for the conversation",
            ));
        }
        (*data, *size) = (made, bytes.len());
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_restore(
    session: *mut CSession,
    data: *const c_void,
    size: usize,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if data.is_null() {
            return Err(Failure::invalid("data is NULL"));
        }
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size);
        with_session(session, |session, work| {
            work.restore(&session.activity, bytes)
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_session_get_state(
    session: *mut CSession,
    state: *mut State,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let found = session.activity.state();
        write(state, &found, "pipeshard_state")
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_generate(
    session: *mut CSession,
    config: *const GenerateConfig,
    piece: Option<PieceFn>,
    user: *mut c_void,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let wish = Wish::read(&read(config, "pipeshard_generate_config")?)?;
        let busy = session.activity.begin()?;
        session.generate(&busy, &wish, &mut |text| {
            let Some(piece) = piece else {
                return true;
            };
            let bytes = crate::boundary::c_text(text);
            piece(user, bytes.as_ptr(), bytes.as_bytes().len()) == 0
        })
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_submit(
    session: *mut CSession,
    config: *const GenerateConfig,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        session.submit(Wish::read(&read(config, "pipeshard_generate_config")?)?)
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_wait(
    session: *mut CSession,
    timeout_ms: u32,
    event: *mut Event,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let session = SESSIONS.get(session, "session")?;
        let told = session
            .events
            .fetch(Duration::from_millis(timeout_ms.into()));
        let told = match told {
            Ok(told) => told,
            Err(why) => {
                write(event, &Event::NONE, "pipeshard_event")?;
                return Err(why);
            }
        };
        let found = Event {
            size: 0,
            kind: told.kind,
            code: told.code,
            reserved: 0,
            text: told.text,
            length: told.length,
        };
        write(event, &found, "pipeshard_event")
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_set_wakeup(
    session: *mut CSession,
    wakeup: Option<WakeupFn>,
    user: *mut c_void,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        SESSIONS.get(session, "session")?.events.wake(wakeup, user);
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_cancel(session: *mut CSession) -> c_int {
    call(std::ptr::null_mut(), || {
        SESSIONS.get(session, "session")?.activity.cancel();
        Ok(())
    })
}
