//! A file mapped as it is, to be read: weights that can be streamed without a copy first.

use pipeshard_sys as ffi;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// A file's bytes, shared with all who map it and read-only.
#[derive(Debug)]
pub struct FileMapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: owned memory that is only read.
unsafe impl Send for FileMapping {}

impl FileMapping {
    /// Maps a whole file.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        if bytes == 0 {
            return Err(std::io::Error::other("it is empty"));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice; it outlives the descriptor.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| std::io::Error::other("at address 0"))?;
        Ok(FileMapping { base, bytes })
    }

    /// Where so many bytes from `offset` on lie; none where the file ends before.
    pub fn at(&self, offset: u64, bytes: u64) -> Option<*mut u8> {
        let end = offset.checked_add(bytes)?;
        let from = usize::try_from(offset).ok()?;
        (end <= self.bytes as u64).then(|| self.base.as_ptr().wrapping_add(from))
    }

    /// A ggml buffer over all of it, in ordinary host memory, which its owner frees. None where ggml refuses.
    ///
    /// # Safety
    /// The buffer is gone before this is, and nothing is written to it.
    pub unsafe fn buffer(&self) -> Option<ffi::ggml_backend_buffer_t> {
        let base = self.base.as_ptr().cast::<c_void>();
        let buffer = ffi::ggml_backend_cpu_buffer_from_ptr(base, self.bytes);
        (!buffer.is_null()).then_some(buffer)
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` and unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_lies_behind_the_end() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"weights").expect("room");
        let mapping = FileMapping::open(file.path()).expect("it is there");
        let tail = mapping.at(4, 3).expect("within the file");
        // SAFETY: three bytes of the mapping.
        assert_eq!(unsafe { std::slice::from_raw_parts(tail, 3) }, b"hts");
        assert!(mapping.at(5, 3).is_none() && mapping.at(u64::MAX, 3).is_none());
        assert!(FileMapping::open(Path::new("/nowhere")).is_err());
        // SAFETY: freed before the mapping goes.
        unsafe {
            let buffer = mapping.buffer().expect("room");
            assert!(ffi::ggml_backend_buffer_is_host(buffer));
            ffi::ggml_backend_buffer_free(buffer);
        }
    }
}
