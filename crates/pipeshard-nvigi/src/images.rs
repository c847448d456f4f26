//! Images in slots: rows of 8-bit red, green, blue and, if there are four channels, opacity, which is left out.

use crate::abi::{declare, Base, CpuData, Struct, Uid};
use crate::chain::{field, View};
use crate::refusal::{library, Refusal};
use crate::session::exports::{pipeshard_session_add_media, CSession};
use crate::types::Media;
use std::ffi::c_int;
use std::mem::{offset_of, size_of};

declare!(DataImage = "05f87a5d-6f13-4ddf-b011-3b14cd35ecc9", 1, 56 {
    bytes @ 32: *const Base,
    height @ 40: c_int,
    width @ 44: c_int,
    channels @ 48: c_int,
});

/// What NVIGI's hosts write where the image belongs, and what the library reads.
const MARKS: (&str, &str) = ("<image>", "<__media__>");

/// An image, as the library takes it.
pub struct Image {
    rgb: Vec<u8>,
    width: u32,
    height: u32,
}

impl Image {
    /// # Safety
    /// `data` is null or a struct of a host's.
    ///
    /// # Errors
    /// It is none, or its sizes do not agree.
    pub unsafe fn read(data: *const Base) -> Result<Self, Refusal> {
        let image = View::<DataImage>::of(data.cast())
            .ok_or_else(|| Refusal::invalid("slot 'image' has no InferenceDataImage"))?;
        let given = |value: c_int| usize::try_from(value).unwrap_or(0);
        let height = given(field!(Some(image), DataImage.height, 1, 0));
        let width = given(field!(Some(image), DataImage.width, 1, 0));
        let channels = given(field!(Some(image), DataImage.channels, 1, 0));
        let cpu = field!(Some(image), DataImage.bytes, 1, std::ptr::null());
        let cpu = View::<CpuData>::of(cpu.cast()).ok_or_else(|| {
            Refusal::not_implemented("slot 'image': only images in CpuData can be used")
        })?;
        let buffer = field!(Some(cpu), CpuData.buffer, 1, std::ptr::null());
        let bytes = field!(Some(cpu), CpuData.bytes, 1, 0);
        let pixels = height.checked_mul(width).filter(|&pixels| pixels > 0);
        let needed = pixels.and_then(|pixels| pixels.checked_mul(channels));
        let (Some(needed), 3 | 4) = (needed, channels) else {
            return Err(Refusal::invalid(format!(
                "slot 'image' is said to be {width} pixels wide and {height} high, with {channels} channels: state both, and 3 or 4 \
                 channels of 8 bits"
            )));
        };
        if buffer.is_null() || bytes < needed {
            return Err(Refusal::invalid(format!(
                "slot 'image' has {bytes} bytes, and {width} x {height} pixels of {channels} channels are {needed}"
            )));
        }
        let all = std::slice::from_raw_parts(buffer.cast::<u8>(), needed);
        Ok(Image {
            rgb: match channels {
                3 => all.to_vec(),
                _ => all
                    .chunks_exact(4)
                    .flat_map(|pixel| &pixel[..3])
                    .copied()
                    .collect(),
            },
            width: width as u32,
            height: height as u32,
        })
    }

    /// Adds it to the message that is added next.
    ///
    /// # Errors
    /// The model has no encoder of images, or the library refuses it.
    pub fn add(&self, session: *mut CSession) -> Result<(), Refusal> {
        let media = Media {
            size: size_of::<Media>() as u32,
            width: self.width,
            height: self.height,
            stride: 0,
            rgb: self.rgb.as_ptr().cast(),
            file: std::ptr::null(),
            file_size: 0,
        };
        // SAFETY: the rows live through the call.
        library(|error| unsafe { pipeshard_session_add_media(session, &media, error) })
    }
}

/// The text of a message with an image, whose place is where the host has said, or else behind the text.
pub fn with_mark(text: &str) -> String {
    let (theirs, ours) = MARKS;
    match text.contains(theirs) {
        true => text.replacen(theirs, ours, 1),
        false => format!("{text}{ours}"),
    }
}
