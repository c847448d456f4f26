//! A safe view of a GGUF file's header, read by ggml's own reader. Weights are not read.

use std::ffi::{c_void, CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};

use super::InventoryError;
use pipeshard_model::inventory::{KeyValues, LoadedTensor};
use pipeshard_sys as ffi;

/// Bytes beyond the end of the file that the parser may ask for. It notices a length that does not fit the file by
/// itself; with this much slack it asks us first, and we can tell "cut short" from "damaged". It makes room for a list
/// before it reads it, 32 bytes for a text that takes 8 in the file, so a damaged count costs four times as much memory.
const SLACK: u64 = 16 << 20;

/// Bytes fetched at a time: a vocabulary is hundreds of thousands of tiny reads.
const WINDOW: usize = 256 << 10;

/// A GGUF file whose header has been read and whose tensors are known to lie within it.
pub struct GgufFile {
    path: PathBuf,
    file_bytes: u64,
    raw: NonNull<ffi::gguf_context>,
}

impl Drop for GgufFile {
    fn drop(&mut self) {
        // SAFETY: `raw` came from gguf_init_from_callback, is freed only here, and nothing borrowed from it outlives us.
        unsafe { ffi::gguf_free(self.raw.as_ptr()) }
    }
}

/// Opens a GGUF file and, when it is the first piece of a split model, all other pieces, in order.
pub fn open_all(path: &Path) -> Result<Vec<GgufFile>, InventoryError> {
    let first = GgufFile::open(path)?;
    let count = first.number("split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(vec![first]);
    }
    let broken = |reason: String| InventoryError::Split {
        path: path.to_owned(),
        count,
        reason,
    };
    if first.number("split.no") != Some(0) {
        return Err(broken(format!("{} is not the first", path.display())));
    }
    let ending = format!("-00001-of-{count:05}.gguf");
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let Some(stem) = name.strip_suffix(&ending) else {
        return Err(broken(format!("its name does not end in {ending}")));
    };
    let mut pieces = vec![first];
    for number in 1..count {
        let sibling = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1));
        let piece = match GgufFile::open(&sibling) {
            Err(InventoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(broken(format!("{} is missing", sibling.display())));
            }
            piece => piece?,
        };
        if piece.number("split.no") != Some(number) || piece.number("split.count") != Some(count) {
            return Err(broken(format!("{} belongs elsewhere", sibling.display())));
        }
        pieces.push(piece);
    }
    let expected = pieces[0].number("split.tensors.count");
    let found = pieces.iter().map(GgufFile::tensor_count).sum::<i64>();
    if expected.is_some_and(|expected| i64::try_from(expected) != Ok(found)) {
        return Err(broken(format!(
            "they hold {found} tensors together, not the {} that the first one announces",
            expected.unwrap_or(0)
        )));
    }
    Ok(pieces)
}

