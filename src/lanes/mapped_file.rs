//! The files that weights are mapped from, watched for becoming shorter.
//!
//! Whoever reads a mapped page that the file does not have any more is ended by the system (SIGBUS). llama.cpp on a GPU reads
//! the mapping while it loads and then hardly ever; pipeshard reads it as long as it runs. So it looks, with one `fstat` per
//! file, before it reads.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// A mapped piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// First and last address, the latter not included.
    addresses: std::ops::Range<usize>,
    /// Where in the file the first address is.
    offset: u64,
    path: String,
}

/// A file of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The model's key.
    pub model: usize,
    /// Which of its files.
    pub index: usize,
}

#[derive(Debug)]
struct Watched {
    path: String,
    file: File,
    /// Length in bytes and time of the last change, when the weights were loaded.
    bytes: u64,
    changed: (i64, i64),
    /// Its pages are memory of their own, not copies of what a disk has.
    in_memory: bool,
    pieces: Vec<Piece>,
}

/// A file has become shorter than it was when its weights were loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} has {bytes} bytes left of the {before} that it had when the model was loaded: the weights after them are lost. Put the file back and load the model again")]
pub struct Shrunk {
    /// The file.
    pub path: String,
    /// Its length now.
    pub bytes: u64,
    /// Its length when the weights were loaded.
    pub before: u64,
    lost: Vec<(usize, usize)>,
}

impl Shrunk {
    /// Reports whether some of `[base, base + bytes)` is lost.
    pub fn affects(&self, base: *const u8, bytes: usize) -> bool {
        let (first, end) = (base as usize, base as usize + bytes);
        self.lost.iter().any(|&(from, to)| first < to && from < end)
    }
}

/// The files of one model.
#[derive(Debug, Default)]
pub struct MappedFiles {
    watched: Vec<Watched>,
    /// Times that the length of a file was asked for.
    looks: Cell<u64>,
}

impl MappedFiles {
    /// Returns the files that these address ranges (first byte, length) are mapped from; ranges that are not mapped are left
    /// out.
    pub fn of(ranges: &[(usize, usize)]) -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mut files = MappedFiles::default();
        for piece in maps.lines().filter_map(piece) {
            let wanted = |&(base, bytes): &(usize, usize)| {
                base < piece.addresses.end && piece.addresses.start < base + bytes
            };
            if ranges.iter().any(wanted) {
                files.add(piece);
            }
        }
        files
    }

    /// Where the first of them can be opened.
    pub fn first(&self) -> Option<String> {
        let first = self.watched.iter().min_by_key(|watched| &watched.path)?;
        Some(match first.path.starts_with(NAMELESS) {
            true => format!("/proc/self/fd/{}", first.file.as_raw_fd()),
            false => first.path.clone(),
        })
    }

    fn add(&mut self, piece: Piece) {
        if let Some(known) = self.watched.iter_mut().find(|w| w.path == piece.path) {
            known.pieces.push(piece);
            return;
        }
        // one that is deleted already cannot be opened, nor can anyone else shorten it
        let Some(file) = open(&piece.path) else {
            return;
        };
        let Ok(metadata) = file.metadata() else {
            return;
        };
        self.watched.push(Watched {
            path: piece.path.clone(),
            bytes: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
            in_memory: in_memory(&file),
            file,
            pieces: vec![piece],
        });
    }

    /// The first file that is shorter than it was. One system call per file.
    pub fn shrunk(&self) -> Option<Shrunk> {
        (0..self.watched.len()).find_map(|index| self.shrunk_file(index))
    }

    /// One of the files, if it is shorter than it was. One system call.
    pub fn shrunk_file(&self, index: usize) -> Option<Shrunk> {
        let watched = self.watched.get(index)?;
        self.looks.set(self.looks.get() + 1);
        let bytes = watched.file.metadata().ok()?.len();
        (bytes < watched.bytes).then(|| watched.shrunk(bytes))
    }

    /// Times that the length of a file was asked for.
    pub fn looks(&self) -> u64 {
        self.looks.get()
    }

    /// Which files hold some of `[base, base + bytes)`.
    pub fn holding(&self, base: *const u8, bytes: usize) -> impl Iterator<Item = usize> + '_ {
        let (first, end) = (base as usize, base as usize + bytes);
        let holds = move |piece: &Piece| piece.addresses.start < end && first < piece.addresses.end;
        let files = self.watched.iter().enumerate();
        files.filter_map(move |(index, watched)| watched.pieces.iter().any(holds).then_some(index))
    }

    /// Reports whether pages of `[base, base + bytes)` can be reclaimed while they are not locked: copies of what a disk has.
    pub fn reclaimable(&self, base: *const u8, bytes: usize) -> bool {
        let mut files = self.holding(base, bytes);
        files.any(|index| !self.watched[index].in_memory)
    }

    /// A file that was written to since the weights were loaded; each is named once.
    pub fn written(&mut self) -> Option<String> {
        self.watched.iter_mut().find_map(|watched| {
            let metadata = watched.file.metadata().ok()?;
            let changed = (metadata.mtime(), metadata.mtime_nsec());
            let before = std::mem::replace(&mut watched.changed, changed);
            (before != changed).then(|| watched.path.clone())
        })
    }
}

impl Watched {
    fn shrunk(&self, bytes: u64) -> Shrunk {
        let lost = self.pieces.iter().filter_map(|piece| {
            let left = bytes.saturating_sub(piece.offset);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let from = piece.addresses.start.saturating_add(left);
            (from < piece.addresses.end).then_some((from, piece.addresses.end))
        });
        Shrunk {
            path: self.path.clone(),
            bytes,
            before: self.bytes,
            lost: lost.collect(),
        }
    }
}

