//! Images and sound, by mtmd.

use crate::boundary::c_text;
use crate::failure::{Code, Failure};
use crate::process::{with_errors, Errors};
use crate::types::Media;
use pipeshard_llama::{Context, Model};
use pipeshard_sys as ffi;
use runtime::lanes::purpose::{during, Purpose};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::NonNull;

/// Where media go in a text, as mtmd and llama-server write it.
pub const MARKER: &str = "<__media__>";

/// An image, or sound, as mtmd takes it.
pub struct Bitmap(NonNull<ffi::mtmd_bitmap>);

// SAFETY: nothing but bytes, read by one session.
unsafe impl Send for Bitmap {}

impl Drop for Bitmap {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::mtmd_bitmap_free(self.0.as_ptr()) }
    }
}

/// What of a bitmap is saved with a conversation.
#[derive(Clone, Copy)]
pub struct Shape {
    pub width: u32,
    pub height: u32,
    pub is_sound: bool,
}

impl Bitmap {
    /// Pixels, three bytes each, or samples.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(shape: Shape, bytes: &[u8]) -> Result<Self, Failure> {
        // SAFETY: the bytes are as many as the shape says, which callers have seen to; they are copied.
        let made = unsafe {
            match shape.is_sound {
                false => ffi::mtmd_bitmap_init(shape.width, shape.height, bytes.as_ptr()),
                true => {
                    let samples: Vec<f32> = bytes
                        .chunks_exact(size_of::<f32>())
                        .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
                        .collect();
                    ffi::mtmd_bitmap_init_from_audio(samples.len(), samples.as_ptr())
                }
            }
        };
        let bitmap = Bitmap(NonNull::new(made).ok_or_else(no_memory)?);
        bitmap.name();
        Ok(bitmap)
    }

    /// What C hands over.
    ///
    /// # Safety
    /// Pointers of `media` are null or as long as it says.
    ///
    /// # Errors
    /// It is neither pixels nor a file that is understood.
    pub unsafe fn of(media: &Media, encoder: &Encoder) -> Result<Self, Failure> {
        if !media.rgb.is_null() {
            return Self::of_pixels(media);
        }
        if media.file.is_null() || media.file_size == 0 {
            return Err(Failure::invalid("media has neither rgb nor file"));
        }
        let (made, errors) = with_errors(|| {
            ffi::mtmd_helper_bitmap_init_from_buf(
                encoder.0.as_ptr(),
                media.file.cast(),
                media.file_size,
                false,
                ffi::mtmd_helper_init_opt_default(),
            )
        });
        let made = NonNull::new(made.bitmap).ok_or_else(|| {
            let detail = match errors.text.is_empty() {
                true => String::new(),
                false => format!(": {}", errors.text),
            };
            Failure::new(
                Code::File,
                format!(
                    "the {} bytes of the file are no image or sound that can be read{detail}",
                    media.file_size
                ),
            )
        })?;
        let bitmap = Bitmap(made);
        bitmap.name();
        Ok(bitmap)
    }

    unsafe fn of_pixels(media: &Media) -> Result<Self, Failure> {
        const MOST: u64 = 1 << 30;
        let row = media.width as usize * 3;
        let stride = match media.stride {
            0 => row,
            stride => stride as usize,
        };
        let pixels = u64::from(media.width) * u64::from(media.height);
        if pixels == 0 || pixels > MOST || stride < row {
            return Err(Failure::invalid(format!(
                "an image of {} x {} pixels with {stride} bytes per row makes no sense",
                media.width, media.height
            )));
        }
        let rows = (0..media.height as usize).map(|y| {
            let row_begins = media.rgb.cast::<u8>().add(y * stride);
            std::slice::from_raw_parts(row_begins, row)
        });
        let bytes: Vec<u8> = rows.flatten().copied().collect();
        let shape = Shape {
            width: media.width,
            height: media.height,
            is_sound: false,
        };
        Self::new(shape, &bytes)
    }

    /// Names it by what it shows, so that the same image in the same place is not encoded again.
    fn name(&self) {
        // 64 bits of FNV-1a
        let hash = self
            .bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let shape = self.shape();
        let id = c_text(&format!("{hash:016x}-{}x{}", shape.width, shape.height));
        // SAFETY: alive; the text is copied.
        unsafe { ffi::mtmd_bitmap_set_id(self.0.as_ptr(), id.as_ptr()) }
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        let raw = self.0.as_ptr();
        // SAFETY: alive.
        unsafe {
            Shape {
                width: ffi::mtmd_bitmap_get_nx(raw),
                height: ffi::mtmd_bitmap_get_ny(raw),
                is_sound: ffi::mtmd_bitmap_is_audio(raw),
            }
        }
    }

    /// Pixels or samples.
    pub fn bytes(&self) -> &[u8] {
        let raw = self.0.as_ptr();
        // SAFETY: alive, and as long as said.
        unsafe {
            let data = ffi::mtmd_bitmap_get_data(raw);
            match data.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(data, ffi::mtmd_bitmap_get_n_bytes(raw)),
            }
        }
    }
}

fn no_memory() -> Failure {
    Failure::new(Code::NoMemory, "the host has no memory left")
}

/// The encoder of images and sound.
pub struct Encoder(NonNull<ffi::mtmd_context>);

// SAFETY: behind a lock of the model, and tied to no thread.
unsafe impl Send for Encoder {}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, before the model.
        unsafe { ffi::mtmd_free(self.0.as_ptr()) }
    }
}

/// A part of a prompt: tokens, or what stands for an image.
pub enum Part {
    Tokens(Vec<i32>),
    Media(Chunk),
}

