//! Files that the host reads for us: brought into memory once, as files without a name (memfd), which llama.cpp opens and maps as it
//! does any other. A shared mapping of one can be page-locked in place, and nothing is copied a second time.

use crate::failure::{Code, Failure};
use crate::types::{ModelConfig, ReadFn, SizeFn};
use std::ffi::{c_void, CString};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that are asked for at once: between two reads loading can be ended.
const PIECE: usize = 8 << 20;

/// The most pieces that a model may be split into.
const MOST_PIECES: u32 = 99_999;

/// What the host reads with.
#[derive(Clone, Copy)]
pub struct Reader {
    size: SizeFn,
    read: ReadFn,
    user: *mut c_void,
}

/// One file, in memory.
pub struct HostFile(File);

impl HostFile {
    /// Where it can be opened, while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The files of a model.
pub struct HostFiles {
    pub model: Vec<HostFile>,
    pub encoder: Option<HostFile>,
}

/// Is told how much of all there is was read; false ends it.
pub type Progress<'p> = &'p mut dyn FnMut(f64) -> bool;

/// How far it is.
struct Reading<'p> {
    done: u64,
    all: u64,
    progress: Progress<'p>,
}

impl Reader {
    /// What the host states, if it reads.
    ///
    /// # Errors
    /// One of the two functions is missing.
    pub fn of(config: &ModelConfig) -> Result<Option<Self>, Failure> {
        match (config.file_size, config.read_file) {
            (Some(size), Some(read)) => Ok(Some(Reader {
                size,
                read,
                user: config.files_user,
            })),
            (None, None) => Ok(None),
            _ => Err(Failure::invalid(
                "file_size and read_file belong together: state both or neither",
            )),
        }
    }

    /// Reads all of a model: the file of that name, with the further pieces of one that is split, and its encoder.
    ///
    /// # Errors
    /// The host cannot read one of them, `progress` ended it, or there is no memory.
    pub fn read(
        self,
        path: &str,
        encoder: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<HostFiles, Failure> {
        let names = pieces(path)?;
        let sized = |name: &str| Ok((name.to_owned(), self.size_of(name)?));
        let names = names.iter().map(|name| sized(name));
        let model: Vec<(String, u64)> = names.collect::<Result<_, Failure>>()?;
        let encoder = encoder.map(sized).transpose()?;
        let mut reading = Reading {
            done: 0,
            all: model.iter().chain(&encoder).map(|(_, size)| size).sum(),
            progress,
        };
        let mut read = |(name, size): &(String, u64)| self.file(name, *size, &mut reading);
        Ok(HostFiles {
            model: model.iter().map(&mut read).collect::<Result<_, _>>()?,
            encoder: encoder.as_ref().map(read).transpose()?,
        })
    }

    fn size_of(&self, name: &str) -> Result<u64, Failure> {
        let c = CString::new(name).unwrap_or_default();
        // SAFETY: the host's function, with a text that lives through the call.
        let size = unsafe { (self.size)(self.user, c.as_ptr()) };
        u64::try_from(size)
            .ok()
            .filter(|&size| size > 0)
            .ok_or_else(|| {
                Failure::new(
                    Code::File,
                    format!("file_size knows no file {name} ({size})"),
                )
            })
    }

    fn file(&self, name: &str, size: u64, reading: &mut Reading<'_>) -> Result<HostFile, Failure> {
        let file = memory_file(name)?;
        let c = CString::new(name).unwrap_or_default();
        let mut piece = vec![0u8; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
        let mut at = 0;
        while at < size {
            if !(reading.progress)(reading.done as f64 / reading.all as f64) {
                return Err(cancelled());
            }
            let wanted = piece.len().min(usize::try_from(size - at).unwrap_or(PIECE));
            let into = piece.as_mut_ptr().cast();
            // SAFETY: the host's function, which writes as many bytes as it is asked for at most.
            let got = unsafe { (self.read)(self.user, c.as_ptr(), at, into, wanted as u64) };
            let got = match u64::try_from(got) {
                Ok(got @ 1..) if got <= wanted as u64 => got,
                Ok(0) => {
                    return Err(Failure::new(
                        Code::File,
                        format!("read_file says that {name} ends at byte {at}, file_size that it has {size}"),
                    ))
                }
                Err(_) if got == Code::Cancelled as i64 => return Err(cancelled()),
                _ => {
                    return Err(Failure::new(
                        Code::File,
                        format!("read_file failed at byte {at} of {name}: it returned {got}"),
                    ))
                }
            };
            let bytes = &piece[..got as usize];
            file.write_all_at(bytes, at)
                .map_err(|why| no_memory(name, &why))?;
            at += got;
            reading.done += got;
        }
        seal(&file, name)?;
        Ok(HostFile(file))
    }
}

fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "loading was ended by a callback")
}

fn no_memory(name: &str, why: &std::io::Error) -> Failure {
    Failure::new(
        Code::NoMemory,
        format!("there is no host memory for {name}: {why}. Files that are read by callbacks are kept in memory as a whole"),
    )
}

/// A file without a name. What systems show of it is in the order in which files are made.
fn memory_file(name: &str) -> Result<File, Failure> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let last = Path::new(name).file_name().unwrap_or_default();
    let last: String = last.to_string_lossy().chars().take(50).collect();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let shown = CString::new(format!("pipeshard-{count:010}:{last}")).unwrap_or_default();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a text that lives through the call; the descriptor is new, and nobody else's.
    unsafe {
        let descriptor = libc::memfd_create(shown.as_ptr(), flags);
        match descriptor {
            0.. => Ok(File::from_raw_fd(descriptor)),
            _ => Err(no_memory(name, &std::io::Error::last_os_error())),
        }
    }
}

/// Nobody can change it any more.
fn seal(file: &File, name: &str) -> Result<(), Failure> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: a descriptor that is open, and numbers.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(no_memory(name, &std::io::Error::last_os_error())),
    }
}

/// The names of all pieces of a model that is split, as llama.cpp has them, in order: "NAME-00001-of-00003.gguf". The name itself for
/// another.
fn pieces(path: &str) -> Result<Vec<String>, Failure> {
    let Some((before, count)) = split_name(path) else {
        return Ok(vec![path.to_owned()]);
    };
    let (before, number) = before;
    if number != 1 || count > MOST_PIECES {
        return Err(Failure::invalid(format!(
            "{path} is piece {number} of {count} of a model: name the first one"
        )));
    }
    let name = |piece| format!("{before}-{piece:05}-of-{count:05}.gguf");
    Ok((1..=count).map(name).collect())
}

fn split_name(path: &str) -> Option<((&str, u32), u32)> {
    let five = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (before, number) = rest.rsplit_once('-')?;
    let count: u32 = five(count)?;
    (count > 0).then_some(((before, five(number)?), count))
}