impl GgufFile {
    /// Reads the header of one file and checks that the tensors lie within it.
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        let io_error = |source| InventoryError::Io {
            path: path.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(io_error)?;
        // to open a pipe is to wait for who writes to it
        if !metadata.is_file() {
            return Err(InventoryError::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io_error)?;
        let file_bytes = metadata.len();
        let mut start = [0_u8; 16];
        let length = read_up_to(&file, &mut start, 0).map_err(io_error)?;
        check_start(path, &start[..length], file_bytes)?;

        let mut reader = Reader {
            file,
            window: Vec::new(),
            window_start: 0,
            past_end: false,
            failure: None,
        };
        let params = ffi::gguf_init_params {
            no_alloc: true,
            ctx: ptr::null_mut(),
        };
        // SAFETY: `read` matches the callback's type and `reader` outlives the call; the parser keeps neither. With
        // `ctx` null no tensors are allocated.
        let raw = unsafe {
            ffi::gguf_init_from_callback(
                Some(read),
                ptr::from_mut(&mut reader).cast(),
                0,
                file_bytes.saturating_add(SLACK),
                params,
            )
        };
        let Some(raw) = NonNull::new(raw) else {
            return Err(match reader.failure.take() {
                Some(source) => io_error(source),
                None if reader.past_end => InventoryError::Truncated {
                    path: path.to_owned(),
                    what: "its header".to_owned(),
                    expected: file_bytes.saturating_add(1),
                    actual: file_bytes,
                },
                None => InventoryError::Damaged {
                    path: path.to_owned(),
                    reason: "its header contradicts itself".to_owned(),
                },
            });
        };
        let file = GgufFile {
            path: path.to_owned(),
            file_bytes,
            raw,
        };
        file.check_extent()?;
        Ok(file)
    }

    /// Bytes of this file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What the model calls its architecture.
    pub fn architecture(&self) -> Option<String> {
        self.string("general.architecture")
    }

    fn tensor_count(&self) -> i64 {
        // SAFETY: `raw` is valid for the life of `self`.
        unsafe { ffi::gguf_get_n_tensors(self.raw.as_ptr()) }
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = LoadedTensor> + '_ {
        let raw = self.raw.as_ptr();
        (0..self.tensor_count()).map(move |id| {
            // SAFETY: `id` is below the count; the name and the four dimensions belong to the context, which `self`
            // keeps alive, and are copied here.
            unsafe {
                let ne = ffi::gguf_get_tensor_ne(raw, id);
                LoadedTensor {
                    name: CStr::from_ptr(ffi::gguf_get_tensor_name(raw, id))
                        .to_string_lossy()
                        .into_owned(),
                    ggml_type: ffi::gguf_get_tensor_type(raw, id),
                    ne: std::array::from_fn(|dimension| *ne.add(dimension)),
                    nbytes: ffi::gguf_get_tensor_size(raw, id) as u64,
                }
            }
        })
    }

    /// Where each tensor's data begin in the file, in bytes, in the order of [`Self::tensors`]. They lie within it.
    pub fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        let raw = self.raw.as_ptr();
        // SAFETY: `raw` is valid for the life of `self`, and `id` is below the count.
        let data = unsafe { ffi::gguf_get_data_offset(raw) } as u64;
        (0..self.tensor_count())
            .map(move |id| data + unsafe { ffi::gguf_get_tensor_offset(raw, id) } as u64)
    }

    /// Every tensor must end within the file.
    fn check_extent(&self) -> Result<(), InventoryError> {
        let raw = self.raw.as_ptr();
        // SAFETY: `raw` is valid for the life of `self`.
        let data = unsafe { ffi::gguf_get_data_offset(raw) } as u64;
        for (id, tensor) in (0..).zip(self.tensors()) {
            // SAFETY: `id` counts the tensors that the iterator yields.
            let offset = unsafe { ffi::gguf_get_tensor_offset(raw, id) } as u64;
            let end = data
                .checked_add(offset)
                .and_then(|start| start.checked_add(tensor.nbytes));
            if end.is_none_or(|end| end > self.file_bytes) {
                return Err(InventoryError::Truncated {
                    path: self.path.clone(),
                    what: format!("tensor '{}'", tensor.name),
                    expected: end.unwrap_or(u64::MAX),
                    actual: self.file_bytes,
                });
            }
        }
        Ok(())
    }

    /// The number of a key and its type.
    fn find(&self, key: &str) -> Option<(i64, ffi::gguf_type)> {
        let key = CString::new(key).ok()?;
        // SAFETY: `raw` is valid, `key` ends in a null byte, and the type is asked of an id that was found.
        unsafe {
            let id = ffi::gguf_find_key(self.raw.as_ptr(), key.as_ptr());
            (id >= 0).then(|| (id, ffi::gguf_get_kv_type(self.raw.as_ptr(), id)))
        }
    }
}