/// An image in a prompt.
pub struct Chunk {
    raw: NonNull<ffi::mtmd_input_chunk>,
    /// What it shows.
    pub id: String,
    /// How many positions, and how many tokens of the KV cache it takes.
    pub positions: i32,
    pub tokens: u32,
}

// SAFETY: nothing but bytes, used by one session.
unsafe impl Send for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::mtmd_input_chunk_free(self.raw.as_ptr()) }
    }
}

impl Encoder {
    /// Says that the encoder of this file will be loaded once the next context is there, so that its plan leaves room.
    pub fn announce(path: &Path, image_max_tokens: i32) {
        let path = c_text(&path.to_string_lossy());
        // SAFETY: the table that is attached is valid; the text lives through the call.
        unsafe {
            if let Some(hook) = ffi::ggml_sched_hook_get().as_ref() {
                if let Some(expected) = hook.encoder_expected {
                    let first = std::ptr::null_mut();
                    expected(hook.user, path.as_ptr(), first, image_max_tokens);
                }
            }
        }
    }

    /// Loads one.
    ///
    /// # Errors
    /// What llama.cpp says.
    pub fn open(
        path: &Path,
        model: &Model,
        threads: i32,
        image_max_tokens: i32,
    ) -> Result<Self, Errors> {
        let path = c_text(&path.to_string_lossy());
        // SAFETY: no preconditions; the texts live through the call, the model as long as the encoder.
        let (made, errors) = with_errors(|| unsafe {
            let mut params = ffi::mtmd_context_params_default();
            params.use_gpu = true;
            params.print_timings = false;
            params.n_threads = threads;
            params.warmup = true;
            if image_max_tokens > 0 {
                params.image_max_tokens = image_max_tokens;
            }
            during(Purpose::Vision, || {
                ffi::mtmd_init_from_file(path.as_ptr(), model.raw(), params)
            })
        });
        NonNull::new(made).map(Encoder).ok_or(errors)
    }

    /// The parts of a text with markers, for each of which there is an image.
    ///
    /// # Errors
    /// The numbers of markers and images differ, or an image cannot be used.
    pub fn parts(&self, text: &str, media: &[&Bitmap]) -> Result<Vec<Part>, Failure> {
        let c = CString::new(text).map_err(|_| Failure::invalid("a text holds a zero byte"))?;
        let raw: Vec<*const ffi::mtmd_bitmap> =
            media.iter().map(|b| b.0.as_ptr().cast_const()).collect();
        // SAFETY: all live through the call; chunks are copied out of what it fills.
        unsafe {
            let chunks = NonNull::new(ffi::mtmd_input_chunks_init()).ok_or_else(no_memory)?;
            let input = ffi::mtmd_input_text {
                text: c.as_ptr(),
                text_len: text.len(),
                add_special: true,
                parse_special: true,
            };
            let (code, errors) = with_errors(|| {
                ffi::mtmd_tokenize(
                    self.0.as_ptr(),
                    chunks.as_ptr(),
                    &input,
                    raw.as_ptr().cast_mut(),
                    raw.len(),
                )
            });
            let parts = match code {
                0 => {
                    let count = ffi::mtmd_input_chunks_size(chunks.as_ptr());
                    let part = |i| part_of(ffi::mtmd_input_chunks_get(chunks.as_ptr(), i));
                    (0..count).map(part).collect()
                }
                1 => Err(Failure::invalid(format!(
                    "{} images or sounds were added, and the text has another number of {MARKER}",
                    media.len()
                ))),
                _ => Err(Failure::new(
                    Code::File,
                    format!(
                        "an image or sound cannot be used by this model: {}",
                        errors.text
                    ),
                )),
            };
            ffi::mtmd_input_chunks_free(chunks.as_ptr());
            parts
        }
    }

    /// Encodes an image, and evaluates it behind position `past`. Returns llama.cpp's code, and the next position.
    pub fn evaluate(
        &self,
        context: &Context<'_>,
        chunk: &Chunk,
        past: i32,
        batch: i32,
        logits: bool,
    ) -> (i32, i32) {
        let mut next = past;
        // SAFETY: all are alive.
        let code = unsafe {
            ffi::mtmd_helper_eval_chunk_single(
                self.0.as_ptr(),
                context.raw(),
                chunk.raw.as_ptr(),
                past,
                0,
                batch,
                logits,
                &mut next,
            )
        };
        (code, next)
    }
}

/// # Safety
/// `chunk` is alive.
unsafe fn part_of(chunk: *const ffi::mtmd_input_chunk) -> Result<Part, Failure> {
    if ffi::mtmd_input_chunk_get_type(chunk) == ffi::MTMD_INPUT_CHUNK_TYPE_TEXT {
        let mut count = 0;
        let tokens = ffi::mtmd_input_chunk_get_tokens_text(chunk, &mut count);
        let tokens = match tokens.is_null() {
            true => Vec::new(),
            false => std::slice::from_raw_parts(tokens, count).to_vec(),
        };
        return Ok(Part::Tokens(tokens));
    }
    let id = ffi::mtmd_input_chunk_get_id(chunk);
    let id = match id.is_null() {
        true => String::new(),
        false => CStr::from_ptr(id).to_string_lossy().into_owned(),
    };
    let copy = NonNull::new(ffi::mtmd_input_chunk_copy(chunk)).ok_or_else(no_memory)?;
    Ok(Part::Media(Chunk {
        raw: copy,
        id,
        positions: ffi::mtmd_input_chunk_get_n_pos(chunk),
        tokens: u32::try_from(ffi::mtmd_input_chunk_get_n_tokens(chunk)).unwrap_or(u32::MAX),
    }))
}