/// What names of files in memory begin with, which no folder has.
const NAMELESS: &str = "/memfd:";

/// A file that is mapped, by the name that the system has of it.
fn open(path: &str) -> Option<File> {
    if !path.starts_with(NAMELESS) {
        return File::open(path).ok();
    }
    // whoever keeps it has a descriptor
    let mut descriptors = std::fs::read_dir("/proc/self/fd").ok()?;
    descriptors.find_map(|entry| {
        let entry = entry.ok()?.path();
        let is_it = std::fs::read_link(&entry).ok()?.as_os_str() == path;
        is_it.then(|| File::open(&entry).ok())?
    })
}

/// Reports whether a file system keeps its files in memory.
fn in_memory(file: &File) -> bool {
    const KINDS: [u32; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6]; // tmpfs, ramfs, hugetlbfs
                                                                     // SAFETY: an all-zero statfs is valid, and the file is open.
    let kind = unsafe {
        let mut system: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(file.as_raw_fd(), &mut system) == 0).then_some(system.f_type)
    };
    kind.is_some_and(|kind| KINDS.contains(&(kind as u32)))
}

/// One line of `/proc/self/maps`, if it is about a file: `start-end permissions offset device inode path`.
fn piece(line: &str) -> Option<Piece> {
    let mut rest = line;
    let mut field = || {
        let text = rest.trim_start();
        let (field, after) = text.split_once(' ')?;
        rest = after;
        Some(field)
    };
    let (addresses, _, offset, _, inode) = (field()?, field()?, field()?, field()?, field()?);
    let path = rest.trim_start();
    if inode == "0" || !path.starts_with('/') {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = addresses.split_once('-')?;
    Some(Piece {
        addresses: usize::try_from(number(start)?).ok()?..usize::try_from(number(end)?).ok()?,
        offset: number(offset)?,
        // a line break in a name is written as an escape
        path: path.replace("\\012", "\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsRawFd, FromRawFd};

    #[test]
    fn lines_about_files_are_understood() {
        let line = "7f0000001000-7f0000003000 r--s 00002000 fd:01 1234                       /models/a model.gguf";
        let expected = Piece {
            addresses: 0x7f00_0000_1000..0x7f00_0000_3000,
            offset: 0x2000,
            path: "/models/a model.gguf".to_string(),
        };
        assert_eq!(piece(line), Some(expected));
        for line in [
            "",
            "7f0000001000-7f0000003000 rw-p 00000000 00:00 0",
            "7f0000001000-7f0000003000 rw-p 00000000 00:00 0                  [heap]",
            "nonsense r--s 00002000 fd:01 1234 /a",
        ] {
            assert_eq!(piece(line), None, "{line}");
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_is_noticed_and_what_is_lost() {
        let page = 4096 * 16; // a multiple of every page size there is
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&vec![1; 4 * page]).expect("room");
        file.flush().expect("room");
        // SAFETY: a fresh mapping at an address of the kernel's choice, which is not read.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4 * page,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let mut files = MappedFiles::of(&[(base as usize + 1, 4 * page - 1)]);
        assert_eq!(files.watched.len(), 1);
        assert_eq!((files.shrunk(), files.written()), (None, None));
        file.as_file().set_len(3 * page as u64 + 10).expect("ours");
        let shrunk = files.shrunk().expect("it is shorter");
        let at = |offset: usize| (base as *const u8).wrapping_add(offset);
        assert!(!shrunk.affects(at(0), 3 * page + 10));
        assert!(shrunk.affects(at(3 * page), 11));
        assert!(shrunk.affects(at(4 * page - 1), 1));
        assert!(shrunk.to_string().contains("196618 bytes left"), "{shrunk}");
        // SAFETY: mapped above, and not yet visible to other code.
        unsafe { libc::munmap(base, 4 * page) };
    }

    #[test]
    fn a_file_in_memory_is_found_by_its_descriptor() {
        let page = 4096 * 16;
        let made = |name: &std::ffi::CStr, byte| {
            // SAFETY: a name that lives through the call; the descriptor is new. A fresh mapping at an address of the kernel's choice.
            let (file, base) = unsafe {
                let mut file = File::from_raw_fd(libc::memfd_create(name.as_ptr(), 0));
                file.write_all(&vec![byte; page]).expect("room");
                let base = libc::mmap(
                    std::ptr::null_mut(),
                    page,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                );
                (file, base)
            };
            assert_ne!(base, libc::MAP_FAILED);
            (file, base)
        };
        // which of them is the first is said by their names, not by their descriptors
        let (second, at_second) = made(c"of-a-test-2", 2);
        let (first, at_first) = made(c"of-a-test-1", 1);
        let ranges = [(at_second as usize, page), (at_first as usize, page)];
        let files = MappedFiles::of(&ranges);
        assert_eq!(files.watched.len(), 2);
        drop((first, second));
        let opened = files.first().expect("the first");
        assert_eq!(std::fs::read(opened).expect("bytes"), vec![1; page]);
        assert!(!files.reclaimable(at_first.cast(), page));
        assert_eq!(files.shrunk(), None);
        // SAFETY: mapped above, and not visible to other code.
        unsafe {
            libc::munmap(at_first, page);
            libc::munmap(at_second, page);
        }
    }

    #[test]
    fn memory_that_is_no_file_is_not_watched() {
        let memory = vec![0u8; 1 << 20];
        let files = MappedFiles::of(&[(memory.as_ptr() as usize, memory.len())]);
        assert!(files.watched.is_empty() && files.shrunk().is_none());
    }
}