impl KeyValues for GgufFile {
    fn number(&self, key: &str) -> Option<u64> {
        let (id, kind) = self.find(key)?;
        let raw = self.raw.as_ptr();
        // SAFETY: the getter that is called is the one of the key's type; any other would abort.
        unsafe {
            match kind {
                ffi::GGUF_TYPE_UINT8 => Some(ffi::gguf_get_val_u8(raw, id).into()),
                ffi::GGUF_TYPE_UINT16 => Some(ffi::gguf_get_val_u16(raw, id).into()),
                ffi::GGUF_TYPE_UINT32 => Some(ffi::gguf_get_val_u32(raw, id).into()),
                ffi::GGUF_TYPE_UINT64 => Some(ffi::gguf_get_val_u64(raw, id)),
                ffi::GGUF_TYPE_INT8 => ffi::gguf_get_val_i8(raw, id).try_into().ok(),
                ffi::GGUF_TYPE_INT16 => ffi::gguf_get_val_i16(raw, id).try_into().ok(),
                ffi::GGUF_TYPE_INT32 => ffi::gguf_get_val_i32(raw, id).try_into().ok(),
                ffi::GGUF_TYPE_INT64 => ffi::gguf_get_val_i64(raw, id).try_into().ok(),
                ffi::GGUF_TYPE_BOOL => Some(ffi::gguf_get_val_bool(raw, id).into()),
                _ => None,
            }
        }
    }

    fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        let (id, kind) = self.find(key)?;
        if kind != ffi::GGUF_TYPE_ARRAY {
            return None;
        }
        let raw = self.raw.as_ptr();
        // SAFETY: the key is an array; its elements are `count` values of the type that it names, and are copied here.
        unsafe {
            let count = ffi::gguf_get_arr_n(raw, id);
            let kind = ffi::gguf_get_arr_type(raw, id);
            if count == 0 || kind == ffi::GGUF_TYPE_STRING {
                return None;
            }
            let data = ffi::gguf_get_arr_data(raw, id);
            match kind {
                ffi::GGUF_TYPE_UINT8 => Some(copy::<u8>(data, count)),
                ffi::GGUF_TYPE_INT8 | ffi::GGUF_TYPE_BOOL => Some(copy::<i8>(data, count)),
                ffi::GGUF_TYPE_UINT16 => Some(copy::<u16>(data, count)),
                ffi::GGUF_TYPE_INT16 => Some(copy::<i16>(data, count)),
                ffi::GGUF_TYPE_UINT32 => Some(copy::<u32>(data, count)),
                ffi::GGUF_TYPE_INT32 => Some(copy::<i32>(data, count)),
                ffi::GGUF_TYPE_UINT64 => Some(copy::<u64>(data, count)),
                ffi::GGUF_TYPE_INT64 => Some(copy::<i64>(data, count)),
                _ => None,
            }
        }
    }

    fn string(&self, key: &str) -> Option<String> {
        let (id, kind) = self.find(key)?;
        if kind != ffi::GGUF_TYPE_STRING {
            return None;
        }
        // SAFETY: the key is a string; the text belongs to the context and is copied here.
        let text = unsafe { CStr::from_ptr(ffi::gguf_get_val_str(self.raw.as_ptr(), id)) };
        Some(text.to_string_lossy().into_owned())
    }
}

/// Copies an array; negative values become 0.
///
/// # Safety
/// `data` must point at `count` values of type `T`.
unsafe fn copy<T: Copy + TryInto<u64>>(data: *const c_void, count: usize) -> Vec<u64> {
    let data = data.cast::<T>();
    (0..count)
        .map(|index| {
            // SAFETY: `index` is below `count`; the caller vouches for the rest. Reads need no alignment.
            let value = unsafe { data.add(index).read_unaligned() };
            value.try_into().unwrap_or(0)
        })
        .collect()
}

/// What the parser reads from.
struct Reader {
    file: File,
    window: Vec<u8>,
    window_start: u64,
    past_end: bool,
    failure: Option<io::Error>,
}

