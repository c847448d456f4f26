//! Files that the host reads (FileIOCallbacks), as the library asks for them: one is open at a time, while a model is opened.

use crate::abi::{declare, Base, Struct, Uid};
use crate::chain::{field, View};
use crate::refusal::Refusal;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::mem::{offset_of, size_of};

type Handle = *mut c_void;
type Open = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> Handle;
type Close = unsafe extern "C" fn(*mut c_void, Handle);
type Size = unsafe extern "C" fn(*mut c_void, Handle) -> usize;
type Seek = unsafe extern "C" fn(*mut c_void, Handle, usize, c_int) -> c_int;
type Read = unsafe extern "C" fn(*mut c_void, Handle, *mut c_void, usize) -> usize;

declare!(
    /// Functions of a host's; writing and mapping are not needed.
    FileIoCallbacks = "babcd7bc-4951-4dcd-bf23-18d5ff6120dd", 1, 120 {
    user @ 32: *mut c_void,
    open @ 40: Option<Open>,
    close @ 48: Option<Close>,
    size @ 56: Option<Size>,
    tell @ 64: *const c_void,
    seek @ 72: Option<Seek>,
    read @ 80: Option<Read>,
    write @ 88: *const c_void,
    map @ 96: *const c_void,
    unmap @ 104: *const c_void,
    last_error @ 112: *const c_void,
});

/// From the beginning of a file.
const SEEK_SET: c_int = 0;

/// What the host reads with.
#[derive(Clone, Copy)]
pub struct HostFiles {
    user: *mut c_void,
    open: Open,
    close: Close,
    size: Size,
    seek: Seek,
    read: Read,
}

impl HostFiles {
    /// None where the host leaves reading to the system.
    ///
    /// # Safety
    /// A chain of a host's.
    ///
    /// # Errors
    /// A function is missing.
    pub unsafe fn of(chain: *const Base) -> Result<Option<Self>, Refusal> {
        type F = FileIoCallbacks;
        let given = View::<F>::find(chain);
        let open = field!(given, F.open, 1, None);
        let close = field!(given, F.close, 1, None);
        let size = field!(given, F.size, 1, None);
        let seek = field!(given, F.seek, 1, None);
        let read = field!(given, F.read, 1, None);
        match (open, close, size, seek, read) {
            (Some(open), Some(close), Some(size), Some(seek), Some(read)) => Ok(Some(HostFiles {
                user: field!(given, F.user, 1, std::ptr::null_mut()),
                open,
                close,
                size,
                seek,
                read,
            })),
            // hosts chain structs that they have not filled in
            (None, None, None, None, None) => Ok(None),
            _ => Err(Refusal::invalid(
                "FileIOCallbacks: open, close, size, seek and read have to be set, or none of them",
            )),
        }
    }
}

/// What the library's functions get as their first argument.
pub struct Reader {
    files: HostFiles,
    /// The file that was read last, and the place in it.
    now: Option<(CString, Handle, u64)>,
}

impl Reader {
    pub fn new(files: HostFiles) -> Self {
        Reader { files, now: None }
    }

    fn close(&mut self) {
        if let Some((_, handle, _)) = self.now.take() {
            // SAFETY: opened by the host, closed once.
            unsafe { (self.files.close)(self.files.user, handle) };
        }
    }

    fn open(&mut self, name: &CStr) -> Option<Handle> {
        match &self.now {
            Some((open, handle, _)) if open.as_c_str() == name => return Some(*handle),
            _ => self.close(),
        }
        // SAFETY: texts that end with a zero byte.
        let handle = unsafe { (self.files.open)(self.files.user, name.as_ptr(), c"rb".as_ptr()) };
        if handle.is_null() {
            return None;
        }
        self.now = Some((name.to_owned(), handle, 0));
        Some(handle)
    }

    fn size(&mut self, name: &CStr) -> Option<i64> {
        let handle = self.open(name)?;
        // SAFETY: the host's handle.
        let size = unsafe { (self.files.size)(self.files.user, handle) };
        i64::try_from(size).ok()
    }

    fn read(&mut self, name: &CStr, offset: u64, into: *mut c_void, size: usize) -> Option<usize> {
        let handle = self.open(name)?;
        let (_, _, at) = self.now.as_mut()?;
        // SAFETY: the host's handle; `into` has room for `size` bytes.
        unsafe {
            let seeks = *at != offset;
            let place = usize::try_from(offset).ok()?;
            if seeks && (self.files.seek)(self.files.user, handle, place, SEEK_SET) != 0 {
                return None;
            }
            let read = (self.files.read)(self.files.user, handle, into, size);
            *at = offset + read as u64;
            (read <= size && read > 0).then_some(read)
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.close();
    }
}

/// `pipeshard_size_fn`; `user` is a [`Reader`].
///
/// # Safety
/// As the header says.
pub unsafe extern "C" fn size(user: *mut c_void, path: *const c_char) -> i64 {
    let reader = &mut *user.cast::<Reader>();
    reader.size(CStr::from_ptr(path)).unwrap_or(-1)
}

/// `pipeshard_read_fn`; `user` is a [`Reader`].
///
/// # Safety
/// As the header says.
pub unsafe extern "C" fn read(
    user: *mut c_void,
    path: *const c_char,
    offset: u64,
    into: *mut c_void,
    bytes: u64,
) -> i64 {
    let reader = &mut *user.cast::<Reader>();
    let most = usize::try_from(bytes).unwrap_or(usize::MAX);
    let read = reader.read(CStr::from_ptr(path), offset, into, most);
    read.and_then(|read| i64::try_from(read).ok()).unwrap_or(-1)
}
