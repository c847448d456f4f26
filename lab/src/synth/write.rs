//! Writes the file: the header first, then the weights from all cores at once, each chunk at its place. A chunk's
//! values follow from the seed, the tensor's name and the chunk's number, so the number of threads changes nothing.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use rand::Rng;
use rand_pcg::Pcg64Mcg;

use super::blocks::Filler;
use super::layout::{tensors, Quiet, TensorPlan, Values};
use super::metadata::metadata;
use super::{encoders, SynthError, SynthSpec};
use pipeshard_gguf::container::{header, Entry, ALIGNMENT};

/// Bytes that one thread makes and writes at a time, about.
const CHUNK: u64 = 4 << 20;

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The model.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes per element type, largest first.
    pub types: Vec<(&'static str, u64)>,
    /// Tensors that got another type than the one asked for, because their rows do not fill its blocks.
    pub replaced: usize,
    /// Time that it took.
    pub seconds: f64,
}

/// A model laid out in a file, not written yet.
pub struct Layout {
    header: Vec<u8>,
    placed: Vec<(TensorPlan, u64)>,
    bytes: u64,
    seed: u64,
    replaced: usize,
}

impl Layout {
    /// Lays a model out.
    ///
    /// # Errors
    /// [`SynthError::Shape`] when no model can have this shape.
    pub fn new(spec: &SynthSpec) -> Result<Self, SynthError> {
        let tensors = encoders::tensors(spec).unwrap_or_else(|| tensors(spec))?;
        let mut offset = 0_u64;
        let mut placed = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let start = offset;
            offset = start
                .checked_add(tensor.bytes)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                .ok_or_else(|| SynthError::Shape {
                    reason: "it would be too large for any file".to_owned(),
                })?;
            placed.push((tensor, start));
        }
        let entries: Vec<_> = placed
            .iter()
            .map(|(tensor, offset)| Entry {
                name: &tensor.name,
                shape: &tensor.shape,
                ggml_type: tensor.dtype.id,
                offset: *offset,
            })
            .collect();
        let header = header(&metadata(spec), &entries);
        let asked_for = [
            spec.types.embedding,
            spec.types.attention,
            spec.types.feed_forward,
            spec.types.experts,
            spec.types.output,
            spec.types.finer.unwrap_or(spec.types.output),
        ];
        let replaced = placed
            .iter()
            .filter(|(tensor, _)| tensor.dtype.name != "f32" && !asked_for.contains(&tensor.dtype))
            .count();
        Ok(Layout {
            bytes: header.len() as u64 + offset,
            header,
            placed,
            seed: spec.seed,
            replaced,
        })
    }

    /// Bytes that the file will have.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn summary(&self, path: &Path, started: Instant) -> Summary {
        let mut types: Vec<(&'static str, u64)> = Vec::new();
        for (tensor, _) in &self.placed {
            match types
                .iter_mut()
                .find(|(name, _)| *name == tensor.dtype.name)
            {
                Some((_, bytes)) => *bytes += tensor.bytes,
                None => types.push((tensor.dtype.name, tensor.bytes)),
            }
        }
        types.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        Summary {
            path: path.to_owned(),
            bytes: self.bytes,
            tensors: self.placed.len(),
            parameters: self
                .placed
                .iter()
                .map(|(tensor, _)| tensor.shape.iter().product::<u64>())
                .sum(),
            types,
            replaced: self.replaced,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Threads to use; `None` for all cores.
    pub threads: Option<usize>,
    /// Replace a file that exists.
    pub replace: bool,
    /// Write the header and leave the weights out: a hole, which takes no room on the disk, stands in their place and reads as
    /// zeroes. Enough for planning.
    pub header_only: bool,
}

/// Writes a model of random weights. `progress` hears the number of bytes written so far, from any thread. The file
/// appears under its name only when it is whole.
///
/// # Errors
/// [`SynthError`] when the shape is impossible, the output exists and may not be replaced, the disk is full, or the
/// system refuses. Then no file is left.
pub fn write(
    spec: &SynthSpec,
    path: &Path,
    options: WriteOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, SynthError> {
    let started = Instant::now();
    let layout = Layout::new(spec)?;
    if !options.replace && path.symlink_metadata().is_ok() {
        return Err(SynthError::Exists {
            path: path.to_owned(),
        });
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SynthError::NoSpace {
            path: folder.to_owned(),
            needed: layout.bytes,
            free: free_bytes(folder).unwrap_or(0),
        },
        _ => SynthError::Io {
            path: path.to_owned(),
            source,
        },
    };
    let free = free_bytes(folder).filter(|_| !options.header_only);
    if let Some(free) = free.filter(|&free| free < layout.bytes) {
        return Err(SynthError::NoSpace {
            path: folder.to_owned(),
            needed: layout.bytes,
            free,
        });
    }
    let partial = Partial::create(path).map_err(io_error)?;
    partial
        .file
        .set_len(layout.bytes)
        .and_then(|()| partial.file.write_all_at(&layout.header, 0))
        .and_then(|()| match options.header_only {
            true => Ok(()),
            false => write_data(&layout, &partial.file, options.threads, progress),
        })
        .map_err(io_error)?;
    partial.finish(path).map_err(io_error)?;
    Ok(layout.summary(path, started))
}

/// A file under a temporary name, which goes away unless it is finished.
struct Partial {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Partial {
    fn create(path: &Path) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path does not name a file",
            ));
        };
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(format!(".{}-{number}.partial", std::process::id()));
        let path = path.with_file_name(partial_name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Partial {
            file,
            path,
            finished: false,
        })
    }

    fn finish(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

/// Bytes that an unprivileged user may still write to the file system of `folder`.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in a null byte and `stats` has room for what is written on success.
    if unsafe { libc::statvfs(folder.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: all fields are integers, for which zeroes are valid values too.
    let stats = unsafe { stats.assume_init() };
    Some(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// A piece of a tensor that one thread makes.
struct Chunk {
    tensor: usize,
    number: u64,
    /// Bytes from the start of the tensor.
    start: u64,
    bytes: usize,
}

fn chunks(placed: &[(TensorPlan, u64)]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (index, (tensor, _)) in placed.iter().enumerate() {
        let block = u64::from(tensor.dtype.block_bytes);
        let step = (CHUNK / block).max(1) * block;
        chunks.extend((0..tensor.bytes.div_ceil(step)).map(|number| Chunk {
            tensor: index,
            number,
            start: number * step,
            bytes: (tensor.bytes - number * step).min(step) as usize,
        }));
    }
    chunks
}

fn write_data(
    layout: &Layout,
    file: &File,
    threads: Option<usize>,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<()> {
    let chunks = chunks(&layout.placed);
    let data = layout.header.len() as u64;
    let next = AtomicUsize::new(0);
    let written = AtomicU64::new(data);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || {
        let mut buffer = Vec::new();
        let mut filler: Option<(usize, TensorFiller<'_>)> = None;
        while !stop.load(Ordering::Relaxed) {
            let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let (tensor, offset) = &layout.placed[chunk.tensor];
            let filler = match &mut filler {
                Some((index, filler)) if *index == chunk.tensor => filler,
                other => &mut other.insert((chunk.tensor, TensorFiller::new(tensor))).1,
            };
            buffer.resize(chunk.bytes, 0);
            filler.fill(layout.seed, chunk, &mut buffer);
            if let Err(error) = file.write_all_at(&buffer, data + offset + chunk.start) {
                stop.store(true, Ordering::Relaxed);
                failure.lock().get_or_insert(error);
                break;
            }
            let count = buffer.len() as u64;
            progress(written.fetch_add(count, Ordering::Relaxed) + count);
        }
    };
    let threads = threads
        .or_else(|| thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
        .clamp(1, chunks.len().max(1));
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Makes the values of one tensor.
struct TensorFiller<'a> {
    tensor: &'a TensorPlan,
    values: Filler,
    quiet: Option<(Quiet, Filler)>,
    mean: f32,
}

impl<'a> TensorFiller<'a> {
    fn new(tensor: &'a TensorPlan) -> Self {
        let filler = |std: f32| match Filler::new(tensor.dtype, std) {
            Some(filler) => filler,
            None => unreachable!("the layout holds only types that can be written"),
        };
        let (std, mean, quiet) = match tensor.values {
            Values::Normal { std, quiet } => (std, 0.0, quiet),
            Values::Around { mean, std } => (std, mean, Quiet::None),
        };
        TensorFiller {
            tensor,
            values: filler(std),
            quiet: (quiet != Quiet::None).then(|| (quiet, filler(std * Quiet::FACTOR))),
            mean,
        }
    }

    fn fill(&self, seed: u64, chunk: &Chunk, out: &mut [u8]) {
        let mut rng = rng_for(seed, &self.tensor.name, chunk.number);
        self.values.fill(&mut rng, out);
        if self.mean != 0.0 {
            for element in out.chunks_exact_mut(4) {
                if let Ok(bytes) = <[u8; 4]>::try_from(&*element) {
                    let value = f32::from_le_bytes(bytes) + self.mean;
                    element.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        let Some((quiet, filler)) = &self.quiet else {
            return;
        };
        let row_bytes = self.tensor.dtype.row_bytes(self.tensor.shape[0]);
        let end = chunk.start + out.len() as u64;
        for row in (chunk.start / row_bytes..Quiet::END).take_while(|row| row * row_bytes < end) {
            if quiet.covers(row) {
                let from = (row * row_bytes).max(chunk.start) - chunk.start;
                let to = ((row + 1) * row_bytes).min(end) - chunk.start;
                filler.fill(&mut rng, &mut out[from as usize..to as usize]);
            }
        }
    }
}

/// A generator of its own for each chunk.
fn rng_for(seed: u64, name: &str, chunk: u64) -> Pcg64Mcg {
    // FNV-1a over what tells chunks apart, twice with different starts for 128 bits of state
    let hash = |start: u64| {
        let seed = seed.to_le_bytes();
        let chunk = chunk.to_le_bytes();
        seed.iter()
            .chain(name.as_bytes())
            .chain(&chunk)
            .fold(start, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    };
    let high = u128::from(hash(0xcbf2_9ce4_8422_2325));
    let low = u128::from(hash(0x9e37_79b9_7f4a_7c15));
    let mut rng = Pcg64Mcg::new(high << 64 | low);
    // similar states give similar first numbers
    for _ in 0..4 {
        rng.next_u64();
    }
    rng
}