impl Reader {
    /// Copies from `offset` into `output`; returns how many bytes there were.
    fn read(&mut self, output: &mut [u8], offset: u64) -> usize {
        let result = if output.len() >= WINDOW {
            read_up_to(&self.file, output, offset)
        } else {
            self.read_windowed(output, offset)
        };
        match result {
            Ok(count) => {
                self.past_end |= count < output.len();
                count
            }
            Err(error) => {
                self.failure = Some(error);
                0
            }
        }
    }

    fn read_windowed(&mut self, output: &mut [u8], offset: u64) -> io::Result<usize> {
        for fresh in [false, true] {
            if fresh {
                self.window.resize(WINDOW, 0);
                let count = read_up_to(&self.file, &mut self.window, offset)?;
                self.window.truncate(count);
                self.window_start = offset;
            }
            let skip = offset
                .checked_sub(self.window_start)
                .and_then(|skip| usize::try_from(skip).ok());
            let available = skip.and_then(|skip| self.window.get(skip..)).unwrap_or(&[]);
            if fresh || available.len() >= output.len() {
                let count = available.len().min(output.len());
                output[..count].copy_from_slice(&available[..count]);
                return Ok(count);
            }
        }
        Ok(0)
    }
}

/// Reads until `output` is full or the file ends.
fn read_up_to(file: &File, output: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < output.len() {
        match file.read_at(&mut output[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The parser's callback.
///
/// # Safety
/// `userdata` must be a [`Reader`] that nothing else uses, `output` a buffer of `len` bytes.
unsafe extern "C" fn read(
    userdata: *mut c_void,
    output: *mut c_void,
    offset: u64,
    len: usize,
) -> usize {
    // SAFETY: the caller vouches for both; the buffer is zeroed first, so no uninitialised byte is exposed.
    let (reader, output) = unsafe {
        ptr::write_bytes(output.cast::<u8>(), 0, len);
        (
            &mut *userdata.cast::<Reader>(),
            std::slice::from_raw_parts_mut(output.cast::<u8>(), len),
        )
    };
    reader.read(output, offset)
}

/// Tells from the first bytes what the file is, for a message that helps more than "bad magic".
fn check_start(path: &Path, start: &[u8], file_bytes: u64) -> Result<(), InventoryError> {
    const MAGIC: &[u8] = b"GGUF";
    let path = path.to_owned();
    if start.is_empty() {
        return Err(InventoryError::Empty { path });
    }
    let foreign = |path, found: &str| {
        Err(InventoryError::Foreign {
            path,
            found: found.to_owned(),
        })
    };
    if !start.starts_with(MAGIC) && !MAGIC.starts_with(start) {
        let found = match start {
            [b'P', b'K', 3, 4, ..] => "it is a ZIP archive, perhaps a PyTorch checkpoint",
            [_, _, _, _, _, _, _, 0, b'{', ..] => "it looks like safetensors",
            start if start.starts_with(b"version https:") => {
                "it is a Git LFS pointer, not the file that it points to"
            }
            [b'<', ..] => "it looks like a web page",
            [b't', b'j', b'g', b'g', ..] | [b'l', b'm', b'g', b'g', ..] => {
                "it is of ggml's format from before GGUF"
            }
            _ => "it does not begin with 'GGUF'",
        };
        return foreign(path, found);
    }
    let Some(version) = start
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
    else {
        return Err(InventoryError::Truncated {
            path,
            what: "its header".to_owned(),
            expected: 24,
            actual: file_bytes,
        });
    };
    match version {
        2 | 3 => Ok(()),
        1 => foreign(
            path,
            "it is of GGUF's first version, which llama.cpp no longer reads",
        ),
        _ if version & 0xffff == 0 => foreign(path, "its bytes are in big-endian order"),
        _ => foreign(
            path,
            &format!("it is of GGUF version {version}, newer than this program reads"),
        ),
    }
}
